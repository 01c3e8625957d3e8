//! Which type each tensor gets: the choices of `llama-quantize`, rule by rule, in its order.
//!
//! Source: `src/llama-quant.cpp` of llama.cpp build 10488, for the file types
//! that Tenon offers.

use crate::layout::GgufTensor;
use crate::tensor_types::TensorType;
use crate::{Error, GgmlType};

/// What a file is quantized to: a type for most tensors, and rules for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)] // the names that people know
pub enum Quantization {
    /// Not at all.
    NoQuantization,
    /// 8 bits, a scale for each 32.
    Q8_0,
    /// 4 bits mostly, more where it matters.
    Q4_K_M,
    /// 4 bits mostly.
    Q4_K_S,
}

impl Quantization {
    /// Its number in `general.file_type`; none where the file says what it was converted to.
    pub const fn file_type(self) -> Option<u32> {
        match self {
            Quantization::NoQuantization => None,
            Quantization::Q8_0 => Some(7),
            Quantization::Q4_K_S => Some(14),
            Quantization::Q4_K_M => Some(15),
        }
    }

    fn default_type(self) -> Option<GgmlType> {
        match self {
            Quantization::NoQuantization => None,
            Quantization::Q8_0 => Some(GgmlType::Q8_0),
            Quantization::Q4_K_M | Quantization::Q4_K_S => Some(GgmlType::Q4_K),
        }
    }
}

/// What the choice depends on besides the tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelFacts {
    pub(crate) architecture: &'static str,
    pub(crate) layers: u64,
    pub(crate) experts: u64,
    /// llama.cpp's type 70B: eight heads share an `attn_v`.
    pub(crate) is_70b: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Category {
    Output,
    TokenEmbedding,
    AttentionQkv,
    AttentionKvB,
    AttentionV,
    AttentionK,
    AttentionOutput,
    FfnDown,
    Other,
}

fn category(name: &str) -> Category {
    match name {
        "output.weight" => Category::Output,
        "token_embd.weight" | "per_layer_token_embd.weight" => Category::TokenEmbedding,
        name if name.contains("attn_qkv.weight") => Category::AttentionQkv,
        name if name.contains("attn_kv_b.weight") => Category::AttentionKvB,
        name if name.contains("attn_v.weight") => Category::AttentionV,
        name if name.contains("attn_k.weight") => Category::AttentionK,
        name if name.contains("attn_q.weight") => Category::Other,
        name if name.contains("attn_output.weight") => Category::AttentionOutput,
        name if name.contains("ffn_up") || name.contains("ffn_gate") => Category::Other,
        name if name.contains("ffn_down") => Category::FfnDown,
        _ => Category::Other,
    }
}

impl Category {
    fn is_attention_v(self) -> bool {
        matches!(self, Category::AttentionV | Category::AttentionQkv | Category::AttentionKvB)
    }
}

/// Parts of names that are never quantized.
const KEPT: [&str; 35] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

fn may_be_quantized(tensor: &GgufTensor) -> bool {
    // Extents of 1 outside do not count as dimensions.
    let dimensions = tensor.shape.iter().skip_while(|n| **n == 1).count();
    let name = tensor.name.as_str();
    dimensions >= 2
        && name.ends_with("weight")
        && !KEPT.iter().any(|kept| name.contains(kept))
        && name != "position_embd.weight"
        && name != "token_types.weight"
}

/// The types of all tensors, which must be in the order in which llama-quantize visits them.
pub(crate) fn types(
    quantization: Quantization,
    facts: ModelFacts,
    chosen: &[TensorType],
    tensors: &[GgufTensor],
) -> Result<Vec<GgmlType>, Error> {
    let Some(default) = quantization.default_type() else {
        return Ok(tensors.iter().map(|tensor| tensor.ggml_type).collect());
    };
    let mut choice = Choice {
        quantization,
        default,
        facts,
        chosen,
        attention_v: tensors.iter().filter(|t| category(&t.name).is_attention_v()).count() as u64,
        tied: !tensors.iter().any(|t| t.name == "output.weight"),
        seen_attention_v: 0,
        seen_ffn_down: 0,
    };
    tensors
        .iter()
        .map(|tensor| if may_be_quantized(tensor) { choice.of(tensor) } else { Ok(tensor.ggml_type) })
        .collect()
}

struct Choice<'a> {
    quantization: Quantization,
    default: GgmlType,
    facts: ModelFacts,
    /// Types that go before the rules.
    chosen: &'a [TensorType],
    attention_v: u64,
    tied: bool,
    seen_attention_v: u64,
    seen_ffn_down: u64,
}

/// The first and last eighth of the layers, and every third between.
fn more_bits(layer: u64, layers: u64) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

