//! WaveFT: `W' = W + s D`, `D` the inverse wavelet transform of a sparse matrix of coefficients.
//!
//! `waveft_spectrum` holds `n` coefficients. Their places are the first `n` of a
//! random permutation of the weight's elements, which the seed gives as PyTorch
//! shuffles ([`crate::random`]). With a filter of `L` taps the matrix is `L - 2`
//! larger than the weight in both directions (rounded up to even sizes), the
//! weight's places in its middle; its quarters are the four bands of one level.
//! A coefficient at `(p, q)` of a band adds the product of two filters,
//! `row[y + L - 2 - 2 p] * col[x + L - 2 - 2 q]`. Of the bands, the upper right has the high-pass
//! filter along rows' numbers, `row`, the lower left along columns', as PEFT has it. Sources:
//! Bilican et al. 2025; PEFT 0.21.2, `tuners/waveft/layer.py`, `waverec2d.py`.
//!
//! Since coefficients are few and filters short, a row's own are added where they
//! reach; nothing is transformed in whole.

mod wavelets;

use std::sync::Arc;

use super::fourierft::{RandomPlaces, random_places};
use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, Tile, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "WAVEFT",
    name: "WaveFT",
    formula: "`W + s D`, `D` one level of wavelets with sparse coefficients at places that the seed gives; without \
              `use_idwt` the coefficients themselves",
    source: "Bilican et al. 2025",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct WaveFt {
    places: RandomPlaces,
    scale: f64,
    /// Whether each layer has its share of all coefficients, by its size.
    proportional: bool,
    /// The low-pass filter; nothing where coefficients are added as they are.
    filter: Option<Arc<[f64]>>,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        "fan_in_fan_out",
        "init_weights",
        "n_frequency",
        "n_frequency_pattern",
        "proportional_parameters",
        "random_loc_seed",
        "scaling",
        "use_idwt",
        "wavelet_family",
    ])?;
    let transforms = config.value("use_idwt").is_none() || config.flag("use_idwt")?;
    let family = config.text("wavelet_family")?.unwrap_or("db1");
    let filter = match (transforms, wavelets::low_pass(family)) {
        (false, _) => None,
        (true, Some(filter)) => Some(filter.into()),
        (true, None) => {
            let known = format!("a wavelet that PEFT can compute: {}", wavelets::names());
            return Err(config.wrong("wavelet_family", &known));
        }
    };
    Ok(Box::new(WaveFt {
        places: RandomPlaces::read(config, 2592)?,
        scale: config.number("scaling")?.unwrap_or(25.0),
        proportional: config.flag("proportional_parameters")?,
        filter,
    }))
}

impl Method for WaveFt {
    fn parameters(&self) -> &'static [&'static str] {
        &["waveft_spectrum"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        let mut layers = vec![];
        for module in modules {
            let spectrum = module.need("waveft_spectrum", planner)?;
            layers.push((module, spectrum, planner.layer(module, spectrum, Features::default())?));
        }
        let shares = layers.iter().map(|(_, spectrum, layer)| {
            let stored = planner.adapter_shape(*spectrum).first().copied().unwrap_or(0);
            (stored, layer.out.saturating_mul(layer.input))
        });
        let per_element = self.proportional.then(|| per_element(shares));
        for (module, spectrum, layer) in layers {
            self.places.check(module, &layer, spectrum, per_element, planner)?;
            let edit = Wavelets {
                spectrum,
                seed: self.places.seed,
                out: layer.out,
                input: layer.input,
                transposed: layer.transposed,
                scale: self.scale,
                filter: self.filter.clone(),
            };
            planner.edit(layer.slot, "WaveFT", edit);
        }
        Ok(())
    }
}

