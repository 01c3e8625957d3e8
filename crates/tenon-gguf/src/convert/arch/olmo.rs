//! OLMo 1, 2 and 3, and OLMoE.

use serde_json::{Value as Json, json};

use super::super::config::{ConfigClass, Fields, fill, fill_key_value_heads, fill_null};
use super::super::parameters::Keys;
use super::experts::one_by_one;
use super::{Architecture, Incoming, Model, Names, Outputs, base_parameters, llama, names};
use crate::{Error, Value};

/// `OlmoForCausalLM`.
pub(super) struct Olmo;
/// `Olmo2ForCausalLM`, `Olmo3ForCausalLM`.
pub(super) struct Olmo2;
/// `OlmoeForCausalLM`.
pub(super) struct OlmoE;

const OLMO: ConfigClass = ConfigClass {
    model_types: &["olmo"],
    complete: |fields| {
        sizes(fields);
        fill_key_value_heads(fields);
    },
    rope_theta: Some(10000.0),
};

const OLMO2: ConfigClass = ConfigClass {
    model_types: &["olmo2"],
    complete: |fields| {
        sizes(fields);
        fill(fields, &[("rms_norm_eps", json!(1e-5))]);
        fill_key_value_heads(fields);
    },
    rope_theta: Some(10000.0),
};

const OLMO3: ConfigClass = ConfigClass {
    model_types: &["olmo3"],
    complete: |fields| {
        (OLMO2.complete)(fields);
        fill(fields, &[("sliding_window", json!(4096))]);
        fill_null(fields, "layer_types", |fields| {
            let layers = fields.get("num_hidden_layers")?.as_u64()?.min(100_000);
            let kind = |i| if (i + 1) % 4 != 0 { "sliding_attention" } else { "full_attention" };
            Some((0..layers).map(kind).collect())
        });
        nest_rope(fields);
    },
    rope_theta: Some(500_000.0),
};

fn sizes(fields: &mut Fields) {
    fill(
        fields,
        &[
            ("vocab_size", json!(50304)),
            ("hidden_size", json!(4096)),
            ("intermediate_size", json!(11008)),
            ("num_hidden_layers", json!(32)),
            ("num_attention_heads", json!(32)),
            ("max_position_embeddings", json!(2048)),
        ],
    );
}

/// Each kind of attention has its own parameters; what `rope_scaling` says is for full attention.
fn nest_rope(fields: &mut Fields) {
    if !fields.get("rope_parameters").is_some_and(Json::is_object) {
        let plain = json!({ "rope_type": "default" });
        let both = json!({ "sliding_attention": plain, "full_attention": plain });
        fields.insert("rope_parameters".into(), both);
    }
    let scaling = fields.remove("rope_scaling");
    // The first that has none takes what there is, the second the default.
    let mut theta = fields.remove("rope_theta").filter(|theta| !theta.is_null());
    let Some(Json::Object(rope)) = fields.get_mut("rope_parameters") else { return };
    for kind in ["full_attention", "sliding_attention"] {
        let one = rope.entry(kind).or_insert_with(|| json!({ "rope_type": "default" }));
        let Json::Object(one) = one else { continue };
        if let (Some(Json::Object(scaling)), "full_attention") = (&scaling, kind) {
            one.extend(scaling.clone());
        }
        one.entry("rope_theta").or_insert_with(|| theta.take().unwrap_or(json!(500_000.0)));
    }
}

const OLMOE: ConfigClass = ConfigClass {
    model_types: &["olmoe"],
    complete: |fields| {
        fill(
            fields,
            &[
                ("vocab_size", json!(50304)),
                ("hidden_size", json!(2048)),
                ("intermediate_size", json!(2048)),
                ("num_hidden_layers", json!(16)),
                ("num_attention_heads", json!(16)),
                ("max_position_embeddings", json!(4096)),
                ("rms_norm_eps", json!(1e-5)),
                ("num_experts_per_tok", json!(8)),
                ("num_experts", json!(64)),
            ],
        );
        fill_key_value_heads(fields);
    },
    rope_theta: Some(10000.0),
};

/// Norms after attention and feed-forward, not before.
const POST_NORMS: Names = &[
    ("model.layers.{}.post_attention_layernorm", "blk.{}.post_attention_norm"),
    ("model.layers.{}.post_feedforward_layernorm", "blk.{}.post_ffw_norm"),
];

impl Architecture for Olmo {
    fn classes(&self) -> &'static [&'static str] {
        &["OlmoForCausalLM", "OLMoForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "olmo"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[OLMO]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        keys.f32("attention.layer_norm_epsilon", 1e-5);
        if let Some(clip) = model.config.get("clip_qkv").and_then(Json::as_f64) {
            keys.f32("attention.clamp_kqv", clip);
        }
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        let Incoming { name, mut tensor, .. } = incoming;
        if name.ends_with(".weight") {
            tensor = llama::permute_heads(model.config, name, tensor)?;
        }
        out.map(model, name, tensor)
    }
}

impl Architecture for Olmo2 {
    fn classes(&self) -> &'static [&'static str] {
        &["Olmo2ForCausalLM", "Olmo3ForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "olmo2"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[OLMO2, OLMO3]
    }
    fn names(&self) -> &'static [Names] {
        &[POST_NORMS, names::DECODER, names::DENSE]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        if let Some(window) = model.config.maybe_integer(&["sliding_window"])? {
            keys.u32("attention.sliding_window", window)?;
            let types = model.config.get("layer_types").and_then(Json::as_array);
            let pattern = match types {
                Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
                None => (0..model.layers).map(|layer| (layer + 1) % 4 != 0).collect(),
            };
            keys.set("attention.sliding_window_pattern", Value::Bools(pattern));
        }
        Ok(())
    }
}

impl Architecture for OlmoE {
    fn classes(&self) -> &'static [&'static str] {
        &["OlmoeForCausalLM"]
    }
    fn name(&self) -> &'static str {
        "olmoe"
    }
    fn configs(&self) -> &'static [ConfigClass] {
        &[OLMOE]
    }
    fn names(&self) -> &'static [Names] {
        &[names::DECODER, names::EXPERTS]
    }
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)?;
        keys.f32("attention.layer_norm_rms_epsilon", 1e-5);
        Ok(())
    }
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        one_by_one(
            model,
            incoming,
            &["num_local_experts", "num_experts"],
            ["down_proj", "gate_proj", "up_proj"],
            out,
        )
    }
}
