//! Evaluating a blend: rows of the inputs in, merged rows out, a strip at a time.

use std::cell::RefCell;
use std::ops::Range;

use tenon_checkpoint::{Dtype, Error as SourceError, FileRange, Rows, TensorInfo, TensorSource};
use tenon_merge::kernel::{self, Level};

use crate::plan::{BlendPlan, Differences, Input, Recipe, Tensor};
use crate::select::{Seen, key};
use crate::survey::{PartSurvey, Survey};
use crate::{Error, ModelReference};

/// Elements of a strip: of four inputs and their differences, all in `f64`, what the L2 cache holds.
const STRIP: usize = 1 << 14;

thread_local! {
    /// Kept from tile to tile.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    bytes: Vec<Vec<u8>>,
    strip: Strip,
    out: Vec<f64>,
    weights: Vec<f64>,
}

impl TensorSource for BlendPlan {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), SourceError> {
        let what = &self.tensors[tensor];
        if what.is_copy(self.infos[tensor].dtype) {
            let input = what.inputs[0];
            self.models[input.model].source.read_rows(input.tensor, rows.clone(), out)?;
            return Ok(self.check_same(tensor, rows, out)?);
        }
        // Taken out rather than borrowed, so that a blend may read from a blend.
        let mut scratch = SCRATCH.take();
        let result = self.evaluate(tensor, rows, out, &mut scratch);
        SCRATCH.replace(scratch);
        Ok(result?)
    }

    fn lies_at(&self, tensor: usize) -> Option<FileRange<'_>> {
        let what = &self.tensors[tensor];
        let is_one = what.inputs.len() == 1 && what.is_copy(self.infos[tensor].dtype);
        is_one.then(|| self.models[what.inputs[0].model].source.lies_at(what.inputs[0].tensor)).flatten()
    }
}

impl Tensor {
    /// Whether the result's bytes are the first input's.
    fn is_copy(&self, output: Dtype) -> bool {
        match &self.recipe {
            Recipe::Same => true,
            Recipe::Linear { weights, divisor } => {
                weights.len() == 1
                    && weights[0] == *divisor
                    && [self.work, output].iter().all(|dtype| *dtype == self.inputs[0].stored)
            }
            _ => false,
        }
    }
}

impl BlendPlan {
    /// Of elements that are no floats: fails where the inputs do not agree.
    fn check_same(&self, tensor: usize, rows: Rows, first: &[u8]) -> Result<(), Error> {
        let inputs = &self.tensors[tensor].inputs;
        let mut bytes = vec![0; if inputs.len() > 1 { first.len() } else { 0 }];
        for input in &inputs[1..] {
            self.models[input.model].source.read_rows(input.tensor, rows.clone(), &mut bytes)?;
            if bytes != first {
                return Err(Error::Differs {
                    tensor: self.infos[tensor].name.clone(),
                    dtype: input.stored.name(),
                    first: self.reference(inputs[0]).to_string(),
                    second: self.reference(*input).to_string(),
                });
            }
        }
        Ok(())
    }

    fn reference(&self, input: Input) -> &ModelReference {
        &self.models[input.model].reference
    }

    fn read_inputs(&self, tensor: usize, rows: &Rows, bytes: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        let inputs = &self.tensors[tensor].inputs;
        let elements = ((rows.end - rows.start) * self.infos[tensor].row_len()) as usize;
        bytes.resize_with(inputs.len().max(bytes.len()), Vec::new);
        for (input, bytes) in inputs.iter().zip(bytes) {
            bytes.resize(elements * input.stored.bits() as usize / 8, 0);
            self.models[input.model].source.read_rows(input.tensor, rows.clone(), bytes)?;
        }
        Ok(())
    }

    fn evaluate(
        &self,
        tensor: usize,
        rows: Rows,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let Scratch { bytes, strip, out: values, weights } = scratch;
        let (what, info) = (&self.tensors[tensor], &self.infos[tensor]);
        let cell = self.survey(tensor)?;
        let Some(Ok(survey)) = cell.get() else { unreachable!("a survey that failed was an error") };
        let elements = ((rows.end - rows.start) * info.row_len()) as usize;
        let first = rows.start * info.row_len();
        self.read_inputs(tensor, &rows, bytes)?;
        let level = self.options.level;
        let width = info.dtype.bits() as usize / 8;
        let mut seen = self.seen_before(tensor, &rows, survey);
        for at in (0..elements).step_by(STRIP) {
            let count = STRIP.min(elements - at);
            strip.decode(what, level, first + at as u64, bytes, at..at + count);
            values.resize(count, 0.0);
            self.combine(tensor, survey, strip, &mut seen, values, weights);
            let encoded = &mut out[at * width..(at + count) * width];
            if !kernel::encode(level, info.dtype, values, encoded) && !self.options.allow_non_finite {
                let bad = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
                return Err(Error::NonFinite {
                    tensor: info.name.clone(),
                    row: (first + (at + bad) as u64) / info.row_len().max(1),
                    dtype: info.dtype.name(),
                });
            }
        }
        Ok(())
    }

