//! Types chosen by hand or by another program, before any rule of `llama-quantize`: its `--tensor-type`.

use std::fmt;
use std::str::FromStr;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use crate::convert::architecture;
use crate::select::Quantization;
use crate::{Error, GgmlType};

/// A type for all tensors that would be quantized and whose names match a pattern.
///
/// Written `PATTERN=TYPE`, such as `attn_v=q8_0`. The pattern is a regular expression in lower case that
/// matches anywhere in a name. Of several the first that matches counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TensorType {
    pattern: Regex,
    ggml_type: GgmlType,
}

impl TensorType {
    /// Whether a tensor of this name gets the type.
    pub(crate) fn matches(&self, name: &str) -> Result<bool, Error> {
        self.pattern.is_match(name).map_err(|error| Error::TensorType {
            found: self.to_string(),
            reason: format!("matching it with {name:?} failed: {error}"),
        })
    }

    /// The type.
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern.as_str(), self.ggml_type.name().to_ascii_lowercase())
    }
}

impl From<TensorType> for String {
    fn from(one: TensorType) -> Self {
        one.to_string()
    }
}

impl TryFrom<String> for TensorType {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for TensorType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::TensorType { found: text.into(), reason };
        let Some((pattern, name)) = text.split_once('=').filter(|(pattern, _)| !pattern.is_empty()) else {
            return Err(wrong("expected PATTERN=TYPE, such as attn_v=q8_0".into()));
        };
        let known = GgmlType::WRITTEN.into_iter();
        let Some(ggml_type) = known.clone().find(|known| known.name().eq_ignore_ascii_case(name)) else {
            let names: Vec<String> = known.map(|known| known.name().to_ascii_lowercase()).collect();
            return Err(wrong(format!("expected one of {} behind the =", names.join(", "))));
        };
        // As llama-quantize does.
        let pattern = Regex::new(&pattern.to_ascii_lowercase()).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { pattern, ggml_type })
    }
}

/// Whose rules choose the types of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rules {
    /// llama.cpp's `llama-quantize`.
    #[default]
    LlamaQuantize,
    /// Those of Ollama when it quantizes itself: the same but for a few tensors.
    Ollama,
}

impl Rules {
    /// The types that these choose for a model with this `config.json`, before the rules of `llama-quantize`.
    ///
    /// # Errors
    /// For an architecture that is not known.
    pub fn chosen(
        self,
        config: &serde_json::Value,
        quantization: Quantization,
    ) -> Result<Vec<TensorType>, Error> {
        Ok(self.tensor_types(architecture(config)?, quantization))
    }

    /// The types that it chooses before those of `llama-quantize`.
    ///
    /// Source: Ollama, `server/quantization.go`, `llamaQuantizeArgs`.
    pub(crate) fn tensor_types(self, architecture: &str, quantization: Quantization) -> Vec<TensorType> {
        if self == Rules::LlamaQuantize
            || !matches!(quantization, Quantization::Q4_K_M | Quantization::Q4_K_S)
        {
            return vec![];
        }
        let chosen: &[&str] = match architecture {
            "qwen35" | "qwen35moe" => &[r"^blk\.[0-9]+\.nextn\.eh_proj\.weight$=q8_0"],
            "gemma3n" => &[r"^per_layer_token_embd\.weight$=f16"],
            "deepseek2" => &[
                r"attn_k_b\.weight$=q8_0",
                r"attn_q_a\.weight$=q8_0",
                r"attn_q_b\.weight$=q8_0",
                r"attn_v_b\.weight$=q8_0",
                r"attn_kv_a_mqa\.weight$=q8_0",
            ],
            "glm4" => &[r"^token_embd\.weight$=f16", r"^output\.weight$=f16"],
            _ => &[],
        };
        chosen.iter().map(|text| text.parse().expect("a pattern and a type")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_types_are_read_as_llama_quantize_reads_them() {
        let one: TensorType = r"BLK\.[0-9]+\.attn_v=Q8_0".parse().unwrap();
        assert_eq!(one.to_string(), r"blk\.[0-9]+\.attn_v=q8_0");
        assert_eq!(one.ggml_type(), GgmlType::Q8_0);
        assert!(one.matches("blk.11.attn_v.weight").unwrap());
        assert!(!one.matches("blk.x.attn_v.weight").unwrap());
        for (text, reason) in [
            ("attn_v", "expected PATTERN=TYPE"),
            ("=q8_0", "expected PATTERN=TYPE"),
            ("attn_v=", "expected one of"),
            ("attn_v=q9_0", "expected one of f32, f16"),
            ("attn_v=mxfp4", "expected one of"),
            ("attn_(=q8_0", "arenthes"),
        ] {
            let error = text.parse::<TensorType>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn ollamas_are_patterns_and_only_for_four_bits() {
        for architecture in ["qwen35", "qwen35moe", "gemma3n", "deepseek2", "glm4"] {
            assert!(!Rules::Ollama.tensor_types(architecture, Quantization::Q4_K_S).is_empty());
            assert!(Rules::Ollama.tensor_types(architecture, Quantization::Q8_0).is_empty());
            assert!(Rules::LlamaQuantize.tensor_types(architecture, Quantization::Q4_K_M).is_empty());
        }
        assert!(Rules::Ollama.tensor_types("llama", Quantization::Q4_K_M).is_empty());
    }
}
