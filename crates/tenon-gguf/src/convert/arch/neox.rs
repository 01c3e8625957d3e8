//! GPT-NeoX and StarCoder 2.

use serde_json::{Value as Json, json};

use super::super::config::{ConfigClass, fill};
use super::super::parameters::Keys;
use super::super::view::Tensor;
use super::{Architecture, Incoming, Model, Names, Outputs, names};
use crate::Error;

/// `GPTNeoXForCausalLM`.
pub(super) struct GptNeoX;
/// `Starcoder2ForCausalLM`.
pub(super) struct StarCoder2;

const NEOX: ConfigClass = ConfigClass {
    model_types: &["gpt_neox"],
    complete: |fields| {
        let part = fields.get("rotary_pct").filter(|part| !part.is_null()).cloned().unwrap_or(json!(0.25));
        fill(
            fields,
            &[
                ("vocab_size", json!(50432)),
                ("hidden_size", json!(6144)),
                ("intermediate_size", json!(24576)),
                ("num_hidden_layers", json!(44)),
                ("num_attention_heads", json!(64)),
                ("max_position_embeddings", json!(2048)),
                ("layer_norm_eps", json!(1e-5)),
                ("use_parallel_residual", json!(true)),
                ("partial_rotary_factor", part),
            ],
        );
    },
    rope_theta: Some(10000.0),
};

const STARCODER2: ConfigClass = ConfigClass {
    model_types: &["starcoder2"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(49152)),
                ("hidden_size", json!(3072)),
                ("intermediate_size", json!(12288)),
                ("num_hidden_layers", json!(30)),
                ("num_attention_heads", json!(24)),
                ("num_key_value_heads", json!(2)),
                ("max_position_embeddings", json!(4096)),
                ("norm_epsilon", json!(1e-5)),
            ],
        );
    },
    rope_theta: Some(10000.0),
};

const NEOX_NAMES: Names = &[
    ("gpt_neox.embed_in", "token_embd"),
    ("embed_out", "output"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("gpt_neox.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    ("gpt_neox.layers.{}.attention.query_key_value", "blk.{}.attn_qkv"),
    ("gpt_neox.layers.{}.attention.dense", "blk.{}.attn_output"),
    ("gpt_neox.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
    ("gpt_neox.layers.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"),
    ("gpt_neox.layers.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"),
];

const STARCODER2_NAMES: Names =
    &[("model.layers.{}.mlp.c_fc", "blk.{}.ffn_up"), ("model.layers.{}.mlp.c_proj", "blk.{}.ffn_down")];

impl Architecture for GptNeoX {
    fn classes(&self) -> &'static [&'static str] {
        &["GPTNeoXForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "gptneox"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[NEOX]
    }
    fn names(&self) -> &'static [Names] {
        &[NEOX_NAMES]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        let config = model.config;
        let (width, heads) = (config.integer("hidden_size")?, config.integer("num_attention_heads")?.max(1));
        keys.u32("context_length", config.integer("max_position_embeddings")?)?;
        keys.u32("embedding_length", width)?;
        keys.u32("block_count", model.layers)?;
        keys.u32("feed_forward_length", config.integer("intermediate_size")?)?;
        let part = config.get("rotary_pct").or_else(|| config.rope.get("partial_rotary_factor"));
        let part = part.and_then(Json::as_f64).unwrap_or(0.25);
        keys.u32("rope.dimension_count", (part * (width / heads) as f64) as u64)?;
        keys.u32("attention.head_count", heads)?;
        keys.flag("use_parallel_residual", config.flag("use_parallel_residual").unwrap_or(true));
        keys.f32("attention.layer_norm_epsilon", config.number(&["layer_norm_eps"])?);
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, .. } = incoming;
        let is_fused = name.contains(".attention.query_key_value.");
        let tensor = if is_fused {
            heads_apart(tensor, model.config.integer("num_attention_heads")?)?
        } else {
            tensor
        };
        out.map(model, name, tensor)
    }
}

/// Query, key and value of head after head, to all queries, all keys, all values.
pub(super) fn heads_apart(tensor: Tensor, heads: u64) -> Result<Tensor, Error> {
    let shape = tensor.shape();
    let rows = shape.first().copied().unwrap_or(0);
    let mut apart = vec![heads, 3, rows / 3 / heads.max(1)];
    apart.extend(shape.get(1..).unwrap_or_default());
    tensor.reshape(&apart)?.swap_axes(0, 1)?.reshape(&shape)
}

impl Architecture for StarCoder2 {
    fn classes(&self) -> &'static [&'static str] {
        &["Starcoder2ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "starcoder2"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[STARCODER2]
    }
    fn names(&self) -> &'static [Names] {
        &[STARCODER2_NAMES, names::DECODER, names::DENSE]
    }
}
