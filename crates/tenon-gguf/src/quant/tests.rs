//! All kernels: ggml's bytes, and the same at every level.

use proptest::prelude::*;

use super::*;

pub(super) const QUANTIZED: [GgmlType; 12] = [
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
];

fn floats(path: &std::path::Path) -> Vec<f32> {
    std::fs::read(path).unwrap().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The bytes that ggml made of the same numbers.
#[test]
fn the_bytes_are_those_of_ggml() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf-golden/kernels");
    for data in ["bf16", "edges", "heavy", "normal", "outliers", "positive"] {
        let x = floats(&dir.join(format!("{data}.f32")));
        let importance = floats(&dir.join(format!("{data}.imatrix.f32")));
        for ggml_type in QUANTIZED {
            let plain = std::fs::read(dir.join(format!("{data}.{ggml_type}.bin"))).unwrap();
            let weighted = std::fs::read(dir.join(format!("{data}.{ggml_type}.im.bin"))).unwrap();
            for level in Level::available() {
                let block = ggml_type.block_bytes() as usize;
                let check = |out: &[u8], expected: &[u8], what: &str| {
                    let wrong = out.chunks(block).zip(expected.chunks(block)).position(|(a, b)| a != b);
                    assert_eq!(wrong, None, "{data} {ggml_type} {level:?} {what}: first wrong block");
                };
                let mut out = vec![0xee; plain.len()];
                encode(level, ggml_type, &x, &mut out);
                check(&out, &plain, "plain");
                out.fill(0xee);
                encode_weighted(level, ggml_type, &x, &importance, &mut out);
                check(&out, &weighted, "weighted");
            }
        }
    }
}

/// FNV-1a of what ggml's `dequantize_row_*` makes of the golden blocks, little-endian.
const DECODED: [(GgmlType, u64); 12] = [
    (GgmlType::Q8_0, 0x15038e2604eacc49),
    (GgmlType::Q4_0, 0x4182c965b8e2edb5),
    (GgmlType::Q4_1, 0xcc5a4df8ec58c5ae),
    (GgmlType::Q5_0, 0xe23a6cd7dba22c6e),
    (GgmlType::Q5_1, 0x135a89d624a00f79),
    (GgmlType::Q2_K, 0x7a48b312fc068658),
    (GgmlType::Q3_K, 0x085c4ab39fe9b43e),
    (GgmlType::Q4_K, 0xf6db8a6ed4997df9),
    (GgmlType::Q5_K, 0x234818e9d8c39384),
    (GgmlType::Q6_K, 0xb26f5c1548434482),
    (GgmlType::IQ4_NL, 0x3dd7293fc33378db),
    (GgmlType::IQ4_XS, 0xfa73254dd982c506),
];

#[test]
fn codes_of_mxfp4_become_numbers_at_every_level() {
    // An exponent of each kind, and every code in both halves.
    let codes: [u8; 16] = std::array::from_fn(|n| (n | (15 - n) << 4) as u8);
    let numbers = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let number = |code: usize| if code < 8 { numbers[code] } else { -numbers[code - 8] };
    for level in Level::available() {
        for (exponent, power) in [(0u8, -127), (1, -126), (2, -125), (127, 0), (130, 3), (250, 123)] {
            let block = [&[exponent][..], &codes].concat();
            let mut out = [0.0; 32];
            decode(level, GgmlType::MXFP4, &block, &mut out);
            let expected: [f32; 32] =
                std::array::from_fn(|n| number(if n < 16 { n } else { 31 - n }) * 2f32.powi(power));
            assert_eq!(out, expected, "{exponent} {level:?}");
        }
    }
    assert!(!scales_are_finite(GgmlType::MXFP4, &[255; 17]));
}

#[test]
fn blocks_become_the_numbers_that_ggml_makes_of_them() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf-golden/kernels");
    for (ggml_type, expected) in DECODED {
        for level in Level::available() {
            let mut hash = 0xcbf2_9ce4_8422_2325u64;
            for data in ["bf16", "edges", "heavy", "normal", "outliers", "positive"] {
                let blocks = std::fs::read(dir.join(format!("{data}.{ggml_type}.im.bin"))).unwrap();
                let mut out = vec![0.0; 6 * 512];
                decode(level, ggml_type, &blocks, &mut out);
                for byte in out.iter().flat_map(|v| v.to_le_bytes()) {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
                }
            }
            assert_eq!(hash, expected, "{ggml_type} {level:?}");
        }
    }
}

