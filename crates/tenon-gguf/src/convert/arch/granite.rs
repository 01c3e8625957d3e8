//! IBM's Granite, dense and mixtures of experts: Llama with multipliers.

use serde_json::{Value as Json, json};
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, Fields, fill, fill_key_value_heads, wrong};
use super::super::parameters::Keys;
use super::super::view::Tensor;
use super::{Architecture, Incoming, Model, Names, Outputs, keep_text, llama, names};
use crate::{Error, Metadata};

/// `GraniteForCausalLM`.
pub(super) struct Granite;
/// `GraniteMoeForCausalLM`, `GraniteMoeSharedForCausalLM`.
pub(super) struct GraniteMoe;

const GRANITE: ConfigClass =
    ConfigClass { model_types: &["granite"], complete: granite, rope_theta: Some(10000.0) };

const GRANITE_MOE: ConfigClass = ConfigClass {
    model_types: &["granitemoe"],
    complete: |fields| {
        granite(fields);
        fill(fields, &[("num_local_experts", json!(8)), ("num_experts_per_tok", json!(2))]);
    },
    rope_theta: Some(10000.0),
};

const GRANITE_MOE_SHARED: ConfigClass = ConfigClass {
    model_types: &["granitemoeshared"],
    complete: |fields| {
        (GRANITE_MOE.complete)(fields);
        fill(fields, &[("shared_intermediate_size", json!(0))]);
    },
    rope_theta: Some(10000.0),
};

fn granite(fields: &mut Fields) {
    fill(
        fields,
        &[
            ("vocab_size", json!(32000)),
            ("hidden_size", json!(4096)),
            ("intermediate_size", json!(11008)),
            ("num_hidden_layers", json!(32)),
            ("num_attention_heads", json!(32)),
            ("max_position_embeddings", json!(2048)),
            ("rms_norm_eps", json!(1e-6)),
            ("embedding_multiplier", json!(1.0)),
            ("logits_scaling", json!(1.0)),
            ("residual_multiplier", json!(1.0)),
            ("attention_multiplier", json!(1.0)),
        ],
    );
    fill_key_value_heads(fields);
}

const MOE_NAMES: Names = &[
    ("model.layers.{}.block_sparse_moe.router.layer", "blk.{}.ffn_gate_inp"),
    ("model.layers.{}.block_sparse_moe.output_linear", "blk.{}.ffn_down_exps"),
    ("model.layers.{}.shared_mlp.output_linear", "blk.{}.ffn_down_shexp"),
];

impl Architecture for Granite {
    fn classes(&self) -> &'static [&'static str] {
        &["GraniteForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "granite"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GRANITE]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn prepare(&self, config: &mut Config, _: &[TensorInfo]) -> Result<(), Error> {
        // llama.cpp's Granite knows no other than the width divided by the heads.
        config.set("head_dim", Json::Null);
        Ok(())
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        let is_other = name.starts_with("encoder.")
            || ["image_", "layerwise_projectors", "spatial_projectors"]
                .iter()
                .any(|part| name.contains(part));
        if is_other { None } else { keep_text(&name.replace("text_model.", "")) }
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        llama::parameters(model, keys)?;
        for (key, field) in [
            ("attention.scale", "attention_multiplier"),
            ("embedding_scale", "embedding_multiplier"),
            ("residual_scale", "residual_multiplier"),
            ("logit_scale", "logits_scaling"),
        ] {
            if let Some(scale) = model.config.get(field).and_then(Json::as_f64).filter(|scale| *scale != 0.0)
            {
                keys.f32(key, scale);
            }
        }
        Ok(())
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        llama::tokenizer(model, out)
    }
    fn extra(&self, model: &Model<'_>, out: &mut Outputs) -> Result<(), Error> {
        llama::rope_factors(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let tensor = llama::permute_heads(model.config, incoming.name, incoming.tensor)?;
        out.map(model, incoming.name, tensor)
    }
}

impl Architecture for GraniteMoe {
    fn classes(&self) -> &'static [&'static str] {
        &["GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "granitemoe"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GRANITE_MOE, GRANITE_MOE_SHARED]
    }
    fn names(&self) -> &'static [Names] {
        &[MOE_NAMES, names::DECODER]
    }
    fn prepare(&self, config: &mut Config, tensors: &[TensorInfo]) -> Result<(), Error> {
        Granite.prepare(config, tensors)
    }
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        Granite.keep(name, config)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        Granite.parameters(model, keys)?;
        match model.config.maybe_integer(&["shared_intermediate_size"])? {
            None | Some(0) => Ok(()),
            Some(n) => keys.u32("expert_shared_feed_forward_length", n),
        }
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        llama::tokenizer(model, out)
    }
    fn extra(&self, model: &Model<'_>, out: &mut Outputs) -> Result<(), Error> {
        llama::rope_factors(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, layer } = incoming;
        let has_experts = model.config.maybe_integer(&["num_local_experts"])?.unwrap_or(0) > 0;
        if name.ends_with("block_sparse_moe.input_linear.weight") {
            return gate_and_up(model, layer, tensor, "intermediate_size", "_exps", out);
        }
        if name.ends_with("shared_mlp.input_linear.weight") {
            let kind = if has_experts { "_shexp" } else { "" };
            return gate_and_up(model, layer, tensor, "shared_intermediate_size", kind, out);
        }
        if !has_experts && name.ends_with("shared_mlp.output_linear.weight") {
            let layer = numbered(layer)?;
            out.push(format!("blk.{layer}.ffn_down.weight"), tensor);
            return Ok(());
        }
        Granite.tensor(model, Incoming { name, tensor, layer }, out)
    }
}

fn numbered(layer: Option<u64>) -> Result<u64, Error> {
    layer.ok_or_else(|| Error::Tensor { tensor: String::new(), reason: "it has no layer number".into() })
}

/// Gate and up in one, cut apart along the axis before the last.
fn gate_and_up(
    model: &Model<'_>,
    layer: Option<u64>,
    tensor: Tensor,
    field: &str,
    kind: &str,
    out: &mut Outputs,
) -> Result<(), Error> {
    let (layer, width) = (numbered(layer)?, model.config.integer(field)?);
    let shape = tensor.shape();
    let axis = shape.len().saturating_sub(2);
    if shape.get(axis).copied() != Some(2 * width) {
        return Err(wrong(field, &json!(width), "half of what the gate's and up's common tensor has"));
    }
    let [gate, up] = tensor.split(axis, [width, width])?;
    out.push(format!("blk.{layer}.ffn_gate{kind}.weight"), gate);
    out.push(format!("blk.{layer}.ffn_up{kind}.weight"), up);
    Ok(())
}
