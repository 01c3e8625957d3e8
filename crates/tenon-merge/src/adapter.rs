//! An adapter directory in PEFT layout.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tenon_checkpoint::{Checkpoint, Dtype, SafetensorsFile, TensorInfo, TensorSource};

use crate::{AdapterConfig, Combined, Error, kernel};

/// A trained adapter: its configuration and the headers of its tensors.
pub struct Adapter {
    dir: PathBuf,
    config: AdapterConfig,
    file: Arc<Checkpoint>,
    /// The file's own, or what they are once translated from another tool's layout.
    tensors: Arc<dyn TensorSource>,
    recent: Mutex<Recent>,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter")
            .field("dir", &self.dir)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Decoded tensors last used. Experts of one layer share their factors, so each is read once.
#[derive(Debug, Default)]
struct Recent {
    entries: VecDeque<(usize, Arc<[f64]>)>,
    bytes: usize,
}

/// Decoded factors kept at hand, in bytes. A rank-16 factor of a 128k vocabulary has 16 MB.
const RECENT_BYTES: usize = 48 << 20;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

impl Adapter {
    /// Opens `dir/adapter_config.json` and `dir/adapter_model.safetensors`. No tensor byte is read.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        std::fs::read_dir(&dir).map_err(tenon_checkpoint::Error::io("open directory", &dir))?;
        let weights = dir.join(WEIGHTS);
        let pickle = ["adapter_model.bin", "adapter_model.pt"].into_iter().find(|f| dir.join(f).exists());
        if !dir.join(CONFIG).exists() {
            return Err(Error::NoAdapter { dir, missing: CONFIG });
        }
        if !weights.exists() {
            return Err(match pickle {
                Some(file) => Error::PickledAdapter { dir, file: file.into() },
                None => Error::NoAdapter { dir, missing: WEIGHTS },
            });
        }
        let config = AdapterConfig::read(dir.join(CONFIG))?;
        let file = Arc::new(Checkpoint::open_file(weights)?);
        Ok(Self { dir, config, tensors: file.clone(), file, recent: Mutex::default() })
    }

    /// An adapter of another tool, whose tensors have the names and shapes that PEFT would have given
    /// them. They are read from `file`, which lies at `path` or is it.
    pub fn translated(
        path: impl Into<PathBuf>,
        config: AdapterConfig,
        tensors: Arc<dyn TensorSource>,
        file: Arc<Checkpoint>,
    ) -> Self {
        Self { dir: path.into(), config, file, tensors, recent: Mutex::default() }
    }

    /// An adapter made of several; see [`Combined`]. Its factors are made as they are read.
    pub fn combined(combined: Arc<Combined>) -> Self {
        // What messages name is the first's, whose configuration it has but for ranks and targets.
        let first = &combined.adapters()[0].0;
        let config = AdapterConfig::translated(first.config().path(), combined.config().clone());
        Self {
            dir: first.dir.clone(),
            config,
            file: first.file.clone(),
            tensors: combined,
            recent: Mutex::default(),
        }
    }

    /// The directory it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its configuration.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The files of its weights: one, or the shards of a full-weight delta.
    pub fn files(&self) -> &[SafetensorsFile] {
        self.file.files()
    }

    /// The file of its weights; of several, or of a combined adapter, the first one.
    pub fn weights(&self) -> &SafetensorsFile {
        &self.file.files()[0]
    }

    /// Its tensors, by the names they have in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.tensors.tensors()
    }

    pub(crate) fn source(&self) -> &dyn TensorSource {
        &*self.tensors
    }

    /// All values of a tensor, row-major. The last ones used stay decoded.
    pub(crate) fn values(&self, index: usize) -> Result<Arc<[f64]>, Error> {
        // Held while reading: a second thread waits for the first one's read instead of repeating it.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = recent.entries.iter().position(|(i, _)| *i == index) {
            let entry = recent.entries.remove(at).expect("just found");
            let values = entry.1.clone();
            recent.entries.push_back(entry);
            return Ok(values);
        }
        let values: Arc<[f64]> = self.values_once(index)?.into();
        recent.bytes += values.len() * 8;
        recent.entries.push_back((index, values.clone()));
        while recent.bytes > RECENT_BYTES && recent.entries.len() > 1 {
            if let Some((_, dropped)) = recent.entries.pop_front() {
                recent.bytes -= dropped.len() * 8;
            }
        }
        Ok(values)
    }
}

