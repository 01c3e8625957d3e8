//! Evaluating a plan: rows of the base in, edited rows out, a strip at a time.
//!
//! A strip is a rectangle of some 32 Ki elements, decoded to `f64`: small
//! enough that decoding, every edit and encoding find it in the L2 cache. It
//! spans whole rows where an edit needs them, else a panel of columns, so that
//! a panel of the right factor stays in cache while many rows pass by it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, PoisonError};

use tenon_checkpoint::{Dtype, Error as SourceError, FileRange, Rows, TensorInfo, TensorSource};

use crate::edit::STRIP_VALUES;
use crate::kernel::Differences;
use crate::planner::{Origin, Slot};
use crate::{Error, MergePlan, PreparedEdit, Tile, ValueRows, kernel, measure};

/// Columns of a strip that need not span whole rows: a panel of a rank-16 factor has 128 KiB.
const PANEL_COLS: usize = 1024;

/// Prepared edits of the tensors now being read.
#[derive(Default)]
pub(crate) struct PreparedCache {
    entries: VecDeque<(usize, Arc<Cell>)>,
}

type Cell = OnceLock<Result<Arc<[Box<dyn PreparedEdit>]>, String>>;

#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    /// Those of a tensor that is added.
    added: Vec<u8>,
    strip: Vec<f64>,
    /// The strip before its edits and a row of it after rounding, where they are measured.
    before: Vec<f64>,
    rounded: Vec<f64>,
}

/// Tensors whose edits stay prepared. Tiles are read in order, so workers are in two at most,
/// unless tensors are smaller than tiles.
pub(crate) const PREPARED: usize = 4;

thread_local! {
    /// Kept from tile to tile.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl TensorSource for MergePlan {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), SourceError> {
        let slot = &self.slots[tensor];
        if let (Origin::Base(base), true, true) =
            (slot.origin, slot.edits.is_empty(), slot.stored == slot.info.dtype)
        {
            return self.base.read_rows(base, rows, out);
        }
        let prepared = self.prepared(tensor)?;
        // Taken out rather than borrowed, so that a plan may read from a plan.
        let mut scratch = SCRATCH.take();
        let result = self.evaluate(tensor, &prepared, rows, out, &mut scratch);
        SCRATCH.replace(scratch);
        Ok(result?)
    }

    fn lies_at(&self, tensor: usize) -> Option<FileRange<'_>> {
        let slot = &self.slots[tensor];
        match slot.origin {
            Origin::Base(base) if slot.edits.is_empty() && slot.stored == slot.info.dtype => {
                self.base.lies_at(base)
            }
            _ => None,
        }
    }
}

/// A tensor as a matrix: rows of a whole row block.
#[derive(Clone, Copy)]
struct Matrix {
    rows: u64,
    cols: usize,
    block: u64,
}

impl Matrix {
    fn of(info: &TensorInfo) -> Self {
        let block = info.row_block.max(1);
        Self { rows: info.rows() / block, cols: (info.row_len() * block) as usize, block }
    }
}

impl MergePlan {
    /// The stored bytes of rows of the matrix, before any edit.
    fn read_stored(
        &self,
        slot: &Slot,
        matrix: Matrix,
        rows: &Rows,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let len = (rows.end - rows.start) as usize * matrix.cols * slot.stored.bits() as usize / 8;
        bytes.resize(len, 0);
        let stored_rows = rows.start * matrix.block..rows.end * matrix.block;
        match slot.origin {
            Origin::Base(base) => self.base.read_rows(base, stored_rows, bytes)?,
            Origin::Adapter(tensor) => self.adapter.source().read_rows(tensor, stored_rows, bytes)?,
            Origin::Sum { base, .. } => {
                let there = self.base.tensors()[base].rows();
                let rows = stored_rows.start.min(there)..stored_rows.end.min(there);
                let row = bytes.len() as u64 / (stored_rows.end - stored_rows.start).max(1);
                let (read, new) = bytes.split_at_mut(((rows.end - rows.start) * row) as usize);
                self.base.read_rows(base, rows, read)?;
                new.fill(0);
            }
        }
        Ok(())
    }

