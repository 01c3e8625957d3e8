//! GGUF files have the bytes of llama.cpp's own tools, by whatever way they come about.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tenon::{
    CheckpointError, Digest, Error, FileType, Gguf, GgufFile, GgufOptions, GgufValue, Merge, Observer,
    Quantization,
};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn base() -> PathBuf {
    fixtures().join("kjv-llama/base")
}

fn adapter() -> PathBuf {
    fixtures().join("kjv-llama/adapter-lora")
}

/// The goldens' names, and what makes them.
const ALL: [(&str, FileType, Quantization); 5] = [
    ("bf16", FileType::Auto, Quantization::None),
    ("f16", FileType::F16, Quantization::None),
    ("Q8_0", FileType::Auto, Quantization::Q8_0),
    ("Q4_K_M", FileType::Auto, Quantization::Q4KM),
    ("Q4_K_S", FileType::Auto, Quantization::Q4KS),
];

fn options(file_type: FileType) -> GgufOptions {
    GgufOptions { file_type, ..GgufOptions::default() }
}

#[derive(serde::Deserialize)]
struct Golden {
    sha256: BTreeMap<String, String>,
    peft: BTreeMap<String, Vec<(usize, u16)>>,
}

/// The model that PEFT merged: Tenon's, with the few numbers that PEFT rounds another way.
fn peft_merged(dir: &Path) -> Golden {
    let golden = std::fs::read(fixtures().join("gguf-golden/kjv-lora.json")).unwrap();
    let golden: Golden = serde_json::from_slice(&golden).unwrap();
    Merge::new(base(), adapter(), dir).plan().unwrap().run(&()).unwrap();
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    for (tensor, changes) in &golden.peft {
        let begin = json[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        for (element, bits) in changes {
            let at = 8 + header + begin + element * 2;
            bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    std::fs::write(path, bytes).unwrap();
    golden
}

#[test]
fn the_five_files_of_llama_cpp() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("kjv-lora");
    let golden = peft_merged(&dir);
    for (name, file_type, quantization) in ALL {
        for threads in [1, 3] {
            let out = home.path().join(format!("{name}-{threads}.gguf"));
            let options = GgufOptions { threads: Some(threads), ..options(file_type) };
            let plan = Gguf::of(&dir, &out).quantization(quantization).options(options).plan().unwrap();
            let written = plan.run(&()).unwrap();
            assert_eq!(written.digest.to_string(), golden.sha256[name], "{name}");
            assert_eq!(written.bytes, plan.output_bytes());
            let file = GgufFile::open(&out).unwrap();
            assert_eq!((&file.metadata, &file.tensors[..]), (plan.metadata(), plan.tensors()));
        }
    }
}

#[test]
fn base_and_adapter_give_the_bytes_of_the_long_way_round() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("kjv-lora");
    Merge::new(base(), adapter(), &dir).plan().unwrap().run(&()).unwrap();
    for (name, file_type, quantization) in ALL {
        let long = home.path().join("long.gguf");
        let gguf =
            Gguf::of(&dir, &long).quantization(quantization).options(options(file_type)).overwrite(true);
        let long = gguf.plan().unwrap().run(&()).unwrap();
        let short = home.path().join(format!("kjv-lora-{name}.gguf"));
        let gguf =
            Gguf::merged(base(), adapter(), &short).quantization(quantization).options(options(file_type));
        let short = gguf.plan().unwrap().run(&()).unwrap();
        assert_eq!(short.digest, long.digest, "{name}");
    }
}

#[test]
fn several_adapters_give_the_bytes_of_the_long_way_round() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("both");
    let adapters = vec![(adapter(), 0.5), (fixtures().join("kjv-llama/adapter-dora"), 1.0)];
    Merge::several(base(), adapters.clone(), &dir).plan().unwrap().run(&()).unwrap();
    let long = Gguf::of(&dir, home.path().join("long.gguf")).quantization(Quantization::Q8_0);
    let short = home.path().join("both-Q8_0.gguf");
    let short =
        Gguf::of_merge(Merge::several(base(), adapters, &dir), short).quantization(Quantization::Q8_0);
    assert_eq!(short.plan().unwrap().run(&()).unwrap().digest, long.plan().unwrap().run(&()).unwrap().digest);
}

