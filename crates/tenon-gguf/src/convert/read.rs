//! Evaluates looks: rows of an output tensor as `f32`, from as few and as long reads as possible.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use tenon_checkpoint::{Dtype, Error as CheckpointError, TensorSource};

use super::view::{Arithmetic, Look, Origin, Step, Tensor};
use crate::GgmlType;
use crate::quant::{self, Level};

/// Elements that are read at once at most; a run that needs more to be put in order goes through the
/// store of whole pieces.
const PIECE: u64 = 1 << 20;

/// A source, read in pieces.
pub(super) struct Reader {
    source: Arc<dyn TensorSource>,
    /// The last pieces that were too large to be read once a tile: a matrix to be transposed.
    pieces: Mutex<Vec<Piece>>,
}

/// Tensor, first element, and numbers of a piece.
type Piece = ((usize, u64), Arc<Vec<f32>>);

thread_local! {
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static NUMBERS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Reader {
    pub(super) fn new(source: Arc<dyn TensorSource>) -> Self {
        Self { source, pieces: Mutex::new(vec![]) }
    }

    /// Rows of `row` elements that are best read together: those of a head whose rows are rearranged.
    pub(super) fn rows_together(&self, tensor: &Tensor, row: u64) -> u64 {
        let of = |look: &Look| {
            let steps = look.steps();
            let inner = &steps[apart(&steps)..];
            let piece: u64 = inner.iter().map(|step| step.len).product();
            let apart = matches!(inner, [Step { stride: 1, .. }])
                || span(inner) > PIECE
                || !piece.is_multiple_of(row.max(1));
            if apart { 1 } else { piece / row.max(1) }
        };
        tensor.looks.iter().map(of).max().unwrap_or(1).max(1)
    }

    /// Fills `out` with the elements of a tensor from element `start` on, in row-major order.
    pub(super) fn read(&self, tensor: &Tensor, start: u64, out: &mut [f32]) -> Result<(), CheckpointError> {
        let (mut first, mut filled) = (0, 0usize);
        for look in &tensor.looks {
            let elements = look.elements();
            let begin = (start + filled as u64).saturating_sub(first);
            if begin < elements && filled < out.len() {
                let n = (elements - begin).min((out.len() - filled) as u64) as usize;
                let out = &mut out[filled..filled + n];
                let half = self.look(look, begin, out)?;
                apply(tensor.arithmetic, half, out);
                filled += n;
            }
            first += elements;
        }
        assert_eq!(filled, out.len(), "read past the tensor's end");
        Ok(())
    }

    /// Whether the numbers are halves tells how arithmetic on them rounds.
    fn look(&self, look: &Look, start: u64, out: &mut [f32]) -> Result<bool, CheckpointError> {
        let (tensor, offset) = match &look.origin {
            Origin::Source { tensor, offset } => (*tensor, *offset),
            Origin::Zeros => {
                out.fill(0.0);
                return Ok(false);
            }
            Origin::Numbers(numbers) => {
                for (n, out) in out.iter_mut().enumerate() {
                    *out = numbers[address(&look.steps(), start + n as u64) as usize];
                }
                return Ok(false);
            }
        };
        let half = self.source.tensors()[tensor].dtype == Dtype::F16;
        let steps = look.steps();
        // What lies inside this many outer steps lies apart from what the next outer step reaches, and
        // after it: such pieces are read one by one.
        let (outer, inner) = steps.split_at(apart(&steps));
        let piece_len: u64 = inner.iter().map(|step| step.len).product();
        if let [Step { stride: 1, .. }] = inner {
            return self.runs(tensor, offset, &steps, piece_len, start, out).map(|()| half);
        }
        let span = span(inner);
        let (mut at, mut filled) = (start, 0usize);
        while filled < out.len() {
            let (piece, within) = (at / piece_len, at % piece_len);
            let first = address(outer, piece);
            let wanted = (within + (out.len() - filled) as u64).div_ceil(piece_len);
            // Pieces that lie one after the other are read together.
            let follows = |n: u64| (n + 1) * span <= PIECE && address(outer, piece + n) == first + n * span;
            let together = 1 + (1..wanted).take_while(|n| follows(*n)).count() as u64;
            let n = (together * piece_len - within).min((out.len() - filled) as u64) as usize;
            let out = &mut out[filled..filled + n];
            let mut take = |numbers: &[f32]| {
                let (mut within, mut taken) = (within, 0);
                for numbers in numbers.chunks(span as usize) {
                    let n = ((piece_len - within) as usize).min(out.len() - taken);
                    gather(inner, within, numbers, &mut out[taken..taken + n]);
                    (within, taken) = (0, taken + n);
                }
            };
            if span <= PIECE {
                self.with(tensor, offset + first, together * span, take)?;
            } else {
                take(&self.piece(tensor, offset + first, span)?);
            }
            filled += n;
            at += n as u64;
        }
        Ok(half)
    }

    /// Runs of elements that lie one after the other, those near each other read together.
    fn runs(
        &self,
        tensor: usize,
        offset: u64,
        steps: &[Step],
        run: u64,
        start: u64,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let (mut at, mut filled) = (start, 0usize);
        while filled < out.len() {
            let begin = address(steps, at);
            // As many runs as fit in a piece.
            let mut n = (run - at % run).min((out.len() - filled) as u64).min(PIECE);
            let mut end = begin + n;
            while filled + (n as usize) < out.len() {
                let more = run.min((out.len() - filled) as u64 - n);
                let next = address(steps, at + n);
                if n.is_multiple_of(PIECE)
                    || next + more - begin > PIECE
                    || next > end.saturating_add(run.max(4096))
                {
                    break;
                }
                n += more;
                end = next + more;
            }
            let taken = &mut out[filled..filled + n as usize];
            if end - begin == n {
                self.numbers(tensor, offset + begin, taken)?;
            } else {
                self.with(tensor, offset + begin, end - begin, |numbers| {
                    let mut copied = 0;
                    while copied < n {
                        let len = (run - (at + copied) % run).min(n - copied);
                        let from = (address(steps, at + copied) - begin) as usize;
                        let (to, len) = (copied as usize, len as usize);
                        taken[to..to + len].copy_from_slice(&numbers[from..from + len]);
                        copied += len as u64;
                    }
                })?;
            }
            filled += n as usize;
            at += n;
        }
        Ok(())
    }

    /// A piece that is asked for again and again while it is put in order.
    fn piece(&self, tensor: usize, begin: u64, len: u64) -> Result<Arc<Vec<f32>>, CheckpointError> {
        // Held while it is read: who comes second needs what the first one reads.
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, piece)) = pieces.iter().find(|(key, _)| *key == (tensor, begin)) {
            return Ok(piece.clone());
        }
        // Two: a tile may begin in one and end in the next.
        if pieces.len() >= 2 {
            pieces.remove(0);
        }
        let mut piece = vec![0.0; len as usize];
        for (n, chunk) in piece.chunks_mut(PIECE as usize).enumerate() {
            self.numbers(tensor, begin + n as u64 * PIECE, chunk)?;
        }
        let piece = Arc::new(piece);
        pieces.push(((tensor, begin), piece.clone()));
        Ok(piece)
    }

    fn with(
        &self,
        tensor: usize,
        begin: u64,
        len: u64,
        take: impl FnOnce(&[f32]),
    ) -> Result<(), CheckpointError> {
        NUMBERS.with_borrow_mut(|numbers| {
            numbers.resize(len as usize, 0.0);
            self.numbers(tensor, begin, numbers)?;
            take(numbers);
            Ok(())
        })
    }

    /// Elements of a tensor as they lie.
    fn numbers(&self, tensor: usize, begin: u64, out: &mut [f32]) -> Result<(), CheckpointError> {
        let info = &self.source.tensors()[tensor];
        let row = info.row_len();
        let block = info.row_block.max(1);
        let end = begin + out.len() as u64;
        let rows = begin / row / block * block..(end.div_ceil(row).div_ceil(block) * block).min(info.rows());
        BYTES.with_borrow_mut(|bytes| {
            bytes.resize(((rows.end - rows.start) * info.row_bytes()) as usize, 0);
            let width = (info.dtype.bits() / 8) as usize;
            let skip = (begin - rows.start * row) as usize * width;
            self.source.read_rows(tensor, rows, bytes)?;
            decode(info.dtype, &bytes[skip..skip + out.len() * width], out);
            Ok(())
        })
    }
}

