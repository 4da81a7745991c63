//! The certificate that a client shows. Its signature is checked before, so this one could only come from an
//! authority that is trusted.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a find")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Made by openssl for the test: `CN=tablet`, `DNS:tablet.example`.
const CERTIFICATE: &str = "MIIBkjCCATigAwIBAgIULdman5WKh1x8gWnFA9o9WZJHu4YwCgYIKoZIzj0EAwIwETEPMA0GA1UEAwwGdGFibGV0MB4XDTI2\
     MTEyNDE4NDUyMFoXDTM2MTEyMTE4NDUyMFowETEPMA0GA1UEAwwGdGFibGV0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\
     wLH3PbQz6IT++O34KeYU1nLOXHUoO/rK5+UlUe0D+pt8C7ng5dqLZFKTl6/7KCICJ0Iqx6bCefmk2OINCYBCcaNuMGwwHQYD\
     VR0OBBYEFGMmu7W6rklpfh64eG9YuaiQnKfFMB8GA1UdIwQYMBaAFGMmu7W6rklpfh64eG9YuaiQnKfFMA8GA1UdEwEB/wQF\
     MAMBAf8wGQYDVR0RBBIwEIIOdGFibGV0LmV4YW1wbGUwCgYIKoZIzj0EAwIDSAAwRQIgF9mOmvxWHIVVGO2lPIp4BvZ0Ej+e\
     RRGAC0a8VRnaCl8CIQC6DhSXz3dNnPzWagEptNkHnG1Q+ErDRu3h/+zNHUuItQ==";

pub(crate) fn run(der: &[u8]) {
    if let Some(name) = super::name(der) {
        assert!(!name.is_empty() && !name.contains(char::is_control), "{name:?}");
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let der = STANDARD.decode(CERTIFICATE).unwrap();
    // Another name than a DNS name: then the common name counts.
    let mut address = der.clone();
    let at = address.windows(2).position(|bytes| bytes == [0x82, 0x0e]).unwrap();
    address[at] = 0x81;
    vec![der, address]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_have_names() {
        let names: Vec<_> = seeds().iter().map(|der| super::super::name(der).unwrap()).collect();
        assert_eq!(names, ["tablet.example", "tablet"]);
    }
}
