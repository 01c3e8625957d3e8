//! The socket: connections taken in, bounded, and brought to an end.
//!
//! A client costs a connection at most for as long as it makes progress: its requests' heads must
//! arrive in time, and it must take what is sent to it. Connections beyond the bound wait in the
//! kernel's queue.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};
use tower::ServiceExt;

use crate::Server;

/// Bytes of a request's head, and of hyper's buffers.
const HEAD_BYTES: usize = 64 << 10;
/// Files that this process keeps for itself: the catalogue, models, the log.
const OWN_FILES: u64 = 256;

/// Why a server does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum ServeError {
    #[error(
        "{address} can be reached from other machines, so a token is needed: pass --token-file FILE (it is made where it is missing), or listen on 127.0.0.1"
    )]
    NeedsToken { address: SocketAddr },

    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

impl Server {
    /// Takes the address. Refused where others reach it and the server has no token.
    pub async fn bind(&self, address: SocketAddr) -> Result<TcpListener, ServeError> {
        if !address.ip().is_loopback() && self.app.options.token.is_none() {
            return Err(ServeError::NeedsToken { address });
        }
        TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
    }

    /// Serves until `stop` is ready. Then no more connections are taken, jobs go back into the queue
    /// with what is finished of them, and open requests have [`grace`](crate::Limits::grace) to end.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let limits = self.app.options.limits.clone();
        let most = bounded(limits.connections);
        make_room(&listener, most);
        let connections = Arc::new(Semaphore::new(most));
        let router = self.router();
        let open = GracefulShutdown::new();
        tokio::pin!(stop);
        loop {
            let accepted = async {
                let permit = connections.clone().acquire_owned().await.expect("never closed");
                (listener.accept().await, permit)
            };
            let (accepted, permit) = tokio::select! {
                accepted = accepted => accepted,
                () = &mut stop => break,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of files, most likely; some will be closed.
                    tracing::warn!(%error, "a connection could not be taken");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // Answers are small and whole.
            let _ = stream.set_nodelay(true);
            let router = router.clone();
            let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(ConnectInfo(client));
                router.clone().oneshot(request)
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(limits.header_time).max_buf_size(HEAD_BYTES);
            let io = TokioIo::new(Moving::new(stream, limits.stall_time));
            let connection = open.watch(http.serve_connection(io, service));
            let gauge = self.app.metrics.connections.clone();
            gauge.inc();
            tokio::spawn(async move {
                // A client that breaks off is no news.
                let _ = connection.await;
                gauge.dec();
                drop(permit);
            });
        }
        drop(listener);
        tracing::info!("stopping: jobs go back into the queue");
        self.app.stopping.send_replace(true);
        self.app.tenon.suspend();
        self.app.bell.ring();
        let ended = tokio::time::timeout(limits.grace, async {
            open.shutdown().await;
            let app = self.app.clone();
            // A tile is through within moments.
            let _ = tokio::task::spawn_blocking(move || app.wait_for_work()).await;
        });
        if ended.await.is_err() {
            tracing::warn!(
                "some requests or jobs did not end in time; jobs go on from their finished shards"
            );
        }
    }
}

/// Ready when this process is asked to stop: by Ctrl-C, or as service managers do.
pub async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        // Without handlers, the system ends the process; jobs go on from their finished shards.
        _ => std::future::pending().await,
    }
}

/// As many connections as there are files for, which are made as many as the system lets this process have.
fn bounded(connections: usize) -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = usize::try_from(files.saturating_sub(OWN_FILES)).unwrap_or(usize::MAX);
    connections.min(most).max(1)
}

/// Has the kernel make its table of this process's files as large as it will get. It grows by doubling, and
/// each time everybody who opens a file waits until all CPUs have let go of the old one: a tenth of a
/// second and more where they are busy.
fn make_room(listener: &TcpListener, connections: usize) {
    let last = i32::try_from(connections as u64 + OWN_FILES - 1).unwrap_or(i32::MAX);
    // Where it cannot, it grows as it is needed. The copy is closed at once; the table stays.
    let _ = rustix::io::fcntl_dupfd_cloexec(listener, last);
}

/// A connection whose client takes what is sent to it: one that takes nothing for a while is cut off.
struct Moving {
    stream: TcpStream,
    limit: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Moving {
    fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, stalled: None }
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let end = Instant::now() + self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Moving {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, into)
    }
}

impl AsyncWrite for Moving {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch(context, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.watch(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
