//! gpt-oss, its experts as MXFP4 or in floating point.
//!
//! Released checkpoints hold experts as MXFP4, whose blocks are kept;
//! Tenon's Complete Models hold them as bfloat16.

use serde_json::{Value as Json, json};

use super::super::config::{Config, ConfigClass, fill, fill_heads, fill_null};
use super::super::mxfp4::Packed;
use super::super::parameters::Keys;
use super::super::view::Tensor;
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters, keep_text, names};
use crate::Error;

/// `GptOssForCausalLM`.
pub(super) struct GptOss;

const GPT_OSS: ConfigClass = ConfigClass {
    model_types: &["gpt_oss"],
    complete: |fields| {
        super::super::config::rename(fields, "num_experts", "num_local_experts");
        fill(
            fields,
            &[
                ("vocab_size", json!(201_088)),
                ("hidden_size", json!(2880)),
                ("intermediate_size", json!(2880)),
                ("num_hidden_layers", json!(36)),
                ("num_local_experts", json!(128)),
                ("head_dim", json!(64)),
                ("num_attention_heads", json!(64)),
                ("num_key_value_heads", json!(8)),
                ("sliding_window", json!(128)),
                ("max_position_embeddings", json!(131_072)),
                ("rms_norm_eps", json!(1e-5)),
                ("num_experts_per_tok", json!(4)),
            ],
        );
        fill_heads(fields);
        if !fields.get("rope_scaling").is_some_and(Json::is_object) {
            fill_null(fields, "rope_parameters", |_| {
                Some(json!({
                    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                    "truncate": false, "original_max_position_embeddings": 4096,
                }))
            });
        }
    },
    rope_theta: Some(150_000.0),
};

/// `general.file_type` of a file of MXFP4.
const MOSTLY_MXFP4: u32 = 38;

const NAMES: Names = &[
    ("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"),
    ("model.layers.{}.mlp.router", "blk.{}.ffn_gate_inp"),
    ("model.layers.{}.self_attn.sinks", "blk.{}.attn_sinks"),
];

impl Architecture for GptOss {
    fn classes(&self) -> &'static [&'static str] {
        &["GptOssForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "gpt-oss"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GPT_OSS]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES, names::DECODER, names::EXPERTS]
    }
    fn file_type(&self, config: &Config) -> Option<u32> {
        let method = config.get("quantization_config").and_then(|it| it.get("quant_method"));
        (method.and_then(Json::as_str) == Some("mxfp4")).then_some(MOSTLY_MXFP4)
    }
    fn takes_mxfp4(&self) -> bool {
        true
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        if name.contains("sinks") { keep_text(&format!("{name}.weight")) } else { keep_text(name) }
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        keys.u32("attention.sliding_window", model.config.integer("sliding_window")?)?;
        keys.u32("expert_feed_forward_length", model.config.integer("intermediate_size")?)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, .. } = incoming;
        if let Some(experts) = name.strip_suffix("_blocks") {
            return mxfp4(model, experts, name, &format!("{experts}_scales"), tensor, out);
        }
        if let Some(experts) = name.strip_suffix("_scales") {
            return mxfp4(model, experts, name, &format!("{experts}_blocks"), tensor, out);
        }
        if let Some(before) = name.strip_suffix("down_proj_bias") {
            return out.map(model, &format!("{before}down_proj.bias"), tensor);
        }
        if let Some(before) = name.strip_suffix("down_proj") {
            return out.map(model, &format!("{before}down_proj.weight"), tensor.swap_axes(1, 2)?);
        }
        if let Some(before) = name.strip_suffix("gate_up_proj_bias") {
            let [gate, up] = alternating(tensor)?;
            out.map(model, &format!("{before}gate_proj.bias"), gate)?;
            return out.map(model, &format!("{before}up_proj.bias"), up);
        }
        if let Some(before) = name.strip_suffix("gate_up_proj") {
            let [gate, up] = alternating(tensor.swap_axes(1, 2)?)?;
            out.map(model, &format!("{before}gate_proj.weight"), gate)?;
            return out.map(model, &format!("{before}up_proj.weight"), up);
        }
        out.map(model, name, tensor)
    }
}

/// Codes or exponents of experts; those that come second make a tensor with the first.
fn mxfp4(
    model: &Model<'_>,
    experts: &str,
    name: &str,
    other: &str,
    tensor: Tensor,
    out: &mut Outputs,
) -> Result<(), Error> {
    let Some(first) = out.waiting.remove(name) else {
        out.waiting.insert(other.into(), tensor);
        return Ok(());
    };
    let (codes, exponents) = if name.ends_with("_blocks") { (tensor, first) } else { (first, tensor) };
    let mut put = |name: String, codes, exponents| {
        let packed = Packed::new(codes, exponents)?;
        let (tensor, architecture) = (name, model.architecture);
        let Some(mapped) = names::map(model.names, &tensor, model.layers) else {
            return Err(Error::NoPlace { tensor, architecture });
        };
        out.packed.push((mapped, packed));
        Ok(())
    };
    match experts.strip_suffix("gate_up_proj") {
        Some(before) => {
            let [gate, up] = alternating(codes)?;
            let [gate_exponents, up_exponents] = alternating(exponents)?;
            put(format!("{before}gate_proj.weight"), gate, gate_exponents)?;
            put(format!("{before}up_proj.weight"), up, up_exponents)
        }
        None => put(format!("{experts}.weight"), codes, exponents),
    }
}

/// The even and the odd indices of the second axis.
fn alternating(tensor: Tensor) -> Result<[Tensor; 2], Error> {
    let shape = tensor.shape();
    let [experts, both] = [0, 1].map(|axis| shape.get(axis).copied().unwrap_or(0));
    let rest = shape.get(2..).unwrap_or_default();
    let apart = tensor.reshape(&[&[experts, both / 2, 2], rest].concat())?;
    let half = [&[experts, both / 2], rest].concat();
    let one = |n| apart.clone().slice(2, n, 1)?.reshape(&half);
    Ok([one(0)?, one(1)?])
}
