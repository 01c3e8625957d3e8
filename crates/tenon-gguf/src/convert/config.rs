//! `config.json` as the converter sees it: read through transformers, which fills in what is missing.
//!
//! llama.cpp's converter loads configurations with `AutoConfig`, so a key that
//! a file does not have has its class's default (an old Llama without
//! `head_dim` gets one), and what describes rotary embeddings is gathered into
//! `rope_parameters`. Architectures give their classes' defaults; the rest is
//! here. Source: transformers 5.23, `configuration_utils.py`,
//! `modeling_rope_utils.py`; llama.cpp build 10488, `conversion/base.py`.

use serde_json::{Map, Value as Json, json};

use crate::Error;

/// The fields of a configuration.
pub(crate) type Fields = Map<String, Json>;

/// A model's configuration, completed.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    fields: Fields,
    /// Where rotary embeddings are described.
    pub(crate) rope: Fields,
    /// Name of the class that the checkpoint was saved from.
    pub(crate) class: String,
    /// `architectures` of the outermost configuration.
    pub(crate) outer_class: String,
    /// Its `model_type`.
    pub(crate) outer_model_type: String,
}

/// Classes of configurations, by `model_type`.
pub(crate) struct ConfigClass {
    pub(crate) model_types: &'static [&'static str],
    /// Puts in what is missing.
    pub(crate) complete: fn(&mut Fields),
    /// `rope_theta` where nothing says it; none for models without rotary embeddings.
    pub(crate) rope_theta: Option<f64>,
}

/// Puts in defaults: for keys that are missing.
pub(crate) fn fill(fields: &mut Fields, defaults: &[(&str, Json)]) {
    for (key, value) in defaults {
        if !fields.contains_key(*key) {
            fields.insert((*key).to_string(), value.clone());
        }
    }
}

/// Moves a field to the name that its class keeps it under.
pub(crate) fn rename(fields: &mut Fields, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_string(), value);
    }
}

/// Puts in a value computed from others where there is none, or `null`.
pub(crate) fn fill_null(fields: &mut Fields, key: &str, value: impl FnOnce(&Fields) -> Option<Json>) {
    if fields.get(key).is_none_or(Json::is_null)
        && let Some(value) = value(fields)
    {
        fields.insert(key.to_string(), value);
    }
}

/// `num_key_value_heads` is `num_attention_heads`, `head_dim` is a head's share of `hidden_size`.
pub(crate) fn fill_heads(fields: &mut Fields) {
    fill_null(fields, "head_dim", |fields| {
        let heads = fields.get("num_attention_heads")?.as_u64()?;
        Some(json!(fields.get("hidden_size")?.as_u64()?.checked_div(heads)?))
    });
    fill_key_value_heads(fields);
}

/// `num_key_value_heads` is `num_attention_heads` where nothing else is said.
pub(crate) fn fill_key_value_heads(fields: &mut Fields) {
    fill_null(fields, "num_key_value_heads", |fields| fields.get("num_attention_heads").cloned());
}

impl Config {
    pub(crate) fn new(json: &Json, classes: &[&ConfigClass]) -> Result<Self, Error> {
        let Json::Object(mut outer) = json.clone() else {
            return Err(wrong("config.json", json, "an object"));
        };
        for name in ["llm_config", "lm_config", "language_config"] {
            if let Some(inner) = outer.get(name).filter(|inner| inner.is_object()).cloned() {
                outer.insert("text_config".into(), inner);
            }
        }
        let outer_class = class_of(&outer).unwrap_or_default();
        let class_in = |fields: &Fields| {
            let model_type = fields.get("model_type").and_then(Json::as_str)?;
            classes.iter().find(|class| class.model_types.contains(&model_type))
        };
        let mut fields = outer.clone();
        let mut class = outer_class.clone();
        if let Some(Json::Object(inner)) = outer.get("text_config") {
            let mut inner = inner.clone();
            if let Some(name) = class_of(&inner) {
                class = name;
            }
            if let Some(known) = class_in(&inner) {
                complete(&mut inner, known);
            }
            fields.extend(inner);
        } else if let Some(known) = class_in(&fields) {
            complete(&mut fields, known);
        }
        if class.is_empty() {
            return Err(wrong(
                "architectures",
                outer.get("architectures").unwrap_or(&Json::Null),
                "a list of one class",
            ));
        }
        let rope = rope(&fields);
        let outer_model_type = outer.get("model_type").and_then(Json::as_str).unwrap_or_default().to_string();
        Ok(Self { fields, rope, class, outer_class, outer_model_type })
    }

