//! Models in formats that llama.cpp's converter refuses become the files that the dequantized models become.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value as Json, json};
use tenon_checkpoint::{Checkpoint, Digest, TensorSource, WriteOptions, write_shards};
use tenon_dequant::Opened;
use tenon_gguf::{Conversion, ConversionOptions, FileType, ModelFiles, ModelInput, Quantization};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// A directory named `model` with the fixture's files and a tokenizer.
fn model(home: &Path) -> PathBuf {
    let dir = home.join("model");
    std::fs::create_dir(&dir).unwrap();
    let base = fixtures().join("quantized-bases/llama-nf4/base");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(base.join(file), dir.join(file)).unwrap();
    }
    let tokenizer = fixtures().join("kjv-llama/base/tokenizer.model");
    std::fs::copy(tokenizer, dir.join("tokenizer.model")).unwrap();
    dir
}

fn config(dir: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// The same model, its weights dequantized into the file.
fn dequantize(dir: &Path) {
    let checkpoint = Arc::new(Checkpoint::open(dir).unwrap());
    let Opened::Quantized(plain) = tenon_dequant::open(checkpoint, &config(dir)).unwrap() else {
        panic!("it is quantized")
    };
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for (tensor, info) in plain.tensors().iter().enumerate() {
        let begin = data.len();
        data.resize(begin + info.bytes() as usize, 0);
        plain.read_rows(tensor, 0..info.rows(), &mut data[begin..]).unwrap();
        let offsets = [begin, data.len()];
        header.insert(
            info.name.clone(),
            json!({ "dtype": info.dtype.name(), "shape": info.shape, "data_offsets": offsets }),
        );
    }
    let header = Json::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    std::fs::write(dir.join("config.json"), plain.config().to_string()).unwrap();
}

fn digest(dir: &Path, file_type: FileType, quantization: Quantization) -> Digest {
    let files = ModelFiles::directory(dir);
    let checkpoint = Arc::new(Checkpoint::open(dir).unwrap());
    let input = ModelInput::checkpoint(checkpoint, &files, "model".into()).unwrap();
    let options = ConversionOptions { file_type, quantization, ..ConversionOptions::default() };
    let conversion = Conversion::plan(input, &options).unwrap();
    let layout = conversion.layout("model.gguf");
    let write = WriteOptions { threads: 2, tile_bytes: 4096, ..WriteOptions::default() };
    let home = tempfile::tempdir().unwrap();
    write_shards(&conversion, &layout, home.path(), &write, &[], &[], &()).unwrap().0[0].digest
}

#[test]
fn four_bits_of_bitsandbytes() {
    let home = tempfile::tempdir().unwrap();
    let dir = model(home.path());
    let all = [
        (FileType::F32, Quantization::NoQuantization),
        (FileType::Bf16, Quantization::NoQuantization),
        (FileType::F16, Quantization::Q8_0),
        (FileType::Bf16, Quantization::Q4_K_M),
    ];
    let stored = all.map(|(file_type, quantization)| digest(&dir, file_type, quantization));
    dequantize(&dir);
    assert_eq!(stored, all.map(|(file_type, quantization)| digest(&dir, file_type, quantization)));
}

#[test]
fn a_format_that_cannot_be_read_back_is_named() {
    let home = tempfile::tempdir().unwrap();
    let dir = model(home.path());
    let mut config = config(&dir);
    config["quantization_config"] = json!({ "quant_method": "hqq" });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&dir).unwrap());
    let error =
        ModelInput::checkpoint(checkpoint, &ModelFiles::directory(&dir), "model".into()).err().unwrap();
    assert!(error.to_string().starts_with("the model is stored quantized as hqq"), "{error}");
}
