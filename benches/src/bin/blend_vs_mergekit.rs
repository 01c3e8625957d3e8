//! `tenon merge --config` against `mergekit-yaml`, in turns on one disk.
//!
//! Prints medians and ratios of one run, and the peak of resident memory of both: all of it, then what
//! is not mapped from files.
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
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "linear,slerp,nuslerp,multislerp,karcher,task_arithmetic,ties,dare_linear,dare_ties,della,breadcrumbs,sce,ram,model_stock,nearswap,passthrough"
    )]
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
    println!("{:<16} {:>10} {:>10} {:>7}  {:>38}", "method", "mergekit", "tenon", "ratio", "memory");
    for method in &arguments.methods {
        std::fs::write(&config, configuration(method, &models, shape.layers)).expect("the disk has room");
        let mut reference = Command::new(&arguments.mergekit);
        reference.arg(&config).arg(&out).arg("--quiet");
        let mut own = Command::new(&tenon);
        own.arg("merge").arg("--config").arg(&config).arg("--out").arg(&out).arg("--json");
        let (mut references, mut owns, mut ratios) = (vec![], vec![], vec![]);
        let (mut reference_peak, mut own_peak) = ([0; 2], [0; 2]);
        // Warms the page cache for both: they read the same files.
        time(&mut own, &out);
        for _ in 0..arguments.rounds {
            let (r, peak) = time(&mut reference, &out);
            let (o, peak_of_own) = time(&mut own, &out);
            references.push(r);
            owns.push(o);
            ratios.push(r / o);
            for i in 0..2 {
                reference_peak[i] = reference_peak[i].max(peak[i]);
                own_peak[i] = own_peak[i].max(peak_of_own[i]);
            }
        }
        let [reference_peak, own_peak] =
            [reference_peak, own_peak].map(|peak| peak.map(|bytes: u64| bytes as f64 / 1e6));
        println!(
            "{method:<16} {:8.2} s {:8.2} s {:7.2}  {:>6.0}, {:>6.0} MB : {:>5.0}, {:>4.0} MB",
            median(&mut references),
            median(&mut owns),
            median(&mut ratios),
            reference_peak[0],
            reference_peak[1],
            own_peak[0],
            own_peak[1],
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
        "nearswap" => {
            format!(
                "merge_method: nearswap\nbase_model: {a}\nmodels: [{{model: {b}}}]\nparameters: {{t: 0.001}}\n"
            )
        }
        "arcee_fusion" => {
            format!("merge_method: arcee_fusion\nbase_model: {a}\nmodels: [{{model: {b}}}]\n")
        }
        "karcher" => {
            format!("merge_method: karcher\nmodels: [{{model: {a}}}, {{model: {b}}}, {{model: {c}}}]\n")
        }
        "model_stock" | "ram" | "sce" => format!(
            "merge_method: {method}\nbase_model: {a}\nmodels: [{{model: {b}}}, {{model: {c}}}]\nparameters: {{select_topk: 0.5}}\n"
        ),
        "nuslerp" => format!(
            "merge_method: nuslerp\nmodels: [{{model: {b}}}, {{model: {c}}}]\nparameters: {{weight: 0.5}}\n"
        ),
        method => format!(
            "merge_method: {method}\nbase_model: {a}\nmodels: [{{model: {b}}}, {{model: {c}}}]\nparameters: {{weight: 0.5, density: 0.5}}\n"
        ),
    }
}

/// Seconds of a command that makes `out`, which is removed afterwards, and its peaks of resident memory: all
/// of it, and what is not mapped from files.
fn time(command: &mut Command, out: &Path) -> (f64, [u64; 2]) {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = [0; 2];
    let outcome = loop {
        // The kernel keeps the first peak; of the second this sees what lasts longer than a look.
        if let Ok(text) = std::fs::read_to_string(&status) {
            for (peak, name) in peak.iter_mut().zip(["VmHWM:", "RssAnon:"]) {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
                *peak = (*peak).max(kib.unwrap_or(0) * 1024);
            }
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
