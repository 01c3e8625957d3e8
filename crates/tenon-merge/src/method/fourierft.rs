//! FourierFT: `W' = W + s Re(F)`, `F` the inverse Fourier transform of a sparse spectrum.
//!
//! `fourierft_spectrum` holds `n` coefficients. Their places are the first `n` of a
//! random permutation of the weight's elements, which the seed gives as PyTorch
//! shuffles ([`crate::random`]); coefficient `c` at `(u, v)` adds
//! `s c cos(2 pi (u o / out + v i / in)) / (out in)`. Sources: Gao et al. 2024; PEFT
//! 0.21.2, `tuners/fourierft/layer.py`.
//!
//! PEFT transforms the whole matrix. Here each row is transformed by itself: row
//! `o` has the spectrum `g[v] = sum c exp(2 pi i u o / out)` over the coefficients of
//! its column `v`, of which one inverse transform of length `in` makes the row. So
//! no more than a row is held, and rows may come in any order. Where a row has
//! fewer coefficients than a transform costs, their cosines are summed.

use std::cell::RefCell;
use std::sync::Arc;

use super::layer::{Features, Layer};
use super::{KnownMethod, Merging, Method, Module};
use crate::kernel::{Complex, Fourier};
use crate::pattern::Patterns;
use crate::planner::Planner;
use crate::random::Generator;
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, Tile, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "FOURIERFT",
    name: "FourierFT",
    formula: "`W + s Re(F⁻¹(S))`, `S` sparse at places that the seed gives",
    source: "Gao et al. 2024",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct FourierFt {
    places: RandomPlaces,
    scale: f64,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        "fan_in_fan_out",
        "init_weights",
        "n_frequency",
        "n_frequency_pattern",
        "random_loc_seed",
        "scaling",
    ])?;
    Ok(Box::new(FourierFt {
        places: RandomPlaces::read(config, 1000)?,
        scale: config.number("scaling")?.unwrap_or(150.0),
    }))
}

impl Method for FourierFt {
    fn parameters(&self) -> &'static [&'static str] {
        &["fourierft_spectrum"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let spectrum = module.need("fourierft_spectrum", planner)?;
            let layer = planner.layer(module, spectrum, Features::default())?;
            self.places.check(module, &layer, spectrum, None, planner)?;
            let edit = Spectrum {
                spectrum,
                seed: self.places.seed,
                out: layer.out,
                input: layer.input,
                transposed: layer.transposed,
                scale: self.scale / (layer.out * layer.input) as f64,
            };
            planner.edit(layer.slot, "FourierFT", edit);
        }
        Ok(())
    }
}

/// Places of coefficients that a seed gives, as FourierFT and WaveFT have them.
#[derive(Debug)]
pub(super) struct RandomPlaces {
    pub(super) seed: u64,
    count: u64,
    counts: Patterns,
}

impl RandomPlaces {
    pub(super) fn read(config: &AdapterConfig, count: u64) -> Result<Self, Error> {
        Ok(Self {
            // PEFT's own default.
            seed: config.seed("random_loc_seed")?.unwrap_or(777),
            count: config.count("n_frequency")?.unwrap_or(count),
            counts: Patterns::counts(config, "n_frequency_pattern")?,
        })
    }

    /// Fails unless the layer is one that has a spectrum, and that of as many coefficients as it should: so many for
    /// each of its elements, where that is given.
    pub(super) fn check(
        &self,
        module: &Module,
        layer: &Layer,
        spectrum: usize,
        per_element: Option<f64>,
        planner: &Planner<'_>,
    ) -> Result<(), Error> {
        let elements = layer.out.saturating_mul(layer.input);
        if layer.is_conv() {
            return Err(planner.shape_error(spectrum, layer.slot, "the weight of a linear layer".into()));
        }
        let &[stored] = planner.adapter_shape(spectrum) else {
            return Err(planner.shape_error(spectrum, layer.slot, "a vector of coefficients".into()));
        };
        let count = match per_element {
            // As PEFT rounds, half to even.
            Some(share) => (elements as f64 * share).round_ties_even().max(1.0) as u64,
            None => self.counts.settle(&module.path, self.count, stored),
        };
        if count > elements || stored != count {
            let expected = format!("[{count}], at most the weight's {elements} elements");
            return Err(planner.shape_error(spectrum, layer.slot, expected));
        }
        Ok(())
    }
}

