//! Qwen3-Next and the text models of Qwen 3.5: layers of linear attention between those of full attention.

use serde_json::{Value as Json, json};
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, Fields, fill};
use super::super::parameters::Keys;
use super::super::view::Tensor;
use super::qwen::{SHARED_EXPERT, experts, moe_parameters};
use super::{Architecture, Incoming, Model, Names, Outputs, keep_text, names};
use crate::{Error, Value};

/// One of the families that have layers of linear attention.
pub(super) enum QwenNext {
    /// `Qwen3NextForCausalLM`.
    Qwen3Next,
    /// `Qwen3_5ForCausalLM`.
    Qwen35,
    /// `Qwen3_5MoeForCausalLM`.
    Qwen35Moe,
}

fn linear_attention(fields: &mut Fields) {
    fill(
        fields,
        &[
            ("head_dim", json!(256)),
            ("max_position_embeddings", json!(32768)),
            ("rms_norm_eps", json!(1e-6)),
            ("partial_rotary_factor", json!(0.25)),
            ("linear_conv_kernel_dim", json!(4)),
            ("linear_key_head_dim", json!(128)),
            ("linear_value_head_dim", json!(128)),
            ("linear_num_key_heads", json!(16)),
            ("linear_num_value_heads", json!(32)),
        ],
    );
    // transformers makes layer_types of it and forgets it.
    if fields.get("layer_types").is_none_or(Json::is_null) {
        fields.remove("full_attention_interval");
    }
}

const NEXT: ConfigClass = ConfigClass {
    model_types: &["qwen3_next"],
    complete: |fields| {
        linear_attention(fields);
        fill(
            fields,
            &[
                ("vocab_size", json!(151_936)),
                ("hidden_size", json!(2048)),
                ("intermediate_size", json!(5632)),
                ("num_hidden_layers", json!(48)),
                ("num_attention_heads", json!(16)),
                ("num_key_value_heads", json!(2)),
                ("moe_intermediate_size", json!(512)),
                ("shared_expert_intermediate_size", json!(512)),
                ("num_experts_per_tok", json!(10)),
                ("num_experts", json!(512)),
            ],
        );
    },
    rope_theta: Some(10000.0),
};

const DENSE: ConfigClass = ConfigClass {
    model_types: &["qwen3_5_text"],
    complete: |fields| {
        linear_attention(fields);
        fill(
            fields,
            &[
                ("vocab_size", json!(248_320)),
                ("hidden_size", json!(4096)),
                ("intermediate_size", json!(12288)),
                ("num_hidden_layers", json!(32)),
                ("num_attention_heads", json!(16)),
                ("num_key_value_heads", json!(4)),
            ],
        );
    },
    rope_theta: Some(10000.0),
};

const MOE: ConfigClass = ConfigClass {
    model_types: &["qwen3_5_moe_text"],
    complete: |fields| {
        linear_attention(fields);
        fill(
            fields,
            &[
                ("vocab_size", json!(248_320)),
                ("hidden_size", json!(2048)),
                ("num_hidden_layers", json!(40)),
                ("num_attention_heads", json!(16)),
                ("num_key_value_heads", json!(2)),
                ("moe_intermediate_size", json!(512)),
                ("shared_expert_intermediate_size", json!(512)),
                ("num_experts_per_tok", json!(8)),
                ("num_experts", json!(256)),
            ],
        );
    },
    rope_theta: Some(10000.0),
};

const NAMES: Names = &[
    ("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"),
    ("model.layers.{}.linear_attn.in_proj_qkv", "blk.{}.attn_qkv"),
    ("model.layers.{}.linear_attn.in_proj_z", "blk.{}.attn_gate"),
    ("model.layers.{}.linear_attn.in_proj_a", "blk.{}.ssm_alpha"),
    ("model.layers.{}.linear_attn.in_proj_b", "blk.{}.ssm_beta"),
    ("model.layers.{}.linear_attn.in_proj_ba", "blk.{}.ssm_ba"),
    ("model.layers.{}.linear_attn.conv1d", "blk.{}.ssm_conv1d"),
    ("model.layers.{}.linear_attn.dt_proj", "blk.{}.ssm_dt"),
    ("model.layers.{}.linear_attn.A_log", "blk.{}.ssm_a"),
    ("model.layers.{}.linear_attn.norm", "blk.{}.ssm_norm"),
    ("model.layers.{}.linear_attn.out_proj", "blk.{}.ssm_out"),
];

/// Field that keeps the number of layers that predict a token more.
const PREDICTING: &str = "layers_of_mtp_tensors";

