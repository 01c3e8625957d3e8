//! Command-R and Command-R7B.

use serde_json::{Value as Json, json};
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, Fields, fill, fill_key_value_heads, fill_null};
use super::super::parameters::Keys;
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters};
use crate::Error;

/// `CohereForCausalLM`.
pub(super) struct CommandR;
/// `Cohere2ForCausalLM`.
pub(super) struct Cohere2;

const COHERE: ConfigClass =
    ConfigClass { model_types: &["cohere"], complete: cohere, rope_theta: Some(500_000.0) };

const COHERE2: ConfigClass = ConfigClass {
    model_types: &["cohere2"],
    complete: |fields| {
        cohere(fields);
        fill(fields, &[("sliding_window", json!(4096))]);
        let share = |fields: &Fields| {
            fields.get("hidden_size")?.as_u64()?.checked_div(fields.get("num_attention_heads")?.as_u64()?)
        };
        if let Some(width) = share(fields) {
            fields.insert("head_dim".into(), json!(width));
        }
        let pattern = fields.remove("sliding_window_pattern").and_then(|n| n.as_u64()).unwrap_or(4).max(1);
        fill_null(fields, "layer_types", |fields| {
            let layers = fields.get("num_hidden_layers")?.as_u64()?.min(100_000);
            let kind = |i| if (i + 1) % pattern != 0 { "sliding_attention" } else { "full_attention" };
            Some((0..layers).map(kind).collect())
        });
    },
    rope_theta: Some(10000.0),
};

fn cohere(fields: &mut Fields) {
    fill(
        fields,
        &[
            ("vocab_size", json!(256_000)),
            ("hidden_size", json!(8192)),
            ("intermediate_size", json!(22528)),
            ("logit_scale", json!(0.0625)),
            ("num_hidden_layers", json!(40)),
            ("num_attention_heads", json!(64)),
            ("max_position_embeddings", json!(8192)),
            ("layer_norm_eps", json!(1e-5)),
        ],
    );
    fill_key_value_heads(fields);
}

/// The output is always the embedding; attention and feed-forward share a norm.
const NAMES: Names = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    ("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
    ("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"),
    ("model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"),
    ("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
    ("model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"),
    ("model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"),
    ("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
];

const HEAD_NORMS: Names = &[
    ("model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"),
    ("model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"),
];

impl Architecture for CommandR {
    fn classes(&self) -> &'static [&'static str] {
        &["CohereForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "command-r"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[COHERE]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES, HEAD_NORMS]
    }
    fn prepare(&self, config: &mut Config, _: &[TensorInfo]) -> Result<(), Error> {
        // max_position_embeddings is 8192 in files of models that were trained on more.
        let longest = config.integer_of(&["model_max_length", "max_position_embeddings"])?;
        config.set("max_position_embeddings", json!(longest));
        Ok(())
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        keys.f32("logit_scale", model.config.number(&["logit_scale"])?);
        keys.text("rope.scaling.type", "none");
        Ok(())
    }
}

impl Architecture for Cohere2 {
    fn classes(&self) -> &'static [&'static str] {
        &["Cohere2ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "cohere2"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[COHERE2]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        let config = model.config;
        keys.f32("logit_scale", config.number(&["logit_scale"])?);
        keys.u32("attention.sliding_window", config.integer("sliding_window")?)?;
        keys.u32("vocab_size", config.integer("vocab_size")?)?;
        let heads = config.integer("num_attention_heads")?.max(1);
        // Not in every file; all models have 1.
        let part = config.get("rotary_pct").and_then(Json::as_f64).unwrap_or(1.0);
        keys.u32("rope.dimension_count", (part * (config.integer("hidden_size")? / heads) as f64) as u64)?;
        keys.text("rope.scaling.type", "none");
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        // llama.cpp has no place for biases, which are zeros in all models that have them. Whether they
        // are is not seen from headers.
        if incoming.name.ends_with(".bias") {
            let reason = "llama.cpp's Cohere 2 has no biases".to_string();
            return Err(Error::Tensor { tensor: incoming.name.into(), reason });
        }
        out.map(model, incoming.name, incoming.tensor)
    }
}
