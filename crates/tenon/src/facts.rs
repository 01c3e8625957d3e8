//! Gathers the facts of a Model Card: from the plan, the measures, the cards of base and adapter.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tenon_card::{
    AdapterFacts, BaseFacts, Card, FileFacts, Measured, Modality, ModelFacts, Move, Provenance, Setting,
};
use tenon_checkpoint::TensorSource;
use tenon_merge::{Fate, TensorMeasure};
use tenon_registry::{InputFile, Manifest, ModelSummary, SavingFacts};

use crate::{Plan, companions, training};

/// The model in figures, from its plan.
pub(crate) fn summary(config: &Value, infos: &[tenon_checkpoint::TensorInfo], bytes: u64) -> ModelSummary {
    let dtypes = dtypes(infos);
    ModelSummary {
        architecture: architecture(config),
        parameters: infos.iter().map(elements).sum(),
        dtype: dtypes.first().map(|(dtype, _)| dtype.clone()).unwrap_or_default(),
        bytes,
    }
}

fn elements(info: &tenon_checkpoint::TensorInfo) -> u64 {
    info.shape.iter().product()
}

/// Element types and the bytes in each, most first.
fn dtypes(infos: &[tenon_checkpoint::TensorInfo]) -> Vec<(String, u64)> {
    let mut by_dtype: BTreeMap<&str, u64> = BTreeMap::new();
    for info in infos {
        *by_dtype.entry(info.dtype.name()).or_default() += info.bytes();
    }
    let mut dtypes: Vec<_> = by_dtype.into_iter().map(|(dtype, bytes)| (dtype.to_string(), bytes)).collect();
    dtypes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    dtypes
}

fn architecture(config: &Value) -> String {
    let first = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let name = first.or_else(|| config.get("model_type").and_then(Value::as_str));
    name.unwrap_or("unknown").to_string()
}

/// All facts of a Complete Model.
pub(crate) fn card(
    plan: &Plan,
    manifest: &Manifest,
    saving: &SavingFacts,
    measures: &[TensorMeasure],
) -> Card {
    let (base_dir, adapter_dir) = (plan.base_dir(), plan.adapter_dir());
    let base_card = training::card_metadata(base_dir);
    let found = training::read(adapter_dir);
    let mut notes = manifest.notes.clone();
    notes.extend(found.notes);
    let mut provenance = provenance(plan, manifest, saving);
    provenance.versions = found.versions;
    if let Some(version) = plan.adapter_config().get("peft_version").filter(|version| version.is_string())
        && !provenance.versions.iter().any(|known| known.name.eq_ignore_ascii_case("peft"))
    {
        provenance.versions.push(Setting { name: "PEFT".into(), value: version.clone() });
    }
    Card {
        schema: Card::SCHEMA,
        name: saving.name.to_string(),
        created: saving.finished.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        tenon: manifest.tenon.clone(),
        base: base_facts(plan, manifest, saving, &base_card, &found.card),
        adapter: adapter_facts(plan, saving, &base_card, &found.card),
        model: model_facts(plan, manifest, &base_card, &found.card),
        training: found.training,
        measured: measured(plan, measures),
        provenance,
        notes,
        deployed: vec![],
    }
}

fn text(metadata: &Map<String, Value>, field: &str) -> Option<String> {
    metadata.get(field)?.as_str().map(str::to_string)
}

