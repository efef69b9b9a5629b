//! How a Connect server is reached: encrypted, with a certificate that this host trusts, or on this host itself.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::CertificateError;
use ureq::http::Uri;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::connect::Found;
use crate::sys;

/// Where distributions keep the authorities that the host trusts.
const USUAL: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Whether what is sent to an address is encrypted. If it is not, it stays on this host.
///
/// # Errors
/// That it would go over a network in the clear, or that it is no address.
pub(super) fn is_encrypted(address: &str) -> Found<bool> {
    let uri = address.parse::<Uri>().ok();
    match uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.host()?))) {
        Some(("https", _)) => Ok(true),
        Some(("http", host)) if sys::net::is_loopback(host) => Ok(false),
        Some(("http", _)) => Err((
            "OP_CONNECT_HOST is without TLS: the token and the values would cross the network in the clear"
                .into(),
            "give an https:// address, or reach the server through a tunnel that ends at 127.0.0.1",
        )),
        _ => Err(("OP_CONNECT_HOST is no address".into(), "write one like https://connect.example.org")),
    }
}

/// The authorities that this host trusts, or those of `SSL_CERT_FILE` alone.
pub(super) fn tls() -> Found<TlsConfig> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let missing = |named: bool| match named {
        true => ("SSL_CERT_FILE names no file of certificates".to_owned(), "see whether you can read it"),
        false => (
            "the host trusts no certificate authorities".to_owned(),
            "install them: `apt-get install ca-certificates`, or name a file of them in SSL_CERT_FILE",
        ),
    };
    let is_named = named.is_some();
    let file = named.or_else(|| USUAL.map(PathBuf::from).into_iter().find(|file| file.is_file()));
    let text = file.and_then(|file| std::fs::read(file).ok()).ok_or_else(|| missing(is_named))?;
    let roots: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if roots.is_empty() {
        return Err(missing(is_named));
    }
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

/// Why there was no answer.
pub(super) fn unreached(e: ureq::Error) -> (String, &'static str) {
    let refused = |why: &str| format!("the Connect server's certificate is refused: {why}");
    match certificate_error(&e) {
        Some(CertificateError::UnknownIssuer | CertificateError::BadSignature) => (
            refused("it is by no authority that this host trusts"),
            "trust its authority with `update-ca-certificates`, or name a file with it in SSL_CERT_FILE; under sudo: \
             `sudo --preserve-env=SSL_CERT_FILE spark …`",
        ),
        Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => (
            refused("it is for another name"),
            "write the name that is in it into OP_CONNECT_HOST, if that is the server meant",
        ),
        Some(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            (refused("it has expired"), "renew it, or see whether this host's clock is right")
        }
        Some(other) => (refused(&other.to_string()), "look at it with `openssl s_client -connect HOST:443`"),
        // It may hold the address, which is no secret, and nothing of the request's headers.
        None => (
            format!("the Connect server cannot be reached: {e}"),
            "see whether OP_CONNECT_HOST is right, and the server runs",
        ),
    }
}

fn certificate_error(e: &ureq::Error) -> Option<&CertificateError> {
    let tls = match e {
        ureq::Error::Rustls(tls) => tls,
        ureq::Error::Io(e) => e.get_ref()?.downcast_ref()?,
        _ => return None,
    };
    match tls {
        rustls::Error::InvalidCertificate(why) => Some(why),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_over_a_network_in_the_clear() {
        for own in ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:8080/x", "http://127.9.9.9"] {
            assert!(!is_encrypted(own).unwrap(), "{own}");
        }
        assert!(is_encrypted("https://connect.example.org").unwrap());
        for bad in [
            "http://connect:8080",
            "http://127.0.0.1@example.org",
            "http://127.0.0.1.example.org",
            "http://localhost.example.org",
            "http://10.0.0.1:8080",
            "HTTP://10.0.0.1",
            "connect:8080",
            "127.0.0.1",
            "ftp://127.0.0.1",
            "https://",
            "",
        ] {
            assert!(is_encrypted(bad).is_err(), "{bad}");
        }
    }
}