    /// Ties with the thresholds of each part before a tile.
    fn seen_before(&self, tensor: usize, rows: &Rows, survey: &Survey) -> Vec<Seen> {
        let Survey::Parts(parts) = survey else { return vec![] };
        let piece = (rows.start / Tensor::piece_rows(&self.infos[tensor])) as usize;
        parts.iter().map(|part| part.seen_before.get(piece).copied().unwrap_or_default()).collect()
    }

    fn combine(
        &self,
        tensor: usize,
        survey: &Survey,
        strip: &Strip,
        seen: &mut [Seen],
        out: &mut [f64],
        weights: &mut Vec<f64>,
    ) {
        let inputs = &strip.inputs;
        match (&self.tensors[tensor].recipe, survey) {
            (Recipe::Linear { weights, divisor }, _) => {
                out.fill(0.0);
                for (x, weight) in inputs.iter().zip(weights) {
                    out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
                }
                if *divisor != 1.0 {
                    out.iter_mut().for_each(|out| *out /= divisor);
                }
            }
            (Recipe::Arc(arc), Survey::Arc { from, to }) => {
                for (i, out) in out.iter_mut().enumerate() {
                    let origin = arc.base.map_or(0.0, |base| inputs[base][i]);
                    *out =
                        origin + (from * (inputs[arc.from][i] - origin) + to * (inputs[arc.to][i] - origin));
                }
            }
            (Recipe::Stock { base }, Survey::Stock { t }) => {
                let others = (inputs.len() - 1) as f64;
                out.fill(0.0);
                for (input, x) in inputs.iter().enumerate() {
                    if input != *base {
                        out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
                    }
                }
                let base = &inputs[*base];
                out.iter_mut().zip(base).for_each(|(out, b)| *out = t * (*out / others) + (1.0 - t) * b);
            }
            (Recipe::NearSwap { base, t }, _) => {
                let (base, other) = (&inputs[*base], &inputs[1 - *base]);
                for ((out, b), x) in out.iter_mut().zip(base).zip(other) {
                    let part = (t / (b - x).abs().max(1e-6)).clamp(0.0, 1.0);
                    *out = part * x + (1.0 - part) * b;
                }
            }
            (Recipe::Differences(what), Survey::Parts(parts)) => {
                self.sum_differences(tensor, what, parts, strip, seen, out, weights);
            }
            _ => unreachable!("a survey fits the recipe that it was made for"),
        }
    }

    /// `b + λ Σ w d`, over what is kept of each `d` and, with consensus, has the majority's sign.
    #[allow(clippy::too_many_arguments)] // the parts of one sum
    fn sum_differences(
        &self,
        tensor: usize,
        what: &Differences,
        surveys: &[PartSurvey],
        strip: &Strip,
        seen: &mut [Seen],
        out: &mut [f64],
        divisors: &mut Vec<f64>,
    ) {
        let base = &strip.inputs[what.base];
        let count = base.len();
        // Of each part what is kept, exactly; with consensus also as mergekit rounds it, weighted.
        let mut kept: Vec<Vec<f64>> = Vec::with_capacity(what.parts.len());
        let mut votes: Vec<Vec<f64>> = Vec::new();
        for (number, (part, survey)) in what.parts.iter().zip(surveys).enumerate() {
            let mut exact: Vec<f64> =
                strip.inputs[part.input].iter().zip(base).map(|(x, b)| (x - b) * survey.scale).collect();
            let mut rounded = vec![];
            if survey.thresholds.is_some() || what.consensus {
                rounded = strip.rounded_differences(what.base, part.input);
            }
            if part.choice == crate::select::Choice::Nothing {
                exact.fill(0.0);
                rounded.fill(0.0);
            }
            let draw = part.chance.map(|chance| (Draw::new(self, tensor, number), chance));
            if survey.thresholds.is_some() || draw.is_some() {
                for i in 0..count {
                    let keeps = match (&survey.thresholds, draw) {
                        (Some(thresholds), _) => thresholds.keeps(key(rounded[i]), &mut seen[number]),
                        (None, Some((draw, chance))) => draw.keeps(strip.first + i as u64, chance),
                        (None, None) => true,
                    };
                    if !keeps {
                        exact[i] = 0.0;
                        if let Some(rounded) = rounded.get_mut(i) {
                            *rounded = 0.0;
                        }
                    }
                }
            }
            if what.consensus {
                if survey.scale != 1.0 {
                    rounded.iter_mut().for_each(|d| *d *= survey.scale);
                    strip.round(&mut rounded);
                }
                let mut weight = [part.weight];
                strip.round(&mut weight);
                rounded.iter_mut().for_each(|d| *d *= weight[0]);
                strip.round(&mut rounded);
                votes.push(rounded);
            }
            kept.push(exact);
        }
        out.fill(0.0);
        if what.consensus {
            divisors.clear();
            divisors.resize(count, 0.0);
            for i in 0..count {
                let total: f64 = votes.iter().map(|votes| votes[i]).sum();
                for ((part, kept), votes) in what.parts.iter().zip(&kept).zip(&votes) {
                    if (total >= 0.0 && votes[i] > 0.0) || (total < 0.0 && votes[i] < 0.0) {
                        out[i] += part.weight * kept[i];
                        divisors[i] += part.weight;
                    }
                }
            }
            if what.normalize {
                for (out, divisor) in out.iter_mut().zip(divisors) {
                    *out /= if *divisor == 0.0 { 1.0 } else { *divisor };
                }
            }
        } else {
            for (part, kept) in what.parts.iter().zip(&kept) {
                out.iter_mut().zip(kept).for_each(|(out, d)| *out += part.weight * d);
            }
            let divisor: f64 = what.parts.iter().map(|part| part.weight).sum();
            if what.normalize && divisor.abs() >= 1e-8 {
                out.iter_mut().for_each(|out| *out /= divisor);
            }
        }
        out.iter_mut().zip(base).for_each(|(out, b)| *out = b + what.lambda * *out);
    }
}

