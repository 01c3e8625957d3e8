//! What `tenon merge --config` prints and leaves.
#![allow(clippy::unwrap_used)] // a test file

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/blend/models").canonicalize().unwrap()
}

/// Runs beside a configuration.
fn merge(dir: &Path, config: &str, more: &[&str]) -> Output {
    std::fs::write(dir.join("merge.yml"), config.replace("MODELS", models().to_str().unwrap())).unwrap();
    Command::new(env!("CARGO_BIN_EXE_tenon"))
        .args(["merge", "--config", "merge.yml", "--out", "out"])
        .args(more)
        .env("COLUMNS", "100")
        .current_dir(dir)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let bytes = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(bytes).unwrap()
}

const TIES: &str = "merge_method: ties\nbase_model: MODELS/a\nmodels:\n  - model: MODELS/b\n  - model: MODELS/c\nparameters: {weight: 0.5, density: 0.4, t: 1}\n";

fn filters(dir: &Path) -> Vec<(String, String)> {
    [
        (r"\d+\.\d+ s \([^)]*/s\)", "[time] ([rate])"),
        (r", [\d.]+ [KMGT]?B free", ", [free] free"),
        (r"[\d.]+ MB of memory", "[memory]"),
        (models().to_str().unwrap(), "[models]"),
        (dir.to_str().unwrap(), "[dir]"),
    ]
    .map(|(a, b)| (a.to_string(), b.to_string()))
    .to_vec()
}

fn snapshot(name: &str, dir: &Path, text: &str) {
    let filters = filters(dir);
    let filters = filters.iter().map(|(a, b)| (a.as_str(), b.as_str()));
    insta::with_settings!({filters => filters}, { insta::assert_snapshot!(name, text) });
}

#[test]
fn a_merge_of_whole_models_reads_well_and_leaves_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let planned = merge(dir.path(), TIES, &["--dry-run"]);
    assert!(planned.status.success() && !dir.path().join("out").exists());
    snapshot("blend_plan", dir.path(), &text(&planned));
    let done = merge(dir.path(), TIES, &[]);
    assert!(done.status.success(), "{}", text(&done));
    snapshot("blend_summary", dir.path(), &text(&done));
    let mut files: Vec<_> = std::fs::read_dir(dir.path().join("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["config.json", "mergekit_config.yml", "model.safetensors", "tenon.json"]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("out/tenon.json")).unwrap()).unwrap();
    assert_eq!(manifest["models"].as_array().unwrap().len(), 3);
    // A second time it is taken, and stays as it is.
    let again = merge(dir.path(), TIES, &[]);
    assert_eq!(again.status.code(), Some(5), "{}", text(&again));
}

/// The tensors of a model, by name: type and bytes.
fn tensors(dir: &Path) -> BTreeMap<String, (safetensors::Dtype, Vec<u8>)> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_string(), (view.dtype(), view.data().to_vec()))).collect()
}

/// Passes all layers of one model through.
fn pass_through(dir: &Path, model: &str, base: &Path) -> String {
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
    let layers = &config["num_hidden_layers"];
    let config = format!(
        "merge_method: passthrough\nslices: [{{sources: [{{model: \"{model}\", layer_range: [0, {layers}]}}]}}]\n"
    );
    let done = merge(dir, &config, &[]);
    assert!(done.status.success(), "{}", text(&done));
    text(&done)
}

