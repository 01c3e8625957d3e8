//! LoRA adapters that llama.cpp converted to GGUF: merged as PEFT merges what they were made from, or refused.
#![allow(clippy::unwrap_used)] // a test file

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tenon::{GgufFile, Merge, OutputDtype, gguf_adapter, inspect};
use tenon_checkpoint::{Checkpoint, TensorSource};

#[derive(Deserialize)]
struct Model {
    config: Value,
    tensors: BTreeMap<String, Vec<u64>>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf-adapters").join(name)
}

/// Numbers between -1/4 and 1/4 that follow from a tensor's name: SplitMix64, seeded by FNV-1a.
fn numbers(name: &str, count: u64) -> impl Iterator<Item = f32> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    (1..=count).map(move |i| {
        let mut z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 40) as i64 - (1 << 23)) as f32 / (1 << 25) as f32
    })
}

/// Writes the model that an adapter of the fixtures is for.
fn write_base(name: &str, dir: &Path) {
    let text = std::fs::read_to_string(fixture(name).join("model.json")).unwrap();
    let model: Model = serde_json::from_str(&text).unwrap();
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = vec![];
    for (name, shape) in &model.tensors {
        let begin = data.len();
        numbers(name, shape.iter().product()).for_each(|x| data.extend(x.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
    std::fs::write(dir.join("config.json"), model.config.to_string()).unwrap();
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let (tensor, info) = checkpoint.find(name).unwrap_or_else(|| panic!("no {name}"));
    let mut bytes = vec![0; info.bytes() as usize];
    checkpoint.read_rows(tensor, 0..info.rows(), &mut bytes).unwrap();
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Merges, and compares every tensor with what it should be.
fn merges(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (dir.path().join("base"), dir.path().join("out"));
    write_base(name, &base);
    let merge = Merge::new(&base, fixture(name).join("adapter.gguf"), &out).dtype(OutputDtype::F32);
    let plan = merge.plan().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(plan.notes().iter().any(|note| note.contains("GGUF")), "{:?}", plan.notes());
    let merged = plan.run(&()).unwrap();
    assert!(merged.manifest.adapter.files.iter().any(|file| file.name == "adapter.gguf"));
    let (found, base) = (Checkpoint::open(&out).unwrap(), Checkpoint::open(&base).unwrap());
    let changed = Checkpoint::open_file(fixture(name).join("merged.safetensors")).unwrap();
    assert!(!changed.tensors().is_empty());
    for info in found.tensors() {
        let source = if changed.find(&info.name).is_some() { &changed } else { &base };
        let (wanted, found) = (values(source, &info.name), values(&found, &info.name));
        assert_eq!(wanted.len(), found.len());
        let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = wanted.iter().zip(&found).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 2e-6 * largest, "{name}: {}: off by {worst:e} of {largest:e}", info.name);
    }
    assert!(changed.tensors().iter().all(|info| found.find(&info.name).is_some()));
}

#[test]
fn adapters_of_many_architectures_merge_as_peft_merges_what_they_were_made_from() {
    let mut names: Vec<_> = std::fs::read_dir(fixture(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "gpt2")
        .collect();
    names.sort();
    assert!(names.len() >= 18, "{names:?}");
    for name in names {
        merges(&name);
    }
}

/// The values of a file's tensors by name; its scale is multiplied into each `B`.
fn factors(path: &Path) -> BTreeMap<String, (Vec<u64>, Vec<f32>)> {
    let file = GgufFile::open(path).unwrap();
    let alpha = match file.metadata.get("adapter.lora.alpha") {
        Some(tenon::GgufValue::F32(alpha)) => *alpha,
        _ => 0.0,
    };
    let read = |(number, tensor): (usize, &tenon::GgufTensor)| {
        let mut bytes = vec![0; tensor.bytes() as usize];
        file.read_at(number, 0, &mut bytes).unwrap();
        let mut values: Vec<f32> = match tensor.ggml_type.name() {
            "F32" => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            "BF16" => bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16))
                .collect(),
            other => panic!("{other}"),
        };
        if tensor.name.ends_with("lora_b") && alpha != 0.0 {
            let scale = f64::from(alpha) / *tensor.shape.last().unwrap() as f64;
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
        }
        (tensor.name.clone(), (tensor.shape.clone(), values))
    };
    file.tensors.iter().enumerate().map(read).collect()
}

/// Read, written and read again: the names, shapes and numbers that llama.cpp's converter gave.
#[test]
fn an_adapter_is_written_as_llama_cpp_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let (base, out) = (dir.path().join(name), dir.path().join(format!("{name}.gguf")));
        write_base(name, &base);
        gguf_adapter(&base, &fixture(name).join("adapter.gguf"), &out, true, &()).map(|written| {
            assert_eq!(tenon::Digest::of(&std::fs::read(&out).unwrap()), written.digest);
            out
        })
    };
    for name in [
        "cohere",
        "falcon",
        "gemma2",
        "gemma3",
        "gpt-neox",
        "granite",
        "llama-ranks",
        "mistral-bf16",
        "olmo2",
        "phi2",
        "phi3",
        "qwen2",
        "qwen3",
        "stablelm",
        "starcoder2",
    ] {
        let written = factors(&write(name).unwrap_or_else(|error| panic!("{name}: {error}")));
        let golden = factors(&fixture(name).join("adapter.gguf"));
        assert_eq!(written.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, (shape, values)) in &golden {
            assert_eq!(written[tensor].0, *shape, "{name}: {tensor}");
            let off = values.iter().zip(&written[tensor].1).map(|(a, b)| (a - b).abs() / a.abs().max(1e-3));
            let worst = off.fold(0f32, f32::max);
            assert!(worst < 1e-6, "{name}: {tensor}: {worst:e}");
        }
    }
    // Embeddings are looked up and not multiplied by; a head that is one has no adapter of its own.
    for name in ["llama", "llama-tied"] {
        let error = write(name).unwrap_err().to_string();
        assert!(error.contains("token_embd.weight") && error.contains("merge it"), "{error}");
        assert!(!dir.path().join(format!("{name}.gguf")).exists());
    }
}

