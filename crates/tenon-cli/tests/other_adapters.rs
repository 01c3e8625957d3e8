//! Adapters of other tools than PEFT, and what trainings leave: merged, found, or refused with what to do.
#![allow(clippy::unwrap_used)] // a test file

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tenon::{Merge, OutputDtype, inspect};
use tenon_checkpoint::{Checkpoint, TensorSource};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/other-adapters").join(name)
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let (tensor, info) = checkpoint.find(name).unwrap_or_else(|| panic!("no {name}"));
    let mut bytes = vec![0; info.bytes() as usize];
    checkpoint.read_rows(tensor, 0..info.rows(), &mut bytes).unwrap();
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Merges and compares every tensor with what it should be. Gives the plan's notes.
fn merges_to(adapter: &Path, expected: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let plan = Merge::new(fixture("base"), adapter, &out).dtype(OutputDtype::F32).plan().unwrap();
    let notes = plan.notes().to_vec();
    plan.run(&()).unwrap();
    let found = Checkpoint::open(&out).unwrap();
    let base = Checkpoint::open(fixture("base")).unwrap();
    let changed = Checkpoint::open_file(fixture(&format!("merged-{expected}.safetensors"))).unwrap();
    assert!(!changed.tensors().is_empty());
    for info in found.tensors() {
        let source = if changed.find(&info.name).is_some() { &changed } else { &base };
        let (wanted, found) = (values(source, &info.name), values(&found, &info.name));
        let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = wanted.iter().zip(&found).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 2e-6 * largest, "{}: off by {worst:e} of {largest:e}", info.name);
    }
    notes
}

#[test]
fn mlx_adapters_merge_as_peft_merges_the_same_factors() {
    for name in ["mlx-lora", "mlx-dora", "mlx-full"] {
        let notes = merges_to(&fixture(name), name);
        assert!(notes.iter().any(|note| note.contains("MLX-LM")), "{notes:?}");
    }
}

#[test]
fn kohya_files_merge_alone_and_in_a_directory() {
    merges_to(&fixture("kohya/style.safetensors"), "kohya");
    let notes = merges_to(&fixture("kohya"), "kohya");
    assert!(notes[0].contains("style.safetensors"), "{notes:?}");
    merges_to(&fixture("kohya-dora"), "kohya-dora");
}

/// A PEFT adapter of nothing but a name, for what need not be merged.
fn peft(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama/adapter-lora");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(base.join(file), dir.join(file)).unwrap();
    }
}

#[test]
fn a_trainings_output_gives_its_last_checkpoint_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for step in [9, 100, 20] {
        let checkpoint = dir.path().join(format!("checkpoint-{step}"));
        peft(&checkpoint);
        let state = json!({"global_step": step, "epoch": step as f64 / 50.0, "log_history": [{"loss": 3.5, "step": 1}]});
        std::fs::write(checkpoint.join("trainer_state.json"), state.to_string()).unwrap();
    }
    std::fs::create_dir(dir.path().join("checkpoint-200")).unwrap();
    let it = inspect(dir.path()).unwrap();
    assert_eq!((it.kind, it.mergeable, it.path), ("training", true, dir.path().join("checkpoint-100")));
    assert!(it.notes[0].contains("checkpoint-100, the last of 3 checkpoints"), "{:?}", it.notes);
    assert_eq!(it.checkpoints.iter().map(|c| c.step).collect::<Vec<_>>(), [9, 20, 100, 200]);

    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama/base");
    let out = dir.path().join("../out-of-training");
    let plan = Merge::new(&base, dir.path(), &out).plan().unwrap();
    assert!(plan.notes()[0].contains("checkpoint-100"), "{:?}", plan.notes());
    assert_eq!(plan.adapter_dir(), dir.path().join("checkpoint-100"));

    // The trainer says that another one is the best: nobody guesses.
    let state = json!({"global_step": 100, "best_model_checkpoint": "/somewhere/outputs/checkpoint-20"});
    std::fs::write(dir.path().join("checkpoint-200/trainer_state.json"), state.to_string()).unwrap();
    let error = Merge::new(&base, dir.path(), &out).plan().err().unwrap().to_string();
    assert!(error.contains("checkpoint-20 is the one that the trainer called the best"), "{error}");
    let it = inspect(dir.path()).unwrap();
    assert!(!it.mergeable && it.why_not.unwrap().contains("checkpoint-100 the last"));
}

