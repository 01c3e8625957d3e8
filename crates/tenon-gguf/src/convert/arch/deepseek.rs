//! DeepSeek V2 and V3: latent attention, with keys and values absorbed.

use serde_json::{Value as Json, json};
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, Fields, fill, fill_key_value_heads};
use super::super::parameters::{self, Keys};
use super::experts::one_by_one;
use super::{Architecture, Incoming, Model, Names, Outputs, names};
use crate::Error;

/// `DeepseekV2ForCausalLM`, `DeepseekV3ForCausalLM`.
pub(super) struct DeepSeek2;

const V2: ConfigClass = ConfigClass {
    model_types: &["deepseek_v2"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(102_400)),
                ("hidden_size", json!(4096)),
                ("intermediate_size", json!(11008)),
                ("num_hidden_layers", json!(32)),
                ("num_attention_heads", json!(32)),
                ("max_position_embeddings", json!(2048)),
                ("first_k_dense_replace", json!(0)),
                ("n_routed_experts", json!(64)),
                ("n_shared_experts", json!(2)),
                ("routed_scaling_factor", json!(1.0)),
                ("norm_topk_prob", json!(false)),
                ("moe_intermediate_size", json!(1407)),
            ],
        );
        latent(fields);
        rotated_heads(fields);
    },
    rope_theta: Some(10000.0),
};

const V3: ConfigClass = ConfigClass {
    model_types: &["deepseek_v3"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(129_280)),
                ("hidden_size", json!(7168)),
                ("intermediate_size", json!(18432)),
                ("num_hidden_layers", json!(61)),
                ("num_attention_heads", json!(128)),
                ("max_position_embeddings", json!(4096)),
                ("first_k_dense_replace", json!(3)),
                ("n_routed_experts", json!(256)),
                ("n_shared_experts", json!(1)),
                ("routed_scaling_factor", json!(2.5)),
                ("norm_topk_prob", json!(true)),
                ("moe_intermediate_size", json!(2048)),
                ("n_group", json!(8)),
                ("topk_group", json!(4)),
                ("num_experts_per_tok", json!(8)),
            ],
        );
        latent(fields);
        rotated_heads(fields);
    },
    rope_theta: Some(10000.0),
};

/// What models with latent attention have.
pub(super) fn latent(fields: &mut Fields) {
    fill(
        fields,
        &[
            ("rms_norm_eps", json!(1e-6)),
            ("kv_lora_rank", json!(512)),
            ("q_lora_rank", json!(1536)),
            ("qk_nope_head_dim", json!(128)),
            ("qk_rope_head_dim", json!(64)),
            ("v_head_dim", json!(128)),
        ],
    );
    fill_key_value_heads(fields);
}

/// To transformers, a head is as wide as its rotated part.
fn rotated_heads(fields: &mut Fields) {
    if let Some(rotated) = fields.get("qk_rope_head_dim").cloned() {
        fields.insert("head_dim".into(), rotated);
    }
}

/// Latent attention.
pub(super) const LATENT: Names = &[
    ("model.layers.{}.self_attn.q_a_proj", "blk.{}.attn_q_a"),
    ("model.layers.{}.self_attn.q_b_proj", "blk.{}.attn_q_b"),
    ("model.layers.{}.self_attn.q_a_layernorm", "blk.{}.attn_q_a_norm"),
    ("model.layers.{}.self_attn.kv_a_proj_with_mqa", "blk.{}.attn_kv_a_mqa"),
    ("model.layers.{}.self_attn.kv_a_layernorm", "blk.{}.attn_kv_a_norm"),
    ("model.layers.{}.self_attn.k_b_proj", "blk.{}.attn_k_b"),
    ("model.layers.{}.self_attn.v_b_proj", "blk.{}.attn_v_b"),
    ("model.layers.{}.mlp.gate.e_score_correction", "blk.{}.exp_probs_b"),
];

/// Experts that all tokens go to.
pub(super) const SHARED_EXPERTS: Names = &[
    ("model.layers.{}.mlp.shared_experts.gate_proj", "blk.{}.ffn_gate_shexp"),
    ("model.layers.{}.mlp.shared_experts.up_proj", "blk.{}.ffn_up_shexp"),
    ("model.layers.{}.mlp.shared_experts.down_proj", "blk.{}.ffn_down_shexp"),
];

