//! What all handlers share.

use std::ops::Deref;
use std::sync::{Arc, RwLock};

use tenon::Tenon;
use tokio::sync::{Semaphore, watch};

use crate::events::Hub;
use crate::guard::rate::Guesses;
use crate::guard::session::Sessions;
use crate::idempotency::Answers;
use crate::lists::Lists;
use crate::metrics::Metrics;
use crate::problem::{Code, Problem};
use crate::work::Bell;
use crate::{Options, roots};

/// The server's state; clones share it.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) tenon: Arc<Tenon>,
    pub(crate) options: Options,
    pub(crate) roots: roots::Roots,
    pub(crate) lists: Lists,
    pub(crate) events: Hub,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) uploads: Semaphore,
    pub(crate) bell: Bell,
    pub(crate) sessions: Sessions,
    pub(crate) guesses: Guesses,
    pub(crate) answers: Answers,
    pub(crate) metrics: Metrics,
    pub(crate) stopping: watch::Sender<bool>,
    /// Held for reading by the threads that work on jobs.
    pub(crate) working: RwLock<()>,
    verbs: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Deref for App {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    pub(crate) fn new(tenon: Arc<Tenon>, options: Options) -> Self {
        let limits = &options.limits;
        Self(Arc::new(Inner {
            roots: roots::Roots::new(&options.allow_paths, tenon.registry().home()),
            lists: Lists::default(),
            events: Hub::new(),
            streams: Arc::new(Semaphore::new(limits.event_streams)),
            uploads: Semaphore::new(limits.uploads),
            bell: Bell::default(),
            sessions: Sessions::default(),
            guesses: Guesses::new(limits.wrong_tokens),
            answers: Answers::open(tenon.registry().home().root()),
            metrics: Metrics::new(),
            stopping: watch::Sender::new(false),
            working: RwLock::default(),
            verbs: Arc::new(Semaphore::new(limits.verbs)),
            waiting: Semaphore::new(limits.waiting_verbs),
            tenon,
            options,
        }))
    }

    /// For threads that end when the server does.
    pub(crate) fn downgrade(&self) -> std::sync::Weak<Inner> {
        Arc::downgrade(&self.0)
    }

    pub(crate) fn upgrade(inner: &std::sync::Weak<Inner>) -> Option<Self> {
        inner.upgrade().map(Self)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Runs a verb of the facade on a thread of its own; refused when too many wait for one.
    ///
    /// It runs to its end even when the client goes away.
    pub(crate) async fn verb<T: Send + 'static>(
        &self,
        verb: impl FnOnce(&Self) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let busy = || Problem::new(Code::Busy, "too many requests wait for the disk").retry_after(1);
        let waiting = self.waiting.try_acquire().map_err(|_| busy())?;
        let running = self.verbs.clone().acquire_owned().await.map_err(|_| busy())?;
        drop(waiting);
        let app = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _running = running;
            verb(&app)
        });
        task.await.unwrap_or_else(|error| {
            Err(Problem::new(Code::Internal, format!("a verb ended unexpectedly: {error}")))
        })
    }

    /// As [`verb`](Self::verb), for one that changes records: lists and events follow before it answers.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        verb: impl FnOnce(&Self) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        self.verb(move |app| {
            let result = verb(app);
            app.refresh();
            // Those who wait see it queued before somebody works on it.
            app.bell.ring();
            result
        })
        .await
    }
}
