//! `tenon list` with thousands of Complete Models, from cold start, against `ls` of their directory.
//!
//! `cargo build --release && cargo run --release -p tenon-benches --bin list_many`
#![allow(clippy::print_stdout)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use tenon_benches::home_with_models;

#[derive(Parser)]
struct Arguments {
    /// Complete Models in the catalogue
    #[arg(long, default_value_t = 10_000)]
    models: u64,
    /// Runs of each command
    #[arg(long, default_value_t = 51)]
    rounds: usize,
}

fn main() {
    let Arguments { models, rounds } = Arguments::parse();
    let home = std::env::temp_dir().join(format!("tenon-list-many-{}", std::process::id()));
    home_with_models(&home, models);
    let tenon = std::env::current_exe().expect("a program knows its path").with_file_name("tenon");
    assert!(tenon.exists(), "build it first: cargo build --release");
    let mut list = Command::new(&tenon);
    list.args(["list"]).env("TENON_HOME", &home).stdout(Stdio::null());
    let mut json = Command::new(&tenon);
    json.args(["list", "--json"]).env("TENON_HOME", &home).stdout(Stdio::null());
    let mut ls = Command::new("ls");
    ls.arg("-l").arg(home.join("complete")).stdout(Stdio::null());
    let mut commands = [("tenon list", list), ("tenon list --json", json), ("ls -l complete", ls)];
    let mut times = vec![vec![]; commands.len()];
    for _ in 0..rounds {
        for ((_, command), times) in commands.iter_mut().zip(&mut times) {
            let start = Instant::now();
            let status = command.status().expect("the command runs");
            times.push(start.elapsed());
            assert!(status.success());
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    println!("{models} Complete Models, medians of {rounds} cold starts in turns:");
    for ((name, _), times) in commands.iter().zip(&mut times) {
        println!("{name:<18} {:6.1} ms", median(times).as_secs_f64() * 1e3);
    }
    std::fs::remove_dir_all(&home).expect("the home can be removed");
}
