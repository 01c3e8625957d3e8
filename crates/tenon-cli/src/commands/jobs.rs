//! `tenon jobs`: Savings, deployments and what a server was asked for, under way and past.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use tenon::{Job, JobState, LogLine, Saving, Tenon, Timestamp};

use super::deploy::deployment_json;
use super::save::saving_json;
use crate::failure::Failure;
use crate::home::HomeArgument;
use crate::output;
use crate::table::{Table, facts};

/// Savings and deployments: queued, running and past
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  \
    tenon jobs\n  \
    tenon jobs --watch\n  \
    tenon jobs cancel 1a2b3c4d\n  \
    tenon jobs retry 1a2b3c4d")]
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
    /// Show what happened to one
    Log {
        /// Its UUID, or the beginning of it
        id: String,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Stop one
    Cancel {
        /// Its UUID, or the beginning of it
        id: String,
    },
    /// Begin one again that failed or was cancelled, as a new one
    Retry {
        /// Its UUID, or the beginning of it
        id: String,
        /// Return at once; tenon jobs shows how far it is
        #[arg(long)]
        detach: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What a job makes.
fn model(job: &Job) -> String {
    match job {
        Job::Saving(saving) => saving.model.to_string(),
        Job::Deployment(deployment) => format!("{} on {}", deployment.model, deployment.environment),
        Job::Task(task) => task.subject.clone(),
    }
}

fn reason(job: &Job) -> String {
    match job {
        Job::Saving(saving) => saving.reason.clone().unwrap_or_default(),
        Job::Deployment(deployment) => {
            let reason = deployment.reason.iter().cloned();
            let left = deployment.left_there.iter().map(|left| format!("left there: {left}"));
            reason.chain(left).collect::<Vec<_>>().join("; ")
        }
        Job::Task(task) => task.reason.clone().unwrap_or_default(),
    }
}

fn json(job: &Job) -> serde_json::Value {
    let mut object = match job {
        Job::Saving(saving) => saving_json(saving),
        Job::Deployment(deployment) => deployment_json(deployment),
        Job::Task(task) => serde_json::json!(task),
    };
    object["job"] = job.noun().to_lowercase().into();
    object
}

pub(crate) fn run(arguments: Arguments, home: &HomeArgument) -> Result<(), Failure> {
    let tenon = home.open()?;
    if crate::home::was_interrupted(&tenon) || has_orphans(&tenon)? {
        home.start_worker(None)?;
    }
    let out = &mut io::stdout();
    match arguments.command {
        None if arguments.watch => watch(out, &tenon, arguments.all),
        None => {
            let jobs = list(&tenon, arguments.all)?;
            if arguments.json {
                return Ok(output::json(out, &jobs.iter().map(json).collect::<Vec<_>>())?);
            }
            if jobs.is_empty() {
                writeln!(out, "No job is under way, and none ended today.")?;
                return Ok(());
            }
            Ok(write(out, &jobs)?)
        }
        Some(Command::Show { id, json: as_json }) => {
            let job = find(&tenon, &id)?;
            if as_json {
                return Ok(output::json(out, &json(&job))?);
            }
            let time = |time: Option<Timestamp>| time.map(output::time).unwrap_or_default();
            let text = |name: Option<&tenon::ModelName>| name.map(ToString::to_string).unwrap_or_default();
            let mut lines = match &job {
                Job::Saving(saving) => vec![
                    ("saving", saving.id.to_string()),
                    ("state", state(&job)),
                    ("reason", reason(&job)),
                    ("model", saving.model.to_string()),
                    ("customized", saving.customized.to_string()),
                    ("base", saving.base.to_string()),
                ],
                Job::Deployment(deployment) => vec![
                    ("deployment", deployment.id.to_string()),
                    ("state", state(&job)),
                    ("reason", deployment.reason.clone().unwrap_or_default()),
                    ("what to do", deployment.remedy.clone().unwrap_or_default()),
                    ("left there", deployment.left_there.join("; ")),
                    ("last heard", deployment.said.clone().unwrap_or_default()),
                    ("complete", text(deployment.complete.as_ref())),
                    ("adapter of", text(deployment.adapter.as_ref())),
                    ("environment", deployment.environment.to_string()),
                    ("name there", deployment.model.clone()),
                    ("quantization", deployment.quantization.to_string()),
                    ("sent", output::bytes(deployment.sent_bytes)),
                ],
                Job::Task(task) => vec![
                    ("job", task.id.to_string()),
                    ("verb", task.verb.clone()),
                    ("state", state(&job)),
                    ("reason", reason(&job)),
                    ("makes", task.subject.clone()),
                    ("result", task.result.as_ref().map(ToString::to_string).unwrap_or_default()),
                ],
            };
            let course = job.course();
            lines.extend([
                ("queued", output::time(course.created)),
                ("started", time(course.started)),
                ("ended", time(course.finished)),
                ("attempts", course.attempts.to_string()),
                ("process", course.pid.map(|pid| pid.to_string()).unwrap_or_default()),
            ]);
            Ok(facts(out, &lines)?)
        }
        Some(Command::Log { id, json }) => {
            let lines = tenon.job_log(find(&tenon, &id)?.id())?;
            if json {
                return Ok(output::json(out, &lines)?);
            }
            let mut table = Table::new(&["TIME", "WHAT", "DETAIL"]);
            for LogLine { time, step, detail } in lines {
                let step = serde_json::to_value(step).ok().and_then(|word| word.as_str().map(str::to_string));
                table.row(vec![output::time(time), step.unwrap_or_default(), detail]);
            }
            Ok(table.write(out)?)
        }
        Some(Command::Cancel { id }) => {
            let job = tenon.cancel_job(find(&tenon, &id)?.id())?;
            let is_ended = !job.is_open();
            let mut noun = job.noun().to_string();
            noun[..1].make_ascii_uppercase();
            write!(out, "{noun} {}", job.id())?;
            let how = if is_ended { "is cancelled" } else { "was asked to stop" };
            Ok(writeln!(out, " {how}.")?)
        }
        Some(Command::Retry { id, detach, json: as_json }) => {
            let job = find(&tenon, &id)?;
            if !job.is_retryable() {
                let (noun, state) = (job.noun(), job.state_name());
                let reason = "only what failed or was cancelled is begun again";
                return Err(Failure::Usage(format!("{noun} {} is {state}; {reason}", job.id())));
            }
            match job {
                Job::Saving(saving) => {
                    let queued = tenon.queue(saving.customized.as_str())?;
                    super::save::follow(&tenon, home, queued, detach, as_json)
                }
                Job::Deployment(deployment) => {
                    let queued = tenon.retry_deployment(deployment.id)?;
                    super::deploy::follow(&tenon, home, queued, detach, as_json)
                }
                Job::Task(task) => {
                    let job = tenon.retry_job(task.id)?;
                    if as_json {
                        return Ok(output::json(out, &json(&job))?);
                    }
                    Ok(writeln!(out, "{} {} is queued; tenon serve works on it.", job.noun(), job.id())?)
                }
            }
        }
    }
}

/// Whether a job waits for a process to take it up.
fn has_orphans(tenon: &Tenon) -> Result<bool, Failure> {
    let open = tenon.registry().open_jobs::<Saving>().map_err(tenon::Error::from)?;
    for saving in open.iter().filter(|saving| saving.state == JobState::Queued) {
        if tenon.adopt(Some(saving.id))?.is_some() {
            return Ok(true);
        }
    }
    Ok(tenon.adopt_deployment(None)?.is_some())
}

fn list(tenon: &Tenon, all: bool) -> Result<Vec<Job>, Failure> {
    let mut jobs = tenon.jobs()?;
    let now = Timestamp::now().as_second();
    jobs.retain(|job| all || job.course().finished.is_none_or(|end| now - end.as_second() < 24 * 3600));
    Ok(jobs)
}

fn find(tenon: &Tenon, id: &str) -> Result<Job, Failure> {
    let id = id.to_lowercase();
    let mut matching = tenon.jobs()?.into_iter().filter(|job| job.id().to_string().starts_with(&id));
    match (matching.next(), matching.next()) {
        (Some(job), None) => Ok(job),
        (None, _) => Err(Failure::Usage(format!("no job begins with {id:?}; tenon jobs --all lists them"))),
        (Some(_), Some(_)) => {
            Err(Failure::Usage(format!("several jobs begin with {id:?}; write more of it")))
        }
    }
}

fn state(job: &Job) -> String {
    let course = job.course();
    match job.state_name() {
        _ if job.is_open() && course.cancel => "stopping".into(),
        name if job.is_running() && course.total_bytes > 0 => {
            format!("{name} {:.0} %", course.share() * 100.0)
        }
        name => name.into(),
    }
}

fn write(out: &mut dyn Write, jobs: &[Job]) -> io::Result<()> {
    let mut table = Table::new(&["JOB", "WHAT", "STATE", "QUEUED", "MODEL", "REASON"]);
    for job in jobs {
        table.row(vec![
            job.id().to_string()[..8].to_string(),
            job.noun().to_lowercase(),
            state(job),
            output::time(job.course().created),
            model(job),
            reason(job),
        ]);
    }
    table.write(out)
}

/// On a terminal the table stays in its place; elsewhere each change of a state is a line.
fn watch(out: &mut dyn Write, tenon: &Tenon, all: bool) -> Result<(), Failure> {
    let in_place = io::stdout().is_terminal();
    let mut before: Vec<Job> = vec![];
    let mut lines = 0;
    loop {
        tenon.recover()?;
        let jobs = list(tenon, all)?;
        if in_place {
            let mut text = vec![];
            write(&mut text, &jobs)?;
            if lines > 0 {
                write!(out, "\x1b[{lines}A\x1b[J")?;
            }
            lines = text.iter().filter(|byte| **byte == b'\n').count();
            out.write_all(&text)?;
        } else {
            for job in &jobs {
                let old = before.iter().find(|old| old.id() == job.id());
                if old.is_none_or(|old| old.state_name() != job.state_name()) {
                    let reason = Some(reason(job)).filter(|reason| !reason.is_empty());
                    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                    writeln!(out, "{} {} {}{reason}", job.id(), job.state_name(), model(job))?;
                }
            }
        }
        out.flush()?;
        if !jobs.iter().any(Job::is_open) {
            return Ok(());
        }
        before = jobs;
        std::thread::sleep(Duration::from_millis(300));
    }
}
