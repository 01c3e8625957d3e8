//! Verbs asked for as jobs: what `tenon merge`, `combine`, `gguf` and `verify --rebuild` do at once, queued,
//! watched, stopped and begun again as Savings are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenon_checkpoint::{Error as CheckpointError, Observer, WrittenFile};
use tenon_merge::{Combination, OutputDtype};
use tenon_registry::{
    BaseModel, CompleteModel, CustomizedModel, Error as RegistryError, JobState, Quantization, Task,
    TaskClaim, Uuid,
};

use crate::combine::PlannedCombination;
use crate::heart::Heart;
use crate::home::known_digests;
use crate::joblog::LogStep;
use crate::{Blend, Error, Gguf, GgufOptions, Merge, Rebuild, Tenon};

/// A verb, and all that it needs to know. Paths are absolute.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum TaskRequest {
    /// Adapters and their base, joined into a directory: [`Merge`].
    Merge {
        /// Directory of the base.
        base: PathBuf,
        /// Directories of the adapters, and their weights.
        adapters: Vec<(PathBuf, f64)>,
        /// How they are combined first; merged one after the other where nothing is said.
        combination: Option<Combination>,
        /// Whether they are full-weight deltas.
        #[serde(default)]
        delta: bool,
        /// Directory to make.
        out: PathBuf,
        /// Element type of the result.
        #[serde(default)]
        dtype: OutputDtype,
        /// Tensor bytes in a shard at most.
        max_shard_size: Option<u64>,
        /// Replace a model that is there.
        #[serde(default)]
        overwrite: bool,
        /// Let values through that are not finite.
        #[serde(default)]
        allow_non_finite: bool,
    },
    /// Whole models, merged with one another: [`Blend`].
    Blend {
        /// The configuration, as mergekit has it.
        configuration: String,
        /// Where each model and adapter that it names lies.
        places: BTreeMap<String, PathBuf>,
        /// Directory to make.
        out: PathBuf,
        /// Seed of what is drawn.
        #[serde(default)]
        seed: u64,
        /// Tensor bytes in a shard at most.
        max_shard_size: Option<u64>,
        /// Hash every file of the models, whatever else they may be known by.
        #[serde(default)]
        hash_inputs: bool,
        /// Replace a model that is there.
        #[serde(default)]
        overwrite: bool,
        /// Let values through that are not finite.
        #[serde(default)]
        allow_non_finite: bool,
    },
    /// Several LoRA adapters, made into one: [`combine`](crate::combine).
    Combine {
        /// Directories and weights.
        adapters: Vec<(PathBuf, f64)>,
        /// How.
        combination: Combination,
        /// Directory to make.
        out: PathBuf,
    },
    /// A model as one GGUF file: [`Gguf`].
    Gguf {
        /// The model.
        model: GgufSource,
        /// File to make; that of a Complete Model is kept in the home where none is given.
        out: Option<PathBuf>,
        /// What to quantize to.
        quantization: Quantization,
        /// How to convert; what is quantized is measured whatever this says.
        #[serde(flatten)]
        options: GgufOptions,
        /// Replace a GGUF file that is there.
        #[serde(default)]
        overwrite: bool,
    },
    /// A Complete Model, merged again and compared: [`Rebuild`].
    Rebuild {
        /// Its name.
        complete: String,
    },
}

/// What a GGUF file is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GgufSource {
    /// A model directory.
    Directory(PathBuf),
    /// A Complete Model, by its name.
    Complete(String),
    /// What a merge of them would give.
    Merged {
        /// Directory of the base.
        base: PathBuf,
        /// Directories of the adapters, and their weights.
        adapters: Vec<(PathBuf, f64)>,
        /// How they are combined first; merged one after the other where nothing is said.
        combination: Option<Combination>,
    },
}

