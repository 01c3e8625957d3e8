//! PEANuT: `W' = W + s B f(Wᵀ)ᵀ`, an update that a small network makes of the weight itself.
//!
//! Every column of `W` is an input: `h = act(A w)`, `A [r, out]`; then `depth` encoders,
//! `h = act(E h)`, and as many decoders, `h = act(D h)` plus what the encoder across from it was
//! given; `B [out, r]` makes the column's update. Sources: Zhong et al. 2025; PEFT 0.21.2,
//! `tuners/peanut/layer.py`.
//!
//! `A W` needs all rows of the base, which are read once more for it; what comes of
//! it, `[r, in]`, is all that is held.

use super::layer::Features;
use super::product::{Factors, Pair, Product, rows_times, transpose};
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "PEANUT",
    name: "PEANuT",
    formula: "`W + s B f(Wᵀ)ᵀ`, `f` a small network of `W`'s columns",
    source: "Zhong et al. 2025",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Peanut {
    rank: u64,
    depth: usize,
    scale: f64,
    activation: Activation,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&["act_fn", "depth", "init_weights", "r", "scaling"])?;
    let depth = match config.value("depth") {
        None => 0,
        // Each layer of depth is a tensor that must be there; 2^16 of them are none that anybody trained.
        Some(value) => value
            .as_u64()
            .filter(|depth| *depth < 1 << 16)
            .ok_or_else(|| config.wrong("depth", "a whole number below 65536"))?
            as usize,
    };
    let name = config.text("act_fn")?.unwrap_or("relu");
    let known = ACTIVATIONS.iter().find(|(known, _)| *known == name);
    let (_, activation) = known.ok_or_else(|| {
        let names: Vec<_> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
        config.wrong("act_fn", &format!("one of {}", names.join(", ")))
    })?;
    Ok(Box::new(Peanut {
        rank: config.count("r")?.unwrap_or(32),
        depth,
        scale: config.number("scaling")?.unwrap_or(1.0),
        activation: *activation,
    }))
}

type Activation = fn(f64) -> f64;

/// By transformers' names (`activations.py`, `ACT2FN`).
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu", gelu),
    ("gelu_fast", gelu_tanh),
    ("gelu_new", gelu_tanh),
    ("gelu_python", gelu),
    ("gelu_pytorch_tanh", gelu_tanh),
    ("leaky_relu", |x| if x < 0.0 { 0.01 * x } else { x }),
    ("linear", |x| x),
    ("mish", |x| x * libm::tanh(softplus(x))),
    ("quick_gelu", |x| x * sigmoid(1.702 * x)),
    ("relu", |x| if x < 0.0 { 0.0 } else { x }),
    ("relu2", |x| if x < 0.0 { 0.0 } else { x * x }),
    ("relu6", |x| x.clamp(0.0, 6.0)),
    ("sigmoid", sigmoid),
    ("silu", |x| x * sigmoid(x)),
    ("swish", |x| x * sigmoid(x)),
    ("tanh", libm::tanh),
];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

fn softplus(x: f64) -> f64 {
    // PyTorch's threshold, beyond which the exponential has the last word alone.
    if x > 20.0 { x } else { libm::log1p(libm::exp(x)) }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + libm::tanh(inner))
}

impl Method for Peanut {
    fn parameters(&self) -> &'static [&'static str] {
        &["peanut_A", "peanut_B", "peanut_encoders.*", "peanut_decoders.*"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let (a, b) = (module.need("peanut_A", planner)?, module.need("peanut_B", planner)?);
            let features = Features { out: planner.adapter_shape(b).first().copied(), input: None };
            let layer = planner.layer(module, a, features)?;
            if layer.is_conv() || layer.transposed {
                return Err(planner.shape_error(a, layer.slot, "the weight of a linear layer".into()));
            }
            planner.expect_shape(a, layer.slot, &[self.rank, layer.out])?;
            planner.expect_shape(b, layer.slot, &[layer.out, self.rank])?;
            let stages = |kind: &str| -> Result<Vec<usize>, Error> {
                let stage = |n: usize| {
                    let tensor = module.need(&format!("{kind}.{n}"), planner)?;
                    planner.expect_shape(tensor, layer.slot, &[self.rank, self.rank])?;
                    Ok(tensor)
                };
                (0..self.depth).map(stage).collect()
            };
            let factors = PeanutFactors {
                a,
                b,
                encoders: stages("peanut_encoders")?,
                decoders: stages("peanut_decoders")?,
                rank: self.rank as usize,
                out: layer.out as usize,
                input: layer.input as usize,
                activation: self.activation,
            };
            let product = Product::new(planner, &layer, a, self.rank, self.scale, factors)?;
            planner.edit(layer.slot, "PEANuT", product);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct PeanutFactors {
    a: usize,
    b: usize,
    encoders: Vec<usize>,
    decoders: Vec<usize>,
    rank: usize,
    out: usize,
    input: usize,
    activation: Activation,
}

impl PeanutFactors {
    /// `act(layer h)` for hidden values `[r, in]`.
    fn stage(&self, adapter: &Adapter, layer: usize, hidden: &[f64]) -> Result<Vec<f64>, Error> {
        let (layer, cols) = (adapter.values(layer)?, self.input);
        let mut next = vec![0.0; hidden.len()];
        for (sums, weights) in next.chunks_exact_mut(cols).zip(layer.chunks_exact(self.rank)) {
            for (weight, values) in weights.iter().zip(hidden.chunks_exact(cols)) {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
            }
            sums.iter_mut().for_each(|sum| *sum = (self.activation)(*sum));
        }
        Ok(next)
    }
}

impl Factors for PeanutFactors {
    fn factors(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Pair, Error> {
        let a = transpose(&adapter.values(self.a)?, self.rank, self.out);
        let mut hidden = rows_times(before, &a, self.rank)?;
        hidden.iter_mut().for_each(|value| *value = (self.activation)(*value));
        let mut given = vec![];
        for encoder in &self.encoders {
            let next = self.stage(adapter, *encoder, &hidden)?;
            given.push(std::mem::replace(&mut hidden, next));
        }
        for decoder in &self.decoders {
            hidden = self.stage(adapter, *decoder, &hidden)?;
            let residual = given.pop().unwrap_or_default();
            hidden.iter_mut().zip(residual).for_each(|(value, residual)| *value += residual);
        }
        Ok(Pair { out: adapter.values(self.b)?.to_vec(), input: hidden })
    }
}
