//! Llama 2 and 3, and all that are built alike: Mistral, Mixtral, Yi, SmolLM, InternLM 3 and others.

use serde_json::{Value as Json, json};

use super::super::config::{Config, ConfigClass, Fields, fill, fill_heads, fill_key_value_heads, rename};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::super::view::Tensor;
use super::{Architecture, Experts, Incoming, Model, Names, Outputs, base_parameters, keep_text, names};
use crate::{Error, Metadata, Value};

/// `LlamaForCausalLM` and its relatives.
pub(super) struct Llama;

const LLAMA: ConfigClass = ConfigClass {
    model_types: &["llama"],
    complete: |fields| {
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
            ],
        );
        fill_heads(fields);
    },
    rope_theta: Some(10000.0),
};

const MISTRAL: ConfigClass = ConfigClass {
    model_types: &["mistral"],
    complete: |fields| {
        mistral(fields);
        fill(fields, &[("max_position_embeddings", json!(4096 * 32))]);
        fill_heads(fields);
    },
    rope_theta: Some(10000.0),
};

const MIXTRAL: ConfigClass = ConfigClass {
    model_types: &["mixtral"],
    complete: |fields| {
        rename(fields, "num_experts", "num_local_experts");
        fill(fields, &[("rms_norm_eps", json!(1e-5))]);
        mistral(fields);
        fill(
            fields,
            &[
                ("max_position_embeddings", json!(4096 * 32)),
                ("num_experts_per_tok", json!(2)),
                ("num_local_experts", json!(8)),
            ],
        );
        fill_key_value_heads(fields);
    },
    rope_theta: Some(1_000_000.0),
};

fn mistral(fields: &mut Fields) {
    fill(
        fields,
        &[
            ("vocab_size", json!(32000)),
            ("hidden_size", json!(4096)),
            ("intermediate_size", json!(14336)),
            ("num_hidden_layers", json!(32)),
            ("num_attention_heads", json!(32)),
            ("num_key_value_heads", json!(8)),
            ("rms_norm_eps", json!(1e-6)),
        ],
    );
}

/// Names of Mixtral's experts, stacked.
pub(super) const MIXTRAL_EXPERTS: Names = &[
    ("model.layers.{}.block_sparse_moe.gate", "blk.{}.ffn_gate_inp"),
    ("layers.{}.feed_forward.experts.w1", "blk.{}.ffn_gate_exps"),
    ("layers.{}.feed_forward.experts.w2", "blk.{}.ffn_down_exps"),
    ("layers.{}.feed_forward.experts.w3", "blk.{}.ffn_up_exps"),
];

impl Architecture for Llama {
    fn classes(&self) -> &'static [&'static str] {
        &[
            "LLaMAForCausalLM",
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "MixtralForCausalLM",
            "VLlama3ForCausalLM",
            "LlavaForConditionalGeneration",
            "VoxtralForConditionalGeneration",
            "IQuestCoderForCausalLM",
            "LlamaModel",
        ]
    }

    fn name(&self) -> &'static str {
        "llama"
    }

    fn configs(&self) -> &'static [ConfigClass] {
        &[LLAMA, MISTRAL, MIXTRAL]
    }

    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE, MIXTRAL_EXPERTS]
    }

    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        keep_text(&name.replace("text_model.", ""))
    }

    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        parameters(model, keys)
    }

    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer(model, out)
    }

    fn extra(&self, model: &Model<'_>, out: &mut Outputs) -> Result<(), Error> {
        rope_factors(model, out)
    }

    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, layer } = incoming;
        let with_model = format!("model.{name}");
        let name = if model.config.class == "LlamaModel" { with_model.as_str() } else { name };
        let tensor = permute_heads(model.config, name, tensor)?;
        mixtral_experts(model, Incoming { name, tensor, layer }, out)
    }
}

/// Keys of Llama and of what is built on it.
pub(super) fn parameters(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    base_parameters(model, keys)?;
    keys.u32("vocab_size", model.config.integer("vocab_size")?)?;
    keys.u32("rope.dimension_count", head_dim(model.config)?)
}

/// Elements of a head.
pub(super) fn head_dim(config: &Config) -> Result<u64, Error> {
    if let Some(n) = config.maybe_integer(&["head_dim"])? {
        return Ok(n);
    }
    let heads = config.integer("num_attention_heads")?.max(1);
    Ok(config.integer("hidden_size")? / heads)
}

