//! InternLM 2 and 3.

use serde_json::json;

use super::super::config::{Config, ConfigClass, fill, fill_heads};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::super::view::Tensor;
use super::{Architecture, Incoming, Model, Names, Outputs, keep_text, llama, names};
use crate::{Error, Metadata};

/// `InternLM2ForCausalLM`.
pub(super) struct InternLm2;
/// `InternLM3ForCausalLM`.
pub(super) struct InternLm3;

const INTERNLM3: ConfigClass = ConfigClass {
    model_types: &["internlm3"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(128_512)),
                ("hidden_size", json!(4096)),
                ("intermediate_size", json!(10240)),
                ("num_hidden_layers", json!(48)),
                ("num_attention_heads", json!(32)),
                ("num_key_value_heads", json!(2)),
                ("max_position_embeddings", json!(32768)),
                ("rms_norm_eps", json!(1e-5)),
                ("head_dim", json!(128)),
            ],
        );
        fill_heads(fields);
    },
    rope_theta: Some(10000.0),
};

const INTERNLM2_NAMES: Names = &[
    ("model.tok_embeddings", "token_embd"),
    ("model.norm", "output_norm"),
    ("output", "output"),
    ("model.layers.{}.attention_norm", "blk.{}.attn_norm"),
    ("model.layers.{}.attention.wo", "blk.{}.attn_output"),
    ("model.layers.{}.ffn_norm", "blk.{}.ffn_norm"),
    ("model.layers.{}.feed_forward.w1", "blk.{}.ffn_gate"),
    ("model.layers.{}.feed_forward.w2", "blk.{}.ffn_down"),
    ("model.layers.{}.feed_forward.w3", "blk.{}.ffn_up"),
];

impl Architecture for InternLm2 {
    fn classes(&self) -> &'static [&'static str] {
        &["InternLM2ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "internlm2"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        // transformers has none: config.json counts as it is.
        &[]
    }
    fn names(&self) -> &'static [Names] {
        &[INTERNLM2_NAMES]
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::internlm2(model, out)
    }
    /// Queries, a key and a value for each group of heads in one, cut apart.
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, layer } = incoming;
        let (Some(layer), true) = (layer, name.contains(".attention.wqkv")) else {
            return out.map(model, name, tensor);
        };
        let config = model.config;
        let (heads, groups) =
            (config.integer("num_attention_heads")?, config.integer("num_key_value_heads")?);
        let width = config.integer("hidden_size")?;
        let queries = heads.checked_div(groups).unwrap_or(0);
        let head = width.checked_div(heads).unwrap_or(0);
        let rows = tensor.reshape(&[groups, (queries + 2) * head, width])?;
        let [q, k, v] = rows.split(1, [queries * head, head, head])?;
        let flat = |tensor: Tensor, rows: u64| tensor.reshape(&[groups * rows, width]);
        let parts = [
            ("q", llama::permute(flat(q, queries * head)?, heads)?),
            ("k", llama::permute(flat(k, head)?, groups)?),
            ("v", flat(v, head)?),
        ];
        for (projection, part) in parts {
            out.push(format!("blk.{layer}.attn_{projection}.weight"), part);
        }
        Ok(())
    }
}

impl Architecture for InternLm3 {
    fn classes(&self) -> &'static [&'static str] {
        &["InternLM3ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "llama"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[INTERNLM3]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        if name.starts_with("vision_model") { None } else { keep_text(name) }
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        llama::parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::internlm3(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let tensor = llama::permute_heads(model.config, incoming.name, incoming.tensor)?;
        out.map(model, incoming.name, tensor)
    }
}