/// PEFT's own adapter, whose scale is no power of two, rank-stabilised, and with patterns.
#[test]
fn an_adapter_of_pefts_comes_out_as_it_went_in() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama");
    let dir = tempfile::tempdir().unwrap();
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    let weights = "adapter_model.safetensors";
    std::fs::copy(root.join("adapter-lora").join(weights), adapter.join(weights)).unwrap();
    let text = std::fs::read_to_string(root.join("adapter-lora/adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["use_rslora"] = true.into();
    config["lora_alpha"] = 5.into();
    config["alpha_pattern"] = serde_json::json!({ "k_proj": 3 });
    std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let (file, base) = (dir.path().join("a.gguf"), root.join("base"));
    gguf_adapter(&base, &adapter, &file, false, &()).unwrap();
    let merged = |adapter: &Path, name: &str| {
        let out = dir.path().join(name);
        Merge::new(&base, adapter, &out).dtype(OutputDtype::F32).plan().unwrap().run(&()).unwrap();
        Checkpoint::open(&out).unwrap()
    };
    let (ours, through) = (merged(&adapter, "whole"), merged(&file, "through"));
    for info in ours.tensors() {
        let (a, b) = (values(&ours, &info.name), values(&through, &info.name));
        let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 1e-6 * largest, "{}: {worst:e} of {largest:e}", info.name);
    }
    // More than a product.
    let dora = gguf_adapter(&base, &root.join("adapter-dora"), &dir.path().join("d.gguf"), false, &());
    let error = dora.unwrap_err().to_string();
    assert!(error.contains("DoRA") && error.contains("product of two factors"), "{error}");
}

#[test]
fn what_cannot_be_brought_back_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let error = |base: &str, adapter: &Path| {
        let at = dir.path().join(base);
        write_base(base, &at);
        let plan = Merge::new(at, adapter, dir.path().join("out")).plan();
        plan.err().unwrap().to_string()
    };
    let adapter = |name: &str| fixture(name).join("adapter.gguf");
    let turned = error("gpt2", &adapter("gpt2"));
    assert!(turned.contains("turns this weight over"), "{turned}");
    let other = error("llama", &adapter("qwen2"));
    assert!(other.contains("general.architecture is qwen2, expected llama"), "{other}");
    let smaller = error("llama", &adapter("llama-q8_0"));
    assert!(smaller.contains("which do not fit the base's"), "{smaller}");
    // A byte of the file changed, here of a key or a name.
    let bytes = std::fs::read(adapter("llama")).unwrap();
    let changed = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        let path = dir.path().join("changed.gguf");
        std::fs::write(&path, bytes).unwrap();
        error("llama", &path)
    };
    let partner = changed(b"blk.0.attn_q.weight.lora_a", b"blk.0.attn_p.weight.lora_a");
    assert!(partner.contains("lacks its partner"), "{partner}");
    let unknown = changed(b"blk.0.attn_q.weight.lora_a", b"blk.0.attn_q.weight.lora_c");
    assert!(unknown.contains("is neither lora_a, lora_b nor a norm"), "{unknown}");
    let kind = changed(b"\x04\0\0\0\0\0\0\0lora", b"\x04\0\0\0\0\0\0\0ioia");
    assert!(kind.contains("adapter.type is ioia, expected lora"), "{kind}");
    // A model is none.
    let model = changed(b"\x07\0\0\0\0\0\0\0adapter", b"\x07\0\0\0\0\0\0\0adapted");
    assert!(model.contains("a GGUF file of a model"), "{model}");
    for len in [3, 4, 100, bytes.len() - 1] {
        let path = dir.path().join("cut.gguf");
        std::fs::write(&path, &bytes[..len]).unwrap();
        error("llama", &path);
    }
}

#[test]
fn inspect_tells_an_adapter_from_a_model() {
    let it = inspect(&fixture("llama").join("adapter.gguf")).unwrap();
    assert_eq!(
        (it.kind, it.format.as_deref(), it.method.as_deref()),
        ("adapter", Some("GGUF"), Some("LoRA"))
    );
    assert_eq!((it.rank, it.alpha, it.modules), (Some(3), Some(7.0), Some(16)));
    assert!(it.mergeable && it.into.unwrap().contains("llama"));
    assert!(it.targets.contains(&"attn_q".to_string()), "{:?}", it.targets);
}