/// A model with an adapter on it is what the adapter merged into it would be, whatever both are.
#[test]
fn an_adapter_may_stand_behind_a_model() {
    let fixtures = models().join("../..").canonicalize().unwrap();
    for (base, adapter) in [
        ("kjv-llama/base", "kjv-llama/adapter-lora"),
        ("quantized-bases/llama-nf4/base", "quantized-bases/llama-nf4/adapter"),
        ("other-adapters/base", "other-adapters/mlx-dora"),
        ("other-adapters/base", "other-adapters/kohya"),
        ("peft-combine/base", "peft-stack/road"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (base, adapter) = (fixtures.join(base), fixtures.join(adapter));
        pass_through(dir.path(), &format!("{}+{}", base.display(), adapter.display()), &base);
        let merged = Command::new(env!("CARGO_BIN_EXE_tenon"))
            .args(["merge", "--out", "whole", "--base"])
            .arg(&base)
            .arg("--adapter")
            .arg(&adapter)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(merged.status.success(), "{}", text(&merged));
        assert!(
            tensors(&dir.path().join("out")) == tensors(&dir.path().join("whole")),
            "{}",
            adapter.display()
        );
    }
}

#[test]
fn a_model_stored_quantized_is_dequantized_on_the_way() {
    let quantized = models().join("../../quantized-bases/llama-nf4").canonicalize().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let said = pass_through(dir.path(), quantized.join("base").to_str().unwrap(), &quantized.join("base"));
    assert!(said.contains("stored quantized and was dequantized"), "{said}");
    let found = tensors(&dir.path().join("out"));
    let bytes = std::fs::read(quantized.join("merged.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(found.len(), expected.len());
    let mut same = 0;
    for (name, (dtype, found)) in &found {
        assert_eq!(*dtype, safetensors::Dtype::BF16, "{name}");
        // The fixture has an adapter merged into some of them.
        if !["q_proj", "v_proj", "down_proj"].iter().any(|module| name.contains(module)) {
            let wide = expected.tensor(name).unwrap();
            let wide = wide.data().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b));
            // To the nearest bfloat16, ties to even.
            let round = |bits: u32| ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16;
            let narrow: Vec<u8> = wide.flat_map(|bits| round(bits).to_le_bytes()).collect();
            assert!(*found == narrow, "{name}");
            same += 1;
        }
    }
    assert!(same > 8);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("out/config.json")).unwrap()).unwrap();
    assert!(config.get("quantization_config").is_none());
}

/// Two of three models have one template; of the donor's own nothing is left.
#[test]
fn the_chat_template_of_most_models_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    for (name, template) in [("a", "{{ one }}"), ("b", "{{ two }}"), ("c", "{{ two }}\\n")] {
        let model = dir.path().join(name);
        std::fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(models().join("a").join(file), model.join(file)).unwrap();
        }
        let config = format!(r#"{{"chat_template": "{template}", "model_max_length": 5}}"#);
        std::fs::write(model.join("tokenizer_config.json"), config).unwrap();
    }
    let config = "merge_method: linear\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {weight: 1}\nchat_template: auto\n";
    let done = merge(dir.path(), config, &["--hash-inputs"]);
    assert!(done.status.success(), "{}", text(&done));
    let read = |name: &str| std::fs::read_to_string(dir.path().join("out").join(name)).unwrap();
    assert_eq!(read("chat_template.jinja"), "{{ two }}");
    let config: serde_json::Value = serde_json::from_str(&read("tokenizer_config.json")).unwrap();
    assert_eq!(config, serde_json::json!({ "model_max_length": 5 }));
    let manifest: serde_json::Value = serde_json::from_str(&read("tenon.json")).unwrap();
    assert_eq!(manifest["models"][0]["files"][0]["sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    for (config, code, expected) in [
        ("merge_method: ties\nmodels: [{model: a}]\n", 3, "models: method ties needs base_model"),
        ("merge_method: linear\nmodels: [{model: nowhere}]\nparameters: {weight: 1}\n", 3, "nowhere"),
        (
            "merge_method: linear\nmodels: [{model: MODELS/a}, {model: MODELS/kjv}]\nparameters: {weight: 1}\n",
            3,
            "kjv",
        ),
    ] {
        let failed = merge(dir.path(), config, &[]);
        assert_eq!(failed.status.code(), Some(code), "{}", text(&failed));
        assert!(text(&failed).contains(expected), "{}", text(&failed));
        assert!(!dir.path().join("out").exists());
    }
    let usage = Command::new(env!("CARGO_BIN_EXE_tenon")).args(["merge", "--out", "x"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}
