//! Ministral 3 and SmolLM 3: Llama under names of their own.

use serde_json::{Value as Json, json};

use super::super::config::{Config, ConfigClass, fill, fill_heads, fill_key_value_heads, wrong};
use super::super::parameters::Keys;
use super::{Architecture, Incoming, Model, Names, Outputs, keep_text, llama, names};
use crate::{Error, Metadata};

/// `Ministral3ForCausalLM`, and the text model of Mistral Small 3.1 and later.
pub(super) struct Mistral3;
/// `SmolLM3ForCausalLM`.
pub(super) struct SmolLm3;

const MINISTRAL3: ConfigClass = ConfigClass {
    model_types: &["ministral3"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(131_072)),
                ("hidden_size", json!(4096)),
                ("intermediate_size", json!(14336)),
                ("num_hidden_layers", json!(34)),
                ("num_attention_heads", json!(32)),
                ("num_key_value_heads", json!(8)),
                ("head_dim", json!(128)),
                ("max_position_embeddings", json!(262_144)),
                ("rms_norm_eps", json!(1e-5)),
            ],
        );
        fill_heads(fields);
        if !fields.contains_key("rope_scaling") {
            let rope = json!({
                "type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0,
                "original_max_position_embeddings": 16384, "max_position_embeddings": 262_144,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
                "llama_4_scaling_beta": 0.1,
            });
            fill(fields, &[("rope_parameters", rope)]);
        }
    },
    rope_theta: Some(10000.0),
};

const SMOLLM3: ConfigClass = ConfigClass {
    model_types: &["smollm3"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(128_256)),
                ("hidden_size", json!(2048)),
                ("intermediate_size", json!(11008)),
                ("num_hidden_layers", json!(36)),
                ("num_attention_heads", json!(16)),
                ("num_key_value_heads", json!(4)),
                ("max_position_embeddings", json!(32768)),
                ("rms_norm_eps", json!(1e-6)),
            ],
        );
        fill_key_value_heads(fields);
    },
    rope_theta: Some(2_000_000.0),
};

impl Architecture for Mistral3 {
    fn classes(&self) -> &'static [&'static str] {
        &["Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "mistral3"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[MINISTRAL3]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        keep_text(&name.replace("text_model.", ""))
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        llama::parameters(model, keys)?;
        if model.config.get("model_type").and_then(Json::as_str) == Some("ministral3") {
            for (key, field) in [
                ("rope.scaling.yarn_log_multiplier", "mscale_all_dim"),
                ("attention.temperature_scale", "llama_4_scaling_beta"),
            ] {
                let value = model.config.rope.get(field).unwrap_or(&Json::Null);
                keys.f32(key, value.as_f64().ok_or_else(|| wrong(field, value, "a number"))?);
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

impl Architecture for SmolLm3 {
    fn classes(&self) -> &'static [&'static str] {
        &["SmolLM3ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "smollm3"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[SMOLLM3]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        llama::parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        llama::tokenizer(model, out)
    }
    fn extra(&self, model: &Model<'_>, out: &mut Outputs) -> Result<(), Error> {
        llama::rope_factors(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        Mistral3.tensor(model, incoming, out)
    }
}
