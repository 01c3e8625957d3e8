//! AdaMSS: `W' = W + P diag-blocks(B_i) [A_1; ..; A_k] V`, a part of its own for each cluster of outputs.
//!
//! `adamss_newB [r, in]` are right singular vectors of the base (with the bias as one column more, where there is
//! one), `adamss_A.i [rank, r]` and `adamss_B.i [outputs, rank]` the part of cluster `i`, whose outputs are in
//! ascending order. Which outputs those are is not in the adapter: PEFT clusters the base's left singular vectors
//! when it makes or loads one, with random beginnings that it seeds. Tenon does the same: the vectors are those of
//! a randomised decomposition (Halko et al. 2011) that begins with PyTorch's normal numbers, and the clusters those
//! that scikit-learn finds in ten turns (Lloyd 1982) from outputs that NumPy's generator picks. Distances are the
//! same in any orthonormal basis of the span, so that no signs of singular vectors are asked for. An output on the
//! border of two clusters, as near as rounding, could fall to the other than it did in PEFT; where the number of
//! outputs in a cluster is not the adapter's, the merge fails. With as many vectors as outputs all outputs are
//! equally far from each other, rounding decides, and the adapter is refused.
//! Sources: PEFT 0.21.2, `tuners/adamss/layer.py`, `utils.py`; scikit-learn 1.9, `cluster/_kmeans.py`.

use std::sync::{Arc, Mutex, PoisonError};

use super::layer::{Features, Layer};
use super::product::{Factors, Pair, Product, whole};
use super::{KnownMethod, Merging, Method, Module};
use crate::clusters::{Points, clusters};
use crate::kernel::{self, Level, Matrix, Multiply};
use crate::planner::{Origin, Planner};
use crate::random::Generator;
use crate::svd::orthogonalise;
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, Tile, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "ADAMSS",
    name: "AdaMSS",
    formula: "`W + B_i A_i V` for the outputs of cluster `i`, the bias as one input more; clusters are found anew",
    source: "PEFT, `tuners/adamss`",
    merging: Merging::Reads(read),
};

const LABEL: &str = "AdaMSS";

#[derive(Debug)]
struct Adamss {
    rank: u64,
    clusters: u64,
    seed: u64,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "asa_importance_beta",
        "asa_schedule_exponent",
        "asa_target_subspaces",
        "asa_uncertainty_beta",
        "final_warmup",
        "init_warmup",
        "init_weights",
        "mask_interval",
        "num_subspaces",
        "r",
        "random_seed",
        // The tensors tell.
        "subspace_rank",
        "svd_threshold",
        "total_step",
        "use_asa",
        "use_dynamic_rank",
    ])?;
    let Some(seed) = config.seed("random_seed")? else {
        let why = "without its seed the clusters of outputs that its parts are for cannot be found again";
        return Err(config.not_understood("random_seed", why));
    };
    Ok(Box::new(Adamss {
        rank: config.count("r")?.unwrap_or(100),
        clusters: config.count("num_subspaces")?.unwrap_or(5),
        seed,
    }))
}

impl Method for Adamss {
    fn parameters(&self) -> &'static [&'static str] {
        &["adamss_A.*", "adamss_B.*", "adamss_newB"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            self.plan_layer(module, planner)?;
        }
        planner.notes.push(
            "which outputs each part of an AdaMSS adapter is for is not saved: they are clustered anew from random_seed, \
             as PEFT does on the CPU when it loads the adapter"
                .into(),
        );
        Ok(())
    }
}

