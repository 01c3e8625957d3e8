//! Opening the home, and saying what a crash left in it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tenon::{Recovered, Tenon, Uuid};

use crate::failure::Failure;

/// Where the home is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct HomeArgument {
    /// Directory that holds the catalogue and the Complete Models [default: tenon in the data directory]
    #[arg(long, env = "TENON_HOME", value_name = "DIR", global = true, hide_env_values = true)]
    home: Option<PathBuf>,

    /// Tensor bytes in a shard at most (for tests of many shards)
    #[arg(long, env = "TENON_MAX_SHARD_SIZE", value_name = "BYTES", global = true, hide = true)]
    saved_shard_size: Option<u64>,
}

impl HomeArgument {
    fn path(&self) -> Result<PathBuf, Failure> {
        let home = self.home.clone().filter(|home| !home.as_os_str().is_empty()).or_else(Tenon::default_home);
        home.ok_or_else(|| Failure::Usage("no data directory is known for this user; pass --home DIR".into()))
    }

    /// Opens it and says what was found left over.
    pub(crate) fn open(&self) -> Result<Tenon, Failure> {
        let mut tenon = Tenon::open(&self.path()?)?;
        if let Some(bytes) = self.saved_shard_size {
            tenon = tenon.max_shard_size(bytes);
        }
        let mut err = std::io::stderr().lock();
        for recovered in tenon.recovered() {
            let note = match recovered {
                Recovered::Published(saving) => format!(
                    "Saving {} was cut short after its model was whole; {} is listed",
                    saving.id, saving.model
                ),
                Recovered::Requeued(saving) => format!(
                    "Saving {} of {} was interrupted; it is queued again and goes on from its finished shards (tenon jobs resumes it)",
                    saving.id, saving.customized
                ),
                Recovered::Failed(saving) => {
                    format!(
                        "Saving {} of {} was cleaned up: {}",
                        saving.id,
                        saving.customized,
                        saving.reason.as_deref().unwrap_or("it failed")
                    )
                }
                Recovered::Deleted(id) => {
                    format!("the delete of the model of Saving {id} was cut short; it is through now")
                }
                Recovered::DeploymentRequeued(deployment) => format!(
                    "deployment {} of {} was interrupted; it is queued again and sends only what is not there yet (tenon jobs resumes it)",
                    deployment.id,
                    deployment.subject()
                ),
                Recovered::DeploymentFailed(deployment) => format!(
                    "deployment {} of {} was given up: {}",
                    deployment.id,
                    deployment.subject(),
                    deployment.reason.as_deref().unwrap_or("it failed")
                ),
                Recovered::TaskRequeued(task) => format!(
                    "{} {} was interrupted; it is queued again (tenon serve takes it up)",
                    task.verb, task.subject
                ),
                Recovered::TaskFailed(task) => format!(
                    "{} {} was given up: {}",
                    task.verb,
                    task.subject,
                    task.reason.as_deref().unwrap_or("it failed")
                ),
                Recovered::Swept(path) => format!("removed what was left in {}", path.display()),
            };
            // Nothing can be done when standard error is closed.
            let _ = writeln!(err, "note: {note}");
        }
        Ok(tenon)
    }

    /// Starts a process that works on queued Savings and deployments, and survives this one.
    pub(crate) fn start_worker(&self, id: Option<Uuid>) -> Result<(), Failure> {
        self.start_worker_with("--id", id)
    }

    /// The same, beginning with a deployment.
    pub(crate) fn start_worker_for_deployment(&self, id: Uuid) -> Result<(), Failure> {
        self.start_worker_with("--deployment", Some(id))
    }

    fn start_worker_with(&self, argument: &str, id: Option<Uuid>) -> Result<(), Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("work").arg("--home").arg(self.path()?);
        if let Some(id) = id {
            command.arg(argument).arg(id.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir("/").spawn()?;
        Ok(())
    }
}

/// Whether opening found a job that has to go on.
pub(crate) fn was_interrupted(tenon: &Tenon) -> bool {
    tenon
        .recovered()
        .iter()
        .any(|recovered| matches!(recovered, Recovered::Requeued(_) | Recovered::DeploymentRequeued(_)))
}

/// Becomes a session of its own, so that a closing terminal takes no notice of this process.
pub(crate) fn leave_terminal() {
    // Fails only for the leader of a group, which a worker is not.
    let _ = rustix::process::setsid();
}