/// The definition of each kernel: one lane, compiled for any CPU.
fn define(ggml_type: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    type One = [f32; 1];
    match (ggml_type, importance) {
        (GgmlType::Q8_0, _) => q8_0::body::<false>(x, out),
        (GgmlType::Q4_0, None) => legacy::symmetric_body4::<false>(x, out),
        (GgmlType::Q4_1, None) => legacy::affine_body4::<false>(x, out),
        (GgmlType::Q5_0, None) => legacy::symmetric_body5::<false>(x, out),
        (GgmlType::Q5_1, None) => legacy::affine_body5::<false>(x, out),
        (GgmlType::Q4_0, Some(row)) => legacy::weighted_symmetric4::<One>(x, row, out),
        (GgmlType::Q4_1, Some(row)) => legacy::weighted_affine4::<One>(x, row, out),
        (GgmlType::Q5_0, Some(row)) => legacy::weighted_symmetric5::<One>(x, row, out),
        (GgmlType::Q5_1, Some(row)) => legacy::weighted_affine5::<One>(x, row, out),
        (GgmlType::Q2_K, _) => k_affine::q2_k_body::<One>(x, importance, out),
        (GgmlType::Q3_K, _) => k_symmetric::q3_k_body::<One>(x, importance, out),
        (GgmlType::Q4_K, _) => k_affine::q4_k_body::<One>(x, importance, out),
        (GgmlType::Q5_K, _) => k_affine::q5_k_body::<One>(x, importance, out),
        (GgmlType::Q6_K, _) => k_symmetric::q6_k_body::<One>(x, importance, out),
        (GgmlType::IQ4_NL, _) => iq4::nl_body::<One>(x, importance, out),
        (GgmlType::IQ4_XS, _) => iq4::xs_body::<One>(x, importance, out),
        _ => unreachable!("not quantized"),
    }
}

/// A block's worth of numbers of one kind: weights, ties, zeros, one value, the edges of `f32`.
fn numbers() -> impl Strategy<Value = Vec<f32>> {
    let edge = prop_oneof![
        Just(0.0f32),
        Just(-0.0),
        Just(1e-45),
        Just(-1e-40),
        Just(f32::MIN_POSITIVE),
        Just(1e-15),
        Just(3e38),
        Just(-3e38),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        Just(f32::NAN),
        -1.0f32..1.0,
    ];
    prop_oneof![
        6 => proptest::collection::vec(-0.1f32..0.1, 32),
        2 => proptest::collection::vec((-16i8..16).prop_map(|i| f32::from(i) * 0.25), 32),
        1 => proptest::collection::vec(-1e-38f32..1e-38, 32),
        1 => proptest::collection::vec(-1e30f32..1e30, 32),
        1 => (-1.0f32..1.0).prop_map(|v| vec![v; 32]),
        1 => Just(vec![0.0; 32]),
        1 => proptest::collection::vec(edge, 32),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Rows of one to three super-blocks, from fewer blocks than there are lanes to more than a batch.
    #[test]
    fn every_level_gives_the_bits_of_the_definition(
        width in 1usize..=3,
        data in proptest::collection::vec(numbers(), 8..200),
        importance in proptest::collection::vec(prop_oneof![4 => 0.0f32..2.0, 1 => Just(0.0)], 768),
        shift in 0usize..8,
    ) {
        let width = width * 256;
        let importance = &importance[..width];
        let mut x = data.concat();
        x.rotate_left(shift * 4);
        x.resize(x.len().next_multiple_of(width), 0.5);
        for ggml_type in QUANTIZED {
            let mut expected = vec![0u8; ggml_type.row_bytes(x.len() as u64) as usize];
            let mut out = expected.clone();
            define(ggml_type, &x, None, &mut expected);
            for level in Level::available() {
                encode(level, ggml_type, &x, &mut out);
                prop_assert!(out == expected, "{} {:?}", ggml_type, level);
            }
            define(ggml_type, &x, Some(importance), &mut expected);
            for level in Level::available() {
                encode_weighted(level, ggml_type, &x, importance, &mut out);
                prop_assert!(out == expected, "{} {:?} weighted", ggml_type, level);
            }
        }
    }

    /// Any bytes are blocks.
    #[test]
    fn every_level_decodes_the_same(bytes in proptest::collection::vec(any::<u8>(), 3 * 210..5 * 210)) {
        for ggml_type in QUANTIZED.into_iter().chain([GgmlType::F16, GgmlType::BF16, GgmlType::F32]) {
            let blocks = bytes.len() / ggml_type.block_bytes() as usize;
            let bytes = &bytes[..blocks * ggml_type.block_bytes() as usize];
            let decoded = |level| {
                let mut out = vec![0.0; blocks * ggml_type.block_len() as usize];
                decode(level, ggml_type, bytes, &mut out);
                // What is no number has no one sign.
                out.into_iter().map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }).collect::<Vec<_>>()
            };
            let expected = decoded(Level::Scalar);
            for level in Level::available() {
                prop_assert!(decoded(level) == expected, "{} {:?}", ggml_type, level);
            }
        }
    }
}