impl Adamss {
    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        let v = module.need("adamss_newB", planner)?;
        let layer = planner.layer(module, v, Features::default())?;
        planner.expect_plain(v, &layer)?;
        if layer.is_conv() {
            return Err(planner.shape_error(v, layer.slot, "the weight of a linear layer".into()));
        }
        let bias = planner.bias_of(&layer, v)?;
        let input = layer.input + u64::from(bias.is_some());
        let rank = self.rank.min(layer.out).min(input);
        planner.expect_shape(v, layer.slot, &[rank, input])?;
        let count = self.clusters.min(layer.out);
        if rank == layer.out && count > 1 {
            let why = format!(
                "{} has as many directions as outputs, which are all equally far from each other then: rounding \
                 decided which belong together, and nothing else can tell",
                module.path
            );
            return Err(planner.adapter.config().not_understood("r", why));
        }
        let (mut parts, mut outputs, mut ranks) = (vec![], 0u64, 0u64);
        for k in 0..count {
            let a = module.need(&format!("adamss_A.{k}"), planner)?;
            let b = module.need(&format!("adamss_B.{k}"), planner)?;
            let [size, part] = *planner.adapter_shape(b) else {
                return Err(planner.shape_error(b, layer.slot, "a matrix".into()));
            };
            planner.expect_shape(a, layer.slot, &[part, rank])?;
            outputs = outputs.saturating_add(size);
            ranks = ranks.saturating_add(part);
            parts.push(Part { a, b, size: size as usize, rank: part as usize });
        }
        if let Some(b) = parts.last().map(|part| part.b)
            && outputs != layer.out
        {
            let expected = format!("{} outputs in all clusters together", layer.out);
            return Err(planner.shape_error(b, layer.slot, expected));
        }
        let tensor_of = |slot: usize| match planner.slots[slot].origin {
            Origin::Base(tensor) => Ok(tensor),
            _ => {
                let expected = "a weight that the adapter does not hold whole".into();
                Err(planner.shape_error(v, slot, expected))
            }
        };
        let grouping = Arc::new(Grouping {
            module: module.path.clone(),
            weight: tensor_of(layer.slot)?,
            bias: bias.map(tensor_of).transpose()?,
            rank: rank as usize,
            count: count as usize,
            seed: self.seed,
            sizes: parts.iter().map(|part| part.size).collect(),
            found: Mutex::default(),
        });
        let update = Update { grouping, parts: parts.into(), v, rank: rank as usize, input: input as usize };
        let factors = ForWeight { update: update.clone(), with_bias: bias.is_some() };
        let product =
            Product::new(planner, &layer, v, ranks, 1.0, factors)?.holding(clustering_bytes(&layer, rank));
        planner.edit(layer.slot, LABEL, product);
        if let Some(bias) = bias {
            planner.edit(bias, LABEL, ForBias(update));
        }
        Ok(())
    }
}

/// What finding clusters takes: the weight, its transpose, and vectors of both sides.
fn clustering_bytes(layer: &Layer, rank: u64) -> u64 {
    let vectors = rank.saturating_mul(layer.out.saturating_add(layer.input)).saturating_mul(3);
    layer.out.saturating_mul(layer.input).saturating_mul(2).saturating_add(vectors).saturating_mul(8)
}

/// The part of one cluster.
#[derive(Debug, Clone, Copy)]
struct Part {
    a: usize,
    b: usize,
    /// Outputs in it.
    size: usize,
    rank: usize,
}

/// Which outputs of a layer belong together; found once, for its weight and its bias.
#[derive(Debug)]
struct Grouping {
    module: String,
    /// Tensors of the base.
    weight: usize,
    bias: Option<usize>,
    rank: usize,
    count: usize,
    seed: u64,
    sizes: Vec<usize>,
    found: Mutex<Option<Arc<[usize]>>>,
}

impl Grouping {
    /// The cluster of each output.
    fn of_outputs(&self, before: &dyn ValueRows) -> Result<Arc<[usize]>, Error> {
        // Held while they are found: another thread waits for them.
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*found {
            return Ok(found.clone());
        }
        let (weight, cols) = (before.of_base(self.weight), before.of_base(self.weight).cols());
        let (mut matrix, rows) = (whole(&*weight)?, weight.rows() as usize);
        let mut width = cols;
        if let Some(bias) = self.bias {
            let bias = whole(&*before.of_base(bias))?;
            width += 1;
            matrix = matrix
                .chunks_exact(cols)
                .zip(&bias)
                .flat_map(|(row, bias)| row.iter().chain(std::iter::once(bias)).copied())
                .collect();
        }
        let labels: Arc<[usize]> = if self.count == 1 {
            vec![0; rows].into()
        } else {
            let values = span(&matrix, rows, width, self.rank, self.seed);
            clusters(&Points { values, dimensions: self.rank }, self.count).into()
        };
        for (k, size) in self.sizes.iter().enumerate() {
            let count = labels.iter().filter(|label| **label == k).count();
            if count != *size {
                return Err(Error::Layers(format!(
                    "{}: the base's outputs fall into clusters of other sizes than the adapter's ({count}, expected \
                     {size}): the adapter was trained on another base, or with another seed or device than its \
                     configuration tells",
                    self.module
                )));
            }
        }
        *found = Some(labels.clone());
        Ok(labels)
    }
}

