//! The merged fixture, run with candle, says what PEFT's merge says; the base alone does not.
#![allow(clippy::unwrap_used)] // a test file

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use serde_json::Value;
use tenon::Merge;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama").join(name)
}

/// The model of a directory, as a greedy function from token to token.
struct Speaker {
    model: Llama,
    config: candle_transformers::models::llama::Config,
}

impl Speaker {
    fn load(dir: &Path) -> Self {
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        // candle reads the spelling of transformers v4.
        config["rope_theta"] = config["rope_parameters"]["rope_theta"].clone();
        let config: LlamaConfig = serde_json::from_value(config).unwrap();
        let config = config.into_config(false);
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        files.sort();
        // SAFETY: nothing writes to the fixture or to the merged model while the test reads them.
        let weights =
            unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, &Device::Cpu).unwrap() };
        Self { model: Llama::load(weights, &config).unwrap(), config }
    }

    fn continue_from(&self, prompt: &[u32], at_most: usize) -> Vec<u32> {
        let mut cache = Cache::new(true, DType::F32, &self.config, &Device::Cpu).unwrap();
        let mut said = vec![];
        let (mut input, mut position) = (prompt.to_vec(), 0);
        while said.len() < at_most {
            let tokens = Tensor::new(input.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let logits = self.model.forward(&tokens, position, &mut cache).unwrap();
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
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn merged_adapters_give_the_expected_continuations_and_the_base_does_not() {
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap();
    let prompts = expected["prompts"].as_object().unwrap();
    assert!(!prompts.is_empty());
    let home = tempfile::tempdir().unwrap();
    let base = Speaker::load(&fixture("base"));
    for adapter in ["lora", "dora"] {
        let out = home.path().join(adapter);
        let plan = Merge::new(fixture("base"), fixture(&format!("adapter-{adapter}")), &out).plan().unwrap();
        plan.run(&()).unwrap();
        let merged = Speaker::load(&out);
        for (prompt, expected) in prompts {
            let input = ids(&expected["input_ids"]);
            let wanted = ids(&expected[adapter]["ids"]);
            assert_eq!(merged.continue_from(&input, wanted.len()), wanted, "{adapter}: {prompt}");
            assert_ne!(base.continue_from(&input, wanted.len()), wanted, "the base alone: {prompt}");
        }
    }
}
