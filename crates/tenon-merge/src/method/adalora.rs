//! AdaLoRA: `W' = W + alpha / (r + 1e-5) B diag(E) A`, ranks pruned while training.
//!
//! `A` is `[k, in]`, `E` `[k, 1]`, `B` `[out, k]`, where `k` of the module's
//! `r = init_r` directions are left (`rank_pattern` has a mask a module);
//! `r` stays what it was, and an alpha that is not above 0 counts as `r`.
//! Sources: Zhang et al. 2023; PEFT 0.21.2, `tuners/adalora/layer.py`, `model.py`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::factors::{Composed, Storage};
use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "ADALORA",
    name: "AdaLoRA",
    formula: "`W + alpha / (init_r + 1e-5) B diag(E) A`",
    source: "Zhang et al. 2023",
    merging: Merging::Reads(read),
};

const KNOWN: &[&str] = &[
    "beta1",
    "beta2",
    "bias",
    "deltaT",
    "fan_in_fan_out",
    "init_lora_weights",
    "init_r",
    "layer_replication",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "orth_reg_weight",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "target_r",
    "tfinal",
    "tinit",
    "total_step",
    "trainable_token_indices",
];

#[derive(Debug)]
struct AdaLora {
    init_r: u64,
    alpha: f64,
    /// What is left of modules that were pruned, by the name of their `lora_E`.
    kept: BTreeMap<String, u64>,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(KNOWN)?;
    let wrong = || config.wrong("rank_pattern", "an object from tensors to lists of true and false");
    let mut kept = BTreeMap::new();
    match config.value("rank_pattern") {
        None => {}
        Some(Value::Object(masks)) => {
            for (name, mask) in masks {
                let mask = mask.as_array().ok_or_else(wrong)?;
                let flags: Option<Vec<bool>> = mask.iter().map(Value::as_bool).collect();
                let count = flags.ok_or_else(wrong)?.into_iter().filter(|kept| *kept).count();
                kept.insert(name.clone(), count as u64);
            }
        }
        Some(_) => return Err(wrong()),
    }
    Ok(Box::new(AdaLora {
        // PEFT's own defaults.
        init_r: config.count("init_r")?.unwrap_or(12),
        alpha: config.number("lora_alpha")?.unwrap_or(8.0),
        kept,
    }))
}

impl Method for AdaLora {
    fn parameters(&self) -> &'static [&'static str] {
        &["lora_A", "lora_B", "lora_E", "ranknum"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        modules.iter().try_for_each(|module| self.plan_layer(module, planner))
    }
}

impl AdaLora {
    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        let [a, b, e] = ["lora_A", "lora_B", "lora_E"].map(|parameter| module.need(parameter, planner));
        let (a, b, e) = (a?, b?, e?);
        let feature = |tensor: usize, at: usize| planner.adapter_shape(tensor).get(at).copied();
        let features = Features { out: feature(b, 0), input: feature(a, 1) };
        let stored = feature(a, 0).unwrap_or(0);
        let layer = planner.layer(module, a, features)?;
        let name = format!("{}.lora_E", module.path);
        let kept = self.kept.get(&name).or_else(|| self.kept.get(&format!("base_model.model.{name}")));
        let kept = kept.copied().unwrap_or(self.init_r);
        if stored != kept {
            return Err(planner.rank_error(module, a, stored, kept));
        }
        planner.expect_shape(e, layer.slot, &[kept, 1])?;
        let init_r = self.init_r as f64;
        let alpha = if self.alpha > 0.0 { self.alpha } else { init_r };
        Composed {
            a: (a, Storage::Dense),
            b: (b, Storage::Dense),
            diagonal: Some(e),
            rank: kept,
            scale: alpha / (init_r + 1e-5),
        }
        .plan(&layer, "AdaLoRA", planner)
    }
}
