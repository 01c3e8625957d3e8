//! Tensors of a file under other names, turned over or cut out where another tool lays them out so.

use std::collections::HashSet;
use std::sync::Arc;

use tenon_checkpoint::{Checkpoint, Error, Rows, TensorInfo, TensorSource};

/// A file's tensors as another tool would have named and shaped them.
#[derive(Debug)]
pub struct Translated {
    file: Arc<Checkpoint>,
    infos: Vec<TensorInfo>,
    views: Vec<View>,
    names: HashSet<String>,
}

/// Where a tensor lies.
#[derive(Debug, Clone, Copy)]
struct View {
    tensor: usize,
    /// Bytes before it in the stored tensor.
    offset: u64,
    /// Whether its rows are the stored columns.
    turned: bool,
}

/// Bytes of the stored tensor that are turned over at a time.
const CHUNK_BYTES: u64 = 1 << 20;

impl Translated {
    pub(crate) fn new(file: Arc<Checkpoint>) -> Self {
        Self { file, infos: vec![], views: vec![], names: HashSet::new() }
    }

    pub(crate) fn file(&self) -> &Checkpoint {
        &self.file
    }

    /// Adds a tensor as it is. Gives whether its name was free.
    pub(crate) fn add(&mut self, name: String, tensor: usize) -> bool {
        let info = &self.file.tensors()[tensor];
        let (dtype, shape) = (info.dtype, info.shape.clone());
        self.push(TensorInfo::new(name, dtype, shape), View { tensor, offset: 0, turned: false })
    }

    /// Adds a matrix turned over: `[n, m]` of a stored `[m, n]`.
    pub(crate) fn add_turned(&mut self, name: String, tensor: usize) -> bool {
        let info = &self.file.tensors()[tensor];
        let shape = info.shape.iter().rev().copied().collect();
        let info = TensorInfo::new(name, info.dtype, shape);
        self.push(info, View { tensor, offset: 0, turned: true })
    }

    /// Adds a run of a stored tensor's elements, shaped otherwise.
    pub(crate) fn add_part(&mut self, name: String, tensor: usize, first: u64, shape: Vec<u64>) -> bool {
        let dtype = self.file.tensors()[tensor].dtype;
        let offset = first * dtype.bits() / 8;
        self.push(TensorInfo::new(name, dtype, shape), View { tensor, offset, turned: false })
    }

    fn push(&mut self, info: TensorInfo, view: View) -> bool {
        let free = self.names.insert(info.name.clone());
        self.infos.push(info);
        self.views.push(view);
        free
    }
}

impl TensorSource for Translated {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), Error> {
        let (view, info) = (self.views[tensor], &self.infos[tensor]);
        if !view.turned {
            return self.file.read_bytes(view.tensor, view.offset + rows.start * info.row_bytes(), out);
        }
        // Row r, column c of this tensor is row c, column r of the stored one.
        let size = (info.dtype.bits() / 8) as usize;
        let (cols, stored_cols) = (info.row_len(), info.rows());
        let step = (CHUNK_BYTES / (stored_cols * size as u64).max(1)).max(1);
        let mut chunk = vec![];
        let mut first = 0;
        while first < cols {
            let end = cols.min(first + step);
            chunk.resize(((end - first) * stored_cols) as usize * size, 0);
            self.file.read_bytes(view.tensor, first * stored_cols * size as u64, &mut chunk)?;
            for (col, stored) in (first..end).zip(chunk.chunks_exact((stored_cols as usize * size).max(1))) {
                let wanted = &stored[rows.start as usize * size..rows.end as usize * size];
                for (row, element) in wanted.chunks_exact(size).enumerate() {
                    out[(row * cols as usize + col as usize) * size..][..size].copy_from_slice(element);
                }
            }
            first = end;
        }
        Ok(())
    }
}
