//! RandLoRA: a full-rank update from random bases that all layers share, each
//! scaled by trained vectors.
//!
//! With rank `r`, the smaller of a layer's dimensions `min`, the larger `max`, and
//! `n = ceil(min / r)` bases, `A` is `[r, 1, min]`, `B` is `[max, n, r]`, both cut from
//! one pair that is as large as the largest layer. Trained are `l [r, n]` and
//! `g [n, min]`. With `s = alpha / r`,
//!
//! `delta[p, q] = s * sum_j B[p, j / r, j % r] * l[k, b] A[k, 0, q] g[b, q]`, `k = j / n`, `b = j % n`,
//!
//! where `p` runs over the larger dimension (the outputs of a square layer). That
//! `B` counts its bases outermost and `A g` innermost is PEFT's way. Sources:
//! Albert et al. 2025; PEFT 0.21.2, `tuners/randlora/layer.py`, `model.py`.
//!
//! An adapter may leave `A` and `B` out (`save_projection: false`). They are then
//! drawn anew from its seed, as PyTorch draws them ([`crate::random`]), and
//! rounded to the base's element type, as PEFT does when it loads the adapter.
//! Dense bases are drawn in bfloat16, as on any machine that has it.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use tenon_checkpoint::Dtype;

use super::layer::{Features, Layer};
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::random::{Generator, rounded};
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, Tile, ValueRows, kernel};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "RANDLORA",
    name: "RandLoRA",
    formula: "`W + s Σ_n B_n diag(l_n) A diag(g_n)`, `A` and `B` shared by all layers; drawn from the seed where they were \
              not saved",
    source: "Albert et al. 2025",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct RandLora {
    rank: u64,
    scale: f64,
    seed: u64,
    saved: bool,
    density: Density,
}

/// How the bases are drawn.
#[derive(Debug, Clone, Copy)]
enum Density {
    Dense,
    /// One element in three is not zero.
    Sparse,
    /// Two elements in the square root of the smaller dimension are not zero.
    VerySparse,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        "fan_in_fan_out",
        "init_weights",
        "projection_prng_key",
        "r",
        "randlora_alpha",
        "randlora_dropout",
        "save_projection",
        "sparse",
        "very_sparse",
    ])?;
    let rank = config.count("r")?.unwrap_or(32);
    Ok(Box::new(RandLora {
        rank,
        scale: config.number("randlora_alpha")?.unwrap_or(640.0) / rank as f64,
        seed: config.seed("projection_prng_key")?.unwrap_or(0),
        saved: config.value("save_projection").is_none() || config.flag("save_projection")?,
        density: match (config.flag("very_sparse")?, config.flag("sparse")?) {
            (true, _) => Density::VerySparse,
            (false, true) => Density::Sparse,
            (false, false) => Density::Dense,
        },
    }))
}

