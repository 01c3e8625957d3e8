//! The element types that safetensors files hold, by the names their headers use.

use std::fmt;
use std::str::FromStr;

/// Element type of a tensor, as safetensors names it.
///
/// Tenon computes with [`F16`](Dtype::F16), [`BF16`](Dtype::BF16),
/// [`F32`](Dtype::F32) and [`F64`](Dtype::F64); every other type passes
/// through a merge as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Dtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

use Dtype::*;

const ALL: [(Dtype, &str, u64); 22] = [
    (BOOL, "BOOL", 8),
    (F4, "F4", 4),
    (F6_E2M3, "F6_E2M3", 6),
    (F6_E3M2, "F6_E3M2", 6),
    (U8, "U8", 8),
    (I8, "I8", 8),
    (F8_E5M2, "F8_E5M2", 8),
    (F8_E4M3, "F8_E4M3", 8),
    (F8_E8M0, "F8_E8M0", 8),
    (F8_E4M3FNUZ, "F8_E4M3FNUZ", 8),
    (F8_E5M2FNUZ, "F8_E5M2FNUZ", 8),
    (I16, "I16", 16),
    (U16, "U16", 16),
    (F16, "F16", 16),
    (BF16, "BF16", 16),
    (I32, "I32", 32),
    (U32, "U32", 32),
    (F32, "F32", 32),
    (C64, "C64", 64),
    (F64, "F64", 64),
    (I64, "I64", 64),
    (U64, "U64", 64),
];

impl Dtype {
    /// Size of one element in bits. Types under a byte are packed.
    pub fn bits(self) -> u64 {
        ALL[self as usize].2
    }

    /// The name used in safetensors headers, such as `BF16`.
    pub fn name(self) -> &'static str {
        ALL[self as usize].1
    }

    /// Bytes that `elements` of this type take, `None` when they do not end on a byte or overflow.
    pub fn bytes_for(self, elements: u64) -> Option<u64> {
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Whether a merge can do arithmetic on it (F16, BF16, F32, F64).
    pub fn is_editable(self) -> bool {
        matches!(self, F16 | BF16 | F32 | F64)
    }

    /// The spelling of `torch_dtype`/`dtype` in `config.json`, for the types a config may name.
    pub fn torch_name(self) -> Option<&'static str> {
        match self {
            F16 => Some("float16"),
            BF16 => Some("bfloat16"),
            F32 => Some("float32"),
            F64 => Some("float64"),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Self, UnknownDtype> {
        ALL.iter()
            .find(|(_, known, _)| *known == name)
            .map(|(dtype, _, _)| *dtype)
            .ok_or_else(|| UnknownDtype(name.chars().take(64).collect()))
    }
}

/// A dtype name that safetensors does not define.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {0:?}")]
pub struct UnknownDtype(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (index, (dtype, name, _)) in ALL.iter().enumerate() {
            assert_eq!(*dtype as usize, index);
            assert_eq!(name.parse::<Dtype>().unwrap(), *dtype);
            assert_eq!(dtype.name(), *name);
        }
    }

    #[test]
    fn packed_types_must_end_on_a_byte() {
        assert_eq!(F4.bytes_for(6), Some(3));
        assert_eq!(F4.bytes_for(5), None);
        assert_eq!(F64.bytes_for(u64::MAX), None);
    }
}
