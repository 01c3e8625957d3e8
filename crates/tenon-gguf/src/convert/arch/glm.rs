//! GLM-4, dense and mixtures of experts.

use serde_json::{Value as Json, json};
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, fill, fill_null, rename};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::deepseek::{self, DeepSeek2, LATENT, SHARED_EXPERTS};
use super::experts::one_by_one;
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters, llama, names};
use crate::{Error, Metadata};

/// `Glm4ForCausalLM`.
pub(super) struct Glm4;
/// `Glm4MoeForCausalLM`: GLM-4.5 and later.
pub(super) struct Glm4Moe;
/// `Glm4MoeLiteForCausalLM`: GLM-4.7 Flash, which is built as DeepSeek V3.
pub(super) struct Glm4MoeLite;

const GLM4: ConfigClass = ConfigClass {
    model_types: &["glm4"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(151_552)),
                ("hidden_size", json!(4096)),
                ("intermediate_size", json!(13696)),
                ("num_hidden_layers", json!(40)),
                ("num_attention_heads", json!(32)),
                ("num_key_value_heads", json!(2)),
                ("head_dim", json!(128)),
                ("max_position_embeddings", json!(131_072)),
                ("rms_norm_eps", json!(1.5625e-7)),
            ],
        );
        fill_null(fields, "partial_rotary_factor", |_| Some(json!(0.5)));
    },
    rope_theta: Some(10000.0),
};

const GLM4_MOE: ConfigClass = ConfigClass {
    model_types: &["glm4_moe"],
    complete: |fields| {
        rename(fields, "num_local_experts", "n_routed_experts");
        rename(fields, "num_mtp_layers", "num_nextn_predict_layers");
        fill(
            fields,
            &[
                ("vocab_size", json!(151_552)),
                ("hidden_size", json!(4096)),
                ("intermediate_size", json!(10944)),
                ("num_hidden_layers", json!(46)),
                ("num_attention_heads", json!(96)),
                ("num_key_value_heads", json!(8)),
                ("max_position_embeddings", json!(131_072)),
                ("rms_norm_eps", json!(1e-5)),
                ("moe_intermediate_size", json!(1408)),
                ("num_experts_per_tok", json!(8)),
                ("n_shared_experts", json!(1)),
                ("n_routed_experts", json!(128)),
                ("routed_scaling_factor", json!(1.0)),
                ("n_group", json!(1)),
                ("topk_group", json!(1)),
                ("first_k_dense_replace", json!(1)),
                ("norm_topk_prob", json!(true)),
                (PREDICTING, json!(1)),
            ],
        );
        fill_null(fields, "partial_rotary_factor", |_| Some(json!(0.5)));
    },
    rope_theta: Some(10000.0),
};

const GLM4_MOE_LITE: ConfigClass = ConfigClass {
    model_types: &["glm4_moe_lite"],
    complete: |fields| {
        rename(fields, "num_local_experts", "n_routed_experts");
        fill(
            fields,
            &[
                ("vocab_size", json!(154_880)),
                ("hidden_size", json!(2048)),
                ("intermediate_size", json!(10240)),
                ("moe_intermediate_size", json!(1536)),
                ("num_hidden_layers", json!(47)),
                ("num_attention_heads", json!(20)),
                ("num_key_value_heads", json!(20)),
                ("n_shared_experts", json!(1)),
                ("n_routed_experts", json!(64)),
                ("routed_scaling_factor", json!(1.8)),
                ("q_lora_rank", json!(768)),
                ("qk_nope_head_dim", json!(192)),
                ("v_head_dim", json!(256)),
                ("n_group", json!(1)),
                ("topk_group", json!(1)),
                ("num_experts_per_tok", json!(4)),
                ("norm_topk_prob", json!(true)),
                ("max_position_embeddings", json!(202_752)),
                ("rms_norm_eps", json!(1e-5)),
            ],
        );
        deepseek::latent(fields);
    },
    rope_theta: Some(10000.0),
};

/// Field with the number of layers that predict a token more. They come after the others.
const PREDICTING: &str = "num_nextn_predict_layers";

const MOE_NAMES: Names = &[
    ("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"),
    ("model.layers.{}.mlp.gate.e_score_correction", "blk.{}.exp_probs_b"),
];

/// What a layer that predicts a token more has of the embeddings.
const NEXT_EMBEDDINGS: Names = &[("model.layers.{}.embed_tokens", "blk.{}.nextn.embed_tokens")];

