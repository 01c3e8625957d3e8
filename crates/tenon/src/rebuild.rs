//! Merging again to see whether the same comes out. Nothing is written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tenon_card::Card;
use tenon_checkpoint::{Error as CheckpointError, Observer, SafetensorsFile, TensorSource, hash_files};
use tenon_merge::{FULL_DELTA, OutputDtype};
use tenon_registry::{InputFile, Manifest};

use crate::{Error, Merge, Plan};

/// A comparison of a model with what its inputs make now: planned, not begun.
pub struct Rebuild {
    manifest: Manifest,
    dir: PathBuf,
    plan: Plan,
}

/// What a rebuild found to differ.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct RebuildReport {
    /// Tensors that came out the same.
    pub same_tensors: usize,
    /// Tensors that came out otherwise, or are not where they were.
    pub changed_tensors: Vec<String>,
    /// Other files that would come out otherwise.
    pub changed_files: Vec<String>,
    /// Input files that are not what they were.
    pub changed_inputs: Vec<String>,
}

impl RebuildReport {
    /// Whether all came out the same.
    pub fn is_same(&self) -> bool {
        self.changed_tensors.is_empty() && self.changed_files.is_empty() && self.changed_inputs.is_empty()
    }
}

/// Bytes compared at a time.
const TILE_BYTES: u64 = 1 << 20;

impl Rebuild {
    pub(crate) fn plan(manifest: Manifest, dir: PathBuf) -> Result<Self, Error> {
        let parameters = &manifest.parameters;
        let dtype = match parameters.dtype.as_str() {
            "f32" => OutputDtype::F32,
            "f16" => OutputDtype::F16,
            "bf16" => OutputDtype::Bf16,
            _ => OutputDtype::Auto,
        };
        let plan = Merge::new(&manifest.base.path, &manifest.adapter.path, &dir)
            .delta(parameters.peft_type == FULL_DELTA)
            .dtype(dtype)
            .max_shard_size(parameters.max_shard_size.max(1))
            .allow_non_finite(parameters.allow_non_finite)
            .plan_anywhere()?;
        Ok(Self { manifest, dir, plan })
    }

    /// Bytes that the observer of [`run`](Self::run) will be told of.
    pub fn work_bytes(&self) -> u64 {
        self.plan.work_bytes()
    }

    /// Merges every tensor again and compares it with the file.
    pub fn run(&self, observer: &dyn Observer) -> Result<RebuildReport, Error> {
        let mut report = RebuildReport::default();
        for (input, files) in [
            (self.plan.base_dir(), &self.manifest.base.files),
            (self.plan.adapter_dir(), &self.manifest.adapter.files),
        ] {
            // An adapter may be one file, and that is its path then.
            let dir = if input.is_file() { input.parent().unwrap_or(input) } else { input };
            let paths: Vec<_> = files.iter().map(|file| dir.join(&file.name)).collect();
            let changed =
                |(file, digest): (&InputFile, _)| (file.sha256 != digest).then(|| file.name.clone());
            report.changed_inputs.extend(files.iter().zip(hash_files(&paths, observer)?).filter_map(changed));
        }
        let output = |name: &str| self.manifest.outputs.iter().find(|file| file.name == name);
        let is_card = |name: &str| [Card::MARKDOWN_FILE, Card::JSON_FILE, Card::CHART_FILE].contains(&name);
        for (name, digest) in self.plan.companion_digests()? {
            if !is_card(name) && output(name).is_none_or(|file| file.sha256 != digest) {
                report.changed_files.push(name.to_string());
            }
        }
        let mut work = vec![];
        for shard in &self.plan.layout().shards {
            let path = self.dir.join(&shard.name);
            match SafetensorsFile::open(&path) {
                Ok(file) => work.extend(
                    shard.tensors.iter().map(|(tensor, at)| (file.path().to_path_buf(), *tensor, *at)),
                ),
                Err(_) => report.changed_files.push(shard.name.clone()),
            }
        }
        let next = AtomicUsize::new(0);
        let found = Mutex::new((vec![], None::<Error>));
        let compare = || {
            while let Some((path, tensor, at)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let same = self.compare(path, *tensor, *at, observer);
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                match same {
                    Ok(same) => found.0.push((*tensor, same)),
                    Err(error) => {
                        found.1.get_or_insert(error);
                    }
                }
                if found.1.is_some() {
                    return;
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(compare);
            }
            compare();
        });
        let (mut compared, error) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = error {
            return Err(error);
        }
        compared.sort();
        for (tensor, same) in compared {
            if same {
                report.same_tensors += 1;
            } else {
                report.changed_tensors.push(self.plan.source().tensors()[tensor].name.clone());
            }
        }
        Ok(report)
    }

    /// Whether a tensor comes out as it stands in the file, `at` bytes from its beginning.
    fn compare(
        &self,
        path: &PathBuf,
        tensor: usize,
        at: u64,
        observer: &dyn Observer,
    ) -> Result<bool, Error> {
        let source = self.plan.source();
        let info = &source.tensors()[tensor];
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let block = info.row_block.max(1);
        let step = (TILE_BYTES / info.row_bytes().max(1) / block * block).max(block);
        let (mut made, mut there) = (vec![], vec![]);
        let mut row = 0;
        let mut same = true;
        while row < info.rows() {
            if observer.cancelled() {
                return Err(CheckpointError::Cancelled.into());
            }
            let end = info.rows().min(row + step);
            let len = ((end - row) * info.row_bytes()) as usize;
            made.resize(len, 0);
            there.resize(len, 0);
            source.read_rows(tensor, row..end, &mut made)?;
            match file.read_exact_at(&mut there, at + row * info.row_bytes()) {
                Ok(()) => same &= made == there,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => same = false,
                Err(e) => return Err(CheckpointError::io("read", path)(e).into()),
            }
            observer.advanced(len as u64);
            row = end;
        }
        Ok(same)
    }
}
