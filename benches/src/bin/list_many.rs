//! `tenon list` with thousands of Complete Models, from cold start, against `ls` of their directory.
//!
//! `cargo build --release && cargo run --release -p tenon-benches --bin list_many`
#![allow(clippy::print_stdout)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use tenon_registry::catalogue::{self, Catalogue, SqliteCatalogue};
use tenon_registry::{CompleteModel, ModelName, ModelSummary, Timestamp, Uuid};

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
    std::fs::create_dir_all(home.join("complete")).expect("a home can be made");
    let (catalogue, _) = SqliteCatalogue::open(&home.join("catalogue.db")).expect("a catalogue can be made");
    let name = |text: String| ModelName::new(text).expect("a name");
    catalogue
        .transaction(&mut |change| {
            for i in 0..models {
                let saving = Uuid::from_u128(u128::from(i) << 96 | 0x4000_8000_0000_0000_0000);
                let customized = name(format!("Llama-3.2-1B_run-{i}_20260309_{:04x}", i % 65536));
                let model = CompleteModel {
                    name: name(format!("{customized}_s_{:04x}", i % 65536)),
                    saving,
                    customized,
                    base: name("Llama-3.2-1B".into()),
                    created: Timestamp::from_second(1_770_000_000 + i as i64).expect("a time"),
                    model: ModelSummary {
                        architecture: "LlamaForCausalLM".into(),
                        parameters: 1_235_814_400,
                        dtype: "BF16".into(),
                        bytes: 2_471_645_608,
                    },
                    bytes: 2_481_000_000,
                };
                std::fs::create_dir(home.join("complete").join(model.name.as_str())).expect("a directory");
                catalogue::insert(change, &model)?;
            }
            Ok(())
        })
        .expect("the models can be listed");
    drop(catalogue);
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
