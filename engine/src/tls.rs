//! TLS over the connections of page servers, lazy-pages daemons and migrations, as CRIU has it for the first two: both ends show a
//! certificate, and each checks that of the other.
//!
//! The files and their default places are CRIU's. The name that is checked is the one the caller connects to; whoever listens
//! checks that the other's certificate is of a trusted authority, not its name, because it may come from anywhere. Names are only
//! looked for in the certificate's subjectAltName, not in its subject (RFC 9525, section 6.3).
use crate::error::{Blame, Error, Result};
use crate::migrate::wire::Link;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where files are that the caller does not name.
const CACERT: &str = "/etc/pki/CA/cacert.pem";
const CACRL: &str = "/etc/pki/CA/cacrl.pem";
const CERT: &str = "/etc/pki/criu/cert.pem";
const KEY: &str = "/etc/pki/criu/private/key.pem";
/// Authorities the host trusts, as Debian has them.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Whoever says nothing for so long while TLS is agreed on is sent away, in seconds.
const SOON_SECS: u64 = 10;

/// What the caller says: all in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Trusted authorities. Without them: those in CRIU's place and the host's.
    pub cacert: Option<PathBuf>,
    /// Certificates that are revoked.
    pub cacrl: Option<PathBuf>,
    /// Our certificate, with those between it and the authority.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The name in the other's certificate does not matter.
    pub no_name: bool,
}

/// What connections are secured with.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn unusable(path: &Path, why: impl fmt::Display) -> Error {
    Error::new("E2730", Blame::Caller, format!("TLS: {}", path.display()))
        .why(why)
        .advice("name files in PEM by --tls-cacert, --tls-cacrl, --tls-cert and --tls-key")
}

fn refused(why: impl fmt::Display) -> Error {
    Error::new("E6713", Blame::Host, "no TLS with the other host")
        .why(why)
        .advice("both ends need --tls, a certificate of an authority that the other trusts, and in that of whoever listens the name or address that is connected to as subjectAltName (or --tls-no-cn-verify)")
}

/// A file of the caller's, or the one in its default place; `None` if the caller names none and there is none.
fn file<T>(
    given: Option<&PathBuf>,
    place: &str,
    read: impl FnOnce(&Path) -> std::result::Result<T, rustls::pki_types::pem::Error>,
) -> Result<Option<T>> {
    let path = given.map_or(Path::new(place), |p| p);
    match read(path) {
        Ok(v) => Ok(Some(v)),
        Err(rustls::pki_types::pem::Error::Io(e))
            if given.is_none() && e.kind() == ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(e) => Err(unusable(path, e)),
    }
}

fn certificates(
    path: &Path,
) -> std::result::Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_file_iter(path)?.collect()
}

/// Trusted authorities.
fn roots(f: &Files) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if f.cacert.is_none()
        && let Some(all) = file(None, SYSTEM, certificates)?
    {
        // some of a host's may be of forms that nobody uses any more
        roots.add_parsable_certificates(all);
    }
    let place = f.cacert.as_deref().unwrap_or(Path::new(CACERT));
    for c in file(f.cacert.as_ref(), CACERT, certificates)?.unwrap_or_default() {
        roots.add(c).map_err(|e| unusable(place, e))?;
    }
    match roots.is_empty() {
        true => Err(unusable(
            place,
            "there is no certificate of an authority in it",
        )),
        false => Ok(roots),
    }
}

