//! Verbs that make a directory and keep no record of it: merge, blend, combine (`gguf` makes a file). Begun as
//! jobs, or planned only (`dry_run`).
//!
//! Inputs are registered models by their names, or paths under the allowed ones; results go there too,
//! or into the home's `results/` (see `roots`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tenon::{Blend, Combination, MajoritySign, OutputDtype, TaskPlan, TaskRequest};
use utoipa::ToSchema;

use super::jobs::refuse_when_stopping;
use crate::app::App;
use crate::extract::Body;
use crate::idempotency::IdempotencyKey;
use crate::problem::{Code, Problem};
use crate::view::Job;

/// What a verb would do. Nothing was changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TaskPlan)]
pub(crate) struct TaskPlanView {
    /// The method, as people call it; null where a verb has none.
    method: Option<String>,
    /// Number of tensors that are made.
    tensors: Option<usize>,
    /// Elements of all of them.
    parameters: Option<u64>,
    /// Bytes that are written.
    bytes_needed: Option<u64>,
    /// Bytes free where they go.
    bytes_available: Option<u64>,
    /// What a person should know.
    notes: Vec<String>,
}

impl From<TaskPlan> for TaskPlanView {
    fn from(plan: TaskPlan) -> Self {
        let TaskPlan { method, tensors, parameters, bytes_needed, bytes_available, notes } = plan;
        Self { method, tensors, parameters, bytes_needed, bytes_available, notes }
    }
}

/// Queues a verb, or says what it would do.
pub(super) fn begin(app: &App, request: &TaskRequest, dry_run: bool) -> Result<Response, Problem> {
    if dry_run {
        return Ok(Json(TaskPlanView::from(app.tenon.plan_task(request)?)).into_response());
    }
    refuse_when_stopping(app)?;
    // Dropped, it waits in the queue for a thread that works.
    let task = app.tenon.queue_task(request)?.task;
    Ok(super::queued(&Job::from(&task)))
}

/// Directory of a model: a registered one's, or a path under an allowed one.
pub(super) fn model(app: &App, model: &str) -> Result<PathBuf, Problem> {
    if model.contains('/') { app.roots.resolve(model) } else { Ok(app.tenon.model_dir(model)?) }
}

/// As [`model`], of an adapter, which may be a file.
pub(super) fn adapter(app: &App, adapter: &str) -> Result<PathBuf, Problem> {
    if adapter.contains('/') { app.roots.resolve_any(adapter) } else { Ok(app.tenon.adapter_dir(adapter)?) }
}

/// As [`adapter`] or [`model`], of several with their weights.
pub(super) fn weighted(
    app: &App,
    adapters: &[WeightedAdapter],
    place: impl Fn(&App, &str) -> Result<PathBuf, Problem>,
) -> Result<Vec<(PathBuf, f64)>, Problem> {
    if !(1..=64).contains(&adapters.len()) {
        return Err(Problem::new(Code::InvalidBody, "adapters must be 1 to 64"));
    }
    adapters.iter().map(|one| Ok((place(app, &one.adapter)?, one.weight))).collect()
}

/// The element type of what is written.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = Dtype)]
pub(crate) enum DtypeWord {
    /// That of the model, tensor by tensor.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// Adapters and their base, about to be merged into a directory.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewMerge {
    /// The base: name of a Base Model or Complete Model, or a directory under an allowed path.
    #[schema(min_length = 1, max_length = 4096)]
    base: String,
    /// The adapters, merged one after the other, each into what those before it made.
    #[schema(min_items = 1, max_items = 64)]
    adapters: Vec<WeightedAdapter>,
    /// Combine them into one first, as PEFT's `add_weighted_adapter` does.
    combine: Option<How>,
    /// They are full-weight deltas: models whose tensors are what a training added to the base's.
    #[serde(default)]
    delta: bool,
    /// Directory to make: under an allowed path, or a plain name, which goes into the home's `results/`.
    #[schema(min_length = 1, max_length = 4096)]
    out: String,
    /// Element type of the result.
    #[serde(default)]
    dtype: DtypeWord,
    /// Tensor bytes in a shard at most.
    #[schema(minimum = 1)]
    max_shard_size: Option<u64>,
    /// Replace a model that is there, once the new one is whole.
    #[serde(default)]
    overwrite: bool,
    /// Let NaN and infinity through where the merge makes them.
    #[serde(default)]
    allow_non_finite: bool,
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
}

