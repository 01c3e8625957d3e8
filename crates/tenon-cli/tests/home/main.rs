//! A home as users and crashes treat it: real processes of the built binary.
#![allow(clippy::unwrap_used)] // tests

mod commands;
mod crashes;
mod full_disk;
mod many_processes;
mod templates;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BASE: &str = "fixtures/kjv-llama/base";
const ADAPTER: &str = "fixtures/kjv-llama/adapter-lora";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A home in a directory that goes with the test.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join("home").join(part)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
        command.args(arguments).env("TENON_HOME", self.dir.path().join("home")).env("COLUMNS", "100");
        command.env_remove("TENON_FAULT").current_dir(repository()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Names of the listed models.
    fn models(&self) -> Vec<String> {
        let list = self.json(&["list", "--json"]);
        list.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_string()).collect()
    }

    fn save(&self) -> String {
        let saved = self.json(&["save", ADAPTER, "--base", BASE, "--json"]);
        saved["saving"]["name"].as_str().unwrap().to_string()
    }

    fn entries(&self, part: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(part)) else { return vec![] };
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Waits until no Saving is open; has orphans taken up.
    fn settle(&self) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let jobs = self.json(&["jobs", "--json"]);
            let jobs = jobs.as_array().unwrap().clone();
            let is_open = |job: &Value| job["state"] == "queued" || job["state"] == "running";
            if !jobs.iter().any(is_open) {
                return jobs;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "never settled: {jobs:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What must hold whatever happened: nothing half there, nothing lost, nothing left over.
    fn assert_true(&self) {
        let models = self.models();
        for model in &models {
            let output = self.run(&["verify", model]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        let mut sorted = models.clone();
        sorted.sort();
        assert_eq!(self.entries("complete"), sorted, "directories and catalogue agree");
        // A worker removes what is left of its Saving after that is done.
        let begin = Instant::now();
        while !self.entries("staging").is_empty() && begin.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.entries("staging"), [""; 0]);
        assert_eq!(self.entries("trash"), [""; 0]);
        self.ok(&["registry", "check"]);
    }
}
