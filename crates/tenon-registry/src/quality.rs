//! What quantizing cost a model, as it was measured while that was done.

use serde::{Deserialize, Serialize};

/// What quantizing did to all tensors of a model. Errors are relative: `‖decoded - x‖ / ‖x‖`,
/// Euclidean norms over all elements together, signal to noise `-20 log10` of that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizationQuality {
    /// Elements of all tensors, quantized or not.
    pub elements: u64,
    /// Bits of the file for each of them.
    pub bits_per_weight: f64,
    /// Tensors that were quantized.
    pub tensors: u64,
    /// Their elements.
    pub quantized_elements: u64,
    /// Over all of these.
    pub relative_error: f64,
    /// The same in decibels; none where nothing was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_to_noise: Option<f64>,
    /// Mean over the tensors of each one's relative error.
    pub mean_relative_error: f64,
    /// Rows with what is no finite number, which no other figure counts.
    #[serde(default)]
    pub infinite_rows: u64,
    /// By element type of the file, most elements first.
    pub types: Vec<GroupQuality>,
    /// By layer, in order.
    #[serde(default)]
    pub layers: Vec<GroupQuality>,
    /// The tensors that lost most, worst first.
    pub worst: Vec<TensorQuality>,
}

/// What quantizing did to some tensors of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupQuality {
    /// An element type such as `Q4_K`, or the number of a layer.
    pub name: String,
    /// Tensors in it.
    pub tensors: u64,
    /// Their elements.
    pub elements: u64,
    /// Over all of these.
    pub relative_error: f64,
}

/// What quantizing did to a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorQuality {
    /// Its name in the file.
    pub name: String,
    /// Its element type there.
    #[serde(rename = "type")]
    pub ggml_type: String,
    /// `‖decoded - x‖ / ‖x‖`.
    pub relative_error: f64,
    /// The same in decibels; none where nothing was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_to_noise: Option<f64>,
    /// Root of the mean square of `decoded - x`.
    pub rms_error: f64,
    /// The largest `|decoded - x|`.
    pub largest_error: f64,
    /// Rows with what is no finite number, which the other figures leave out.
    #[serde(default)]
    pub infinite_rows: u64,
}
