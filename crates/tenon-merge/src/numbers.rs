//! Numbers for tests, the same for the same seed.

/// Numbers between -0.5 and 0.5, one after the other (Knuth's MMIX generator).
pub(crate) fn numbers(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    }
}
