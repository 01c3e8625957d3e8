//! Evaluating a blend: rows of the inputs in, merged rows out, a strip at a time.

use std::cell::RefCell;
use std::ops::Range;

use tenon_checkpoint::{Error as SourceError, FileRange, Rows, TensorInfo, TensorSource};
use tenon_merge::kernel::{self, Level};

use crate::kernel as sums;
use crate::plan::{BlendPlan, Input, Recipe, Tensor};
use crate::select::Seen;
use crate::strip::Strip;
use crate::survey::Survey;
use crate::{Error, ModelReference};

/// Elements of a strip: of an input or two and the sum, in `f64`, what the L1 cache holds.
const STRIP: usize = 1 << 11;

/// Bytes of an input that are read at once, at most: what the L2 cache holds of several.
const CHUNK_BYTES: u64 = 1 << 18;

/// A run of elements of what was read of the inputs.
pub(crate) struct Run<'a> {
    /// Number of the first within the tensor.
    pub(crate) first: u64,
    bytes: &'a [Vec<u8>],
    range: Range<usize>,
}

impl Run<'_> {
    /// Decodes it.
    pub(crate) fn decode(&self, what: &Tensor, level: Level, strip: &mut Strip) {
        strip.decode(what, level, self.first, self.bytes, self.range.clone());
    }

    /// The bytes of an input that is stored in so many to an element.
    pub(crate) fn bytes(&self, input: usize, width: usize) -> &[u8] {
        &self.bytes[input][self.range.start * width..self.range.end * width]
    }
}

