//! Phi 1, 1.5, 2, 3 and 4, and Phi 3.5's mixture of experts.

use serde_json::{Value as Json, json};

use super::super::config::{ConfigClass, fill, fill_key_value_heads, fill_null, integer, wrong};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::super::view::Tensor;
use super::llama::{MIXTRAL_EXPERTS, mixtral_experts};
use super::{Architecture, Incoming, Model, Names, Outputs, names};
use crate::{Error, Metadata, Value};

/// `PhiForCausalLM`.
pub(super) struct Phi2;
/// `Phi3ForCausalLM`.
pub(super) struct Phi3;
/// `PhiMoEForCausalLM`.
pub(super) struct PhiMoe;

const PHI: ConfigClass = ConfigClass {
    model_types: &["phi"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(51200)),
                ("hidden_size", json!(2048)),
                ("intermediate_size", json!(8192)),
                ("num_hidden_layers", json!(24)),
                ("num_attention_heads", json!(32)),
                ("max_position_embeddings", json!(2048)),
                ("layer_norm_eps", json!(1e-5)),
                ("partial_rotary_factor", json!(0.5)),
            ],
        );
        fill_key_value_heads(fields);
    },
    rope_theta: Some(10000.0),
};

const PHI3: ConfigClass = ConfigClass {
    model_types: &["phi3"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(32064)),
                ("hidden_size", json!(3072)),
                ("intermediate_size", json!(8192)),
                ("num_hidden_layers", json!(32)),
                ("num_attention_heads", json!(32)),
                ("max_position_embeddings", json!(4096)),
                ("original_max_position_embeddings", json!(4096)),
                ("rms_norm_eps", json!(1e-5)),
            ],
        );
        fill_null(fields, "partial_rotary_factor", |_| Some(json!(1.0)));
        fill_key_value_heads(fields);
        // What earlier versions called it.
        for field in ["rope_scaling", "rope_parameters"] {
            if let Some(Json::Object(rope)) = fields.get_mut(field) {
                let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Json::as_str);
                if matches!(kind, Some("su" | "yarn" | "longrope")) {
                    rope.insert("rope_type".into(), json!("longrope"));
                }
            }
        }
    },
    rope_theta: Some(10000.0),
};

const PHI_MOE: ConfigClass = ConfigClass {
    model_types: &["phimoe"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(32064)),
                ("hidden_size", json!(4096)),
                ("intermediate_size", json!(6400)),
                ("num_hidden_layers", json!(32)),
                ("num_attention_heads", json!(32)),
                ("num_key_value_heads", json!(8)),
                ("max_position_embeddings", json!(4096 * 32)),
                ("rms_norm_eps", json!(1e-5)),
                ("num_local_experts", json!(16)),
                ("num_experts_per_tok", json!(2)),
            ],
        );
        fill_key_value_heads(fields);
    },
    rope_theta: Some(1_000_000.0),
};

const PHI2_NAMES: Names = &[
    ("model.final_layernorm", "output_norm"),
    ("model.layers.{}.self_attn.dense", "blk.{}.attn_output"),
    ("model.layers.{}.mlp.fc1", "blk.{}.ffn_up"),
    ("model.layers.{}.mlp.fc2", "blk.{}.ffn_down"),
];

/// Query, key and value in one, gate and up in one.
pub(super) const FUSED: Names = &[
    ("model.layers.{}.self_attn.qkv_proj", "blk.{}.attn_qkv"),
    ("model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up"),
];

impl Architecture for Phi2 {
    fn classes(&self) -> &'static [&'static str] {
        &["PhiForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "phi2"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[PHI]
    }
    fn names(&self) -> &'static [Names] {
        &[PHI2_NAMES, names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        let config = model.config;
        let (width, heads) = (config.integer_of(&["hidden_size", "n_embd"])?, heads(model)?);
        keys.u32("context_length", config.integer_of(&["n_positions", "max_position_embeddings"])?)?;
        keys.u32("embedding_length", width)?;
        keys.u32("feed_forward_length", 4 * width)?;
        keys.u32("block_count", model.layers)?;
        keys.u32("attention.head_count", heads)?;
        keys.u32("attention.head_count_kv", heads)?;
        keys.f32("attention.layer_norm_epsilon", config.number(&["layer_norm_epsilon", "layer_norm_eps"])?);
        let part = config.rope.get("partial_rotary_factor");
        let part = part
            .and_then(Json::as_f64)
            .ok_or_else(|| wrong("partial_rotary_factor", &Json::Null, "a number"))?;
        keys.u32("rope.dimension_count", (part * width as f64) as u64 / heads)?;
        keys.out.set("general.file_type", Value::U32(model.file_type));
        keys.out.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
        Ok(())
    }
}

fn heads(model: &Model<'_>) -> Result<u64, Error> {
    Ok(model.config.integer_of(&["num_attention_heads", "n_head"])?.max(1))
}

