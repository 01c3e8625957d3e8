//! What quantizing cost, tensor by tensor and summed up: from the figures of a conversion that was
//! written, to the records of artifacts and Live Models and to the Model Card.

use std::collections::BTreeMap;

use tenon_card::{Deployed, Loss, Quantized, TensorLoss};
use tenon_gguf::Conversion;
use tenon_gguf::quant::Quality;
use tenon_registry::{GroupQuality, LiveModel, QuantizationQuality, TensorQuality};

/// How many of the worst tensors are named.
const WORST: usize = 8;

/// Squares of what was there and of what was lost, of any number of tensors.
#[derive(Debug, Clone, Copy, Default)]
struct Squares {
    tensors: u64,
    elements: u64,
    signal: f64,
    error: f64,
}

impl Squares {
    fn add(&mut self, quality: &Quality) {
        let elements = quality.elements as f64;
        self.tensors += 1;
        self.elements += quality.elements;
        self.signal += quality.rms.powi(2) * elements;
        self.error += quality.rms_error.powi(2) * elements;
    }

    fn relative_error(&self) -> f64 {
        if self.error > 0.0 { figure((self.error / self.signal).sqrt()) } else { 0.0 }
    }

    fn group(&self, name: impl Into<String>) -> GroupQuality {
        let relative_error = self.relative_error();
        GroupQuality { name: name.into(), tensors: self.tensors, elements: self.elements, relative_error }
    }
}

/// JSON has no infinity.
fn figure(value: f64) -> f64 {
    value.min(f64::MAX)
}

fn decibels(relative_error: f64) -> Option<f64> {
    (relative_error > 0.0).then(|| -20.0 * relative_error.log10())
}

/// What a conversion that was written into `bytes` lost, and each of its tensors; nothing if none was
/// quantized, or measured.
pub(crate) fn of(conversion: &Conversion, bytes: u64) -> Option<(QuantizationQuality, Vec<TensorQuality>)> {
    let (mut all, mut mean, mut infinite_rows) = (Squares::default(), 0.0, 0);
    let mut types = BTreeMap::<&str, Squares>::new();
    let mut layers = BTreeMap::<u64, Squares>::new();
    let mut tensors = vec![];
    for (number, tensor) in conversion.gguf_tensors().iter().enumerate() {
        let Some(quality) = conversion.quality(number) else { continue };
        all.add(&quality);
        types.entry(tensor.ggml_type.name()).or_default().add(&quality);
        if let Some(layer) = layer(&tensor.name) {
            layers.entry(layer).or_default().add(&quality);
        }
        mean += figure(quality.relative_error);
        infinite_rows += quality.infinite_rows;
        tensors.push(TensorQuality {
            name: tensor.name.clone(),
            ggml_type: tensor.ggml_type.name().into(),
            relative_error: figure(quality.relative_error),
            signal_to_noise: quality.signal_to_noise.map(figure),
            rms_error: figure(quality.rms_error),
            largest_error: figure(quality.largest_error),
            infinite_rows: quality.infinite_rows,
        });
    }
    if tensors.is_empty() {
        return None;
    }
    let elements: u64 = conversion.gguf_tensors().iter().map(|tensor| tensor.elements()).sum();
    let mut types: Vec<_> = types.iter().map(|(name, squares)| squares.group(*name)).collect();
    types.sort_by_key(|group| std::cmp::Reverse(group.elements));
    let mut worst = tensors.clone();
    worst.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error));
    worst.truncate(WORST);
    let relative_error = all.relative_error();
    let quality = QuantizationQuality {
        elements,
        bits_per_weight: bytes as f64 * 8.0 / elements.max(1) as f64,
        tensors: all.tensors,
        quantized_elements: all.elements,
        relative_error,
        signal_to_noise: decibels(relative_error),
        mean_relative_error: figure(mean / tensors.len() as f64),
        infinite_rows,
        types,
        layers: layers.iter().map(|(layer, squares)| squares.group(layer.to_string())).collect(),
        worst,
    };
    Some((quality, tensors))
}

/// The layer that a tensor of a GGUF file is in: 7 of `blk.7.attn_q.weight`.
fn layer(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// A Live Model as its Complete Model's card has it.
pub(crate) fn deployed(live: &LiveModel) -> Deployed {
    Deployed {
        environment: live.environment.to_string(),
        model: live.model.clone(),
        kind: live.kind.clone(),
        created: live.created.to_string(),
        quantization: live.quantization.name().into(),
        bytes: live.bytes,
        quantized: live.quality.as_ref().map(quantized),
    }
}

fn quantized(quality: &QuantizationQuality) -> Quantized {
    let losses = |groups: &[GroupQuality]| {
        let loss = |group: &GroupQuality| Loss {
            name: group.name.clone(),
            tensors: group.tensors,
            elements: group.elements,
            relative_error: group.relative_error,
        };
        groups.iter().map(loss).collect()
    };
    let worst = quality.worst.iter().map(|tensor| TensorLoss {
        name: tensor.name.clone(),
        element_type: tensor.ggml_type.clone(),
        relative_error: tensor.relative_error,
        signal_to_noise: tensor.signal_to_noise,
        largest_error: tensor.largest_error,
    });
    Quantized {
        bits_per_weight: quality.bits_per_weight,
        tensors: quality.tensors,
        share_quantized: quality.quantized_elements as f64 / quality.elements.max(1) as f64,
        relative_error: quality.relative_error,
        mean_relative_error: quality.mean_relative_error,
        signal_to_noise: quality.signal_to_noise,
        infinite_rows: quality.infinite_rows,
        types: losses(&quality.types),
        layers: losses(&quality.layers),
        worst: worst.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_tensors_together_are_over_all_their_elements() {
        let quality = |elements, rms: f64, rms_error: f64| Quality {
            elements,
            relative_error: rms_error / rms,
            signal_to_noise: None,
            rms,
            rms_error,
            largest_error: rms_error,
            infinite_rows: 0,
        };
        let mut squares = Squares::default();
        // Three elements of 2 lost 0.5 each, one of 4 lost 1: sqrt((3 × 0.25 + 1) / (3 × 4 + 16)) = 0.25.
        squares.add(&quality(3, 2.0, 0.5));
        squares.add(&quality(1, 4.0, 1.0));
        assert!((squares.relative_error() - 0.25).abs() < 1e-12);
        assert_eq!(decibels(0.1).map(f64::round), Some(20.0));
        assert_eq!(Squares::default().relative_error(), 0.0);
        assert_eq!((layer("blk.7.attn_q.weight"), layer("output.weight")), (Some(7), None));
    }
}
