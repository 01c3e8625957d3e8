//! Qwen 2 and 3, dense and mixtures of experts.

use serde_json::json;
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, fill, fill_key_value_heads, rename};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::experts::one_by_one;
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters, names, pooling_type};
use crate::{Error, Metadata};

/// `Qwen2ForCausalLM`.
pub(super) struct Qwen2;
/// `Qwen2MoeForCausalLM`.
pub(super) struct Qwen2Moe;
/// `Qwen3ForCausalLM`.
pub(super) struct Qwen3;
/// `Qwen3MoeForCausalLM`.
pub(super) struct Qwen3Moe;

const QWEN2: ConfigClass = ConfigClass {
    model_types: &["qwen2"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(151936)),
                ("hidden_size", json!(4096)),
                ("intermediate_size", json!(22016)),
                ("num_hidden_layers", json!(32)),
                ("num_attention_heads", json!(32)),
                ("num_key_value_heads", json!(32)),
                ("max_position_embeddings", json!(32768)),
                ("rms_norm_eps", json!(1e-6)),
            ],
        );
        fill_key_value_heads(fields);
    },
    rope_theta: Some(10000.0),
};

const QWEN2_MOE: ConfigClass = ConfigClass {
    model_types: &["qwen2_moe"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(151936)),
                ("hidden_size", json!(2048)),
                ("intermediate_size", json!(5632)),
                ("num_hidden_layers", json!(24)),
                ("num_attention_heads", json!(16)),
                ("num_key_value_heads", json!(16)),
                ("max_position_embeddings", json!(32768)),
                ("rms_norm_eps", json!(1e-6)),
                ("num_experts", json!(60)),
                ("num_experts_per_tok", json!(4)),
                ("moe_intermediate_size", json!(1408)),
                ("shared_expert_intermediate_size", json!(5632)),
            ],
        );
        fill_key_value_heads(fields);
    },
    rope_theta: Some(10000.0),
};

const QWEN3: ConfigClass = ConfigClass {
    model_types: &["qwen3"],
    complete: |fields| {
        fill(fields, &[("head_dim", json!(128))]);
        (QWEN2.complete)(fields);
    },
    rope_theta: Some(10000.0),
};

const QWEN3_MOE: ConfigClass = ConfigClass {
    model_types: &["qwen3_moe"],
    complete: |fields| {
        rename(fields, "num_experts", "num_local_experts");
        fill(
            fields,
            &[
                ("vocab_size", json!(151936)),
                ("hidden_size", json!(2048)),
                ("intermediate_size", json!(6144)),
                ("num_hidden_layers", json!(24)),
                ("num_attention_heads", json!(32)),
                ("num_key_value_heads", json!(4)),
                ("max_position_embeddings", json!(32768)),
                ("rms_norm_eps", json!(1e-6)),
                ("num_local_experts", json!(128)),
                ("num_experts_per_tok", json!(8)),
                ("moe_intermediate_size", json!(768)),
            ],
        );
    },
    rope_theta: Some(10000.0),
};

/// The expert that all tokens go to.
pub(super) const SHARED_EXPERT: Names = &[
    ("model.layers.{}.mlp.shared_expert_gate", "blk.{}.ffn_gate_inp_shexp"),
    ("model.layers.{}.mlp.shared_expert.gate_proj", "blk.{}.ffn_gate_shexp"),
    ("model.layers.{}.mlp.shared_expert.up_proj", "blk.{}.ffn_up_shexp"),
    ("model.layers.{}.mlp.shared_expert.down_proj", "blk.{}.ffn_down_shexp"),
];

impl Architecture for Qwen2 {
    fn classes(&self) -> &'static [&'static str] {
        &["Qwen2Model", "Qwen2ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "qwen2"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[QWEN2]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        pooling_type(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::sentencepiece_or_bpe(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let bare = ["Qwen2Model", "Qwen3Model"].contains(&model.config.class.as_str());
        let name = if bare { format!("model.{}", incoming.name) } else { incoming.name.to_string() };
        out.map(model, &name, incoming.tensor)
    }
}

impl Architecture for Qwen3 {
    fn classes(&self) -> &'static [&'static str] {
        &["Qwen3ForCausalLM", "Qwen3Model"]
    }
    fn name(&self) -> &'static str {
        "qwen3"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[QWEN3]
    }
    fn names(&self) -> &'static [Names] {
        Qwen2.names()
    }
    fn prepare(&self, config: &mut Config, _: &[TensorInfo]) -> Result<(), Error> {
        let class = config.outer_class.to_lowercase();
        if class.contains("sequenceclassification") {
            // A reranker's head becomes two rows of another tensor.
            return Err(Error::Architecture {
                architecture: config.outer_class.clone(),
                known: self.classes().to_vec(),
            });
        }
        Ok(())
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        Qwen2.parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        Qwen2.tokenizer(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        // Unlike Qwen2Model, the converter does not put Qwen3Model's names under `model.`; but it cannot
        // map them either, so that this is what it would have to do.
        Qwen2.tensor(model, incoming, out)
    }
}

impl Architecture for Qwen2Moe {
    fn classes(&self) -> &'static [&'static str] {
        &["Qwen2MoeForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "qwen2moe"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[QWEN2_MOE]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::EXPERTS, SHARED_EXPERT]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        moe_parameters(model, keys)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        experts(model, incoming, out)
    }
}

impl Architecture for Qwen3Moe {
    fn classes(&self) -> &'static [&'static str] {
        &["Qwen3MoeForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "qwen3moe"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[QWEN3_MOE]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::EXPERTS]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        moe_parameters(model, keys)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        experts(model, incoming, out)
    }
}

/// Keys of mixtures of experts.
pub(super) fn moe_parameters(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    base_parameters(model, keys)?;
    for (key, field) in [
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ] {
        if let Some(n) = model.config.maybe_integer(&[field])? {
            keys.u32(key, n)?;
        }
    }
    Ok(())
}

/// Experts one by one, or stacked in the checkpoint already with gate and up in one.
pub(super) fn experts(model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
    let Incoming { name, tensor, layer } = incoming;
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    if stem.ends_with("mlp.experts.down_proj") {
        return out.map(model, &format!("{stem}.weight"), tensor);
    }
    if let Some(before) = stem.strip_suffix(".gate_up_proj").filter(|before| before.ends_with("mlp.experts"))
    {
        let shape = tensor.shape();
        let half = shape.get(1).copied().unwrap_or(0) / 2;
        let [gate, up] = tensor.split(1, [half, half])?;
        out.map(model, &format!("{before}.gate_proj.weight"), gate)?;
        return out.map(model, &format!("{before}.up_proj.weight"), up);
    }
    let projections = ["down_proj", "gate_proj", "up_proj"];
    let count = ["num_local_experts", "num_experts"];
    one_by_one(model, Incoming { name, tensor, layer }, &count, projections, out)
}
