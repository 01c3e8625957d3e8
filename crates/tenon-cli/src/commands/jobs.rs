//! `tenon jobs`: Savings and deployments under way and past.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use tenon::{Deployment, DeploymentState, Saving, SavingState, Tenon, Timestamp, Uuid};

use super::deploy::deployment_json;
use super::save::{saving_json, share};
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

/// A Saving or a deployment.
#[derive(Debug, Clone)]
enum Job {
    Saving(Saving),
    Deployment(Deployment),
}

impl Job {
    fn id(&self) -> Uuid {
        match self {
            Job::Saving(saving) => saving.id,
            Job::Deployment(deployment) => deployment.id,
        }
    }

    fn noun(&self) -> &'static str {
        match self {
            Job::Saving(_) => "Saving",
            Job::Deployment(_) => "deployment",
        }
    }

    fn created(&self) -> Timestamp {
        match self {
            Job::Saving(saving) => saving.created,
            Job::Deployment(deployment) => deployment.created,
        }
    }

    fn finished(&self) -> Option<Timestamp> {
        match self {
            Job::Saving(saving) => saving.finished,
            Job::Deployment(deployment) => deployment.finished,
        }
    }

    fn is_open(&self) -> bool {
        match self {
            Job::Saving(saving) => saving.state.is_open(),
            Job::Deployment(deployment) => deployment.state.is_open(),
        }
    }

    fn state_name(&self) -> &'static str {
        match self {
            Job::Saving(saving) => saving.state.name(),
            Job::Deployment(deployment) => deployment.state.name(),
        }
    }

    /// What it makes.
    fn model(&self) -> String {
        match self {
            Job::Saving(saving) => saving.model.to_string(),
            Job::Deployment(deployment) => format!("{} on {}", deployment.model, deployment.environment),
        }
    }

    fn reason(&self) -> String {
        match self {
            Job::Saving(saving) => saving.reason.clone().unwrap_or_default(),
            Job::Deployment(deployment) => {
                let reason = deployment.reason.iter().cloned();
                let left = deployment.left_there.iter().map(|left| format!("left there: {left}"));
                reason.chain(left).collect::<Vec<_>>().join("; ")
            }
        }
    }

    fn json(&self) -> serde_json::Value {
        let mut object = match self {
            Job::Saving(saving) => saving_json(saving),
            Job::Deployment(deployment) => deployment_json(deployment),
        };
        object["job"] = self.noun().to_lowercase().into();
        object
    }
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
            let jobs = list(&tenon, arguments.all)?;
            if arguments.json {
                return Ok(output::json(out, &jobs.iter().map(Job::json).collect::<Vec<_>>())?);
            }
            if jobs.is_empty() {
                writeln!(out, "No job is under way, and none ended today.")?;
                return Ok(());
            }
            Ok(write(out, &jobs)?)
        }
        Some(Command::Show { id, json }) => {
            let job = find(&tenon, &id)?;
            if json {
                return Ok(output::json(out, &job.json())?);
            }
            let time = |time: Option<Timestamp>| time.map(output::time).unwrap_or_default();
            let pid = |pid: Option<u32>| pid.map(|pid| pid.to_string()).unwrap_or_default();
            let lines = match &job {
                Job::Saving(saving) => vec![
                    ("saving", saving.id.to_string()),
                    ("state", state(&job)),
                    ("reason", job.reason()),
                    ("model", saving.model.to_string()),
                    ("customized", saving.customized.to_string()),
                    ("base", saving.base.to_string()),
                    ("queued", output::time(saving.created)),
                    ("started", time(saving.started)),
                    ("ended", time(saving.finished)),
                    ("attempts", saving.attempts.to_string()),
                    ("process", pid(saving.pid)),
                ],
                Job::Deployment(deployment) => vec![
                    ("deployment", deployment.id.to_string()),
                    ("state", state(&job)),
                    ("reason", deployment.reason.clone().unwrap_or_default()),
                    ("what to do", deployment.remedy.clone().unwrap_or_default()),
                    ("left there", deployment.left_there.join("; ")),
                    ("last heard", deployment.said.clone().unwrap_or_default()),
                    ("complete", deployment.complete.to_string()),
                    ("environment", deployment.environment.to_string()),
                    ("name there", deployment.model.clone()),
                    ("quantization", deployment.quantization.to_string()),
                    ("sent", output::bytes(deployment.sent_bytes)),
                    ("queued", output::time(deployment.created)),
                    ("started", time(deployment.started)),
                    ("ended", time(deployment.finished)),
                    ("attempts", deployment.attempts.to_string()),
                    ("process", pid(deployment.pid)),
                ],
            };
            Ok(facts(out, &lines)?)
        }
        Some(Command::Cancel { id }) => {
            let is_ended = match find(&tenon, &id)? {
                Job::Saving(saving) => {
                    let saving = tenon.registry().cancel(saving.id).map_err(tenon::Error::from)?;
                    write!(out, "Saving {}", saving.id)?;
                    saving.state == SavingState::Cancelled
                }
                Job::Deployment(deployment) => {
                    let deployment = tenon.cancel_deployment(deployment.id)?;
                    write!(out, "Deployment {}", deployment.id)?;
                    deployment.state == DeploymentState::Cancelled
                }
            };
            let how = if is_ended { "is cancelled" } else { "was asked to stop" };
            Ok(writeln!(out, " {how}.")?)
        }
    }
}

