//! BERT, DistilBERT, RoBERTa and XLM-RoBERTa, for embeddings and classification.

use serde_json::{Value as Json, json};
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, Fields, fill, rename, wrong};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters, keep_text, pooling_type};
use crate::{Error, Metadata, Value};

/// `BertModel` and its heads.
pub(super) struct Bert;
/// `DistilBertModel` and its heads.
pub(super) struct DistilBert;
/// `RobertaModel`, `RobertaForSequenceClassification`.
pub(super) struct Roberta;
/// `XLMRobertaModel`, `XLMRobertaForSequenceClassification`.
pub(super) struct XlmRoberta;

const BERT: ConfigClass = ConfigClass {
    model_types: &["bert"],
    complete: |fields| {
        fill(fields, &[("vocab_size", json!(30522)), ("pad_token_id", json!(0))]);
        sizes(fields);
    },
    rope_theta: None,
};

const ROBERTA: ConfigClass = ConfigClass {
    model_types: &["roberta"],
    complete: |fields| {
        fill(fields, &[("vocab_size", json!(50265)), ("pad_token_id", json!(1))]);
        sizes(fields);
    },
    rope_theta: None,
};

const XLM_ROBERTA: ConfigClass = ConfigClass {
    model_types: &["xlm-roberta"],
    complete: |fields| {
        fill(fields, &[("vocab_size", json!(30522)), ("pad_token_id", json!(1))]);
        sizes(fields);
    },
    rope_theta: None,
};

const DISTILBERT: ConfigClass = ConfigClass {
    model_types: &["distilbert"],
    complete: |fields| {
        for (published, kept) in
            [("hidden_size", "dim"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")]
        {
            rename(fields, published, kept);
        }
        fill(
            fields,
            &[
                ("vocab_size", json!(30522)),
                ("max_position_embeddings", json!(512)),
                ("n_layers", json!(6)),
                ("n_heads", json!(12)),
                ("dim", json!(768)),
                ("hidden_dim", json!(3072)),
                ("pad_token_id", json!(0)),
            ],
        );
    },
    rope_theta: None,
};

fn sizes(fields: &mut Fields) {
    fill(
        fields,
        &[
            ("hidden_size", json!(768)),
            ("num_hidden_layers", json!(12)),
            ("num_attention_heads", json!(12)),
            ("intermediate_size", json!(3072)),
            ("max_position_embeddings", json!(512)),
            ("type_vocab_size", json!(2)),
            ("layer_norm_eps", json!(1e-12)),
        ],
    );
}

const NAMES: Names = &[
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("encoder.layer.{}.attention.self.query", "blk.{}.attn_q"),
    ("encoder.layer.{}.attention.self.key", "blk.{}.attn_k"),
    ("encoder.layer.{}.attention.self.value", "blk.{}.attn_v"),
    ("encoder.layer.{}.attention.output.dense", "blk.{}.attn_output"),
    ("encoder.layer.{}.attention.output.LayerNorm", "blk.{}.attn_output_norm"),
    ("encoder.layer.{}.intermediate.dense", "blk.{}.ffn_up"),
    ("encoder.layer.{}.output.dense", "blk.{}.ffn_down"),
    ("encoder.layer.{}.output.LayerNorm", "blk.{}.layer_output_norm"),
    ("classifier", "cls"),
    ("classifier.dense", "cls"),
    ("pre_classifier", "cls"),
    ("classifier.out_proj", "cls.output"),
];

const DISTILBERT_NAMES: Names = &[
    ("transformer.layer.{}.attention.q_lin", "blk.{}.attn_q"),
    ("transformer.layer.{}.attention.k_lin", "blk.{}.attn_k"),
    ("transformer.layer.{}.attention.v_lin", "blk.{}.attn_v"),
    ("transformer.layer.{}.attention.out_lin", "blk.{}.attn_output"),
    ("transformer.layer.{}.sa_layer_norm", "blk.{}.attn_output_norm"),
    ("transformer.layer.{}.ffn.lin1", "blk.{}.ffn_up"),
    ("transformer.layer.{}.ffn.lin2", "blk.{}.ffn_down"),
    ("transformer.layer.{}.output_layer_norm", "blk.{}.layer_output_norm"),
];

/// Names of classes by number; none where they are the two that transformers makes up.
fn labels(config: &Config) -> Option<Vec<String>> {
    let labels = config.get("id2label")?.as_object()?;
    let entry = |(id, name): (&String, &Json)| Some((id.parse::<i64>().ok()?, name.as_str()?.to_string()));
    let mut labels: Vec<(i64, String)> = labels.iter().map(entry).collect::<Option<_>>()?;
    labels.sort();
    let made_up = labels.len() == 2 && labels.iter().any(|(id, name)| *id == 0 && name == "LABEL_0");
    (!made_up).then(|| labels.into_iter().map(|(_, name)| name).collect())
}

impl Architecture for Bert {
    fn classes(&self) -> &'static [&'static str] {
        &["BertModel", "BertForMaskedLM", "CamembertModel", "BertForSequenceClassification"]
    }
    fn name(&self) -> &'static str {
        "bert"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[BERT]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES]
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        let name = name.strip_prefix("bert.").unwrap_or(name);
        // What the first checkpoints called the parameters of norms.
        let name = match (name.strip_suffix(".gamma"), name.strip_suffix(".beta")) {
            (Some(stem), _) => format!("{stem}.weight"),
            (_, Some(stem)) => format!("{stem}.bias"),
            _ => name.to_string(),
        };
        let is_unused = ["embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"]
            .contains(&name.as_str())
            || name.starts_with("cls.predictions")
            || name.starts_with("cls.seq_relationship");
        if is_unused { None } else { keep_text(&name) }
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        keys.flag("attention.causal", false);
        pooling_type(model, keys)?;
        if let Some(labels) = labels(model.config) {
            keys.set("classifier.output_labels", Value::Strings(labels));
        }
        Ok(())
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::token_types(model, out)?;
        tokenizer::word_piece(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let name = match incoming.name {
            "classifier.weight" if labels(model.config).is_some() => "classifier.out_proj.weight",
            "classifier.bias" if labels(model.config).is_some() => "classifier.out_proj.bias",
            name => name,
        };
        out.map(model, name, incoming.tensor)
    }
}

