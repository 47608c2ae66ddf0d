//! Encryption at rest: the key of a folder is random, and lies in key.age, encrypted for those who may restore (age-encryption.org).
use crate::error::{Blame, Error, Result};
use crate::options::Options;
use crate::packed::locked;
use age::x25519::Recipient;
use stasis_proto::key::Key;
use stasis_proto::{ImageDir, Kind, pb};
use std::io::{Read, Write};
use std::path::Path;

fn failed(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new("E6730", Blame::Host, what).why(why)
}

/// Encrypts what the folder will hold, if that is wanted.
///
/// # Errors
/// E2720: a recipient is none; E6700, E6720; those of writing.
pub fn seal(dir: &mut ImageDir, o: &Options) -> Result<()> {
    if o.recipients.is_empty() {
        return dir.remove(&Kind::Key.file()).map_err(Error::from);
    }
    let mut all = Vec::new();
    for text in &o.recipients {
        all.push(text.parse::<Recipient>().map_err(|e| {
            Error::new("E2720", Blame::Caller, format!("--encrypt {text}"))
                .why(e)
                .advice("name an age recipient: age1..., as age-keygen prints it")
        })?);
    }
    let mut secret = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut secret))
        .map_err(|e| Error::new("E6700", Blame::Host, "/dev/urandom").why(e))?;
    // of an older dump: the key would not open them
    for name in dir.list()? {
        dir.remove(&name)?;
    }
    let wrapped = wrap(&all, &secret).map_err(|e| failed("the key cannot be encrypted", e))?;
    dir.seal(Key::new(&secret));
    let mut file = dir.create_raw(&Kind::Key.file())?;
    file.write_all(&wrapped)
        .map_err(|e| failed("key.age cannot be written", e))
}

fn wrap(to: &[Recipient], secret: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let all = to.iter().map(|r| r as &dyn age::Recipient);
    let e = age::Encryptor::with_recipients(all).map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    let mut w = e.wrap_output(&mut out).map_err(|e| e.to_string())?;
    w.write_all(secret).map_err(|e| e.to_string())?;
    w.finish().map_err(|e| e.to_string())?;
    Ok(out)
}

fn unwrap(wrapped: &[u8], identity: &Path) -> std::result::Result<[u8; 32], String> {
    let name = identity.to_string_lossy().into_owned();
    let file = age::IdentityFile::from_file(name).map_err(|e| e.to_string())?;
    let all = file.into_identities().map_err(|e| e.to_string())?;
    let d = age::Decryptor::new(wrapped).map_err(|e| e.to_string())?;
    let all = all.iter().map(|i| i.as_ref() as &dyn age::Identity);
    let mut text = Vec::new();
    d.decrypt(all)
        .map_err(|e| e.to_string())?
        .take(64)
        .read_to_end(&mut text)
        .map_err(|e| e.to_string())?;
    text.try_into().map_err(|_| "key.age holds no key".into())
}

/// Decrypts a folder, if it is encrypted.
///
/// # Errors
/// E5722: there is no identity; E5723: it does not open the folder; those of reading.
pub fn unseal(dir: &mut ImageDir, identity: Option<&Path>) -> Result<()> {
    let inventory: pb::InventoryEntry = match dir.read_one(&Kind::Inventory.file()) {
        Ok(i) => i,
        // whoever reads it next says so
        Err(_) => return Ok(()),
    };
    let how = inventory.stasis_memory.and_then(|m| m.encryption);
    let Some(how) = how else {
        return Ok(());
    };
    let what = "the images";
    if how != "age" {
        return Err(Error::new("E5723", Blame::Image, what)
            .why(format!("they are encrypted by {how}, which is not known"))
            .advice("restore with a newer version"));
    }
    let identity = identity.ok_or_else(|| locked(what))?;
    let mut wrapped = Vec::new();
    dir.open_raw(&Kind::Key.file())?
        .take(1 << 20)
        .read_to_end(&mut wrapped)
        .map_err(|e| failed("key.age cannot be read", e))?;
    let secret = unwrap(&wrapped, identity).map_err(|e| {
        Error::new("E5723", Blame::Image, what)
            .why(e)
            .advice("name the identity of a recipient they were encrypted for")
    })?;
    Ok(dir.unseal(Key::new(&secret))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use age::secrecy::ExposeSecret;

    #[test]
    fn only_the_identity_of_a_recipient_opens_a_folder() {
        let tmp = tempfile::tempdir().unwrap();
        let (mine, other) = (
            age::x25519::Identity::generate(),
            age::x25519::Identity::generate(),
        );
        let file = |i: &age::x25519::Identity, name: &str| {
            let path = tmp.path().join(name);
            std::fs::write(&path, i.to_string().expose_secret()).unwrap();
            path
        };
        let mut o = Options::new(tmp.path().join("images"));
        o.recipients = vec![mine.to_public().to_string()];
        let mut dir = ImageDir::create(&o.images).unwrap();
        seal(&mut dir, &o).unwrap();
        let fs = pb::FsEntry {
            cwd_id: 1,
            root_id: 2,
            umask: None,
        };
        dir.write_one("fs-7.img", &fs).unwrap();
        let inventory = pb::InventoryEntry {
            img_version: 2,
            stasis_memory: Some(pb::StasisInventoryEntry {
                encryption: Some("age".into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        dir.commit_inventory(&inventory).unwrap();
        let open = || ImageDir::open(&o.images).unwrap();
        // as it lies there it is no image
        assert!(open().read_one::<pb::FsEntry>("fs-7.img").is_err());
        let mut dir = open();
        assert_eq!(unseal(&mut dir, None).unwrap_err().code, "E5722");
        let theirs = file(&other, "other");
        assert_eq!(unseal(&mut dir, Some(&theirs)).unwrap_err().code, "E5723");
        unseal(&mut dir, Some(&file(&mine, "mine"))).unwrap();
        assert_eq!(dir.read_one::<pb::FsEntry>("fs-7.img").unwrap(), fs);
        o.recipients = vec!["age1nobody".into()];
        assert_eq!(seal(&mut open(), &o).unwrap_err().code, "E2720");
    }
}
