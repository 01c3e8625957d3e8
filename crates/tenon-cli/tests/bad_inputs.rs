//! Every wrong input gets a clear error and its exit code before any output exists.
#![allow(clippy::unwrap_used)] // a test file

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama").join(name)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

type Edit = fn(&mut Value);

/// Copies of the fixture's base and adapter, to be broken.
struct Case {
    home: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        copy(&fixture("base"), &home.path().join("base"));
        copy(&fixture("adapter-lora"), &home.path().join("adapter"));
        Self { home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.path(file);
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    }

    /// Rewrites a safetensors file with its header edited and its data cut to `data_len` where given.
    fn edit_header(&self, file: &str, edit: impl FnOnce(&mut Value), data_len: Option<usize>) {
        let path = self.path(file);
        let bytes = std::fs::read(&path).unwrap();
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
        edit(&mut header);
        let header = header.to_string().into_bytes();
        let data = &bytes[8 + n..];
        let data = &data[..data_len.unwrap_or(data.len())];
        std::fs::write(path, [&(header.len() as u64).to_le_bytes(), &header[..], data].concat()).unwrap();
    }

    fn run(&self, more: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_tenon"))
            .args(["merge", "--base"])
            .arg(self.path("base"))
            .arg("--adapter")
            .arg(self.path("adapter"))
            .arg("--out")
            .arg(self.path("out"))
            .args(more)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// The merge fails with this code, says all of `parts`, and leaves nothing.
    #[track_caller]
    fn fails(&self, code: i32, parts: &[&str]) {
        let (found, text) = self.run(&[]);
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        assert_eq!(found, code, "{text}");
        assert!(!text.contains("panicked"), "{text}");
        assert_eq!(self.left(), ["adapter", "base"]);
    }

    /// What is in the home, hidden or not.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<_> = std::fs::read_dir(self.home.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        left
    }
}

const WEIGHTS: &str = "adapter/adapter_model.safetensors";
const CONFIG: &str = "adapter/adapter_config.json";
const SHARD: &str = "base/model-00002-of-00003.safetensors";

#[test]
fn the_copy_itself_is_fine() {
    let case = Case::new();
    let (code, text) = case.run(&[]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text, "", "nothing on standard error when piped");
}

#[test]
fn missing_or_unparsable_files() {
    for (file, parts) in [
        ("base/config.json", ["no config.json", "hint:"]),
        (CONFIG, ["adapter_config.json is not there", "hint:"]),
        (WEIGHTS, ["adapter_model.safetensors is not there", "hint:"]),
        (SHARD, ["cannot open", "model-00002-of-00003.safetensors"]),
        ("base/model.safetensors.index.json", ["model.safetensors", "no safetensors model"]),
    ] {
        let case = Case::new();
        std::fs::remove_file(case.path(file)).unwrap();
        case.fails(3, &parts);
    }
    for file in ["base/config.json", CONFIG, "base/model.safetensors.index.json"] {
        let case = Case::new();
        std::fs::write(case.path(file), "{ not json").unwrap();
        case.fails(3, &["not valid JSON", file.rsplit('/').next().unwrap()]);
    }
    let case = Case::new();
    std::fs::remove_dir_all(case.path("adapter")).unwrap();
    std::fs::create_dir(case.path("adapter")).unwrap();
    case.fails(3, &["holds no adapter"]);
}

#[test]
fn pickles_are_never_opened() {
    let case = Case::new();
    std::fs::rename(case.path(WEIGHTS), case.path("adapter/adapter_model.bin")).unwrap();
    case.fails(3, &["adapter_model.bin", "pickle", "python -c", "weights_only=True", "save_file"]);

    let case = Case::new();
    for file in [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ] {
        std::fs::remove_file(case.path("base").join(file)).unwrap();
    }
    std::fs::write(case.path("base/pytorch_model.bin"), b"\x80\x02").unwrap();
    case.fails(3, &["pytorch_model.bin", "pickled"]);
}