impl Architecture for DeepSeek2 {
    fn classes(&self) -> &'static [&'static str] {
        &["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "deepseek2"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[V2, V3]
    }
    fn names(&self) -> &'static [Names] {
        &[LATENT, names::DECODER, names::DENSE, names::EXPERTS, SHARED_EXPERTS]
    }
    fn prepare(&self, config: &mut Config, _: &[TensorInfo]) -> Result<(), Error> {
        if config.get("rms_norm_eps").is_none() {
            config.set("rms_norm_eps", json!(1e-6));
        }
        Ok(())
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        let mut config = model.config.clone();
        // Latent attention is attention with one group of keys and values.
        config.set("num_key_value_heads", json!(1));
        parameters::write(&config, model.layers, model.file_type, keys)?;
        let experts = config.maybe_integer(&["n_routed_experts"])?;
        let dense = match (config.maybe_integer(&["first_k_dense_replace"])?, experts) {
            (Some(n), _) => n,
            (None, Some(_)) => 0,
            (None, None) => config.integer("num_hidden_layers")?,
        };
        keys.u32("leading_dense_block_count", dense)?;
        let rank = config.maybe_integer(&["kv_lora_rank"])?.unwrap_or(512);
        keys.u32("vocab_size", config.integer("vocab_size")?)?;
        if let Some(rank) = config.maybe_integer(&["q_lora_rank"])? {
            keys.u32("attention.q_lora_rank", rank)?;
        }
        let (rotated, plain) = (config.integer("qk_rope_head_dim")?, config.integer("qk_nope_head_dim")?);
        keys.u32("attention.kv_lora_rank", rank)?;
        keys.u32("attention.key_length", rank + rotated)?;
        keys.u32("attention.value_length", rank)?;
        keys.u32("attention.key_length_mla", plain + rotated)?;
        keys.u32("attention.value_length_mla", config.integer("v_head_dim")?)?;
        keys.u32(
            "expert_feed_forward_length",
            config.integer_of(&["moe_intermediate_size", "intermediate_size"])?,
        )?;
        if let Some(experts) = experts {
            keys.u32("expert_count", experts)?;
        }
        keys.u32("expert_shared_count", config.maybe_integer(&["n_shared_experts"])?.unwrap_or(0))?;
        if let Some(scale) = config.get("routed_scaling_factor").and_then(Json::as_f64) {
            keys.f32("expert_weights_scale", scale);
        }
        if config.flag("norm_topk_prob") == Some(true) {
            keys.flag("expert_weights_norm", true);
        }
        keys.u32("rope.dimension_count", rotated)?;
        if let Some(scale) = config.rope.get("mscale_all_dim").and_then(Json::as_f64) {
            keys.f32("rope.scaling.yarn_log_multiplier", 0.1 * scale);
        }
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        // Layers that predict further tokens are behind the model's own.
        let beyond = model.config.integer("num_hidden_layers")?;
        if incoming.name.starts_with("model.layers.") && incoming.layer.is_some_and(|layer| layer >= beyond) {
            return Ok(());
        }
        tensor(model, incoming, out)
    }
}

/// A tensor of a model with latent attention.
pub(super) fn tensor(model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
    let Incoming { name, tensor, layer } = incoming;
    let config = model.config;
    let is_tied = config.flag("tie_word_embeddings") == Some(true);
    if is_tied && ["lm_head.weight", "model.lm_head.weight"].contains(&name) {
        return Ok(());
    }
    if let Some(before) = name.strip_suffix("kv_b_proj.weight") {
        let heads = config.integer("num_key_value_heads")?;
        let (keys, values) = (config.integer("qk_nope_head_dim")?, config.integer("v_head_dim")?);
        let columns = tensor.shape().last().copied().unwrap_or(0);
        let apart = tensor.reshape(&[heads, keys + values, columns])?;
        let [k, v] = apart.split(1, [keys, values])?;
        out.map(model, &format!("{before}k_b_proj.weight"), k.swap_axes(1, 2)?)?;
        return out.map(model, &format!("{before}v_b_proj.weight"), v);
    }
    let projections = ["down_proj", "gate_proj", "up_proj"];
    one_by_one(model, Incoming { name, tensor, layer }, &["n_routed_experts"], projections, out)
}