/// Whether a job waits for a process to take it up.
fn has_orphans(tenon: &Tenon) -> Result<bool, Failure> {
    let open = tenon.registry().open_savings().map_err(tenon::Error::from)?;
    for saving in open.iter().filter(|saving| saving.state == SavingState::Queued) {
        if tenon.adopt(Some(saving.id))?.is_some() {
            return Ok(true);
        }
    }
    Ok(tenon.adopt_deployment(None)?.is_some())
}

fn all_jobs(tenon: &Tenon) -> Result<Vec<Job>, Failure> {
    let savings: Vec<Saving> = tenon.registry().all().map_err(tenon::Error::from)?;
    let deployments = tenon.deployments()?.into_iter().map(Job::Deployment);
    let mut jobs: Vec<_> = savings.into_iter().map(Job::Saving).chain(deployments).collect();
    jobs.sort_by_key(Job::created);
    Ok(jobs)
}

fn list(tenon: &Tenon, all: bool) -> Result<Vec<Job>, Failure> {
    let mut jobs = all_jobs(tenon)?;
    let now = Timestamp::now().as_second();
    jobs.retain(|job| all || job.finished().is_none_or(|end| now - end.as_second() < 24 * 3600));
    Ok(jobs)
}

fn find(tenon: &Tenon, id: &str) -> Result<Job, Failure> {
    let id = id.to_lowercase();
    let mut matching = all_jobs(tenon)?.into_iter().filter(|job| job.id().to_string().starts_with(&id));
    match (matching.next(), matching.next()) {
        (Some(job), None) => Ok(job),
        (None, _) => Err(Failure::Usage(format!("no job begins with {id:?}; tenon jobs --all lists them"))),
        (Some(_), Some(_)) => {
            Err(Failure::Usage(format!("several jobs begin with {id:?}; write more of it")))
        }
    }
}

fn state(job: &Job) -> String {
    match job {
        Job::Saving(saving) if saving.state == SavingState::Running && !saving.cancel => {
            format!("running {:.0} %", share(saving) * 100.0)
        }
        Job::Saving(Saving { cancel: true, state: SavingState::Running, .. }) => "stopping".into(),
        Job::Deployment(deployment) if deployment.cancel && deployment.state.is_open() => "stopping".into(),
        Job::Deployment(deployment) if deployment.state.is_open() && deployment.total_bytes > 0 => {
            format!("{} {:.0} %", deployment.state.name(), super::deploy::share(deployment) * 100.0)
        }
        job => job.state_name().into(),
    }
}

fn write(out: &mut dyn Write, jobs: &[Job]) -> io::Result<()> {
    let mut table = Table::new(&["JOB", "WHAT", "STATE", "QUEUED", "MODEL", "REASON"]);
    for job in jobs {
        table.row(vec![
            job.id().to_string()[..8].to_string(),
            job.noun().to_lowercase(),
            state(job),
            output::time(job.created()),
            job.model(),
            job.reason(),
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
        tenon.registry().recover().map_err(tenon::Error::from)?;
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
                    let reason = Some(job.reason()).filter(|reason| !reason.is_empty());
                    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                    writeln!(out, "{} {} {}{reason}", job.id(), job.state_name(), job.model())?;
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
