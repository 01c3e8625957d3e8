//! Experts that a checkpoint has one by one and a GGUF has stacked.

use std::collections::BTreeMap;

use super::super::view::Tensor;
use super::{Incoming, Model, Outputs};
use crate::Error;

/// Experts of layers that are not complete yet.
#[derive(Default)]
pub(crate) struct Experts {
    waiting: BTreeMap<u64, BTreeMap<String, Tensor>>,
}

impl Experts {
    /// Puts a tensor beside the others of its layer; when there are `complete` of them, all.
    pub(crate) fn gather(
        &mut self,
        layer: u64,
        name: &str,
        tensor: Tensor,
        complete: u64,
    ) -> Option<BTreeMap<String, Tensor>> {
        let layer_parts = self.waiting.entry(layer).or_default();
        layer_parts.insert(name.to_string(), tensor);
        if (layer_parts.len() as u64) < complete {
            return None;
        }
        self.waiting.remove(&layer)
    }

    /// The experts' tensors of a name, stacked in order. `name` gives that of expert number `n`.
    pub(crate) fn stack(
        parts: &mut BTreeMap<String, Tensor>,
        layer: u64,
        experts: u64,
        name: impl Fn(u64) -> String,
    ) -> Result<Tensor, Error> {
        let one = |n| {
            let name = name(n);
            parts.remove(&name).ok_or(Error::MissingExpert { layer, tensor: name, expected: experts })
        };
        let tensors: Result<Vec<_>, _> = (0..experts).map(one).collect();
        Tensor::stack(tensors?)
    }

    /// Fails if a layer's experts never became complete.
    pub(crate) fn finish(&self, experts: u64) -> Result<(), Error> {
        match self.waiting.iter().find_map(|(layer, parts)| Some((*layer, parts.keys().next()?))) {
            Some((layer, name)) => {
                Err(Error::IncompleteExperts { layer, tensor: name.clone(), expected: experts })
            }
            None => Ok(()),
        }
    }
}

/// Experts that come as `mlp.experts.N.…`, stacked in the order of `projections`; other tensors by name.
pub(super) fn one_by_one(
    model: &Model<'_>,
    incoming: Incoming<'_>,
    count: &[&str],
    projections: [&str; 3],
    out: &mut Outputs,
) -> Result<(), Error> {
    let Incoming { name, tensor, layer } = incoming;
    let (true, Some(layer)) = (name.contains("mlp.experts"), layer) else {
        return out.map(model, name, tensor);
    };
    let experts = model.config.integer_of(count)?;
    let Some(mut parts) = out.experts.gather(layer, name, tensor, experts * 3) else { return Ok(()) };
    for projection in projections {
        let name = |n| format!("model.layers.{layer}.mlp.experts.{n}.{projection}.weight");
        let stacked = Experts::stack(&mut parts, layer, experts, name)?;
        out.map(model, &format!("model.layers.{layer}.mlp.experts.{projection}.weight"), stacked)?;
    }
    Ok(())
}