impl Architecture for DistilBert {
    fn classes(&self) -> &'static [&'static str] {
        &["DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"]
    }
    fn name(&self) -> &'static str {
        "bert"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[DISTILBERT]
    }
    fn names(&self) -> &'static [Names] {
        &[DISTILBERT_NAMES, NAMES]
    }
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        let name = name.strip_prefix("distilbert.").unwrap_or(name);
        // The head that guesses masked tokens.
        if name.starts_with("vocab_") { None } else { Bert.keep(name, config) }
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        keys.f32("attention.layer_norm_epsilon", 1e-12);
        Bert.parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        Bert.tokenizer(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        Bert.tensor(model, incoming, out)
    }
}

/// Positions count from behind the padding token's number.
fn position_offset(config: &Config) -> Result<u64, Error> {
    Ok(config.maybe_integer(&["pad_token_id"])?.map_or(0, |pad| pad + 1))
}

/// Takes the positions before those from what the configuration says.
pub(super) fn after_padding(config: &mut Config) -> Result<(), Error> {
    let offset = position_offset(config)?;
    let positions = config.integer("max_position_embeddings")?;
    let left = positions.checked_sub(offset).ok_or_else(|| {
        wrong("max_position_embeddings", &json!(positions), "more than the padding token's number")
    })?;
    config.set("max_position_embeddings", json!(left));
    Ok(())
}

impl Architecture for Roberta {
    fn classes(&self) -> &'static [&'static str] {
        &["RobertaModel", "RobertaForSequenceClassification"]
    }
    fn name(&self) -> &'static str {
        "bert"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[ROBERTA]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES]
    }
    fn prepare(&self, config: &mut Config, _: &[TensorInfo]) -> Result<(), Error> {
        after_padding(config)
    }
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        Bert.keep(name.strip_prefix("roberta.").unwrap_or(name), config)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        Bert.parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::bpe(model, out)?;
        tokenizer::token_types(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, mut tensor, layer } = incoming;
        if name == "embeddings.position_embeddings.weight" {
            let offset = position_offset(model.config)?;
            let rows = tensor.shape().first().copied().unwrap_or(0);
            tensor = tensor.slice(0, offset, rows.saturating_sub(offset))?;
        }
        Bert.tensor(model, Incoming { name, tensor, layer }, out)
    }
}

impl Architecture for XlmRoberta {
    fn classes(&self) -> &'static [&'static str] {
        &["XLMRobertaModel", "XLMRobertaForSequenceClassification"]
    }
    fn name(&self) -> &'static str {
        "bert"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[XLM_ROBERTA]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES]
    }
    fn prepare(&self, config: &mut Config, tensors: &[TensorInfo]) -> Result<(), Error> {
        if config.get("lora_adaptations").is_some() {
            // jina-embeddings-v3: several files would come of it.
            return Err(Error::Architecture {
                architecture: format!("{} with lora_adaptations", config.class),
                known: self.classes().to_vec(),
            });
        }
        Roberta.prepare(config, tensors)
    }
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        Roberta.keep(name, config)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        Bert.parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::unigram(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        Roberta.tensor(model, incoming, out)
    }
}
