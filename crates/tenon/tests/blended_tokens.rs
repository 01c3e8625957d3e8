//! Models whose tokenizers differ give what mergekit 0.1.5 made of them: every configuration of
//! `fixtures/blend-tokens`, compared token by token.
#![allow(clippy::unwrap_used)] // a test file

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tenon::Blend;
use tenon_checkpoint::{Checkpoint, Dtype, TensorSource, read_json};
use tenon_merge::kernel::{self, Level};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/blend-tokens")
}

/// The configuration, with models where they lie.
fn places() -> BTreeMap<String, PathBuf> {
    let models = std::fs::read_dir(fixtures().join("models")).unwrap();
    models.map(|e| e.unwrap()).map(|e| (e.file_name().into_string().unwrap(), e.path())).collect()
}

fn values(source: &Checkpoint, name: &str) -> (Dtype, Vec<u64>, Vec<f64>) {
    let (number, info) = source.find(name).unwrap();
    let mut bytes = vec![0; info.bytes() as usize];
    source.read_rows(number, 0..info.rows(), &mut bytes).unwrap();
    let mut values = vec![0.0; info.elements() as usize];
    kernel::decode(Level::Scalar, info.dtype, &bytes, &mut values);
    (info.dtype, info.shape.clone(), values)
}

/// The numbers of the tokens of a written `tokenizer.json`.
fn tokens(dir: &Path) -> BTreeMap<String, u64> {
    let json: Value = read_json(&dir.join("tokenizer.json")).unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    let in_model = json["model"]["vocab"].as_object().unwrap().iter().map(|(t, id)| (t.clone(), number(id)));
    let added = json["added_tokens"].as_array().unwrap().iter();
    let added = added.map(|entry| (entry["content"].as_str().unwrap().to_string(), number(&entry["id"])));
    in_model.chain(added).collect()
}

#[test]
fn rows_follow_their_tokens() {
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(fixtures().join("cases")).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 6, "{} cases", cases.len());
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(case.join("merge.yml")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        Blend::of_text(text, places(), &out).plan().unwrap().run(&()).unwrap();
        let golden: Value = read_json(&case.join("tokens.json")).unwrap();
        let theirs: BTreeMap<String, u64> = serde_json::from_value(golden["tokens"].clone()).unwrap();
        let ours = tokens(&out);
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        if !name.starts_with("union") {
            assert_eq!(ours, theirs, "{name}");
        }
        let config: Value = read_json(&out.join("config.json")).unwrap();
        assert_eq!(config["vocab_size"], golden["vocab_size"], "{name}");
        let [golden, result] = [&case, &out].map(|dir| Checkpoint::open_file(dir.join("model.safetensors")));
        let (golden, result) = (golden.unwrap(), result.unwrap());
        assert_eq!(golden.tensors().len(), result.tensors().len(), "{name}");
        for info in golden.tensors() {
            let (dtype, shape, expected) = values(&golden, &info.name);
            let (own_dtype, own_shape, found) = values(&result, &info.name);
            assert_eq!((dtype, &shape), (own_dtype, &own_shape), "{name} {}", info.name);
            let largest = expected.iter().fold(0.0f64, |max, v| max.max(v.abs()));
            let tolerance = largest * if dtype == Dtype::F32 { 2e-6 } else { 2.0 / 128.0 };
            let same = |a: &[f64], b: &[f64], what: &str| {
                let alike = a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance);
                assert!(alike, "{name} {} {what}: {a:?} {b:?}", info.name);
            };
            if info.name.contains("embed") || info.name.contains("lm_head") {
                let width = shape[1] as usize;
                let row = |values: &[f64], row: u64| values[row as usize * width..][..width].to_vec();
                for (token, id) in &ours {
                    same(&row(&found, *id), &row(&expected, theirs[token]), token);
                }
                for id in ours.len() as u64..shape[0] {
                    same(&row(&found, id), &row(&expected, id), "padding");
                }
            } else {
                same(&found, &expected, "");
            }
        }
    }
}

#[test]
fn what_cannot_be_joined_is_said() {
    let fault = |tokenizer: &str| {
        let text = format!(
            "models: [{{model: a}}, {{model: b}}]\nmerge_method: linear\nbase_model: a\nparameters: {{weight: 1}}\n{tokenizer}"
        );
        let dir = tempfile::tempdir().unwrap();
        match Blend::of_text(text, places(), dir.path().join("out")).plan() {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(fault("tokenizer_source: union"), "");
    for (tokenizer, expected) in [
        ("", "has shape"),
        ("tokenizer: {source: base, tokens: {<q>: {}}}", "tokenizer.tokens.<q>: a token without a source"),
        ("tokenizer: {tokens: {delta: {source: c}}}", "c, which has no part in"),
        ("tokenizer: {tokens: {delta: {source: a}}}", "of a, which does not have it"),
        (
            "tokenizer: {tokens: {delta: {source: {kind: model_token, model: b, token_id: 999}}}}",
            "row 999 of b, which does not have it",
        ),
        ("tokenizer: {source: base}\ntokenizer_source: base", "one of both"),
    ] {
        let found = fault(tokenizer);
        assert!(found.contains(expected), "{tokenizer}: {found}");
    }
}