impl Method for RandLora {
    fn parameters(&self) -> &'static [&'static str] {
        &["randlora_A", "randlora_B", "randlora_lambda", "randlora_gamma"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        let trained = |m: &&Module| m.get("randlora_lambda").or(m.get("randlora_gamma")).is_some();
        let mut layers = vec![];
        for module in modules.iter().filter(trained) {
            let lambda = module.need("randlora_lambda", planner)?;
            let gamma = module.need("randlora_gamma", planner)?;
            let layer = planner.layer(module, gamma, Features::default())?;
            let bases = layer.out.min(layer.input).div_ceil(self.rank);
            planner.expect_shape(lambda, layer.slot, &[self.rank, bases])?;
            planner.expect_shape(gamma, layer.slot, &[bases, layer.out.min(layer.input)])?;
            layers.push((module, layer, lambda, gamma));
        }
        let extent =
            |size: fn(&Layer) -> u64| layers.iter().map(|(_, layer, ..)| size(layer)).max().unwrap_or(0);
        let (out, input) = (extent(|layer| layer.out), extent(|layer| layer.input));
        let largest = [out.min(input), out.max(input)];
        let anywhere = |name: &str| modules.iter().find_map(|m| m.get(name));
        let (a, b) = (anywhere("randlora_A"), anywhere("randlora_B"));
        let drawn =
            if !self.saved && a.or(b).is_none() { self.drawn(&layers, largest, planner) } else { None };
        if drawn.is_some() {
            planner.note_drawn("bases", "projection_prng_key");
        }
        // Saved at each layer and once more for all: the one that all can share.
        let common = modules.iter().find(|m| m.path == "base_model");
        let find = |module: &Module, name: &str| {
            common.and_then(|m| m.get(name)).or(module.get(name)).or(anywhere(name))
        };
        for (module, layer, lambda, gamma) in layers {
            if let (Some(a), Some(b)) = (module.get("randlora_A"), module.get("randlora_B")) {
                self.saved(&layer, largest, [a, b], planner)?;
            }
            let pair = (find(module, "randlora_A"), find(module, "randlora_B"));
            let bases = match (pair, &drawn) {
                ((Some(a), Some(b)), _) => self.saved(&layer, largest, [a, b], planner)?,
                ((None, None), Some(drawn)) => Bases::Drawn(drawn.clone()),
                _ => {
                    return Err(Error::MissingPartner {
                        tensor: planner.adapter_name(lambda).into(),
                        missing: "base_model.randlora_A and base_model.randlora_B".into(),
                    });
                }
            };
            let edit = Update {
                lambda,
                gamma,
                bases,
                rank: self.rank as usize,
                count: layer.out.min(layer.input).div_ceil(self.rank) as usize,
                larger: layer.out.max(layer.input) as usize,
                smaller: layer.out.min(layer.input) as usize,
                rows_are_larger: (layer.out >= layer.input) != layer.transposed,
                scale: self.scale,
            };
            planner.edit(layer.slot, "RandLoRA", edit);
        }
        Ok(())
    }
}

impl RandLora {
    /// The saved bases, which are as large as the largest layer.
    fn saved(
        &self,
        layer: &Layer,
        largest: [u64; 2],
        [a, b]: [usize; 2],
        planner: &Planner<'_>,
    ) -> Result<Bases, Error> {
        let [smaller, larger] = largest;
        let count = smaller.div_ceil(self.rank);
        planner.expect_shape(a, layer.slot, &[self.rank, 1, smaller])?;
        planner.expect_shape(b, layer.slot, &[larger, count, self.rank])?;
        Ok(Bases::Saved { a, b, a_cols: smaller as usize, b_bases: count as usize })
    }

    /// The bases that the seed gives for these layers; nothing where there are none.
    fn drawn(
        &self,
        layers: &[(&Module, Layer, usize, usize)],
        [smaller, larger]: [u64; 2],
        planner: &Planner<'_>,
    ) -> Option<Arc<Drawn>> {
        let stored =
            |(_, layer, ..): &(&Module, Layer, usize, usize)| planner.slots[layer.slot].element_type();
        // PEFT moves the one pair to every layer's element type in turn, so the narrowest decides.
        let dtype = layers.iter().map(stored).min_by_key(|dtype| dtype.bits())?;
        Some(Arc::new(Drawn {
            seed: self.seed,
            density: self.density,
            rank: self.rank as usize,
            count: smaller.div_ceil(self.rank) as usize,
            larger: larger as usize,
            smaller: smaller as usize,
            dtype,
            pair: OnceLock::new(),
        }))
    }
}

/// Where a layer's bases come from.
#[derive(Debug, Clone)]
enum Bases {
    Saved { a: usize, b: usize, a_cols: usize, b_bases: usize },
    Drawn(Arc<Drawn>),
}

/// Bases drawn from a seed, once for all layers. They are no larger than the largest weight.
#[derive(Debug)]
struct Drawn {
    seed: u64,
    density: Density,
    rank: usize,
    count: usize,
    larger: usize,
    smaller: usize,
    dtype: Dtype,
    pair: OnceLock<[Arc<[f32]>; 2]>,
}

