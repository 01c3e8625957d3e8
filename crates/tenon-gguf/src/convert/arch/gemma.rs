//! Gemma 1, 2 and 3: norms that are stored as their difference from one.

use serde_json::{Value as Json, json};

use super::super::config::{Config, ConfigClass, Fields, fill};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::super::view::Tensor;
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters, keep_text, names, pooling_type};
use crate::{Error, Metadata, Value};

/// `GemmaForCausalLM`.
pub(super) struct Gemma;
/// `Gemma2ForCausalLM`.
pub(super) struct Gemma2;
/// `Gemma3ForCausalLM`.
pub(super) struct Gemma3;
/// `Gemma3TextModel`: EmbeddingGemma.
pub(super) struct EmbeddingGemma;

const GEMMA: ConfigClass = ConfigClass {
    model_types: &["gemma"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(256000)),
                ("hidden_size", json!(3072)),
                ("intermediate_size", json!(24576)),
                ("num_hidden_layers", json!(28)),
                ("num_attention_heads", json!(16)),
                ("num_key_value_heads", json!(16)),
                ("head_dim", json!(256)),
                ("max_position_embeddings", json!(8192)),
                ("rms_norm_eps", json!(1e-6)),
            ],
        );
    },
    rope_theta: Some(10000.0),
};

const GEMMA2: ConfigClass = ConfigClass {
    model_types: &["gemma2"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(256000)),
                ("hidden_size", json!(2304)),
                ("intermediate_size", json!(9216)),
                ("num_hidden_layers", json!(26)),
                ("num_attention_heads", json!(8)),
                ("num_key_value_heads", json!(4)),
                ("head_dim", json!(256)),
                ("max_position_embeddings", json!(8192)),
                ("rms_norm_eps", json!(1e-6)),
                ("sliding_window", json!(4096)),
                ("attn_logit_softcapping", json!(50.0)),
                ("final_logit_softcapping", json!(30.0)),
            ],
        );
    },
    rope_theta: Some(10000.0),
};

const GEMMA3: ConfigClass = ConfigClass {
    model_types: &["gemma3_text"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(262208)),
                ("hidden_size", json!(2304)),
                ("intermediate_size", json!(9216)),
                ("num_hidden_layers", json!(26)),
                ("num_attention_heads", json!(8)),
                ("num_key_value_heads", json!(4)),
                ("head_dim", json!(256)),
                ("max_position_embeddings", json!(131_072)),
                ("rms_norm_eps", json!(1e-6)),
                ("sliding_window", json!(4096)),
            ],
        );
        two_ropes(fields);
    },
    // Its own way, above.
    rope_theta: None,
};

/// Rotary embeddings of sliding and of full attention, from the fields that older files have for them.
pub(super) fn two_ropes(fields: &mut Fields) {
    let scaling = fields.remove("rope_scaling");
    let mut rope = match fields.remove("rope_parameters") {
        Some(Json::Object(rope)) => rope,
        _ => Fields::new(),
    };
    for (kind, field, theta) in [
        ("full_attention", "rope_theta", 1_000_000.0),
        ("sliding_attention", "rope_local_base_freq", 10000.0),
    ] {
        let theta = fields.remove(field).filter(|theta| !theta.is_null()).unwrap_or(json!(theta));
        let mut one = match rope.remove(kind) {
            Some(Json::Object(one)) => one,
            _ => Fields::new(),
        };
        if let (Some(Json::Object(scaling)), "full_attention") = (&scaling, kind) {
            one.extend(scaling.clone());
        }
        one.entry("rope_theta").or_insert(theta);
        let old = one.get("type").cloned().unwrap_or(json!("default"));
        one.entry("rope_type").or_insert(old);
        rope.insert(kind.into(), Json::Object(one));
    }
    fields.insert("rope_parameters".into(), Json::Object(rope));
}

/// Norms before and after both halves of a layer.
pub(super) const FOUR_NORMS: Names = &[
    ("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"),
    ("model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm"),
    ("model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"),
];

fn keep_without_head(name: &str) -> Option<String> {
    // The embeddings are the head; some tools write it anyway.
    if name == "lm_head.weight" { None } else { keep_text(name) }
}

fn plus_one(name: &str, tensor: Tensor) -> Tensor {
    if name.ends_with("norm.weight") { tensor.add(1.0) } else { tensor }
}

/// The keys of Gemma 1 and 2, in their own order.
fn own_parameters(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    let config = model.config;
    keys.u32("context_length", config.integer("max_position_embeddings")?)?;
    keys.u32("embedding_length", config.integer("hidden_size")?)?;
    keys.u32("block_count", model.layers)?;
    keys.u32("feed_forward_length", config.integer("intermediate_size")?)?;
    keys.u32("attention.head_count", config.integer("num_attention_heads")?)?;
    keys.u32("attention.head_count_kv", config.integer_of(&["num_key_value_heads", "num_attention_heads"])?)?;
    keys.f32("attention.layer_norm_rms_epsilon", config.number(&["rms_norm_eps"])?);
    keys.u32("attention.key_length", config.integer("head_dim")?)?;
    keys.u32("attention.value_length", config.integer("head_dim")?)?;
    keys.out.set("general.file_type", Value::U32(model.file_type));
    Ok(())
}

