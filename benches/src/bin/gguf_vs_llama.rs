//! `tenon gguf` against `llama-quantize`, and against the way over PEFT, `convert_hf_to_gguf.py` and
//! `llama-quantize`, in turns on one disk; and whether their bytes are the same.
//!
//! Prints medians and ratios of one run, and peaks of resident memory.
//! `cargo run --release -p tenon-benches --bin gguf_vs_llama -- --llama-quantize PATH [--llama-quantize PATH]`
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use tenon_benches::{ALL_LINEAR, SHAPES};

#[derive(Parser)]
struct Arguments {
    /// tiny, 1b or 8b
    #[arg(long, default_value = "1b")]
    shape: String,
    /// llama-quantize; more than one, such as one built for this CPU, run in turns
    #[arg(long, env = "LLAMA_QUANTIZE", value_delimiter = ',', required = true)]
    llama_quantize: Vec<PathBuf>,
    /// convert_hf_to_gguf.py, to run the whole way from base and adapter, too
    #[arg(long, requires = "python")]
    convert: Option<PathBuf>,
    /// A Python that has torch, transformers and peft
    #[arg(long)]
    python: Option<PathBuf>,
    /// Rank of the adapter
    #[arg(long, default_value_t = 16)]
    rank: u64,
    /// Threads of each
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Rounds; each runs everything once
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Quantizations
    #[arg(long, value_delimiter = ',', default_value = "q4_K_M,q8_0")]
    quantizations: Vec<String>,
    /// Where the models are made and kept
    #[arg(long, default_value = "target/bench-models")]
    dir: PathBuf,
}

/// What PEFT users do: merge and save.
const MERGE: &str = "
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out, threads = sys.argv[1:5]
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
";

fn main() {
    let arguments = Arguments::parse();
    let shape = SHAPES.iter().find(|s| s.name == arguments.shape).expect("--shape is tiny, 1b or 8b");
    let base = arguments.dir.join(shape.name);
    let adapter = arguments.dir.join(format!("{}-lora-r{}", shape.name, arguments.rank));
    shape.write_base(&base).expect("the base can be written");
    shape.write_tokenizer(&base).expect("the tokenizer can be written");
    shape.write_adapter(&adapter, arguments.rank, &ALL_LINEAR).expect("the adapter can be written");
    let tenon = std::env::current_exe().expect("a program knows its path").with_file_name("tenon");
    assert!(tenon.exists(), "build it first: cargo build --release");
    let bench = Bench { arguments, base, adapter, tenon };

    let full = bench.arguments.dir.join(format!("{}-bf16.gguf", shape.name));
    if !full.exists() {
        run(bench.tenon().arg(&bench.base).arg("--out").arg(&full).args(["--type", "bf16"]));
    }
    println!(
        "{}, {} threads, {} rounds, medians",
        shape.name, bench.arguments.threads, bench.arguments.rounds
    );
    for quantization in &bench.arguments.quantizations {
        bench.quantize(&full, quantization);
    }
    if let (Some(convert), Some(python)) = (&bench.arguments.convert, &bench.arguments.python) {
        bench.whole_way(convert, python);
    }
}

struct Bench {
    arguments: Arguments,
    base: PathBuf,
    adapter: PathBuf,
    tenon: PathBuf,
}

impl Bench {
    fn tenon(&self) -> Command {
        let mut command = Command::new(&self.tenon);
        command.arg("gguf").arg("--threads").arg(self.arguments.threads.to_string());
        command
    }

    fn out(&self, name: &str) -> PathBuf {
        self.arguments.dir.join(name)
    }

    fn quantize(&self, full: &Path, quantization: &str) {
        let ours = self.out("ours.gguf");
        let theirs = self.out("theirs.gguf");
        let mut tenon = self.tenon();
        tenon.arg(&self.base).arg("--out").arg(&ours).args(["--quantization", quantization, "--overwrite"]);
        let mut programs = vec![("tenon gguf".to_string(), tenon)];
        for path in &self.arguments.llama_quantize {
            let mut command = Command::new(path);
            command.arg(full).arg(&theirs).arg(quantization.to_uppercase());
            command.arg(self.arguments.threads.to_string());
            programs.push((path.display().to_string(), command));
        }
        let mut runs: Vec<Vec<Run>> = vec![vec![]; programs.len()];
        // The first round only warms the page cache.
        for round in 0..=self.arguments.rounds {
            for ((_, command), runs) in programs.iter_mut().zip(&mut runs) {
                let run = run(command);
                if round > 0 {
                    runs.push(run);
                }
                if round == 0 && theirs.exists() {
                    let same = same_bytes(&ours, &theirs);
                    println!("{quantization}: bytes {}", if same { "the same" } else { "DIFFER" });
                }
                remove(&theirs);
            }
        }
        remove(&ours);
        println!("\n{quantization}");
        print(&programs, &runs);
    }

