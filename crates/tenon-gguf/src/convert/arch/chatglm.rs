//! GLM-4 as transformers first had it (`glm-4-9b-chat-hf`): llama.cpp's ChatGLM.

use serde_json::{Value as Json, json};

use super::super::config::{Config, ConfigClass, fill, fill_null};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::{Architecture, Model, Names, keep_text, names, phi};
use crate::{Error, Metadata, Value};

/// `GlmForCausalLM`.
pub(super) struct ChatGlm;

const GLM: ConfigClass = ConfigClass {
    model_types: &["glm"],
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
            ],
        );
        fill_null(fields, "partial_rotary_factor", |_| Some(json!(0.5)));
    },
    rope_theta: Some(10000.0),
};

impl Architecture for ChatGlm {
    fn classes(&self) -> &'static [&'static str] {
        &["GlmForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "chatglm"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GLM]
    }
    fn names(&self) -> &'static [Names] {
        &[phi::FUSED, names::DECODER, names::DENSE]
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        if name.ends_with(".rotary_pos_emb.inv_freq") {
            return None;
        }
        keep_text(name.strip_prefix("transformer.").unwrap_or(name))
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        let config = model.config;
        let integer =
            |names: &[&str], default: u64| Ok::<_, Error>(config.maybe_integer(names)?.unwrap_or(default));
        let width = config.integer_of(&["hidden_size", "n_embed"])?;
        let heads = config.integer_of(&["n_head", "num_attention_heads"])?.max(1);
        keys.u32("context_length", integer(&["seq_length"], width)?)?;
        keys.u32("embedding_length", width)?;
        keys.u32("feed_forward_length", integer(&["ffn_hidden_size", "intermediate_size"], 4 * width)?)?;
        keys.u32("block_count", model.layers)?;
        keys.u32("attention.head_count", heads)?;
        let groups = integer(&["multi_query_group_num", "num_key_value_heads"], heads)?;
        keys.u32("attention.head_count_kv", groups)?;
        let epsilon = config.get("layernorm_epsilon").and_then(Json::as_f64);
        keys.f32("attention.layer_norm_rms_epsilon", epsilon.unwrap_or(1e-5));
        keys.out.set("general.file_type", Value::U32(model.file_type));
        let rotated = integer(&["attention_dim"], width / config.integer("num_attention_heads")?.max(1))?;
        let part = config.rope.get("partial_rotary_factor").and_then(Json::as_f64).unwrap_or(0.5);
        keys.u32("rope.dimension_count", (rotated as f64 * part) as u64)?;
        keys.out.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
        let ratio = config.get("rope_ratio").and_then(Json::as_f64).unwrap_or(1.0);
        keys.f32("rope.freq_base", 10000.0 * ratio);
        Ok(())
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        let end = "<|endoftext|>";
        tokenizer::bpe_with(model, &[("eos", end), ("eot", "<|user|>"), ("unk", end)], out)
    }
}
