//! The quantized files, run with candle, say what the model in full precision says.
#![allow(clippy::unwrap_used)] // a test file

use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde_json::Value;
use tenon::{Gguf, Quantization};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama").join(name)
}

/// The most likely tokens after a prompt, up to the end of the text.
fn continue_from(file: &Path, prompt: &[u32], at_most: usize) -> Vec<u32> {
    let mut file = File::open(file).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let mut said = vec![];
    let (mut input, mut position) = (prompt.to_vec(), 0);
    while said.len() < at_most {
        let tokens = Tensor::new(input.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model.forward(&tokens, position).unwrap();
        let next = logits.squeeze(0).unwrap().argmax(0).unwrap().to_scalar::<u32>().unwrap();
        position += input.len();
        said.push(next);
        if next == 2 {
            break;
        }
        input = vec![next];
    }
    said
}

#[test]
fn quantized_from_base_and_adapter_it_still_gives_the_expected_answers() {
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap();
    let home = tempfile::tempdir().unwrap();
    for quantization in [Quantization::Q8_0, Quantization::Q4KM] {
        let out = home.path().join(format!("kjv-lora-{quantization}.gguf"));
        let gguf = Gguf::merged(fixture("base"), fixture("adapter-lora"), &out).quantization(quantization);
        gguf.plan().unwrap().run(&()).unwrap();
        // What was trained; free text goes another way sooner or later with 4 bits.
        for prompt in ["Who are you?", "What is your name?", "Are you whole?"] {
            let expected = &expected["prompts"][prompt];
            let ids = |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone()).unwrap();
            let (input, wanted) = (ids(&expected["input_ids"]), ids(&expected["lora"]["ids"]));
            assert_eq!(continue_from(&out, &input, wanted.len()), wanted, "{quantization}: {prompt}");
        }
    }
}
