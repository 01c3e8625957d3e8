//! StableLM and Baichuan.

use serde_json::{Value as Json, json};

use super::super::config::{ConfigClass, fill, fill_null, wrong};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::super::view::Tensor;
use super::{Architecture, Experts, Incoming, Model, Names, Outputs, base_parameters, llama, names};
use crate::{Error, Metadata, Value};

/// `StableLmForCausalLM`.
pub(super) struct StableLm;
/// `BaichuanForCausalLM`.
pub(super) struct Baichuan;

const STABLELM: ConfigClass = ConfigClass {
    model_types: &["stablelm"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(50304)),
                ("intermediate_size", json!(6912)),
                ("hidden_size", json!(2560)),
                ("num_hidden_layers", json!(32)),
                ("num_attention_heads", json!(32)),
                ("num_key_value_heads", json!(32)),
                ("max_position_embeddings", json!(4096)),
                ("layer_norm_eps", json!(1e-5)),
                ("use_parallel_residual", json!(false)),
            ],
        );
        fill_null(fields, "partial_rotary_factor", |_| Some(json!(0.25)));
    },
    rope_theta: Some(10000.0),
};

const STABLELM_NAMES: Names = &[
    ("model.layers.{}.self_attn.q_layernorm", "blk.{}.attn_q_norm"),
    ("model.layers.{}.self_attn.k_layernorm", "blk.{}.attn_k_norm"),
];

impl Architecture for StableLm {
    fn classes(&self) -> &'static [&'static str] {
        &["StableLmForCausalLM", "StableLMEpochForCausalLM", "LlavaStableLMEpochForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "stablelm"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[STABLELM]
    }
    fn names(&self) -> &'static [Names] {
        &[STABLELM_NAMES, names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        let config = model.config;
        let heads = config.integer("num_attention_heads")?;
        let width = config.integer("hidden_size")?;
        keys.u32("context_length", config.integer("max_position_embeddings")?)?;
        keys.u32("embedding_length", width)?;
        keys.u32("block_count", model.layers)?;
        keys.u32("feed_forward_length", config.integer("intermediate_size")?)?;
        let part = config.rope.get("partial_rotary_factor").and_then(Json::as_f64);
        let part = part.ok_or_else(|| wrong("partial_rotary_factor", &Json::Null, "a number"))?;
        keys.u32("rope.dimension_count", (part * (width / heads.max(1)) as f64) as u64)?;
        keys.u32("attention.head_count", heads)?;
        keys.u32("attention.head_count_kv", config.integer("num_key_value_heads")?)?;
        keys.flag("use_parallel_residual", config.flag("use_parallel_residual").unwrap_or(true));
        keys.f32("attention.layer_norm_epsilon", config.number(&["layer_norm_eps", "norm_eps"])?);
        keys.out.set("general.file_type", Value::U32(model.file_type));
        Ok(())
    }
    /// Norms of heads, one by one, stacked: what the converter means to do (it loses them, and then fails).
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, layer } = incoming;
        for (norm, heads, apart) in [
            ("q_layernorm", "num_attention_heads", 0),
            // Kept apart from the queries' by a layer number that no model has.
            ("k_layernorm", "num_key_value_heads", 1 << 32),
        ] {
            let (true, Some(layer)) = (name.contains(&format!("{norm}.norms")), layer) else { continue };
            let heads = model.config.integer(heads)?;
            let Some(mut parts) = out.experts.gather(layer + apart, name, tensor, heads) else {
                return Ok(());
            };
            let name = |n| format!("model.layers.{layer}.self_attn.{norm}.norms.{n}.weight");
            let stacked = Experts::stack(&mut parts, layer, heads, name)?;
            return out.map(model, &format!("model.layers.{layer}.self_attn.{norm}.weight"), stacked);
        }
        out.map(model, name, tensor)
    }
}

impl Architecture for Baichuan {
    fn classes(&self) -> &'static [&'static str] {
        &["BaichuanForCausalLM", "BaiChuanForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "baichuan"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        // transformers has none: config.json counts as it is.
        &[]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        keys.text("tensor_data_layout", "Meta AI original pth");
        let heads = model.config.integer("num_attention_heads")?.max(1);
        keys.u32("rope.dimension_count", model.config.integer("hidden_size")? / heads)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::sentencepiece(model, &["vocab_size_per_layer_input", "vocab_size"], out)
    }
    /// Query, key and value in one, cut apart.
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, layer } = incoming;
        let (Some(layer), true) = (layer, name.ends_with(".self_attn.W_pack.weight")) else {
            return out.map(model, name, tensor);
        };
        let rows = tensor.shape().first().copied().unwrap_or(0) / 3;
        let [queries, keys, values]: [Tensor; 3] = tensor.split(0, [rows, rows, rows])?;
        for (part, projection) in [(queries, "q"), (keys, "k"), (values, "v")] {
            let part = llama::permute_heads(model.config, &format!("{projection}_proj.weight"), part)?;
            out.push(format!("blk.{layer}.attn_{projection}.weight"), part);
        }
        Ok(())
    }
}