impl Choice<'_> {
    fn of(&mut self, tensor: &GgufTensor) -> Result<GgmlType, Error> {
        // One that was chosen does not count as seen, where rules count.
        let new = match self.chosen(tensor)? {
            Some(chosen) => chosen,
            None => self.wanted(tensor)?,
        };
        let width = tensor.row_len();
        if width.is_multiple_of(new.block_len()) {
            return Ok(new);
        }
        // Rows that are no whole super-blocks.
        let fallback = match new {
            GgmlType::IQ4_XS => GgmlType::IQ4_NL,
            GgmlType::Q2_K | GgmlType::Q3_K => GgmlType::Q4_0,
            GgmlType::Q4_K => GgmlType::Q5_0,
            GgmlType::Q5_K => GgmlType::Q5_1,
            GgmlType::Q6_K => GgmlType::Q8_0,
            other => {
                return Err(Error::Tensor {
                    tensor: tensor.name.clone(),
                    reason: format!(
                        "rows of {width} elements cannot be {other}, which has blocks of {}; llama-quantize refuses it too",
                        other.block_len()
                    ),
                });
            }
        };
        Ok(if width.is_multiple_of(fallback.block_len()) { fallback } else { GgmlType::F16 })
    }

    fn chosen(&self, tensor: &GgufTensor) -> Result<Option<GgmlType>, Error> {
        for chosen in self.chosen {
            if chosen.matches(&tensor.name)? {
                return Ok(Some(chosen.ggml_type()));
            }
        }
        Ok(None)
    }

    fn wanted(&mut self, tensor: &GgufTensor) -> Result<GgmlType, Error> {
        use Quantization::{Q4_K_M, Q4_K_S};
        let default = self.default;
        let is_falcon = self.facts.architecture == "falcon";
        let category = category(&tensor.name);
        if category == Category::Output || (self.tied && category == Category::TokenEmbedding) {
            let whole = tensor.row_len().is_multiple_of(default.block_len());
            return Ok(if is_falcon || !whole || default == GgmlType::Q8_0 {
                GgmlType::Q8_0
            } else {
                GgmlType::Q6_K
            });
        }
        if category == Category::TokenEmbedding {
            return Ok(default);
        }
        if category.is_attention_v() {
            let seen = self.seen_attention_v;
            self.seen_attention_v += 1;
            let mut new = match self.quantization {
                Q4_K_M if more_bits(seen, self.attention_v) => GgmlType::Q6_K,
                Q4_K_S if seen < 4 => GgmlType::Q5_K,
                _ => default,
            };
            if self.facts.is_70b && new == GgmlType::Q4_K {
                new = GgmlType::Q5_K;
            }
            return Ok(if self.facts.experts == 8 { GgmlType::Q8_0 } else { new });
        }
        Ok(match category {
            Category::AttentionK if self.facts.experts == 8 => GgmlType::Q8_0,
            Category::FfnDown => {
                let (layer, layers) = (self.layer(tensor)?, self.facts.layers);
                self.seen_ffn_down += 1;
                match self.quantization {
                    Q4_K_M if is_falcon && layer < layers / 16 => GgmlType::Q6_K,
                    Q4_K_M if is_falcon && more_bits(layer, layers) => GgmlType::Q5_K,
                    Q4_K_M if !is_falcon && more_bits(layer, layers) => GgmlType::Q6_K,
                    Q4_K_S if !is_falcon && layer < layers / 8 => GgmlType::Q5_K,
                    _ => default,
                }
            }
            Category::AttentionOutput
                if !is_falcon && self.facts.experts == 8 && matches!(self.quantization, Q4_K_M | Q4_K_S) =>
            {
                GgmlType::Q5_K
            }
            _ => default,
        })
    }

    /// The layer as llama-quantize counts it: by tensors seen, except where experts may be anywhere.
    fn layer(&self, tensor: &GgufTensor) -> Result<u64, Error> {
        if self.facts.experts <= 1 {
            return Ok(self.seen_ffn_down);
        }
        let layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        layer.filter(|layer| *layer < self.facts.layers).ok_or_else(|| Error::Tensor {
            tensor: tensor.name.clone(),
            reason: format!("it names none of the {} layers", self.facts.layers),
        })
    }
}

/// The order of llama-quantize's file: by layer, those without one first, then by name.
pub(crate) fn order(name: &str) -> (i64, &str) {
    let layer = name.strip_prefix("blk.").and_then(|rest| {
        let (layer, _) = rest.split_once('.')?;
        layer.parse().ok()
    });
    (layer.unwrap_or(-1), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_that_get_more_bits() {
        let layers: Vec<_> = (0..16).filter(|layer| more_bits(*layer, 16)).collect();
        assert_eq!(layers, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!((0..3).filter(|layer| more_bits(*layer, 3)).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn vectors_norms_and_gates_stay() {
        let tensor = |name: &str, shape: &[u64]| GgufTensor {
            name: name.into(),
            ggml_type: GgmlType::F32,
            shape: shape.into(),
        };
        for (name, shape, expected) in [
            ("blk.0.attn_q.weight", &[8u64, 256][..], true),
            ("blk.0.attn_q.bias", &[8, 256], false),
            ("blk.0.attn_norm.weight", &[8, 256], false),
            ("blk.0.ffn_gate_inp.weight", &[8, 256], false),
            ("blk.0.attn_q.weight", &[256], false),
            ("blk.0.attn_q.weight", &[1, 256], false),
            ("blk.0.ffn_up_exps.weight", &[4, 8, 256], true),
        ] {
            assert_eq!(may_be_quantized(&tensor(name, shape)), expected, "{name} {shape:?}");
        }
    }
}
