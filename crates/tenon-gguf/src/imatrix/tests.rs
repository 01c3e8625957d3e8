use proptest::prelude::*;

use super::*;
use crate::layout::header;
use crate::{Metadata, quant};

fn write(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn legacy(entries: &[(&str, i32, &[f32])], tail: &[u8]) -> Vec<u8> {
    let mut out = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, calls, values) in entries {
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(calls.to_le_bytes());
        out.extend((values.len() as i32).to_le_bytes());
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }
    out.extend(tail);
    out
}

fn gguf(keys: &[(&str, Value)], tensors: &[(&str, Vec<u64>, &[f32])]) -> Vec<u8> {
    let mut metadata = Metadata::default();
    keys.iter().for_each(|(key, value)| metadata.set(*key, value.clone()));
    let infos: Vec<_> = tensors
        .iter()
        .map(|(name, shape, _)| GgufTensor {
            name: name.to_string(),
            ggml_type: GgmlType::F32,
            shape: shape.clone(),
        })
        .collect();
    let (mut out, _) = header(&metadata, &infos);
    for (_, _, values) in tensors {
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
        out.resize(out.len().next_multiple_of(32), 0);
    }
    out
}

fn keys() -> Vec<(&'static str, Value)> {
    vec![
        ("general.type", Value::String("imatrix".into())),
        ("imatrix.datasets", Value::Strings(vec!["a.txt".into(), "b.txt".into()])),
        ("imatrix.chunk_count", Value::U32(7)),
        ("imatrix.chunk_size", Value::U32(512)),
    ]
}

fn tensor(name: &str, shape: &[u64]) -> GgufTensor {
    GgufTensor { name: name.into(), ggml_type: GgmlType::Q4_0, shape: shape.into() }
}

#[test]
fn the_old_format_is_divided_by_its_calls() {
    let tail = [&4i32.to_le_bytes()[..], &5i32.to_le_bytes(), b"w.txt"].concat();
    let file = write(&legacy(&[("a", 2, &[2.0, 6.0]), ("b", 0, &[3.0])], &tail));
    let read = Importance::open(file.path()).unwrap();
    assert_eq!(read.of(&tensor("a", &[9, 2])).unwrap().unwrap().expert(0), [1.0, 3.0]);
    assert_eq!(read.of(&tensor("b", &[1])).unwrap().unwrap().expert(0), [3.0]);
    assert_eq!(read.of(&tensor("c", &[1])).unwrap(), None);
    let path = file.path().to_string_lossy().into_owned();
    assert_eq!(
        read.metadata(),
        [
            ("quantize.imatrix.file", Value::String(path)),
            ("quantize.imatrix.dataset", Value::String("w.txt".into())),
            ("quantize.imatrix.entries_count", Value::U32(2)),
            ("quantize.imatrix.chunks_count", Value::U32(4)),
        ]
    );
    // Without the end, as older ones are.
    let file = write(&legacy(&[("a", 2, &[2.0, 6.0])], &[]));
    let read = Importance::open(file.path()).unwrap();
    assert_eq!(read.metadata().len(), 2);
}

#[test]
fn experts_have_counts_of_their_own() {
    let tensors: &[(&str, Vec<u64>, &[f32])] = &[
        ("x.in_sum2", vec![2, 2], &[2.0, 4.0, 8.0, 6.0]),
        ("x.counts", vec![2, 1], &[2.0, 0.0]),
        ("else", vec![1], &[1.0]),
    ];
    let file = write(&gguf(&keys(), tensors));
    let read = Importance::open(file.path()).unwrap();
    let columns = read.of(&tensor("x", &[2, 3, 2])).unwrap().unwrap();
    assert_eq!((columns.expert(0), columns.expert(1)), (&[1.0, 2.0][..], &[1.0, 1.0][..]));
    assert_eq!(read.metadata()[1].1, Value::String("a.txt".into()));
    let other = read.of(&tensor("x", &[3, 2])).unwrap_err().to_string();
    assert!(other.contains("\"x\" has 4 columns here and 2 in the model"), "{other}");
}