impl Files {
    /// Reads them, if TLS is `wanted`.
    ///
    /// # Errors
    /// E2730.
    pub fn load(&self, wanted: bool) -> Result<Option<Arc<Tls>>> {
        let load = || Tls::load(self).map(Arc::new);
        wanted.then(load).transpose()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// E2730.
    pub fn load(f: &Files) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(f)?);
        let list = |p: &Path| CertificateRevocationListDer::pem_file_iter(p)?.collect();
        let crls: Vec<_> = file(f.cacrl.as_ref(), CACRL, list)?.unwrap_or_default();
        let cert = f.cert.clone().unwrap_or(CERT.into());
        let own = certificates(&cert).map_err(|e| unusable(&cert, e))?;
        let key_file = f.key.clone().unwrap_or(KEY.into());
        let key = PrivateKeyDer::from_pem_file(&key_file).map_err(|e| unusable(&key_file, e))?;
        let list = f.cacrl.clone().unwrap_or(CACRL.into());
        let theirs = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(crls.clone())
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build()
            .map_err(|e| unusable(&list, e))?;
        let callers = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .with_crls(crls)
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build()
            .map_err(|e| unusable(&list, e))?;
        let bad = |e: rustls::Error| unusable(&cert, e);
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(bad)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Named {
                inner: theirs,
                no_name: f.no_name,
            }))
            .with_client_auth_cert(own.clone(), key.clone_key())
            .map_err(bad)?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(bad)?
            .with_client_cert_verifier(callers)
            .with_single_cert(own, key)
            .map_err(bad)?;
        // nobody comes back to a session
        server.send_tls13_tickets = 0;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
    /// Secures a connection to a host of this name or address.
    ///
    /// # Errors
    /// E6713.
    pub fn connect(&self, socket: TcpStream, host: &str) -> Result<Box<dyn Link>> {
        let name = ServerName::try_from(host.to_owned()).map_err(refused)?;
        let c = ClientConnection::new(self.client.clone(), name).map_err(refused)?;
        Secured::agree(c.into(), socket)
    }
    /// Secures a connection of somebody who came.
    ///
    /// # Errors
    /// E6713.
    pub fn accept(&self, socket: TcpStream) -> Result<Box<dyn Link>> {
        let c = ServerConnection::new(self.server.clone()).map_err(refused)?;
        Secured::agree(c.into(), socket)
    }
}

/// A connection of somebody who came, secured if that is wanted.
///
/// # Errors
/// E6713.
pub fn accept(tls: Option<&Tls>, socket: TcpStream) -> Result<Box<dyn Link>> {
    match tls {
        Some(t) => t.accept(socket),
        None => Ok(Box::new(socket)),
    }
}

/// A connection to a host, secured if that is wanted.
///
/// # Errors
/// E6713.
pub fn connect(tls: Option<&Tls>, socket: TcpStream, host: &str) -> Result<Box<dyn Link>> {
    match tls {
        Some(t) => t.connect(socket, host),
        None => Ok(Box::new(socket)),
    }
}

/// TLS over a socket.
struct Secured {
    tls: Connection,
    socket: TcpStream,
}

impl Secured {
    fn agree(mut tls: Connection, mut socket: TcpStream) -> Result<Box<dyn Link>> {
        let soon = Some(Duration::from_secs(SOON_SECS));
        socket.set_read_timeout(soon).map_err(refused)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).map_err(refused)?;
        }
        socket.set_read_timeout(None).map_err(refused)?;
        Ok(Box::new(Self { tls, socket }))
    }
    /// Sends what is ready.
    fn send(&mut self) -> std::io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

impl Read for Secured {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.tls.reader().read(buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            // the end of the socket before that of TLS is an error of the next read
            self.tls.read_tls(&mut self.socket)?;
            if let Err(e) = self.tls.process_new_packets() {
                // the other end learns why
                let _ = self.send();
                return Err(std::io::Error::new(ErrorKind::InvalidData, e));
            }
            self.send()?;
        }
    }
}

impl Write for Secured {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.tls.writer().write(buf)?;
        self.send()?;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.tls.writer().flush()?;
        self.send()
    }
}

impl Link for Secured {
    fn socket(&self) -> &TcpStream {
        &self.socket
    }
    fn bye(&mut self) -> std::io::Result<()> {
        self.tls.send_close_notify();
        self.send()
    }
}

/// Checks certificates as usual, but for the name if that does not matter.
#[derive(Debug)]
struct Named {
    inner: Arc<WebPkiServerVerifier>,
    no_name: bool,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let verdict = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verdict {
            // the name is what is looked at last
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) if self.no_name => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
