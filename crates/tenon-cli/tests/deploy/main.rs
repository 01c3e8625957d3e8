//! Deployments as users, servers and crashes treat them: real processes of the built binary against the
//! stand-in, and where `TENON_TEST_OLLAMA` gives the address of a real Ollama, against that too.
#![allow(clippy::unwrap_used)] // tests

mod commands;
mod crashes;
mod failures;
mod figures;
mod retry;
mod servers;
mod states;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tenon_standin::StandIn;

const BASE: &str = "fixtures/kjv-llama/base";
const ADAPTER: &str = "fixtures/kjv-llama/adapter-lora";
const TEMPLATE: &str = "{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}assistant:";

/// A home with a Complete Model and an environment.
struct Home {
    dir: tempfile::TempDir,
    model: String,
}

impl Home {
    /// With the environment `env` at an address.
    fn new(url: &str) -> Self {
        let mut home = Self { dir: tempfile::tempdir().unwrap(), model: String::new() };
        let template = home.dir.path().join("template.gotmpl");
        std::fs::write(&template, TEMPLATE).unwrap();
        home.ok(&["base", "add", BASE, "--name", "base", "--template", template.to_str().unwrap()]);
        let saved = home.json(&["save", ADAPTER, "--base", BASE, "--json"]);
        home.model = saved["saving"]["name"].as_str().unwrap().to_string();
        home.ok(&[
            "env",
            "add",
            "env",
            "--kind",
            "ollama",
            "--url",
            url,
            "--timeout",
            "20",
            "--option",
            "retry-delay=0.01",
            "--option",
            "retries=2",
        ]);
        home
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join("home").join(part)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
        command.args(arguments).env("TENON_HOME", self.dir.path().join("home")).env("COLUMNS", "100");
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        command.env_remove("TENON_FAULT").current_dir(repository).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and standard error of a command that must fail.
    fn fails(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// The arguments that deploy the model as `m:latest`, unquantized, and more.
    fn deploy<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let common =
            ["deploy", &self.model, "--env", "env", "--quantization", "no_quantization", "--as", "m"];
        common.into_iter().chain(more.iter().copied()).collect()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn live(&self) -> Vec<Value> {
        self.json(&["live", "list", "--json"]).as_array().unwrap().clone()
    }

    fn deployments(&self) -> Vec<Value> {
        let jobs = self.json(&["jobs", "--json"]);
        jobs.as_array().unwrap().iter().filter(|job| job["job"] == "deployment").cloned().collect()
    }

    /// Waits until a deployment is in a state.
    fn wait_for(&self, state: &str) -> Value {
        let begin = Instant::now();
        loop {
            if let Some(job) = self.deployments().into_iter().find(|job| job["state"] == state) {
                return job;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "never {state}: {:#?}", self.deployments());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until no job is open; has orphans taken up.
    fn settle(&self) -> Vec<Value> {
        let begin = Instant::now();
        loop {
            let jobs = self.deployments();
            if jobs
                .iter()
                .all(|job| ["live", "failed", "cancelled"].contains(&job["state"].as_str().unwrap()))
            {
                return jobs;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "never settled: {jobs:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What must hold whatever happened: Live Models are there, and nothing else is; nothing is left over here.
    fn assert_true(&self, server: &StandIn) {
        let live: Vec<_> =
            self.live().iter().map(|live| live["model"].as_str().unwrap().to_string()).collect();
        let there: Vec<_> = server.models().into_iter().map(|model| model.name).collect();
        assert_eq!(live, there, "Live Models, and models there");
        for name in &live {
            self.ok(&["live", "check", &format!("env/{name}")]);
        }
        // A worker removes what is left of its deployment after that is done.
        let begin = Instant::now();
        let left = || std::fs::read_dir(self.path("deployments")).unwrap().count();
        while left() > 0 && begin.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(left(), 0);
    }
}
