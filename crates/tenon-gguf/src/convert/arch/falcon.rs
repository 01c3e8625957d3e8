//! Falcon and MPT.

use serde_json::{Value as Json, json};

use super::super::config::{ConfigClass, fill, fill_null, rename};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::super::view::Tensor;
use super::{Architecture, Incoming, Model, Names, Outputs};
use crate::{Error, Metadata, Value};

/// `FalconForCausalLM`.
pub(super) struct Falcon;
/// `MPTForCausalLM`.
pub(super) struct Mpt;

const FALCON: ConfigClass = ConfigClass {
    model_types: &["falcon"],
    complete: |fields| {
        rename(fields, "n_embed", "hidden_size");
        fill(
            fields,
            &[
                ("vocab_size", json!(65024)),
                ("hidden_size", json!(4544)),
                ("num_hidden_layers", json!(32)),
                ("num_attention_heads", json!(71)),
                ("layer_norm_epsilon", json!(1e-5)),
                ("max_position_embeddings", json!(2048)),
                ("multi_query", json!(true)),
                ("new_decoder_architecture", json!(false)),
            ],
        );
        fill_null(fields, "num_kv_heads", |fields| fields.get("num_attention_heads").cloned());
    },
    rope_theta: Some(10000.0),
};

const MPT: ConfigClass = ConfigClass {
    model_types: &["mpt"],
    complete: |fields| {
        for (from, to) in [
            ("num_attention_heads", "n_heads"),
            ("hidden_size", "d_model"),
            ("num_hidden_layers", "n_layers"),
        ] {
            rename(fields, from, to);
        }
        fill(
            fields,
            &[
                ("vocab_size", json!(50368)),
                ("d_model", json!(2048)),
                ("n_heads", json!(16)),
                ("n_layers", json!(24)),
                ("max_seq_len", json!(2048)),
                ("attn_config", json!({})),
            ],
        );
        if let Some(Json::Object(attention)) = fields.get_mut("attn_config") {
            fill(
                attention,
                &[("clip_qkv", Json::Null), ("alibi", json!(true)), ("alibi_bias_max", json!(8))],
            );
        }
    },
    rope_theta: None,
};

const FALCON_NAMES: Names = &[
    ("transformer.word_embeddings", "token_embd"),
    ("transformer.ln_f", "output_norm"),
    ("lm_head", "output"),
    ("transformer.h.{}.input_layernorm", "blk.{}.attn_norm"),
    ("transformer.h.{}.ln_mlp", "blk.{}.attn_norm"),
    ("transformer.h.{}.ln_attn", "blk.{}.attn_norm_2"),
    ("transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv"),
    ("transformer.h.{}.self_attention.dense", "blk.{}.attn_output"),
    ("transformer.h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"),
    ("transformer.h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"),
];

const MPT_NAMES: Names = &[
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.norm_f", "output_norm"),
    ("lm_head", "output"),
    ("transformer.blocks.{}.norm_1", "blk.{}.attn_norm"),
    ("transformer.blocks.{}.norm_2", "blk.{}.ffn_norm"),
    ("transformer.blocks.{}.attn.Wqkv", "blk.{}.attn_qkv"),
    ("transformer.blocks.{}.attn.out_proj", "blk.{}.attn_output"),
    ("transformer.blocks.{}.attn.q_ln", "blk.{}.attn_q_norm"),
    ("transformer.blocks.{}.attn.k_ln", "blk.{}.attn_k_norm"),
    ("transformer.blocks.{}.ffn.up_proj", "blk.{}.ffn_up"),
    ("transformer.blocks.{}.ffn.down_proj", "blk.{}.ffn_down"),
];

fn key_value_heads(model: &Model<'_>) -> Result<u64, Error> {
    let config = model.config;
    // One for all, whatever `num_kv_heads` says, which the converter believes and then fails.
    if config.flag("multi_query") == Some(true) && config.flag("new_decoder_architecture") != Some(true) {
        return Ok(1);
    }
    Ok(model.config.maybe_integer(&["num_kv_heads", "n_head_kv"])?.unwrap_or(1).max(1))
}