const NAMES: Names = &[
    ("model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up"),
    ("model.layers.{}.post_self_attn_layernorm", "blk.{}.post_attention_norm"),
    ("model.layers.{}.post_mlp_layernorm", "blk.{}.post_ffw_norm"),
];

/// How many elements of a head are rotated.
fn rotated(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    let part = model.config.rope.get("partial_rotary_factor").and_then(Json::as_f64).unwrap_or(0.5);
    keys.u32("rope.dimension_count", (llama::head_dim(model.config)? as f64 * part) as u64)
}

impl Architecture for Glm4 {
    fn classes(&self) -> &'static [&'static str] {
        &["Glm4ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "glm4"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GLM4]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES, names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        rotated(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        let end = "<|endoftext|>";
        tokenizer::bpe_with(model, &[("eos", end), ("eot", "<|user|>"), ("unk", end), ("bos", end)], out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        if model.config.rope.contains_key("mrope_section") {
            // The text model of a vision model, whose heads would be rearranged.
            return Err(Error::Architecture {
                architecture: model.config.outer_class.clone(),
                known: self.classes().to_vec(),
            });
        }
        out.map(model, incoming.name, incoming.tensor)
    }
}

impl Architecture for Glm4Moe {
    fn classes(&self) -> &'static [&'static str] {
        &["Glm4MoeForCausalLM", "Glm4vMoeForConditionalGeneration"]
    }
    fn name(&self) -> &'static str {
        "glm4moe"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GLM4_MOE]
    }
    fn names(&self) -> &'static [Names] {
        &[
            MOE_NAMES,
            NEXT_EMBEDDINGS,
            names::NEXT_TOKENS,
            names::DECODER,
            names::DENSE,
            names::EXPERTS,
            SHARED_EXPERTS,
        ]
    }
    fn layers(&self, config: &Config) -> Result<u64, Error> {
        Ok(config.integer("num_hidden_layers")? + config.maybe_integer(&[PREDICTING])?.unwrap_or(0))
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        rotated(model, keys)?;
        let config = model.config;
        for (key, field) in [
            ("expert_count", "n_routed_experts"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("expert_shared_count", "n_shared_experts"),
            ("leading_dense_block_count", "first_k_dense_replace"),
        ] {
            if let Some(n) = config.maybe_integer(&[field])? {
                keys.u32(key, n)?;
            }
        }
        let sigmoid = 2;
        keys.u32("expert_gating_func", sigmoid)?;
        if let Some(scale) = config.get("routed_scaling_factor").and_then(Json::as_f64) {
            keys.f32("expert_weights_scale", scale);
        }
        if let Some(norm) = config.flag("norm_topk_prob") {
            keys.flag("expert_weights_norm", norm);
        }
        if let Some(n) = config.maybe_integer(&[PREDICTING])? {
            keys.u32("nextn_predict_layers", n)?;
        }
        Ok(())
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        let kinds =
            [("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("eom", "<|observation|>")];
        tokenizer::bpe_with(model, &kinds, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let projections = ["down_proj", "gate_proj", "up_proj"];
        one_by_one(model, incoming, &["n_routed_experts"], projections, out)
    }
}

impl Architecture for Glm4MoeLite {
    fn classes(&self) -> &'static [&'static str] {
        &["Glm4MoeLiteForCausalLM"]
    }
    fn name(&self) -> &'static str {
        DeepSeek2.name()
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GLM4_MOE_LITE]
    }
    fn names(&self) -> &'static [Names] {
        &[
            LATENT,
            NEXT_EMBEDDINGS,
            names::NEXT_TOKENS,
            names::DECODER,
            names::DENSE,
            names::EXPERTS,
            SHARED_EXPERTS,
        ]
    }
    fn prepare(&self, config: &mut Config, tensors: &[TensorInfo]) -> Result<(), Error> {
        DeepSeek2.prepare(config, tensors)
    }
    fn layers(&self, config: &Config) -> Result<u64, Error> {
        Glm4Moe.layers(config)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        DeepSeek2.parameters(model, keys)?;
        match model.config.maybe_integer(&[PREDICTING])?.unwrap_or(0) {
            0 => Ok(()),
            n => keys.u32("nextn_predict_layers", n),
        }
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        Glm4Moe.tokenizer(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        deepseek::tensor(model, incoming, out)
    }
}
