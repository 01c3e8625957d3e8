//! `tenon merge --config` against `mergekit-yaml`, in turns on one disk.
//!
//! Prints medians and ratios of one run, and the peak of resident memory of both.
//! `cargo run --release -p tenon-benches --bin blend_vs_mergekit -- --mergekit venv/bin/mergekit-yaml`
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use tenon_benches::{ALL_LINEAR, SHAPES};

#[derive(Parser)]
struct Arguments {
    /// mergekit's command
    #[arg(long)]
    mergekit: PathBuf,
    /// tiny, 1b or 8b
    #[arg(long, default_value = "1b")]
    shape: String,
    /// Methods to compare
    #[arg(long, value_delimiter = ',', default_value = "linear,slerp,task_arithmetic,ties,passthrough")]
    methods: Vec<String>,
    /// Rounds; each runs both once
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the models are made and kept
    #[arg(long, default_value = "target/bench-models")]
    dir: PathBuf,
}

fn main() {
    let arguments = Arguments::parse();
    let shape = SHAPES.iter().find(|s| s.name == arguments.shape).expect("--shape is tiny, 1b or 8b");
    let base = arguments.dir.join(shape.name);
    shape.write_base(&base).expect("the base can be written");
    let tenon = std::env::current_exe().expect("a program knows its path").with_file_name("tenon");
    assert!(tenon.exists(), "build it first: cargo build --release");
    let mut models = vec![base.clone()];
    for rank in [8, 16] {
        let adapter = arguments.dir.join(format!("{}-lora-r{rank}-all", shape.name));
        let merged = arguments.dir.join(format!("{}-merged-r{rank}", shape.name));
        shape.write_adapter(&adapter, rank, &ALL_LINEAR).expect("the adapter can be written");
        if !merged.exists() {
            let mut merge = Command::new(&tenon);
            merge
                .arg("merge")
                .arg("--base")
                .arg(&base)
                .arg("--adapter")
                .arg(&adapter)
                .arg("--out")
                .arg(&merged);
            assert!(merge.stdout(Stdio::null()).status().expect("tenon starts").success());
        }
        models.push(merged);
    }
    let out = arguments.dir.join("out");
    let config = arguments.dir.join("merge.yml");
    println!("{:<16} {:>10} {:>10} {:>7}  {:>22}", "method", "mergekit", "tenon", "ratio", "memory");
    for method in &arguments.methods {
        std::fs::write(&config, configuration(method, &models, shape.layers)).expect("the disk has room");
        let mut reference = Command::new(&arguments.mergekit);
        reference.arg(&config).arg(&out).arg("--quiet");
        let mut own = Command::new(&tenon);
        own.arg("merge").arg("--config").arg(&config).arg("--out").arg(&out).arg("--json");
        let (mut references, mut owns, mut ratios) = (vec![], vec![], vec![]);
        let (mut reference_peak, mut own_peak) = (0, 0);
        // The first round only warms the page cache.
        for round in 0..=arguments.rounds {
            let (r, peak) = time(&mut reference, &out);
            let (o, peak_of_own) = time(&mut own, &out);
            if round > 0 {
                references.push(r);
                owns.push(o);
                ratios.push(r / o);
                (reference_peak, own_peak) = (reference_peak.max(peak), own_peak.max(peak_of_own));
            }
        }
        println!(
            "{method:<16} {:8.2} s {:8.2} s {:7.2}  {:>8.0} MB : {:>5.0} MB",
            median(&mut references),
            median(&mut owns),
            median(&mut ratios),
            reference_peak as f64 / 1e6,
            own_peak as f64 / 1e6,
        );
    }
}

fn configuration(method: &str, models: &[PathBuf], layers: u64) -> String {
    let path = |model: &PathBuf| std::path::absolute(model).expect("a path").display().to_string();
    let [a, b, c] = [0, 1, 2].map(|i| path(&models[i]));
    match method {
        "linear" => format!(
            "merge_method: linear\nmodels: [{{model: {a}}}, {{model: {b}}}, {{model: {c}}}]\nparameters: {{weight: 1}}\n"
        ),
        "slerp" => format!(
            "merge_method: slerp\nbase_model: {a}\nmodels: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{t: 0.4}}\n"
        ),
        "passthrough" => {
            let half = layers / 2;
            format!(
                "merge_method: passthrough\nslices: [{{sources: [{{model: {a}, layer_range: [0, {layers}]}}]}}, {{sources: [{{model: {b}, layer_range: [{half}, {layers}]}}]}}]\n"
            )
        }
        method => format!(
            "merge_method: {method}\nbase_model: {a}\nmodels: [{{model: {b}}}, {{model: {c}}}]\nparameters: {{weight: 0.5, density: 0.5}}\n"
        ),
    }
}

/// Seconds of a command that makes `out`, which is removed afterwards, and its peak of resident memory.
fn time(command: &mut Command, out: &Path) -> (f64, u64) {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let outcome = loop {
        // The kernel keeps the peak; the last look before the end has all but the last moments.
        if let Ok(text) = std::fs::read_to_string(&status) {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            peak = peak.max(kib.unwrap_or(0) * 1024);
        }
        match child.try_wait().expect("a child can be waited for") {
            Some(outcome) => break outcome,
            None => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    assert!(outcome.success(), "{command:?} failed");
    std::fs::remove_dir_all(out).expect("the output can be removed");
    (seconds, peak)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