    /// Sets a field, for an architecture that reads it under another name.
    pub(crate) fn set(&mut self, key: &str, value: Json) {
        self.fields.insert(key.into(), value);
    }

    /// A field that is there and not `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&Json> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// The first of the fields that is there, even as `null`; its value if it has one.
    pub(crate) fn find(&self, keys: &[&str]) -> Option<&Json> {
        keys.iter().find_map(|key| self.fields.get(*key)).filter(|value| !value.is_null())
    }

    /// The name under which one of the fields is there, or would be.
    fn name<'a>(&self, keys: &[&'a str]) -> &'a str {
        keys.iter().find(|key| self.fields.contains_key(**key)).unwrap_or(&keys[0])
    }

    /// A whole number.
    pub(crate) fn integer(&self, key: &str) -> Result<u64, Error> {
        self.integer_of(&[key])
    }

    /// A whole number, under the first of several names.
    pub(crate) fn integer_of(&self, keys: &[&str]) -> Result<u64, Error> {
        integer(self.name(keys), self.find(keys).unwrap_or(&Json::Null))
    }

    /// A whole number, if it is there.
    pub(crate) fn maybe_integer(&self, keys: &[&str]) -> Result<Option<u64>, Error> {
        self.find(keys).map(|value| integer(self.name(keys), value)).transpose()
    }

    /// A number.
    pub(crate) fn number(&self, keys: &[&str]) -> Result<f64, Error> {
        let value = self.find(keys).unwrap_or(&Json::Null);
        value.as_f64().ok_or_else(|| wrong(self.name(keys), value, "a number"))
    }

    /// A truth.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Json::as_bool)
    }

    /// Layers.
    pub(crate) fn layers(&self) -> Result<u64, Error> {
        let layers = self.integer_of(&["n_layers", "num_hidden_layers", "n_layer", "num_layers"])?;
        if layers == 0 || layers > 100_000 {
            return Err(wrong("num_hidden_layers", &json!(layers), "between 1 and 100000"));
        }
        Ok(layers)
    }

    /// The parameters of rotary embeddings of layers with full attention.
    pub(crate) fn full_rope(&self) -> &Fields {
        self.rope.get("full_attention").and_then(Json::as_object).unwrap_or(&self.rope)
    }
}

/// A field that is not what it has to be.
pub(crate) fn wrong(field: &str, found: &Json, expected: &'static str) -> Error {
    let found =
        if found.is_null() { "missing".to_string() } else { found.to_string().chars().take(80).collect() };
    Error::Config { field: field.into(), found, expected }
}

/// A whole number, also one that is written as `3.0`. The product of two is one of 64 bits.
pub(crate) fn integer(field: &str, value: &Json) -> Result<u64, Error> {
    let whole = |n: f64| ((0.0..9e15).contains(&n) && n.fract() == 0.0).then_some(n as u64);
    let found = value.as_u64().or_else(|| value.as_f64().and_then(whole));
    found.filter(|n| *n < 1 << 32).ok_or_else(|| wrong(field, value, "a whole number of 32 bits"))
}

fn class_of(fields: &Fields) -> Option<String> {
    Some(fields.get("architectures")?.get(0)?.as_str()?.to_string())
}

