//! Errors as a person reads them: what is wrong, then what to do.

use std::io::Write;
use std::process::ExitCode;

use tenon::{CheckpointError, DeployError, Error, MergeError, RegistryError};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A verb of the facade did.
    Tenon(Error),
    /// Standard output did.
    Output(std::io::Error),
    /// The arguments ask for what cannot be.
    Usage(String),
    /// What was compared is not the same; what, was printed.
    Differs,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Tenon(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Output(error)
    }
}

impl Failure {
    /// Says it on standard error and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let mut err = std::io::stderr().lock();
        // Nothing can be done when standard error is closed.
        let code = match &self {
            // Somebody closed the pipe that the result goes to, as `head` does: no news to them.
            Failure::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 1,
            Failure::Output(error) => {
                let _ = writeln!(err, "error: cannot write the result: {error}");
                1
            }
            Failure::Usage(sentence) => {
                let _ = writeln!(err, "error: {sentence}");
                2
            }
            Failure::Differs => 6,
            Failure::Tenon(Error::LeftThere { error, left }) if error.is_cancelled() => {
                let _ = writeln!(err, "cancelled; this stays there: {}", left.join("; "));
                130
            }
            Failure::Tenon(error) if error.is_cancelled() => {
                let _ = writeln!(err, "cancelled; nothing was left behind");
                130
            }
            Failure::Tenon(error) => {
                let _ = writeln!(err, "error: {error}");
                if let Some(hint) = hint(error) {
                    let _ = writeln!(err, "  hint: {hint}");
                }
                code(error)
            }
        };
        ExitCode::from(code)
    }
}

fn code(error: &Error) -> u8 {
    match error {
        Error::OnlyQuantized { .. } => 2,
        Error::Checkpoint(CheckpointError::DiskFull { .. }) => 4,
        Error::Checkpoint(CheckpointError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::StorageFull
                || source.kind() == std::io::ErrorKind::QuotaExceeded =>
        {
            4
        }
        Error::Checkpoint(CheckpointError::TargetExists { .. } | CheckpointError::TargetNotAModel { .. }) => {
            5
        }
        Error::Checkpoint(CheckpointError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            3
        }
        Error::Checkpoint(CheckpointError::Io { .. } | CheckpointError::WorkerPanicked(_)) => 1,
        Error::Registry(RegistryError::NoRoom { .. }) => 4,
        Error::Registry(RegistryError::Taken { .. } | RegistryError::InUse { .. }) => 5,
        Error::Registry(RegistryError::Catalogue { source, .. }) if is_full(source) => 4,
        Error::Registry(RegistryError::Catalogue { .. }) => 1,
        Error::NotSwept { error, .. } | Error::NotEnded { error, .. } | Error::LeftThere { error, .. } => {
            code(error)
        }
        Error::Registry(RegistryError::SameDeployment { .. }) => 5,
        Error::NameTakenThere { .. } | Error::OutExists { .. } => 5,
        Error::Deploy(error) => match error {
            DeployError::BadUrl { .. }
            | DeployError::UnknownOption { .. }
            | DeployError::BadOption { .. }
            | DeployError::NoKey { .. }
            | DeployError::Certificates { .. }
            | DeployError::BadModelName { .. }
            | DeployError::Unsupported { .. }
            | DeployError::NeedsTemplate { .. }
            | DeployError::Template { .. } => 3,
            _ => 1,
        },
        _ => 3,
    }
}

fn is_full(error: &impl std::fmt::Display) -> bool {
    error.to_string().contains("disk is full")
}

/// What the error's own sentence does not say already.
fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::LeftThere { error, .. } | Error::NotEnded { error, .. } => hint(error),
        Error::Deploy(error) => error.remedy(),
        Error::Registry(RegistryError::SameDeployment { .. }) => {
            Some("tenon jobs --watch shows how far it is")
        }
        Error::Merge(MergeError::NoHome { .. }) => Some(
            "is this the base that the adapter was trained on? adapter_config.json names it as base_model_name_or_path",
        ),
        Error::Merge(MergeError::Empty) => Some(
            "training frameworks with sharded state (DeepSpeed ZeRO-3, FSDP) save an empty adapter unless it is gathered first",
        ),
        Error::Merge(MergeError::Ambiguous { .. }) => Some(
            "the adapter names its modules by a path that the base does not have; save it with the PEFT version that trained it",
        ),
        Error::Merge(MergeError::NoAdapter { .. }) => Some(
            "an adapter directory has adapter_config.json and adapter_model.safetensors; training checkpoints have them in checkpoint-N/",
        ),
        Error::NoConfig { .. } | Error::Checkpoint(CheckpointError::NoModel { .. }) => {
            Some("a base is a directory with config.json and model.safetensors (or shards and their index)")
        }
        Error::Checkpoint(CheckpointError::Header { .. } | CheckpointError::Index { .. }) => {
            Some("the file is damaged or incomplete; download or copy it again and compare its SHA-256")
        }
        Error::Registry(RegistryError::NotFound { what, nearest: None, .. }) => Some(match *what {
            "Base Model" => "tenon base list shows those there are",
            "Customized Model" => "tenon customized list shows those there are",
            "Deployment Environment" => "tenon env list shows those there are",
            "Live Model" => "tenon live list shows those there are",
            "Saving" | "deployment" => "tenon jobs --all shows those there are",
            _ => "tenon list shows those there are",
        }),
        Error::Registry(RegistryError::Catalogue { .. }) => Some(
            "the catalogue can be rebuilt: move it away, and any command makes a new one from the models' manifests",
        ),
        _ => None,
    }
}
