//! A development authority, and a certificate for each process of a topology.
//!
//! Owns the making of them. It never overwrites a key, nor a certificate unless it is told to renew; and what it has
//! made it reads again as a service would, so that what is of no use is known at once.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use modulith_transport::{Trust, TrustFiles, spiffe_id};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};

use crate::topology::{SERVICE, Topology};

/// How long a certificate is valid.
pub(crate) const DAYS_DEFAULT: u64 = 90;
/// The longest that can be asked for; as long as the authority.
pub(crate) const DAYS_MAX: u64 = AUTHORITY_DAYS;
const AUTHORITY_DAYS: u64 = 3650;
/// Before now, since another host's clock may be behind.
const BEFORE: Duration = Duration::from_secs(5 * 60);

/// What is asked for.
pub(crate) struct Wanted {
    /// Instead of the places that the topology names.
    pub(crate) out: Option<PathBuf>,
    pub(crate) days: u64,
    /// Further host names and addresses, for tools that look at them.
    pub(crate) hosts: Vec<String>,
    /// New certificates in the place of those that are there.
    pub(crate) renew: bool,
}

/// Makes what is missing, and says what it did. A repeat makes nothing.
pub(crate) fn make(application: &str, topology: &Topology, wanted: &Wanted) -> anyhow::Result<()> {
    if topology.is_monolith() {
        println!("one process has nobody to show a certificate to: nothing to do");
        return Ok(());
    }
    let template = topology.trust_files(SERVICE);
    if wanted.out.is_none() && !template.certificate.to_string_lossy().contains(SERVICE) {
        bail!(
            "{}: all services have this one place for their certificates; name a folder with --out",
            template.certificate.display()
        );
    }
    let files = |process: &str| match &wanted.out {
        Some(folder) => TrustFiles {
            authority: folder.join("authority.pem"),
            certificate: folder.join(format!("{process}.pem")),
            key: folder.join(format!("{process}.key")),
        },
        None => topology.trust_files(process),
    };
    let authority = Authority::find_or_make(application, &files(SERVICE).authority)?;
    for process in topology.certified() {
        let files = files(process);
        if files.certificate.exists() && !wanted.renew {
            println!("kept {}", files.certificate.display());
        } else {
            authority.certify(application, process, &files, wanted)?;
        }
        Trust::load(application, process, files)?;
    }
    Ok(())
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The key is beside the certificate, as `authority.key`. Services need the certificate only.
    fn find_or_make(application: &str, certificate: &Path) -> anyhow::Result<Self> {
        let key_file = certificate.with_extension("key");
        let (has_certificate, has_key) = (certificate.exists(), key_file.exists());
        if has_certificate && !has_key {
            bail!(
                "{}: only the key of {} can sign certificates; it is on the host that made it",
                key_file.display(),
                certificate.display()
            );
        }
        let key = find_or_make_key(&key_file)?;
        let params = Self::params(application, &key);
        if has_certificate {
            println!("kept {}", certificate.display());
        } else {
            let made = params.self_signed(&key)?;
            write_certificate(certificate, &made, AUTHORITY_DAYS)?;
        }
        Ok(Self { issuer: Issuer::new(params, key) })
    }

    /// The name comes from the key, so that a repeat finds the same one, and so that no two authorities share it.
    fn params(application: &str, key: &KeyPair) -> CertificateParams {
        let digest = ring::digest::digest(&ring::digest::SHA256, key.der_bytes());
        let id: String = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut params = valid_for(AUTHORITY_DAYS);
        params.distinguished_name = named(&format!("{application} development authority {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    fn certify(
        &self,
        application: &str,
        process: &str,
        files: &TrustFiles,
        wanted: &Wanted,
    ) -> anyhow::Result<()> {
        // A key that is there stays, so that a renewal replaces one file, in one step.
        let key = find_or_make_key(&files.key)?;
        let mut params = valid_for(wanted.days);
        params.distinguished_name = named(process);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![
            SanType::URI(spiffe_id(application, process).try_into()?),
            SanType::DnsName(process.try_into()?),
        ];
        for host in &wanted.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        let made = params.signed_by(&key, &self.issuer)?;
        write_certificate(&files.certificate, &made, wanted.days)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn valid_for(days: u64) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + Duration::from_secs(days * 24 * 60 * 60)).into();
    params
}

fn find_or_make_key(file: &Path) -> anyhow::Result<KeyPair> {
    let in_file = || file.display().to_string();
    if file.exists() {
        return KeyPair::from_pem(&fs::read_to_string(file).with_context(in_file)?).with_context(in_file);
    }
    let key = KeyPair::generate()?;
    write(file, &key.serialize_pem(), 0o600).with_context(in_file)?;
    println!("made {}", file.display());
    Ok(key)
}

fn write_certificate(file: &Path, certificate: &Certificate, days: u64) -> anyhow::Result<()> {
    write(file, &certificate.pem(), 0o644).with_context(|| file.display().to_string())?;
    println!("made {}, valid for {days} days", file.display());
    Ok(())
}

/// Whole or not at all: a service may read it at this moment.
fn write(file: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let new = file.with_extension("new");
    // What a run that was cut left there may have another mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut handle = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    handle.write_all(text.as_bytes())?;
    handle.sync_all()?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SPLIT: &str = "
[service.products]
modules = []
listen = \"10.0.0.1:7001\"
[service.orders]
modules = []
";

    fn wanted(out: Option<PathBuf>, renew: bool) -> Wanted {
        Wanted { out, days: 90, hosts: vec!["10.0.0.1".into(), "orders.example.org".into()], renew }
    }

    fn contents(folder: &Path) -> BTreeMap<String, String> {
        let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        files
            .map(|path| {
                (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap())
            })
            .collect()
    }

    #[test]
    fn a_repeat_makes_what_is_missing_and_a_renewal_new_certificates() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("split.toml");
        fs::write(&file, SPLIT).unwrap();
        let topology = Topology::load(&file).unwrap();
        let certs = folder.path().join("certs");
        make("shop", &topology, &wanted(None, false)).unwrap();
        let first = contents(&certs);
        let names: Vec<&str> = first.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "authority.key",
                "authority.pem",
                "gateway.key",
                "gateway.pem",
                "orders.key",
                "orders.pem",
                "products.key",
                "products.pem"
            ]
        );
        for name in names {
            let mode = fs::metadata(certs.join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if name.ends_with(".key") { 0o600 } else { 0o644 }, "{name}");
        }

        fs::remove_file(certs.join("orders.pem")).unwrap();
        make("shop", &topology, &wanted(None, false)).unwrap();
        let second = contents(&certs);
        let changed = |before: &BTreeMap<String, String>, after: &BTreeMap<String, String>| {
            assert_eq!(before.len(), after.len());
            let changed = before.iter().filter(|(name, text)| after[*name] != **text);
            changed.map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(changed(&first, &second), ["orders.pem"]);

        make("shop", &topology, &wanted(None, true)).unwrap();
        assert_eq!(changed(&second, &contents(&certs)), ["gateway.pem", "orders.pem", "products.pem"]);

        // Certificates of another authority are not taken for good ones.
        let other = tempfile::tempdir().unwrap();
        make("shop", &topology, &wanted(Some(other.path().to_owned()), false)).unwrap();
        fs::copy(other.path().join("orders.pem"), certs.join("orders.pem")).unwrap();
        fs::copy(other.path().join("orders.key"), certs.join("orders.key")).unwrap();
        let error = make("shop", &topology, &wanted(None, false)).unwrap_err().to_string();
        assert!(error.contains("orders.pem: not signed by the authority"), "{error}");

        // Without the authority's key nothing can be signed.
        fs::remove_file(certs.join("authority.key")).unwrap();
        let error = make("shop", &topology, &wanted(None, true)).unwrap_err().to_string();
        assert!(error.contains("authority.key") && error.contains("on the host that made it"), "{error}");
    }
}
