//! The output directory of a training, as the Hugging Face Trainer, Unsloth and Axolotl leave it:
//! `checkpoint-N` folders, each with an adapter and the trainer's state.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use tenon_checkpoint::read_json;

use crate::recognise::recognise;
use crate::{Error, Located, What};

/// One checkpoint folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainingCheckpoint {
    /// Its name, such as `checkpoint-500`.
    pub name: String,
    /// Optimizer step, from its name.
    pub step: u64,
    /// Epoch, from the trainer's state.
    pub epoch: Option<f64>,
    /// Loss that was logged last.
    pub loss: Option<f64>,
    /// The checkpoint that the trainer named the best so far, by its name.
    pub best: Option<String>,
    /// Whether an adapter is in it.
    pub has_adapter: bool,
}

/// The checkpoint folders among names, by step. None if none of them has an adapter.
pub(crate) fn checkpoints(dir: &Path, names: &[String]) -> Result<Vec<TrainingCheckpoint>, Error> {
    let mut found = vec![];
    for name in names {
        let Some(step) = name.strip_prefix("checkpoint-").and_then(|step| step.parse().ok()) else {
            continue;
        };
        let path = dir.join(name);
        if !path.is_dir() {
            continue;
        }
        let state: Value = read_json(&path.join("trainer_state.json")).unwrap_or(Value::Null);
        let logged = state.get("log_history").and_then(Value::as_array);
        let loss = logged.and_then(|log| log.iter().rev().find_map(|entry| entry.get("loss")?.as_f64()));
        let best = state.get("best_model_checkpoint").and_then(Value::as_str);
        let best = best.and_then(|best| Some(Path::new(best).file_name()?.to_string_lossy().into_owned()));
        // Folders hold no folders of their own, so this goes one level down.
        let has_adapter = path.join("adapter_config.json").exists();
        let epoch = state.get("epoch").and_then(Value::as_f64);
        found.push(TrainingCheckpoint { name: name.clone(), step, epoch, loss, best, has_adapter });
    }
    if !found.iter().any(|checkpoint| checkpoint.has_adapter) {
        return Ok(vec![]);
    }
    found.sort_by_key(|checkpoint| checkpoint.step);
    Ok(found)
}

/// The checkpoint that is meant where only their directory is named: the last one, unless the trainer
/// itself called another one the best. Then somebody has to say.
pub(crate) fn choose(dir: &Path, checkpoints: &[TrainingCheckpoint]) -> Result<Located, Error> {
    let usable: Vec<_> = checkpoints.iter().filter(|checkpoint| checkpoint.has_adapter).collect();
    let Some(last) = usable.last() else { return Err(What::Unknown.refusal(dir)) };
    let best = checkpoints.last().and_then(|checkpoint| checkpoint.best.as_deref());
    if let Some(best) = best.filter(|best| *best != last.name) {
        let choices = format!("{best} is the one that the trainer called the best, {} the last", last.name);
        return Err(Error::SeveralCheckpoints { path: dir.into(), choices });
    }
    let path: PathBuf = dir.join(&last.name);
    let form = match recognise(&path)? {
        What::Adapter(form) => form,
        other => return Err(other.refusal(&path)),
    };
    let why = match (usable.len(), best) {
        (1, _) => "the only checkpoint there".to_string(),
        (n, Some(_)) => format!("the last of {n} checkpoints, and the one that the trainer called the best"),
        (n, None) => format!("the last of {n} checkpoints"),
    };
    let notes = vec![format!("the adapter is that of {}, {why}", last.name)];
    Ok(Located { path, form, notes })
}