impl TaskRequest {
    /// The verb's word.
    pub fn verb(&self) -> &'static str {
        match self {
            TaskRequest::Merge { .. } => "merge",
            TaskRequest::Blend { .. } => "blend",
            TaskRequest::Combine { .. } => "combine",
            TaskRequest::Gguf { .. } => "gguf",
            TaskRequest::Rebuild { .. } => "rebuild",
        }
    }

    /// What it makes or looks at, for people.
    fn subject(&self) -> String {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self {
            TaskRequest::Merge { out, .. }
            | TaskRequest::Blend { out, .. }
            | TaskRequest::Combine { out, .. }
            | TaskRequest::Gguf { out: Some(out), .. } => name(out),
            TaskRequest::Gguf { model: GgufSource::Complete(name), .. } => name.clone(),
            TaskRequest::Gguf { model: GgufSource::Directory(dir), .. } => name(dir),
            TaskRequest::Gguf { model: GgufSource::Merged { base, .. }, .. } => name(base),
            TaskRequest::Rebuild { complete } => complete.clone(),
        }
    }
}

/// What a verb would do. Nothing was changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TaskPlan {
    /// The method, as people call it, where the verb has one.
    pub method: Option<String>,
    /// Number of tensors that are made, where that is known.
    pub tensors: Option<usize>,
    /// Elements of all of them.
    pub parameters: Option<u64>,
    /// Bytes that are written.
    pub bytes_needed: Option<u64>,
    /// Bytes free where they go.
    pub bytes_available: Option<u64>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// A task in the queue that this process will work on. Dropped, it stays queued for another.
#[derive(Debug)]
pub struct QueuedTask {
    /// Its record when it was queued.
    pub task: Task,
    claim: TaskClaim,
}

/// A verb about to be run: every check passed.
enum Ready {
    Merge(Box<crate::Plan>),
    Blend(Box<crate::PlannedBlend>),
    Combine(Box<PlannedCombination>),
    Gguf(Box<crate::GgufPlan>),
    Artifact(Box<crate::PlannedArtifact>),
    Rebuild(Box<Rebuild>),
}

impl Tenon {
    /// Directory of the Base Model or Complete Model with a name.
    pub fn model_dir(&self, name: &str) -> Result<PathBuf, Error> {
        if let Some(complete) = self.registry.find::<CompleteModel>(name)? {
            return Ok(self.registry.home().complete(&complete.name));
        }
        Ok(self.registry.get::<BaseModel>(name)?.path)
    }

    /// Directory of the Customized Model with a name.
    pub fn adapter_dir(&self, name: &str) -> Result<PathBuf, Error> {
        Ok(self.registry.get::<CustomizedModel>(name)?.path)
    }

    /// Queues a verb. Mistakes that its plan finds show before there is a job.
    pub fn queue_task(&self, request: &TaskRequest) -> Result<QueuedTask, Error> {
        self.ready(request)?;
        let what = serde_json::to_value(request).expect("texts, numbers and lists always serialize");
        let (task, claim) = self.registry.queue_task(request.verb(), &request.subject(), what)?;
        Ok(QueuedTask { task, claim })
    }

    /// What a verb would do; finds the mistakes that [`queue_task`](Self::queue_task) does.
    pub fn plan_task(&self, request: &TaskRequest) -> Result<TaskPlan, Error> {
        Ok(match self.ready(request)? {
            Ready::Merge(plan) => TaskPlan {
                method: Some(plan.method()),
                tensors: Some(plan.tensors().count()),
                parameters: Some(plan.parameters()),
                bytes_needed: Some(plan.output_bytes()),
                bytes_available: Some(plan.available_bytes()),
                notes: plan.notes().to_vec(),
            },
            Ready::Blend(plan) => TaskPlan {
                method: Some(plan.method().into()),
                tensors: Some(plan.tensors().count()),
                parameters: Some(plan.parameters()),
                bytes_needed: Some(plan.output_bytes()),
                bytes_available: Some(plan.available_bytes()),
                notes: plan.notes().to_vec(),
            },
            Ready::Gguf(plan) => TaskPlan {
                tensors: Some(plan.tensors().len()),
                parameters: Some(plan.tensors().iter().map(tenon_gguf::GgufTensor::elements).sum()),
                bytes_needed: Some(plan.output_bytes()),
                bytes_available: Some(plan.available_bytes()),
                notes: plan.notes(),
                ..TaskPlan::default()
            },
            Ready::Artifact(artifact) => {
                TaskPlan { bytes_needed: Some(artifact.work_bytes()), ..TaskPlan::default() }
            }
            Ready::Combine(_) | Ready::Rebuild(_) => TaskPlan::default(),
        })
    }

