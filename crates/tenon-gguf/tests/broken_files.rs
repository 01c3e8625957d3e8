//! Every way in which a GGUF header can lie has its own error, and none gets further.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::io::Write;

use proptest::prelude::*;
use tenon_gguf::{Error, Fault, GgmlType, GgufFile, GgufTensor, Metadata, Value, header};

fn read(bytes: &[u8]) -> Result<GgufFile, Fault> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    GgufFile::open(file.path()).map_err(|error| match error {
        Error::File { fault, .. } => fault,
        other => panic!("{other}"),
    })
}

fn good() -> Vec<u8> {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", Value::String("llama".into()));
    metadata.set("tokens", Value::Strings(vec!["a".into(), "bé".into()]));
    metadata.set("scores", Value::F32s(vec![1.0, -2.5]));
    metadata.set("bytes", Value::Other(0, 3, vec![1, 2, 3]));
    let tensors = [
        GgufTensor { name: "a.weight".into(), ggml_type: GgmlType::Q8_0, shape: vec![3, 64] },
        GgufTensor { name: "b".into(), ggml_type: GgmlType::F32, shape: vec![5] },
    ];
    let (mut bytes, len) = header(&metadata, &tensors);
    bytes.resize(len as usize, 7);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A file of these keys and tensors, each already encoded, and so much data.
fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    out.extend(keys.concat());
    out.extend(tensors.concat());
    out.resize(out.len().next_multiple_of(32) + data, 0);
    out
}

fn key(name: &str, type_id: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &type_id.to_le_bytes(), value].concat()
}

fn tensor(name: &str, shape: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let extents: Vec<u8> = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
    let dimensions = (shape.len() as u32).to_le_bytes();
    [&text(name)[..], &dimensions, &extents, &type_id.to_le_bytes(), &offset.to_le_bytes()].concat()
}

#[test]
fn a_good_file_reads_back() {
    let bytes = good();
    let file = read(&bytes).unwrap();
    assert_eq!((file.version, file.len(), file.tensors.len()), (3, bytes.len() as u64, 2));
    assert_eq!(header(&file.metadata, &file.tensors).0, bytes[..bytes.len() - 3 * 68 - 20 - 20 - 12]);
    let mut data = vec![0; 20];
    file.read_at(1, 0, &mut data).unwrap();
    assert_eq!(data, [7; 20]);
}

