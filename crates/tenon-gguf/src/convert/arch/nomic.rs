//! Nomic's embedding models: BERT with rotary positions, and gates or experts.

use serde_json::{Value as Json, json};
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, fill, fill_null, wrong};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::bert::{Bert, after_padding};
use super::{Architecture, Incoming, Model, Names, Outputs};
use crate::{Error, Metadata};

/// `NomicBertModel` with gates: versions 1 and 1.5.
pub(super) struct NomicBert;
/// `NomicBertModel` with experts: version 2.
pub(super) struct NomicBertMoe;

/// What transformers fills in, under other names than the published files': those stay beside them, and the
/// converter reads now these, now those.
const NOMIC: ConfigClass = ConfigClass {
    model_types: &["nomic_bert"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(30528)),
                ("hidden_size", json!(768)),
                ("num_hidden_layers", json!(12)),
                ("num_attention_heads", json!(12)),
                ("intermediate_size", json!(3072)),
                ("max_position_embeddings", json!(2048)),
                ("type_vocab_size", json!(2)),
                ("layer_norm_eps", json!(1e-12)),
                ("pad_token_id", json!(0)),
            ],
        );
        fill_null(fields, "head_dim", |fields| {
            let heads = fields.get("num_attention_heads")?.as_u64()?;
            Some(json!(fields.get("hidden_size")?.as_u64()?.checked_div(heads)?))
        });
    },
    rope_theta: Some(1000.0),
};

const NAMES: Names = &[
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("emb_ln", "token_embd_norm"),
    ("encoder.layers.{}.attn.Wqkv", "blk.{}.attn_qkv"),
    ("encoder.layers.{}.attn.out_proj", "blk.{}.attn_output"),
    ("encoder.layers.{}.norm1", "blk.{}.attn_output_norm"),
    ("encoder.layers.{}.mlp.fc1", "blk.{}.ffn_up"),
    ("encoder.layers.{}.mlp.fc11", "blk.{}.ffn_up"),
    ("encoder.layers.{}.mlp.fc2", "blk.{}.ffn_down"),
    ("encoder.layers.{}.norm2", "blk.{}.layer_output_norm"),
];

const GATE: Names = &[("encoder.layers.{}.mlp.fc12", "blk.{}.ffn_gate")];

const EXPERTS: Names = &[
    ("encoder.layers.{}.mlp.router.layer", "blk.{}.ffn_gate_inp"),
    ("encoder.layers.{}.mlp.experts.mlp.w1", "blk.{}.ffn_up_exps"),
    ("encoder.layers.{}.mlp.experts.mlp.w2", "blk.{}.ffn_down_exps"),
];

fn has_experts(config: &Config) -> bool {
    config.get("moe_every_n_layers").and_then(Json::as_f64).is_some_and(|n| n != 0.0)
}

/// What llama.cpp takes for granted of these models.
fn check(config: &mut Config, has_experts: bool) -> Result<(), Error> {
    let biases = if has_experts { (json!(true), "true") } else { (json!(false), "false") };
    let no = (json!(false), "false");
    for (field, (value, expected)) in [
        ("causal", no.clone()),
        ("qkv_proj_bias", biases.clone()),
        ("mlp_fc1_bias", biases.clone()),
        ("mlp_fc2_bias", biases),
        ("prenorm", no.clone()),
        ("rotary_emb_fraction", (json!(1.0), "1")),
        ("rotary_emb_interleaved", no),
        ("rotary_emb_scale_base", (Json::Null, "null")),
    ] {
        let found = config.get(field).unwrap_or(&Json::Null);
        let same = *found == value || (value.is_number() && found.as_f64() == value.as_f64());
        if !same {
            return Err(wrong(field, found, expected));
        }
    }
    let activation = config.get("activation_function").unwrap_or(&Json::Null);
    if has_experts && activation != "gelu" {
        return Err(wrong("activation_function", activation, "gelu"));
    }
    // As many as a model was trained for, whatever else it says.
    let positions = config.integer("n_positions")?;
    let trained = config.maybe_integer(&["max_trained_positions"])?.unwrap_or(2048);
    let positions = match (positions, trained) {
        (8192, 2048) => 2048,
        (2048, 2048) => 512,
        _ => {
            let expected = "8192 or 2048 (and 2048 for max_trained_positions)";
            return Err(wrong("n_positions", &json!(positions), expected));
        }
    };
    config.set("n_positions", json!(positions));
    Ok(())
}

fn parameters(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    let mut config = model.config.clone();
    if tokenizer::is_unigram(model.files)? {
        after_padding(&mut config)?;
    }
    Bert.parameters(&Model { config: &config, ..*model }, keys)
}

fn set_tokenizer(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    if tokenizer::is_unigram(model.files)? {
        tokenizer::unigram(model, out)
    } else {
        Bert.tokenizer(model, out)
    }
}

/// Biases of experts are one for all of them, and nothing that llama.cpp has a place for.
fn keep(name: &str, config: &Config) -> Option<String> {
    if name.contains("mlp.experts.bias") { None } else { Bert.keep(name, config) }
}

impl Architecture for NomicBert {
    fn classes(&self) -> &'static [&'static str] {
        &["NomicBertModel"]
    }
    fn is_for(&self, config: &Config) -> bool {
        !has_experts(config)
    }
    fn name(&self) -> &'static str {
        "nomic-bert"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[NOMIC]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES, GATE]
    }
    fn prepare(&self, config: &mut Config, _: &[TensorInfo]) -> Result<(), Error> {
        check(config, false)
    }
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        keep(name, config)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        parameters(model, keys)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        set_tokenizer(model, out)
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        Bert.tensor(model, incoming, out)
    }
}

impl Architecture for NomicBertMoe {
    fn classes(&self) -> &'static [&'static str] {
        NomicBert.classes()
    }
    fn is_for(&self, config: &Config) -> bool {
        has_experts(config)
    }
    fn name(&self) -> &'static str {
        "nomic-bert-moe"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES, EXPERTS]
    }
    fn prepare(&self, config: &mut Config, _: &[TensorInfo]) -> Result<(), Error> {
        check(config, true)
    }
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        keep(name, config)
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        parameters(model, keys)?;
        keys.u32("moe_every_n_layers", model.config.integer("moe_every_n_layers")?)?;
        keys.u32("expert_used_count", model.config.integer("moe_top_k")?)
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        set_tokenizer(model, out)
    }
    /// Experts are one matrix, one below the other.
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, layer } = incoming;
        let (is_w1, is_w2) = (name.contains("mlp.experts.mlp.w1"), name.contains("mlp.experts.mlp.w2"));
        if !(is_w1 || is_w2) {
            return Bert.tensor(model, Incoming { name, tensor, layer }, out);
        }
        let config = model.config;
        let experts = config.integer_of(&["num_local_experts", "num_experts"])?;
        let apart = [experts, config.integer("n_inner")?, config.integer("n_embd")?];
        let stacked = tensor.reshape(&apart)?;
        let stacked = if is_w2 { stacked.swap_axes(1, 2)? } else { stacked };
        out.map(model, &format!("{name}.weight"), stacked)
    }
}