#[test]
fn what_must_be_converted_first_is_told_with_the_command() {
    let base = fixture("base");
    let cases: [(&str, &[&str], &[&str]); 6] = [
        (
            "zero",
            &["zero_to_fp32.py", "global_step10/x_optim_states.pt"],
            &["DeepSpeed ZeRO", "zero_to_fp32.py"],
        ),
        ("fsdp", &["pytorch_model_fsdp_0/__0_0.distcp"], &["FSDP", "accelerate merge-weights", "fsdp_0"]),
        ("pickle", &["adapter_model.bin"], &["pickle", "python -c", "weights_only=True"]),
        ("file.pt", &[], &["pickle", "python -c"]),
        ("lora.gguf", &[], &["lora.gguf", "within the version"]),
        ("nothing", &["a.txt"], &["holds no adapter"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, files, parts) in cases {
        let path = dir.path().join(name);
        if files.is_empty() {
            std::fs::write(&path, if name.ends_with("gguf") { "GGUF" } else { "PK" }).unwrap();
        }
        for file in files {
            std::fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
            std::fs::write(path.join(file), "x").unwrap();
        }
        let error = Merge::new(&base, &path, dir.path().join("out")).plan().err().unwrap().to_string();
        for part in parts {
            assert!(error.contains(part), "{name}: {error}");
        }
        let it = inspect(&path).unwrap();
        assert!(!it.mergeable && it.why_not.is_some(), "{name}");
    }
    // A model is no adapter.
    let error = Merge::new(&base, &base, dir.path().join("out")).plan().err().unwrap().to_string();
    assert!(error.contains("a whole model, not an adapter"), "{error}");
}

#[test]
fn damaged_adapters_of_other_tools_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mlx = dir.path().join("mlx");
    std::fs::create_dir(&mlx).unwrap();
    let config = |value: Value| std::fs::write(mlx.join("adapter_config.json"), value.to_string()).unwrap();
    let plan = || Merge::new(fixture("base"), &mlx, dir.path().join("out")).plan().err().unwrap().to_string();
    config(json!({"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.0}}));
    assert!(plan().contains("adapters.safetensors is not there"), "{}", plan());
    std::fs::copy(fixture("mlx-lora/adapters.safetensors"), mlx.join("adapters.safetensors")).unwrap();
    config(json!({"fine_tune_type": "lora", "lora_parameters": {"rank": 4}}));
    assert!(plan().contains("lora_parameters.scale is absent"), "{}", plan());
    config(json!({"fine_tune_type": "prompt", "lora_parameters": {"scale": 1.0}}));
    assert!(plan().contains("fine_tune_type is \"prompt\""), "{}", plan());
}

#[test]
fn inspect_prints_what_it_found() {
    let run = |path: &Path, json: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
        command.arg("inspect").arg(path);
        if json {
            command.arg("--json");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&fixture("mlx-dora"), false);
    for part in
        ["adapter (MLX-LM)", "DoRA, rank 3", "down_proj, q_proj, v_proj (6 modules)", "yes: example/tiny"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = run(&fixture("../quantized-bases/gptq-3"), false);
    assert!(text.contains("1 tensors as GPTQ 3 bit, groups of 32"), "{text}");
    let it: Value = serde_json::from_str(&run(&fixture("../kjv-llama/adapter-dora"), true)).unwrap();
    assert_eq!(
        (&it["kind"], &it["method"], &it["rank"]),
        (&json!("adapter"), &json!("DoRA+rsLoRA"), &json!(8))
    );
    assert_eq!(it["mergeable"], json!(true));
    assert!(it["bytes"].as_u64().unwrap() > 400_000);
    let it: Value = serde_json::from_str(&run(&fixture("base"), true)).unwrap();
    assert_eq!((&it["kind"], &it["architecture"]), (&json!("base_model"), &json!("LlamaForCausalLM")));
}
