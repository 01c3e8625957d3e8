//! `tenon combine`, then `tenon merge` of what it made.
#![allow(clippy::unwrap_used)] // a test file

use std::path::Path;
use std::process::{Command, Output};

fn tenon(arguments: &[&str]) -> Output {
    let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/peft-combine");
    Command::new(env!("CARGO_BIN_EXE_tenon")).args(arguments).current_dir(set).output().unwrap()
}

#[test]
fn a_combined_adapter_merges_like_any_other() {
    let home = tempfile::tempdir().unwrap();
    let (both, out) = (home.path().join("both"), home.path().join("model"));
    let (both, out) = (both.to_str().unwrap(), out.to_str().unwrap());
    let combined = ["combine", "--adapter", "a:0.7", "--adapter", "d:-0.4", "--out", both];
    let output = tenon(&combined);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("2 adapters combined in "));
    assert!(tenon(&["merge", "--base", "base", "--adapter", both, "--out", out]).status.success());
    assert!(Path::new(out).join("model.safetensors").exists());
    // The target is taken now.
    let again = tenon(&combined);
    assert_eq!(again.status.code(), Some(5));
    // Only what can be said is suggested.
    assert!(!String::from_utf8_lossy(&again.stderr).contains("--overwrite"));
    let pruned = home.path().join("pruned");
    let pruned = pruned.to_str().unwrap();
    let how = ["--combine", "ties_svd", "--density", "0.4", "--rank", "4"];
    let output =
        tenon(&[&["combine", "--adapter", "a:0.7", "--adapter", "d", "--out", pruned], &how[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn wrong_ways_say_so_and_leave_nothing() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("both");
    let out = out.to_str().unwrap();
    let unlike = tenon(&["combine", "--adapter", "a", "--adapter", "d", "--combine", "linear", "--out", out]);
    assert_eq!(unlike.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&unlike.stderr).contains("another rank"));
    let unknown = tenon(&["combine", "--adapter", "a", "--combine", "ties_qr", "--out", out]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(!Path::new(out).exists());
}
