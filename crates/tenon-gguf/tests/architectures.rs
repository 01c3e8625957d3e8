//! A tiny model of each architecture becomes, byte for byte, what llama.cpp's tools make of it.
//!
//! `fixtures/make_gguf_goldens.py` made the goldens. They hold no weights:
//! those follow from the tensors' names.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value as Json, json};
use tenon_checkpoint::{Checkpoint, Digest, WriteOptions, write_shards};
use tenon_gguf::{
    Conversion, ConversionOptions, FileType, GgufFile, ModelFiles, ModelInput, Quantization, Rules,
    TensorType, Value,
};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

#[derive(serde::Deserialize)]
struct Golden {
    config: Json,
    files: BTreeMap<String, Json>,
    by_hand: Option<String>,
    tensors: Vec<Stored>,
    sha256: BTreeMap<String, String>,
    keys: Vec<(String, String, Json)>,
    gguf: Vec<(String, String, Vec<u64>, String)>,
    types: BTreeMap<String, BTreeMap<String, String>>,
}

/// A tensor of the model: name, type, shape, and what it holds where that does not follow from its name.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Stored {
    Made(String, String, Vec<u64>),
    Given(String, String, Vec<u64>, Vec<i64>),
}

/// 64 bits each that follow from a tensor's name: SplitMix64, seeded by FNV-1a.
fn words(name: &str, count: u64) -> impl Iterator<Item = u64> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    (1..=count).map(move |i| {
        let mut z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    })
}

/// Numbers between -1/4 and 1/4.
fn numbers(name: &str, count: u64) -> impl Iterator<Item = f32> {
    words(name, count).map(|z| ((z >> 40) as i64 - (1 << 23)) as f32 / (1 << 25) as f32)
}

/// Bytes of a tensor that follow from its name.
fn bytes(name: &str, dtype: &str, shape: &[u64]) -> Vec<u8> {
    let count = shape.iter().product();
    let (numbers, words) = (numbers(name, count), words(name, count));
    match dtype {
        "F32" => numbers.flat_map(f32::to_le_bytes).collect(),
        "F16" => numbers.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        "BF16" => numbers.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        "I64" => numbers.flat_map(|x| (x as i64).to_le_bytes()).collect(),
        "F8_E4M3" => words.map(|z| (z >> 56) as u8 & 0xbf).collect(),
        "U8" if name.ends_with("_scales") => words.map(|z| (z >> 56) as u8 % 16 + 112).collect(),
        "U8" | "I8" => words.map(|z| (z >> 56) as u8).collect(),
        "I32" => {
            let mask = if name.ends_with("qzeros") { 0x7777_7777 } else { u32::MAX };
            words.flat_map(|z| ((z >> 32) as u32 & mask).to_le_bytes()).collect()
        }
        other => panic!("{other}"),
    }
}

