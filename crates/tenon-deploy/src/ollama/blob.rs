//! Files on their way to Ollama's store: asked for first, streamed, no faster than allowed.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use http_body::{Body, Frame, SizeHint};
use reqwest::Method;

use crate::http::{Http, Silence};
use crate::{Error, Refusal, SourceFile, Step, Watch};

/// Bytes read and handed over at a time.
const CHUNK: usize = 256 << 10;

/// Brings files to the store that it does not have, `parallel` at a time, `rate` bytes a second in all.
pub(super) async fn upload(
    http: &Http,
    files: &[&SourceFile],
    parallel: usize,
    rate: Option<u64>,
    watch: &dyn Watch,
) -> Result<(), Error> {
    let throttle = rate.map(|rate| Arc::new(Throttle::new(rate)));
    // The same bytes under two names are one file of the store.
    let mut distinct: Vec<&SourceFile> = vec![];
    for &file in files {
        if distinct.iter().any(|other| other.sha256 == file.sha256) {
            watch.advanced(file.bytes, 0);
        } else {
            distinct.push(file);
        }
    }
    let uploads = distinct.into_iter().map(|file| {
        let throttle = throttle.clone();
        async move {
            let progress = FileWatch { watch, sent: Arc::default(), told: AtomicU64::new(0) };
            http.retrying(&progress, || one(http, file, throttle.clone(), &progress)).await
        }
    });
    stream::iter(uploads).buffer_unordered(parallel).try_collect().await
}

async fn one(
    http: &Http,
    file: &SourceFile,
    throttle: Option<Arc<Throttle>>,
    progress: &FileWatch<'_>,
) -> Result<(), Error> {
    let path = format!("api/blobs/sha256:{}", file.sha256);
    let silence = Silence::begin();
    let doing = format!("asking for {}", file.name);
    let asked =
        http.send(&doing, http.request(Method::HEAD, &path), http.timeout(), &silence, progress).await;
    match asked {
        Ok(_) => {
            progress.is_there(file.bytes);
            return Ok(());
        }
        Err(Error::Refused { refusal: Refusal::NotFound, .. }) => {}
        Err(error) => return Err(error),
    }
    let body = FileBody::open(file, throttle, silence.clone(), Arc::clone(&progress.sent))?;
    let fault = Arc::clone(&body.fault);
    let doing = format!("sending {}", file.name);
    let request = http.request(Method::POST, &path).body(reqwest::Body::wrap(body));
    let request = request.header("content-type", "application/octet-stream");
    let sent = http.send(&doing, request, http.timeout(), &silence, progress).await;
    progress.tell();
    // What ended the reading of the file says more than that the request ended.
    if let Some(error) = fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    match sent {
        Ok(_) => {
            progress.is_there(file.bytes);
            Ok(())
        }
        Err(Error::Refused { said, .. }) if said.contains("digest mismatch") => Err(Error::Differs {
            model: file.path.display().to_string(),
            what: "its SHA-256",
            expected: file.sha256.to_string(),
            found: said,
        }),
        Err(error) => Err(error),
    }
}

/// Tells of one file's bytes, each once however often it is sent.
struct FileWatch<'a> {
    watch: &'a dyn Watch,
    /// Bytes that the current attempt has handed to the network.
    sent: Arc<AtomicU64>,
    told: AtomicU64,
}

impl FileWatch<'_> {
    fn tell(&self) {
        let sent = self.sent.load(Ordering::Relaxed);
        let told = self.told.fetch_max(sent, Ordering::Relaxed);
        if sent > told {
            self.watch.advanced(sent - told, sent - told);
        }
    }

    /// The rest of the file need not be sent.
    fn is_there(&self, bytes: u64) {
        let told = self.told.fetch_max(bytes, Ordering::Relaxed);
        if bytes > told {
            self.watch.advanced(bytes - told, 0);
        }
    }
}

impl Watch for FileWatch<'_> {
    fn step(&self, step: Step) -> Result<(), Error> {
        self.watch.step(step)
    }

    fn advanced(&self, bytes: u64, sent: u64) {
        self.watch.advanced(bytes, sent);
    }

    fn said(&self, line: &str) {
        self.watch.said(line);
    }

    /// Asked at every tick, which is when progress is told.
    fn cancelled(&self) -> bool {
        self.tell();
        self.watch.cancelled()
    }
}

/// A file as the body of a request. Its length is known, so the server is told.
struct FileBody {
    file: File,
    source: SourceFile,
    offset: u64,
    silence: Silence,
    sent: Arc<AtomicU64>,
    throttle: Option<Arc<Throttle>>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    fault: Arc<Mutex<Option<Error>>>,
}

impl FileBody {
    fn open(
        source: &SourceFile,
        throttle: Option<Arc<Throttle>>,
        silence: Silence,
        sent: Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let path = &source.path;
        let file = File::open(path).map_err(tenon_checkpoint::Error::io("open", path))?;
        let found = file.metadata().map_err(tenon_checkpoint::Error::io("examine", path))?.len();
        if found != source.bytes {
            return Err(Error::FileChanged { path: path.clone(), expected: source.bytes, found });
        }
        sent.store(0, Ordering::Relaxed);
        let fault = Arc::default();
        Ok(Self { file, source: source.clone(), offset: 0, silence, sent, throttle, pause: None, fault })
    }

    fn read(&mut self) -> Result<Option<Bytes>, Error> {
        let left = self.source.bytes - self.offset;
        if left == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; left.min(CHUNK as u64) as usize];
        // On the only thread there is: a read of a cached or nearly cached chunk takes less time than
        // handing it to another would.
        let read = self.file.read_at(&mut chunk, self.offset);
        let n = read.map_err(tenon_checkpoint::Error::io("read", &self.source.path))?;
        if n == 0 {
            return Err(Error::FileChanged {
                path: self.source.path.clone(),
                expected: self.source.bytes,
                found: self.offset,
            });
        }
        chunk.truncate(n);
        self.offset += n as u64;
        self.sent.store(self.offset, Ordering::Relaxed);
        Ok(Some(chunk.into()))
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let body = self.get_mut();
        if let Some(pause) = &mut body.pause {
            if pause.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            body.pause = None;
        }
        // The server took what it had got, or there would be no call for more.
        body.silence.broken();
        match body.read() {
            Ok(None) => Poll::Ready(None),
            Ok(Some(chunk)) => {
                if let Some(throttle) = &body.throttle {
                    let wait = throttle.take(chunk.len() as u64);
                    body.silence.pause(wait);
                    body.pause = (!wait.is_zero()).then(|| Box::pin(tokio::time::sleep(wait)));
                }
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            }
            Err(error) => {
                let other = std::io::Error::other(error.to_string());
                *body.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Poll::Ready(Some(Err(other)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.offset == self.source.bytes
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.source.bytes - self.offset)
    }
}

/// Bytes a second that all uploads together may take.
struct Throttle {
    rate: f64,
    /// When what was taken so far is paid for.
    paid: Mutex<Instant>,
}

impl Throttle {
    fn new(rate: u64) -> Self {
        Self { rate: rate as f64, paid: Mutex::new(Instant::now()) }
    }

    /// Takes bytes; how long to wait before the next are taken.
    fn take(&self, bytes: u64) -> Duration {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        *paid = (*paid).max(now) + Duration::from_secs_f64((bytes as f64 / self.rate).min(3600.0));
        *paid - now
    }
}