    /// Takes up the oldest task that is queued and that no process holds.
    pub fn adopt_task(&self) -> Result<Option<QueuedTask>, Error> {
        let Some(claim) = self.registry.adopt_next::<Task>()? else { return Ok(None) };
        let task = self.registry.get(&claim.id().to_string())?;
        Ok(Some(QueuedTask { task, claim }))
    }

    /// Works on a task. What comes out of it is in its record, and given back.
    pub fn run_task(&self, queued: QueuedTask, observer: &dyn Observer) -> Result<Value, Error> {
        let QueuedTask { task, claim } = queued;
        let id = task.id;
        let error = match self.work_on_task(&task, &claim, observer) {
            Ok(result) => {
                self.registry.end_task(claim, JobState::Done, Some(result.clone()), None)?;
                return Ok(result);
            }
            Err(error) => error,
        };
        if error.is_cancelled()
            && self.suspended.load(Ordering::Acquire)
            && !self.registry.is_cancelled::<Task>(id).unwrap_or(false)
        {
            self.note(id, LogStep::Interrupted, "");
            // Whatever becomes of the record, the lock goes and the next process takes it up.
            let _ = self.registry.put_back(claim);
            return Err(error);
        }
        let (state, reason) = if error.is_cancelled() {
            (JobState::Cancelled, None)
        } else {
            (JobState::Failed, Some(error.to_string()))
        };
        match self.registry.end_task(claim, state, None, reason) {
            Ok(()) => Err(error),
            Err(second) => {
                Err(Error::NotEnded { id, error: Box::new(error), second: Box::new(second.into()) })
            }
        }
    }

    fn work_on_task(&self, task: &Task, claim: &TaskClaim, observer: &dyn Observer) -> Result<Value, Error> {
        if self.suspended.load(Ordering::Acquire) {
            return Err(CheckpointError::Cancelled.into());
        }
        let request: TaskRequest = serde_json::from_value(task.request.clone())
            .map_err(|source| RegistryError::Record { what: "task", name: task.id.to_string(), source })?;
        let ready = self.ready(&request)?;
        let started = self.registry.start_task(claim, ready.work_bytes())?;
        self.note(task.id, LogStep::Started, format!("attempt {}", started.course.attempts));
        let watch = Watch { tenon: self, id: task.id, observer, heart: Heart::new(self, 0) };
        let note = |done| self.registry.note(task.id, &mut |task: &mut Task| task.course.done_bytes = done);
        watch.heart.beat(note, || self.run_ready(ready, &watch))
    }

    fn ready(&self, request: &TaskRequest) -> Result<Ready, Error> {
        Ok(match request.clone() {
            TaskRequest::Merge {
                base,
                adapters,
                combination,
                delta,
                out,
                dtype,
                max_shard_size,
                overwrite,
                allow_non_finite,
            } => {
                let mut merge = Merge::several(base, adapters, out)
                    .delta(delta)
                    .dtype(dtype)
                    .max_shard_size(max_shard_size.unwrap_or(self.max_shard_size).max(1))
                    .overwrite(overwrite)
                    .allow_non_finite(allow_non_finite);
                if let Some(combination) = combination {
                    merge = merge.combine(combination);
                }
                Ready::Merge(Box::new(merge.plan()?))
            }
            TaskRequest::Blend {
                configuration,
                places,
                out,
                seed,
                max_shard_size,
                hash_inputs,
                overwrite,
                allow_non_finite,
            } => {
                let bases = self.registry.all::<BaseModel>()?;
                let blend = Blend::of_text(configuration, places, out)
                    .known_digests(bases.iter().flat_map(|base| known_digests(&base.files)).collect())
                    .seed(seed)
                    .hash_inputs(hash_inputs)
                    .max_shard_size(max_shard_size.unwrap_or(self.max_shard_size).max(1))
                    .overwrite(overwrite)
                    .allow_non_finite(allow_non_finite);
                Ready::Blend(Box::new(blend.plan()?))
            }
            TaskRequest::Combine { adapters, combination: what, out } => {
                Ready::Combine(Box::new(PlannedCombination::plan(&adapters, &what, &out)?))
            }
            TaskRequest::Gguf { model, out, quantization, options, overwrite } => {
                let options = GgufOptions { measure: true, ..options };
                let gguf = match (model, out) {
                    (GgufSource::Complete(complete), None) => {
                        let artifact = self.plan_gguf_artifact(&complete, quantization, &options)?;
                        return Ok(Ready::Artifact(Box::new(artifact)));
                    }
                    (GgufSource::Complete(complete), Some(out)) => Gguf::of(self.path(&complete)?, out),
                    (GgufSource::Directory(dir), Some(out)) => Gguf::of(dir, out),
                    (GgufSource::Merged { base, adapters, combination }, Some(out)) => {
                        let merge = Merge::several(base, adapters, &out);
                        Gguf::of_merge(combination.into_iter().fold(merge, Merge::combine), out)
                    }
                    (_, None) => return Err(Error::NoOut),
                };
                let gguf = gguf.quantization(quantization).options(options).overwrite(overwrite);
                Ready::Gguf(Box::new(gguf.plan()?))
            }
            TaskRequest::Rebuild { complete } => Ready::Rebuild(Box::new(self.plan_rebuild(&complete)?)),
        })
    }

