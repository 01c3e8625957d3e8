//! `tenon merge` and `tenon gguf` of several adapters.
#![allow(clippy::unwrap_used)] // a test file

use std::path::Path;
use std::process::{Command, Output};

fn tenon(arguments: &[&str]) -> Output {
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/peft-combine");
    Command::new(env!("CARGO_BIN_EXE_tenon")).args(arguments).current_dir(set).output().unwrap()
}

fn ok(arguments: &[&str]) -> String {
    let output = tenon(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn combining_on_the_way_gives_the_bytes_of_combining_first() {
    let home = tempfile::tempdir().unwrap();
    let place = |name: &str| home.path().join(name).to_str().unwrap().to_string();
    for (number, how) in [
        &["cat"][..],
        &["svd", "--rank", "4"],
        &["ties", "--density", "0.4", "--majority-sign", "frequency"],
        &["ties_svd", "--density", "0.6"],
        &["dare_ties", "--density", "0.5", "--seed", "7"],
    ]
    .into_iter()
    .enumerate()
    {
        let (both, long, short) = (place("both"), place("long"), place("short"));
        let adapters = ["--adapter", "a:0.7", "--adapter", "b:-0.4", "--combine"];
        ok(&[&["combine", "--out", &both], &adapters[..], how].concat());
        ok(&["merge", "--base", "base", "--adapter", &both, "--out", &long]);
        ok(&[&["merge", "--base", "base", "--out", &short], &adapters[..], how].concat());
        let weights = |dir: &str| std::fs::read(Path::new(dir).join("model.safetensors")).unwrap();
        assert!(weights(&long) == weights(&short), "{how:?}");
        let config = |dir: &str| std::fs::read(Path::new(dir).join("config.json")).unwrap();
        assert_eq!(config(&long), config(&short));
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(Path::new(&short).join("tenon.json")).unwrap()).unwrap();
        assert_eq!(manifest["parameters"]["combination"]["how"], how[0], "case {number}");
        assert_eq!(manifest["parameters"]["weights"], serde_json::json!([0.7, -0.4]));
        assert!(manifest["further_adapters"][0]["path"].as_str().unwrap().ends_with("/b"));
        for dir in [both, long, short] {
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}

#[test]
fn the_plan_tells_what_becomes_of_several() {
    let text = ok(&[
        "merge",
        "--base",
        "base",
        "--adapter",
        "a:0.5",
        "--adapter",
        "c",
        "--out",
        "nowhere",
        "--dry-run",
    ]);
    assert!(text.contains("adapter   a  LoRA, rank 3, alpha 5, weight 0.5\n"), "{text}");
    assert!(text.contains("adapter   c  LoRA, rank 3, alpha 2\n"), "{text}");
    assert!(text.contains("stack     one after the other, rounded once\n"), "{text}");
    assert!(text.contains("edited (LoRA, then LoRA)"), "{text}");
    let text = ok(&[
        "merge",
        "--base",
        "base",
        "--adapter",
        "a",
        "--adapter",
        "c",
        "--combine",
        "ties",
        "--density",
        "0.5",
        "--out",
        "nowhere",
        "--dry-run",
    ]);
    assert!(text.contains("combine   ties, density 0.5, majority sign total\n"), "{text}");
}

#[test]
fn wrong_ways_say_so() {
    let fails = |arguments: &[&str], code: i32, text: &str| {
        let output = tenon(&[arguments, &["--base", "base", "--out", "nowhere", "--dry-run"]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(text), "{error}");
    };
    let dora = "../peft-golden/lora-dora-f32/adapter:0.5";
    fails(&["merge", "--adapter", "a", "--density", "0.5"], 2, "--combine");
    fails(&["merge", "--adapter", "a", "--seed", "5"], 2, "--seed");
    fails(&["merge", "--adapter", "a", "--stack", "--combine", "cat"], 2, "cannot be used with");
    fails(&["merge", "--adapter", "a", "--adapter", "d", "--combine", "ties"], 3, "another rank");
    fails(&["merge", "--adapter", dora, "--combine", "cat"], 3, "DoRA");
    // Which of several it was.
    fails(&["merge", "--adapter", "a", "--adapter", "../peft-golden/loha/adapter"], 3, "loha/adapter: ");
    fails(&["merge", "--adapter", dora], 3, "weight of 0.5");
}
