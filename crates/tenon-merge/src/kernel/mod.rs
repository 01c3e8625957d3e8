//! The arithmetic on tiles: decode, add a low-rank product, norms, encode.
//!
//! Every kernel is one generic body of plain Rust over small fixed arrays,
//! compiled three times: as it is (the definition, and the NEON or SSE2 code
//! of its platform), with AVX2 and FMA, and with AVX-512. [`Level`] picks one
//! at run time. The three give the same bits, by construction:
//!
//! * a product of two `f32` values is exact in `f64`, so `a * b + c` rounds
//!   once whether or not it is fused;
//! * where a product is not exact, the bodies never fuse;
//! * sums run in an order that depends on the data's shape alone.

mod compare;
mod convert;
mod fourier;
mod lowrank;
mod multiply;
mod norm;
mod vector;

pub use compare::{Differences, compare};
pub use convert::{decode, encode};
pub use fourier::{Complex, Fourier, unit_root};
pub use lowrank::{LowRankBlock, add_low_rank};
pub use multiply::{Matrix, Multiply, on_all_cores, transposed};
pub use norm::{add_column_squares, row_norm, scale_columns, scale_row};
pub use vector::{add_product, add_scaled, dot};

pub use tenon_simd::Level;
pub(crate) use tenon_simd::kernel;
