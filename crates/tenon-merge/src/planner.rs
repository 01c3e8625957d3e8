//! The plan under construction: which tensors come out, from where, edited by what.

use std::sync::Arc;

use serde_json::Value;
use tenon_checkpoint::{Dtype, TensorInfo};

use crate::error::ShapeMismatch;
use crate::naming::Names;
use crate::{Adapter, Edit, Error};

/// Where the bytes of an output tensor come from before any edit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Origin {
    /// Tensor of the base.
    Base(usize),
    /// Tensor that the adapter holds whole.
    Adapter(usize),
    /// Tensor of the base and `scale` times one of the adapter, added. Where that has more rows, the base's are 0.
    Sum { base: usize, delta: usize, scale: f64 },
}

/// One output tensor.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    /// Name, shape and output dtype.
    pub(crate) info: TensorInfo,
    pub(crate) origin: Origin,
    /// Dtype of the origin's bytes.
    pub(crate) stored: Dtype,
    pub(crate) edits: Vec<Arc<dyn Edit>>,
    /// What edits it, for people.
    pub(crate) method: Option<&'static str>,
    /// Whether the base has no tensor of this name.
    pub(crate) new: bool,
}

/// A plan under construction, as methods see it.
#[derive(Debug)]
pub(crate) struct Planner<'a> {
    pub(crate) adapter: &'a Adapter,
    /// The base's tensors, as [`Origin::Base`] numbers them.
    pub(crate) base_infos: &'a [TensorInfo],
    pub(crate) slots: Vec<Slot>,
    pub(crate) names: Names,
    /// `config.json` of the output.
    pub(crate) config: Value,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
    /// What the adapter's names have before the base's, such as `bert.`, if the base was saved bare.
    pub(crate) prefix: Option<String>,
}

impl Slot {
    /// The element type that the tensor has in the model, also where an adapter merged before has it in
    /// `f64` for now.
    pub(crate) fn element_type(&self) -> Dtype {
        self.info.narrow.filter(|_| self.stored == Dtype::F64).unwrap_or(self.stored)
    }
}

impl Planner<'_> {
    /// The slot of `wanted`, asked for by adapter tensor `tensor`; an error says what to do.
    pub(crate) fn resolve(&mut self, tensor: usize, wanted: &str) -> Result<usize, Error> {
        let result = self.look_up(tensor, wanted);
        if let Ok(slot) = result
            && !self.slots[slot].new
            && let Some(prefix) = wanted.strip_suffix(&self.slots[slot].info.name)
            && prefix.ends_with('.')
        {
            self.prefix = Some(prefix.into());
        }
        result
    }

    /// As [`Self::resolve`], for a question that may come to nothing.
    pub(crate) fn look_up(&self, tensor: usize, wanted: &str) -> Result<usize, Error> {
        let name = &self.adapter.tensors()[tensor].name;
        let result = self.names.resolve(name, wanted);
        if let Err(Error::NoHome { .. }) = &result {
            // Where the weight of a quantized layer would be, other tensors are.
            let module = wanted.strip_suffix(".weight").unwrap_or(wanted);
            for packed in ["qweight", "weight_packed", "weight_quantized", "weight_blocks", "weight.absmax"] {
                if self.names.exact(&format!("{module}.{packed}")).is_some() {
                    return Err(Error::QuantizedBase {
                        tensor: format!("{module}.{packed}"),
                        scheme: self.quantization().unwrap_or_else(|| packed.into()),
                    });
                }
            }
        }
        result
    }

    /// Whether the module at `path` has a weight, also if that is the tied embedding's.
    pub(crate) fn has_weight(&self, path: &str) -> bool {
        let wanted = format!("{path}.weight");
        self.names.find(&wanted).is_some() || self.tied_to(&wanted).is_some()
    }

    /// The name of an adapter tensor.
    pub(crate) fn adapter_name(&self, tensor: usize) -> &str {
        &self.adapter.tensors()[tensor].name
    }

    /// The shape of an adapter tensor.
    pub(crate) fn adapter_shape(&self, tensor: usize) -> &[u64] {
        &self.adapter.tensors()[tensor].shape
    }

    /// Whether a tensor's values are `f32` values, so that products of two are exact in `f64`.
    pub(crate) fn is_narrow(&self, tensor: usize) -> bool {
        matches!(self.adapter.tensors()[tensor].dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    /// Fails unless the slot can be computed with.
    pub(crate) fn check_editable(&self, slot: usize) -> Result<(), Error> {
        let slot = &self.slots[slot];
        if slot.stored.is_editable() {
            return Ok(());
        }
        let tensor = slot.info.name.clone();
        Err(match self.quantization() {
            Some(scheme) => Error::QuantizedBase { tensor, scheme },
            None if matches!(slot.stored, Dtype::U8 | Dtype::I8 | Dtype::I32)
                || slot.stored.name().starts_with("F8") =>
            {
                Error::QuantizedBase { tensor, scheme: slot.stored.name().into() }
            }
            None => Error::BaseDtype { tensor, dtype: slot.stored.name() },
        })
    }

    /// Adds an edit to the end of a slot's chain.
    pub(crate) fn edit(&mut self, slot: usize, method: &'static str, edit: impl Edit + 'static) {
        self.slots[slot].edits.push(Arc::new(edit));
        self.slots[slot].method = Some(method);
    }

    /// A shape error between an adapter tensor and a slot.
    pub(crate) fn shape_error(&self, tensor: usize, slot: usize, expected: String) -> Error {
        let base = &self.slots[slot].info;
        Error::Shape(Box::new(ShapeMismatch {
            tensor: self.adapter_name(tensor).into(),
            found: self.adapter_shape(tensor).into(),
            expected,
            base: base.name.clone(),
            base_shape: base.shape.clone(),
            trained_on: self.adapter.config().base_model().map(str::to_string),
        }))
    }

    /// The base's quantization scheme, as its configuration names it.
    pub(crate) fn quantization(&self) -> Option<String> {
        let config = self.config.get("quantization_config").or_else(|| self.config.get("quantization"))?;
        let method = config.get("quant_method").and_then(Value::as_str);
        Some(method.map_or_else(|| "quantization_config without quant_method".into(), str::to_string))
    }

    /// A field of `config.json`, in its own place or in the part about the language model.
    pub(crate) fn config_field(&self, field: &str) -> Option<&Value> {
        let parts = ["text_config", "llm_config", "language_config"];
        self.config
            .get(field)
            .or_else(|| parts.iter().find_map(|part| self.config.get(part).and_then(|c| c.get(field))))
    }

    /// Changes a field of `config.json` in every place that has it (top level if none does).
    pub(crate) fn set_config(&mut self, field: &str, value: Value) {
        let Value::Object(top) = &mut self.config else { return };
        let mut found = false;
        for part in ["text_config", "llm_config", "language_config"] {
            if let Some(Value::Object(part)) = top.get_mut(part)
                && part.contains_key(field)
            {
                part.insert(field.into(), value.clone());
                found = true;
            }
        }
        if top.contains_key(field) || !found {
            top.insert(field.into(), value);
        }
    }

    /// The architecture family, such as `llama`.
    pub(crate) fn model_type(&self) -> &str {
        self.config.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }
}
