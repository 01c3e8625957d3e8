//! Whether a model directory still is what its manifest says.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use tenon_checkpoint::{Observer, hash_files};

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
        let mut report = VerifyReport { extra: extra.cloned().collect(), ..VerifyReport::default() };
        let mut same_size = vec![];
        for file in &self.outputs {
            // A link out of the directory is no file of the model, whatever it leads to.
            match dir.join(&file.name).symlink_metadata() {
                Ok(meta) if meta.is_file() && meta.len() == file.bytes => same_size.push(file),
                Ok(meta) if meta.is_file() => report.changed.push(file.name.clone()),
                _ => report.missing.push(file.name.clone()),
            }
        }
        let paths: Vec<_> = same_size.iter().map(|file| dir.join(&file.name)).collect();
        for (file, digest) in same_size.iter().zip(hash_files(&paths, observer)?) {
            if digest == file.sha256 {
                report.intact += 1;
                report.bytes += file.bytes;
            } else {
                report.changed.push(file.name.clone());
            }
        }
        report.changed.sort();
        Ok(report)
    }
}
