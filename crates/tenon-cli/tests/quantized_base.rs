//! An adapter merged into a base that is stored quantized, through the facade: a model of full precision comes out.
#![allow(clippy::unwrap_used)] // a test file

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tenon::{Fate, Merge, OutputDtype};
use tenon_checkpoint::{Checkpoint, Dtype, TensorSource, read_json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quantized-bases/llama-nf4").join(name)
}

fn tensors(checkpoint: &Checkpoint) -> BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)> {
    let read = |(tensor, info): (usize, &tenon_checkpoint::TensorInfo)| {
        let mut bytes = vec![0; info.bytes() as usize];
        checkpoint.read_rows(tensor, 0..info.rows(), &mut bytes).unwrap();
        (info.name.clone(), (info.dtype, info.shape.clone(), bytes))
    };
    checkpoint.tensors().iter().enumerate().map(read).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn in_f32_it_is_pefts_merge_on_the_dequantized_model() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("whole");
    let plan = Merge::new(fixture("base"), fixture("adapter"), &out).dtype(OutputDtype::F32).plan().unwrap();
    let edited = plan.tensors().filter(|tensor| tensor.fate == Fate::Edited).count();
    assert_eq!(edited, 6);
    plan.run(&()).unwrap();
    let found = tensors(&Checkpoint::open(&out).unwrap());
    let wanted = tensors(&Checkpoint::open_file(fixture("merged.safetensors")).unwrap());
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, (dtype, shape, bytes)) in &wanted {
        let (_, found_shape, found_bytes) = &found[name];
        assert_eq!((*dtype, shape), (Dtype::F32, found_shape), "{name}");
        let (wanted, found) = (floats(bytes), floats(found_bytes));
        let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = wanted.iter().zip(&found).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        let adapted = ["q_proj", "v_proj", "down_proj"].iter().any(|module| name.contains(module));
        // What no adapter touches is what bitsandbytes gives, to the bit.
        let allowed = if adapted { 2e-6 * largest } else { 0.0 };
        assert!(worst <= allowed, "{name}: off by {worst:e}, the largest is {largest:e}");
    }
}

#[test]
fn by_default_it_is_bf16_and_says_what_was_dequantized() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("whole");
    let plan = Merge::new(fixture("base"), fixture("adapter"), &out).plan().unwrap();
    let format = "bitsandbytes NF4, blocks of 64, double quantization";
    assert_eq!(plan.dequantized().collect::<Vec<_>>(), [(format, 14)]);
    assert_eq!(plan.dequantized_from("model.layers.1.mlp.up_proj.weight"), Some(format));
    assert_eq!(plan.dequantized_from("model.norm.weight"), None);
    assert!(plan.notes()[0].contains("14 tensors from bitsandbytes NF4"), "{:?}", plan.notes());
    let merged = plan.run(&()).unwrap();
    assert_eq!(merged.manifest.dequantized[0].tensors, 14);
    let config: Value = read_json(&out.join("config.json")).unwrap();
    assert_eq!(config.get("quantization_config"), None);
    assert_eq!(config["dtype"], "bfloat16");

    // Each value is the one in f32, rounded once.
    let wide = dir.path().join("wide");
    let plan = Merge::new(fixture("base"), fixture("adapter"), &wide).dtype(OutputDtype::F32).plan().unwrap();
    plan.run(&()).unwrap();
    let (narrow, wide) =
        (tensors(&Checkpoint::open(&out).unwrap()), tensors(&Checkpoint::open(&wide).unwrap()));
    let mut rounded = 0;
    for (name, (dtype, _, bytes)) in &narrow {
        assert_eq!(*dtype, Dtype::BF16, "{name}");
        let values = floats(&wide[name].2);
        for (value, bytes) in values.iter().zip(bytes.as_chunks::<2>().0) {
            let found = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            // Half a unit of bf16's last place, and the f32's own rounding.
            assert!((found - value).abs() <= value.abs() * (2f32.powi(-8) + 2f32.powi(-22)), "{name}");
        }
        rounded += 1;
    }
    assert_eq!(rounded, 21);
}

#[test]
fn a_damaged_quant_state_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("base").join(file), base.join(file)).unwrap();
    }
    let mut bytes = std::fs::read(base.join("model.safetensors")).unwrap();
    let at = bytes.windows(11).rposition(|w| w == b"\"blocksize\"").unwrap();
    bytes[at + 1] = b'x';
    std::fs::write(base.join("model.safetensors"), bytes).unwrap();
    let error = Merge::new(&base, fixture("adapter"), dir.path().join("out")).plan().err().unwrap();
    let text = error.to_string();
    assert!(text.contains("quant_state") && text.contains("blocksize is absent"), "{text}");
    assert!(!dir.path().join("out").exists());
}
