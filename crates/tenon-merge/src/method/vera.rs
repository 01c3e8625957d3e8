//! VeRA: `W' = W + (b B) (d A)`, with random projections that all layers share and two
//! trained vectors a layer.
//!
//! `A` is `[r, in]`, `B` is `[out, r]`, both cut from one pair that is as large as
//! the largest layer; `b` scales the rows of `B`, `d` those of `A`. Sources:
//! Kopiczko et al. 2024; PEFT 0.21.2, `tuners/vera/layer.py`, `model.py`.
//!
//! PVeRA (Fillioux et al. 2025; `tuners/pvera/layer.py`) has a mean and a variance: `A` is
//! `[2 r, in]` and `d` has `2 r` elements, of which the upper halves are the
//! mean's. PEFT merges the mean; with `sample_at_inference` the adapter's own
//! forward pass adds noise to it, which no weight can hold.
//!
//! An adapter may leave the projections out (`save_projection: false`). They are
//! then drawn anew from its seed, as PyTorch draws them ([`crate::random`]), and
//! rounded to the base's element type, as PEFT does when it loads the adapter.

use std::sync::{Arc, OnceLock};

use tenon_checkpoint::Dtype;

use super::layer::{Features, Layer};
use super::product::{Factors, Pair, Product, in_proportion};
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::random::{Generator, rounded};
use crate::{Adapter, AdapterConfig, Error, ValueRows};

/// VeRA.
pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "VERA",
    name: "VeRA",
    formula: "`W + diag(b) B diag(d) A`, `A` and `B` shared by all layers; drawn from the seed where they were not saved",
    source: "Kopiczko et al. 2024",
    merging: Merging::Reads(|config| read(config, &PLAIN)),
};

/// PVeRA.
pub(super) const PVERA: KnownMethod = KnownMethod {
    peft_type: "PVERA",
    name: "PVeRA",
    formula: "VeRA of the means; the variances fall away",
    source: "PEFT, `tuners/pvera`",
    merging: Merging::Reads(|config| read(config, &MEANS)),
};

/// What tells the two methods apart.
#[derive(Debug)]
struct Kind {
    label: &'static str,
    parameters: [&'static str; 4],
    dropout: &'static str,
    /// Rows of `A` for one of `B`'s columns.
    parts: u64,
}

const PLAIN: Kind = Kind {
    label: "VeRA",
    parameters: ["vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B"],
    dropout: "vera_dropout",
    parts: 1,
};

const MEANS: Kind = Kind {
    label: "PVeRA",
    parameters: ["pvera_lambda_b", "pvera_lambda_d", "pvera_A", "pvera_B"],
    dropout: "pvera_dropout",
    parts: 2,
};

#[derive(Debug)]
struct Vera {
    kind: &'static Kind,
    rank: u64,
    seed: u64,
    saved: bool,
    samples: bool,
}

fn read(config: &AdapterConfig, kind: &'static Kind) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        "d_initial",
        "fan_in_fan_out",
        "generator_seed",
        "init_weights",
        "projection_prng_key",
        "r",
        "sample_at_inference",
        "save_projection",
        kind.dropout,
    ])?;
    Ok(Box::new(Vera {
        kind,
        rank: config.count("r")?.unwrap_or(256),
        seed: config.seed("projection_prng_key")?.unwrap_or(0),
        saved: config.value("save_projection").is_none() || config.flag("save_projection")?,
        samples: config.flag("sample_at_inference")?,
    }))
}

impl Method for Vera {
    fn parameters(&self) -> &'static [&'static str] {
        &self.kind.parameters
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        let [lambda_b, lambda_d, a, b] = self.kind.parameters;
        if self.samples {
            planner.notes.push(
                "the adapter adds noise to what it computes (sample_at_inference); the merged model has its mean, as when \
                 PEFT merges it"
                    .into(),
            );
        }
        let mut layers = vec![];
        for module in modules.iter().filter(|m| m.get(lambda_b).or(m.get(lambda_d)).is_some()) {
            let (b, d) = (module.need(lambda_b, planner)?, module.need(lambda_d, planner)?);
            let features = Features { out: planner.adapter_shape(b).first().copied(), input: None };
            let layer = planner.layer(module, b, features)?;
            planner.expect_shape(b, layer.slot, &[layer.out])?;
            planner.expect_shape(d, layer.slot, &[self.rank.saturating_mul(self.kind.parts)])?;
            layers.push((module, layer, b, d));
        }
        let extent =
            |size: fn(&Layer) -> u64| layers.iter().map(|(_, layer, ..)| size(layer)).max().unwrap_or(0);
        let largest = [extent(|layer| layer.out), extent(|layer| layer.input)];
        let mut drawn = None;
        if !self.saved && !modules.iter().any(|m| m.get(a).or(m.get(b)).is_some()) {
            drawn = self.drawn(&layers, largest, planner)?;
            planner.note_drawn("projections", "projection_prng_key");
        }
        // Saved once for all layers; a raw state dict has them at each.
        let anywhere = |name: &str| modules.iter().find_map(|m| m.get(name));
        for (module, layer, b_scale, d_scale) in layers {
            let projections = match (module.get(a).or(anywhere(a)), module.get(b).or(anywhere(b)), &drawn) {
                (Some(a), Some(b), _) => self.saved(&layer, largest, [a, b], planner)?,
                (None, None, Some(drawn)) => Projections::Drawn(drawn.clone()),
                _ => {
                    return Err(Error::MissingPartner {
                        tensor: planner.adapter_name(b_scale).into(),
                        missing: format!("base_model.{a} and base_model.{b}"),
                    });
                }
            };
            let factors = VeraFactors {
                out: layer.out as usize,
                input: layer.input as usize,
                rank: self.rank as usize,
                b_scale,
                d_scale,
                projections,
            };
            let product = Product::new(planner, &layer, d_scale, self.rank, 1.0, factors)?;
            planner.edit(layer.slot, self.kind.label, product);
        }
        Ok(())
    }
}

