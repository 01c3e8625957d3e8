//! Gemma 3n: four streams side by side, embeddings for each layer, feed-forwards that leave most out.

use serde_json::{Value as Json, json};
use tenon_checkpoint::TensorInfo;

use super::super::config::{Config, ConfigClass, fill, fill_null, wrong};
use super::super::parameters::Keys;
use super::super::tokenizer;
use super::super::view::Tensor;
use super::gemma::{FOUR_NORMS, gemma3_parameters, two_ropes};
use super::{Architecture, Experts, Incoming, Model, Names, Outputs, keep_text, names};
use crate::{Error, Metadata, Value};

/// `Gemma3nForCausalLM`.
pub(super) struct Gemma3n;

const GEMMA3N: ConfigClass = ConfigClass {
    model_types: &["gemma3n_text"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(262_400)),
                ("vocab_size_per_layer_input", json!(262_144)),
                ("hidden_size", json!(2048)),
                ("hidden_size_per_layer_input", json!(256)),
                ("intermediate_size", json!(16384)),
                ("num_hidden_layers", json!(35)),
                ("num_attention_heads", json!(8)),
                ("num_key_value_heads", json!(2)),
                ("num_kv_shared_layers", json!(15)),
                ("head_dim", json!(256)),
                ("max_position_embeddings", json!(32768)),
                ("rms_norm_eps", json!(1e-6)),
                ("sliding_window", json!(512)),
                ("final_logit_softcapping", json!(30.0)),
                ("altup_active_idx", json!(0)),
                ("altup_num_inputs", json!(4)),
            ],
        );
        let layers =
            fields.get("num_hidden_layers").and_then(Json::as_u64).unwrap_or(0).min(100_000) as usize;
        if let Some(width) = fields.get("intermediate_size").filter(|width| width.is_u64()).cloned() {
            fields.insert("intermediate_size".into(), Json::Array(vec![width; layers]));
        }
        fill_null(fields, "layer_types", |_| {
            let kind =
                |n: usize| if (n + 1).is_multiple_of(5) { "full_attention" } else { "sliding_attention" };
            Some((0..layers).map(kind).collect())
        });
        fill_null(fields, "activation_sparsity_pattern", |_| {
            let sparse = if layers > 10 { 10 } else { 0 };
            Some((0..layers).map(|n| if n < sparse { 0.95 } else { 0.0 }).collect())
        });
        two_ropes(fields);
    },
    // Its own way.
    rope_theta: None,
};

const NAMES: Names = &[
    ("model.embed_tokens_per_layer", "per_layer_token_embd"),
    ("model.per_layer_model_projection", "per_layer_model_proj"),
    ("model.per_layer_projection_norm", "per_layer_proj_norm"),
    ("model.altup_projections", "altup_proj"),
    ("model.altup_unembed_projections", "altup_unembd_proj"),
    ("model.layers.{}.per_layer_input_gate", "blk.{}.inp_gate"),
    ("model.layers.{}.per_layer_projection", "blk.{}.proj"),
    ("model.layers.{}.post_per_layer_input_norm", "blk.{}.post_norm"),
    ("model.layers.{}.altup.correction_coefs", "blk.{}.altup_correct_coef"),
    ("model.layers.{}.altup.correct_output_scale", "blk.{}.altup_correct_scale"),
    ("model.layers.{}.altup.prediction_coefs", "blk.{}.altup_predict_coef"),
    ("model.layers.{}.altup.modality_router", "blk.{}.altup_router"),
    ("model.layers.{}.altup.router_norm", "blk.{}.altup_router_norm"),
    ("model.layers.{}.laurel.linear_left", "blk.{}.laurel_l"),
    ("model.layers.{}.laurel.linear_right", "blk.{}.laurel_r"),
    ("model.layers.{}.laurel.post_laurel_norm", "blk.{}.laurel_post_norm"),
];

/// Streams besides the one that is predicted.
const OTHER_STREAMS: u64 = 3;