/// Merges adapters into their base, into a directory of its own. It becomes no Complete Model: that is `POST /savings`.
#[utoipa::path(post, path = "/merges", tag = "Verbs", operation_id = "merge",
    params(IdempotencyKey),
    request_body = NewMerge,
    responses((status = 200, description = "What would be done (`dry_run`)", body = TaskPlanView),
              (status = 202, description = "It is queued", body = Job),
              (status = 404, description = "There is no such model"),
              (status = 409, description = "The target is there already"),
              (status = 507, description = "The disk has no room for it")))]
pub(crate) async fn merge(State(app): State<App>, Body(new): Body<NewMerge>) -> Result<Response, Problem> {
    app.change(move |app| {
        let request = TaskRequest::Merge {
            base: model(app, &new.base)?,
            adapters: weighted(app, &new.adapters, if new.delta { model } else { adapter })?,
            combination: new.combine.map(Combination::from),
            delta: new.delta,
            out: app.roots.place(&new.out)?,
            dtype: match new.dtype {
                DtypeWord::Auto => OutputDtype::Auto,
                DtypeWord::F32 => OutputDtype::F32,
                DtypeWord::F16 => OutputDtype::F16,
                DtypeWord::Bf16 => OutputDtype::Bf16,
            },
            max_shard_size: new.max_shard_size,
            overwrite: new.overwrite,
            allow_non_finite: new.allow_non_finite,
        };
        begin(app, &request, new.dry_run)
    })
    .await
}

/// Whole models about to be merged with one another.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBlend {
    /// A mergekit configuration (YAML). The models that it names are Base Models or Complete Models by
    /// their names, or directories under an allowed path; adapters after a `+` likewise.
    #[schema(min_length = 1, max_length = 1048576)]
    configuration: String,
    /// Directory to make: under an allowed path, or a plain name, which goes into the home's `results/`.
    #[schema(min_length = 1, max_length = 4096)]
    out: String,
    /// Seed of what the method draws at random.
    #[serde(default)]
    seed: u64,
    /// Tensor bytes in a shard at most.
    #[schema(minimum = 1)]
    max_shard_size: Option<u64>,
    /// Hash every file of the models, also where they can be known by less.
    #[serde(default)]
    hash_inputs: bool,
    /// Replace a model that is there, once the new one is whole.
    #[serde(default)]
    overwrite: bool,
    /// Let NaN and infinity through where the merge makes them.
    #[serde(default)]
    allow_non_finite: bool,
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
}

/// Merges whole models with one another, as a mergekit configuration says.
#[utoipa::path(post, path = "/blends", tag = "Verbs", operation_id = "blend",
    params(IdempotencyKey),
    request_body = NewBlend,
    responses((status = 200, description = "What would be done (`dry_run`)", body = TaskPlanView),
              (status = 202, description = "It is queued", body = Job),
              (status = 404, description = "There is no such model"),
              (status = 409, description = "The target is there already"),
              (status = 507, description = "The disk has no room for it")))]
pub(crate) async fn blend(State(app): State<App>, Body(new): Body<NewBlend>) -> Result<Response, Problem> {
    app.change(move |app| {
        let (models, adapters) = Blend::named(&new.configuration)?;
        let mut places = BTreeMap::new();
        for name in models {
            places.insert(name.clone(), model(app, &name)?);
        }
        for name in adapters {
            places.insert(name.clone(), adapter(app, &name)?);
        }
        let request = TaskRequest::Blend {
            configuration: new.configuration,
            places,
            out: app.roots.place(&new.out)?,
            seed: new.seed,
            max_shard_size: new.max_shard_size,
            hash_inputs: new.hash_inputs,
            overwrite: new.overwrite,
            allow_non_finite: new.allow_non_finite,
        };
        begin(app, &request, new.dry_run)
    })
    .await
}

/// An adapter and how much of it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WeightedAdapter {
    /// Name of a Customized Model, or a directory (or file, such as a GGUF adapter) under an allowed path.
    #[schema(min_length = 1, max_length = 4096)]
    adapter: String,
    /// Its weight.
    #[serde(default = "one")]
    #[schema(default = 1.0)]
    weight: f64,
}

fn one() -> f64 {
    1.0
}