impl Adapter {
    /// All values of a tensor, row-major. Not kept.
    pub(crate) fn values_once(&self, index: usize) -> Result<Vec<f64>, Error> {
        let info = &self.tensors.tensors()[index];
        if !info.dtype.is_editable() {
            return Err(Error::AdapterDtype { tensor: info.name.clone(), dtype: info.dtype.name() });
        }
        decode_all(&*self.tensors, index, info)
    }

    /// All elements of a tensor of whole numbers, such as the places of sparse values. PEFT stores them
    /// as floats where its system cannot do otherwise.
    pub(crate) fn integers(&self, index: usize) -> Result<Vec<i64>, Error> {
        let info = &self.tensors.tensors()[index];
        let wrong = || Error::AdapterIntegers { tensor: info.name.clone(), dtype: info.dtype.name() };
        if info.dtype.is_editable() {
            // Larger ones a float need not hold exactly.
            let whole = |v: &f64| (v.fract() == 0.0 && v.abs() < 9e15).then_some(*v as i64);
            return self.values(index)?.iter().map(whole).collect::<Option<_>>().ok_or_else(wrong);
        }
        // Only types as wide as they say; the header was checked against the file's length.
        let width = match info.dtype {
            Dtype::U8 | Dtype::I8 => 1,
            Dtype::U16 | Dtype::I16 => 2,
            Dtype::U32 | Dtype::I32 => 4,
            Dtype::U64 | Dtype::I64 => 8,
            _ => return Err(wrong()),
        };
        let mut bytes = vec![0; info.bytes() as usize];
        self.tensors.read_rows(index, 0..info.rows(), &mut bytes)?;
        let signed = matches!(info.dtype, Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
        let number = |bytes: &[u8]| {
            let fill = if signed && bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
            let mut wide = [fill; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            let value = i64::from_le_bytes(wide);
            // A number past i64 is no index of anything.
            if signed || value >= 0 { value } else { i64::MAX }
        };
        Ok(bytes.chunks_exact(width).map(number).collect())
    }
}

impl Adapter {
    /// All values of a tensor in half the memory, rounded to `f32` where they are wider. Not kept.
    pub(crate) fn singles(&self, index: usize) -> Result<Arc<[f32]>, Error> {
        let info = &self.tensors.tensors()[index];
        if !info.dtype.is_editable() {
            return Err(Error::AdapterDtype { tensor: info.name.clone(), dtype: info.dtype.name() });
        }
        let mut values = Vec::with_capacity(info.elements() as usize);
        decode_rows(&*self.tensors, index, info, |chunk| values.extend(chunk.iter().map(|v| *v as f32)))?;
        Ok(values.into())
    }
}

fn decode_all(source: &dyn TensorSource, index: usize, info: &TensorInfo) -> Result<Vec<f64>, Error> {
    let mut values = Vec::with_capacity(info.elements() as usize);
    decode_rows(source, index, info, |chunk| values.extend_from_slice(chunk))?;
    Ok(values)
}

/// Decodes a tensor a chunk of rows after the other.
fn decode_rows(
    source: &dyn TensorSource,
    index: usize,
    info: &TensorInfo,
    mut take: impl FnMut(&[f64]),
) -> Result<(), Error> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let level = kernel::Level::detect();
    let (rows, row_len) = (info.rows(), info.row_len());
    let step = (CHUNK_BYTES / info.row_bytes().max(1)).max(1);
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    let mut row = 0;
    while row < rows {
        let end = rows.min(row + step);
        bytes.resize(((end - row) * info.row_bytes()) as usize, 0);
        values.resize(((end - row) * row_len) as usize, 0.0);
        source.read_rows(index, row..end, &mut bytes)?;
        kernel::decode(level, info.dtype, &bytes, &mut values);
        take(&values);
        row = end;
    }
    Ok(())
}
