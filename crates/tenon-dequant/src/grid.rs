//! Scales (or zeros) on a grid over a matrix: one for all of it, one a row,
//! one a group of columns, one a rectangle.

use std::ops::Range;

use tenon_checkpoint::Dtype;

use crate::Error;
use crate::reader::Reader;

/// Where the number of each element stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grid {
    tensor: usize,
    /// Rows of one matrix of the weight (experts are matrices after each other).
    matrix_rows: u64,
    /// Rows of the grid for one matrix, and how many from one matrix to the next.
    rows: u64,
    matrix_stride: u64,
    /// Columns of the grid.
    cols: u64,
    /// Rows and columns of the weight that share a number.
    row_block: u64,
    pub(crate) col_block: u64,
}

/// The numbers for a run of rows.
pub(crate) struct GridRows {
    grid: Grid,
    first: u64,
    pub(crate) values: Vec<f32>,
}

impl Grid {
    /// The grid of tensor `tensor`, of shape `grid`, over a weight of shape `weight`. Rectangles are of
    /// `block` where the grid has as many as that makes; else they divide the weight evenly.
    pub(crate) fn new(
        tensor: usize,
        grid: &[u64],
        weight: &[u64],
        block: Option<(u64, u64)>,
    ) -> Option<Self> {
        let [lead @ .., rows, cols] = weight else { return None };
        let (matrices, rows, cols) = (lead.iter().product::<u64>(), *rows, *cols);
        let (grid_rows, grid_cols, matrix_stride) = match grid {
            _ if grid.iter().all(|extent| *extent == 1) => (1, 1, 0),
            [.., r, c] if grid.len() == weight.len() && grid[..grid.len() - 2] == *lead => (*r, *c, *r),
            [.., r] if grid.len() + 1 == weight.len() && grid[..grid.len() - 1] == *lead && *r == rows => {
                (*r, 1, *r)
            }
            [n] if !lead.is_empty() && *n == matrices => (1, 1, 1),
            _ => return None,
        };
        if rows == 0 || cols == 0 || grid_rows == 0 || grid_cols == 0 {
            return None;
        }
        let size = |extent: u64, parts: u64, wanted: Option<u64>| match wanted {
            Some(size) if size > 0 && extent.div_ceil(size) == parts => Some(size),
            _ => extent.is_multiple_of(parts).then(|| extent / parts),
        };
        Some(Self {
            tensor,
            matrix_rows: rows,
            rows: grid_rows,
            matrix_stride,
            cols: grid_cols,
            row_block: size(rows, grid_rows, block.map(|b| b.0))?,
            col_block: size(cols, grid_cols, block.map(|b| b.1))?,
        })
    }

    /// Columns of the grid.
    pub(crate) fn cols(&self) -> usize {
        self.cols as usize
    }

    /// What shares a number, for people.
    pub(crate) fn describe(&self) -> String {
        match (self.rows, self.cols) {
            (1, 1) => "one scale a matrix".into(),
            (_, 1) if self.row_block == 1 => "one scale a row".into(),
            _ if self.row_block == 1 => format!("groups of {}", self.col_block),
            _ => format!("blocks of {} x {}", self.row_block, self.col_block),
        }
    }

    fn row(&self, row: u64) -> u64 {
        let in_matrix = (row % self.matrix_rows / self.row_block).min(self.rows - 1);
        row / self.matrix_rows * self.matrix_stride + in_matrix
    }

    /// Reads the numbers of these rows of the weight.
    pub(crate) fn read(&self, reader: &Reader, rows: Range<u64>) -> Result<GridRows, Error> {
        self.read_as(reader, rows, reader.info(self.tensor).dtype)
    }

    /// The same where the bytes are of another type than they are stored as.
    pub(crate) fn read_as(&self, reader: &Reader, rows: Range<u64>, dtype: Dtype) -> Result<GridRows, Error> {
        let (first, last) = (self.row(rows.start), self.row(rows.end.max(1) - 1));
        let elements = first * self.cols..(last + 1) * self.cols;
        let values = reader.floats_as(self.tensor, elements, dtype)?;
        Ok(GridRows { grid: self.clone(), first, values })
    }
}

impl GridRows {
    /// The numbers of one row of the weight, one a group of columns.
    pub(crate) fn row(&self, row: u64) -> &[f32] {
        let at = ((self.grid.row(row) - self.first) * self.grid.cols) as usize;
        &self.values[at..at + self.grid.cols()]
    }

    /// Multiplies the values of a row by its numbers.
    pub(crate) fn scale(&self, row: u64, values: &mut [f32]) {
        let groups = values.chunks_mut(self.grid.col_block as usize);
        for (values, scale) in groups.zip(self.row(row)) {
            values.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(grid: &Grid, row: u64, col: u64) -> (u64, u64) {
        (grid.row(row), col / grid.col_block)
    }

    #[test]
    fn shapes_tell_the_grid() {
        let one = Grid::new(0, &[1], &[6, 8], None).unwrap();
        assert_eq!(at(&one, 5, 7), (0, 0));
        assert_eq!(at(&Grid::new(0, &[], &[6, 8], None).unwrap(), 5, 7), (0, 0));
        let channel = Grid::new(0, &[6, 1], &[6, 8], None).unwrap();
        assert_eq!(at(&channel, 5, 7), (5, 0));
        assert_eq!(Grid::new(0, &[6], &[6, 8], None), Some(channel));
        let group = Grid::new(0, &[6, 2], &[6, 8], None).unwrap();
        assert_eq!(at(&group, 5, 7), (5, 1));
        // Blocks of 4 x 3 that do not divide 6 x 8.
        let block = Grid::new(0, &[2, 3], &[6, 8], Some((4, 3))).unwrap();
        assert_eq!((at(&block, 3, 5), at(&block, 4, 6)), ((0, 1), (1, 2)));
        let experts = Grid::new(0, &[3, 2, 1], &[3, 6, 8], None).unwrap();
        assert_eq!(at(&experts, 6 * 2 + 3, 7), (5, 0));
        let an_expert = Grid::new(0, &[3], &[3, 6, 8], None).unwrap();
        assert_eq!(at(&an_expert, 6 * 2 + 3, 7), (2, 0));
        assert_eq!(Grid::new(0, &[4, 3], &[6, 8], None), None);
        assert_eq!(Grid::new(0, &[1, 3], &[8], None), None);
    }
}