impl Drawn {
    fn pair(&self) -> &[Arc<[f32]>; 2] {
        self.pair.get_or_init(|| {
            let mut generator = Generator::seeded(self.seed);
            let Self { rank, count, larger, smaller, .. } = *self;
            let (a, b) = match self.density {
                Density::Dense => {
                    let a = dense(&mut generator, rank, smaller);
                    // One basis after another, each `[larger, 1, rank]`, then side by side.
                    let mut b = vec![0.0; larger * count * rank];
                    for basis in 0..count {
                        let values = dense(&mut generator, larger, rank);
                        for (row, values) in values.chunks_exact(rank).enumerate() {
                            b[(row * count + basis) * rank..][..rank].copy_from_slice(values);
                        }
                    }
                    (over_deviation(a, Dtype::BF16), over_deviation(b, Dtype::BF16))
                }
                Density::Sparse | Density::VerySparse => {
                    let sparsity = match self.density {
                        Density::VerySparse => (smaller as f64).sqrt(),
                        _ => 3.0,
                    };
                    let a = ternary(&mut generator, rank * smaller, sparsity);
                    let b = ternary(&mut generator, larger * count * rank, sparsity);
                    (over_deviation(a, Dtype::F32), over_deviation(b, Dtype::F32))
                }
            };
            [a, b].map(|values| rounded(self.dtype, values).into_iter().map(|v| v as f32).collect())
        })
    }
}

/// `kaiming_uniform_(a=sqrt(5))` in bfloat16 of a matrix `[rows, 1, cols]`, whose inputs are its columns.
fn dense(generator: &mut Generator, rows: usize, cols: usize) -> Vec<f64> {
    let gain = (2.0 / (1.0 + 5f64.sqrt() * 5f64.sqrt())).sqrt();
    let bound = 3f64.sqrt() * (gain / (cols as f64).sqrt());
    generator.symmetric_narrow(rows * cols, bound, Dtype::BF16)
}

/// -1, 0 and 1, of which -1 and 1 have a chance of `1 / (2 sparsity)` each.
fn ternary(generator: &mut Generator, len: usize, sparsity: f64) -> Vec<f64> {
    let chance = 1.0 / (2.0 * sparsity);
    let (low, high) = (chance as f32, (1.0 - chance) as f32);
    let value = |drawn: f32| f64::from(u8::from(drawn > high)) - f64::from(u8::from(drawn < low));
    (0..len).map(|_| value(generator.unit())).collect()
}

/// Values divided by their standard deviation, both rounded to `dtype`.
fn over_deviation(values: Vec<f64>, dtype: Dtype) -> Vec<f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    let deviation = rounded(dtype, vec![(squares / (count - 1.0)).sqrt()])[0];
    rounded(dtype, values.into_iter().map(|v| v / deviation).collect())
}

#[derive(Debug)]
struct Update {
    lambda: usize,
    gamma: usize,
    bases: Bases,
    rank: usize,
    count: usize,
    larger: usize,
    smaller: usize,
    /// Whether the weight's rows, as stored, run over the larger dimension.
    rows_are_larger: bool,
    scale: f64,
}

struct PreparedUpdate {
    /// `[rank, count]`.
    lambda: Arc<[f64]>,
    /// `[count, smaller]`.
    gamma: Arc<[f64]>,
    /// `[rank, a_cols]`.
    a: Arc<[f32]>,
    a_cols: usize,
    /// `[.., b_row]`, of which a row's first `rank * count` count.
    b: Arc<[f32]>,
    b_row: usize,
    rank: usize,
    count: usize,
    smaller: usize,
    rows_are_larger: bool,
    scale: f64,
}

