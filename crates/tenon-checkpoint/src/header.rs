//! The safetensors header: 8 bytes of length, then JSON, then the tensors' bytes.
//!
//! A header is hostile until [`Header::parse`] returned: by then every tensor
//! has a known dtype, a shape whose bytes equal its extent, and the extents
//! tile the data without overlap, hole or remainder. Format:
//! `huggingface/safetensors`, README, "Format".

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::{Dtype, HeaderFault};

/// No reader of safetensors accepts a longer header (100 MB, as the reference implementation).
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderEntry {
    /// Full name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// First byte, counted from the end of the header.
    pub begin: u64,
    /// One past the last byte.
    pub end: u64,
}

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Tensors in the order of their bytes.
    pub entries: Vec<HeaderEntry>,
    /// The `__metadata__` object.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Parses the JSON of a header whose file has `data_len` bytes after it.
    pub fn parse(json: &[u8], data_len: u64) -> Result<Self, HeaderFault> {
        let raw: RawHeader = serde_json::from_slice(json).map_err(|e| HeaderFault::NotJson(e.to_string()))?;
        if let Some(tensor) = raw.duplicate {
            return Err(HeaderFault::DuplicateTensor { tensor });
        }
        let mut entries =
            raw.tensors.into_iter().map(|(name, raw)| check(name, raw)).collect::<Result<Vec<_>, _>>()?;
        // Empty tensors share their place with what follows; by end too, so that they come first.
        entries.sort_by_key(|entry| (entry.begin, entry.end));
        let mut previous_end = 0;
        for entry in &entries {
            let (tensor, begin) = (|| entry.name.clone(), entry.begin);
            if begin < previous_end {
                return Err(HeaderFault::Overlap { tensor: tensor(), begin, previous_end });
            }
            if begin > previous_end {
                return Err(HeaderFault::Hole { tensor: tensor(), begin, previous_end });
            }
            previous_end = entry.end;
        }
        match previous_end {
            claimed if claimed > data_len => Err(HeaderFault::DataTruncated { claimed, available: data_len }),
            claimed if claimed < data_len => Err(HeaderFault::DataLeftOver { claimed, available: data_len }),
            _ => Ok(Header { entries, metadata: raw.metadata }),
        }
    }
}

fn check(name: String, raw: RawTensor) -> Result<HeaderEntry, HeaderFault> {
    let (begin, end) = (raw.data_offsets[0], raw.data_offsets[1]);
    let dtype: Dtype = raw
        .dtype
        .parse()
        .map_err(|e: crate::UnknownDtype| HeaderFault::UnknownDtype { tensor: name.clone(), dtype: e.0 })?;
    if begin > end {
        return Err(HeaderFault::Reversed { tensor: name, begin, end });
    }
    // An extent of 0 makes every product 0, but the other extents must not overflow either:
    // rows and row lengths are computed from parts of the shape.
    let elements = raw.shape.iter().try_fold(1u64, |n, &extent| n.checked_mul(extent.max(1)));
    let expected = elements
        .and_then(|n| dtype.bytes_for(n).filter(|bytes| *bytes <= i64::MAX as u64))
        .map(|bytes| if raw.shape.contains(&0) { 0 } else { bytes });
    match expected {
        None => Err(HeaderFault::Overflow { tensor: name, shape: raw.shape, dtype: dtype.name() }),
        Some(expected) if expected != end - begin => Err(HeaderFault::WrongSize {
            tensor: name,
            shape: raw.shape,
            dtype: dtype.name(),
            expected,
            found: end - begin,
        }),
        Some(_) => Ok(HeaderEntry { name, dtype, shape: raw.shape, begin, end }),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
    duplicate: Option<String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object from tensor names to dtype, shape and data_offsets")
            }

            // By hand, because a map type would silently keep one of two equal names.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        header.duplicate.get_or_insert_with(|| name.clone());
                    }
                    if name == "__metadata__" {
                        // Null is written by some tools where they have nothing to say.
                        header.metadata =
                            map.next_value::<Option<BTreeMap<String, String>>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, data_len: u64) -> Result<Header, HeaderFault> {
        Header::parse(json.as_bytes(), data_len)
    }

    #[test]
    fn tensors_come_in_the_order_of_their_bytes() {
        let header = parse(
            r#"{"__metadata__":{"format":"pt"},
               "b":{"dtype":"F32","shape":[2],"data_offsets":[6,14]},
               "empty":{"dtype":"F32","shape":[0,9],"data_offsets":[6,6]},
               "a":{"dtype":"BF16","shape":[3,1],"data_offsets":[0,6]}}   "#,
            14,
        )
        .unwrap();
        let names: Vec<_> = header.entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["a", "empty", "b"]);
        assert_eq!(header.metadata["format"], "pt");
    }

    #[test]
    fn every_lie_is_named() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let tensor = || "t".to_string();
        let cases: Vec<(String, u64, HeaderFault)> = vec![
            (one("F32", "[1]", "[4,0]"), 4, HeaderFault::Reversed { tensor: tensor(), begin: 4, end: 0 }),
            (
                one("F99", "[1]", "[0,4]"),
                4,
                HeaderFault::UnknownDtype { tensor: tensor(), dtype: "F99".into() },
            ),
            (
                one("F32", "[2]", "[0,4]"),
                4,
                HeaderFault::WrongSize {
                    tensor: tensor(),
                    shape: vec![2],
                    dtype: "F32",
                    expected: 8,
                    found: 4,
                },
            ),
            (
                one("F32", "[4294967296,4294967296]", "[0,0]"),
                0,
                HeaderFault::Overflow { tensor: tensor(), shape: vec![1 << 32, 1 << 32], dtype: "F32" },
            ),
            (
                one("F32", "[0,18446744073709551615,2]", "[0,0]"),
                0,
                HeaderFault::Overflow { tensor: tensor(), shape: vec![0, u64::MAX, 2], dtype: "F32" },
            ),
            (one("U8", "[4]", "[2,6]"), 6, HeaderFault::Hole { tensor: tensor(), begin: 2, previous_end: 0 }),
            (one("U8", "[4]", "[0,4]"), 3, HeaderFault::DataTruncated { claimed: 4, available: 3 }),
            (one("U8", "[4]", "[0,4]"), 9, HeaderFault::DataLeftOver { claimed: 4, available: 9 }),
            (
                r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                    "u":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#
                    .into(),
                3,
                HeaderFault::Overlap { tensor: "u".into(), begin: 1, previous_end: 2 },
            ),
            (
                r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                    "t":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#
                    .into(),
                4,
                HeaderFault::DuplicateTensor { tensor: tensor() },
            ),
        ];
        for (json, data_len, fault) in cases {
            assert_eq!(parse(&json, data_len), Err(fault), "{json}");
        }
        for json in [
            "",
            "[]",
            "null",
            "{\"t\":1}",
            "{\"t\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}",
        ] {
            assert!(matches!(parse(json, 0), Err(HeaderFault::NotJson(_))), "{json}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(json in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), len in 0u64..100) {
            let _ = Header::parse(&json, len);
        }

        #[test]
        fn no_numbers_panic(begin: u64, end: u64, a: u64, b: u64, len: u64) {
            let json = format!(r#"{{"t":{{"dtype":"BF16","shape":[{a},{b}],"data_offsets":[{begin},{end}]}}}}"#);
            if let Ok(header) = parse(&json, len) {
                proptest::prop_assert_eq!(header.entries[0].end, len);
            }
        }
    }
}
