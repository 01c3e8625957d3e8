//! The text model of Llama 4: experts stacked and turned in the checkpoint already.

use serde_json::{Value as Json, json};
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, fill, fill_heads};
use super::super::parameters::Keys;
use super::{Architecture, Incoming, Model, Names, Outputs, keep_text, llama, names};
use crate::Error;

/// `Llama4ForCausalLM`.
pub(super) struct Llama4;

const LLAMA4: ConfigClass = ConfigClass {
    model_types: &["llama4_text"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(202_048)),
                ("hidden_size", json!(5120)),
                ("intermediate_size", json!(8192)),
                ("intermediate_size_mlp", json!(16384)),
                ("num_hidden_layers", json!(48)),
                ("num_attention_heads", json!(40)),
                ("num_key_value_heads", json!(8)),
                ("head_dim", json!(128)),
                ("max_position_embeddings", json!(4096 * 32)),
                ("rms_norm_eps", json!(1e-5)),
                ("num_experts_per_tok", json!(1)),
                ("num_local_experts", json!(16)),
                ("interleave_moe_layer_step", json!(1)),
            ],
        );
        fill_heads(fields);
    },
    rope_theta: Some(500_000.0),
};

const NAMES: Names = &[
    ("model.layers.{}.feed_forward.router", "blk.{}.ffn_gate_inp"),
    ("model.layers.{}.feed_forward.gate_proj", "blk.{}.ffn_gate"),
    ("model.layers.{}.feed_forward.up_proj", "blk.{}.ffn_up"),
    ("model.layers.{}.feed_forward.down_proj", "blk.{}.ffn_down"),
    ("model.layers.{}.feed_forward.shared_expert.gate_proj", "blk.{}.ffn_gate_shexp"),
    ("model.layers.{}.feed_forward.shared_expert.up_proj", "blk.{}.ffn_up_shexp"),
    ("model.layers.{}.feed_forward.shared_expert.down_proj", "blk.{}.ffn_down_shexp"),
    ("model.layers.{}.feed_forward.experts.gate_proj", "blk.{}.ffn_gate_exps"),
    ("model.layers.{}.feed_forward.experts.up_proj", "blk.{}.ffn_up_exps"),
    ("model.layers.{}.feed_forward.experts.down_proj", "blk.{}.ffn_down_exps"),
];

impl Architecture for Llama4 {
    fn classes(&self) -> &'static [&'static str] {
        &["Llama4ForConditionalGeneration", "Llama4ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "llama4"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[LLAMA4]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES, names::DECODER, names::DENSE]
    }
    fn prepare(&self, config: &mut Config, _: &[TensorInfo]) -> Result<(), Error> {
        // What other models call intermediate_size has another name here, and that name another meaning.
        let (experts, dense) =
            (config.integer("intermediate_size")?, config.integer("intermediate_size_mlp")?);
        config.set("intermediate_size_moe", json!(experts));
        config.set("intermediate_size", json!(dense));
        Ok(())
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        keep_text(&name.replace("text_model.", ""))
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        llama::parameters(model, keys)?;
        keys.u32("interleave_moe_layer_step", model.config.integer("interleave_moe_layer_step")?)?;
        keys.u32("expert_feed_forward_length", model.config.integer("intermediate_size_moe")?)?;
        let all = |list: &str, value: Json| {
            let list = model.config.get(list).and_then(Json::as_array).filter(|list| !list.is_empty());
            list.map(|list| list.iter().all(|one| *one == value))
        };
        let no_chunks =
            all("layer_types", json!("full_attention")).or_else(|| all("no_rope_layers", json!(0)));
        if no_chunks == Some(true) {
            keys.u32("attention.sliding_window", 0)?;
        }
        Ok(())
    }
    fn extra(&self, model: &Model<'_>, out: &mut Outputs) -> Result<(), Error> {
        llama::rope_factors(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, .. } = incoming;
        let last = tensor.shape().len().saturating_sub(1);
        if name.contains("gate_up_proj") {
            let half = tensor.shape().last().copied().unwrap_or(0) / 2;
            let turned = tensor.swap_axes(last, last.saturating_sub(1))?;
            let [gate, up] = turned.split(last.saturating_sub(1), [half, half])?;
            out.map(model, &name.replace("gate_up_proj", "gate_proj.weight"), gate)?;
            return out.map(model, &name.replace("gate_up_proj", "up_proj.weight"), up);
        }
        if name.ends_with("down_proj") {
            let turned = tensor.swap_axes(last, last.saturating_sub(1))?;
            return out.map(model, &format!("{name}.weight"), turned);
        }
        out.map(model, name, tensor)
    }
}
