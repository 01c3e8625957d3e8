//! GLM-4.

use serde_json::{Value as Json, json};

use super::super::config::{ConfigClass, fill, fill_null};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters, llama, names};
use crate::{Error, Metadata};

/// `Glm4ForCausalLM`.
pub(super) struct Glm4;

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

const NAMES: Names = &[
    ("model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up"),
    ("model.layers.{}.post_self_attn_layernorm", "blk.{}.post_attention_norm"),
    ("model.layers.{}.post_mlp_layernorm", "blk.{}.post_ffw_norm"),
];

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
        &[NAMES, names::DECODER]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        let part = model.config.rope.get("partial_rotary_factor").and_then(Json::as_f64).unwrap_or(0.5);
        keys.u32("rope.dimension_count", (llama::head_dim(model.config)? as f64 * part) as u64)
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
