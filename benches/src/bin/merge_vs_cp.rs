//! `tenon merge` against `cp -r` and `sha256sum` of the base, in turns on one disk.
//!
//! Prints medians and ratios of one run, and the merge's peak resident memory.
//! `cargo run --release -p tenon-benches --bin merge_vs_cp -- --shape 1b`
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use tenon_benches::{ALL_LINEAR, SHAPES};

#[derive(Parser)]
struct Arguments {
    /// tiny, 1b or 8b
    #[arg(long, default_value = "1b")]
    shape: String,
    /// Rank of the adapter
    #[arg(long, default_value_t = 16)]
    rank: u64,
    /// Linear layers that the adapter touches; all by default
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// Rounds; each runs everything once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the models are made and kept
    #[arg(long, default_value = "target/bench-models")]
    dir: PathBuf,
    /// Arguments for tenon merge besides the paths
    #[arg(last = true)]
    merge: Vec<String>,
}

fn main() {
    let arguments = Arguments::parse();
    let shape = SHAPES.iter().find(|s| s.name == arguments.shape).expect("--shape is tiny, 1b or 8b");
    let targets: Vec<&str> = match arguments.targets.as_slice() {
        [] => ALL_LINEAR.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let base = arguments.dir.join(shape.name);
    let adapter =
        arguments.dir.join(format!("{}-lora-r{}-{}", shape.name, arguments.rank, targets.join("-")));
    shape.write_base(&base).expect("the base can be written");
    shape.write_adapter(&adapter, arguments.rank, &targets).expect("the adapter can be written");
    let out = arguments.dir.join("out");
    let tenon = std::env::current_exe().expect("a program knows its path").with_file_name("tenon");
    assert!(tenon.exists(), "build it first: cargo build --release");

    let mut cp = Command::new("cp");
    cp.arg("-r").arg(&base).arg(&out);
    let mut sha = Command::new("sha256sum");
    for entry in std::fs::read_dir(&base).expect("the base is there").flatten() {
        sha.arg(entry.path());
    }
    let mut merge = Command::new(tenon);
    merge
        .arg("merge")
        .arg("--base")
        .arg(&base)
        .arg("--adapter")
        .arg(&adapter)
        .arg("--out")
        .arg(&out)
        .arg("--json");
    merge.args(&arguments.merge);

    let (mut cps, mut shas, mut merges, mut ratios) = (vec![], vec![], vec![], vec![]);
    let mut peak = 0;
    // The first round only warms the page cache.
    for round in 0..=arguments.rounds {
        // cp before and after the merge: on a virtual machine fresh pages cost what used ones do not,
        // and whoever comes first after a pause pays.
        let s = time(&mut sha, &out).0;
        let _ = time(&mut cp, &out);
        let (m, json) = time(&mut merge, &out);
        let c = time(&mut cp, &out).0;
        if round > 0 {
            cps.push(c);
            shas.push(s);
            merges.push(m);
            ratios.push(m / c);
            peak = peak.max(peak_of(&json));
        }
    }
    println!("{} rank {} on {}, {} rounds", shape.name, arguments.rank, targets.join(","), arguments.rounds);
    println!("cp -r        {:7.3} s", median(&mut cps));
    println!("sha256sum    {:7.3} s", median(&mut shas));
    println!("tenon merge  {:7.3} s", median(&mut merges));
    let (low, high) =
        (ratios.iter().copied().fold(f64::MAX, f64::min), ratios.iter().copied().fold(0.0, f64::max));
    println!("merge / cp   {:7.3}   ({low:.3} to {high:.3})", median(&mut ratios));
    println!("peak memory  {:7.1} MB", peak as f64 / 1e6);
}

/// Seconds of a command that may make `out`, which is removed afterwards, and what it printed.
fn time(command: &mut Command, out: &Path) -> (f64, Vec<u8>) {
    let start = Instant::now();
    let output = command.stderr(Stdio::inherit()).output().expect("the command starts");
    let seconds = start.elapsed().as_secs_f64();
    assert!(output.status.success(), "{command:?} failed");
    if out.exists() {
        std::fs::remove_dir_all(out).expect("the output can be removed");
    }
    (seconds, output.stdout)
}

/// The peak of resident memory that `tenon merge --json` reports of itself.
fn peak_of(json: &[u8]) -> u64 {
    let report: serde_json::Value = serde_json::from_slice(json).expect("--json prints JSON");
    report["peak_memory_bytes"].as_u64().expect("Linux tells it")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
