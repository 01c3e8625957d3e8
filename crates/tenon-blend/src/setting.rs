//! Parameters as the configuration gives them: a value, a gradient over layers, or either by tensor name.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{ConfigFault, Error};

/// All parameters of one scope, by name.
pub(crate) type Settings = BTreeMap<String, Setting>;

/// What a parameter is set to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Setting {
    /// The same everywhere.
    Scalar(Scalar),
    /// From the first layer of a slice to its last.
    Gradient(Vec<Scalar>),
    /// The first whose filter is part of the tensor's name.
    Conditional(Vec<(Option<String>, Setting)>),
}

/// One value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scalar {
    Bool(bool),
    Number(f64),
}

impl Scalar {
    fn number(self) -> f64 {
        match self {
            Scalar::Bool(value) => f64::from(u8::from(value)),
            Scalar::Number(value) => value,
        }
    }

    fn bool(self) -> bool {
        match self {
            Scalar::Bool(value) => value,
            Scalar::Number(value) => value != 0.0,
        }
    }
}

impl Setting {
    /// Reads the value of a parameter at `place`.
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self, Error> {
        match value {
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let conditions =
                    items.iter().enumerate().map(|(i, item)| condition(item, &format!("{place}[{i}]")));
                Ok(Setting::Conditional(conditions.collect::<Result<_, _>>()?))
            }
            Value::Array(items) => {
                let scalars =
                    items.iter().enumerate().map(|(i, item)| scalar(item, &format!("{place}[{i}]")));
                Ok(Setting::Gradient(scalars.collect::<Result<_, _>>()?))
            }
            Value::Object(_) => Ok(Setting::Conditional(vec![condition(value, place)?])),
            value => Ok(Setting::Scalar(scalar(value, place)?)),
        }
    }

    /// Its value as a number for a tensor at `t` of the way from the slice's first layer to its last.
    pub(crate) fn number(&self, tensor: &str, t: f64) -> Option<f64> {
        match self {
            Setting::Scalar(value) => Some(value.number()),
            Setting::Gradient(values) => {
                let last = values.len().checked_sub(1)?;
                let scaled = t * last as f64;
                let before = scaled as usize;
                let (a, b) = (values[before].number(), values[(before + 1).min(last)].number());
                let part = scaled - before as f64;
                Some((1.0 - part) * a + part * b)
            }
            Setting::Conditional(_) => self.matching(tensor)?.number(tensor, t),
        }
    }

    /// Its value as a truth; a gradient of truths steps.
    pub(crate) fn bool(&self, tensor: &str, t: f64) -> Option<bool> {
        match self {
            Setting::Scalar(value) => Some(value.bool()),
            Setting::Gradient(values) => {
                let last = values.len().checked_sub(1)?;
                Some(values[(t * last as f64) as usize].bool())
            }
            Setting::Conditional(_) => self.matching(tensor)?.bool(tensor, t),
        }
    }

    fn matching(&self, tensor: &str) -> Option<&Setting> {
        let Setting::Conditional(conditions) = self else { return Some(self) };
        let matches = |filter: &Option<String>| match filter.as_deref() {
            None | Some("*") => true,
            Some(filter) => tensor.contains(filter),
        };
        conditions.iter().find(|(filter, _)| matches(filter)).map(|(_, setting)| setting)
    }
}

fn condition(value: &Value, place: &str) -> Result<(Option<String>, Setting), Error> {
    let fault = |place: String, found: &Value, expected| Error::Config {
        place,
        fault: ConfigFault::Unexpected { found: brief(found), expected },
    };
    let Value::Object(fields) = value else {
        return Err(fault(place.into(), value, "a filter and a value"));
    };
    let filter = match fields.get("filter") {
        None | Some(Value::Null) => None,
        Some(Value::String(filter)) => Some(filter.clone()),
        Some(other) => return Err(fault(format!("{place}.filter"), other, "part of a tensor's name")),
    };
    let value = fields.get("value").unwrap_or(&Value::Null);
    let place = format!("{place}.value");
    // One level, as in mergekit; deeper ones would only recurse.
    if value.is_object() || matches!(value, Value::Array(items) if items.iter().any(Value::is_object)) {
        return Err(fault(place, value, "a value or a list of values"));
    }
    Ok((filter, Setting::read(value, &place)?))
}

fn scalar(value: &Value, place: &str) -> Result<Scalar, Error> {
    let number = match value {
        Value::Bool(value) => return Ok(Scalar::Bool(*value)),
        Value::Number(number) => number.as_f64(),
        // YAML 1.1 takes `1e-3` for a text.
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => return Ok(Scalar::Bool(true)),
            "false" | "no" | "off" => return Ok(Scalar::Bool(false)),
            text => text.parse().ok(),
        },
        _ => None,
    };
    number.filter(|number| number.is_finite()).map(Scalar::Number).ok_or_else(|| Error::Config {
        place: place.into(),
        fault: ConfigFault::Unexpected { found: brief(value), expected: "a finite number, true or false" },
    })
}

/// A value as a message shows it.
pub(crate) fn brief(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
        other => other.to_string().chars().take(60).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Setting {
        Setting::read(&value, "p").unwrap()
    }

    #[test]
    fn gradients_go_from_first_to_last() {
        let gradient = read(json!([0, 0.5, 0.25, 1]));
        let at = |t| gradient.number("x", t).unwrap();
        assert_eq!([at(0.0), at(1.0), at(1.0 / 3.0), at(0.5)], [0.0, 1.0, 0.5, 0.375]);
        assert_eq!(read(json!([])).number("x", 0.5), None);
        assert_eq!(read(json!([true, false])).bool("x", 0.9), Some(true));
    }

    #[test]
    fn the_first_filter_that_matches_counts() {
        let setting = read(json!([{ "filter": "self_attn", "value": [0, 1] }, { "value": 0.5 }]));
        assert_eq!(setting.number("model.layers.1.self_attn.q_proj.weight", 0.25), Some(0.25));
        assert_eq!(setting.number("model.norm.weight", 0.25), Some(0.5));
        assert_eq!(read(json!({ "filter": "mlp", "value": 2 })).number("norm", 0.0), None);
        assert_eq!(read(json!("1e-3")).number("x", 0.0), Some(1e-3));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in
            [json!("much"), json!(null), json!([[1]]), json!([{ "value": { "value": 1 } }]), json!("inf")]
        {
            assert!(Setting::read(&bad, "p").is_err(), "{bad}");
        }
    }
}
