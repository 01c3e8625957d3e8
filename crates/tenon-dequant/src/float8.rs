//! The values of floats of a byte and less, from their definitions.
//!
//! E4M3, E5M2: Micikevicius et al., "FP8 Formats for Deep Learning", 2022. The
//! FNUZ variants (one zero, one NaN, bias one more): Noune et al., 2022. E2M1
//! and E8M0: OCP Microscaling Formats 1.0, 2023.

use std::sync::LazyLock;

use tenon_checkpoint::Dtype;

/// The values of E2M1 by their four bits.
pub(crate) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The values of E2M1 in halves of bytes, the first in the low half.
pub(crate) fn e2m1_pairs(bytes: &[u8], out: &mut [f32]) {
    for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [E2M1[usize::from(byte & 15)], E2M1[usize::from(byte >> 4)]];
    }
}

/// The 256 values of a type of 8 bits; `None` for other types.
pub(crate) fn table(dtype: Dtype) -> Option<&'static [f32; 256]> {
    static E4M3: LazyLock<[f32; 256]> =
        LazyLock::new(|| make(|byte| if byte & 0x7f == 0x7f { f32::NAN } else { minifloat(byte, 4, 3, 7) }));
    static E5M2: LazyLock<[f32; 256]> = LazyLock::new(|| {
        make(|byte| match byte & 0x7f {
            0x7c => f32::INFINITY.copysign(if byte & 0x80 == 0 { 1.0 } else { -1.0 }),
            0x7d.. => f32::NAN,
            _ => minifloat(byte, 5, 2, 15),
        })
    });
    static E4M3FNUZ: LazyLock<[f32; 256]> =
        LazyLock::new(|| make(|byte| if byte == 0x80 { f32::NAN } else { minifloat(byte, 4, 3, 8) }));
    static E5M2FNUZ: LazyLock<[f32; 256]> =
        LazyLock::new(|| make(|byte| if byte == 0x80 { f32::NAN } else { minifloat(byte, 5, 2, 16) }));
    static E8M0: LazyLock<[f32; 256]> = LazyLock::new(|| make(power_of_two));
    match dtype {
        Dtype::F8_E4M3 => Some(&E4M3),
        Dtype::F8_E5M2 => Some(&E5M2),
        Dtype::F8_E4M3FNUZ => Some(&E4M3FNUZ),
        Dtype::F8_E5M2FNUZ => Some(&E5M2FNUZ),
        Dtype::F8_E8M0 => Some(&E8M0),
        _ => None,
    }
}

/// `2^(byte - 127)`: a scale stored as an exponent.
pub(crate) fn power_of_two(byte: u8) -> f32 {
    match byte {
        255 => f32::NAN,
        0 => f32::MIN_POSITIVE / 2.0,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

fn make(value: impl Fn(u8) -> f32) -> [f32; 256] {
    std::array::from_fn(|byte| value(byte as u8))
}

/// A sign, `exponent` bits with this bias, `mantissa` bits, subnormals at exponent 0.
fn minifloat(byte: u8, exponent: u32, mantissa: u32, bias: i32) -> f32 {
    let bits = u32::from(byte);
    let (e, m) = (bits >> mantissa & ((1 << exponent) - 1), bits & ((1 << mantissa) - 1));
    let (significand, power) = if e == 0 { (m, 1 - bias) } else { (m + (1 << mantissa), e as i32 - bias) };
    // Small whole numbers times powers of two: exact.
    let magnitude = significand as f32 * 2f32.powi(power - mantissa as i32);
    if bits >> 7 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let e4m3 = table(Dtype::F8_E4M3).unwrap();
        assert_eq!((e4m3[0x7e], e4m3[0x01], e4m3[0x38], e4m3[0xb8]), (448.0, 2f32.powi(-9), 1.0, -1.0));
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan() && e4m3[0x80] == 0.0);
        let e5m2 = table(Dtype::F8_E5M2).unwrap();
        assert_eq!((e5m2[0x7b], e5m2[0x01], e5m2[0x3c]), (57344.0, 2f32.powi(-16), 1.0));
        assert!(e5m2[0xfc] == f32::NEG_INFINITY && e5m2[0x7d].is_nan());
        let fnuz = table(Dtype::F8_E4M3FNUZ).unwrap();
        assert_eq!((fnuz[0x7f], fnuz[0x40]), (240.0, 1.0));
        let e8m0 = table(Dtype::F8_E8M0).unwrap();
        assert_eq!((e8m0[127], e8m0[0], e8m0[254]), (1.0, 2f32.powi(-127), 2f32.powi(127)));
    }
}