/// How many of the outer steps each go past all that the steps within them reach.
fn apart(steps: &[Step]) -> usize {
    let is_apart = |at: usize| steps[at].stride >= span(&steps[at + 1..]);
    (0..steps.len() - 1).take_while(|at| is_apart(*at)).count()
}

/// Elements from the first that steps reach to the last.
fn span(steps: &[Step]) -> u64 {
    1 + steps.iter().map(|step| step.len.saturating_sub(1) * step.stride).sum::<u64>()
}

/// Where element number `n` lies.
fn address(steps: &[Step], n: u64) -> u64 {
    let (mut rest, mut at) = (n, 0);
    for step in steps.iter().rev() {
        at += rest % step.len * step.stride;
        rest /= step.len;
    }
    at
}

/// Elements from number `start` on, of a piece whose first element is `numbers[0]`.
fn gather(steps: &[Step], start: u64, numbers: &[f32], out: &mut [f32]) {
    let last = steps[steps.len() - 1];
    let (mut at, mut filled) = (start, 0);
    while filled < out.len() {
        let n = ((last.len - at % last.len) as usize).min(out.len() - filled);
        let begin = address(steps, at) as usize;
        let out = &mut out[filled..filled + n];
        if last.stride == 1 {
            out.copy_from_slice(&numbers[begin..begin + n]);
        } else {
            let numbers = numbers[begin..].iter().step_by(last.stride as usize);
            out.iter_mut().zip(numbers).for_each(|(out, x)| *out = *x);
        }
        filled += n;
        at += n as u64;
    }
}