thread_local! {
    /// Kept from tile to tile.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    bytes: Vec<Vec<u8>>,
    strip: Strip,
    out: Vec<f64>,
    room: Vec<f64>,
    weights: Vec<Vec<f64>>,
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
    fn is_copy(&self, output: tenon_checkpoint::Dtype) -> bool {
        match &self.recipe {
            Recipe::Same => true,
            Recipe::Sum { weights, divisor } => {
                weights.len() == 1
                    && self.inputs[0].aligned.is_none()
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

    /// Reads rows of all inputs of a tensor, as they are stored.
    pub(crate) fn read_inputs(
        &self,
        tensor: usize,
        rows: &Rows,
        bytes: &mut Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        let inputs = &self.tensors[tensor].inputs;
        let elements = ((rows.end - rows.start) * self.infos[tensor].row_len()) as usize;
        bytes.resize_with(inputs.len().max(bytes.len()), Vec::new);
        for (input, bytes) in inputs.iter().zip(bytes) {
            bytes.resize(elements * input.stored.bits() as usize / 8, 0);
            if let Some(number) = input.aligned {
                let alignment = &self.alignments[number];
                alignment.read(&self.models, self.options.level, rows.clone(), bytes)?;
                continue;
            }
            self.models[input.model].source.read_rows(input.tensor, rows.clone(), bytes)?;
        }
        Ok(())
    }

    /// Reads rows of all inputs of a tensor and calls `look` with each run of their elements in order.
    pub(crate) fn each_run(
        &self,
        tensor: usize,
        rows: Rows,
        bytes: &mut Vec<Vec<u8>>,
        mut look: impl FnMut(Run<'_>),
    ) -> Result<(), Error> {
        self.read_inputs(tensor, &rows, bytes)?;
        let row_len = self.infos[tensor].row_len();
        let (first, elements) = (rows.start * row_len, ((rows.end - rows.start) * row_len) as usize);
        for range in self.runs(tensor, elements) {
            look(Run { first: first + range.start as u64, bytes, range });
        }
        Ok(())
    }

    /// Cuts elements into strips.
    fn runs(&self, tensor: usize, elements: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let unit = self.unit(tensor).max(1);
        let step = (STRIP / unit).max(1) * unit;
        (0..elements).step_by(step).map(move |at| at..elements.min(at + step))
    }

    /// Elements that must stay together: those of a row, where rows are looked at as wholes.
    pub(crate) fn unit(&self, tensor: usize) -> usize {
        let info = &self.infos[tensor];
        if self.tensors[tensor].by_rows() { (info.row_len() * info.row_block) as usize } else { 1 }
    }

    fn evaluate(
        &self,
        tensor: usize,
        rows: Rows,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let info = &self.infos[tensor];
        let cell = self.survey(tensor)?;
        let Some(Ok(survey)) = cell.get() else { unreachable!("a survey that failed was an error") };
        let mut seen = self.seen_before(tensor, &rows, survey);
        let block = info.row_block.max(1);
        let step = (CHUNK_BYTES / info.row_bytes().max(1) / block * block).max(block);
        let mut row = rows.start;
        let mut left = out;
        while row < rows.end {
            let chunk = row..rows.end.min(row + step);
            let (now, later) = left.split_at_mut(((chunk.end - chunk.start) * info.row_bytes()) as usize);
            self.read_inputs(tensor, &chunk, &mut scratch.bytes)?;
            self.evaluate_chunk(tensor, chunk.start * info.row_len(), now, survey, &mut seen, scratch)?;
            (left, row) = (later, chunk.end);
        }
        Ok(())
    }

    /// Makes the elements from number `first` on of what was read of the inputs.
    fn evaluate_chunk(
        &self,
        tensor: usize,
        first: u64,
        out: &mut [u8],
        survey: &Survey,
        seen: &mut [Seen],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let info = &self.infos[tensor];
        let level = self.options.level;
        let width = info.dtype.bits() as usize / 8;
        let elements = out.len() / width;
        for run in self.runs(tensor, elements) {
            let at = run.start;
            scratch.out.resize(run.len(), 0.0);
            self.evaluate_strip(tensor, first + at as u64, run.clone(), survey, seen, scratch)?;
            let encoded = &mut out[run.start * width..run.end * width];
            let values = &scratch.out;
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

    fn evaluate_strip(
        &self,
        tensor: usize,
        first: u64,
        run: Range<usize>,
        survey: &Survey,
        seen: &mut [Seen],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let Scratch { bytes, strip, out, room, weights } = scratch;
        let what = &self.tensors[tensor];
        let level = self.options.level;
        let fixed = match (&what.recipe, survey) {
            (Recipe::Sum { weights, divisor }, _) => Some((weights, *divisor)),
            (Recipe::Span(_), Survey::Weights(weights)) => Some((weights, 1.0)),
            _ => None,
        };
        if let Some((weights, divisor)) = fixed {
            if what.inputs.iter().all(|input| input.stored == what.work) {
                // Nothing is rounded on the way in, so nothing need be decoded apart.
                for (number, (input, bytes)) in what.inputs.iter().zip(&*bytes).enumerate() {
                    let width = input.stored.bits() as usize / 8;
                    let bytes = &bytes[run.start * width..run.end * width];
                    match number {
                        0 => sums::set_scaled(level, input.stored, bytes, weights[0], out),
                        _ => sums::add_scaled(level, input.stored, bytes, weights[number], out, room),
                    }
                }
            } else {
                strip.decode(what, level, first, bytes, run);
                out.fill(0.0);
                for (x, weight) in strip.inputs.iter().zip(weights) {
                    sums::add_scaled_values(level, x, *weight, out);
                }
            }
            if divisor != 1.0 {
                sums::divide(level, divisor, out);
            }
            return Ok(());
        }
        strip.decode(what, level, first, bytes, run);
        match (&what.recipe, survey) {
            (Recipe::Span(span), Survey::Nothing) => {
                let unit = self.unit(tensor).max(1);
                for start in (0..out.len()).step_by(unit) {
                    let row = start..(start + unit).min(out.len());
                    let gram = span.gram(level, strip, row.clone());
                    let name = &self.infos[tensor].name;
                    let weights = span.weights(&gram, what.inputs.len(), name)?;
                    let out = &mut out[row.clone()];
                    out.fill(0.0);
                    for (x, weight) in strip.inputs.iter().zip(weights) {
                        sums::add_scaled_values(level, &x[row.clone()], weight, out);
                    }
                }
            }
            (Recipe::Span(_), Survey::Columns(columns)) => {
                out.fill(0.0);
                for (x, columns) in strip.inputs.iter().zip(columns) {
                    let mut at = 0;
                    while at < out.len() {
                        let column = ((first + at as u64) % columns.len() as u64) as usize;
                        let end = out.len().min(at + columns.len() - column);
                        let weights = &columns[column..column + end - at];
                        sums::add_products(level, &x[at..end], weights, &mut out[at..end]);
                        at = end;
                    }
                }
            }
            (Recipe::NearSwap { base, t }, _) => {
                sums::near_swap(level, &strip.inputs[*base], &strip.inputs[1 - *base], *t, out);
            }
            (Recipe::Differences(recipe), Survey::Parts(parts)) => {
                self.sum_differences(tensor, recipe, parts, strip, seen, out, weights);
            }
            (Recipe::Reinforced(recipe), Survey::Shares(shares)) => recipe.apply(shares, strip, out),
            (Recipe::Sce(recipe), Survey::Sce(survey)) => recipe.apply(survey, strip, &mut seen[0], out),
            _ => unreachable!("a survey fits the recipe that it was made for"),
        }
        Ok(())
    }

    /// Ties with the thresholds of each part before a tile.
    fn seen_before(&self, tensor: usize, rows: &Rows, survey: &Survey) -> Vec<Seen> {
        let piece = (rows.start / Tensor::piece_rows(&self.infos[tensor])) as usize;
        let before = |seen: &Vec<Seen>| seen.get(piece).copied().unwrap_or_default();
        match survey {
            Survey::Parts(parts) => parts.iter().map(|part| before(&part.seen_before)).collect(),
            Survey::Sce(survey) => vec![before(&survey.seen_before)],
            _ => vec![],
        }
    }
}