/// The first `count` places of an `[out, input]` matrix in the seed's order, as output and input.
pub(super) fn random_places(
    seed: u64,
    out: u64,
    input: u64,
    count: usize,
) -> impl Iterator<Item = (u64, u64)> {
    let places = Generator::seeded(seed).permutation(out * input, count);
    places.into_iter().map(move |place| (place / input, place % input))
}

#[derive(Debug)]
struct Spectrum {
    spectrum: usize,
    seed: u64,
    out: u64,
    input: u64,
    transposed: bool,
    scale: f64,
}

struct PreparedSpectrum {
    /// Places as stored, row frequency and column frequency, and the scaled coefficients.
    coefficients: Vec<(usize, usize, f64)>,
    rows: Fourier,
    cols: Fourier,
    /// Whether the cosines of a row are summed one by one.
    direct: bool,
}

impl Edit for Spectrum {
    fn needs_whole_rows(&self) -> bool {
        true
    }

    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let values: Arc<[f64]> = adapter.values(self.spectrum)?;
        let places = random_places(self.seed, self.out, self.input, values.len());
        let mut coefficients: Vec<_> = places
            .zip(values.iter())
            .map(|((o, i), value)| {
                let (row, col) = if self.transposed { (i, o) } else { (o, i) };
                (row as usize, col as usize, self.scale * value)
            })
            .collect();
        // By columns, so that a row's spectrum is filled from front to back.
        coefficients.sort_unstable_by_key(|(row, col, _)| (*col, *row));
        let (rows, cols) = if self.transposed { (self.input, self.out) } else { (self.out, self.input) };
        let cols = Fourier::new(cols as usize);
        // A transform multiplies each of the row's values about twice as often as its cost says.
        let direct = coefficients.len() < 2 * cols.cost();
        Ok(Box::new(PreparedSpectrum { coefficients, rows: Fourier::new(rows as usize), cols, direct }))
    }
}

thread_local! {
    /// A row's spectrum and the transform's scratch, real and imaginary parts.
    static SCRATCH: RefCell<[Vec<f64>; 4]> = RefCell::default();
}

impl PreparedEdit for PreparedSpectrum {
    fn apply(&self, tile: &mut Tile<'_>) {
        let (cols, height) = (tile.cols, self.rows.len());
        let ((row_cos, row_sin), (col_cos, col_sin)) = (self.rows.roots(), self.cols.roots());
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.iter_mut().for_each(|part| part.resize(cols, 0.0));
            let [re, im, other_re, other_im] = scratch;
            for (row, values) in (tile.first_row as usize..).zip(tile.values.chunks_exact_mut(cols.max(1))) {
                re.fill(0.0);
                im.fill(0.0);
                for &(u, v, coefficient) in &self.coefficients {
                    // Below the square of 2^32: sizes of weights are.
                    let at = (u as u64 * row as u64 % height as u64) as usize;
                    let (cos, sin) = (coefficient * row_cos[at], coefficient * row_sin[at]);
                    if !self.direct {
                        re[v] += cos;
                        im[v] += sin;
                        continue;
                    }
                    let mut at = 0;
                    for sum in re.iter_mut() {
                        *sum += cos * col_cos[at] - sin * col_sin[at];
                        at += v;
                        if at >= cols {
                            at -= cols;
                        }
                    }
                }
                if !self.direct {
                    let mut spectrum = Complex { re, im };
                    let mut other = Complex { re: other_re, im: other_im };
                    self.cols.inverse(tile.level, &mut spectrum, &mut other);
                }
                values.iter_mut().zip(re.iter()).for_each(|(value, add)| *value += add);
            }
        });
    }
}