fn apply(arithmetic: Arithmetic, half: bool, out: &mut [f32]) {
    // torch computes on halves in f32 and rounds once.
    let round = |x: f32| if half { half::f16::from_f32(x).to_f32() } else { x };
    match arithmetic {
        Arithmetic::Keep => {}
        // Rounded once, as torch's is but for the last bit now and then.
        Arithmetic::NegExp => out.iter_mut().for_each(|x| *x = round(-f64::from(*x).exp() as f32)),
        Arithmetic::Add(n) => out.iter_mut().for_each(|x| *x = round(*x + n)),
    }
}

/// Whether [`decode`] knows a type.
pub(super) fn is_decodable(dtype: Dtype) -> bool {
    use Dtype::{BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8};
    matches!(dtype, F16 | BF16 | F32 | F64 | I8 | U8 | I16 | I32 | I64 | BOOL)
}

/// Little-endian numbers as `f32`, rounded to nearest.
fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
        bytes.as_chunks::<N>().0.iter().zip(out).for_each(|(bytes, out)| *out = number(*bytes));
    }
    match dtype {
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::BF16 => quant::decode(Level::detect(), GgmlType::BF16, bytes, out),
        Dtype::F16 => quant::decode(Level::detect(), GgmlType::F16, bytes, out),
        Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::I8 => each(bytes, out, |b: [u8; 1]| f32::from(i8::from_le_bytes(b))),
        Dtype::U8 => each(bytes, out, |b: [u8; 1]| f32::from(b[0])),
        Dtype::BOOL => each(bytes, out, |b: [u8; 1]| if b[0] == 0 { 0.0 } else { 1.0 }),
        Dtype::I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        Dtype::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        Dtype::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        other => unreachable!("planning refuses {other}"),
    }
}
