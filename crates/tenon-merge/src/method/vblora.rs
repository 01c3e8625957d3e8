//! VB-LoRA: LoRA whose factors are put together from a bank of vectors that all layers share.
//!
//! The bank is `[n, v]`. A sub-vector of `v` elements is the mean of `k` of the
//! bank's, those with the largest logits, weighted by the softmax of these:
//! `A [r, in]` has `in / v` of them in a row (logits `[r, in / v, n]`), `B [out, r]`
//! has `out / v` in a column (logits `[out / v, r, n]`), and `W' = W + B A`. An
//! adapter saved with `save_only_topk_weights` holds for each sub-vector the `k`
//! numbers in the bank and the first `k - 1` weights; the last makes their sum 1.
//! Sources: Li et al. 2024; PEFT 0.21.2, `tuners/vblora/layer.py`, `model.py`.

use super::layer::{Features, Layer};
use super::product::{Factors, Pair, Product};
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "VBLORA",
    name: "VB-LoRA",
    formula: "`W + B A`, sub-vectors of both being means of `k` vectors of one bank",
    source: "Li et al. 2024",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct VbLora {
    rank: u64,
    top: u64,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        "fan_in_fan_out",
        "init_logits_std",
        "init_vector_bank_bound",
        "num_vectors",
        "r",
        "save_only_topk_weights",
        "topk",
        "vblora_dropout",
        "vector_length",
    ])?;
    Ok(Box::new(VbLora { rank: config.count("r")?.unwrap_or(4), top: config.count("topk")?.unwrap_or(2) }))
}

/// The tensors of one factor: its logits, or what is left of them.
const LOGITS: [[&str; 3]; 2] = [
    ["vblora_logits_A", "vblora_logits_A_topk_indices", "vblora_logits_A_topk_weights"],
    ["vblora_logits_B", "vblora_logits_B_topk_indices", "vblora_logits_B_topk_weights"],
];

impl Method for VbLora {
    fn parameters(&self) -> &'static [&'static str] {
        const {
            &[
                LOGITS[0][0],
                LOGITS[0][1],
                LOGITS[0][2],
                LOGITS[1][0],
                LOGITS[1][1],
                LOGITS[1][2],
                "vblora_vector_bank",
            ]
        }
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        let anywhere = modules.iter().find_map(|m| m.get("vblora_vector_bank"));
        let adapts = |m: &&Module| LOGITS.iter().flatten().any(|name| m.get(name).is_some());
        for module in modules.iter().filter(adapts) {
            // Whichever is there names the module in errors.
            let first = module.tensors.values().next().copied().unwrap_or_default();
            let bank =
                module.get("vblora_vector_bank").or(anywhere).ok_or_else(|| Error::MissingPartner {
                    tensor: planner.adapter_name(first).into(),
                    missing: "base_model.vblora_vector_bank".into(),
                })?;
            let layer = planner.layer(module, first, Features::default())?;
            let &[vectors, length] = planner.adapter_shape(bank) else {
                let expected = "[vectors, length of a vector]".into();
                return Err(planner.shape_error(bank, layer.slot, expected));
            };
            let divides = |features: u64| length > 0 && features.is_multiple_of(length);
            if !divides(layer.out) || !divides(layer.input) {
                let expected = format!("a length that divides {} and {}", layer.out, layer.input);
                return Err(planner.shape_error(bank, layer.slot, expected));
            }
            if self.top > vectors {
                let config = planner.adapter.config();
                return Err(config.wrong("topk", &format!("at most the {vectors} vectors of the bank")));
            }
            let parts = [[self.rank, layer.input / length], [layer.out / length, self.rank]];
            let [a, b] = [
                self.mixture(module, LOGITS[0], parts[0], vectors, &layer, planner)?,
                self.mixture(module, LOGITS[1], parts[1], vectors, &layer, planner)?,
            ];
            let factors = VbFactors {
                a,
                b,
                bank,
                top: self.top as usize,
                vectors: vectors as usize,
                length: length as usize,
                rank: self.rank as usize,
                out: layer.out as usize,
            };
            let product = Product::new(planner, &layer, first, self.rank, 1.0, factors)?;
            planner.edit(layer.slot, "VB-LoRA", product);
        }
        Ok(())
    }
}