impl Edit for Update {
    fn held_bytes(&self) -> u64 {
        // `B`, which every tile needs a part of.
        (self.larger * self.count * self.rank * 4) as u64
    }

    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let (a, a_cols, b, b_row) = match &self.bases {
            Bases::Saved { a, b, a_cols, b_bases } => {
                (adapter.singles(*a)?, *a_cols, adapter.singles(*b)?, b_bases * self.rank)
            }
            Bases::Drawn(drawn) => {
                let [a, b] = drawn.pair().clone();
                (a, drawn.smaller, b, drawn.count * drawn.rank)
            }
        };
        Ok(Box::new(PreparedUpdate {
            lambda: adapter.values(self.lambda)?,
            gamma: adapter.values(self.gamma)?,
            a,
            a_cols,
            b,
            b_row,
            rank: self.rank,
            count: self.count,
            smaller: self.smaller,
            rows_are_larger: self.rows_are_larger,
            scale: self.scale,
        }))
    }
}

/// Terms of the inner sum taken at a time: what is made of the factors for them stays in the L1 and L2 caches.
const TERMS: usize = 64;

thread_local! {
    /// The two factors for some terms, one of them as it was before it was turned, and the sum.
    static SCRATCH: RefCell<[Vec<f64>; 4]> = RefCell::default();
}

/// The transpose of a matrix of `cols` columns.
fn turn(matrix: &[f64], cols: usize, out: &mut Vec<f64>) {
    let rows = matrix.len() / cols.max(1);
    out.resize(matrix.len(), 0.0);
    for (row, values) in matrix.chunks_exact(cols.max(1)).enumerate() {
        for (col, value) in values.iter().enumerate() {
            out[col * rows + row] = *value;
        }
    }
}

impl PreparedUpdate {
    /// Terms `terms` of the scaled `A` for the places `of` of the smaller dimension, `[terms, of]`.
    fn scaled_a(&self, terms: Range<usize>, of: Range<usize>, out: &mut Vec<f64>) {
        for j in terms {
            let (k, b) = (j / self.count, j % self.count);
            let lambda = self.lambda[k * self.count + b];
            let a = &self.a[k * self.a_cols..][of.clone()];
            let gamma = &self.gamma[b * self.smaller..][of.clone()];
            out.extend(a.iter().zip(gamma).map(|(a, gamma)| lambda * f64::from(*a) * gamma));
        }
    }

    /// Terms `terms` of `B` for the places `of` of the larger dimension, `[of, terms]`.
    fn b(&self, terms: Range<usize>, of: Range<usize>, out: &mut Vec<f64>) {
        for p in of {
            out.extend(self.b[p * self.b_row..][terms.clone()].iter().map(|b| f64::from(*b)));
        }
    }
}

impl PreparedEdit for PreparedUpdate {
    fn apply(&self, tile: &mut Tile<'_>) {
        let (first_row, rows) = (tile.first_row as usize, tile.rows());
        let (first_col, cols) = (tile.first_col, tile.cols);
        SCRATCH.with_borrow_mut(|[left, right, turned, sum]| {
            sum.clear();
            sum.resize(rows * cols, 0.0);
            for first in (0..self.rank * self.count).step_by(TERMS) {
                let terms = first..(first + TERMS).min(self.rank * self.count);
                let (of_rows, of_cols) = (first_row..first_row + rows, first_col..first_col + cols);
                left.clear();
                right.clear();
                turned.clear();
                match self.rows_are_larger {
                    true => {
                        self.b(terms.clone(), of_rows, left);
                        self.scaled_a(terms.clone(), of_cols, right);
                    }
                    false => {
                        self.scaled_a(terms.clone(), of_rows, turned);
                        turn(turned, rows, left);
                        turned.clear();
                        self.b(terms.clone(), of_cols, turned);
                        turn(turned, terms.len(), right);
                    }
                }
                let block = kernel::LowRankBlock {
                    left,
                    right,
                    right_stride: cols,
                    rank: terms.len(),
                    scale: 1.0,
                    exact: false,
                };
                kernel::add_low_rank(tile.level, sum, cols, block);
            }
            for (value, sum) in tile.values.iter_mut().zip(sum.iter()) {
                *value += self.scale * sum;
            }
        });
    }
}
