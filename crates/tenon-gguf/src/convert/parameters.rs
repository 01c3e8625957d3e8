//! The keys that most architectures have: `TextModel.set_gguf_parameters` of the converter, in its order.

use serde_json::Value as Json;

use super::config::{Config, integer, wrong};
use crate::{Error, Metadata, Value};

/// Keys of one architecture: `llama.block_count` and so on.
pub(crate) struct Keys<'a> {
    pub(crate) out: &'a mut Metadata,
    pub(crate) architecture: &'static str,
}

impl Keys<'_> {
    /// A whole number.
    pub(crate) fn u32(&mut self, key: &str, n: u64) -> Result<(), Error> {
        let n = u32::try_from(n).map_err(|_| wrong(key, &Json::from(n), "a number of 32 bits"))?;
        self.set(key, Value::U32(n));
        Ok(())
    }

    /// A number.
    pub(crate) fn f32(&mut self, key: &str, n: f64) {
        self.set(key, Value::F32(n as f32));
    }

    /// A truth.
    pub(crate) fn flag(&mut self, key: &str, value: bool) {
        self.set(key, Value::Bool(value));
    }

    /// A text; an empty one is none.
    pub(crate) fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.set(key, Value::String(text.into()));
        }
    }

    /// Any value.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.out.set(format!("{}.{key}", self.architecture), value);
    }

    /// A whole number, or one for each layer.
    pub(crate) fn one_or_many(&mut self, key: &str, value: &Json) -> Result<(), Error> {
        let Some(list) = value.as_array() else { return self.u32(key, integer(key, value)?) };
        let numbers: Result<Vec<i32>, Error> = list
            .iter()
            .map(|value| {
                i32::try_from(integer(key, value)?).map_err(|_| wrong(key, value, "a number of 31 bits"))
            })
            .collect();
        let numbers = numbers?;
        if !numbers.is_empty() {
            self.set(key, Value::I32s(numbers));
        }
        Ok(())
    }
}

/// Writes the keys. `layers` is what the file says, which for some is more than the configuration does.
pub(crate) fn write(config: &Config, layers: u64, file_type: u32, keys: &mut Keys<'_>) -> Result<(), Error> {
    keys.u32("block_count", layers)?;
    let context = [
        "max_position_embeddings",
        "n_ctx",
        "n_positions",
        "max_length",
        "max_sequence_length",
        "model_max_length",
    ];
    let feed_forward = [
        "prefix_dense_intermediate_size",
        "dense_intermediate_size",
        "intermediate_size",
        "n_inner",
        "hidden_dim",
    ];
    for (key, names) in
        [("context_length", &context[..]), ("embedding_length", &["hidden_size", "n_embd", "dim"])]
    {
        if let Some(n) = config.maybe_integer(names)? {
            keys.u32(key, n)?;
        }
    }
    for (key, names) in [
        ("feed_forward_length", &feed_forward[..]),
        ("attention.head_count", &["num_attention_heads", "n_head", "n_heads"]),
        ("attention.head_count_kv", &["num_key_value_heads", "n_kv_heads"]),
    ] {
        if let Some(value) = config.find(names) {
            keys.one_or_many(key, value)?;
        }
    }
    if config.flag("is_causal") == Some(false) {
        keys.flag("attention.causal", false);
    }
    rope(config, keys)?;
    if let Some(n) = config.find(&["rms_norm_eps", "norm_eps"]).and_then(Json::as_f64) {
        keys.f32("attention.layer_norm_rms_epsilon", n);
    }
    if let Some(n) =
        config.find(&["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]).and_then(Json::as_f64)
    {
        keys.f32("attention.layer_norm_epsilon", n);
    }
    for (key, names) in [
        ("expert_count", &["num_local_experts", "num_experts", "n_routed_experts"][..]),
        ("expert_used_count", &["num_experts_per_tok", "num_experts_per_token", "top_k_experts"]),
        ("expert_group_count", &["n_group"]),
        ("expert_group_used_count", &["topk_group"]),
    ] {
        if let Some(n) = config.maybe_integer(names)? {
            keys.u32(key, n)?;
        }
    }
    let gating = [
        "score_function",
        "scoring_func",
        "score_func",
        "moe_router_activation",
        "moe_router_activation_func",
        "expert_selection_fn",
    ];
    if let Some(gating) = config.find(&gating) {
        keys.u32(
            "expert_gating_func",
            match gating.as_str() {
                Some("softmax") => 1,
                Some("sigmoid") => 2,
                Some("sqrtsoftplus") => 4,
                _ => return Err(wrong("scoring_func", gating, "softmax, sigmoid or sqrtsoftplus")),
            },
        )?;
    }
    if let Some(n) = config.maybe_integer(&["head_dim"])? {
        keys.u32("attention.key_length", n)?;
        keys.u32("attention.value_length", n)?;
    }
    keys.out.set("general.file_type", Value::U32(file_type));
    Ok(())
}

fn rope(config: &Config, keys: &mut Keys<'_>) -> Result<(), Error> {
    let rope = config.full_rope();
    let number = |key: &str| rope.get(key).filter(|value| !value.is_null()).and_then(Json::as_f64);
    match (rope.get("rope_type").and_then(Json::as_str), number("factor")) {
        (Some("linear"), Some(factor)) => {
            keys.text("rope.scaling.type", "linear");
            keys.f32("rope.scaling.factor", factor);
        }
        (Some("yarn"), Some(factor)) => {
            keys.text("rope.scaling.type", "yarn");
            keys.f32("rope.scaling.factor", factor);
            let original = rope.get("original_max_position_embeddings").unwrap_or(&Json::Null);
            keys.u32(
                "rope.scaling.original_context_length",
                integer("rope_parameters.original_max_position_embeddings", original)?,
            )?;
            let attention =
                if rope.contains_key("attention_factor") { "attention_factor" } else { "attn_factor" };
            for (key, name) in [
                ("yarn_ext_factor", "extrapolation_factor"),
                ("yarn_attn_factor", attention),
                ("yarn_beta_fast", "beta_fast"),
                ("yarn_beta_slow", "beta_slow"),
            ] {
                if let Some(n) = number(name) {
                    keys.f32(&format!("rope.scaling.{key}"), n);
                }
            }
        }
        (Some("su" | "longrope"), _) => keys.text("rope.scaling.type", "longrope"),
        // llama3 is a tensor of factors; others say nothing here.
        _ => {}
    }
    if let Some(sections) = config.rope.get("mrope_section").and_then(Json::as_array) {
        let mut sections: Vec<Json> = sections.clone();
        sections.resize(sections.len().max(4), Json::from(0));
        sections.truncate(4);
        keys.one_or_many("rope.dimension_sections", &Json::Array(sections))?;
    }
    if let Some(theta) = number("rope_theta") {
        keys.f32("rope.freq_base", theta);
    }
    let local = config.rope.get("sliding_attention").and_then(|rope| rope.get("rope_theta"));
    if let Some(theta) = local.and_then(Json::as_f64) {
        keys.f32("rope.freq_base_swa", theta);
    }
    Ok(())
}