fn base_facts(
    plan: &Plan,
    manifest: &Manifest,
    saving: &SavingFacts,
    base_card: &Map<String, Value>,
    adapter_card: &Map<String, Value>,
) -> BaseFacts {
    // What the adapter calls its base is a path where it was trained from one.
    let named = || {
        let name = plan.adapter_config().get("base_model_name_or_path")?.as_str()?;
        let is_path =
            name.starts_with(['/', '.', '~']) || name.contains('\\') || name.matches('/').count() > 1;
        (!is_path && !name.is_empty()).then(|| name.to_string())
    };
    let languages = training::texts(base_card, "language");
    let licences = plan.companions().filter(|name| companions::is_licence(name));
    BaseFacts {
        name: saving.base.to_string(),
        id: manifest.base.repository.clone().or_else(named),
        revision: manifest.base.revision.clone(),
        license: training::texts(base_card, "license").first().cloned(),
        license_name: text(base_card, "license_name"),
        license_link: text(base_card, "license_link"),
        license_files: licences.map(str::to_string).collect(),
        languages: if languages.is_empty() { training::texts(adapter_card, "language") } else { languages },
        tags: training::texts(base_card, "tags"),
        datasets: training::texts(base_card, "datasets"),
    }
}

/// Fields of `adapter_config.json` that say nothing about the result.
const NOT_SHOWN: [&str; 8] = [
    "peft_type",
    "peft_version",
    "inference_mode",
    "base_model_name_or_path",
    "auto_mapping",
    "megatron_core",
    "qalora_group_size",
    "revision",
];

fn adapter_facts(
    plan: &Plan,
    saving: &SavingFacts,
    base_card: &Map<String, Value>,
    adapter_card: &Map<String, Value>,
) -> AdapterFacts {
    let is_default = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    let settings = plan
        .adapter_config()
        .iter()
        .filter(|(name, value)| !NOT_SHOWN.contains(&name.as_str()) && !is_default(value))
        .map(|(name, value)| {
            let mut value = value.clone();
            // PEFT writes a set, in another order each time.
            if let Value::Array(items) = &mut value {
                items.sort_by_key(Value::to_string);
            }
            Setting { name: name.clone(), value }
        });
    let license = training::texts(adapter_card, "license").first().cloned();
    AdapterFacts {
        name: saving.customized.name.to_string(),
        train_name: saving.customized.train_name.to_string(),
        training_id: saving.customized.training_id.to_string(),
        method: plan.method(),
        license: license.filter(|license| Some(license) != training::texts(base_card, "license").first()),
        settings: settings.collect(),
    }
}

/// Fields of `config.json` and their labels, in the order in which they are shown.
const SIZES: [(&str, &[&str]); 12] = [
    ("Layers", &["num_hidden_layers", "n_layer", "num_layers", "n_layers"]),
    ("Hidden size", &["hidden_size", "n_embd", "d_model"]),
    ("Feed-forward size", &["intermediate_size", "n_inner", "ffn_dim", "d_ff"]),
    ("Attention heads", &["num_attention_heads", "n_head", "num_heads"]),
    ("Key-value heads", &["num_key_value_heads"]),
    ("Head size", &["head_dim"]),
    ("Experts", &["num_local_experts", "num_experts", "n_routed_experts"]),
    ("Experts used for a token", &["num_experts_per_tok", "num_experts_per_token"]),
    ("Context", &["max_position_embeddings", "n_positions", "seq_length", "max_sequence_length"]),
    ("Sliding window", &["sliding_window"]),
    ("Vocabulary", &["vocab_size"]),
    ("Tied embeddings", &["tie_word_embeddings"]),
];

fn model_facts(
    plan: &Plan,
    manifest: &Manifest,
    base_card: &Map<String, Value>,
    adapter_card: &Map<String, Value>,
) -> ModelFacts {
    let config = plan.config();
    // A model of several modalities keeps the sizes of its language model one level down.
    let inner = ["text_config", "language_config", "llm_config"].iter().find_map(|field| config.get(field));
    let lookup = |names: &[&str]| {
        let find =
            |config: &Value| names.iter().find_map(|name| config.get(name).filter(|v| !v.is_null()).cloned());
        find(config).or_else(|| inner.and_then(find))
    };
    let sizes = SIZES
        .iter()
        .filter_map(|(label, names)| Some(Setting { name: label.to_string(), value: lookup(names)? }));
    let architecture = architecture(config);
    let tag = text(adapter_card, "pipeline_tag").or_else(|| text(base_card, "pipeline_tag"));
    let tag = tag.or_else(|| pipeline_tag(&architecture).map(str::to_string));
    let infos = plan.source().tensors();
    let weights: Vec<_> = plan.shards().collect();
    ModelFacts {
        modality: match tag.as_deref() {
            Some("text-generation" | "conversational" | "image-text-to-text") => Modality::Generation,
            _ => Modality::Other,
        },
        architecture,
        pipeline_tag: tag,
        parameters: plan.parameters(),
        tensors: infos.len() as u64,
        dtypes: dtypes(infos),
        bytes: weights.iter().map(|(_, bytes)| bytes).sum(),
        shards: weights.len() as u64,
        sizes: sizes.collect(),
        chat_template: has_chat_template(plan.base_dir(), plan.adapter_dir())
            || manifest.outputs.iter().any(|file| file.name.starts_with("chat_template.")),
    }
}