/// How adapters are combined, by PEFT's names.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = CombinationType)]
pub(crate) enum HowWord {
    /// Weighted sums of the factors.
    Linear,
    /// Exactly the weighted sum of the updates, at the sum of the ranks.
    #[default]
    Cat,
    /// The weighted sum of the updates, cut to a rank.
    Svd,
    /// Pruned by magnitude, a sign elected.
    Ties,
    /// Pruned at random, rescaled.
    DareLinear,
    /// Pruned at random, rescaled, a sign elected.
    DareTies,
    /// Pruned by magnitude.
    MagnitudePrune,
    /// As `ties`, of whole updates, cut to a rank.
    TiesSvd,
    /// As `dare_linear`, of whole updates, cut to a rank.
    DareLinearSvd,
    /// As `dare_ties`, of whole updates, cut to a rank.
    DareTiesSvd,
    /// As `magnitude_prune`, of whole updates, cut to a rank.
    MagnitudePruneSvd,
}

impl From<HowWord> for tenon::How {
    fn from(word: HowWord) -> Self {
        use tenon::How;
        match word {
            HowWord::Linear => How::Linear,
            HowWord::Cat => How::Cat,
            HowWord::Svd => How::Svd,
            HowWord::Ties => How::Ties,
            HowWord::DareLinear => How::DareLinear,
            HowWord::DareTies => How::DareTies,
            HowWord::MagnitudePrune => How::MagnitudePrune,
            HowWord::TiesSvd => How::TiesSvd,
            HowWord::DareLinearSvd => How::DareLinearSvd,
            HowWord::DareTiesSvd => How::DareTiesSvd,
            HowWord::MagnitudePruneSvd => How::MagnitudePruneSvd,
        }
    }
}

/// What decides an element's sign.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = MajoritySign)]
pub(crate) enum SignWord {
    /// The sum of the elements.
    #[default]
    Total,
    /// Most adapters.
    Frequency,
}

/// How LoRA adapters are combined.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = How)]
pub(crate) struct How {
    /// In which way.
    #[serde(default)]
    combination_type: HowWord,
    /// Share of elements that ties, magnitude_prune and dare keep, above 0 and up to 1.
    #[serde(default = "one")]
    #[schema(default = 1.0)]
    density: f64,
    /// What decides an element's sign in ties and dare_ties.
    #[serde(default)]
    majority_sign: SignWord,
    /// Rank of the result of svd and those with _svd; the largest of the adapters' where nothing is said.
    #[schema(minimum = 1, maximum = 65536)]
    rank: Option<u64>,
    /// Decides which elements dare keeps.
    #[serde(default)]
    seed: u64,
}

impl Default for How {
    fn default() -> Self {
        let (combination_type, majority_sign) = Default::default();
        Self { combination_type, density: 1.0, majority_sign, rank: None, seed: 0 }
    }
}

impl From<How> for Combination {
    fn from(how: How) -> Self {
        Self {
            how: how.combination_type.into(),
            density: how.density,
            majority_sign: match how.majority_sign {
                SignWord::Total => MajoritySign::Total,
                SignWord::Frequency => MajoritySign::Frequency,
            },
            rank: how.rank,
            seed: how.seed,
        }
    }
}

/// LoRA adapters about to be made into one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCombination {
    /// The adapters.
    #[schema(min_items = 1, max_items = 64)]
    adapters: Vec<WeightedAdapter>,
    /// How they are combined; `cat` where nothing is said.
    #[serde(default)]
    combine: How,
    /// Directory to make: under an allowed path, or a plain name, which goes into the home's `results/`.
    #[schema(min_length = 1, max_length = 4096)]
    out: String,
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
}

/// Combines several LoRA adapters into one, as PEFT's `add_weighted_adapter` does.
#[utoipa::path(post, path = "/combinations", tag = "Verbs", operation_id = "combine",
    params(IdempotencyKey),
    request_body = NewCombination,
    responses((status = 200, description = "What would be done (`dry_run`)", body = TaskPlanView),
              (status = 202, description = "It is queued", body = Job),
              (status = 404, description = "There is no such adapter"),
              (status = 409, description = "The target is there already")))]
pub(crate) async fn combine(
    State(app): State<App>,
    Body(new): Body<NewCombination>,
) -> Result<Response, Problem> {
    app.change(move |app| {
        let request = TaskRequest::Combine {
            adapters: weighted(app, &new.adapters, adapter)?,
            combination: new.combine.into(),
            out: app.roots.place(&new.out)?,
        };
        begin(app, &request, new.dry_run)
    })
    .await
}
