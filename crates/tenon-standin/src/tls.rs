//! TLS before a server that speaks none: with a certificate that is right, or wrong in one way.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

/// What certificate is presented for 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    /// One of the authority's for this address.
    Good,
    /// One whose time ended in 2020.
    Expired,
    /// One whose time begins in 2100.
    NotYetValid,
    /// One for `other.example`.
    OtherName,
    /// One that the server made for itself; the authority's is the same.
    SelfSigned,
    /// The authority's own.
    Authority,
}

/// Speaks TLS on a port of its own, and passes on what it is told to a server, until it is dropped.
pub struct Tls {
    address: SocketAddr,
    authority: String,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tls {
    /// Stands before the server at a `http://` address.
    pub fn before(url: &str, certificate: Certificate) -> io::Result<Self> {
        let server: SocketAddr =
            url.trim_start_matches("http://").trim_end_matches('/').parse().map_err(io::Error::other)?;
        let (config, authority) = config(certificate).map_err(io::Error::other)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stopped = Arc::<AtomicBool>::default();
        let for_thread = Arc::clone(&stopped);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                let acceptor = TlsAcceptor::from(Arc::new(config));
                while let Ok((stream, _)) = listener.accept().await {
                    if for_thread.load(Ordering::Acquire) {
                        return;
                    }
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        // Whatever goes wrong, the other side sees it.
                        let Ok(mut stream) = acceptor.accept(stream).await else { return };
                        let Ok(mut server) = tokio::net::TcpStream::connect(server).await else { return };
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
                    });
                }
            });
        });
        Ok(Self { address, authority, stopped, thread: Some(thread) })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate of its authority, PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // Wakes the one that waits for connections.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How the server presents a certificate, and who vouches for it.
fn config(
    certificate: Certificate,
) -> Result<(ServerConfig, String), Box<dyn std::error::Error + Send + Sync>> {
    let (authority_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut of_authority = CertificateParams::new(["127.0.0.1".to_string()])?;
    of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = of_authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(of_authority, &authority_key);
    let name = if certificate == Certificate::OtherName { "other.example" } else { "127.0.0.1" };
    let mut params = CertificateParams::new([name.to_string()])?;
    match certificate {
        Certificate::Expired => params.not_after = date_time_ymd(2020, 2, 29),
        Certificate::NotYetValid => params.not_before = date_time_ymd(2100, 3, 1),
        _ => {}
    }
    let presented = match certificate {
        Certificate::SelfSigned => params.self_signed(&key)?,
        Certificate::Authority => authority.clone(),
        _ => params.signed_by(&key, &issuer)?,
    };
    let key = if certificate == Certificate::Authority { &authority_key } else { &key };
    let chain = vec![presented.der().clone()];
    let vouches = if certificate == Certificate::SelfSigned { presented.pem() } else { authority.pem() };
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key.into())?;
    Ok((config, vouches))
}