fn write_model(golden: &Golden, dir: &Path) {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = vec![];
    for tensor in &golden.tensors {
        let begin = data.len();
        let (name, dtype, shape) = match tensor {
            Stored::Made(name, dtype, shape) => {
                data.extend(bytes(name, dtype, shape));
                (name, dtype, shape)
            }
            Stored::Given(name, dtype, shape, numbers) => {
                let bytes = dtype[1..].parse::<usize>().unwrap() / 8;
                data.extend(numbers.iter().flat_map(|n| n.to_le_bytes().into_iter().take(bytes)));
                (name, dtype, shape)
            }
        };
        header.insert(
            name.clone(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] }),
        );
    }
    let header = Json::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    std::fs::write(dir.join("config.json"), golden.config.to_string()).unwrap();
    for (name, content) in &golden.files {
        let from = |field: &str| fixtures().join(content[field].as_str().unwrap());
        let bytes = if content["copy"].is_string() {
            std::fs::read(from("copy")).unwrap()
        } else if let Some(text) = content["text"].as_str() {
            text.into()
        } else if content["json_of"].is_string() {
            let mut value: Json = serde_json::from_slice(&std::fs::read(from("json_of")).unwrap()).unwrap();
            value.as_object_mut().unwrap().extend(content["with"].as_object().unwrap().clone());
            value.to_string().into()
        } else {
            content["json"].to_string().into()
        };
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// What is different, in words; nothing if the file is the same.
fn differences(golden: &Golden, quantization: Option<&str>, file: &GgufFile) -> Vec<String> {
    let mut found = vec![];
    let mut keys: Vec<_> = file.metadata.iter().collect();
    if quantization.is_none() {
        for (n, (key, kind, value)) in golden.keys.iter().enumerate() {
            let at = keys.iter().position(|(known, _)| known == key);
            let Some(at) = at else {
                found.push(format!("no {key} = {value}"));
                continue;
            };
            if at != n && found.is_empty() {
                found.push(format!("{key} is key {at}, should be {n}"));
            }
            let ours = keys[at].1;
            let same = match ours {
                _ if kind.starts_with("ARRAY") => continue,
                Value::String(text) if value.as_str() != Some(text) => {
                    let list = serde_json::to_string(text).unwrap();
                    Digest::of(list.as_bytes()).to_string().starts_with(value.as_str().unwrap_or("-"))
                }
                ours => {
                    ours.to_json(0) == *value
                        || ours.to_json(0).as_f64().is_some_and(|n| Some(n) == value.as_f64())
                }
            };
            if !same {
                found.push(format!("{key} is {ours}, should be {kind} {value}"));
            }
        }
        keys.retain(|(key, _)| !golden.keys.iter().any(|(known, ..)| known == key));
        found.extend(keys.iter().map(|(key, value)| format!("{key} = {value} is too many")));
        let ours: Vec<&str> = file.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let theirs: Vec<&str> = golden.gguf.iter().map(|tensor| tensor.0.as_str()).collect();
        if ours != theirs {
            let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            found.push(format!("tensors differ from number {at:?} on: {ours:?}, should be {theirs:?}"));
        }
    }
    for (n, tensor) in file.tensors.iter().enumerate() {
        let name = &tensor.name;
        let Some((_, kind, shape, sha)) = golden.gguf.iter().find(|(known, ..)| known == name) else {
            continue;
        };
        let kind = quantization.map_or(kind, |quantization| &golden.types[quantization][name]);
        let same_shape = tensor.shape == *shape || quantization.is_some();
        if tensor.ggml_type.name() != kind || !same_shape {
            found.push(format!(
                "{name} is {} {:?}, should be {kind} {shape:?}",
                tensor.ggml_type, tensor.shape
            ));
        } else if quantization.is_none() {
            let mut bytes = vec![0; tensor.bytes() as usize];
            file.read_at(n, 0, &mut bytes).unwrap();
            if !Digest::of(&bytes).to_string().starts_with(sha.as_str()) {
                found.push(format!("{name} has other numbers"));
            }
        }
    }
    if found.is_empty() {
        found.push("values of an array, or quantized numbers".into());
    }
    found
}

fn quantization(label: &str) -> Quantization {
    match label {
        "Q8_0" => Quantization::Q8_0,
        "Q4_K_M" => Quantization::Q4_K_M,
        "Q4_K_S" => Quantization::Q4_K_S,
        _ => Quantization::NoQuantization,
    }
}

fn check(name: &str, golden: &Golden) -> Vec<String> {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(name);
    std::fs::create_dir(&dir).unwrap();
    write_model(golden, &dir);
    let checkpoint = Arc::new(Checkpoint::open(&dir).unwrap());
    let files = ModelFiles::directory(&dir);
    let mut found = vec![];
    for (label, expected) in &golden.sha256 {
        let file_type = match label.as_str() {
            "f32" => FileType::F32,
            "f16" => FileType::F16,
            "bf16" => FileType::Bf16,
            _ => FileType::Auto,
        };
        let quantization = quantization(label);
        let options = ConversionOptions {
            file_type,
            quantization,
            pre_tokenizer: golden.by_hand.clone(),
            ..ConversionOptions::default()
        };
        let input = ModelInput::checkpoint(checkpoint.clone(), &files, name.into()).unwrap();
        let conversion = match Conversion::plan(input, &options) {
            Ok(conversion) => conversion,
            Err(error) => return vec![error.to_string()],
        };
        let out = format!("{label}.gguf");
        // Small tiles, so that tensors are cut.
        let write = WriteOptions { threads: 2, tile_bytes: 4096, ..WriteOptions::default() };
        let layout = conversion.layout(&out);
        let (written, _) = write_shards(&conversion, &layout, home.path(), &write, &[], &[], &()).unwrap();
        if written[0].digest.to_string() != *expected {
            let file = GgufFile::open(&home.path().join(&out)).unwrap();
            let quantized = golden.types.contains_key(label).then_some(label.as_str());
            let what = if label == "auto" || quantized.is_some() {
                differences(golden, quantized, &file)
            } else {
                vec![]
            };
            found.push(format!("{label}: {}", what.join("\n    ")));
        }
    }
    found
}

#[test]
fn tiny_models_have_the_bytes_of_llama_cpp() {
    let only = std::env::var("TENON_GOLDEN").ok();
    let mut wrong = vec![];
    let mut seen = 0;
    let mut paths: Vec<_> =
        std::fs::read_dir(fixtures().join("gguf-golden/arch")).unwrap().flatten().collect();
    paths.sort_by_key(std::fs::DirEntry::path);
    for path in paths
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
    {
        let name = path.file_stem().unwrap().to_str().unwrap();
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let golden: Golden = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        seen += 1;
        let found = check(name, &golden);
        if !found.is_empty() {
            wrong.push(format!("{name}\n  {}", found.join("\n  ")));
        }
    }
    assert!(seen > 0);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[derive(serde::Deserialize)]
struct Chosen {
    model: String,
    quantization: String,
    ollama: bool,
    chosen: Vec<String>,
    sha256: String,
}

/// `fixtures/make_gguf_tensor_types.py` made the goldens.
#[test]
fn types_chosen_before_the_rules_give_the_bytes_of_llama_quantize() {
    let read = |name: &str| std::fs::read(fixtures().join("gguf-golden").join(name)).unwrap();
    let all: Vec<Chosen> = serde_json::from_slice(&read("tensor-types.json")).unwrap();
    assert!(all.iter().any(|one| one.ollama) && all.iter().any(|one| !one.ollama));
    for Chosen { model, quantization: label, ollama, chosen, sha256 } in all {
        let golden: Golden = serde_json::from_slice(&read(&format!("arch/{model}.json"))).unwrap();
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join(&model);
        std::fs::create_dir(&dir).unwrap();
        write_model(&golden, &dir);
        let files = ModelFiles::directory(&dir);
        let checkpoint = Arc::new(Checkpoint::open(&dir).unwrap());
        let digest = |rules, tensor_types| {
            let options = ConversionOptions {
                quantization: quantization(&label),
                rules,
                tensor_types,
                pre_tokenizer: golden.by_hand.clone(),
                ..ConversionOptions::default()
            };
            let input = ModelInput::checkpoint(checkpoint.clone(), &files, model.clone()).unwrap();
            let conversion = Conversion::plan(input, &options).unwrap();
            let layout = conversion.layout("model.gguf");
            let write = WriteOptions { threads: 2, tile_bytes: 4096, ..WriteOptions::default() };
            let written = write_shards(&conversion, &layout, home.path(), &write, &[], &[], &()).unwrap().0;
            std::fs::remove_file(home.path().join("model.gguf")).unwrap();
            written[0].digest.to_string()
        };
        let by_hand: Vec<TensorType> = chosen.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(digest(Rules::LlamaQuantize, by_hand), sha256, "{model} {label} {chosen:?}");
        if ollama {
            assert_eq!(digest(Rules::Ollama, vec![]), sha256, "{model} {label} as Ollama");
            assert_ne!(golden.sha256[&label], sha256, "{model}: there is nothing to see");
        }
    }
}
