//! `tenon merge` into bases that are stored quantized against the same shape in bf16, in turns in one run.
//!
//! `cargo run --release -p tenon-benches --bin quantized_vs_bf16 -- --shape 1b`
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use tenon_benches::{ALL_LINEAR, SHAPES, Stored};

#[derive(Parser)]
struct Arguments {
    /// tiny, 1b or 8b
    #[arg(long, default_value = "1b")]
    shape: String,
    /// Rank of the adapter, which is on all linear layers
    #[arg(long, default_value_t = 16)]
    rank: u64,
    /// Rounds; each merges into every base once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the models are made and kept
    #[arg(long, default_value = "target/bench-models")]
    dir: PathBuf,
}

/// One base and what its merges took.
struct Base {
    name: &'static str,
    dir: PathBuf,
    seconds: Vec<f64>,
    ratios: Vec<f64>,
    peak: u64,
}

fn main() {
    let arguments = Arguments::parse();
    let shape = SHAPES.iter().find(|s| s.name == arguments.shape).expect("--shape is tiny, 1b or 8b");
    let adapter =
        arguments.dir.join(format!("{}-lora-r{}-{}", shape.name, arguments.rank, ALL_LINEAR.join("-")));
    shape.write_adapter(&adapter, arguments.rank, &ALL_LINEAR).expect("the adapter can be written");
    let base = |name, dir| Base { name, dir, seconds: vec![], ratios: vec![], peak: 0 };
    let plain = arguments.dir.join(shape.name);
    shape.write_base(&plain).expect("the base can be written");
    let mut bases = vec![base("bf16", plain)];
    for (name, stored) in Stored::ALL {
        let dir = arguments.dir.join(format!("{}-{name}", shape.name));
        shape.write_quantized_base(&dir, stored).expect("the base can be written");
        bases.push(base(name, dir));
    }
    let tenon = std::env::current_exe().expect("a program knows its path").with_file_name("tenon");
    assert!(tenon.exists(), "build it first: cargo build --release");
    let out = arguments.dir.join("out");
    // The first round only warms the page cache.
    for round in 0..=arguments.rounds {
        let mut plain = 0.0;
        for base in &mut bases {
            let (seconds, peak) = merge(&tenon, &base.dir, &adapter, &out);
            if base.name == "bf16" {
                plain = seconds;
            }
            if round > 0 {
                base.seconds.push(seconds);
                base.ratios.push(seconds / plain);
                base.peak = base.peak.max(peak);
            }
        }
    }
    println!(
        "{} rank {}, {} rounds; time as a multiple of that with the bf16 base",
        shape.name, arguments.rank, arguments.rounds
    );
    for base in &mut bases {
        let (seconds, ratio) = (median(&mut base.seconds), median(&mut base.ratios));
        let (low, high) = (base.ratios[0], base.ratios[base.ratios.len() - 1]);
        let peak = base.peak as f64 / 1e6;
        println!("{:5} {seconds:8.3} s   {ratio:6.2}   ({low:.2} to {high:.2})   {peak:7.1} MB", base.name);
    }
}

/// Seconds of a merge, whose output is removed, and the peak of resident memory that it tells of itself.
fn merge(tenon: &Path, base: &Path, adapter: &Path, out: &Path) -> (f64, u64) {
    let mut command = Command::new(tenon);
    command
        .arg("merge")
        .arg("--base")
        .arg(base)
        .arg("--adapter")
        .arg(adapter)
        .arg("--out")
        .arg(out)
        .arg("--json");
    let start = Instant::now();
    let output = command.stderr(Stdio::inherit()).output().expect("tenon starts");
    let seconds = start.elapsed().as_secs_f64();
    assert!(output.status.success(), "{command:?} failed");
    std::fs::remove_dir_all(out).expect("the output can be removed");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("--json prints JSON");
    (seconds, report["peak_memory_bytes"].as_u64().expect("Linux tells it"))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
