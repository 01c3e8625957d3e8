//! The element types of GGUF tensors.

/// An element type: its number in the file, its block of elements and their bytes.
///
/// Numbers and sizes are those of ggml (`ggml.h`, `ggml-common.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)] // ggml's own names
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    BF16,
    MXFP4,
}

impl GgmlType {
    const ALL: [GgmlType; 21] = {
        use GgmlType::*;
        [
            F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, I8, I16,
            I32, I64, F64, BF16, MXFP4,
        ]
    };

    /// Those that numbers can be written as.
    pub(crate) const WRITTEN: [GgmlType; 15] = {
        use GgmlType::*;
        [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS]
    };

    /// Name, number, elements of a block, bytes of a block.
    const fn facts(self) -> (&'static str, u32, u64, u64) {
        match self {
            GgmlType::F32 => ("F32", 0, 1, 4),
            GgmlType::F16 => ("F16", 1, 1, 2),
            GgmlType::Q4_0 => ("Q4_0", 2, 32, 18),
            GgmlType::Q4_1 => ("Q4_1", 3, 32, 20),
            GgmlType::Q5_0 => ("Q5_0", 6, 32, 22),
            GgmlType::Q5_1 => ("Q5_1", 7, 32, 24),
            GgmlType::Q8_0 => ("Q8_0", 8, 32, 34),
            GgmlType::Q2_K => ("Q2_K", 10, 256, 84),
            GgmlType::Q3_K => ("Q3_K", 11, 256, 110),
            GgmlType::Q4_K => ("Q4_K", 12, 256, 144),
            GgmlType::Q5_K => ("Q5_K", 13, 256, 176),
            GgmlType::Q6_K => ("Q6_K", 14, 256, 210),
            GgmlType::IQ4_NL => ("IQ4_NL", 20, 32, 18),
            GgmlType::IQ4_XS => ("IQ4_XS", 23, 256, 136),
            GgmlType::I8 => ("I8", 24, 1, 1),
            GgmlType::I16 => ("I16", 25, 1, 2),
            GgmlType::I32 => ("I32", 26, 1, 4),
            GgmlType::I64 => ("I64", 27, 1, 8),
            GgmlType::F64 => ("F64", 28, 1, 8),
            GgmlType::BF16 => ("BF16", 30, 1, 2),
            GgmlType::MXFP4 => ("MXFP4", 39, 32, 17),
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.facts().0
    }

    /// Its number in a file.
    pub const fn id(self) -> u32 {
        self.facts().1
    }

    /// The type with a number.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.id() == id)
    }

    /// Elements of a block.
    pub const fn block_len(self) -> u64 {
        self.facts().2
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> u64 {
        self.facts().3
    }

    /// Whether blocks of it share scales.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a row of `len` elements, which must be whole blocks.
    pub const fn row_bytes(self, len: u64) -> u64 {
        len / self.block_len() * self.block_bytes()
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