#[test]
fn lying_headers() {
    let case = Case::new();
    std::fs::write(case.path(SHARD), b"abc").unwrap();
    case.fails(3, &["too few for a safetensors file", "model-00002"]);

    let case = Case::new();
    std::fs::write(case.path(SHARD), [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap();
    case.fails(3, &["claims 18446744073709551615 bytes", "truncated"]);

    let case = Case::new();
    let sparse = std::fs::OpenOptions::new().write(true).open(case.path(SHARD)).unwrap();
    sparse.set_len(8 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &(4u64 << 30).to_le_bytes(), 0).unwrap();
    case.fails(3, &["claims 4294967296 bytes, more than the 100000000"]);

    let case = Case::new();
    case.edit_header(SHARD, |_| {}, Some(1000));
    case.fails(3, &["truncated", "model-00002"]);

    let name = "model.norm.weight";
    let edits: [(Edit, &str); 5] = [
        (|t| t["dtype"] = "F77".into(), "unknown dtype \"F77\""),
        (|t| t["shape"] = json!([4_294_967_296u64, 4_294_967_296u64]), "overflows"),
        (|t| t["shape"] = json!([255]), "takes 510 bytes"),
        (|t| t["data_offsets"] = json!([512, 0]), "end before they begin"),
        (|t| t["data_offsets"] = json!([2, 514]), "overlap"),
    ];
    for (edit, part) in edits {
        let case = Case::new();
        case.edit_header(SHARD, |header| edit(&mut header[name]), None);
        case.fails(3, &[part, name]);
    }
}

#[test]
fn shards_and_their_index() {
    for evil in ["../model-00002-of-00003.safetensors", "/etc/passwd", "..", "a/b.safetensors", ""] {
        let case = Case::new();
        case.edit_json("base/model.safetensors.index.json", |index| {
            index["weight_map"]["model.norm.weight"] = evil.into();
        });
        case.fails(3, &["is not a plain file name", "model.norm.weight"]);
    }
    let case = Case::new();
    case.edit_json("base/model.safetensors.index.json", |index| {
        index["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors".into();
    });
    case.fails(3, &["model.norm.weight"]);
    let case = Case::new();
    case.edit_json("base/model.safetensors.index.json", |index| {
        index["weight_map"]["ghost.weight"] = "model-00001-of-00003.safetensors".into();
    });
    case.fails(3, &["ghost.weight", "does not have it"]);
}

#[test]
fn adapters_that_do_not_fit() {
    let q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let rename = |header: &mut Value, to: &str| {
        let tensor = header.as_object_mut().unwrap().shift_remove(q).unwrap();
        header[to] = tensor;
    };
    // One half of a pair alone.
    let case = Case::new();
    case.edit_header(
        WEIGHTS,
        |h| rename(h, "base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight"),
        None,
    );
    case.fails(3, &["q_proj.lora_B.weight\" needs \"model.layers.0.self_attn.q_proj.lora_A\" beside it"]);

    // A layer that the base does not have.
    let case = Case::new();
    case.edit_header(
        WEIGHTS,
        |h| {
            for ab in ["A", "B"] {
                let from = q.replace("lora_A", &format!("lora_{ab}"));
                let tensor = h.as_object_mut().unwrap().shift_remove(&from).unwrap();
                h[from.replace("layers.0", "layers.99")] = tensor;
            }
        },
        None,
    );
    case.fails(
        3,
        &[
            "has no home",
            "\"model.layers.99.self_attn.q_proj.weight\"",
            "the nearest is \"model.layers.",
            "hint:",
        ],
    );

    // A parameter that LoRA does not have.
    let case = Case::new();
    case.edit_header(
        WEIGHTS,
        |h| rename(h, "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"),
        None,
    );
    case.fails(3, &["lora_C", "has no home"]);

    // Another size of base: both shapes, and the base that the adapter names.
    let case = Case::new();
    case.edit_header(
        WEIGHTS,
        |h| {
            let shape = h[q]["shape"].as_array().unwrap().clone();
            h[q]["shape"] = json!([shape[0].as_u64().unwrap(), shape[1].as_u64().unwrap() / 2, 2]);
        },
        None,
    );
    case.fails(3, &["has shape [8, 128, 2]", "expected [8, 256]", "[256, 256]", "kjv-llama-2m"]);

    let case = Case::new();
    case.edit_json(CONFIG, |c| c["r"] = 4.into());
    case.fails(3, &["has rank 8", "says 4"]);
}

#[test]
fn configurations_that_are_not_understood() {
    let edits: [(Edit, &[&str]); 9] = [
        (|c| c["peft_type"] = "LORAX".into(), &["\"LORAX\"", "Tenon knows LORA"]),
        (|c| c["peft_type"] = "PROMPT_TUNING".into(), &["cannot be merged", "virtual tokens"]),
        (|c| c["peft_type"] = Value::Null, &["peft_type is null"]),
        (|c| c["lora_magic"] = 3.into(), &["lora_magic = 3", "not understood"]),
        (|c| c["alora_invocation_tokens"] = json!([1, 2]), &["aLoRA"]),
        (|c| c["arrow_config"] = json!({"arrow_top_k": 3}), &["Arrow"]),
        (|c| c["lora_alpha"] = "much".into(), &["lora_alpha is \"much\", expected a number"]),
        (|c| c["rank_pattern"] = json!({"(": 3}), &["rank_pattern", "not a regular expression"]),
        (|c| c["use_dora"] = true.into(), &["lora_magnitude_vector"]),
    ];
    for (edit, parts) in edits {
        let case = Case::new();
        case.edit_json(CONFIG, edit);
        case.fails(3, parts);
    }
}

#[test]
fn values_that_are_not_finite() {
    let case = Case::new();
    let path = case.path(WEIGHTS);
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    case.fails(3, &["not finite", "model.layers.", "--allow-non-finite"]);
    assert_eq!(case.run(&["--allow-non-finite"]).0, 0);
}

#[test]
fn a_quantized_base_that_lacks_something_names_it() {
    let case = Case::new();
    let name = "model.layers.1.mlp.down_proj.weight";
    case.edit_json("base/config.json", |c| {
        c["quantization_config"] = json!({"quant_method": "bitsandbytes"})
    });
    case.edit_header(
        SHARD,
        |h| {
            let bytes =
                h[name]["data_offsets"][1].as_u64().unwrap() - h[name]["data_offsets"][0].as_u64().unwrap();
            h[name]["dtype"] = "U8".into();
            h[name]["shape"] = json!([bytes, 1]);
        },
        None,
    );
    case.fails(3, &["bitsandbytes 4 bit", "quant_state", name, "incomplete"]);
    case.edit_json("base/config.json", |c| c["quantization_config"] = json!({"quant_method": "hqq"}));
    case.fails(3, &["quantized (hqq: Tenon does not know how", name]);
}

#[test]
fn a_base_quantized_in_a_way_nobody_knows_is_told_with_the_reason() {
    let case = Case::new();
    case.edit_json("base/config.json", |config| {
        config["quantization"] = json!({ "bits": 4, "group_size": 32, "mode": "mxfp9" });
    });
    for shard in ["model-00001-of-00003", "model-00002-of-00003", "model-00003-of-00003"] {
        case.edit_header(
            &format!("base/{shard}.safetensors"),
            |header| {
                for (_, tensor) in header.as_object_mut().unwrap().iter_mut() {
                    // As many bytes, but nothing to compute with.
                    if tensor["dtype"] == "BF16" && tensor["shape"].as_array().unwrap().len() == 2 {
                        tensor["dtype"] = json!("I16");
                    }
                }
            },
            None,
        );
    }
    case.fails(3, &["stores", "quantized", r#"(mlx: its mode "mxfp9" is not known)"#, "unquantized base"]);
}

#[test]
fn targets() {
    let case = Case::new();
    std::fs::create_dir(case.path("out")).unwrap();
    let (code, text) = case.run(&[]);
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("exists already"));
    std::fs::write(case.path("out/diary.txt"), "dear").unwrap();
    let (code, text) = case.run(&["--overwrite"]);
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("is not a model directory"));
    assert!(case.path("out/diary.txt").exists());
    std::fs::remove_dir_all(case.path("out")).unwrap();
    assert_eq!(case.run(&[]).0, 0);
    let before = std::fs::read(case.path("out/model.safetensors")).unwrap();
    assert_eq!(case.run(&["--overwrite"]).0, 0);
    assert_eq!(std::fs::read(case.path("out/model.safetensors")).unwrap(), before);

    let run = |out: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_tenon"))
            .args(["merge", "--overwrite", "--base"])
            .arg(case.path("base"))
            .arg("--adapter")
            .arg(case.path("adapter"))
            .arg("--out")
            .arg(out)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for out in ["base", "adapter", "base/merged", "."] {
        let (code, text) = run(&case.path(out));
        assert_eq!(code, 3, "{out}: {text}");
        assert!(text.contains("a place of its own"), "{text}");
    }
    assert!(case.path("base/config.json").exists());
}

#[test]
fn wrong_arguments() {
    let case = Case::new();
    for more in [["--dtype", "f8"], ["--max-shard-size", "much"], ["--threads", "0"]] {
        let (code, text) = case.run(&more);
        assert_eq!(code, 2, "{text}");
        assert!(text.contains(more[1]), "{text}");
    }
}

/// A limit on file sizes is a disk that refuses, at whichever write comes to it.
#[test]
fn a_disk_that_refuses_leaves_nothing() {
    let case = Case::new();
    for blocks in [0, 1, 8, 64, 1000, 4000, 8000] {
        let output = Command::new("sh")
            // Ignored, the signal becomes an error of the write. dash counts 512 bytes a block, bash 1024.
            .args(["-c", r#"trap "" XFSZ; ulimit -f "$1"; shift; exec "$@""#, "sh", &blocks.to_string()])
            .arg(env!("CARGO_BIN_EXE_tenon"))
            .args(["merge", "--base"])
            .arg(case.path("base"))
            .arg("--adapter")
            .arg(case.path("adapter"))
            .arg("--out")
            .arg(case.path("out"))
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{blocks}: {errors}");
        assert!(errors.contains("File too large"), "{errors}");
        assert_eq!(case.left(), ["adapter", "base"], "{blocks}");
    }
}
