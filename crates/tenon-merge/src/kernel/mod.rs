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
mod lowrank;
mod norm;

pub use compare::{Differences, compare};
pub use convert::{decode, encode};
pub use lowrank::{LowRankBlock, add_low_rank};
pub use norm::{add_column_squares, row_norm, scale_columns, scale_row};

/// Which instructions the kernels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every CPU of the platform has. The definition of the other levels.
    Scalar,
    /// AVX2 and FMA (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, DQ and VL (x86-64-v4).
    Avx512,
}

impl Level {
    /// The best level of this CPU.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                return Level::Avx512;
            }
            if avx2 {
                return Level::Avx2;
            }
        }
        Level::Scalar
    }

    /// All levels that this CPU can run.
    pub fn available() -> impl Iterator<Item = Self> {
        let best = Self::detect();
        [Level::Scalar, Level::Avx2, Level::Avx512].into_iter().filter(move |level| *level <= best)
    }

    /// The level by this name, lowered to what the CPU has.
    pub fn named(name: &str) -> Option<Self> {
        let level = match name {
            "scalar" => Level::Scalar,
            "avx2" => Level::Avx2,
            "avx512" => Level::Avx512,
            _ => return None,
        };
        Some(level.min(Self::detect()))
    }
}

/// Defines a kernel from its body: `pub fn $name(level, args..)`, which runs
/// `$body::<FUSED>(args..)` compiled for the level.
macro_rules! kernel {
    ($(#[$doc:meta])* $vis:vis fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $(#[$doc])*
        $vis fn $name(level: $crate::kernel::Level, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            mod levels {
                use super::*;

                #[target_feature(enable = "avx2,fma")]
                pub(super) fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }

                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                pub(super) fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
            }
            #[cfg(target_arch = "x86_64")]
            match level.min($crate::kernel::Level::detect()) {
                $crate::kernel::Level::Scalar => {}
                // SAFETY: `min(detect())` leaves only levels whose features this CPU was seen to have.
                $crate::kernel::Level::Avx2 => return unsafe { levels::avx2($($arg),*) },
                // SAFETY: as above.
                $crate::kernel::Level::Avx512 => return unsafe { levels::avx512($($arg),*) },
            }
            // Every AArch64 CPU fuses in hardware; elsewhere the baseline has no such instruction.
            const FUSED: bool = cfg!(target_arch = "aarch64");
            let _ = level;
            $body::<FUSED>($($arg),*)
        }
    };
}
pub(crate) use kernel;
