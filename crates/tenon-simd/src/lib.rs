//! Which instructions a kernel uses, and the one place where it is dispatched.
//!
//! A kernel is one generic body of plain Rust over small fixed arrays,
//! compiled three times by [`kernel!`]: as it is (the definition, and the NEON
//! or SSE2 code of its platform), with AVX2 and FMA, and with AVX-512.
//! [`Level`] picks one at run time. The body must give the same bits at every
//! level: it never leaves the order of a sum to the compiler, and fuses only
//! where its `FUSED` parameter allows it and that changes nothing.

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
#[macro_export]
macro_rules! kernel {
    ($(#[$doc:meta])* $vis:vis fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $(#[$doc])*
        $vis fn $name(level: $crate::Level, $($arg: $ty),*) $(-> $ret)? {
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
            match level.min($crate::Level::detect()) {
                $crate::Level::Scalar => {}
                // SAFETY: `min(detect())` leaves only levels whose features this CPU was seen to have.
                $crate::Level::Avx2 => return unsafe { levels::avx2($($arg),*) },
                // SAFETY: as above.
                $crate::Level::Avx512 => return unsafe { levels::avx512($($arg),*) },
            }
            // Every AArch64 CPU fuses in hardware; elsewhere the baseline has no such instruction.
            const FUSED: bool = cfg!(target_arch = "aarch64");
            let _ = level;
            $body::<FUSED>($($arg),*)
        }
    };
}
