//! Certificates for tests, in files, with CRIU's names for the options that name them.
use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use std::fs;
use std::path::{Path, PathBuf};

/// An authority that issues certificates into a folder.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one; its certificate is `NAME.pem`.
    ///
    /// # Errors
    /// As for files.
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut p = CertificateParams::new([])?;
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        fs::write(dir.join(format!("{name}.pem")), p.self_signed(&key)?.pem())?;
        Ok(Self {
            dir: dir.into(),
            issuer: Issuer::new(p, key),
        })
    }
    /// Issues `NAME.crt` and `NAME.key` with this number, for hosts of these names and addresses.
    ///
    /// # Errors
    /// As for files.
    pub fn issue(&self, name: &str, number: u64, hosts: &[&str]) -> Result<()> {
        let key = KeyPair::generate()?;
        let hosts: Vec<String> = hosts.iter().map(|h| h.to_string()).collect();
        let mut p = CertificateParams::new(hosts)?;
        p.serial_number = Some(SerialNumber::from(number));
        let cert = p.signed_by(&key, &self.issuer)?;
        fs::write(self.dir.join(format!("{name}.crt")), cert.pem())?;
        fs::write(self.dir.join(format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }
    /// Writes a list, `NAME.crl`, that revokes the certificate with this number.
    ///
    /// # Errors
    /// As for files.
    pub fn revoke(&self, name: &str, number: u64) -> Result<()> {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(number),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer)?.pem()?;
        fs::write(self.dir.join(format!("{name}.crl")), list)?;
        Ok(())
    }
}

/// The options of who trusts the authority `ca` and is `name`, in files of a folder.
pub fn options(dir: &Path, ca: &str, name: &str) -> Vec<String> {
    let dir = dir.display();
    let text = format!(
        "--tls --tls-cacert {dir}/{ca}.pem --tls-cert {dir}/{name}.crt --tls-key {dir}/{name}.key"
    );
    text.split(' ').map(Into::into).collect()
}
