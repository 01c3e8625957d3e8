//! How far an edit moved a row, and what rounding it cost.
//!
//! Nothing here is fused; sums run in [`LANES`] interleaved sums, added in order.

use super::kernel;

/// Interleaved sums: one AVX-512 vector, two AVX2 ones.
const LANES: usize = 8;

/// Sums over the elements of a row.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Differences {
    /// Sum of the squares before the edit.
    pub before: f64,
    /// Sum of the squares of what the edit added.
    pub delta: f64,
    /// Sum of the squares of what rounding then added.
    pub rounding: f64,
    /// The largest magnitude that the edit added.
    pub largest: f64,
    /// Elements that came out with another value than they went in with.
    pub changed: f64,
}

kernel!(
    /// Compares a row before an edit, after it, and after rounding.
    pub fn compare = compare_body(before: &[f64], exact: &[f64], rounded: &[f64]) -> Differences
);

#[inline(always)]
fn compare_body<const FUSED: bool>(before: &[f64], exact: &[f64], rounded: &[f64]) -> Differences {
    let mut sums = [[0.0; LANES]; 5];
    let step = |sums: &mut [[f64; LANES]; 5], lane: usize, w: f64, e: f64, r: f64| {
        let (delta, error) = (e - w, r - e);
        sums[0][lane] += w * w;
        sums[1][lane] += delta * delta;
        sums[2][lane] += error * error;
        let size = delta.abs();
        sums[3][lane] = if size > sums[3][lane] { size } else { sums[3][lane] };
        sums[4][lane] += if r != w { 1.0 } else { 0.0 };
    };
    let ((w, w_rest), (e, e_rest), (r, r_rest)) =
        (before.as_chunks::<LANES>(), exact.as_chunks::<LANES>(), rounded.as_chunks::<LANES>());
    for ((w, e), r) in w.iter().zip(e).zip(r) {
        for lane in 0..LANES {
            step(&mut sums, lane, w[lane], e[lane], r[lane]);
        }
    }
    for (lane, ((w, e), r)) in w_rest.iter().zip(e_rest).zip(r_rest).enumerate() {
        step(&mut sums, lane, *w, *e, *r);
    }
    let total = |lanes: [f64; LANES]| lanes.iter().fold(0.0, |sum, lane| sum + lane);
    Differences {
        before: total(sums[0]),
        delta: total(sums[1]),
        rounding: total(sums[2]),
        largest: sums[3].iter().fold(0.0, |max, &lane| if lane > max { lane } else { max }),
        changed: total(sums[4]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::Level;

    proptest! {
        #[test]
        fn levels_agree_and_sums_are_right(
            rows in proptest::collection::vec((-4.0f64..4.0, -4.0f64..4.0, -4.0f64..4.0), 0..70),
        ) {
            let before: Vec<_> = rows.iter().map(|row| row.0).collect();
            let exact: Vec<_> = rows.iter().map(|row| row.1).collect();
            let rounded: Vec<_> = rows.iter().map(|row| if row.2 > 0.0 { row.0 } else { row.2 }).collect();
            let scalar = compare(Level::Scalar, &before, &exact, &rounded);
            for level in Level::available() {
                prop_assert_eq!(compare(level, &before, &exact, &rounded), scalar);
            }
            let delta: f64 = rows.iter().map(|row| (row.1 - row.0).powi(2)).sum();
            prop_assert!((scalar.delta - delta).abs() <= 1e-12 * delta);
            let changed = before.iter().zip(&rounded).filter(|(a, b)| a != b).count();
            prop_assert_eq!(scalar.changed, changed as f64);
            let largest = rows.iter().map(|row| (row.1 - row.0).abs()).fold(0.0, f64::max);
            prop_assert_eq!(scalar.largest, largest);
        }
    }
}