impl Architecture for Gemma3n {
    fn classes(&self) -> &'static [&'static str] {
        &["Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"]
    }
    fn name(&self) -> &'static str {
        "gemma3n"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[GEMMA3N]
    }
    fn names(&self) -> &'static [Names] {
        &[NAMES, FOUR_NORMS, names::DECODER, names::DENSE]
    }
    fn prepare(&self, config: &mut Config, _: &[TensorInfo]) -> Result<(), Error> {
        match config.integer("altup_num_inputs")? {
            4 => Ok(()),
            other => Err(wrong("altup_num_inputs", &json!(other), "4")),
        }
    }
    fn keep(&self, name: &str, _: &Config) -> Option<String> {
        if name.ends_with("_scale") { keep_text(&format!("{name}.weight")) } else { keep_text(name) }
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        gemma3_parameters(model, keys)?;
        let config = model.config;
        keys.u32("altup.active_idx", config.integer("altup_active_idx")?)?;
        keys.u32("altup.num_inputs", config.integer("altup_num_inputs")?)?;
        keys.u32("embedding_length_per_layer_input", config.integer("hidden_size_per_layer_input")?)?;
        keys.u32("attention.shared_kv_layers", config.integer("num_kv_shared_layers")?)?;
        let list = |field: &'static str| {
            let value = config.get(field).unwrap_or(&Json::Null);
            value.as_array().ok_or_else(|| wrong(field, value, "a list with an entry a layer"))
        };
        let sparsity = "activation_sparsity_pattern";
        let scale = |share: &Json| {
            let share = share.as_f64().filter(|share| (0.0..1.0).contains(share));
            share
                .map(|share| standard_deviations(share as f32))
                .ok_or_else(|| wrong(sparsity, &Json::Null, "shares"))
        };
        let scales: Result<Vec<f32>, Error> = list(sparsity)?.iter().map(scale).collect();
        keys.set("activation_sparsity_scale", Value::F32s(scales?));
        let sliding = list("layer_types")?.iter().map(|kind| kind == "sliding_attention");
        keys.set("attention.sliding_window_pattern", Value::Bools(sliding.collect()));
        Ok(())
    }
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        if !model.files.has("tokenizer.model") {
            return tokenizer::bpe(model, out);
        }
        tokenizer::sentencepiece(model, &["vocab_size"], out)?;
        out.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, tensor, .. } = incoming;
        if name.contains("embed_tokens.weight") || name.contains("embed_tokens_per_layer") {
            // Tokens of images and sounds get their embeddings from towers, but have a row here.
            let shape = tensor.shape();
            let missing =
                model.config.integer("vocab_size")?.saturating_sub(shape.first().copied().unwrap_or(0));
            let padded = match (missing, shape.as_slice()) {
                (1.., [_, width]) => Tensor::cat(vec![tensor, Tensor::zeros(&[missing, *width])])?,
                _ => tensor,
            };
            return out.map(model, name, padded);
        }
        for (group, stem) in [("altup_unembed_projections", u64::MAX), ("altup_projections", u64::MAX - 1)] {
            if name.contains(group) {
                let Some(mut parts) = out.experts.gather(stem, name, tensor, OTHER_STREAMS) else {
                    return Ok(());
                };
                let one = |n| format!("model.{group}.{n}.weight");
                let stacked = Experts::stack(&mut parts, stem, OTHER_STREAMS, one)?;
                return out.map(model, &format!("model.{group}.weight"), stacked);
            }
        }
        out.map(model, name, tensor)
    }
}

/// Above how many standard deviations a share of a normal distribution does not lie, rounded as torch does.
fn standard_deviations(share: f32) -> f32 {
    erf_inverse(f64::from(2.0 * share - 1.0)) as f32 * std::f32::consts::SQRT_2
}

/// The inverse of the error function: a first approximation, then Newton's method to the last bits.
fn erf_inverse(y: f64) -> f64 {
    if y.abs() >= 1.0 {
        return y * f64::INFINITY;
    }
    // Winitzki's approximation, good to some thousandths.
    let (a, log) = (0.147, (1.0 - y * y).ln());
    let half = 2.0 / (std::f64::consts::PI * a) + log / 2.0;
    let mut x = ((half * half - log / a).sqrt() - half).sqrt().copysign(y);
    for _ in 0..4 {
        x -= (erf(x) - y) / ((2.0 / std::f64::consts::PI.sqrt()) * (-x * x).exp());
    }
    x
}

/// The error function, from its series.
fn erf(x: f64) -> f64 {
    let (mut sum, mut term) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.distributions.Normal(0, 1).icdf(torch.tensor(p))`.
    #[test]
    fn shares_of_a_normal_distribution() {
        for (share, expected) in [(0.5f32, 0.0f32), (0.95, 1.6448536), (0.9, 1.2815515), (0.25, -0.67448974)]
        {
            assert_eq!(standard_deviations(share), expected, "{share}");
        }
        assert_eq!(standard_deviations(0.0), f32::NEG_INFINITY);
    }
}
