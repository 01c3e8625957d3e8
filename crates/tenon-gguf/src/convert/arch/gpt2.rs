//! GPT-2: weights the other way round.

use serde_json::json;

use super::super::config::{ConfigClass, fill, rename};
use super::super::parameters::Keys;
use super::{Architecture, Incoming, Model, Names, Outputs};
use crate::{Error, Value};

/// `GPT2LMHeadModel`.
pub(super) struct Gpt2;

const GPT2: ConfigClass = ConfigClass {
    model_types: &["gpt2"],
    complete: |fields| {
        for (from, to) in [
            ("hidden_size", "n_embd"),
            ("max_position_embeddings", "n_positions"),
            ("num_attention_heads", "n_head"),
            ("num_hidden_layers", "n_layer"),
        ] {
            rename(fields, from, to);
        }
        fill(
            fields,
            &[
                ("vocab_size", json!(50257)),
                ("n_positions", json!(1024)),
                ("n_embd", json!(768)),
                ("n_layer", json!(12)),
                ("n_head", json!(12)),
                ("layer_norm_epsilon", json!(1e-5)),
            ],
        );
    },
    rope_theta: None,
};

const NAMES: Names = &[
    ("wte", "token_embd"),
    ("wpe", "position_embd"),
    ("lm_head", "output"),
    ("ln_f", "output_norm"),
    ("h.{}.ln_1", "blk.{}.attn_norm"),
    ("h.{}.attn.c_attn", "blk.{}.attn_qkv"),
    ("h.{}.attn.c_proj", "blk.{}.attn_output"),
    ("h.{}.ln_2", "blk.{}.ffn_norm"),
    ("h.{}.mlp.c_fc", "blk.{}.ffn_up"),
    ("h.{}.mlp.c_proj", "blk.{}.ffn_down"),
];

impl Architecture for Gpt2 {
    fn classes(&self) -> &'static [&'static str] {
        &["GPT2LMHeadModel"]
    }
    fn name(&self) -> &'static str {
        "gpt2"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GPT2]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        let config = model.config;
        let width = config.integer("n_embd")?;
        keys.u32("block_count", model.layers)?;
        // The converter reads n_ctx only, which transformers has stopped writing.
        keys.u32("context_length", config.integer_of(&["n_ctx", "n_positions"])?)?;
        keys.u32("embedding_length", width)?;
        keys.u32("feed_forward_length", 4 * width)?;
        keys.u32("attention.head_count", config.integer("n_head")?)?;
        keys.f32("attention.layer_norm_epsilon", config.number(&["layer_norm_epsilon"])?);
        keys.out.set("general.file_type", Value::U32(model.file_type));
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, .. } = incoming;
        // Masks, which old files have.
        if name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") {
            return Ok(());
        }
        let turned =
            [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| name.ends_with(end));
        let tensor = if turned { tensor.swap_axes(0, 1)? } else { tensor };
        out.map(model, name.strip_prefix("transformer.").unwrap_or(name), tensor)
    }
}