impl Vera {
    /// The saved projections, which are as large as the largest layer.
    fn saved(
        &self,
        layer: &Layer,
        [out, input]: [u64; 2],
        [a, b]: [usize; 2],
        planner: &Planner<'_>,
    ) -> Result<Projections, Error> {
        planner.expect_shape(a, layer.slot, &[self.rank.saturating_mul(self.kind.parts), input])?;
        planner.expect_shape(b, layer.slot, &[out, self.rank])?;
        Ok(Projections::Saved { a, b, a_cols: input as usize })
    }

    /// The projections that the seed gives for these layers; nothing where there are none.
    fn drawn(
        &self,
        layers: &[(&Module, Layer, usize, usize)],
        [out, input]: [u64; 2],
        planner: &Planner<'_>,
    ) -> Result<Option<Arc<Drawn>>, Error> {
        let Some((_, first, _, tensor)) = layers.first() else { return Ok(None) };
        if !in_proportion(self.rank, out, input) {
            return Err(planner.shape_error(*tensor, first.slot, format!("a rank far below {}", self.rank)));
        }
        // PEFT moves the one pair to every layer's element type in turn, so the narrowest decides.
        let stored =
            |(_, layer, ..): &(&Module, Layer, usize, usize)| planner.slots[layer.slot].element_type();
        let dtype = layers.iter().map(stored).min_by_key(|dtype| dtype.bits()).unwrap_or(Dtype::F32);
        Ok(Some(Arc::new(Drawn {
            seed: self.seed,
            a: ((self.rank * self.kind.parts) as usize, input as usize),
            b: (out as usize, self.rank as usize),
            dtype,
            pair: OnceLock::new(),
        })))
    }
}

/// Where a layer's projections come from.
#[derive(Debug, Clone)]
enum Projections {
    Saved { a: usize, b: usize, a_cols: usize },
    Drawn(Arc<Drawn>),
}

/// Projections drawn from a seed, once for all layers.
#[derive(Debug)]
struct Drawn {
    seed: u64,
    /// Rows and columns of `A`.
    a: (usize, usize),
    /// Rows and columns of `B`.
    b: (usize, usize),
    dtype: Dtype,
    pair: OnceLock<[Box<[f32]>; 2]>,
}

impl Drawn {
    fn pair(&self) -> &[Box<[f32]>; 2] {
        self.pair.get_or_init(|| {
            let mut generator = Generator::seeded(self.seed);
            [self.a, self.b].map(|(rows, cols)| {
                // Kaiming's uniform initialisation: the columns are the inputs.
                let bound = 3f64.sqrt() * (2f64.sqrt() / (cols as f64).sqrt());
                let values: Vec<f64> = (0..rows * cols).map(|_| generator.symmetric(bound).into()).collect();
                rounded(self.dtype, values).into_iter().map(|v| v as f32).collect()
            })
        })
    }
}

#[derive(Debug)]
struct VeraFactors {
    out: usize,
    input: usize,
    rank: usize,
    b_scale: usize,
    d_scale: usize,
    projections: Projections,
}

impl Factors for VeraFactors {
    fn factors(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Pair, Error> {
        let Self { out, input, rank, .. } = *self;
        let (b_scale, d_scale) = (adapter.values(self.b_scale)?, adapter.values(self.d_scale)?);
        // `A` has more columns than the layer where another layer is larger, `B` more rows.
        let scaled = |values: &dyn Fn(usize) -> f64, stride: usize, rows: usize, cols: usize, by: &[f64]| {
            let row = |r: usize| (0..cols).map(move |c| by[r] * values(r * stride + c));
            (0..rows).flat_map(row).collect::<Vec<f64>>()
        };
        Ok(match &self.projections {
            Projections::Saved { a, b, a_cols } => {
                let (a, b) = (adapter.values(*a)?, adapter.values(*b)?);
                Pair {
                    out: scaled(&|at| b[at], rank, out, rank, &b_scale),
                    input: scaled(&|at| a[at], *a_cols, rank, input, &d_scale),
                }
            }
            Projections::Drawn(drawn) => {
                let [a, b] = drawn.pair();
                Pair {
                    out: scaled(&|at| b[at].into(), rank, out, rank, &b_scale),
                    input: scaled(&|at| a[at].into(), drawn.a.1, rank, input, &d_scale),
                }
            }
        })
    }
}
