//! A home of models: what is registered, what is being saved, what is whole.
//!
//! * [`Registry`] is one home, opened. Several processes may have it open.
//! * [`ModelName`] is a name that is safe as a directory on every system.
//! * [`Manifest`] (`tenon.json`) is the truth about a Complete Model; the
//!   [`Catalogue`] is what makes it quick to find and is rebuilt from manifests.
//! * [`Saving`] is a job: queued, running, done, failed or cancelled, in the
//!   catalogue, so that any process can watch or cancel it. Its [`Workplace`]
//!   is a directory under `staging/`, locked while a process works there: when
//!   the process dies, the lock goes with it, and the next one sees that.
//!
//! * [`Deployment`] is a job too, and [`LiveModel`] what it leaves. Which
//!   servers there are, and how one is spoken with, is not known here.
//! * [`Task`] is a job of any other verb.
//!
//! A model appears by one rename into `complete/` and goes by one rename out
//! of it; the catalogue follows, and [`Registry::recover`] makes it follow
//! where a crash came between. How tensors are merged is not known here.

pub mod catalogue;
mod complete;
mod deploying;
mod deployment;
mod error;
mod home;
mod job;
mod manifest;
mod name;
mod quality;
mod record;
mod recover;
mod registry;
mod results;
mod saving;
mod task;
mod verify;

pub use catalogue::Catalogue;
pub use complete::Held;
pub use deploying::DeploymentClaim;
pub use deployment::{Deployment, DeploymentState, LiveCondition, LiveModel, Quantization, QuantizeOn};
pub use error::Error;
pub use home::Home;
pub use job::{Claim, Course, Job, JobState, MAX_ATTEMPTS, Turn};
pub use manifest::{
    CombinationParameters, CustomizedFacts, DequantizedTensors, InputFile, Manifest, MergeParameters,
    ModelInput, OutputFile, SavingFacts, TensorCounts,
};
pub use name::{BadName, ModelName};
pub use quality::{GroupQuality, QuantizationQuality, TensorQuality};
pub use record::{BaseModel, CompleteModel, CustomizedModel, KnownFile, ModelSummary, Saving, Template};
pub use recover::{CheckReport, Recovered};
pub use registry::{NewCustomized, Registry};
pub use saving::{PARALLEL_SAVINGS, Workplace};
pub use task::{Task, TaskClaim};
pub use verify::VerifyReport;

pub use jiff::Timestamp;
pub use uuid::Uuid;