impl Architecture for Falcon {
    fn classes(&self) -> &'static [&'static str] {
        &["FalconForCausalLM", "RWForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "falcon"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[FALCON]
    }
    fn names(&self) -> &'static [Names] {
        &[FALCON_NAMES]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        let config = model.config;
        let width = config.integer("hidden_size")?;
        // No configuration says it.
        keys.u32("context_length", 2048)?;
        keys.text("tensor_data_layout", "jploski");
        keys.u32("embedding_length", width)?;
        keys.u32("feed_forward_length", 4 * width)?;
        keys.u32("block_count", model.layers)?;
        keys.u32("attention.head_count", config.integer_of(&["num_attention_heads", "n_head"])?)?;
        keys.u32("attention.head_count_kv", key_value_heads(model)?)?;
        keys.f32("attention.layer_norm_epsilon", config.number(&["layer_norm_epsilon"])?);
        keys.out.set("general.file_type", Value::U32(model.file_type));
        Ok(())
    }
    /// Groups of queries with their key and value, to all queries, all keys, all values.
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, .. } = incoming;
        if !name.contains("query_key_value") {
            return out.map(model, name, tensor);
        }
        let heads = model.config.integer_of(&["num_attention_heads", "n_head"])?.max(1);
        let groups = key_value_heads(model)?;
        let (head, queries) = (model.config.integer("hidden_size")? / heads, heads / groups);
        let shape = tensor.shape();
        let rest = shape.get(1..).unwrap_or_default();
        let apart = tensor.reshape(&[&[groups, queries + 2, head], rest].concat())?;
        let mut pieces = vec![];
        for (first, count) in [(0, queries), (queries, 1), (queries + 1, 1)] {
            let piece = apart.clone().slice(1, first, count)?;
            pieces.push(piece.reshape(&[&[groups * count * head], rest].concat())?);
        }
        out.map(model, name, Tensor::cat(pieces)?)
    }
}

impl Architecture for Mpt {
    fn classes(&self) -> &'static [&'static str] {
        &["MPTForCausalLM", "MptForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "mpt"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[MPT]
    }
    fn names(&self) -> &'static [Names] {
        &[MPT_NAMES]
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        if model.files.has("tokenizer.json") || !model.files.has("tokenizer.model") {
            return tokenizer::bpe(model, out);
        }
        // As SEA-LION's.
        tokenizer::sentencepiece(model, &["vocab_size_per_layer_input", "vocab_size"], out)?;
        out.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
        for (key, id) in [("padding", 3), ("eos", 1), ("unknown", 0)] {
            out.set(format!("tokenizer.ggml.{key}_token_id"), Value::U32(id));
        }
        Ok(())
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        let config = model.config;
        let width = config.integer("d_model")?;
        keys.u32("context_length", config.integer("max_seq_len")?)?;
        keys.u32("embedding_length", width)?;
        keys.u32("block_count", model.layers)?;
        keys.u32("feed_forward_length", 4 * width)?;
        keys.u32("attention.head_count", config.integer("n_heads")?)?;
        let attention = |field: &str| config.get("attn_config").and_then(|attention| attention.get(field));
        if let Some(heads) = attention("kv_n_heads").and_then(Json::as_u64).filter(|heads| *heads > 0) {
            keys.u32("attention.head_count_kv", heads)?;
        }
        keys.f32("attention.layer_norm_epsilon", 1e-5);
        if let Some(clip) = attention("clip_qkv").and_then(Json::as_f64) {
            keys.f32("attention.clamp_kqv", clip);
        }
        let has_bias = attention("alibi").and_then(Json::as_bool) == Some(true);
        let largest = attention("alibi_bias_max").and_then(Json::as_f64).filter(|_| has_bias);
        keys.f32("attention.max_alibi_bias", largest.unwrap_or(0.0));
        Ok(())
    }
}