    /// From base and adapter to q4_K_M.
    fn whole_way(&self, convert: &Path, python: &Path) {
        let ours = self.out("whole-Q4_K_M.gguf");
        let (merged, full, theirs) =
            (self.out("whole"), self.out("whole-bf16.gguf"), self.out("whole-theirs.gguf"));
        let threads = self.arguments.threads.to_string();
        let mut runs: Vec<Vec<Run>> = vec![vec![]; 4];
        for round in 0..=self.arguments.rounds {
            let mut tenon = self.tenon();
            tenon.arg("--base").arg(&self.base).arg("--adapter").arg(&self.adapter);
            tenon.arg("--out").arg(&ours).args(["--quantization", "q4_K_M", "--overwrite"]);
            let mut merge = Command::new(python);
            merge.args(["-c", MERGE]).arg(&self.base).arg(&self.adapter).arg(&merged).arg(&threads);
            let mut converted = Command::new(python);
            converted.arg(convert).arg(&merged).arg("--outfile").arg(&full).args(["--outtype", "bf16"]);
            for command in [&mut merge, &mut converted] {
                command.env("HF_HUB_OFFLINE", "1").env("OMP_NUM_THREADS", &threads);
            }
            let mut quantize = Command::new(&self.arguments.llama_quantize[0]);
            quantize.arg(&full).arg(&theirs).arg("Q4_K_M").arg(&threads);
            let first = run(&mut tenon);
            let merging = run(&mut merge);
            std::fs::copy(self.base.join("tokenizer.model"), merged.join("tokenizer.model"))
                .expect("the tokenizer can be copied");
            let others = [first, merging, run(&mut converted), run(&mut quantize)];
            if round > 0 || self.arguments.rounds == 0 {
                runs.iter_mut().zip(others).for_each(|(runs, run)| runs.push(run));
            }
            std::fs::remove_dir_all(&merged).expect("the merged model can be removed");
            [&full, &theirs].into_iter().for_each(|path| remove(path));
        }
        remove(&ours);
        println!("\nbase + adapter to q4_K_M");
        let names = ["tenon gguf", "PEFT merge", "convert_hf_to_gguf.py", "llama-quantize"];
        let medians: Vec<f64> = runs.iter().map(|runs| median(runs.iter().map(|run| run.seconds))).collect();
        for ((name, runs), seconds) in names.iter().zip(&runs).zip(&medians) {
            println!("{name:44} {seconds:8.2} s  {:8.1} MB", peak(runs));
        }
        let sum: f64 = medians[1..].iter().sum();
        println!("{:44} {sum:8.2} s  ratio {:.2}", "the three together", sum / medians[0]);
    }
}

/// What a command took.
#[derive(Clone, Copy)]
struct Run {
    seconds: f64,
    /// Peak of resident memory, as far as it was seen.
    peak_kb: u64,
}

/// Runs a command to its end and watches its memory.
fn run(command: &mut Command) -> Run {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the command starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kb = 0;
    let end = loop {
        if let Some(end) = child.try_wait().expect("a child can be waited for") {
            break end;
        }
        let now = std::fs::read_to_string(&status).unwrap_or_default();
        let line = now.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        peak_kb = peak_kb.max(kb.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(end.success(), "{command:?} failed");
    Run { seconds: start.elapsed().as_secs_f64(), peak_kb }
}

fn print(programs: &[(String, Command)], runs: &[Vec<Run>]) {
    let ours = median(runs[0].iter().map(|run| run.seconds));
    for ((name, _), runs) in programs.iter().zip(runs) {
        let seconds = median(runs.iter().map(|run| run.seconds));
        println!("{name:44} {seconds:8.2} s  {:8.1} MB  ratio {:.2}", peak(runs), seconds / ours);
    }
}

fn peak(runs: &[Run]) -> f64 {
    runs.iter().map(|run| run.peak_kb).max().unwrap_or(0) as f64 * 1024.0 / 1e6
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn remove(path: &Path) {
    if path.exists() {
        std::fs::remove_file(path).expect("the output can be removed");
    }
}

/// Compares two files, a piece at a time.
fn same_bytes(a: &Path, b: &Path) -> bool {
    use std::io::Read;
    let open = |path: &Path| std::fs::File::open(path).expect("the output is there");
    let (mut a, mut b) = (open(a), open(b));
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = a.read(&mut x).expect("the output can be read");
        if n == 0 {
            return b.read(&mut y).expect("the output can be read") == 0;
        }
        if b.read_exact(&mut y[..n]).is_err() || x[..n] != y[..n] {
            return false;
        }
    }
}