fn complete(fields: &mut Fields, class: &ConfigClass) {
    (class.complete)(fields);
    standardize_rope(fields, class.rope_theta);
}

/// What transformers makes of `rope_scaling`, `rope_theta` and `partial_rotary_factor`.
fn standardize_rope(fields: &mut Fields, default_theta: Option<f64>) {
    let Some(default_theta) = default_theta else { return };
    let scaling =
        fields.remove("rope_scaling").filter(|value| value.as_object().is_some_and(|o| !o.is_empty()));
    let mut rope = match scaling.or_else(|| fields.remove("rope_parameters")) {
        Some(Json::Object(rope)) => rope,
        _ => Fields::new(),
    };
    let theta = fields.remove("rope_theta").filter(|value| !value.is_null()).unwrap_or(json!(default_theta));
    let partial = fields.get("partial_rotary_factor").filter(|value| !value.is_null()).cloned();
    let original = fields.get("original_max_position_embeddings").cloned();
    let longest = fields.get("max_position_embeddings").cloned();
    let one = |rope: &mut Fields, nested: bool| {
        let old = rope.get("type").cloned().unwrap_or(json!("default"));
        rope.entry("rope_theta").or_insert_with(|| theta.clone());
        if let Some(partial) = &partial {
            rope.entry("partial_rotary_factor").or_insert_with(|| partial.clone());
        }
        rope.entry("rope_type").or_insert(old);
        let kind = rope.get("rope_type").and_then(Json::as_str).unwrap_or_default();
        if ["llama3", "yarn", "longrope"].contains(&kind) {
            let key = "original_max_position_embeddings";
            match (&original, nested) {
                (Some(original), false) => {
                    rope.insert(key.into(), original.clone());
                }
                _ => {
                    rope.entry(key).or_insert_with(|| longest.clone().unwrap_or_default());
                }
            }
        }
    };
    if is_nested(&rope) {
        rope.values_mut().filter_map(Json::as_object_mut).for_each(|rope| one(rope, true));
    } else {
        one(&mut rope, false);
    }
    fields.insert("rope_parameters".into(), Json::Object(rope));
}

/// Whether there are parameters for each kind of attention.
fn is_nested(rope: &Fields) -> bool {
    ["full_attention", "sliding_attention", "chunked_attention", "linear_attention"]
        .iter()
        .any(|kind| rope.contains_key(*kind))
}

/// The converter's gathering of the same, on top.
fn rope(fields: &Fields) -> Fields {
    let first = |keys: &[&str]| {
        keys.iter().find_map(|key| fields.get(*key)).filter(|value| !value.is_null()).cloned()
    };
    let found = fields.get("rope_parameters").or_else(|| fields.get("rope_scaling"));
    let mut rope = found.and_then(Json::as_object).cloned().unwrap_or_default();
    if rope.contains_key("full_attention") || rope.contains_key("sliding_attention") {
        return rope;
    }
    let theta =
        ["global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"];
    let local = [
        "local_rope_theta",
        "rope_local_theta",
        "rope_theta_local",
        "swa_rope_theta",
        "rope_local_base_freq",
    ];
    if let Some(theta) = first(&local) {
        rope.insert("sliding_attention".into(), json!({ "rope_theta": theta }));
    }
    let mut mirror = |key: &str, value: Option<Json>| {
        if let Some(value) = value
            && !rope.contains_key(key)
        {
            rope.insert(key.to_string(), value);
        }
    };
    mirror("rope_theta", first(&theta));
    mirror("partial_rotary_factor", first(&["partial_rotary_factor", "rope_pct", "rope_percent"]));
    mirror("original_max_position_embeddings", first(&["original_max_position_embeddings"]));
    if let Some(kind) = rope.get("type").filter(|kind| !kind.is_null()).cloned() {
        rope.entry("rope_type").or_insert(kind);
    }
    rope
}
