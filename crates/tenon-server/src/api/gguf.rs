//! The verb `gguf`: one file, of a model or of what a merge would give. Begun as a job, or planned only.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use tenon::{Combination, FileType, GgufOptions, GgufSource, Rules, TaskRequest};
use utoipa::ToSchema;

use super::deployments::QuantizationWord;
use super::verbs::{DtypeWord, How, TaskPlanView, WeightedAdapter, adapter, begin, model, weighted};
use crate::app::App;
use crate::extract::Body;
use crate::idempotency::IdempotencyKey;
use crate::problem::{Code, Problem};
use crate::view::Job;

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = Rules)]
enum RulesWord {
    /// llama.cpp's program.
    #[default]
    LlamaQuantize,
    /// What Ollama makes when it quantizes itself: a few tensors of some architectures keep more.
    Ollama,
}

/// A GGUF file about to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewGguf {
    /// The model: name of a Complete Model or Base Model, or a directory under an allowed path.
    #[schema(min_length = 1, max_length = 4096)]
    model: String,
    /// Adapters that are merged into it on the way, one after the other.
    #[serde(default)]
    #[schema(max_items = 64)]
    adapters: Vec<WeightedAdapter>,
    /// Combine them into one first, as PEFT's `add_weighted_adapter` does.
    combine: Option<How>,
    /// File to make: under an allowed path, or a plain name, which goes into the home's `results/`. That
    /// of a Complete Model is kept with it where nothing is said.
    #[schema(min_length = 1, max_length = 4096)]
    out: Option<String>,
    /// What to quantize to.
    #[serde(default)]
    quantization: QuantizationWord,
    /// Element type of what is not quantized.
    #[serde(default, rename = "type")]
    file_type: DtypeWord,
    /// Name of the model in the file; made from the directory's where nothing is said.
    #[schema(min_length = 1, max_length = 200)]
    name: Option<String>,
    /// llama.cpp's name of the pre-tokenizer, where it cannot be recognised.
    #[schema(min_length = 1, max_length = 200)]
    pre_tokenizer: Option<String>,
    /// An importance matrix of llama-imatrix (GGUF or .dat) for what is quantized: a file under an allowed path.
    #[schema(min_length = 1, max_length = 4096)]
    imatrix: Option<String>,
    /// Whose rules choose the types of tensors, for what is quantized.
    #[serde(default)]
    rules: RulesWord,
    /// Types of the quantized tensors whose names match a pattern, before the rules: `PATTERN=TYPE`, such as
    /// `attn_v=q8_0`. Of several the first that matches counts.
    #[serde(default)]
    #[schema(max_items = 256)]
    tensor_types: Vec<String>,
    /// Replace a GGUF file that is there, once the new one is whole.
    #[serde(default)]
    overwrite: bool,
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
}

/// Makes a GGUF file of a model, quantized or not, or of what a merge would give.
#[utoipa::path(post, path = "/ggufs", tag = "Verbs", operation_id = "gguf",
    params(IdempotencyKey),
    request_body = NewGguf,
    responses((status = 200, description = "What would be done (`dry_run`)", body = TaskPlanView),
              (status = 202, description = "It is queued", body = Job),
              (status = 404, description = "There is no such model"),
              (status = 409, description = "The target is there already"),
              (status = 507, description = "The disk has no room for it")))]
pub(crate) async fn gguf(State(app): State<App>, Body(new): Body<NewGguf>) -> Result<Response, Problem> {
    app.change(move |app| {
        let is_complete = || app.tenon.registry().find::<tenon::CompleteModel>(&new.model);
        let source = match new.adapters.is_empty() {
            false => GgufSource::Merged {
                base: model(app, &new.model)?,
                adapters: weighted(app, &new.adapters, adapter)?,
                combination: new.combine.map(Combination::from),
            },
            true if new.combine.is_some() => {
                return Err(Problem::new(Code::InvalidBody, "combine says how adapters are: name some"));
            }
            true if is_complete()?.is_some() => GgufSource::Complete(new.model.clone()),
            true => GgufSource::Directory(model(app, &new.model)?),
        };
        let tensor_types = new.tensor_types.iter().map(|one| one.parse());
        let tensor_types = tensor_types.collect::<Result<_, _>>().map_err(tenon::Error::from)?;
        let request = TaskRequest::Gguf {
            model: source,
            out: new.out.as_deref().map(|out| app.roots.place(out)).transpose()?,
            quantization: new.quantization.into(),
            options: GgufOptions {
                file_type: match new.file_type {
                    DtypeWord::Auto => FileType::Auto,
                    DtypeWord::F32 => FileType::F32,
                    DtypeWord::F16 => FileType::F16,
                    DtypeWord::Bf16 => FileType::Bf16,
                },
                name: new.name,
                pre_tokenizer: new.pre_tokenizer,
                imatrix: new.imatrix.as_deref().map(|path| app.roots.resolve_any(path)).transpose()?,
                rules: match new.rules {
                    RulesWord::LlamaQuantize => Rules::LlamaQuantize,
                    RulesWord::Ollama => Rules::Ollama,
                },
                tensor_types,
                ..GgufOptions::default()
            },
            overwrite: new.overwrite,
        };
        begin(app, &request, new.dry_run)
    })
    .await
}
