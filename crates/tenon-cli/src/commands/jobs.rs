//! `tenon jobs`: Savings under way and past.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use tenon::{Saving, SavingState, Tenon, Timestamp};

use super::save::{saving_json, share};
use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::table::{Table, facts};

/// Savings: queued, running and past
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  \
    tenon jobs\n  \
    tenon jobs --watch\n  \
    tenon jobs cancel 1a2b3c4d")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Show them as they go on, until none is left
    #[arg(long)]
    watch: bool,

    /// Also those that ended more than a day ago
    #[arg(long)]
    all: bool,

    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show one
    Show {
        /// Its UUID, or the beginning of it
        id: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Stop one
    Cancel {
        /// Its UUID, or the beginning of it
        id: String,
    },
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let tenon = home.open()?;
    if crate::home::was_interrupted(&tenon) || has_orphans(&tenon)? {
        home.start_worker(None)?;
    }
    let out = &mut io::stdout().lock();
    match arguments.command {
        None if arguments.watch => watch(out, &tenon, arguments.all),
        None => {
            let savings = list(&tenon, arguments.all)?;
            if arguments.json {
                return Ok(output::json(out, &savings.iter().map(saving_json).collect::<Vec<_>>())?);
            }
            if savings.is_empty() {
                writeln!(out, "No Saving is under way, and none ended today.")?;
                return Ok(());
            }
            Ok(write(out, &savings)?)
        }
        Some(Command::Show { id, json }) => {
            let saving = find(&tenon, &id)?;
            if json {
                return Ok(output::json(out, &saving_json(&saving))?);
            }
            let time = |time: Option<Timestamp>| time.map(output::time).unwrap_or_default();
            Ok(facts(
                out,
                &[
                    ("saving", saving.id.to_string()),
                    ("state", state(&saving)),
                    ("reason", saving.reason.clone().unwrap_or_default()),
                    ("model", saving.model.to_string()),
                    ("customized", saving.customized.to_string()),
                    ("base", saving.base.to_string()),
                    ("queued", output::time(saving.created)),
                    ("started", time(saving.started)),
                    ("ended", time(saving.finished)),
                    ("attempts", saving.attempts.to_string()),
                    ("process", saving.pid.map(|pid| pid.to_string()).unwrap_or_default()),
                ],
            )?)
        }
        Some(Command::Cancel { id }) => {
            let saving = find(&tenon, &id)?;
            let saving = tenon.registry().cancel(saving.id).map_err(tenon::Error::from)?;
            let how =
                if saving.state == SavingState::Cancelled { "is cancelled" } else { "was asked to stop" };
            Ok(writeln!(out, "Saving {} {how}.", saving.id)?)
        }
    }
}

/// Whether a Saving waits for a process to take it up.
fn has_orphans(tenon: &Tenon) -> Result<bool, Failure> {
    let open = tenon.registry().open_savings().map_err(tenon::Error::from)?;
    for saving in open.iter().filter(|saving| saving.state == SavingState::Queued) {
        if tenon.adopt(Some(saving.id))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn list(tenon: &Tenon, all: bool) -> Result<Vec<Saving>, Failure> {
    let mut savings: Vec<Saving> = tenon.registry().all().map_err(tenon::Error::from)?;
    let now = Timestamp::now().as_second();
    savings.retain(|saving| all || saving.finished.is_none_or(|end| now - end.as_second() < 24 * 3600));
    Ok(savings)
}

fn find(tenon: &Tenon, id: &str) -> Result<Saving, Failure> {
    let all: Vec<Saving> = tenon.registry().all().map_err(tenon::Error::from)?;
    let id = id.to_lowercase();
    let mut matching = all.into_iter().filter(|saving| saving.id.to_string().starts_with(&id));
    match (matching.next(), matching.next()) {
        (Some(saving), None) => Ok(saving),
        (None, _) => {
            Err(Failure::Usage(format!("no Saving begins with {id:?}; tenon jobs --all lists them")))
        }
        (Some(_), Some(_)) => {
            Err(Failure::Usage(format!("several Savings begin with {id:?}; write more of it")))
        }
    }
}

fn state(saving: &Saving) -> String {
    match saving.state {
        SavingState::Running if saving.cancel => "stopping".into(),
        SavingState::Running => format!("running {:.0} %", share(saving) * 100.0),
        state => state.name().into(),
    }
}

fn write(out: &mut dyn Write, savings: &[Saving]) -> io::Result<()> {
    let mut table = Table::new(&["SAVING", "STATE", "QUEUED", "MODEL", "REASON"]);
    for saving in savings {
        table.row(vec![
            saving.id.to_string()[..8].to_string(),
            state(saving),
            output::time(saving.created),
            saving.model.to_string(),
            saving.reason.clone().unwrap_or_default(),
        ]);
    }
    table.write(out)
}

/// On a terminal the table stays in its place; elsewhere each change of a state is a line.
fn watch(out: &mut dyn Write, tenon: &Tenon, all: bool) -> Result<(), Failure> {
    let in_place = io::stdout().is_terminal();
    let mut before: Vec<Saving> = vec![];
    let mut lines = 0;
    loop {
        tenon.registry().recover().map_err(tenon::Error::from)?;
        let savings = list(tenon, all)?;
        if in_place {
            let mut text = vec![];
            write(&mut text, &savings)?;
            if lines > 0 {
                write!(out, "\x1b[{lines}A\x1b[J")?;
            }
            lines = text.iter().filter(|byte| **byte == b'\n').count();
            out.write_all(&text)?;
        } else {
            for saving in &savings {
                if before.iter().find(|old| old.id == saving.id).is_none_or(|old| old.state != saving.state) {
                    let reason =
                        saving.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                    writeln!(out, "{} {} {}{reason}", saving.id, saving.state.name(), saving.model)?;
                }
            }
        }
        out.flush()?;
        if !savings.iter().any(|saving| saving.state.is_open()) {
            return Ok(());
        }
        before = savings;
        std::thread::sleep(Duration::from_millis(300));
    }
}
