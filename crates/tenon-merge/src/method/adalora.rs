//! AdaLoRA: `W' = W + alpha / (r + 1e-5) B diag(E) A`, ranks pruned while training.
//!
//! `A` is `[k, in]`, `E` `[k, 1]`, `B` `[out, k]`, where `k` of the module's
//! `r = init_r` directions are left (`rank_pattern` has a mask a module);
//! `r` stays what it was, and an alpha that is not above 0 counts as `r`.
//! Sources: Zhang et al. 2023; PEFT 0.21.2, `tuners/adalora/layer.py`, `model.py`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Edit, Factor, PreparedEdit, PreparedLowRank, ValueRows, pack};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error};

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
        planner.expect_shape(a, layer.slot, &[kept, layer.input])?;
        planner.expect_shape(b, layer.slot, &[layer.out, kept])?;
        planner.expect_shape(e, layer.slot, &[kept, 1])?;
        let init_r = self.init_r as f64;
        let alpha = if self.alpha > 0.0 { self.alpha } else { init_r };
        let edit = Svd {
            a,
            b,
            e,
            rank: kept as usize,
            out: layer.out as usize,
            input: layer.input as usize,
            transposed: layer.transposed,
            scale: alpha / (init_r + 1e-5),
        };
        planner.edit(layer.slot, "AdaLoRA", edit);
        Ok(())
    }
}

/// `W += scale B diag(E) A`, or its transpose.
#[derive(Debug, Clone)]
struct Svd {
    a: usize,
    b: usize,
    e: usize,
    rank: usize,
    out: usize,
    input: usize,
    transposed: bool,
    scale: f64,
}

impl Edit for Svd {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let Self { rank, out, input, transposed, scale, .. } = *self;
        let singular = adapter.values(self.e)?;
        let of_a = Factor::by_rank(self.a, input as u64);
        let of_b = Factor::by_outer(self.b, rank as u64);
        let (left, right, rows, cols) =
            if transposed { (of_a, of_b, input, out) } else { (of_b, of_a, out, input) };
        let left = pack(adapter, &left, 1, rows, rank, false)?;
        let right = pack(adapter, &right, 1, cols, rank, true)?;
        let right = right
            .chunks_exact(cols.max(1))
            .zip(singular.iter())
            .flat_map(|(row, s)| row.iter().map(move |v| v * s))
            .collect();
        Ok(Box::new(PreparedLowRank {
            left,
            right,
            rank,
            groups: 1,
            rows_per_group: rows,
            cols,
            scale,
            exact: false,
        }))
    }
}