fn has_chat_template(base: &Path, adapter: &Path) -> bool {
    // Of two tokenizer configurations the adapter's is the one that goes along.
    let config =
        [adapter, base].into_iter().map(|dir| dir.join("tokenizer_config.json")).find(|path| path.exists());
    let config = config.and_then(|path| tenon_checkpoint::read_json::<Value>(&path).ok());
    config.is_some_and(|config| config.get("chat_template").is_some_and(|template| !template.is_null()))
}

/// The task that an architecture's name implies, in the Hub's words.
fn pipeline_tag(architecture: &str) -> Option<&'static str> {
    let tags = [
        ("ForCausalLM", "text-generation"),
        ("LMHeadModel", "text-generation"),
        ("ForSequenceClassification", "text-classification"),
        ("ForTokenClassification", "token-classification"),
        ("ForQuestionAnswering", "question-answering"),
        ("ForMaskedLM", "fill-mask"),
        ("ForImageClassification", "image-classification"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("ForSpeechSeq2Seq", "automatic-speech-recognition"),
        ("T5ForConditionalGeneration", "text2text-generation"),
        ("BartForConditionalGeneration", "text2text-generation"),
        ("ForConditionalGeneration", "image-text-to-text"),
    ];
    tags.iter().find(|(ending, _)| architecture.ends_with(ending)).map(|(_, tag)| *tag)
}

fn provenance(plan: &Plan, manifest: &Manifest, saving: &SavingFacts) -> Provenance {
    let inputs = |files: &[InputFile]| {
        let facts =
            |f: &InputFile| FileFacts { name: f.name.clone(), bytes: f.bytes, sha256: f.sha256.to_string() };
        files.iter().map(facts).collect()
    };
    let weights = manifest.outputs.iter().filter(|file| file.name.ends_with(".safetensors"));
    let weights =
        weights.map(|f| FileFacts { name: f.name.clone(), bytes: f.bytes, sha256: f.sha256.to_string() });
    // Where base and adapter lie is nobody's business who gets the card; tenon.json has it.
    let name = |dir: &Path| dir.file_name().map_or("DIR".into(), |name| shell_word(&name.to_string_lossy()));
    let base = manifest.base.repository.as_deref().map_or_else(|| name(plan.base_dir()), shell_word);
    Provenance {
        saving: saving.id.to_string(),
        seconds: saving.seconds,
        base: inputs(&manifest.base.files),
        adapter: inputs(&manifest.adapter.files),
        weights: weights.collect(),
        command: format!(
            "tenon merge --base {base} --adapter {} --out {}",
            name(plan.adapter_dir()),
            saving.name
        ),
        versions: vec![],
    }
}

