//! Uni-LoRA: LoRA whose every element is one of a short trained vector, scaled.
//!
//! `A[k, i] = t[indices_A[k, i]] * scales_A[k, i]`, `B` likewise, `W' = W + B A`, with `t` one vector for all
//! layers. Sources: Li et al. 2025; PEFT 0.21.2, `tuners/unilora/layer.py`, `model.py`.
//!
//! Unless it was saved with `save_indices`, an adapter holds `t` alone. PEFT then deals
//! the indices out anew, to layers in the order in which the model's code declares
//! them, which neither adapter nor base records.

use super::layer::{Features, Layer};
use super::product::{Factors, Pair, Product};
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "UNILORA",
    name: "Uni-LoRA",
    formula: "`W + B A`, elements of both being scaled ones of one vector; needs `save_indices`",
    source: "Li et al. 2025",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct UniLora {
    rank: u64,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        "fan_in_fan_out",
        "init_theta_d_bound",
        "init_weights",
        "proj_seed",
        "r",
        "save_indices",
        "theta_d_length",
        "unilora_dropout",
    ])?;
    if !config.flag("save_indices")? {
        return Err(config.not_understood(
            "save_indices",
            "the adapter holds one vector and not which layer takes which of its elements; PEFT deals them out by the \
             order of the layers in the model's code, which no file records. Load it with PEFT where it was trained and \
             save it again with save_indices=True",
        ));
    }
    Ok(Box::new(UniLora { rank: config.count("r")?.unwrap_or(4) }))
}

const PARAMETERS: [&str; 5] =
    ["unilora_indices_A", "unilora_scales_A", "unilora_indices_B", "unilora_scales_B", "unilora_theta_d"];

impl Method for UniLora {
    fn parameters(&self) -> &'static [&'static str] {
        &PARAMETERS
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        let vector = modules.iter().find_map(|m| m.get("unilora_theta_d"));
        let adapts = |m: &&Module| PARAMETERS[..4].iter().any(|name| m.get(name).is_some());
        for module in modules.iter().filter(adapts) {
            let need = |name: &str| module.need(name, planner);
            let (a, b) =
                ([need(PARAMETERS[0])?, need(PARAMETERS[1])?], [need(PARAMETERS[2])?, need(PARAMETERS[3])?]);
            let vector = vector.ok_or_else(|| Error::MissingPartner {
                tensor: planner.adapter_name(a[0]).into(),
                missing: "base_model.unilora_theta_d".into(),
            })?;
            let features = |tensor: usize, at: usize| planner.adapter_shape(tensor).get(at).copied();
            let features = Features { out: features(b[0], 0), input: features(a[0], 1) };
            let layer: Layer = planner.layer(module, a[0], features)?;
            if layer.is_conv() {
                return Err(planner.shape_error(a[0], layer.slot, "the weight of a linear layer".into()));
            }
            for tensor in a {
                planner.expect_shape(tensor, layer.slot, &[self.rank, layer.input])?;
            }
            for tensor in b {
                planner.expect_shape(tensor, layer.slot, &[layer.out, self.rank])?;
            }
            if planner.adapter_shape(vector).len() != 1 {
                return Err(planner.shape_error(vector, layer.slot, "a vector".into()));
            }
            let product = Product::new(planner, &layer, a[0], self.rank, 1.0, UniFactors { a, b, vector })?;
            planner.edit(layer.slot, "Uni-LoRA", product);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct UniFactors {
    /// Indices and scales.
    a: [usize; 2],
    b: [usize; 2],
    vector: usize,
}

impl Factors for UniFactors {
    fn factors(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Pair, Error> {
        let vector = adapter.values(self.vector)?;
        let elements = |[indices, scales]: [usize; 2]| -> Result<Vec<f64>, Error> {
            let scales = adapter.values(scales)?;
            let chosen = adapter.integers(indices)?.into_iter().zip(scales.iter()).map(|(found, scale)| {
                let element = usize::try_from(found).ok().and_then(|at| vector.get(at));
                element.map(|value| value * scale).ok_or_else(|| Error::Index {
                    tensor: adapter.tensors()[indices].name.clone(),
                    what: "element".into(),
                    found,
                    below: vector.len() as u64,
                })
            });
            chosen.collect()
        };
        Ok(Pair { out: elements(self.b)?, input: elements(self.a)? })
    }
}