    fn run_ready(&self, ready: Ready, observer: &dyn Observer) -> Result<Value, Error> {
        Ok(match ready {
            Ready::Merge(plan) => {
                let merged = plan.run(observer)?;
                json!({
                    "path": merged.out, "bytes": merged.manifest.output_bytes(), "method": plan.method(),
                    "notes": plan.notes(), "seconds": merged.elapsed.as_secs_f64(),
                })
            }
            Ready::Blend(plan) => {
                let blended = plan.run(observer)?;
                let bytes: u64 = blended.manifest.outputs.iter().map(|file| file.bytes).sum();
                json!({
                    "path": blended.out, "bytes": bytes, "method": plan.method(),
                    "notes": plan.notes(), "seconds": blended.elapsed.as_secs_f64(),
                })
            }
            Ready::Combine(plan) => {
                let bytes = plan.run(observer)?;
                json!({ "path": plan.out(), "bytes": bytes })
            }
            Ready::Gguf(plan) => {
                let written = plan.run(observer)?;
                json!({
                    "path": written.path, "bytes": written.bytes, "sha256": written.digest,
                    "quantization": plan.quantization(), "notes": plan.notes(),
                    "quality": plan.summed_quality(written.bytes), "seconds": written.elapsed.as_secs_f64(),
                })
            }
            Ready::Artifact(artifact) => {
                let artifact = artifact.make(observer)?;
                json!({
                    "path": artifact.path, "bytes": artifact.bytes, "sha256": artifact.digest,
                    "quantization": artifact.quantization, "model": artifact.model, "reused": artifact.reused,
                    "quality": artifact.quality,
                })
            }
            Ready::Rebuild(rebuild) => {
                let report = rebuild.run(observer)?;
                let mut result = json!(report);
                result["same"] = report.is_same().into();
                result
            }
        })
    }
}

impl Ready {
    fn work_bytes(&self) -> u64 {
        match self {
            Ready::Merge(plan) => plan.work_bytes(),
            Ready::Blend(plan) => plan.work_bytes(),
            // Through in moments, mostly; how many there are is known when they are made.
            Ready::Combine(_) => 0,
            Ready::Gguf(plan) => plan.work_bytes(),
            Ready::Artifact(artifact) => artifact.work_bytes(),
            Ready::Rebuild(rebuild) => rebuild.work_bytes(),
        }
    }
}

/// Passes progress on to the caller and the catalogue.
struct Watch<'a> {
    tenon: &'a Tenon,
    id: Uuid,
    observer: &'a dyn Observer,
    heart: Heart<'a>,
}

impl Observer for Watch<'_> {
    fn advanced(&self, bytes: u64) {
        self.heart.advanced(bytes);
        self.observer.advanced(bytes);
    }

    fn cancelled(&self) -> bool {
        self.heart.is_stopped() || self.observer.cancelled()
    }

    fn shard_finished(&self, shard: &WrittenFile) {
        self.tenon.note(self.id, LogStep::Shard, format!("{}, {} bytes", shard.name, shard.len));
        self.observer.shard_finished(shard);
    }
}