/// A text as one word of a shell's command line.
fn shell_word(text: &str) -> String {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c)) {
        return text.to_string();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Squares of norms over several tensors.
#[derive(Default)]
struct Sums {
    tensors: u64,
    base: f64,
    delta: f64,
    rounding: f64,
    largest: f64,
    ranks: Vec<f64>,
}

impl Sums {
    fn add(&mut self, measure: &TensorMeasure) {
        self.tensors += 1;
        self.base += measure.base_norm.powi(2);
        self.delta += measure.delta_norm.powi(2);
        self.rounding += measure.rounding_norm.powi(2);
        self.largest = self.largest.max(measure.largest_delta);
        self.ranks.extend(measure.effective_rank);
    }

    fn relative(&self) -> f64 {
        if self.delta == 0.0 { 0.0 } else { (self.delta / self.base).sqrt() }
    }

    fn mean_rank(&self) -> Option<f64> {
        (!self.ranks.is_empty()).then(|| self.ranks.iter().sum::<f64>() / self.ranks.len() as f64)
    }

    fn into_move(self, name: String) -> Move {
        Move {
            name,
            tensors: self.tensors,
            relative_delta: self.relative(),
            largest_delta: self.largest,
            effective_rank: self.mean_rank(),
        }
    }
}

/// Tensors named on the card as those that changed most.
const MOST: usize = 10;

fn measured(plan: &Plan, measures: &[TensorMeasure]) -> Option<Measured> {
    let mut touched = 0;
    let mut replaced = 0;
    for tensor in plan.tensors() {
        let n = elements(tensor.info);
        match tensor.fate {
            Fate::Edited => touched += n,
            Fate::Replaced | Fate::Added => {
                touched += n;
                replaced += 1;
            }
            Fate::Copied | Fate::Converted => {}
        }
    }
    if touched == 0 {
        return None;
    }
    let mut all = Sums::default();
    let mut layers: BTreeMap<u64, Sums> = BTreeMap::new();
    let mut modules: BTreeMap<String, Sums> = BTreeMap::new();
    let mut most = vec![];
    for measure in measures {
        all.add(measure);
        if let Some(layer) = layer(&measure.name) {
            layers.entry(layer).or_default().add(measure);
        }
        modules.entry(module(&measure.name)).or_default().add(measure);
        let mut one = Sums::default();
        one.add(measure);
        most.push(one.into_move(measure.name.clone()));
    }
    most.sort_by(|a, b| b.relative_delta.total_cmp(&a.relative_delta).then_with(|| a.name.cmp(&b.name)));
    most.truncate(MOST);
    let (changed, edited): (u64, u64) =
        measures.iter().fold((0, 0), |(c, e), measure| (c + measure.changed, e + measure.elements));
    let ratio = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
    Some(Measured {
        tensors: all.tensors,
        replaced,
        share_touched: ratio(touched as f64, plan.parameters() as f64),
        share_changed: ratio(changed as f64, edited as f64),
        relative_delta: all.relative(),
        rounding_of_delta: ratio(all.rounding.sqrt(), all.delta.sqrt()),
        largest_delta: all.largest,
        effective_rank: all.mean_rank(),
        layers: layers.into_iter().map(|(layer, sums)| sums.into_move(layer.to_string())).collect(),
        modules: modules.into_iter().map(|(module, sums)| sums.into_move(module)).collect(),
        most,
    })
}

/// The first number in a name: `model.layers.7.mlp.experts.3.up_proj.weight` is in layer 7.
fn layer(name: &str) -> Option<u64> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// The module that a parameter belongs to: `q_proj` of `model.layers.7.self_attn.q_proj.weight`.
fn module(name: &str) -> String {
    let mut parts = name.split('.').rev().filter(|part| part.parse::<u64>().is_err());
    match (parts.next(), parts.next()) {
        (Some("weight" | "bias"), Some(module)) => module.to_string(),
        (Some(last), _) => last.to_string(),
        _ => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_layer_and_module() {
        let name = "model.layers.7.mlp.experts.3.up_proj.weight";
        assert_eq!((layer(name), module(name).as_str()), (Some(7), "up_proj"));
        assert_eq!((layer("lm_head.weight"), module("lm_head.weight").as_str()), (None, "lm_head"));
        assert_eq!(module("model.layers.0.mlp.experts.gate_up_proj"), "gate_up_proj");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
    }
}