impl VbLora {
    /// How one factor, of `parts` sub-vectors, is mixed.
    fn mixture(
        &self,
        module: &Module,
        [logits, indices, weights]: [&str; 3],
        parts: [u64; 2],
        vectors: u64,
        layer: &Layer,
        planner: &Planner<'_>,
    ) -> Result<Mixture, Error> {
        if let Some(logits) = module.get(logits) {
            planner.expect_shape(logits, layer.slot, &[parts[0], parts[1], vectors])?;
            return Ok(Mixture::Logits(logits));
        }
        if module.get(indices).or(module.get(weights)).is_none() {
            module.need(logits, planner)?;
        }
        let (indices, weights) = (module.need(indices, planner)?, module.need(weights, planner)?);
        planner.expect_shape(indices, layer.slot, &[parts[0], parts[1], self.top])?;
        planner.expect_shape(weights, layer.slot, &[parts[0], parts[1], self.top - 1])?;
        Ok(Mixture::Top { indices, weights })
    }
}

/// Adapter tensors that say how the sub-vectors of a factor are mixed.
#[derive(Debug, Clone, Copy)]
enum Mixture {
    Logits(usize),
    Top { indices: usize, weights: usize },
}

#[derive(Debug)]
struct VbFactors {
    a: Mixture,
    b: Mixture,
    bank: usize,
    top: usize,
    vectors: usize,
    length: usize,
    rank: usize,
    out: usize,
}

impl VbFactors {
    /// All sub-vectors of a factor, one after the other.
    fn sub_vectors(&self, adapter: &Adapter, mixture: Mixture, bank: &[f64]) -> Result<Vec<f64>, Error> {
        let mut mixed = vec![];
        let mut mix = |chosen: &mut dyn Iterator<Item = (usize, f64)>| {
            let start = mixed.len();
            mixed.resize(start + self.length, 0.0);
            for (vector, weight) in chosen {
                let values = &bank[vector * self.length..][..self.length];
                mixed[start..].iter_mut().zip(values).for_each(|(m, value)| *m += weight * value);
            }
        };
        match mixture {
            Mixture::Logits(tensor) => {
                for logits in adapter.values(tensor)?.chunks_exact(self.vectors) {
                    let mut order: Vec<usize> = (0..self.vectors).collect();
                    // Of equal logits the first in the bank; which one PyTorch takes it leaves open.
                    let larger_first =
                        |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
                    if self.top < self.vectors {
                        order.select_nth_unstable_by(self.top, larger_first);
                        order.truncate(self.top);
                    }
                    order.sort_unstable_by(larger_first);
                    let exponents = order.iter().map(|at| libm::exp(logits[*at] - logits[order[0]]));
                    let exponents: Vec<f64> = exponents.collect();
                    let sum: f64 = exponents.iter().sum();
                    mix(&mut order.into_iter().zip(exponents.into_iter().map(|e| e / sum)));
                }
            }
            Mixture::Top { indices, weights } => {
                let numbers = adapter.integers(indices)?;
                let stored = adapter.values(weights)?;
                for (i, chosen) in numbers.chunks_exact(self.top).enumerate() {
                    let stored = &stored[i * (self.top - 1)..(i + 1) * (self.top - 1)];
                    let last = 1.0 - stored.iter().sum::<f64>();
                    let mut vectors = Vec::with_capacity(self.top);
                    for &found in chosen {
                        let vector = usize::try_from(found).ok().filter(|v| *v < self.vectors);
                        vectors.push(vector.ok_or_else(|| Error::Index {
                            tensor: adapter.tensors()[indices].name.clone(),
                            what: "vector".into(),
                            found,
                            below: self.vectors as u64,
                        })?);
                    }
                    mix(&mut vectors.into_iter().zip(stored.iter().copied().chain([last])));
                }
            }
        }
        Ok(mixed)
    }
}

impl Factors for VbFactors {
    fn factors(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Pair, Error> {
        let bank = adapter.values(self.bank)?;
        let input = self.sub_vectors(adapter, self.a, &bank)?;
        // `[out / v, r, v]` to `[out, r]`.
        let columns = self.sub_vectors(adapter, self.b, &bank)?;
        let mut out = vec![0.0; self.out * self.rank];
        for (at, values) in columns.chunks_exact(self.length).enumerate() {
            let (part, k) = (at / self.rank, at % self.rank);
            for (i, value) in values.iter().enumerate() {
                out[(part * self.length + i) * self.rank + k] = *value;
            }
        }
        Ok(Pair { out, input })
    }
}