#[test]
fn what_quantization_costs_is_measured_on_the_way() {
    let home = tempfile::tempdir().unwrap();
    let options = GgufOptions { measure: true, ..GgufOptions::default() };
    let run = |quantization, file: &str| {
        let gguf =
            Gguf::of(base(), home.path().join(file)).quantization(quantization).options(options.clone());
        let plan = gguf.plan().unwrap();
        let digest = plan.run(&()).unwrap().digest;
        (plan, digest)
    };
    let (eight, digest) = run(Quantization::Q8_0, "8.gguf");
    let (four, _) = run(Quantization::Q4KS, "4.gguf");
    // Measured or not, the bytes are the same.
    let unmeasured = Gguf::of(base(), home.path().join("plain.gguf")).quantization(Quantization::Q8_0);
    assert_eq!(unmeasured.plan().unwrap().run(&()).unwrap().digest, digest);
    for (number, tensor) in eight.tensors().iter().enumerate() {
        let (eight, four) = (eight.quality(number), four.quality(number));
        assert_eq!(eight.is_some(), tensor.ggml_type.is_quantized(), "{}", tensor.name);
        let (Some(eight), Some(four)) = (eight, four) else { continue };
        assert_eq!(eight.elements, tensor.elements());
        assert!(
            eight.relative_error < 0.01 && eight.signal_to_noise.unwrap() > 40.0,
            "{}: {eight:?}",
            tensor.name
        );
        assert!((0.01..0.2).contains(&four.relative_error), "{}: {four:?}", tensor.name);
    }
}

#[test]
fn importance_weighs_as_in_llama_quantize() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("kjv-lora");
    peft_merged(&dir);
    let golden = fixtures().join("gguf-golden/imatrix");
    let digests: BTreeMap<String, String> =
        serde_json::from_slice(&std::fs::read(golden.join("sha256.json")).unwrap()).unwrap();
    for format in ["gguf", "dat"] {
        let imatrix = golden.join(format!("kjv.imatrix.{format}"));
        for (name, _, quantization) in &ALL[2..] {
            let out = home.path().join(format!("{name}-{format}.gguf"));
            let options =
                GgufOptions { imatrix: Some(imatrix.clone()), measure: true, ..GgufOptions::default() };
            let plan = Gguf::of(&dir, &out).quantization(*quantization).options(options).plan().unwrap();
            plan.run(&()).unwrap();
            let bytes = std::fs::read(&out).unwrap();
            let data = &bytes[bytes.len() - plan.work_bytes() as usize..];
            assert_eq!(Digest::of(data).to_string(), digests[&format!("{name}-{format}")], "{name} {format}");
            // As llama-quantize has it: all of the model's matrices but the token embedding.
            let keys: Vec<_> = plan.metadata().iter().filter(|(key, _)| key.contains("imatrix")).collect();
            assert_eq!(keys[0].0, "quantize.imatrix.file");
            assert!(keys.iter().any(|(key, value)| {
                *key == "quantize.imatrix.entries_count" && **value == GgufValue::U32(21)
            }));
            assert!((0..plan.tensors().len()).any(|tensor| plan.quality(tensor).is_some()));
        }
    }
    // Another model's is refused before a byte is written.
    let wrong = home.path().join("wrong.dat");
    let mut bytes = 1u32.to_le_bytes().to_vec();
    bytes.extend((b"blk.0.attn_q.weight".len() as u32).to_le_bytes());
    bytes.extend(b"blk.0.attn_q.weight");
    bytes.extend([1u32, 3].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend([1f32; 3].iter().flat_map(|x| x.to_le_bytes()));
    std::fs::write(&wrong, bytes).unwrap();
    let options = GgufOptions { imatrix: Some(wrong), ..GgufOptions::default() };
    let gguf = Gguf::of(&dir, home.path().join("no.gguf")).quantization(Quantization::Q4KM).options(options);
    let error = gguf.plan().err().unwrap().to_string();
    assert!(error.contains("blk.0.attn_q.weight") && error.contains("another model's"), "{error}");
    assert!(!home.path().join("no.gguf").exists());
}

