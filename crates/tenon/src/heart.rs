//! What every job tells the catalogue while it works, and asks it: how far it is, and whether to stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tenon_registry::Error as RegistryError;

use crate::Tenon;

/// How often progress goes to the catalogue, and the catalogue is asked whether to stop.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(400);

/// The bytes that are done of a job, and whether somebody wants it to stop.
pub(crate) struct Heart<'a> {
    tenon: &'a Tenon,
    pub(crate) done: AtomicU64,
    cancelled: AtomicBool,
    ended: AtomicBool,
}

impl<'a> Heart<'a> {
    pub(crate) fn new(tenon: &'a Tenon, done: u64) -> Self {
        let (cancelled, ended) = Default::default();
        Self { tenon, done: AtomicU64::new(done), cancelled, ended }
    }

    /// Works. Meanwhile `note` tells the catalogue how far that is, again and again, and gives whether
    /// somebody asked to stop.
    pub(crate) fn beat<T>(
        &self,
        note: impl Fn(u64) -> Result<bool, RegistryError> + Sync,
        work: impl FnOnce() -> T,
    ) -> T {
        std::thread::scope(|scope| {
            let heart = scope.spawn(|| {
                while !self.ended.load(Ordering::Acquire) {
                    std::thread::park_timeout(HEARTBEAT);
                    if self.ended.load(Ordering::Acquire) {
                        return;
                    }
                    // A catalogue that cannot be written for a moment does not stop the work.
                    if note(self.done()).unwrap_or(false) {
                        self.cancelled.store(true, Ordering::Relaxed);
                    }
                }
            });
            let result = work();
            self.ended.store(true, Ordering::Release);
            heart.thread().unpark();
            result
        })
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn advanced(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether somebody asked to stop the job, or this process is to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.tenon.suspended.load(Ordering::Relaxed)
    }
}