fn original_context(model: &Model<'_>) -> Result<u64, Error> {
    let field = "original_max_position_embeddings";
    integer(field, model.config.rope.get(field).unwrap_or(&Json::Null))
}

fn rotated(model: &Model<'_>) -> Result<u64, Error> {
    let part = model.config.rope.get("partial_rotary_factor").and_then(Json::as_f64).unwrap_or(1.0);
    let width = model.config.integer_of(&["hidden_size", "n_embd"])?;
    Ok((part * width as f64) as u64 / heads(model)?)
}

impl Architecture for Phi3 {
    fn classes(&self) -> &'static [&'static str] {
        &["Phi3ForCausalLM", "Phi4ForCausalLMV"]
    }
    fn name(&self) -> &'static str {
        "phi3"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[PHI3]
    }
    fn names(&self) -> &'static [Names] {
        &[FUSED, names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        let config = model.config;
        keys.u32("context_length", config.integer_of(&["n_positions", "max_position_embeddings"])?)?;
        keys.u32("rope.scaling.original_context_length", original_context(model)?)?;
        keys.u32("embedding_length", config.integer_of(&["hidden_size", "n_embd"])?)?;
        keys.u32("feed_forward_length", config.integer("intermediate_size")?)?;
        keys.u32("block_count", model.layers)?;
        keys.u32("attention.head_count", heads(model)?)?;
        keys.u32("attention.head_count_kv", config.integer_of(&["num_key_value_heads", "n_head_kv"])?)?;
        keys.f32("attention.layer_norm_rms_epsilon", config.number(&["rms_norm_eps"])?);
        keys.u32("rope.dimension_count", rotated(model)?)?;
        let theta = config.full_rope().get("rope_theta").and_then(Json::as_f64);
        keys.f32("rope.freq_base", theta.ok_or_else(|| wrong("rope_theta", &Json::Null, "a number"))?);
        keys.out.set("general.file_type", Value::U32(model.file_type));
        // None is how Phi 4 is told from the others.
        keys.u32("attention.sliding_window", config.maybe_integer(&["sliding_window"])?.unwrap_or(0))
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        let config = model.files.object("tokenizer_config.json")?;
        let class = config.as_ref().and_then(|config| config.get("tokenizer_class")).and_then(Json::as_str);
        if class == Some("GPT2Tokenizer") { tokenizer::bpe(model, out) } else { tokenizer::phi3(model, out) }
    }
    fn extra(&self, model: &Model<'_>, out: &mut Outputs) -> Result<(), Error> {
        let factors = |field: &str| -> Option<Vec<f32>> {
            let list = model.config.rope.get(field)?.as_array().filter(|list| !list.is_empty())?;
            list.iter().map(|value| Some(value.as_f64()? as f32)).collect()
        };
        let Some(long) = factors("long_factor") else { return Ok(()) };
        let short = factors("short_factor")
            .ok_or_else(|| wrong("rope_parameters.short_factor", &Json::Null, "a list of numbers"))?;
        let longest = model.config.integer_of(&["n_positions", "max_position_embeddings"])? as f64;
        let original = original_context(model)? as f64;
        let scale = longest / original;
        let kind = model.config.rope.get("rope_type").unwrap_or(&Json::Null);
        let factor = match kind.as_str() {
            Some("su" | "longrope") if scale > 1.0 => (1.0 + scale.ln() / original.ln()).sqrt(),
            Some("yarn") if scale > 1.0 => 0.1 * scale.ln() + 1.0,
            Some("su" | "longrope" | "yarn") => 1.0,
            _ => return Err(wrong("rope_parameters.rope_type", kind, "longrope, su or yarn")),
        };
        out.keys.set(format!("{}.rope.scaling.attn_factor", model.architecture), Value::F32(factor as f32));
        let expected = rotated(model)? / 2;
        if (long.len() as u64, short.len() as u64) != (expected, expected) {
            return Err(wrong(
                "rope_parameters.long_factor",
                &json!(long.len()),
                "half as many as rotated dimensions",
            ));
        }
        out.push("rope_factors_long.weight", Tensor::numbers(long));
        out.push("rope_factors_short.weight", Tensor::numbers(short));
        Ok(())
    }
}

impl Architecture for PhiMoe {
    fn classes(&self) -> &'static [&'static str] {
        // As published, and as transformers 5 writes it.
        &["PhiMoEForCausalLM", "PhimoeForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "phimoe"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[PHI_MOE]
    }
    fn names(&self) -> &'static [Names] {
        &[MIXTRAL_EXPERTS, names::DECODER]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        Phi3.parameters(model, keys)?;
        keys.u32(
            "expert_used_count",
            model.config.integer_of(&["num_experts_per_tok", "num_experts_per_token"])?,
        )?;
        keys.u32("expert_count", model.config.integer_of(&["num_local_experts", "num_experts"])?)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        Phi3.tokenizer(model, out)
    }
    fn extra(&self, model: &Model<'_>, out: &mut Outputs) -> Result<(), Error> {
        Phi3.extra(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        mixtral_experts(model, incoming, out)
    }
}
