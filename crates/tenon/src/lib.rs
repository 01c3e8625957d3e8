//! Tenon joins a trained adapter with its base model into one whole model.
//!
//! This crate is what other Rust programs link; the `tenon` command is a thin
//! layer over it. A merge streams: memory is a few tiles, whatever the model's
//! size, and the target directory appears whole or not at all.
//!
//! * [`Merge`] joins two directories into a third and keeps no record.
//! * [`Blend`] joins whole models with one another, as mergekit does.
//! * [`Tenon`] is a home: Base Models and Customized Models are registered in
//!   it, saved into Complete Models with a Model [`Card`], found, verified and
//!   deleted.
//!
//! ```
//! use tenon::{Merge, Observer};
//! # let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/kjv-llama");
//! # let dir = tempfile::tempdir().unwrap();
//! # let out = dir.path().join("whole");
//! # let (base, adapter) = (format!("{fixtures}/base"), format!("{fixtures}/adapter-lora"));
//!
//! /// Prints progress; `cancelled` could look at a flag.
//! struct Printing;
//! impl Observer for Printing {
//!     fn advanced(&self, bytes: u64) {
//!         println!("{bytes} more bytes");
//!     }
//! }
//!
//! let plan = Merge::new(base, adapter, &out).plan()?; // headers only; finds every mistake
//! println!("{} tensors, {} bytes", plan.tensors().count(), plan.output_bytes());
//! let merged = plan.run(&Printing)?;
//! println!("{}", merged.manifest.outputs[0].sha256);
//! # assert!(out.join("model.safetensors").exists());
//! # Ok::<(), tenon::Error>(())
//! ```

mod adapter;
mod artifact;
mod as_adapter;
mod base;
mod blend;
mod combine;
mod companions;
mod deploying;
mod deployment;
mod environments;
mod error;
mod facts;
mod gguf;
mod gguf_adapter;
mod gguf_lora;
mod heart;
mod home;
mod hub;
mod inspect;
mod joblog;
mod jobs;
mod live;
mod merge;
mod provenance;
mod quality;
mod rebuild;
mod results;
mod saving;
mod tasks;
mod template;
mod tokenizers;
mod training;
mod upload;
mod watching;

pub use artifact::{Artifact, PlannedArtifact};
pub use blend::{Blend, BlendManifest, Blended, PlannedBlend};
pub use combine::combine;
pub use deployment::{DeploymentObserver, DeploymentPlan, DeploymentRequest, QueuedDeployment};
pub use environments::{DeploymentEnvironment, EnvironmentReport, EnvironmentTest};
pub use error::Error;
pub use gguf::{Gguf, GgufOptions, GgufPlan, GgufWritten};
pub use gguf_lora::gguf_adapter;
pub use home::Tenon;
pub use inspect::{Fact, Inspection, inspect};
pub use joblog::{LogLine, LogStep};
pub use jobs::Job;
pub use merge::{Merge, Merged, Plan, PlannedAdapter};
pub use provenance::{BlendInput, BlendInputFile, KnownBy};
pub use rebuild::{Rebuild, RebuildReport};
pub use results::{KeptGguf, Outcome, OutcomeFile};
pub use saving::{QueuedSaving, Saved};
pub use tasks::{GgufSource, QueuedTask, TaskPlan, TaskRequest};
pub use tenon_adapters::{Error as AdapterError, TrainingCheckpoint};
pub use tenon_blend::{BlendedTensor, ModelReference};
pub use tenon_card::Card;
pub use tenon_checkpoint::{Digest, Dtype, Error as CheckpointError, Observer, TensorInfo, WrittenFile};
pub use tenon_deploy::template::{Agreement, Conversation, DeploymentTemplate, Fault, Message, Suggestion};
pub use tenon_deploy::{
    Capabilities, Condition, Environment, EnvironmentKind, Error as DeployError, KeySource, TemplateUse,
    Watch,
};
pub use tenon_dequant::Error as DequantError;
pub use tenon_gguf::quant::Quality;
pub use tenon_gguf::{
    Error as GgufError, FileType, GgufFile, GgufTensor, Metadata as GgufMetadata, Rules, TensorType,
    Value as GgufValue,
};
pub use tenon_merge::kernel::Level;
pub use tenon_merge::{
    Combination, Error as MergeError, Fate, How, MajoritySign, OutputDtype, PlannedTensor,
};
pub use tenon_registry::{
    BadName, BaseModel, CheckReport, CompleteModel, Course, CustomizedModel, Deployment, DeploymentState,
    DequantizedTensors, Error as RegistryError, GroupQuality, Home, InputFile, JobState, LiveCondition,
    LiveModel, Manifest, MergeParameters, ModelInput, ModelName, ModelSummary, OutputFile, PARALLEL_SAVINGS,
    Quantization, QuantizationQuality, QuantizeOn, Recovered, Registry, Saving, SavingFacts, Task, Template,
    TensorQuality, Timestamp, Uuid, VerifyReport,
};
pub use tenon_registry::{Held, catalogue::Record};
pub use upload::Upload;

/// The version of Tenon that writes manifests.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
