//! Reading the packed bytes: runs of them, and columns of them.
//!
//! GPTQ and AWQ keep the input dimension outermost, MXFP4 the output, where
//! the model wants it the other way round. A tile of the model's rows is then
//! a few bytes from each of many lines. Lines are read in bands wide enough
//! that system calls do not matter, and the last bands stay at hand, since
//! tiles are read in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use half::{bf16, f16};
use tenon_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource};

use crate::{Error, float8};

/// Packed bytes of a checkpoint.
#[derive(Debug)]
pub(crate) struct Reader {
    base: Arc<Checkpoint>,
    bands: Mutex<VecDeque<(Key, Arc<Band>)>>,
}

/// Tensor, first byte, number of the band.
type Key = (usize, u64, u64);

/// The bytes of a band, line by line; the thread that asks first reads them, others wait.
type Band = OnceLock<Result<Box<[u8]>, String>>;

/// Bytes of a band, unless its lines are so many that 64 bytes of each are more.
const BAND_BYTES: u64 = 1 << 20;
/// Bands that stay: those of a tensor's weights, scales and zeros for two tiles being read at once, and some.
const BANDS: usize = 12;

/// Equally long lines of bytes in a tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines {
    pub(crate) tensor: usize,
    /// Where in the tensor the first line begins.
    pub(crate) offset: u64,
    pub(crate) count: u64,
    /// Bytes of a line.
    pub(crate) len: u64,
}

impl Reader {
    pub(crate) fn new(base: Arc<Checkpoint>) -> Self {
        Self { base, bands: Mutex::default() }
    }

    pub(crate) fn base(&self) -> &Checkpoint {
        &self.base
    }

    pub(crate) fn info(&self, tensor: usize) -> &TensorInfo {
        &self.base.tensors()[tensor]
    }

    /// Bytes of a tensor into a buffer, which gets that long.
    pub(crate) fn bytes(&self, tensor: usize, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), Error> {
        out.resize((range.end - range.start) as usize, 0);
        Ok(self.base.read_bytes(tensor, range.start, out)?)
    }

    /// Elements of a tensor of floats, or of exponents (`U8` or `F8_E8M0`), as `f32`.
    pub(crate) fn floats(&self, tensor: usize, range: Range<u64>) -> Result<Vec<f32>, Error> {
        self.floats_as(tensor, range, self.info(tensor).dtype)
    }

    /// Elements of a tensor as `f32`, whose bytes are floats of this type.
    pub(crate) fn floats_as(
        &self,
        tensor: usize,
        range: Range<u64>,
        dtype: Dtype,
    ) -> Result<Vec<f32>, Error> {
        let size = dtype.bits() / 8;
        let mut bytes = vec![];
        self.bytes(tensor, range.start * size..range.end * size, &mut bytes)?;
        Ok(decode(dtype, &bytes))
    }

    /// The bytes `columns` of every line, one line after the other.
    pub(crate) fn columns(&self, lines: Lines, columns: Range<u64>, out: &mut Vec<u8>) -> Result<(), Error> {
        let width = (columns.end - columns.start) as usize;
        out.clear();
        out.resize(width * lines.count as usize, 0);
        let band_width = (BAND_BYTES / lines.count.max(1)).max(64).next_multiple_of(64).min(lines.len.max(1));
        let mut at = columns.start;
        while at < columns.end {
            let number = at / band_width;
            let start = number * band_width;
            let end = (start + band_width).min(lines.len);
            let band = self.band(lines, number, start..end)?;
            let upto = end.min(columns.end);
            let (from, len, place) =
                ((at - start) as usize, (upto - at) as usize, (at - columns.start) as usize);
            let pitch = (end - start) as usize;
            for (line, out) in band.chunks_exact(pitch).zip(out.chunks_exact_mut(width)) {
                out[place..place + len].copy_from_slice(&line[from..from + len]);
            }
            at = upto;
        }
        Ok(())
    }

    fn band(&self, lines: Lines, number: u64, columns: Range<u64>) -> Result<BandBytes, Error> {
        let key = (lines.tensor, lines.offset, number);
        let band = {
            let mut bands = self.bands.lock().unwrap_or_else(PoisonError::into_inner);
            match bands.iter().position(|(known, _)| *known == key) {
                Some(at) => {
                    let entry = bands.remove(at).expect("just found");
                    let band = entry.1.clone();
                    bands.push_back(entry);
                    band
                }
                None => {
                    let band = Arc::new(Band::new());
                    bands.push_back((key, band.clone()));
                    if bands.len() > BANDS {
                        bands.pop_front();
                    }
                    band
                }
            }
        };
        let mut own = None;
        let read = band.get_or_init(|| {
            self.read_band(lines, columns).map_err(|error| {
                let text = error.to_string();
                own = Some(error);
                text
            })
        });
        if let Err(text) = read {
            // The thread that ran into the error has it whole; the others stop with its text.
            let text = text.clone();
            return Err(own.unwrap_or_else(|| tenon_checkpoint::Error::Source(text.into()).into()));
        }
        Ok(BandBytes(band))
    }

    fn read_band(&self, lines: Lines, columns: Range<u64>) -> Result<Box<[u8]>, Error> {
        let width = (columns.end - columns.start) as usize;
        let mut bytes = vec![0; width * lines.count as usize];
        if width as u64 == lines.len {
            self.base.read_bytes(lines.tensor, lines.offset, &mut bytes)?;
        } else {
            for (line, out) in (0..lines.count).zip(bytes.chunks_exact_mut(width.max(1))) {
                self.base.read_bytes(lines.tensor, lines.offset + line * lines.len + columns.start, out)?;
            }
        }
        Ok(bytes.into())
    }
}

/// A band that was read.
struct BandBytes(Arc<Band>);

impl std::ops::Deref for BandBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.0.get() {
            Some(Ok(bytes)) => bytes,
            _ => &[],
        }
    }
}

/// Whether [`decode`] knows a type.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) || float8::table(dtype).is_some()
}

/// Little-endian floats as `f32`; bytes of no float type as exponents.
pub(crate) fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        other => {
            let table = float8::table(other).or(float8::table(Dtype::F8_E8M0)).expect("a type of 8 bits");
            bytes.iter().map(|b| table[usize::from(*b)]).collect()
        }
    }
}

/// Little-endian whole numbers.
pub(crate) fn whole_numbers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<i64>> {
    Some(match dtype {
        Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
        Dtype::U32 => bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b).into()).collect(),
        Dtype::I16 => bytes.as_chunks().0.iter().map(|b| i16::from_le_bytes(*b).into()).collect(),
        Dtype::I8 => bytes.iter().map(|b| (*b as i8).into()).collect(),
        Dtype::U8 => bytes.iter().map(|b| (*b).into()).collect(),
        _ => return None,
    })
}