    /// The stored bytes of what is added to rows of the matrix as they are read, its type and its scale.
    fn read_added(
        &self,
        slot: &Slot,
        matrix: Matrix,
        rows: &Rows,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<(Dtype, f64)>, Error> {
        let Origin::Sum { delta, scale, .. } = slot.origin else { return Ok(None) };
        let dtype = self.adapter.tensors()[delta].dtype;
        bytes.resize((rows.end - rows.start) as usize * matrix.cols * dtype.bits() as usize / 8, 0);
        self.adapter.source().read_rows(delta, rows.start * matrix.block..rows.end * matrix.block, bytes)?;
        Ok(Some((dtype, scale)))
    }

    fn evaluate(
        &self,
        tensor: usize,
        prepared: &[Box<dyn PreparedEdit>],
        rows: Rows,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let Scratch { bytes, added, strip, before, rounded } = scratch;
        let slot = &self.slots[tensor];
        let edited = !prepared.is_empty() || matches!(slot.origin, Origin::Sum { .. });
        let measuring = self.measuring.as_ref().filter(|_| edited);
        let mut differences = Differences::default();
        let matrix = Matrix::of(&slot.info);
        let rows = rows.start / matrix.block..rows.end / matrix.block;
        if matrix.cols == 0 {
            return Ok(());
        }
        self.read_stored(slot, matrix, &rows, bytes)?;
        let sum = self.read_added(slot, matrix, &rows, added)?;
        let whole_rows = matrix.cols <= PANEL_COLS || slot.edits.iter().any(|edit| edit.needs_whole_rows());
        let panel = if whole_rows { matrix.cols } else { PANEL_COLS };
        let strip_rows = (STRIP_VALUES / panel).max(1);
        let level = self.options.level;
        let (from, to) = (slot.stored.bits() as usize / 8, slot.info.dtype.bits() as usize / 8);
        let total = (rows.end - rows.start) as usize;
        for first_col in (0..matrix.cols).step_by(panel) {
            let cols = panel.min(matrix.cols - first_col);
            for first in (0..total).step_by(strip_rows) {
                let count = strip_rows.min(total - first);
                strip.resize(count * cols, 0.0);
                for (row, values) in strip.chunks_exact_mut(cols).enumerate() {
                    let start = ((first + row) * matrix.cols + first_col) * from;
                    kernel::decode(level, slot.stored, &bytes[start..start + cols * from], values);
                }
                if measuring.is_some() {
                    before.clone_from(strip);
                }
                if let Some((dtype, scale)) = sum {
                    let width = dtype.bits() as usize / 8;
                    rounded.resize(cols, 0.0);
                    for (row, values) in strip.chunks_exact_mut(cols).enumerate() {
                        let start = ((first + row) * matrix.cols + first_col) * width;
                        kernel::decode(level, dtype, &added[start..start + cols * width], rounded);
                        kernel::add_scaled(level, values, rounded, scale);
                    }
                }
                let first_row = rows.start + first as u64;
                for edit in prepared {
                    edit.apply(&mut Tile { first_row, first_col, cols, values: strip, level });
                }
                for (row, values) in strip.chunks_exact(cols).enumerate() {
                    let at = (first + row) * matrix.cols + first_col;
                    let encoded = &mut out[at * to..(at + cols) * to];
                    if !kernel::encode(level, slot.info.dtype, values, encoded)
                        && !self.options.allow_non_finite
                    {
                        let stored = &bytes[at * from..(at + cols) * from];
                        self.check_finite(slot, stored, encoded, first_row + row as u64, first_col)?;
                    }
                    if measuring.is_some() {
                        rounded.resize(cols, 0.0);
                        let encoded = &out[at * to..(at + cols) * to];
                        kernel::decode(level, slot.info.dtype, encoded, rounded);
                        let before = &before[row * cols..(row + 1) * cols];
                        let row = kernel::compare(level, before, values, rounded);
                        differences = measure::add(differences, row);
                    }
                }
            }
        }
        if let Some(measuring) = measuring {
            measuring.add(tensor, rows.start, rows.end - rows.start, differences);
        }
        Ok(())
    }

    /// Finds the value that is not finite although the base's is. The base's own are passed on.
    #[cold]
    fn check_finite(
        &self,
        slot: &Slot,
        stored: &[u8],
        encoded: &[u8],
        row: u64,
        first_col: usize,
    ) -> Result<(), Error> {
        let cols = encoded.len() * 8 / slot.info.dtype.bits() as usize;
        let (mut before, mut after) = (vec![0.0; cols], vec![0.0; cols]);
        kernel::decode(self.options.level, slot.stored, stored, &mut before);
        kernel::decode(self.options.level, slot.info.dtype, encoded, &mut after);
        let from_base = !matches!(slot.origin, Origin::Adapter(_));
        let made = |(before, after): (&f64, &f64)| !after.is_finite() && (before.is_finite() || !from_base);
        match before.iter().zip(&after).position(made) {
            None => Ok(()),
            Some(col) => Err(Error::NonFinite {
                tensor: slot.info.name.clone(),
                row,
                column: (first_col + col) as u64,
                dtype: slot.info.dtype.name(),
            }),
        }
    }

    /// The prepared edits of a tensor; the first thread that asks prepares them, others wait.
    fn prepared(&self, tensor: usize) -> Result<Arc<[Box<dyn PreparedEdit>]>, Error> {
        let slot = &self.slots[tensor];
        if slot.edits.is_empty() {
            return Ok(Arc::new([]));
        }
        let cell = {
            let mut cache = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
            match cache.entries.iter().find(|(index, _)| *index == tensor) {
                Some((_, cell)) => cell.clone(),
                None => {
                    let cell = Arc::new(Cell::new());
                    cache.entries.push_back((tensor, cell.clone()));
                    if cache.entries.len() > PREPARED {
                        cache.entries.pop_front();
                    }
                    cell
                }
            }
        };
        let mut own = None;
        let shared = cell.get_or_init(|| {
            self.prepare(tensor).map_err(|error| {
                let text = error.to_string();
                own = Some(error);
                text
            })
        });
        match shared {
            Ok(prepared) => Ok(prepared.clone()),
            // The thread that ran into the error has it whole; the others stop with its text.
            Err(text) => {
                Err(own.unwrap_or_else(|| Error::Checkpoint(SourceError::Source(text.clone().into()))))
            }
        }
    }

    fn prepare(&self, tensor: usize) -> Result<Arc<[Box<dyn PreparedEdit>]>, Error> {
        let slot = &self.slots[tensor];
        let mut prepared: Vec<Box<dyn PreparedEdit>> = Vec::with_capacity(slot.edits.len());
        for edit in &slot.edits {
            let before = Before { plan: self, slot, edits: &prepared };
            let next = edit.prepare(&self.adapter, &before)?;
            prepared.push(next);
        }
        if let Some(measuring) = &self.measuring {
            measuring.rank(tensor, prepared.iter().find_map(|edit| edit.effective_rank()));
        }
        Ok(prepared.into())
    }
}

/// The rows of a tensor after its first edits.
struct Before<'a> {
    plan: &'a MergePlan,
    slot: &'a Slot,
    edits: &'a [Box<dyn PreparedEdit>],
}