#[test]
fn each_lie_has_its_error() {
    let scalar = |bytes: &[u8]| bytes.to_vec();
    type Case = (&'static str, Vec<u8>, fn(&Fault) -> bool);
    let cases: Vec<Case> = vec![
        ("nothing", vec![], |f| matches!(f, Fault::Truncated { .. })),
        ("another format", b"PK\x03\x04 and so on and on and on".to_vec(), |f| *f == Fault::Magic),
        ("version 1", [b"GGUF\x01\0\0\0", &[0u8; 16][..]].concat(), |f| *f == Fault::Version { found: 1 }),
        ("other byte order", [b"GGUF\0\0\0\x03", &[0u8; 16][..]].concat(), |f| {
            matches!(f, Fault::Version { .. })
        }),
        ("many tensors", [b"GGUF\x03\0\0\0", &[255u8; 16][..]].concat(), |f| {
            matches!(f, Fault::TooMany { .. })
        }),
        ("many keys", [b"GGUF\x03\0\0\0", &[0u8; 8][..], &[255; 8]].concat(), |f| {
            matches!(f, Fault::TooMany { .. })
        }),
        ("long key", file(&[u64::MAX.to_le_bytes().to_vec()], &[], 0), |f| {
            matches!(f, Fault::TooMany { .. })
        }),
        ("key past the end", file(&[1_000_000u64.to_le_bytes().to_vec()], &[], 0), |f| {
            matches!(f, Fault::Truncated { .. })
        }),
        (
            "key that is no text",
            file(&[[&text("\u{1}\u{1}")[..8], &[0xff, 0xfe], &scalar(&[0; 5])].concat()], &[], 0),
            |f| matches!(f, Fault::NotText { .. }),
        ),
        ("unknown type", file(&[key("k", 99, &[0; 8])], &[], 0), |f| {
            matches!(f, Fault::ValueType { found: 99, .. })
        }),
        ("array of arrays", file(&[key("k", 9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])], &[], 0), |f| {
            matches!(f, Fault::ValueType { found: 9, .. })
        }),
        ("long array", file(&[key("k", 9, &[[4, 0, 0, 0].as_slice(), &[255; 8]].concat())], &[], 0), |f| {
            matches!(f, Fault::TooMany { .. })
        }),
        ("array past the end", file(&[key("k", 9, &[4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])], &[], 0), |f| {
            matches!(f, Fault::Truncated { .. })
        }),
        ("key twice", file(&[key("k", 0, &[1]), key("k", 0, &[2])], &[], 0), |f| {
            *f == Fault::DuplicateKey { key: "k".into() }
        }),
        ("alignment of none", file(&[key("general.alignment", 4, &[0; 4])], &[], 0), |f| {
            *f == Fault::Alignment { found: 0 }
        }),
        ("alignment of 48", file(&[key("general.alignment", 4, &[48, 0, 0, 0])], &[], 0), |f| {
            *f == Fault::Alignment { found: 48 }
        }),
        ("alignment of text", file(&[key("general.alignment", 8, &text("32"))], &[], 0), |f| {
            matches!(f, Fault::Alignment { .. })
        }),
        ("tensor twice", file(&[], &[tensor("t", &[1], 0, 0), tensor("t", &[1], 0, 32)], 64), |f| {
            matches!(f, Fault::DuplicateTensor { .. })
        }),
        ("five dimensions", file(&[], &[tensor("t", &[1; 5], 0, 0)], 64), |f| {
            matches!(f, Fault::Dimensions { found: 5, .. })
        }),
        ("unknown tensor type", file(&[], &[tensor("t", &[1], 77, 0)], 64), |f| {
            matches!(f, Fault::TensorType { found: 77, .. })
        }),
        ("overflowing shape", file(&[], &[tensor("t", &[1 << 40, 1 << 40], 0, 0)], 64), |f| {
            matches!(f, Fault::Shape { .. })
        }),
        ("overflowing bytes", file(&[], &[tensor("t", &[1 << 62, 2], 0, 0)], 64), |f| {
            matches!(f, Fault::Shape { .. })
        }),
        ("half a block", file(&[], &[tensor("t", &[48, 2], 8, 0)], 640), |f| {
            matches!(f, Fault::Shape { .. })
        }),
        ("unaligned", file(&[], &[tensor("t", &[1], 0, 4)], 64), |f| {
            matches!(f, Fault::Unaligned { offset: 4, .. })
        }),
        ("past the end", file(&[], &[tensor("t", &[17], 0, 0)], 64), |f| matches!(f, Fault::PastEnd { .. })),
        ("far past the end", file(&[], &[tensor("t", &[1], 0, u64::MAX - 31)], 64), |f| {
            matches!(f, Fault::PastEnd { .. })
        }),
        ("overlapping", file(&[], &[tensor("t", &[16], 0, 0), tensor("u", &[1], 0, 32)], 64), |f| {
            matches!(f, Fault::Overlap { .. })
        }),
    ];
    for (what, bytes, expected) in cases {
        match read(&bytes) {
            Ok(_) => panic!("{what}: read"),
            Err(fault) => {
                assert!(expected(&fault), "{what}: {fault:?}");
                assert!(!fault.to_string().is_empty());
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = good();
    // The last tensor's padding need not be there.
    let needed = bytes.len() - 12;
    for len in 0..needed {
        assert!(read(&bytes[..len]).is_err(), "{len} of {needed} bytes");
    }
    assert!(read(&bytes[..needed]).is_ok());
}

proptest! {
    #[test]
    fn no_change_of_a_header_does_harm(at in 0usize..300, value: u8, more in 0usize..8) {
        let mut bytes = good();
        let at = at % bytes.len();
        for byte in bytes.iter_mut().skip(at).take(more + 1) {
            *byte = byte.wrapping_add(value);
        }
        if let Ok(file) = read(&bytes) {
            for (n, tensor) in file.tensors.iter().enumerate() {
                let mut out = vec![0; tensor.bytes() as usize];
                file.read_at(n, 0, &mut out).unwrap();
            }
        }
    }

    #[test]
    fn any_bytes_are_a_file_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
    }
}
