//! TinyLoRA: `W' = W + B R A`, with `R = sum_i v_i P_i` made of a handful of trained numbers.
//!
//! `A [r, in]` and `B [out, r]` are the base's own largest singular directions, `P [u, r, r]` is random, and all
//! three are in the file. `v [u]` is shared by a run of layers: with `n` layers, `g = max(1, round(n (1 - weight_tying)))`
//! vectors and runs of `max(1, n / g)`, layer number `i` takes vector `min(i / run, g - 1)`. Source: PEFT 0.21.2,
//! `tuners/tinylora/layer.py`, `model.py`.
//!
//! Which number a layer has, the order in which the model's code declares it, no
//! file says. But its `P` was drawn from the seed `projection_seed + i`: drawing the
//! first numbers of every `P` again tells whose it is. An adapter without `P` does
//! not tell.

use super::layer::Features;
use super::product::{Factors, Pair, Product};
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::random::Generator;
use crate::{Adapter, AdapterConfig, Error, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "TINYLORA",
    name: "TinyLoRA",
    formula: "`W + B (Σ v_i P_i) A`; needs `save_projection`",
    source: "PEFT, `tuners/tinylora`",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct TinyLora {
    rank: u64,
    numbers: u64,
    tying: f64,
    seed: u64,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        "fan_in_fan_out",
        "init_v_bound",
        "init_weights",
        "projection_seed",
        "r",
        "save_projection",
        "tinylora_dropout",
        "u",
        "weight_tying",
    ])?;
    let tying = config.number("weight_tying")?.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&tying) {
        return Err(config.wrong("weight_tying", "a number from 0 to 1"));
    }
    Ok(Box::new(TinyLora {
        rank: config.count("r")?.unwrap_or(2),
        numbers: config.count("u")?.unwrap_or(64),
        tying,
        seed: config.seed("projection_seed")?.unwrap_or(42),
    }))
}

impl Method for TinyLora {
    fn parameters(&self) -> &'static [&'static str] {
        &["tinylora_A", "tinylora_B", "tinylora_P", "tinylora_v.*"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        let adapts =
            |m: &&Module| ["tinylora_A", "tinylora_B", "tinylora_P"].iter().any(|p| m.get(p).is_some());
        let layers: Vec<_> = modules.iter().filter(adapts).collect();
        let count = layers.len();
        // As Python rounds, half to even.
        let groups = ((count as f64 * (1.0 - self.tying)).round_ties_even() as usize).max(1);
        let run = (count / groups).max(1);
        let shared = modules.iter().find(|m| m.tensors.keys().any(|name| name.starts_with("tinylora_v.")));
        for module in layers {
            let (a, b) = (module.need("tinylora_A", planner)?, module.need("tinylora_B", planner)?);
            let p = module.need("tinylora_P", planner)?;
            let features = |tensor: usize, at: usize| planner.adapter_shape(tensor).get(at).copied();
            let features = Features { out: features(b, 0), input: features(a, 1) };
            let layer = planner.layer(module, a, features)?;
            let rank = self.rank.min(layer.out).min(layer.input);
            if layer.is_conv() {
                return Err(planner.shape_error(a, layer.slot, "the weight of a linear layer".into()));
            }
            planner.expect_shape(a, layer.slot, &[rank, layer.input])?;
            planner.expect_shape(b, layer.slot, &[layer.out, rank])?;
            planner.expect_shape(p, layer.slot, &[self.numbers, rank, rank])?;
            let mut vectors = vec![];
            for group in 0..groups.min(count.div_ceil(run)) {
                let vector = shared.and_then(|m| m.get(&format!("tinylora_v.{group}")));
                let vector = vector.ok_or_else(|| Error::MissingPartner {
                    tensor: planner.adapter_name(a).into(),
                    missing: format!("base_model.tinylora_v.{group}"),
                })?;
                planner.expect_shape(vector, layer.slot, &[self.numbers])?;
                vectors.push(vector);
            }
            let factors = TinyFactors { a, b, p, vectors, run, count, seed: self.seed, rank: rank as usize };
            let product = Product::new(planner, &layer, a, rank, 1.0, factors)?;
            planner.edit(layer.slot, "TinyLoRA", product);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct TinyFactors {
    a: usize,
    b: usize,
    p: usize,
    /// By group.
    vectors: Vec<usize>,
    run: usize,
    /// Layers in all.
    count: usize,
    seed: u64,
    rank: usize,
}

impl TinyFactors {
    /// The number of the layer whose projections these are.
    fn number(&self, projections: &[f64], adapter: &Adapter) -> Result<usize, Error> {
        let deviation = 1.0 / (self.rank as f64).sqrt();
        let off = |layer: usize| {
            let mut generator = Generator::seeded(self.seed.wrapping_add(layer as u64));
            let drawn = generator.first_normals(projections.len(), deviation);
            drawn.iter().zip(projections).fold(0.0f64, |most, (d, p)| most.max((d - p).abs() / deviation))
        };
        let nearest = (0..self.count).map(|layer| (off(layer), layer)).min_by(|a, b| a.0.total_cmp(&b.0));
        match nearest {
            // They may have been rounded to 16 bits on the way.
            Some((off, layer)) if off < 0.02 => Ok(layer),
            _ => Err(Error::Field {
                path: adapter.weights().path().into(),
                field: adapter.tensors()[self.p].name.clone(),
                found: "none that projection_seed gives any of the adapter's layers".into(),
                expected: "what it gives one of them, for that tells which tinylora_v the layer takes".into(),
            }),
        }
    }
}

impl Factors for TinyFactors {
    fn factors(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Pair, Error> {
        let projections = adapter.values(self.p)?;
        let group = match self.vectors.len() {
            1 => 0,
            groups => (self.number(&projections, adapter)? / self.run).min(groups - 1),
        };
        let vector = adapter.values(self.vectors[group])?;
        let rank = self.rank;
        let mut mixed = vec![0.0; rank * rank];
        for (v, projection) in vector.iter().zip(projections.chunks_exact(rank * rank)) {
            mixed.iter_mut().zip(projection).for_each(|(sum, p)| *sum += v * p);
        }
        let b = adapter.values(self.b)?;
        let mut out = vec![0.0; b.len()];
        for (sums, b) in out.chunks_exact_mut(rank).zip(b.chunks_exact(rank)) {
            for (b, row) in b.iter().zip(mixed.chunks_exact(rank)) {
                sums.iter_mut().zip(row).for_each(|(sum, m)| *sum += b * m);
            }
        }
        Ok(Pair { out, input: adapter.values(self.a)?.to_vec() })
    }
}