/// How many coefficients there are for an element, if each layer has its share: a number that gives every layer's
/// count when it is rounded, if there is one. What it is exactly depends on all layers that were adapted, of which
/// some may not be in the file.
fn per_element(shares: impl Iterator<Item = (u64, u64)>) -> f64 {
    let (mut low, mut high) = (0.0f64, f64::INFINITY);
    for (count, elements) in shares {
        // Nobody has less than one.
        if count > 1 {
            low = low.max((count as f64 - 0.5) / elements as f64);
        }
        high = high.min((count as f64 + 0.5) / elements as f64);
    }
    (low + high) / 2.0
}

#[derive(Debug)]
struct Wavelets {
    spectrum: usize,
    seed: u64,
    out: u64,
    input: u64,
    transposed: bool,
    scale: f64,
    filter: Option<Arc<[f64]>>,
}

/// One coefficient: the first row and column that it reaches, which may lie before the matrix, and
/// the filters along both.
struct Wave {
    row: i64,
    col: i64,
    row_high: bool,
    col_high: bool,
    value: f64,
}

struct PreparedWavelets {
    /// In the order of their first rows.
    waves: Vec<Wave>,
    /// Low-pass and high-pass.
    filters: [Vec<f64>; 2],
}

impl Wavelets {
    /// Where a place of the weight lies in the enlarged matrix: the first element that it reaches, and whether
    /// the place is in the second half.
    fn reach(&self, place: u64, size: u64) -> (i64, bool) {
        let Some(filter) = &self.filter else { return (place as i64, false) };
        let enlarged = (size + filter.len() as u64 - 2).next_multiple_of(2);
        let place = place + (enlarged - size) / 2;
        let (at, second) = if place < enlarged / 2 { (place, false) } else { (place - enlarged / 2, true) };
        // What the transform makes is as large as the weight, or one larger, whose last is cut off.
        (2 * at as i64 - (filter.len() as i64 - 2), second)
    }
}

impl Edit for Wavelets {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let values = adapter.values(self.spectrum)?;
        let places = random_places(self.seed, self.out, self.input, values.len());
        let mut waves = Vec::with_capacity(values.len());
        for ((o, i), value) in places.zip(values.iter()) {
            let ((out_at, lower), (in_at, right)) = (self.reach(o, self.out), self.reach(i, self.input));
            // The upper right band is high along outputs, the lower left along inputs.
            let (mut row, mut col) = ((out_at, right), (in_at, lower));
            if self.transposed {
                (row, col) = (col, row);
            }
            waves.push(Wave {
                row: row.0,
                col: col.0,
                row_high: row.1,
                col_high: col.1,
                value: self.scale * value,
            });
        }
        waves.sort_by_key(|wave| (wave.row, wave.col, wave.row_high, wave.col_high));
        let low = self.filter.as_ref().map_or(vec![1.0], |filter| filter.to_vec());
        let high = low.iter().rev().enumerate().map(|(i, c)| if i % 2 == 0 { *c } else { -c }).collect();
        Ok(Box::new(PreparedWavelets { waves, filters: [low, high] }))
    }
}

impl PreparedEdit for PreparedWavelets {
    fn apply(&self, tile: &mut Tile<'_>) {
        let taps = self.filters[0].len() as i64;
        let (first_col, cols) = (tile.first_col as i64, tile.cols as i64);
        for (row, values) in (tile.first_row as i64..).zip(tile.values.chunks_exact_mut(tile.cols.max(1))) {
            let from = self.waves.partition_point(|wave| wave.row + taps <= row);
            for wave in self.waves[from..].iter().take_while(|wave| wave.row <= row) {
                let along_row = self.filters[usize::from(wave.row_high)][(row - wave.row) as usize];
                let filter = &self.filters[usize::from(wave.col_high)];
                let start = (first_col - wave.col).clamp(0, taps);
                let end = (first_col + cols - wave.col).clamp(start, taps);
                for (tap, along_col) in (start..end).zip(&filter[start as usize..]) {
                    values[(wave.col + tap - first_col) as usize] += wave.value * along_row * along_col;
                }
            }
        }
    }
}