/// Counts the layers that predict a token more. A model that was saved without them has none, whatever its
/// configuration still says; the converter would promise layers that no file has.
fn count_predicting(config: &mut Config, tensors: &[TensorInfo]) -> Result<(), Error> {
    let layer = |name: &str| -> Option<u64> {
        let rest = name.strip_prefix("model.").unwrap_or(name).strip_prefix("mtp.layers.")?;
        rest.split('.').next()?.parse().ok()
    };
    let last = tensors.iter().filter_map(|tensor| layer(&tensor.name)).filter(|n| *n < 1000).max();
    let said = config.maybe_integer(&["mtp_num_hidden_layers"])?.filter(|said| *said > 0);
    let layers = last.map_or(0, |last| said.unwrap_or(last + 1));
    config.set(PREDICTING, json!(layers));
    Ok(())
}

/// Layers that predict a token more come after the others.
fn keep(name: &str, config: &Config) -> Option<String> {
    let name = keep_text(name)?;
    let name = if name.starts_with("model.mtp.") { name.replacen("model.", "", 1) } else { name };
    let Some(rest) = name.strip_prefix("mtp.") else { return Some(name) };
    let layers = config.integer("num_hidden_layers").ok()?;
    if let Some((layer, rest)) = rest.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        return Some(format!("model.layers.{}.{rest}", layers.checked_add(layer.parse().ok()?)?));
    }
    let (module, kind) = rest.split_once('.')?;
    let module = match module {
        "fc" => "eh_proj",
        "pre_fc_norm_embedding" => "enorm",
        "pre_fc_norm_hidden" => "hnorm",
        "norm" => "shared_head.norm",
        _ => return Some(name),
    };
    Some(format!("model.layers.{layers}.{module}.{kind}"))
}

/// Keys, in the order of Qwen3-Next.
fn parameters(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    moe_parameters(model, keys)?;
    let config = model.config;
    let predicting = config.integer(PREDICTING)?;
    if predicting > 0 {
        keys.u32("nextn_predict_layers", predicting)?;
    }
    let (value_dim, value_heads) =
        (config.integer("linear_value_head_dim")?, config.integer("linear_num_value_heads")?);
    keys.u32("ssm.conv_kernel", config.integer("linear_conv_kernel_dim")?)?;
    keys.u32("ssm.state_size", config.integer("linear_key_head_dim")?)?;
    keys.u32("ssm.group_count", config.integer("linear_num_key_heads")?)?;
    keys.u32("ssm.time_step_rank", value_heads)?;
    keys.u32("ssm.inner_size", value_dim * value_heads)?;
    keys.u32("full_attention_interval", config.maybe_integer(&["full_attention_interval"])?.unwrap_or(4))?;
    let part = config.rope.get("partial_rotary_factor").and_then(Json::as_f64).unwrap_or(0.25);
    keys.u32("rope.dimension_count", (super::llama::head_dim(config)? as f64 * part) as u64)
}

/// Names and numbers of linear attention, as all have it.
fn common_tensor(model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
    let Incoming { name, tensor, layer } = incoming;
    if name.ends_with(".A_log") {
        return out.map(model, name, tensor.neg_exp());
    }
    if let Some(before) = name.strip_suffix(".dt_bias") {
        return out.map(model, &format!("{before}.dt_proj.bias"), tensor);
    }
    if name.contains("conv1d") {
        return out.map(model, name, tensor.squeeze()?);
    }
    let tensor = if name.ends_with("norm.weight") && !name.ends_with("linear_attn.norm.weight") {
        tensor.add(1.0)
    } else {
        tensor
    };
    experts(model, Incoming { name, tensor, layer }, out)
}

fn tensor_next(model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
    let (true, Some(layer)) = (incoming.name.contains("in_proj_qkvz.weight"), incoming.layer) else {
        return common_tensor(model, incoming, out);
    };
    // Head after head of query, key, values and gates, to all of each.
    let config = model.config;
    let (key_dim, key_heads) =
        (config.integer("linear_key_head_dim")?, config.integer("linear_num_key_heads")?);
    let values = config.integer("linear_num_value_heads")? / key_heads.max(1)
        * config.integer("linear_value_head_dim")?;
    let hidden = config.integer("hidden_size")?;
    let heads = incoming.tensor.reshape(&[key_heads, (key_dim + values).saturating_mul(2), hidden])?;
    let [q, k, v, z] = heads.split(1, [key_dim, key_dim, values, values])?;
    let flat = |tensor: Tensor, rows: u64| tensor.reshape(&[key_heads * rows, hidden]);
    let qkv = Tensor::cat(vec![flat(q, key_dim)?, flat(k, key_dim)?, flat(v, values)?])?;
    out.push(format!("blk.{layer}.attn_qkv.weight"), qkv);
    out.push(format!("blk.{layer}.attn_gate.weight"), flat(z, values)?);
    Ok(())
}

