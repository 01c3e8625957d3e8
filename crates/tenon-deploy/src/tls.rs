//! Whose certificates are trusted besides the system's; and why a secure connection was not made, in
//! sentences: what TLS objects to, found in the causes of an error.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{AlertDescription, CertificateError, RootCertStore};

use crate::Error;
use crate::http::innermost;

/// Why a secure connection was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    /// Nobody who is trusted here vouches for the server's certificate.
    Untrusted,
    /// It is an authority's own, which no server may present.
    Authority,
    /// Its time is over.
    Expired,
    /// Its time has not begun.
    NotYetValid,
    /// It is for other names.
    WrongName,
    /// The server wants to see a certificate of this side.
    ClientCertificate,
    /// What answers does not speak TLS.
    NotTls,
    /// What answers does not speak plain HTTP; perhaps it speaks TLS.
    NotPlain,
    /// Something else.
    Other,
}

/// The certificates of a PEM file, each of which can vouch for others.
pub(crate) fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, Error> {
    let bad = |reason: String| Error::Certificates { path: path.into(), reason };
    let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let mut certificates = vec![];
    for (at, certificate) in CertificateDer::pem_slice_iter(&pem).enumerate() {
        let unreadable = |e: String| bad(format!("number {} in it cannot be read: {e}", at + 1));
        let certificate = certificate.map_err(|e| unreadable(e.to_string()))?;
        // What is none would be found out only when a server is asked, and then look like its fault.
        RootCertStore::empty().add(certificate.clone()).map_err(|e| unreadable(e.to_string()))?;
        certificates
            .push(reqwest::Certificate::from_der(&certificate).map_err(|e| unreadable(innermost(&e)))?);
    }
    if certificates.is_empty() {
        return Err(bad("there is no BEGIN CERTIFICATE in it".into()));
    }
    Ok(certificates)
}

impl TlsFault {
    /// What TLS objected to, if it is TLS that ended a connection: the fault, and a sentence.
    pub(crate) fn of(error: &reqwest::Error) -> Option<(Self, String)> {
        let mut cause: Option<&(dyn StdError + 'static)> = error.source();
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::of_tls(error));
            }
            // A server that takes the beginning of TLS for nonsense hangs up.
            if error.to_string().contains("tls handshake eof") {
                return Some((Self::NotTls, "it hangs up when it is spoken TLS to".into()));
            }
            // The source of such an error is that of the one in it.
            let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            cause = within.map_or(error.source(), |error| Some(error));
        }
        None
    }

    fn of_tls(error: &rustls::Error) -> (Self, String) {
        use rustls::Error as Tls;
        match error {
            Tls::InvalidCertificate(error) => Self::of_certificate(error),
            Tls::InvalidMessage(_) => (Self::NotTls, "what answers there does not speak TLS".into()),
            Tls::AlertReceived(AlertDescription::CertificateRequired) => {
                (Self::ClientCertificate, "it wants a certificate of the client's".into())
            }
            Tls::AlertReceived(alert) => (Self::Other, format!("the server ends it: {alert:?}")),
            other => (Self::Other, other.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> (Self, String) {
        use CertificateError as Certificate;
        match error {
            Certificate::UnknownIssuer => {
                (Self::Untrusted, "nobody who is trusted here vouches for its certificate".into())
            }
            Certificate::ExpiredContext { not_after, .. } => {
                (Self::Expired, format!("its certificate was valid until {}", day(*not_after)))
            }
            Certificate::Expired => (Self::Expired, "its certificate is not valid any more".into()),
            Certificate::NotValidYetContext { not_before, .. } => {
                (Self::NotYetValid, format!("its certificate is valid from {} on", day(*not_before)))
            }
            Certificate::NotValidYet => (Self::NotYetValid, "its certificate is not valid yet".into()),
            Certificate::NotValidForNameContext { expected, presented } => {
                let names: Vec<_> = presented.iter().map(|name| plain(name)).collect();
                let names = if names.is_empty() { "no name at all".into() } else { names.join(", ") };
                (
                    Self::WrongName,
                    format!("its certificate is for {names}, and not for {}", expected.to_str()),
                )
            }
            Certificate::NotValidForName => (Self::WrongName, "its certificate is for another name".into()),
            Certificate::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => (
                Self::Authority,
                "its certificate is that of an authority, which is none for a server".into(),
            ),
            other => (Self::Other, format!("its certificate is refused: {other}")),
        }
    }

    /// What a person can do about it.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Untrusted => {
                "if the server is yours, tenon env add --ca FILE trusts the certificate of whoever issued its own (PEM)"
            }
            Self::Authority => {
                "give the server a certificate of its own (CA:FALSE); --ca FILE takes the authority's, or that one itself"
            }
            Self::Expired => "the server needs a new one; or is the clock of this machine wrong?",
            Self::NotYetValid => "is the clock of this machine right, and the server's when it was made?",
            Self::WrongName => {
                "call the server by a name that its certificate has, or give it one for this name (subjectAltName)"
            }
            Self::ClientCertificate => {
                "Tenon presents none; put a proxy before the server that asks for a key instead"
            }
            Self::NotTls => "is it http:// that the server speaks there?",
            Self::NotPlain => "is it https:// that the server speaks there?",
            Self::Other => {
                "is it https that the server speaks there? a certificate of one's own is trusted by tenon env add --ca FILE"
            }
        }
    }
}

/// `IpAddress(127.0.0.1)` and `DnsName("a.example")` as people write them.
fn plain(name: &str) -> String {
    let within = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    let within = within.trim_matches('"');
    within.parse::<IpAddr>().map_or_else(|_| within.into(), |address| address.to_string())
}

fn day(time: UnixTime) -> String {
    let second = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(second)
        .map_or_else(|_| "a day that no calendar has".into(), |time| time.strftime("%Y-%m-%d").to_string())
}