impl ValueRows for Before<'_> {
    fn rows(&self) -> u64 {
        Matrix::of(&self.slot.info).rows
    }

    fn cols(&self) -> usize {
        Matrix::of(&self.slot.info).cols
    }

    fn read(&self, rows: Rows, out: &mut [f64]) -> Result<(), Error> {
        let matrix = Matrix::of(&self.slot.info);
        let mut bytes = Vec::new();
        self.plan.read_stored(self.slot, matrix, &rows, &mut bytes)?;
        let level = self.plan.options.level;
        kernel::decode(level, self.slot.stored, &bytes, out);
        let mut added = Vec::new();
        if let Some((dtype, scale)) = self.plan.read_added(self.slot, matrix, &rows, &mut added)? {
            let mut values = vec![0.0; out.len()];
            kernel::decode(level, dtype, &added, &mut values);
            kernel::add_scaled(level, out, &values, scale);
        }
        let mut tile = Tile { first_row: rows.start, first_col: 0, cols: matrix.cols, values: out, level };
        self.edits.iter().for_each(|edit| edit.apply(&mut tile));
        Ok(())
    }

    fn of_base(&self, tensor: usize) -> Box<dyn ValueRows + '_> {
        Box::new(OfBase { plan: self.plan, tensor })
    }
}

/// The rows of a tensor of the base.
struct OfBase<'a> {
    plan: &'a MergePlan,
    tensor: usize,
}

impl OfBase<'_> {
    fn info(&self) -> &TensorInfo {
        &self.plan.base.tensors()[self.tensor]
    }
}

impl ValueRows for OfBase<'_> {
    fn rows(&self) -> u64 {
        self.info().rows()
    }

    fn cols(&self) -> usize {
        self.info().row_len() as usize
    }

    fn read(&self, rows: Rows, out: &mut [f64]) -> Result<(), Error> {
        let mut bytes = vec![0; ((rows.end - rows.start) * self.info().row_bytes()) as usize];
        self.plan.base.read_rows(self.tensor, rows, &mut bytes)?;
        kernel::decode(self.plan.options.level, self.info().dtype, &bytes, out);
        Ok(())
    }

    fn of_base(&self, tensor: usize) -> Box<dyn ValueRows + '_> {
        Box::new(OfBase { plan: self.plan, tensor })
    }
}