#[test]
fn rows_of_experts_are_encoded_with_the_columns_of_each() {
    let row = |scale: f32| -> Vec<f32> { (0..32).map(|i| (i as f32 * scale).sin()).collect() };
    let (first, second) = (row(0.1), row(0.7));
    let values = [first.iter().map(|v| v.abs()).collect::<Vec<_>>(), vec![1.0; 32]].concat();
    let columns = Columns { values: &values, width: 32, rows: 2 };
    let x = [&first[..], &second, &first, &second].concat();
    let mut expected = [0; 4 * 18];
    for (expert, (x, out)) in x.chunks(64).zip(expected.chunks_mut(36)).enumerate() {
        quant::encode_weighted(Level::detect(), GgmlType::Q4_0, x, columns.expert(expert), out);
    }
    let mut out = [0; 3 * 18];
    let mut sums = QualitySums::default();
    columns.encode(Level::detect(), GgmlType::Q4_0, 1, &x[32..], &mut out, &mut sums);
    assert_eq!(out, expected[18..]);
    assert_eq!(sums.quality().elements, 96);
}

#[test]
fn each_lie_is_named() {
    let fault = |bytes: &[u8]| match Importance::open(write(bytes).path()).unwrap_err() {
        Error::Importance { fault, .. } => fault.to_string(),
        other => other.to_string(),
    };
    let good = legacy(&[("a", 2, &[2.0, 6.0])], &[]);
    for len in 0..good.len() {
        assert!(fault(&good[..len]).contains("ends at byte"), "{len}");
    }
    assert_eq!(fault(&0i32.to_le_bytes()), "entry 0: the number of entries is 0");
    let mut long = good.clone();
    long[4..8].copy_from_slice(&(-1i32).to_le_bytes());
    assert_eq!(fault(&long), "entry 1: the length of its name is -1");
    long[4..8].copy_from_slice(&i32::MAX.to_le_bytes());
    assert!(fault(&long).contains("within a name"));
    assert!(fault(&legacy(&[("a", 1, &[f32::NAN])], &[])).contains("not finite"));

    let pair: [(&str, Vec<u64>, &[f32]); 2] =
        [("x.in_sum2", vec![2], &[1.0, 2.0]), ("x.counts", vec![1], &[1.0])];
    assert!(Importance::open(write(&gguf(&keys(), &pair)).path()).is_ok());
    assert!(fault(&gguf(&keys(), &pair[..1])).contains("\"x.counts\" is not there"));
    assert!(fault(&gguf(&keys()[..2], &pair)).contains("imatrix.chunk_count"));
    assert!(fault(&gguf(&keys(), &[])).contains("no entries"));
    let three: [(&str, Vec<u64>, &[f32]); 2] = [pair[0].clone(), ("x.counts", vec![3], &[1.0; 3])];
    assert!(fault(&gguf(&keys(), &three)).contains("2 sums for 3 experts"));
}

proptest! {
    #[test]
    fn broken_files_are_refused_or_read_and_never_panic(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<proptest::sample::Index>(),
        old in any::<bool>(),
    ) {
        let pair: [(&str, Vec<u64>, &[f32]); 2] =
            [("x.in_sum2", vec![2, 2], &[1.0, 2.0, 3.0, 4.0]), ("x.counts", vec![2], &[1.0, 5.0])];
        let mut bytes = if old {
            legacy(&[("abc", 2, &[2.0, 6.0]), ("d", 1, &[1.0])], &[1, 0, 0, 0, 2, 0, 0, 0, b'a', b'b'])
        } else {
            gguf(&keys(), &pair)
        };
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() * 2) + 1);
        if let Ok(read) = Importance::open(write(&bytes).path()) {
            prop_assert!(!read.is_empty());
        }
    }
}