/// SentencePiece if there is a model, else what `tokenizer.json` has.
pub(super) fn tokenizer(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    if let Some(config) = model.files.object("tokenizer_config.json")?
        && let Some(add) = config.get("add_prefix_space").and_then(Json::as_bool)
    {
        out.set("tokenizer.ggml.add_space_prefix", Value::Bool(add));
    }
    if model.files.has("tokenizer.model") {
        tokenizer::sentencepiece(model, &["vocab_size_per_layer_input", "vocab_size"], out)?;
    } else if !tokenizer::llama_hf(model, out)? {
        tokenizer::bpe(model, out)?;
    }
    match model.config.maybe_integer(&["vocab_size"])? {
        // CodeLlama.
        Some(32016) => {
            tokenizer::more_special(
                model,
                &["prefix", "suffix", "middle", "eot"],
                &[("prefix", 32007), ("suffix", 32008), ("middle", 32009), ("eot", 32010)],
                out,
            )?;
        }
        // Small Granite models.
        Some(49152) => out.set("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        _ => {}
    }
    Ok(())
}

/// Rows of the heads of `q_proj` and `k_proj` in the order of the original Llama: pairs beside each other.
pub(super) fn permute_heads(config: &Config, name: &str, tensor: Tensor) -> Result<Tensor, Error> {
    let is = |projection: &str| {
        name.ends_with(&format!("{projection}.weight")) || name.ends_with(&format!("{projection}.bias"))
    };
    let heads = config.integer_of(&["n_heads", "num_attention_heads"]);
    if is("q_proj") {
        permute(tensor, heads?)
    } else if is("k_proj") {
        let key_value_heads = config.maybe_integer(&["n_kv_heads", "num_key_value_heads"])?;
        permute(tensor, key_value_heads.map_or_else(|| heads, Ok)?)
    } else {
        Ok(tensor)
    }
}

/// Rows of each head that are in halves, in pairs.
pub(super) fn permute(tensor: Tensor, heads: u64) -> Result<Tensor, Error> {
    let shape = tensor.shape();
    let rows = shape.first().copied().unwrap_or(0);
    let mut apart = vec![heads, 2, rows.checked_div(heads).unwrap_or(0) / 2];
    apart.extend(shape.get(1..).unwrap_or_default());
    tensor.reshape(&apart)?.swap_axes(1, 2)?.reshape(&shape)
}

/// Mixtral's experts, stacked.
pub(super) fn mixtral_experts(
    model: &Model<'_>,
    incoming: Incoming<'_>,
    out: &mut Outputs,
) -> Result<(), Error> {
    let Incoming { name, tensor, layer } = incoming;
    let (true, Some(layer)) = (name.contains("block_sparse_moe.experts"), layer) else {
        return out.map(model, name, tensor);
    };
    let experts = model.config.integer("num_local_experts")?;
    let Some(mut parts) = out.experts.gather(layer, name, tensor, experts * 3) else { return Ok(()) };
    for w in ["w1", "w2", "w3"] {
        let name = |n| format!("model.layers.{layer}.block_sparse_moe.experts.{n}.{w}.weight");
        let stacked = Experts::stack(&mut parts, layer, experts, name)?;
        out.map(model, &format!("layers.{layer}.feed_forward.experts.{w}.weight"), stacked)?;
    }
    Ok(())
}

/// Llama 3.1's scaling of rotary frequencies, as factors.
pub(super) fn rope_factors(model: &Model<'_>, out: &mut Outputs) -> Result<(), Error> {
    let rope = model.config.full_rope();
    let kind = rope.get("rope_type").and_then(Json::as_str).unwrap_or_default();
    if !kind.eq_ignore_ascii_case("llama3") {
        return Ok(());
    }
    let number = |key: &str, default: f64| rope.get(key).and_then(Json::as_f64).unwrap_or(default);
    let base = number("rope_theta", 10000.0);
    let dim = head_dim(model.config)?.min(1 << 20);
    let factor = number("factor", 8.0);
    let (low, high) = (number("low_freq_factor", 1.0), number("high_freq_factor", 4.0));
    let original = number("original_max_position_embeddings", 8192.0);
    let factors = (0..dim).step_by(2).map(|i| {
        // In the types that torch computes in: f32, with what Python counts brought to f32; a number over a
        // tensor is its reciprocal times the number.
        let exponent = i as f32 / dim as f32;
        let frequency = 1.0 / (base as f32 as f64).powf(f64::from(exponent)) as f32;
        let wavelength = (1.0 / frequency) * (2.0 * std::f64::consts::PI) as f32;
        if wavelength < (original / high) as f32 {
            1.0
        } else if wavelength > (original / low) as f32 {
            factor as f32
        } else {
            let smooth = ((1.0 / wavelength) * original as f32 - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    });
    out.push("rope_freqs.weight", Tensor::numbers(factors.collect()));
    Ok(())
}
