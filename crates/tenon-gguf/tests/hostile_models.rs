//! A model that is wrong somewhere is converted or refused: no panic, and a refusal says what is wrong.
//!
//! The goldens' models, without their weights: numbers of `config.json`, tensors' shapes and the
//! tokenizer's files are changed one by one.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value as Json, json};
use tenon_checkpoint::{Checkpoint, WriteOptions, write_shards};
use tenon_gguf::{Conversion, ConversionOptions, ModelFiles, ModelInput, Quantization};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

#[derive(serde::Deserialize, Clone)]
struct Model {
    config: Json,
    files: BTreeMap<String, Json>,
    by_hand: Option<String>,
    /// Name, type, shape, and for some what they hold.
    tensors: Vec<Vec<Json>>,
}

fn models() -> Vec<(String, Model)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(fixtures().join("gguf-golden/arch"))
        .unwrap()
        .map(|it| it.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
    paths.sort();
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_string();
    paths
        .iter()
        .map(|path| (name(path), serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()))
        .collect()
}

fn model(name: &str) -> Model {
    models().into_iter().find(|(known, _)| known == name).unwrap().1
}

impl Model {
    /// A file's bytes.
    fn file(&self, name: &str) -> Vec<u8> {
        let content = &self.files[name];
        let from = |field: &str| fixtures().join(content[field].as_str().unwrap());
        if content["copy"].is_string() {
            return std::fs::read(from("copy")).unwrap();
        }
        if let Some(text) = content["text"].as_str() {
            return text.into();
        }
        if content["json_of"].is_string() {
            let mut value: Json = serde_json::from_slice(&std::fs::read(from("json_of")).unwrap()).unwrap();
            value.as_object_mut().unwrap().extend(content["with"].as_object().unwrap().clone());
            return value.to_string().into();
        }
        content["json"].to_string().into()
    }

    fn write_files(&self, dir: &Path) {
        for name in self.files.keys() {
            std::fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            std::fs::write(dir.join(name), self.file(name)).unwrap();
        }
    }

    fn write_config(&self, dir: &Path) {
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
    }

    /// Weights that are all zero.
    fn write_tensors(&self, dir: &Path) {
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for tensor in &self.tensors {
            let dtype = tensor[1].as_str().unwrap();
            let bytes = match dtype {
                "F32" | "I32" => 4,
                "F16" | "BF16" => 2,
                "I64" => 8,
                _ => 1,
            };
            let elements: u64 = tensor[2].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
            let offsets = [end, end + elements * bytes];
            end = offsets[1];
            let entry = json!({ "dtype": dtype, "shape": tensor[2], "data_offsets": offsets });
            header.insert(tensor[0].as_str().unwrap().into(), entry);
        }
        let header = Json::Object(header).to_string();
        let path = dir.join("model.safetensors");
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat())
            .unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(8 + header.len() as u64 + end).unwrap();
    }

    fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        self.write_files(dir);
        self.write_config(dir);
        self.write_tensors(dir);
    }

    /// Plans a conversion, and makes it where it can be planned.
    fn convert(&self, dir: &Path, quantization: Quantization) -> Result<(), String> {
        let files = ModelFiles::directory(dir);
        let checkpoint = Arc::new(Checkpoint::open(dir).map_err(|error| error.to_string())?);
        let pre_tokenizer = self.by_hand.clone();
        let options = ConversionOptions { quantization, pre_tokenizer, ..ConversionOptions::default() };
        let input =
            ModelInput::checkpoint(checkpoint, &files, "model".into()).map_err(|error| error.to_string())?;
        let conversion = Conversion::plan(input, &options).map_err(|error| error.to_string())?;
        let out = tempfile::tempdir().unwrap();
        let write = WriteOptions { threads: 1, tile_bytes: 1 << 16, ..WriteOptions::default() };
        let layout = conversion.layout("model.gguf");
        write_shards(&conversion, &layout, out.path(), &write, &[], &[], &())
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    /// The same, where a panic fails with what was changed.
    fn survives(&self, dir: &Path, quantization: Quantization, what: impl Fn() -> String) {
        match catch_unwind(AssertUnwindSafe(|| self.convert(dir, quantization))) {
            Ok(result) => assert_ne!(result, Err(String::new()), "{}", what()),
            Err(_) => panic!("{}", what()),
        }
    }
}

/// Where in a value something can be changed.
fn places(value: &Json, at: &str, found: &mut Vec<String>) {
    let inner: Vec<(String, &Json)> = match value {
        Json::Object(fields) => fields.iter().map(|(key, value)| (key.replace('/', "~1"), value)).collect(),
        Json::Array(list) => list.first().map(|first| ("0".to_string(), first)).into_iter().collect(),
        _ => vec![],
    };
    for (key, value) in inner {
        let at = format!("{at}/{key}");
        places(value, &at, found);
        found.push(at);
    }
}

/// What no model has anywhere.
fn wrong_values() -> Vec<Json> {
    let numbers =
        ["-1", "0", "1", "3", "1000000000", "2147483648", "4294967295", "9223372036854775808", "1e30"];
    let mut values: Vec<Json> = numbers.iter().map(|n| serde_json::from_str(n).unwrap()).collect();
    values.extend([
        json!(0.5),
        json!(null),
        json!("x"),
        json!([]),
        json!([[7]]),
        json!({"a": 1}),
        json!(true),
    ]);
    values
}

#[test]
fn any_value_in_a_configuration_is_no_harm() {
    let values = wrong_values();
    let kinds = [Quantization::NoQuantization, Quantization::Q4_K_M];
    let mut n = 0;
    for (name, model) in models() {
        let home = tempfile::tempdir().unwrap();
        model.write(home.path());
        let mut found = vec![];
        places(&model.config, "", &mut found);
        for place in found {
            n += 5;
            let value = &values[n % values.len()];
            let mut wrong = model.clone();
            *wrong.config.pointer_mut(&place).unwrap() = value.clone();
            wrong.write_config(home.path());
            wrong.survives(home.path(), kinds[n / 16 % 2], || format!("{name}: {place} = {value}"));
        }
    }
    assert!(n > 10_000);
}

