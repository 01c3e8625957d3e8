//! DEFT: `W' = W + Q (s R - P'ᵀ W)`, a part of the base taken out and another put in its place.
//!
//! `deft_P` is `[out, r]`, `deft_R` is `[r, in]`. With `relu` as decomposition `Q = P` and `P' = relu(P)`; with
//! `qr` both are the orthonormal factor of `P`, its signs those of Householder's
//! reflections (as LAPACK's). With `para` nothing is put in: `W' = W - Q P'ᵀ W`. `s = alpha / r`, 1 without
//! alpha. Source: PEFT 0.21.2, `tuners/deft/layer.py`.
//!
//! `P'ᵀ W` needs all rows of the base, which are read once more for it.

use super::layer::Features;
use super::product::{Factors, Pair, Product, cols_times, rows_times, transpose};
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "DEFT",
    name: "DEFT",
    formula: "`W + Q (s R - P'ᵀ W)`, `Q` and `P'` of the decomposed `P`; with `para` without `R`",
    source: "PEFT, `tuners/deft`",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Deft {
    rank: u64,
    scale: f64,
    orthogonal: bool,
    only_takes_out: bool,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "alpha",
        "bias",
        "decomposition_method",
        "deft_dropout",
        "fan_in_fan_out",
        "init_scale",
        "init_weights",
        "para",
        "r",
    ])?;
    let rank = config.count("r")?.unwrap_or(8);
    // An alpha of 0 is none to PEFT.
    let alpha = config.number("alpha")?.filter(|alpha| *alpha != 0.0);
    Ok(Box::new(Deft {
        rank,
        scale: alpha.map_or(1.0, |alpha| alpha / rank as f64),
        orthogonal: match config.text("decomposition_method")? {
            None | Some("relu") => false,
            Some("qr") => true,
            Some(_) => return Err(config.wrong("decomposition_method", "relu or qr")),
        },
        only_takes_out: config.flag("para")?,
    }))
}

impl Method for Deft {
    fn parameters(&self) -> &'static [&'static str] {
        &["deft_P", "deft_R"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let p = module.need("deft_P", planner)?;
            let r = if self.only_takes_out { None } else { Some(module.need("deft_R", planner)?) };
            let features = |tensor: usize, at: usize| planner.adapter_shape(tensor).get(at).copied();
            let features = Features { out: features(p, 0), input: r.and_then(|r| features(r, 1)) };
            let layer = planner.layer(module, p, features)?;
            if layer.is_conv() {
                return Err(planner.shape_error(p, layer.slot, "the weight of a linear layer".into()));
            }
            if self.orthogonal && self.rank > layer.out {
                let expected = format!("a rank of at most {}, for columns to be orthogonal", layer.out);
                return Err(planner.shape_error(p, layer.slot, expected));
            }
            planner.expect_shape(p, layer.slot, &[layer.out, self.rank])?;
            if let Some(r) = r {
                planner.expect_shape(r, layer.slot, &[self.rank, layer.input])?;
            }
            let factors = DeftFactors {
                p,
                r,
                rank: self.rank as usize,
                out: layer.out as usize,
                input: layer.input as usize,
                scale: self.scale,
                orthogonal: self.orthogonal,
                transposed: layer.transposed,
            };
            let product = Product::new(planner, &layer, p, self.rank, 1.0, factors)?;
            planner.edit(layer.slot, "DEFT", product);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct DeftFactors {
    p: usize,
    r: Option<usize>,
    rank: usize,
    out: usize,
    input: usize,
    scale: f64,
    orthogonal: bool,
    transposed: bool,
}

impl Factors for DeftFactors {
    fn factors(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Pair, Error> {
        let p = adapter.values(self.p)?;
        let (q, right) = match self.orthogonal {
            true => {
                let q = orthonormal(&p, self.out, self.rank);
                (q.clone(), q)
            }
            false => (p.to_vec(), p.iter().map(|v| if *v < 0.0 { 0.0 } else { *v }).collect()),
        };
        // `right` transposed times the weight, `[r, in]`.
        let mut input = match self.transposed {
            false => rows_times(before, &right, self.rank)?,
            true => transpose(&cols_times(before, &right, self.rank)?, self.input, self.rank),
        };
        match self.r {
            None => input.iter_mut().for_each(|v| *v = -*v),
            Some(r) => {
                let r = adapter.values(r)?;
                input.iter_mut().zip(r.iter()).for_each(|(v, r)| *v = self.scale * r - *v);
            }
        }
        Ok(Pair { out: q, input })
    }
}

/// The first factor of the QR decomposition of a `[rows, cols]` matrix with no more columns than rows.
fn orthonormal(matrix: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let mut work = matrix.to_vec();
    let mut scales = vec![0.0; cols];
    for k in 0..cols {
        let norm = (k..rows).map(|i| work[i * cols + k] * work[i * cols + k]).sum::<f64>().sqrt();
        let alpha = work[k * cols + k];
        let below = (k + 1..rows).any(|i| work[i * cols + k] != 0.0);
        // LAPACK leaves a column alone that is 0 below the diagonal.
        if !below {
            continue;
        }
        let beta = -norm.copysign(alpha);
        scales[k] = (beta - alpha) / beta;
        for i in k + 1..rows {
            work[i * cols + k] /= alpha - beta;
        }
        for j in k + 1..cols {
            let below: f64 = (k + 1..rows).map(|i| work[i * cols + k] * work[i * cols + j]).sum();
            let take = scales[k] * (work[k * cols + j] + below);
            work[k * cols + j] -= take;
            for i in k + 1..rows {
                work[i * cols + j] -= take * work[i * cols + k];
            }
        }
    }
    // The reflections, applied to the unit vectors from the last to the first.
    let mut q = vec![0.0; rows * cols];
    (0..cols).for_each(|k| q[k * cols + k] = 1.0);
    for k in (0..cols).rev() {
        for j in 0..cols {
            let below: f64 = (k + 1..rows).map(|i| work[i * cols + k] * q[i * cols + j]).sum();
            let take = scales[k] * (q[k * cols + j] + below);
            q[k * cols + j] -= take;
            for i in k + 1..rows {
                q[i * cols + j] -= take * work[i * cols + k];
            }
        }
    }
    q
}