/// A run of elements of all inputs, decoded.
pub(crate) struct Strip {
    /// Of each input, rounded to the working type.
    pub(crate) inputs: Vec<Vec<f64>>,
    /// Number of the first element within the tensor.
    pub(crate) first: u64,
    work: Dtype,
    level: Level,
}

impl Default for Strip {
    fn default() -> Self {
        Self { inputs: vec![], first: 0, work: Dtype::F64, level: Level::Scalar }
    }
}

impl Strip {
    pub(crate) fn len(&self) -> usize {
        self.inputs.first().map_or(0, Vec::len)
    }

    /// Reads rows of all inputs of a tensor.
    pub(crate) fn read(
        &mut self,
        plan: &BlendPlan,
        tensor: usize,
        rows: Rows,
        bytes: &mut Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        let row_len = plan.infos[tensor].row_len();
        plan.read_inputs(tensor, &rows, bytes)?;
        let elements = ((rows.end - rows.start) * row_len) as usize;
        self.decode(&plan.tensors[tensor], plan.options.level, rows.start * row_len, bytes, 0..elements);
        Ok(())
    }

    /// Decodes a run of elements of what was read of the inputs.
    fn decode(&mut self, what: &Tensor, level: Level, first: u64, bytes: &[Vec<u8>], run: Range<usize>) {
        (self.first, self.work, self.level) = (first, what.work, level);
        self.inputs.resize_with(what.inputs.len(), Vec::new);
        for ((input, bytes), values) in what.inputs.iter().zip(bytes).zip(&mut self.inputs) {
            let width = input.stored.bits() as usize / 8;
            values.resize(run.len(), 0.0);
            kernel::decode(level, input.stored, &bytes[run.start * width..run.end * width], values);
            if input.stored != what.work {
                round(level, what.work, values);
            }
        }
    }

    /// What an input differs by from the base, rounded to the working type.
    pub(crate) fn rounded_differences(&self, base: usize, input: usize) -> Vec<f64> {
        let pairs = self.inputs[input].iter().zip(&self.inputs[base]);
        let mut differences: Vec<f64> = pairs.map(|(x, b)| x - b).collect();
        self.round(&mut differences);
        differences
    }

    fn round(&self, values: &mut [f64]) {
        round(self.level, self.work, values);
    }
}

/// Rounds to what a narrower type can hold.
fn round(level: Level, dtype: Dtype, values: &mut [f64]) {
    match dtype {
        Dtype::F64 => {}
        Dtype::F32 => values.iter_mut().for_each(|value| *value = f64::from(*value as f32)),
        dtype => {
            let mut bytes = [0; 2 * 256];
            for values in values.chunks_mut(256) {
                let bytes = &mut bytes[..2 * values.len()];
                kernel::encode(level, dtype, values, bytes);
                kernel::decode(level, dtype, bytes, values);
            }
        }
    }
}

/// Draws which elements of a difference are kept: a function of seed, tensor, model and place alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw {
    key: u64,
}

impl Draw {
    pub(crate) fn new(plan: &BlendPlan, tensor: usize, part: usize) -> Self {
        let mut key = mix(plan.options.seed ^ part as u64);
        for byte in plan.infos[tensor].name.bytes() {
            key = mix(key ^ u64::from(byte));
        }
        Self { key }
    }

    pub(crate) fn keeps(self, element: u64, chance: f64) -> bool {
        let drawn = mix(self.key.wrapping_add(element.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        // 53 bits, as uniform as an f64 between 0 and 1 can be.
        ((drawn >> 11) as f64) < chance * (1u64 << 53) as f64
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_drawn_as_the_chance_says() {
        for (key, chance) in [(1, 0.1), (2, 0.5), (3, 0.93)] {
            let draw = Draw { key };
            let kept = (0..100_000).filter(|i| draw.keeps(*i, chance)).count() as f64 / 1e5;
            assert!((kept - chance).abs() < 0.01, "{kept} of {chance}");
        }
        assert!((0..1000).all(|i| Draw { key: 7 }.keeps(i, 1.0) && !Draw { key: 7 }.keeps(i, 0.0)));
    }
}
