//! Secure connections: with a certificate that is trusted all goes well, and with any other there is a
//! reason that a person can act on.
#![allow(clippy::unwrap_used)] // tests

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use tenon_deploy::{Backend, Environment, EnvironmentKind, Error, TlsFault, backend};
use tenon_standin::{Certificate, StandIn, Tls};

/// A server behind TLS, and the certificate of its authority in a file.
struct Setting {
    server: StandIn,
    tls: Tls,
    dir: tempfile::TempDir,
}

impl Setting {
    fn new(certificate: Certificate) -> Self {
        let server = StandIn::start().unwrap();
        let tls = Tls::before(&server.url(), certificate).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), tls.authority()).unwrap();
        Self { server, tls, dir }
    }

    fn trusting(&self) -> Environment {
        Environment { ca: Some(self.dir.path().join("ca.pem")), ..environment(&self.tls.url()) }
    }

    fn refused(&self) -> (TlsFault, String) {
        let fault = refused(&self.trusting());
        assert_eq!(self.server.seen(), [], "nothing was said before");
        fault
    }
}

fn environment(url: &str) -> Environment {
    let mut environment = Environment::new(EnvironmentKind::Ollama, url);
    environment.timeout_seconds = 5.0;
    environment.options.insert("retry-delay".into(), "0.01".into());
    environment
}

fn connect(environment: &Environment) -> Result<Box<dyn Backend>, Error> {
    let backend = backend(environment)?;
    backend.check(None, &())?;
    Ok(backend)
}

/// The fault of a connection that is not made, and all that a person is told. It is not tried again.
fn refused(environment: &Environment) -> (TlsFault, String) {
    let begin = Instant::now();
    let error = connect(environment).map(drop).unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(4), "{error}");
    let Error::Tls { fault, url, .. } = &error else { panic!("{error:?}") };
    assert!(environment.url.starts_with(url.trim_end_matches('/')));
    (*fault, format!("{error}\n{}", error.remedy().unwrap()))
}

#[test]
fn an_authority_of_ones_own_is_trusted_by_its_file() {
    for certificate in [Certificate::Good, Certificate::SelfSigned] {
        let setting = Setting::new(certificate);
        let backend = connect(&setting.trusting()).unwrap();
        assert!(backend.find("m", &()).unwrap().is_none());
        assert!(!setting.server.seen().is_empty());
        // Several in one file, and others too.
        let other = Setting::new(Certificate::Good);
        let both = format!("{}\n{}", other.tls.authority(), setting.tls.authority());
        std::fs::write(setting.dir.path().join("ca.pem"), both).unwrap();
        connect(&setting.trusting()).unwrap();
        // One authority does not vouch for what is another's.
        let (fault, _) =
            refused(&Environment { url: Setting::new(certificate).tls.url(), ..setting.trusting() });
        assert!(matches!(fault, TlsFault::Untrusted | TlsFault::Other), "{fault:?}");
    }
}

#[test]
fn without_the_file_nobody_vouches_for_it() {
    let setting = Setting::new(Certificate::Good);
    let (fault, said) = refused(&environment(&setting.tls.url()));
    assert_eq!(fault, TlsFault::Untrusted);
    assert!(said.contains("nobody who is trusted here") && said.contains("--ca FILE"), "{said}");
    assert_eq!(setting.server.seen(), [], "no key went there");
}

#[test]
fn certificates_that_are_not_right() {
    for (certificate, expected, words) in [
        (Certificate::Expired, TlsFault::Expired, ["valid until 2020-02-29", "a new one"]),
        (Certificate::NotYetValid, TlsFault::NotYetValid, ["valid from 2100-03-01", "clock"]),
        (
            Certificate::OtherName,
            TlsFault::WrongName,
            ["for other.example, and not for 127.0.0.1", "by a name"],
        ),
        (Certificate::Authority, TlsFault::Authority, ["that of an authority", "CA:FALSE"]),
    ] {
        let (fault, said) = Setting::new(certificate).refused();
        assert_eq!(fault, expected, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
}

/// A server that answers whatever comes with some bytes, or with none, and hangs up.
fn answering(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(bytes);
        }
    });
    address.to_string()
}

#[test]
fn a_plain_server_behind_https_and_a_secure_one_behind_http() {
    for bytes in [&b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n400 Bad Request"[..], b""] {
        let (fault, said) = refused(&environment(&format!("https://{}", answering(bytes))));
        assert_eq!(fault, TlsFault::NotTls, "{said}");
        assert!(said.contains("http://"), "{said}");
    }
    // What a server of rustls, and one of Go, say to plain HTTP.
    let setting = Setting::new(Certificate::Good);
    let (fault, said) = refused(&environment(&setting.tls.url().replace("https", "http")));
    assert_eq!(fault, TlsFault::NotPlain, "{said}");
    assert!(said.contains("https://"), "{said}");
    let go = answering(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n");
    let error = connect(&environment(&format!("http://{go}"))).map(drop).unwrap_err();
    let said = format!("{error}\n{}", error.remedy().unwrap());
    assert!(said.contains("HTTPS server") && said.contains("https://"), "{said}");
}

#[test]
fn a_file_that_has_no_certificates() {
    let setting = Setting::new(Certificate::Good);
    for (content, word) in [
        ("", "no BEGIN CERTIFICATE"),
        ("hello", "no BEGIN CERTIFICATE"),
        ("-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n", ""),
        ("-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n", ""),
    ] {
        std::fs::write(setting.dir.path().join("ca.pem"), content).unwrap();
        let error = connect(&setting.trusting()).map(drop).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("ca.pem") && said.contains(word), "{content:?}: {said}");
        assert!(matches!(error, Error::Certificates { .. }), "{error:?}");
        assert!(error.remedy().unwrap().contains("PEM"));
    }
    std::fs::remove_file(setting.dir.path().join("ca.pem")).unwrap();
    assert!(matches!(connect(&setting.trusting()), Err(Error::Certificates { .. })));
}