/// An orthonormal basis, `[rows, rank]`, of the span of the left singular vectors that `torch.svd_lowrank` finds in
/// two turns.
fn span(matrix: &[f64], rows: usize, cols: usize, rank: usize, seed: u64) -> Vec<f64> {
    let turned = kernel::transposed(matrix, rows, cols);
    // The decomposition is of the taller of the two.
    let (tall, wide, long, short) =
        if rows < cols { (&turned[..], matrix, cols, rows) } else { (matrix, &turned[..], rows, cols) };
    let basis = |vectors: &[f64], by: &[f64], from: usize, to: usize| -> Vec<f64> {
        let mut product = vec![0.0; rank * to];
        Multiply {
            left: Matrix { values: vectors, stride: from },
            right: Matrix { values: by, stride: to },
            shape: (rank, from, to),
            scale: 1.0,
            lower: false,
        }
        .add_to(&mut product, to);
        orthogonalise(product.chunks_exact(to).map(<[f64]>::to_vec).collect()).0.concat()
    };
    let drawn = Generator::seeded(seed).normals(short * rank);
    let mut vectors = basis(&kernel::transposed(&drawn, short, rank), wide, short, long);
    for _ in 0..2 {
        vectors = basis(&vectors, tall, long, short);
        vectors = basis(&vectors, wide, short, long);
    }
    if rows < cols {
        vectors = basis(&vectors, tall, long, short);
    }
    kernel::transposed(&vectors, rank, rows)
}

#[derive(Debug, Clone)]
struct Update {
    grouping: Arc<Grouping>,
    parts: Arc<[Part]>,
    v: usize,
    rank: usize,
    /// Columns of `v`.
    input: usize,
}

impl Update {
    /// `B_i` in the rows of its outputs, `[out, ranks]`, and all `A_i V`, `[ranks, in]`.
    fn factors(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Pair, Error> {
        let labels = self.grouping.of_outputs(before)?;
        let v = adapter.values(self.v)?;
        let ranks: usize = self.parts.iter().map(|part| part.rank).sum();
        let (mut out, mut input) = (vec![0.0; labels.len() * ranks], vec![0.0; ranks * self.input]);
        let mut first = 0;
        for (k, part) in self.parts.iter().enumerate() {
            let (a, b) = (adapter.values(part.a)?, adapter.values(part.b)?);
            let outputs = labels.iter().enumerate().filter(|(_, label)| **label == k);
            for ((row, _), b) in outputs.zip(b.chunks_exact(part.rank.max(1))) {
                out[row * ranks + first..][..b.len()].copy_from_slice(b);
            }
            Multiply {
                left: Matrix { values: &a, stride: self.rank },
                right: Matrix { values: &v, stride: self.input },
                shape: (part.rank, self.rank, self.input),
                scale: 1.0,
                lower: false,
            }
            .add_to(&mut input[first * self.input..], self.input);
            first += part.rank;
        }
        Ok(Pair { out, input })
    }
}

#[derive(Debug)]
struct ForWeight {
    update: Update,
    /// Whether the last column of `V` is the bias's.
    with_bias: bool,
}

impl Factors for ForWeight {
    fn factors(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Pair, Error> {
        let Pair { out, mut input } = self.update.factors(adapter, before)?;
        if self.with_bias {
            let cols = self.update.input;
            input = input.chunks_exact(cols).flat_map(|row| &row[..cols - 1]).copied().collect();
        }
        Ok(Pair { out, input })
    }
}

/// `b += ` what the update makes of its last input.
#[derive(Debug)]
struct ForBias(Update);

struct PreparedBias(Vec<f64>);

impl Edit for ForBias {
    fn prepare(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let Pair { out, input } = self.0.factors(adapter, before)?;
        let last: Vec<f64> = input.chunks_exact(self.0.input).map(|row| row[row.len() - 1]).collect();
        let level = Level::detect();
        let moved = out.chunks_exact(last.len().max(1)).map(|row| kernel::dot(level, row, &last));
        Ok(Box::new(PreparedBias(moved.collect())))
    }
}

impl PreparedEdit for PreparedBias {
    fn apply(&self, tile: &mut Tile<'_>) {
        let start = tile.first_row as usize * tile.cols + tile.first_col;
        tile.values.iter_mut().zip(&self.0[start..]).for_each(|(value, moved)| *value += moved);
    }
}
