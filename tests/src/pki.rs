//! Certificates for tests of TCP, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

use nestd_client::Certificates;
use tempfile::TempDir;

/// An authority that signs certificates. Its files go with it.
pub struct Authority {
    folder: TempDir,
}

impl Default for Authority {
    fn default() -> Self {
        let authority = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        let extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign";
        authority.make("ca", "Test authority", extensions, &[]);
        authority
    }
}

impl Authority {
    /// Its own certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate and its key. `names` is a subjectAltName such as `DNS:tablet`, or empty.
    #[must_use]
    pub fn signs(&self, common_name: &str, names: &str) -> [PathBuf; 2] {
        let file = common_name.replace(' ', "-");
        let mut extensions = "basicConstraints=critical,CA:FALSE".to_owned();
        if !names.is_empty() {
            extensions = format!("{extensions}\nsubjectAltName={names}");
        }
        let (ca, key) = (self.ca(), self.folder.path().join("ca.key"));
        self.make(&file, common_name, &extensions, &[("-CA", &ca), ("-CAkey", &key)]);
        ["pem", "key"].map(|kind| self.folder.path().join(format!("{file}.{kind}")))
    }

    /// A client's files, for a daemon of the same authority.
    #[must_use]
    pub fn client(&self, common_name: &str, names: &str) -> Certificates {
        let [certificate, key] = self.signs(common_name, names);
        Certificates { ca: self.ca(), certificate, key }
    }

    fn make(&self, file: &str, common_name: &str, extensions: &str, signer: &[(&str, &Path)]) {
        let path = |kind: &str| self.folder.path().join(format!("{file}.{kind}"));
        let settings =
            format!("[req]\ndistinguished_name=name\n[name]\n[extensions]\n{extensions}\n");
        std::fs::write(path("cnf"), settings).expect("the folder is writable");
        let mut command = Command::new("openssl");
        command
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-days", "2", "-extensions", "extensions", "-subj"])
            .arg(format!("/CN={common_name}"))
            .args([&"-config".into(), &path("cnf"), &"-keyout".into(), &path("key")])
            .args([&"-out".into(), &path("pem")]);
        for (option, file) in signer {
            command.arg(option).arg(file);
        }
        let output = command.output().expect("openssl starts (Debian's package openssl)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
