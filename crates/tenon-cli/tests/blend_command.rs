//! What `tenon merge --config` prints and leaves.
#![allow(clippy::unwrap_used)] // a test file

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

/// A model with an adapter on it is what the adapter merged into it would be.
#[test]
fn an_adapter_may_stand_behind_a_model() {
    let fixtures = models().join("../../kjv-llama").canonicalize().unwrap();
    let (base, adapter) = (fixtures.join("base"), fixtures.join("adapter-lora"));
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "merge_method: passthrough\nslices: [{{sources: [{{model: {}+{}, layer_range: [0, 3]}}]}}]\n",
        base.display(),
        adapter.display()
    );
    let layers: serde_json::Value =
        serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
    let config = config.replace("[0, 3]", &format!("[0, {}]", layers["num_hidden_layers"]));
    let done = merge(dir.path(), &config, &[]);
    assert!(done.status.success(), "{}", text(&done));
    let merged = Command::new(env!("CARGO_BIN_EXE_tenon"))
        .args(["merge", "--out", "whole", "--base"])
        .arg(&base)
        .arg("--adapter")
        .arg(&adapter)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(merged.status.success());
    let tensors = |name: &str| {
        let bytes = std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<(String, Vec<u8>)> =
            file.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect();
        all.sort();
        all
    };
    assert!(tensors("out") == tensors("whole"));
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