#[test]
fn any_shape_of_a_tensor_is_no_harm() {
    let mut n = 0usize;
    for (name, model) in models() {
        let home = tempfile::tempdir().unwrap();
        model.write(home.path());
        for at in (n % 5..model.tensors.len()).step_by(5) {
            n += 1;
            let mut wrong = model.clone();
            let shape = wrong.tensors[at][2].as_array_mut().unwrap();
            match n % 7 {
                0 => shape.clear(),
                1 => shape.iter_mut().for_each(|extent| *extent = json!(0)),
                2 => shape.reverse(),
                3 => shape.insert(0, json!(1)),
                4 => shape.extend([json!(1), json!(1), json!(1), json!(1)]),
                5 => *shape = vec![json!(shape.iter().map(|n| n.as_u64().unwrap()).product::<u64>())],
                _ => {
                    wrong.tensors.remove(at);
                }
            }
            wrong.write_tensors(home.path());
            wrong.survives(home.path(), Quantization::Q8_0, || format!("{name}: tensor {at} {}", n % 7));
        }
    }
    assert!(n > 500);
}

#[test]
fn any_file_of_a_tokenizer_is_no_harm() {
    let values = wrong_values();
    let mut n = 0;
    for (name, model) in models() {
        let home = tempfile::tempdir().unwrap();
        model.write(home.path());
        for file in model.files.keys() {
            let whole = model.file(file);
            let path = home.path().join(file);
            for step in 0..3 {
                n += 7;
                std::fs::write(&path, &whole[..whole.len() * (step + n % 5) / 7]).unwrap();
                model.survives(home.path(), Quantization::NoQuantization, || format!("{name}: {file} cut"));
            }
            if let Ok(value) = serde_json::from_slice::<Json>(&whole) {
                let mut found = vec![];
                places(&value, "", &mut found);
                for place in found.iter().skip(n % 3).step_by(found.len().div_ceil(12).max(1)) {
                    n += 5;
                    let mut wrong = value.clone();
                    *wrong.pointer_mut(place).unwrap() = values[n % values.len()].clone();
                    std::fs::write(&path, wrong.to_string()).unwrap();
                    model.survives(home.path(), Quantization::NoQuantization, || {
                        format!("{name}: {file} {place} = {}", values[n % values.len()])
                    });
                }
                std::fs::write(&path, "[".repeat(100_000)).unwrap();
                model.survives(home.path(), Quantization::NoQuantization, || format!("{name}: {file} deep"));
            }
            std::fs::write(&path, &whole).unwrap();
        }
    }
    assert!(n > 1000);
}

/// Of a change, what the refusal says.
fn refusal(name: &str, change: impl FnOnce(&mut Model)) -> String {
    let mut model = model(name);
    change(&mut model);
    let home = tempfile::tempdir().unwrap();
    model.write(home.path());
    model.convert(home.path(), Quantization::Q4_K_M).unwrap_err()
}

#[test]
fn each_refusal_says_what_is_wrong() {
    let config = |field: &'static str, value: Json| refusal("tiny-llama3", |it| it.config[field] = value);
    let tokenizer = |place: &'static str, value: Json| {
        refusal("tiny-llama3", |it| {
            let mut whole: Json = serde_json::from_slice(&it.file("tokenizer.json")).unwrap();
            *whole.pointer_mut(place).unwrap() = value;
            it.files.insert("tokenizer.json".into(), json!({ "json": whole }));
        })
    };
    let cases = [
        (config("num_hidden_layers", json!(1_000_000_000)), "num_hidden_layers is 1000000000"),
        (config("num_hidden_layers", json!(-2)), "num_hidden_layers is -2"),
        (config("num_attention_heads", json!(1.5)), "num_attention_heads is 1.5"),
        (config("num_attention_heads", json!(7)), "self_attn.q_proj"),
        (config("hidden_size", json!(9_007_199_254_740_993_u64)), "hidden_size is 9007199254740993"),
        (config("vocab_size", json!(3)), "tokenizer.json: token 304 is beyond the vocabulary of 3"),
        (config("vocab_size", json!(1_000_000_000)), "vocab_size is 1000000000"),
        (config("architectures", json!([])), "architectures"),
        (config("architectures", json!(["NoSuchModel"])), "NoSuchModel"),
        (
            refusal("tiny-mixtral-8x", |it| it.config["num_experts_per_tok"] = json!(9)),
            "num_experts_per_tok is 9",
        ),
        (refusal("tiny-mixtral-8x", |it| it.config["num_local_experts"] = json!(1_000_000)), "expert"),
        (
            refusal("tiny-llama3", |it| {
                it.tensors.push(vec![json!("model.what.weight"), json!("F32"), json!([3])])
            }),
            "model.what.weight",
        ),
        (refusal("tiny-llama3", |it| it.files = BTreeMap::new()), "tokenizer"),
        (tokenizer("/model/vocab", json!([1, 2])), "tokenizer.json"),
        (tokenizer("/model/vocab", json!({ "a": 1_000_000_000 })), "tokenizer.json"),
        (tokenizer("/model/merges", json!([["a", "b", "c"]])), "tokenizer.json"),
        (
            tokenizer("/added_tokens", json!([{ "content": "x" }])),
            "tokenizer.json: an added token has no number",
        ),
    ];
    for (found, expected) in cases {
        assert!(found.contains(expected), "{found:?} does not say {expected:?}");
    }
}
