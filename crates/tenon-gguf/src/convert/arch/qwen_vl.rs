//! The text models of Qwen2-VL, 2.5-VL and 3-VL, whose heads are rotated by place and time.

use serde_json::{Value as Json, json};

use super::super::config::{Config, ConfigClass, Fields, fill, fill_key_value_heads, fill_null, rename};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::qwen::{Qwen2, Qwen3, experts, moe_parameters};
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters, keep_text, names};
use crate::{Error, Metadata};

/// `Qwen2VLForConditionalGeneration`, `Qwen2_5_VLForConditionalGeneration`.
pub(super) struct Qwen2Vl;
/// `Qwen3VLForConditionalGeneration`.
pub(super) struct Qwen3Vl;
/// `Qwen3VLMoeForConditionalGeneration`.
pub(super) struct Qwen3VlMoe;

const QWEN2_VL: ConfigClass = ConfigClass {
    model_types: &["qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(152_064)),
                ("hidden_size", json!(8192)),
                ("intermediate_size", json!(29568)),
                ("num_hidden_layers", json!(80)),
                ("num_attention_heads", json!(64)),
                ("num_key_value_heads", json!(8)),
                ("max_position_embeddings", json!(32768)),
                ("rms_norm_eps", json!(1e-5)),
            ],
        );
        fill_key_value_heads(fields);
        // What earlier versions called it.
        for field in ["rope_scaling", "rope_parameters"] {
            if let Some(Json::Object(rope)) = fields.get_mut(field)
                && rope.get("rope_type").or_else(|| rope.get("type")) == Some(&json!("mrope"))
            {
                rope.insert("rope_type".into(), json!("default"));
            }
        }
    },
    rope_theta: Some(1_000_000.0),
};

const QWEN3_VL: ConfigClass = ConfigClass {
    model_types: &["qwen3_vl_text"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(151_936)),
                ("hidden_size", json!(4096)),
                ("intermediate_size", json!(22016)),
                ("num_hidden_layers", json!(32)),
                ("num_attention_heads", json!(32)),
                ("num_key_value_heads", json!(32)),
                ("head_dim", json!(128)),
            ],
        );
        common(fields);
    },
    rope_theta: Some(500_000.0),
};

const QWEN3_VL_MOE: ConfigClass = ConfigClass {
    model_types: &["qwen3_vl_moe_text"],
    complete: |fields| {
        rename(fields, "num_experts", "num_local_experts");
        fill(
            fields,
            &[
                ("vocab_size", json!(151_936)),
                ("hidden_size", json!(2048)),
                ("intermediate_size", json!(5632)),
                ("num_hidden_layers", json!(24)),
                ("num_attention_heads", json!(16)),
                ("num_key_value_heads", json!(16)),
                ("num_local_experts", json!(60)),
                ("num_experts_per_tok", json!(4)),
                ("moe_intermediate_size", json!(1408)),
            ],
        );
        fill_null(fields, "head_dim", |fields| {
            let heads = fields.get("num_attention_heads")?.as_u64()?;
            Some(json!(fields.get("hidden_size")?.as_u64()?.checked_div(heads)?))
        });
        common(fields);
    },
    rope_theta: Some(500_000.0),
};

fn common(fields: &mut Fields) {
    fill(fields, &[("max_position_embeddings", json!(128_000)), ("rms_norm_eps", json!(1e-6))]);
    fill_key_value_heads(fields);
}

/// How many of the first layers get features of images added.
fn deepstack(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    let layers =
        model.config.get("vision_config").map(|vision| match vision.get("deepstack_visual_indexes") {
            Some(layers) => layers.as_array().map_or(0, Vec::len),
            // transformers' default.
            None => 3,
        });
    keys.u32("n_deepstack_layers", layers.unwrap_or(3) as u64)
}

impl Architecture for Qwen2Vl {
    fn classes(&self) -> &'static [&'static str] {
        &["Qwen2VLModel", "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"]
    }
    fn name(&self) -> &'static str {
        "qwen2vl"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[QWEN2_VL]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::sentencepiece_or_bpe(model, out)
    }
}

impl Architecture for Qwen3Vl {
    fn classes(&self) -> &'static [&'static str] {
        &["Qwen3VLForConditionalGeneration"]
    }
    fn name(&self) -> &'static str {
        "qwen3vl"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[QWEN3_VL]
    }
    fn names(&self) -> &'static [Names] {
        Qwen2.names()
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        keep_text(&name.replace("thinker.", ""))
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        Qwen3.parameters(model, keys)?;
        deepstack(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        Qwen2.tokenizer(model, out)
    }
}

impl Architecture for Qwen3VlMoe {
    fn classes(&self) -> &'static [&'static str] {
        &["Qwen3VLMoeForConditionalGeneration"]
    }
    fn name(&self) -> &'static str {
        "qwen3vlmoe"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[QWEN3_VL_MOE]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::EXPERTS]
    }
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        Qwen3Vl.keep(name, config)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        moe_parameters(model, keys)?;
        deepstack(model, keys)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let stem = incoming.name.strip_suffix(".weight").unwrap_or(incoming.name);
        let inputs = match stem.rsplit_once(".experts.") {
            Some((_, "gate_up_proj")) => "hidden_size",
            Some((_, "down_proj")) => "moe_intermediate_size",
            _ => return experts(model, incoming, out),
        };
        // Published models have inputs before outputs; what transformers 5 saves has them as others do.
        let published = incoming.tensor.shape().get(1).copied() == Some(model.config.integer(inputs)?);
        let tensor = if published { incoming.tensor.swap_axes(1, 2)? } else { incoming.tensor };
        experts(model, Incoming { tensor, ..incoming }, out)
    }
}