#[test]
fn shards_are_read_in_the_converters_order() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("kjv-lora");
    Merge::new(base(), adapter(), &dir).max_shard_size(700_000).plan().unwrap().run(&()).unwrap();
    let out = home.path().join("out.gguf");
    let plan = Gguf::of(&dir, &out).plan().unwrap();
    // File by file: the last file's tensors come last, whatever they are called.
    let index = std::fs::read(dir.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let mut names: Vec<(&str, &str)> =
        map.iter().map(|(name, file)| (file.as_str().unwrap(), name.as_str())).collect();
    names.sort_unstable();
    let place = |name: &str| plan.tensors().iter().position(|tensor| tensor.name == name);
    let first = names.iter().position(|(_, name)| *name == "lm_head.weight");
    assert_eq!(place("output.weight"), first);
    let embeddings = names.iter().position(|(_, name)| *name == "model.embed_tokens.weight");
    assert_eq!(place("token_embd.weight"), embeddings);
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    struct Stops(AtomicU64);
    impl Observer for Stops {
        fn advanced(&self, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
        fn cancelled(&self) -> bool {
            self.0.load(Ordering::Relaxed) > 100_000
        }
    }
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("model.gguf");
    let plan = Gguf::of(base(), &out).quantization(Quantization::Q8_0).plan().unwrap();
    let error = plan.run(&Stops(AtomicU64::new(0))).unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);

    let counted = Stops(AtomicU64::new(0));
    struct Counts<'a>(&'a Stops);
    impl Observer for Counts<'_> {
        fn advanced(&self, bytes: u64) {
            self.0.advanced(bytes);
        }
    }
    plan.run(&Counts(&counted)).unwrap();
    assert_eq!(counted.0.load(Ordering::Relaxed), plan.work_bytes());
    let again = || Gguf::of(base(), &out).plan();
    assert!(matches!(again(), Err(Error::Checkpoint(CheckpointError::TargetExists { .. }))));
    Gguf::of(base(), &out).overwrite(true).plan().unwrap().run(&()).unwrap();
    std::fs::write(&out, "dear diary").unwrap();
    let diary = Gguf::of(base(), &out).overwrite(true).plan();
    assert!(matches!(diary, Err(Error::Checkpoint(CheckpointError::TargetNotAModel { .. }))));
    assert_eq!(std::fs::read(&out).unwrap(), b"dear diary");
}

#[test]
fn numbers_that_are_none_are_not_quantized() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("model");
    Merge::new(base(), adapter(), &model).plan().unwrap().run(&()).unwrap();
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let tensor = &json["model.layers.0.mlp.down_proj.weight"];
    assert_eq!(tensor["dtype"], "BF16");
    let columns = tensor["shape"][1].as_u64().unwrap() as usize;
    let at = 8 + header + tensor["data_offsets"][0].as_u64().unwrap() as usize + (2 * columns + 5) * 2;
    let out = home.path().join("model.gguf");
    for (bits, why) in [(0x7fc0u16, "row 2 has a NaN"), (0xff80, "row 2 has a -inf"), (0x7f00, "too large")] {
        bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        for quantization in [Quantization::Q8_0, Quantization::Q4KM] {
            let plan = Gguf::of(&model, &out).quantization(quantization).plan().unwrap();
            let error = plan.run(&()).unwrap_err().to_string();
            assert!(error.contains("blk.0.ffn_down.weight") && error.contains(why), "{error}");
            assert!(!out.exists());
        }
        // As the converter does, which copies what there is.
        Gguf::of(&model, &out).plan().unwrap().run(&()).unwrap();
        std::fs::remove_file(&out).unwrap();
    }
}

#[test]
fn a_complete_models_file_is_made_once() {
    let home = tempfile::tempdir().unwrap();
    let tenon = tenon::Tenon::open(home.path()).unwrap();
    let (base, _) = tenon.base_at(&base()).unwrap();
    let (customized, _) = tenon.customized_at(&adapter(), &base).unwrap();
    let saved = tenon.run_saving(tenon.queue(customized.name.as_str()).unwrap(), &()).unwrap();
    let name = saved.model.name.as_str();
    let plan = |quantization| tenon.plan_gguf_artifact(name, quantization, &GgufOptions::default()).unwrap();
    let make = |quantization| plan(quantization).make(&()).unwrap();
    let bytes = |quantization| plan(quantization).work_bytes();
    assert!(bytes(Quantization::Q4KM) > 1_000_000);
    let first = make(Quantization::Q4KM);
    assert_eq!(tenon::Digest::of(&std::fs::read(&first.path).unwrap()), first.digest);
    assert!(!first.reused && first.path.starts_with(home.path().join("artifacts")));
    assert_eq!(bytes(Quantization::Q4KM), 0);
    let second = make(Quantization::Q4KM);
    assert_eq!((second.reused, second.digest, &second.path), (true, first.digest, &first.path));
    assert_ne!(make(Quantization::Q8_0).digest, first.digest);
    // While it is in use the model stays.
    assert!(tenon.delete(name).is_err());

    // A file that somebody wrote to is made anew.
    let mut damaged = std::fs::read(&first.path).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&first.path, damaged).unwrap();
    let third = make(Quantization::Q4KM);
    assert_eq!((third.reused, third.digest), (false, first.digest));
    assert_eq!(tenon::Digest::of(&std::fs::read(&third.path).unwrap()), first.digest);
    let path = third.path.clone();
    drop((first, second, third));
    tenon.delete(name).unwrap();
    assert!(!path.exists());
}