impl Architecture for Gemma {
    fn classes(&self) -> &'static [&'static str] {
        &["GemmaForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "gemma"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GEMMA]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        keep_without_head(name)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        own_parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::sentencepiece(model, &["vocab_size_per_layer_input", "vocab_size"], out)?;
        // Meant for CodeGemma, written for all.
        let kinds = ["prefix", "suffix", "middle", "fsep", "eot"];
        let known = [("prefix", 67), ("suffix", 69), ("middle", 68), ("fsep", 70), ("eot", 107)];
        tokenizer::more_special(model, &kinds, &known, out)?;
        out.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        out.map(model, incoming.name, plus_one(incoming.name, incoming.tensor))
    }
}

impl Architecture for Gemma2 {
    fn classes(&self) -> &'static [&'static str] {
        &["Gemma2ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "gemma2"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GEMMA2]
    }
    fn names(&self) -> &'static [Names] {
        &[FOUR_NORMS, names::DECODER, names::DENSE]
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        keep_without_head(name)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        own_parameters(model, keys)?;
        keys.f32("attn_logit_softcapping", model.config.number(&["attn_logit_softcapping"])?);
        keys.f32("final_logit_softcapping", model.config.number(&["final_logit_softcapping"])?);
        keys.u32("attention.sliding_window", model.config.integer("sliding_window")?)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::sentencepiece(model, &["vocab_size_per_layer_input", "vocab_size"], out)?;
        out.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        out.map(model, incoming.name, plus_one(incoming.name, incoming.tensor))
    }
}

impl Architecture for Gemma3 {
    fn classes(&self) -> &'static [&'static str] {
        &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"]
    }
    fn name(&self) -> &'static str {
        "gemma3"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GEMMA3]
    }
    fn names(&self) -> &'static [Names] {
        &[FOUR_NORMS, names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        gemma3_parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        if !model.files.has("tokenizer.model") {
            return tokenizer::bpe(model, out);
        }
        tokenizer::sentencepiece(model, &["vocab_size_per_layer_input", "vocab_size"], out)?;
        out.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let tensor = within_vocabulary(model, &incoming)?;
        out.map(model, incoming.name, plus_one(incoming.name, tensor))
    }
}

impl Architecture for EmbeddingGemma {
    fn classes(&self) -> &'static [&'static str] {
        &["Gemma3TextModel"]
    }
    fn name(&self) -> &'static str {
        "gemma-embedding"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[]
    }
    fn names(&self) -> &'static [Names] {
        Gemma3.names()
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        gemma3_parameters(model, keys)?;
        pooling_type(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        Gemma3.tokenizer(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        // Saved without the prefix that the other classes have.
        let name = format!("model.{}", incoming.name.strip_prefix("model.").unwrap_or(incoming.name));
        Gemma3.tensor(model, Incoming { name: &name, ..incoming }, out)
    }
}

/// Keys of Gemma 3 and what is built on it.
pub(super) fn gemma3_parameters(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    base_parameters(model, keys)?;
    let config = model.config;
    let or = |field: &str, default: u64| Ok::<_, Error>(config.maybe_integer(&[field])?.unwrap_or(default));
    keys.u32("context_length", or("max_position_embeddings", 131_072)?)?;
    keys.u32("attention.head_count", or("num_attention_heads", 8)?)?;
    let epsilon = config.get("rms_norm_eps").and_then(Json::as_f64);
    keys.f32("attention.layer_norm_rms_epsilon", epsilon.unwrap_or(1e-6));
    keys.u32("attention.key_length", or("head_dim", 256)?)?;
    keys.u32("attention.value_length", or("head_dim", 256)?)?;
    let theta = config.full_rope().get("rope_theta").and_then(Json::as_f64);
    keys.f32("rope.freq_base", theta.unwrap_or(1_000_000.0));
    if let Some(cap) = config.get("final_logit_softcapping").and_then(Json::as_f64).filter(|cap| *cap != 0.0)
    {
        keys.f32("final_logit_softcapping", cap);
    }
    if config.maybe_integer(&["sliding_window_pattern"])? != Some(1) {
        keys.u32("attention.sliding_window", config.integer("sliding_window")?)?;
    }
    keys.u32("attention.head_count_kv", or("num_key_value_heads", 4)?)
}

/// Embeddings without the rows of tokens that the tokenizer does not have.
pub(super) fn within_vocabulary(model: &Model<'_>, incoming: &Incoming<'_>) -> Result<Tensor, Error> {
    let tensor = incoming.tensor.clone();
    if !incoming.name.contains("embed_tokens.weight") {
        return Ok(tensor);
    }
    let rows = tensor.shape().first().copied().unwrap_or(0);
    let tokens = tokenizer::token_count(model)?;
    if tokens < rows { tensor.slice(0, 0, tokens) } else { Ok(tensor) }
}
