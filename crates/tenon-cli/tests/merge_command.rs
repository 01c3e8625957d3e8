//! What `tenon merge` prints and leaves, as a user sees it.
#![allow(clippy::unwrap_used)] // a test file

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs in the repository, so that paths print the same everywhere.
fn tenon(arguments: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tenon"))
        .args(arguments)
        .env("COLUMNS", "100")
        .current_dir(repository())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    (out, err)
}

const BASE: &str = "fixtures/kjv-llama/base";
const ADAPTER: &str = "fixtures/kjv-llama/adapter-lora";

#[test]
fn the_summary_reads_well() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let (text, err) = tenon(&["merge", "--base", BASE, "--adapter", ADAPTER, "--out", out.to_str().unwrap()]);
    assert_eq!(err, "");
    insta::with_settings!({filters => vec![
        (r"\d+\.\d+ s \([^)]*/s\)", "[time] ([rate])"),
        (r"[\d.]+ MB of memory", "[memory]"),
        (home.path().to_str().unwrap(), "[home]"),
    ]}, { insta::assert_snapshot!(text) });
}

#[test]
fn the_dry_run_reads_well_and_writes_nothing() {
    let out = repository().join("target/never-made");
    let dora = "fixtures/kjv-llama/adapter-dora";
    let (text, _) = tenon(&[
        "merge",
        "--base",
        BASE,
        "--adapter",
        dora,
        "--out",
        "target/never-made",
        "--dry-run",
        "--max-shard-size",
        "2MB",
    ]);
    assert!(!out.exists());
    insta::with_settings!({filters => vec![(r", [\d.]+ [KMGT]?B free", ", [free] free")]}, {
        insta::assert_snapshot!(text)
    });
    let (json, _) = tenon(&[
        "merge",
        "--base",
        BASE,
        "--adapter",
        dora,
        "--out",
        "target/never-made",
        "--dry-run",
        "--json",
    ]);
    let plan: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["tensors"].as_array().unwrap().len(), 30);
    assert!(!out.exists());
}

#[test]
fn help_reads_well() {
    insta::assert_snapshot!("help", tenon(&["--help"]).0);
    insta::assert_snapshot!("help_merge", tenon(&["merge", "--help"]).0);
}

#[test]
fn shards_and_their_index_load_and_json_tells_every_file() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let (json, _) = tenon(&[
        "merge",
        "--base",
        BASE,
        "--adapter",
        ADAPTER,
        "--out",
        out.to_str().unwrap(),
        "--max-shard-size",
        "1.5MB",
        "--dtype",
        "f32",
        "--json",
    ]);
    let report: Value = serde_json::from_str(&json).unwrap();
    let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("tenon.json")).unwrap()).unwrap();
    assert_eq!(report["outputs"], manifest["outputs"]);
    let mut listed: Vec<&str> =
        report["outputs"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    listed.push("tenon.json");
    listed.sort_unstable();
    let mut found: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(listed, found);
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["dtype"], "float32");
    let index: Value =
        serde_json::from_slice(&std::fs::read(out.join("model.safetensors.index.json")).unwrap()).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), 30);
    // The safetensors crate agrees with every header and finds every tensor where the index says.
    let mut total = 0;
    for (tensor, shard) in map {
        let bytes = std::fs::read(out.join(shard.as_str().unwrap())).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor(tensor).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        total += view.data().len() as u64;
    }
    assert_eq!(index["metadata"]["total_size"], total);
}

#[test]
fn interrupting_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    for delay in [0, 2, 5, 10, 20, 40] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tenon"))
            .args([
                "merge",
                "--base",
                BASE,
                "--adapter",
                ADAPTER,
                "--tile-size",
                "64",
                "--threads",
                "2",
                "--out",
            ])
            .arg(home.path().join("out"))
            .current_dir(repository())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let status = child.wait().unwrap();
        let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        if status.success() {
            // It was faster than the signal.
            assert_eq!(left, ["out"]);
            std::fs::remove_dir_all(home.path().join("out")).unwrap();
        } else {
            assert_eq!(left, Vec::<std::ffi::OsString>::new(), "after {delay} ms: {status}");
        }
    }
}
