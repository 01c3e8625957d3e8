//! Whether a model directory still is what its manifest says.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tenon_checkpoint::{Error as CheckpointError, Observer, hash_file};

use crate::{Error, Home, Manifest};

/// How a directory compares with its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct VerifyReport {
    /// Files that are as they were.
    pub intact: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files with other bytes.
    pub changed: Vec<String>,
    /// Files that are gone.
    pub missing: Vec<String>,
    /// Files that were not there.
    pub extra: Vec<String>,
}

impl VerifyReport {
    /// Whether everything is as it was.
    pub fn is_intact(&self) -> bool {
        self.changed.is_empty() && self.missing.is_empty() && self.extra.is_empty()
    }
}

impl Manifest {
    /// Hashes all files of the directory, on all cores, and compares. The observer is told of
    /// [`output_bytes`](Self::output_bytes) bytes at most.
    pub fn verify(&self, dir: &Path, observer: &dyn Observer) -> Result<VerifyReport, Error> {
        let present: BTreeSet<String> = Home::entries(dir)?.into_iter().collect();
        let listed: BTreeSet<&str> = self.outputs.iter().map(|file| file.name.as_str()).collect();
        let extra = present.iter().filter(|name| *name != Self::FILE && !listed.contains(name.as_str()));
        let report = VerifyReport { extra: extra.cloned().collect(), ..VerifyReport::default() };
        let shared = Mutex::new((report, None::<Error>));
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(file) = self.outputs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let path = dir.join(&file.name);
                // A link out of the directory is no file of the model, whatever it leads to.
                let is_file = path.symlink_metadata().is_ok_and(|meta| meta.is_file());
                let found = if is_file {
                    let opened = File::open(&path).map_err(CheckpointError::io("open", &path));
                    Some(opened.and_then(|open| {
                        let size = open.metadata().map_err(CheckpointError::io("examine", &path))?.len();
                        if size != file.bytes {
                            return Ok((size, None));
                        }
                        Ok((size, Some(hash_file(&open, &path, observer)?)))
                    }))
                } else {
                    None
                };
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let name = file.name.clone();
                match found {
                    None => shared.0.missing.push(name),
                    Some(Err(error)) => {
                        shared.1.get_or_insert(error.into());
                        return;
                    }
                    Some(Ok((bytes, digest))) if digest == Some(file.sha256) => {
                        shared.0.intact += 1;
                        shared.0.bytes += bytes;
                    }
                    Some(Ok(_)) => shared.0.changed.push(name),
                }
            }
        };
        let threads =
            std::thread::available_parallelism().map_or(1, usize::from).min(self.outputs.len().max(1));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        let (mut report, error) = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = error {
            return Err(error);
        }
        report.changed.sort();
        report.missing.sort();
        Ok(report)
    }
}
