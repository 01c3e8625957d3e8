//! Full-weight deltas: added to their base, with new rows where the vocabulary grew, or refused.
#![allow(clippy::unwrap_used)] // a test file

use std::path::{Path, PathBuf};

use tenon::Merge;
use tenon_checkpoint::{Checkpoint, Digest, TensorSource, read_json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/deltas").join(name)
}

fn bytes(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let (tensor, info) = checkpoint.find(name).unwrap_or_else(|| panic!("no {name}"));
    let mut bytes = vec![0; info.bytes() as usize];
    checkpoint.read_rows(tensor, 0..info.rows(), &mut bytes).unwrap();
    bytes
}

#[test]
fn a_delta_and_its_base_are_the_sum_rounded_once() {
    for name in ["f16", "bf16-f32"] {
        let dir = tempfile::tempdir().unwrap();
        let (base, delta) = (fixture(name).join("base"), fixture(name).join("delta"));
        let merge = |out: &str| Merge::new(&base, &delta, dir.path().join(out)).delta(true);
        let plan = merge("out").plan().unwrap();
        assert!(plan.notes().iter().any(|note| note.contains("full-weight delta")), "{:?}", plan.notes());
        let merged = plan.run(&()).unwrap();
        let found = Checkpoint::open(dir.path().join("out")).unwrap();
        let wanted = Checkpoint::open_file(fixture(name).join("merged.safetensors")).unwrap();
        assert_eq!(found.tensors().len(), wanted.tensors().len());
        for info in wanted.tensors() {
            let shape = &found.find(&info.name).unwrap().1.shape;
            assert_eq!(*shape, info.shape, "{name}: {}", info.name);
            assert_eq!(bytes(&found, &info.name), bytes(&wanted, &info.name), "{name}: {}", info.name);
        }
        let manifest = &merged.manifest;
        assert_eq!(manifest.parameters.peft_type, "FULL_DELTA");
        assert_eq!((manifest.tensors.edited, manifest.tensors.copied), (12, 0));
        // All shards of a delta are inputs.
        let shards = Checkpoint::open(&delta).unwrap().files().len();
        assert_eq!(manifest.adapter.files.len(), shards);
        let config: serde_json::Value = read_json(&dir.path().join("out/config.json")).unwrap();
        assert_eq!(config["vocab_size"], if name == "f16" { 23 } else { 20 });
        // The same bytes in tiles of a row or two by one thread.
        merge("again").tile_bytes(64).threads(1).plan().unwrap().run(&()).unwrap();
        let digest =
            |out: &str| Digest::of(&std::fs::read(dir.path().join(out).join("model.safetensors")).unwrap());
        assert_eq!(digest("out"), digest("again"));
    }
}

#[test]
fn a_weight_scales_what_is_added() {
    let dir = tempfile::tempdir().unwrap();
    let (base, delta) = (fixture("bf16-f32/base"), fixture("bf16-f32/delta"));
    let out = dir.path().join("out");
    let merge = Merge::several(&base, vec![(delta.clone(), 0.5)], &out).delta(true);
    merge.dtype(tenon::OutputDtype::F32).plan().unwrap().run(&()).unwrap();
    let (found, base) = (Checkpoint::open(&out).unwrap(), Checkpoint::open(&base).unwrap());
    let delta = Checkpoint::open(&delta).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let floats =
        |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>();
    let base = bytes(&base, name);
    let base =
        base.as_chunks::<2>().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16));
    let (found, delta) = (floats(bytes(&found, name)), floats(bytes(&delta, name)));
    assert_eq!(found.len(), delta.len());
    for ((found, base), delta) in found.iter().zip(base).zip(delta) {
        assert_eq!(*found, (f64::from(base) + 0.5 * f64::from(delta)) as f32);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_taken_for_a_delta_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let plan = |base: &str, delta: &str| Merge::new(fixture(base), fixture(delta), &out);
    let model = plan("f16/base", "f16/delta").plan().err().unwrap().to_string();
    assert!(model.contains("a whole model, not an adapter"), "{model}");
    // The vocabulary of the base is the larger one.
    let smaller = plan("f16/delta", "f16/base").delta(true).plan().err().unwrap().to_string();
    assert!(smaller.contains("has shape [20, 16], expected [23, 16]"), "{smaller}");
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama/base");
    let other = Merge::new(&home, fixture("f16/delta"), &out).delta(true).plan().err().unwrap().to_string();
    assert!(other.contains("expected [768, 256]"), "{other}");
    let none = Merge::new(&home, dir.path(), dir.path().join("x")).delta(true).plan();
    assert!(none.is_err());
    assert!(!out.exists());
}

#[test]
fn a_delta_is_registered_and_saved_like_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let home = tenon::Tenon::open(dir.path()).unwrap();
    let base = home.add_base(&fixture("f16/base"), None, &()).unwrap();
    let delta = fixture("f16/delta");
    let customized = home.add_customized_delta(&delta, base.name.as_str(), Some("talk"), None).unwrap();
    assert_eq!(customized.peft_type, "FULL_DELTA");
    assert_eq!(customized.files.len(), 4);
    let queued = home.queue(customized.name.as_str()).unwrap();
    let saved = home.run_saving(queued, &()).unwrap();
    let (found, wanted) = (
        Checkpoint::open(home.path(saved.model.name.as_str()).unwrap()).unwrap(),
        Checkpoint::open_file(fixture("f16/merged.safetensors")).unwrap(),
    );
    for info in wanted.tensors() {
        assert_eq!(bytes(&found, &info.name), bytes(&wanted, &info.name), "{}", info.name);
    }
    // And made anew from what its manifest names.
    let report = home.plan_rebuild(saved.model.name.as_str()).unwrap().run(&()).unwrap();
    assert!(report.is_same(), "{report:?}");
}