/// Value heads along an axis, from grouped by key head to one of each key head after the other.
fn tiled(
    tensor: Tensor,
    axis: usize,
    key_heads: u64,
    values_per_key: u64,
    head_dim: u64,
) -> Result<Tensor, Error> {
    let shape = tensor.shape();
    let mut apart = shape.clone();
    // A tensor without that axis is refused by what follows.
    let end = apart.len().min(axis + 1);
    apart.splice(axis.min(end)..end, [key_heads, values_per_key, head_dim]);
    tensor.reshape(&apart)?.swap_axes(axis, axis + 1)?.reshape(&shape)
}

fn tensor_35(model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
    let Incoming { name, tensor, layer } = incoming;
    let config = model.config;
    let number = |field: &str| Ok::<_, Error>(config.maybe_integer(&[field])?.unwrap_or(0));
    let (key_heads, value_heads) = (number("linear_num_key_heads")?, number("linear_num_value_heads")?);
    if key_heads == 0 || value_heads == 0 || key_heads == value_heads || !name.contains("linear_attn.") {
        return common_tensor(model, Incoming { name, tensor, layer }, out);
    }
    let (key_dim, value_dim) =
        (config.integer("linear_key_head_dim")?, config.integer("linear_value_head_dim")?);
    let per_key = value_heads / key_heads;
    let after_keys = |tensor: Tensor| -> Result<Tensor, Error> {
        let keys = (key_dim * key_heads).saturating_mul(2);
        let values = tensor.shape().first().copied().unwrap_or(0).saturating_sub(keys);
        let [keys, values] = tensor.split(0, [keys, values])?;
        Tensor::cat(vec![keys, tiled(values, 0, key_heads, per_key, value_dim)?])
    };
    let tensor = if name.contains(".in_proj_qkv.") {
        after_keys(tensor)?
    } else if name.contains(".in_proj_z.") {
        tiled(tensor, 0, key_heads, per_key, value_dim)?
    } else if name.contains(".in_proj_b.") || name.contains(".in_proj_a.") {
        tiled(tensor, 0, key_heads, per_key, 1)?
    } else if [".A_log", ".dt_bias", ".dt_proj"].iter().any(|part| name.contains(part)) {
        let last = tensor.shape().len().saturating_sub(1);
        tiled(tensor, last, key_heads, per_key, 1)?
    } else if name.contains(".conv1d") {
        let tensor = tensor.squeeze()?;
        return out.map(model, name, after_keys(tensor)?);
    } else if name.contains(".out_proj.") {
        tiled(tensor, 1, key_heads, per_key, value_dim)?
    } else {
        tensor
    };
    common_tensor(model, Incoming { name, tensor, layer }, out)
}

impl Architecture for QwenNext {
    fn classes(&self) -> &'static [&'static str] {
        match self {
            Self::Qwen3Next => &["Qwen3NextForCausalLM"],
            Self::Qwen35 => &["Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"],
            Self::Qwen35Moe => &["Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"],
        }
    }
    fn name(&self) -> &'static str {
        match self {
            Self::Qwen3Next => "qwen3next",
            Self::Qwen35 => "qwen35",
            Self::Qwen35Moe => "qwen35moe",
        }
    }
    fn configs(&self) -> &'static [ConfigClass] {
        match self {
            Self::Qwen3Next => &[NEXT],
            Self::Qwen35 => &[DENSE],
            Self::Qwen35Moe => &[MOE],
        }
    }
    fn names(&self) -> &'static [Names] {
        match self {
            Self::Qwen35 => &[NAMES, names::NEXT_TOKENS, names::DECODER, names::DENSE],
            _ => &[NAMES, names::NEXT_TOKENS, names::DECODER, names::EXPERTS, SHARED_EXPERT],
        }
    }
    fn prepare(&self, config: &mut Config, tensors: &[TensorInfo]) -> Result<(), Error> {
        count_predicting(config, tensors)
    }
    fn layers(&self, config: &Config) -> Result<u64, Error> {
        Ok(config.integer("num_hidden_layers")? + config.integer(PREDICTING)?)
    }
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        keep(name, config)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        parameters(model, keys)?;
        // llama.cpp wants it of Qwen 3.5, and not every checkpoint says what all have.
        if !matches!(self, Self::Qwen3Next) && !model.config.rope.contains_key("mrope_section") {
            keys.set("rope.dimension_sections", Value::I32s(vec![11, 11, 10, 0]));
        }
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        match self {
            Self::Qwen3Next => tensor_next(model, incoming, out),
            _ => tensor_35(model, incoming, out),
        }
    }
}
