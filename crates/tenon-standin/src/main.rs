//! `tenon-standin [--port N] [--version V] [--rules FILE]`: serves until it is killed, and prints its
//! address. The file has a JSON array of rules.
#![allow(clippy::print_stdout)] // a program for tests

use std::process::ExitCode;

use tenon_standin::{Rule, StandIn};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let (mut port, mut version, mut rules) = (0, None, vec![]);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--port" => port = value.parse().map_err(|e| format!("--port {value}: {e}"))?,
            "--version" => version = Some(value),
            "--rules" => {
                let text = std::fs::read_to_string(&value).map_err(|e| format!("{value}: {e}"))?;
                rules = serde_json::from_str::<Vec<Rule>>(&text).map_err(|e| format!("{value}: {e}"))?;
            }
            other => return Err(format!("there is no argument {other}")),
        }
    }
    let server = StandIn::start_on(port).map_err(|e| e.to_string())?;
    version.iter().for_each(|version| server.set_version(version));
    rules.into_iter().for_each(|rule| server.add_rule(rule));
    println!("{}", server.url());
    server.wait();
    Ok(())
}
