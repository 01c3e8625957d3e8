//! ERNIE 4.5, dense and mixtures of experts.

use serde_json::{Value as Json, json};

use super::super::config::{Config, ConfigClass, fill, fill_heads};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::deepseek::SHARED_EXPERTS;
use super::experts::one_by_one;
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters, keep_text, llama, names};
use crate::{Error, Metadata, Value};

/// `Ernie4_5ForCausalLM`.
pub(super) struct Ernie;
/// `Ernie4_5_MoeForCausalLM`.
pub(super) struct ErnieMoe;

const ERNIE: ConfigClass = ConfigClass {
    model_types: &["ernie4_5"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(103_424)),
                ("hidden_size", json!(1024)),
                ("intermediate_size", json!(3072)),
                ("num_hidden_layers", json!(18)),
                ("num_attention_heads", json!(16)),
                ("num_key_value_heads", json!(2)),
                ("max_position_embeddings", json!(131_072)),
                ("rms_norm_eps", json!(1e-5)),
                ("head_dim", json!(128)),
            ],
        );
        fill_heads(fields);
    },
    rope_theta: Some(500_000.0),
};

const ERNIE_MOE: ConfigClass = ConfigClass {
    model_types: &["ernie4_5_moe"],
    complete: |fields| {
        for (from, to) in [("num_experts", "moe_num_experts"), ("num_experts_per_tok", "moe_k")] {
            super::super::config::rename(fields, from, to);
        }
        fill(
            fields,
            &[
                ("vocab_size", json!(103_424)),
                ("hidden_size", json!(2560)),
                ("intermediate_size", json!(12288)),
                ("num_hidden_layers", json!(28)),
                ("num_attention_heads", json!(20)),
                ("num_key_value_heads", json!(4)),
                ("max_position_embeddings", json!(131_072)),
                ("rms_norm_eps", json!(1e-5)),
                ("moe_intermediate_size", json!(1536)),
                ("moe_k", json!(6)),
                ("moe_num_experts", json!(64)),
                ("moe_num_shared_experts", json!(2)),
                ("moe_layer_start_index", json!(1)),
                ("moe_layer_interval", json!(1)),
            ],
        );
    },
    rope_theta: Some(500_000.0),
};

const MOE_NAMES: Names = &[("model.layers.{}.mlp.moe_statics.e_score_correction", "blk.{}.exp_probs_b")];

/// Layers that predict further tokens.
const FURTHER: [&str; 4] =
    ["model.mtp_block.", "model.mtp_emb_norm.", "model.mtp_hidden_norm.", "model.mtp_linear_proj."];

impl Architecture for Ernie {
    fn classes(&self) -> &'static [&'static str] {
        &["Ernie4_5_ForCausalLM", "Ernie4_5ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "ernie4_5"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[ERNIE]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        keep_text(&name.replace("ernie.", "model."))
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::sentencepiece(model, &["vocab_size_per_layer_input", "vocab_size"], out)?;
        let config = model.files.object("tokenizer_config.json")?;
        let add = config.as_ref().and_then(|config| config.get("add_prefix_space")).and_then(Json::as_bool);
        if let Some(add) = add {
            out.set("tokenizer.ggml.add_space_prefix", Value::Bool(add));
        }
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, .. } = incoming;
        let config = model.config;
        if name.contains("qkv_proj") {
            let head = llama::head_dim(config)?;
            let queries = config.integer("num_attention_heads")? * head;
            let keys = config.integer("num_key_value_heads")? * head;
            let pieces = tensor.split(0, [queries, keys, keys])?;
            for (piece, projection) in pieces.into_iter().zip(["q_proj", "k_proj", "v_proj"]) {
                out.map(model, &name.replace("qkv_proj", projection), piece)?;
            }
            return Ok(());
        }
        if name.contains("up_gate_proj") {
            let half = tensor.shape().first().copied().unwrap_or(0) / 2;
            let [gate, up] = tensor.split(0, [half, half])?;
            out.map(model, &name.replace("up_gate_proj", "gate_proj"), gate)?;
            return out.map(model, &name.replace("up_gate_proj", "up_proj"), up);
        }
        out.map(model, name, tensor)
    }
}

impl Architecture for ErnieMoe {
    fn classes(&self) -> &'static [&'static str] {
        &["Ernie4_5_MoeForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "ernie4_5-moe"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[ERNIE_MOE]
    }
    fn names(&self) -> &'static [Names] {
        &[MOE_NAMES, names::DECODER, names::DENSE, names::EXPERTS, SHARED_EXPERTS]
    }
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        let name = name.replace("ernie.", "model.");
        let is_further = FURTHER.iter().any(|start| {
            name.strip_prefix(start).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        });
        if is_further { None } else { Ernie.keep(&name, config) }
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        let config = model.config;
        keys.u32("expert_count", config.integer("moe_num_experts")?)?;
        keys.u32("expert_used_count", config.integer("moe_k")?)?;
        keys.u32("interleave_moe_layer_step", config.integer("moe_layer_interval")?)?;
        keys.u32("leading_dense_block_count", config.integer("moe_layer_start_index")?)?;
        if let Some(n) = config.maybe_integer(&["moe_intermediate_size"])? {
            keys.u32("expert_feed_forward_length", n)?;
        }
        if let Some(shared) = config.maybe_integer(&["moe_num_shared_experts"])? {
            keys.u32("expert_shared_count", shared)?;
            let (width, heads) = (
                config.maybe_integer(&["intermediate_size"])?,
                config.maybe_integer(&["num_key_value_heads"])?,
            );
            if let (true, Some(width), Some(heads)) = (shared > 0, width, heads) {
                // The converter's own division; it agrees with the model where there are as many heads.
                keys.u32("expert_shared_feed_forward_length", width / heads.max(1))?;
            }
        }
        Ok(())
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        Ernie.tokenizer(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        one_by_one(model, incoming, &["moe_num_experts"], ["gate_proj", "up_proj", "down_proj"], out)
    }
}
