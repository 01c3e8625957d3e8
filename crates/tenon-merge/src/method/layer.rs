//! The layer that a module's tensors adapt: its weight seen as a matrix, and its bias.
//!
//! | layer | weight as stored | as a matrix |
//! | --- | --- | --- |
//! | linear | `[out, in]` | the same |
//! | Conv1D of the GPT-2 family | `[in, out]` | the same, `transposed` |
//! | convolution | `[out, in, k..]` | `[out, in * k..]` |

use super::Module;
use crate::Error;
use crate::planner::Planner;

/// A weight and how its matrix lies in memory.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// The weight's slot.
    pub(crate) slot: usize,
    /// The weight's shape as stored; two dimensions at least.
    pub(crate) shape: Vec<u64>,
    /// Output features: rows of the matrix unless transposed.
    pub(crate) out: u64,
    /// Input features, times the kernel's extents for a convolution.
    pub(crate) input: u64,
    /// Whether it is stored `[in, out]`.
    pub(crate) transposed: bool,
}

/// Features of a layer as the adapter's tensors have them, where they tell.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Features {
    pub(crate) out: Option<u64>,
    pub(crate) input: Option<u64>,
}

impl Layer {
    /// Rows of the matrix as stored.
    pub(crate) fn rows(&self) -> u64 {
        if self.transposed { self.input } else { self.out }
    }

    /// Columns of the matrix as stored.
    pub(crate) fn cols(&self) -> u64 {
        if self.transposed { self.out } else { self.input }
    }

    /// Whether it is a convolution.
    pub(crate) fn is_conv(&self) -> bool {
        self.shape.len() > 2
    }

    /// Elements of a convolution's kernel; 1 for a matrix.
    pub(crate) fn kernel(&self) -> u64 {
        self.shape[2..].iter().product()
    }
}

impl Planner<'_> {
    /// The layer that `module` adapts, asked for by adapter tensor `tensor`; fails unless its weight can
    /// be edited. `features` are what the adapter says of it: they tell how a Conv1D lies where the base's
    /// configuration does not.
    ///
    /// The weight of a convolution gets whole output channels as rows.
    pub(crate) fn layer(
        &mut self,
        module: &Module,
        tensor: usize,
        features: Features,
    ) -> Result<Layer, Error> {
        let slot = self.weight_slot(module, tensor)?;
        self.check_editable(slot)?;
        let shape = self.slots[slot].info.shape.clone();
        if shape.len() < 2 {
            return Err(self.shape_error(tensor, slot, "a weight of two dimensions at least".into()));
        }
        let transposed = shape.len() == 2 && self.is_transposed(module, &shape, features);
        let (mut out, mut input) = (shape[0], shape[1..].iter().product());
        if transposed {
            (out, input) = (input, out);
        }
        if shape.len() > 2 {
            self.join_rows(slot, shape[1..shape.len() - 1].iter().product());
        }
        Ok(Layer { slot, shape, out, input, transposed })
    }

    /// The bias of a layer, if it has one; fails unless that can be edited and has `out` elements.
    pub(crate) fn bias_of(&self, layer: &Layer, tensor: usize) -> Result<Option<usize>, Error> {
        let name = &self.slots[layer.slot].info.name;
        let stem = name.strip_suffix(".weight").unwrap_or(name);
        let Some(slot) = self.names.exact(&format!("{stem}.bias")) else { return Ok(None) };
        self.check_editable(slot)?;
        self.expect_base(tensor, slot, &[layer.out])?;
        Ok(Some(slot))
    }

    /// Makes `count` innermost rows of a tensor one row of its matrix.
    pub(crate) fn join_rows(&mut self, slot: usize, count: u64) {
        let info = &mut self.slots[slot].info;
        // Edits of one tensor agree: a convolution's channels, or one method's blocks.
        info.row_block = info.row_block.max(count);
    }

    /// Fails unless an adapter tensor has this shape.
    pub(crate) fn expect_shape(&self, tensor: usize, slot: usize, shape: &[u64]) -> Result<(), Error> {
        if self.adapter_shape(tensor) == shape {
            Ok(())
        } else {
            Err(self.shape_error(tensor, slot, format!("{shape:?}")))
        }
    }

    /// Fails unless a slot has this shape.
    pub(crate) fn expect_base(&self, tensor: usize, slot: usize, shape: &[u64]) -> Result<(), Error> {
        if self.slots[slot].info.shape == shape {
            Ok(())
        } else {
            Err(self.shape_error(tensor, slot, format!("a bias of {shape:?}")))
        }
    }

    /// Fails for a layer stored `[in, out]`, which PEFT's layers of some methods do not take.
    pub(crate) fn expect_plain(&self, tensor: usize, layer: &Layer) -> Result<(), Error> {
        if layer.transposed {
            let expected = "a linear layer or a convolution: PEFT has no such adapter for a Conv1D".into();
            return Err(self.shape_error(tensor, layer.slot, expected));
        }
        Ok(())
    }

    /// The error for a tensor whose rank is not the one that the configuration gives its module.
    pub(crate) fn rank_error(&self, module: &Module, tensor: usize, found: u64, expected: u64) -> Error {
        Error::Rank { module: module.path.clone(), tensor: self.adapter_name(tensor).into(), found, expected }
    }

    /// The weight of a module; the embedding where the module is an output head tied to it.
    pub(crate) fn weight_slot(&mut self, module: &Module, tensor: usize) -> Result<usize, Error> {
        let wanted = format!("{}.weight", module.path);
        let result = self.resolve(tensor, &wanted);
        if let Err(Error::NoHome { .. }) = &result
            && let Some(embedding) = self.tied_to(&wanted)
        {
            self.notes.push(format!(
                "{} is tied to {}: what the adapter adds to one, the other gets too, as when PEFT merges it",
                module.path, self.slots[embedding].info.name
            ));
            return Ok(embedding);
        }
        result
    }

    /// Whether a weight of two dimensions is stored `[in, out]`.
    fn is_transposed(&self, module: &Module, shape: &[u64], features: Features) -> bool {
        let agrees = |out: u64, input: u64| {
            features.out.is_none_or(|f| f == out) && features.input.is_none_or(|f| f == input)
        };
        let (plain, transposed) = (agrees(shape[0], shape[1]), agrees(shape[1], shape[0]));
        if plain != transposed {
            return transposed;
        }
        // A square weight does not tell. PEFT goes by the layer's class: Conv1D in the GPT-2 family,
        // for which a configuration is saved with fan_in_fan_out.
        let family = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];
        let conv1d = ["c_attn", "c_proj", "c_fc", "q_attn"];
        let last = module.path.rsplit('.').next().unwrap_or_default();
        match self.model_type() {
            "" => self.adapter.config().flag("fan_in_fan_out").unwrap_or(false),
            known => family.contains(&known) && conv1d.contains(&last),
        }
    }
}
