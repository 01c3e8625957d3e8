//! What must be known of a whole tensor before its first tile: angles, thresholds, norms.
//!
//! A survey reads the inputs by pieces, on several threads. Sums are taken
//! within a piece and then over the pieces in order, so that they are the same
//! for any number of threads.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tenon_checkpoint::Dtype;
use tenon_merge::kernel::Level;

use crate::differences::Draw;
use crate::plan::{BlendPlan, Differences, Recipe, Reinforced, Sce, Tensor};
use crate::select::{Choice, Histogram, Ranks, Seen, Thresholds};
use crate::source::Run;
use crate::span::{Scope, Span};
use crate::strip::Strip;
use crate::{Error, kernel as sums};

/// What a survey found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Survey {
    /// Nothing was to be found.
    Nothing,
    /// What each input is multiplied by.
    Weights(Vec<f64>),
    /// The same of each input for each column.
    Columns(Vec<Vec<f64>>),
    /// For each part of a sum of differences.
    Parts(Vec<PartSurvey>),
    /// What is multiplied by what each difference has alone.
    Shares(Vec<f64>),
    /// Of differences chosen by how much they vary.
    Sce(SceSurvey),
}

/// What is kept of one difference, and by what it is scaled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PartSurvey {
    pub(crate) thresholds: Option<Thresholds>,
    /// Ties with the thresholds before each piece.
    pub(crate) seen_before: Vec<Seen>,
    pub(crate) scale: f64,
}

/// Where differences vary enough, and how much each counts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SceSurvey {
    pub(crate) thresholds: Option<Thresholds>,
    /// Ties with the threshold before each piece.
    pub(crate) seen_before: Vec<Seen>,
    pub(crate) weights: Vec<f64>,
}

/// Surveys of the tensors now being read.
#[derive(Default)]
pub(crate) struct Surveys {
    entries: VecDeque<(usize, Arc<Cell>)>,
}

type Cell = OnceLock<Result<Survey, String>>;

/// Tiles are read in order, so workers are in two tensors at most, unless tensors are smaller than tiles.
const KEPT: usize = 8;

impl BlendPlan {
    /// The survey of a tensor; the first thread that asks makes it, others wait.
    pub(crate) fn survey(&self, tensor: usize) -> Result<Arc<Cell>, Error> {
        let cell = {
            let mut surveys = self.surveys.lock().unwrap_or_else(PoisonError::into_inner);
            match surveys.entries.iter().find(|(known, _)| *known == tensor) {
                Some((_, cell)) => cell.clone(),
                None => {
                    let cell = Arc::new(Cell::new());
                    surveys.entries.push_back((tensor, cell.clone()));
                    if surveys.entries.len() > KEPT {
                        surveys.entries.pop_front();
                    }
                    cell
                }
            }
        };
        let mut own = None;
        let made = cell.get_or_init(|| {
            self.make_survey(tensor).map_err(|error| {
                let text = error.to_string();
                own = Some(error);
                text
            })
        });
        if let Err(text) = made {
            // The thread that ran into the error has it whole; the others stop with its text.
            let text = || Error::Checkpoint(tenon_checkpoint::Error::Source(text.clone().into()));
            return Err(own.unwrap_or_else(text));
        }
        Ok(cell)
    }

    fn make_survey(&self, tensor: usize) -> Result<Survey, Error> {
        match &self.tensors[tensor].recipe {
            Recipe::Span(span) => self.survey_span(tensor, span),
            Recipe::Differences(what) => self.survey_parts(tensor, what),
            Recipe::Reinforced(what) => self.survey_shares(tensor, what),
            Recipe::Sce(what) => self.survey_sce(tensor, what),
            Recipe::Same | Recipe::Sum { .. } | Recipe::NearSwap { .. } => Ok(Survey::Nothing),
        }
    }

    /// Calls `look` with every strip of a tensor's inputs, the strips of a piece in order with one `A`;
    /// gives those in the order of the pieces, and what each thread made of all strips that it saw.
    fn pieces<A: Default + Send, T: Send>(
        &self,
        tensor: usize,
        threads: usize,
        of_thread: impl Fn() -> T + Sync,
        look: impl Fn(&mut T, &mut A, &Strip) + Sync,
    ) -> Result<(Vec<A>, Vec<T>), Error> {
        let what = &self.tensors[tensor];
        let look = |(own, strip): &mut (T, Strip), answer: &mut A, run: Run<'_>| {
            run.decode(what, self.options.level, strip);
            look(own, answer, strip);
        };
        let of_thread = || (of_thread(), Strip::default());
        let (answers, of_threads) = self.pieces_of_bytes(tensor, threads, of_thread, look)?;
        Ok((answers, of_threads.into_iter().map(|(own, _)| own).collect()))
    }

    /// The same with runs that are not decoded.
    fn pieces_of_bytes<A: Default + Send, T: Send>(
        &self,
        tensor: usize,
        threads: usize,
        of_thread: impl Fn() -> T + Sync,
        look: impl Fn(&mut T, &mut A, Run<'_>) + Sync,
    ) -> Result<(Vec<A>, Vec<T>), Error> {
        let info = &self.infos[tensor];
        let rows_per_piece = Tensor::piece_rows(info);
        let count = info.rows().div_ceil(rows_per_piece);
        let next = AtomicU64::new(0);
        let answers = Mutex::new(Vec::with_capacity(count as usize));
        let work = || {
            let (mut bytes, mut own) = (vec![], of_thread());
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= count {
                    return Ok(own);
                }
                let first = piece * rows_per_piece;
                let rows = first..(first + rows_per_piece).min(info.rows());
                let mut answer = A::default();
                self.each_run(tensor, rows, &mut bytes, |run| look(&mut own, &mut answer, run))?;
                answers.lock().unwrap_or_else(PoisonError::into_inner).push((piece, answer));
            }
        };
        let threads = (threads as u64).clamp(1, count.max(1));
        let outcomes: Vec<Result<T, Error>> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let panicked = || {
                let text = "a survey of a tensor".to_string();
                Err(Error::Checkpoint(tenon_checkpoint::Error::WorkerPanicked(text)))
            };
            let others = others.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked()));
            std::iter::once(own).chain(others).collect()
        });
        let of_threads = outcomes.into_iter().collect::<Result<Vec<T>, Error>>()?;
        let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        answers.sort_unstable_by_key(|(piece, _)| *piece);
        Ok((answers.into_iter().map(|(_, answer)| answer).collect(), of_threads))
    }

    fn survey_span(&self, tensor: usize, span: &Span) -> Result<Survey, Error> {
        let (level, inputs) = (self.options.level, self.tensors[tensor].inputs.len());
        let name = &self.infos[tensor].name;
        match span.scope {
            Scope::Rows => Ok(Survey::Nothing),
            Scope::Whole => {
                let what = &self.tensors[tensor];
                let is_bf16 = what.inputs.iter().all(|input| [input.stored, what.work] == [Dtype::BF16; 2]);
                let look = |strip: &mut Strip, gram: &mut Vec<f64>, run: Run<'_>| {
                    if is_bf16 {
                        add_all(gram, &span.gram_of_bf16(level, &run));
                    } else {
                        run.decode(what, level, strip);
                        add_all(gram, &span.gram(level, strip, 0..strip.len()));
                    }
                };
                let threads = self.options.threads;
                let (grams, _) = self.pieces_of_bytes(tensor, threads, Strip::default, look)?;
                let mut total = vec![0.0; span.vectors.len() * span.vectors.len()];
                grams.iter().for_each(|gram| add_all(&mut total, gram));
                Ok(Survey::Weights(span.weights(&total, inputs, name)?))
            }
            Scope::Columns => {
                let columns = self.infos[tensor].row_len() as usize;
                let pairs = span.vectors.len() * span.vectors.len();
                // One thread, so that the sums of a column are in one order without one for each piece.
                let look = |sums: &mut Vec<f64>, (): &mut (), strip: &Strip| span.add_columns(strip, sums);
                let (_, grams) = self.pieces(tensor, 1, || vec![0.0; columns * pairs], look)?;
                let mut weights = vec![Vec::with_capacity(columns); inputs];
                for gram in grams.iter().flat_map(|grams| grams.chunks(pairs)) {
                    for (weights, weight) in weights.iter_mut().zip(span.weights(gram, inputs, name)?) {
                        weights.push(weight);
                    }
                }
                Ok(Survey::Columns(weights))
            }
        }
    }

    fn survey_parts(&self, tensor: usize, what: &Differences) -> Result<Survey, Error> {
        let ranks = |part: usize, _| match what.parts[part].choice {
            Choice::Ranked(ranks) => Some(ranks),
            Choice::All | Choice::Nothing => None,
        };
        let keys = |strip: &Strip, part: usize, keys: &mut Vec<u32>| {
            if ranks(part, 0).is_some() {
                strip.keys(&strip.rounded_differences(what.base, what.parts[part].input), keys);
            }
        };
        let thresholds = self.thresholds(tensor, what.parts.len(), &keys, &ranks)?;
        let is_drawn = what.rescale && what.parts.iter().any(|part| part.chance.is_some());
        let plain = PartSurvey { thresholds: None, seen_before: vec![], scale: 1.0 };
        if thresholds.iter().all(Option::is_none) && !is_drawn {
            return Ok(Survey::Parts(vec![plain; what.parts.len()]));
        }
        // Of each piece and part: ties with the thresholds, the sum of magnitudes before and after.
        type Sums = Vec<(Seen, f64, f64)>;
        let (seed, info, unit) = (self.options.seed, &self.infos[tensor], self.unit(tensor));
        let look = |keys: &mut Vec<u32>, all: &mut Sums, strip: &Strip| {
            all.resize(what.parts.len(), Default::default());
            for (number, (part, (seen, before, after))) in what.parts.iter().zip(all).enumerate() {
                if thresholds[number].is_none() && (part.chance.is_none() || !what.rescale) {
                    continue;
                }
                let mut kept = strip.rounded_differences(what.base, part.input);
                if what.rescale {
                    *before += sums::sum_of_magnitudes(strip.level, &kept);
                }
                strip.keys(&kept, keys);
                if let Some(thresholds) = &thresholds[number] {
                    thresholds.keep_strictly(strip.level, keys, &mut kept, seen);
                } else if let Some(chance) = part.chance {
                    Draw::new(seed, info, number).keep(chance, strip, keys, unit, &mut [&mut kept]);
                }
                if what.rescale {
                    *after += sums::sum_of_magnitudes(strip.level, &kept);
                }
            }
        };
        let (sums, _) = self.pieces(tensor, self.options.threads, Vec::new, look)?;
        let mut surveys = vec![plain; what.parts.len()];
        for (number, survey) in surveys.iter_mut().enumerate() {
            survey.thresholds = thresholds[number];
            let mut seen = Seen::default();
            let (mut before, mut after) = (0.0, thresholds[number].map_or(0.0, |t| t.kept_ties()));
            for piece in sums.iter().filter(|piece| !piece.is_empty()) {
                survey.seen_before.push(seen);
                seen = seen.and(piece[number].0);
                before += piece[number].1;
                after += piece[number].2;
            }
            if what.rescale && before >= 1e-7 && after >= 1e-7 {
                survey.scale = before / after;
            }
        }
        Ok(Survey::Parts(surveys))
    }

    fn survey_shares(&self, tensor: usize, what: &Reinforced) -> Result<Survey, Error> {
        let others = self.tensors[tensor].inputs.len() - 1;
        let mut totals = vec![[0; 2]; others];
        if what.more.is_some() {
            let look = |(): &mut (), counts: &mut Vec<[u64; 2]>, strip: &Strip| {
                counts.resize(others, [0; 2]);
                for (total, count) in counts.iter_mut().zip(what.count(strip)) {
                    *total = [total[0] + count[0], total[1] + count[1]];
                }
            };
            let (counts, _) = self.pieces(tensor, self.options.threads, || (), look)?;
            for (number, total) in totals.iter_mut().enumerate() {
                for counts in counts.iter().filter_map(|counts| counts.get(number)) {
                    *total = [total[0] + counts[0], total[1] + counts[1]];
                }
            }
        }
        Ok(Survey::Shares(totals.into_iter().map(|counts| what.factor(counts)).collect()))
    }

    fn survey_sce(&self, tensor: usize, what: &Sce) -> Result<Survey, Error> {
        let others = self.tensors[tensor].inputs.len() - 1;
        let elements = self.infos[tensor].elements();
        let mut thresholds = None;
        if what.selects() {
            let keys = |strip: &Strip, _, keys: &mut Vec<u32>| {
                *keys = what.variances(strip, &strip.all_differences(what.base));
            };
            // Of those that vary at all.
            let ranks = |_, zeros: u64| {
                let kept = ((elements - zeros) as f64 * what.share) as u64;
                (kept > 0).then(|| Ranks::largest(elements, kept))
            };
            thresholds = self.thresholds(tensor, 1, &keys, &ranks)?[0];
        }
        // Of each piece: ties, and of each difference the sum of squares of what is strictly kept, then of
        // what is equal to the threshold.
        type Sums = (Seen, Vec<f64>);
        let sum = |tied_from: &(dyn Fn(usize) -> Seen + Sync)| {
            let look = |(): &mut (), (seen, squares): &mut Sums, strip: &Strip| {
                let mut differences = strip.all_differences(what.base);
                if squares.is_empty() {
                    let piece = strip.first
                        / (Tensor::piece_rows(&self.infos[tensor]) * self.infos[tensor].row_len()).max(1);
                    *seen = tied_from(piece as usize);
                }
                what.select(thresholds.as_ref(), strip, seen, &mut differences);
                squares.resize(others, 0.0);
                for (sum, difference) in squares.iter_mut().zip(&differences) {
                    *sum += sums::dot(strip.level, difference, difference);
                }
            };
            self.pieces(tensor, self.options.threads, || (), look)
        };
        // Which ties are kept is known once those before each piece are counted.
        let mut seen_before = vec![];
        if thresholds.is_some() {
            let mut seen = Seen::default();
            for (piece, _) in sum(&|_| Seen::default())?.0 {
                seen_before.push(seen);
                seen = seen.and(piece);
            }
        }
        let (pieces, _) = sum(&|piece| seen_before.get(piece).copied().unwrap_or_default())?;
        let mut squares = vec![0.0; others];
        pieces.iter().for_each(|(_, piece)| add_all(&mut squares, piece));
        squares.iter_mut().for_each(|sum| *sum /= elements.max(1) as f64);
        let total: f64 = squares.iter().sum();
        let weights = if total.abs() < 1e-6 {
            vec![1.0 / others as f64; others]
        } else {
            squares.iter().map(|square| square / total).collect()
        };
        Ok(Survey::Sce(SceSurvey { thresholds, seen_before, weights }))
    }

    /// The thresholds of fields that are chosen by rank: `keys` gives a strip's keys of one, `ranks` what is
    /// to be found, by how many keys are 0.
    fn thresholds(
        &self,
        tensor: usize,
        fields: usize,
        keys: &(dyn Fn(&Strip, usize, &mut Vec<u32>) + Sync),
        ranks: &(dyn Fn(usize, u64) -> Option<Ranks> + Sync),
    ) -> Result<Vec<Option<Thresholds>>, Error> {
        if (0..fields).all(|field| ranks(field, 0).is_none()) {
            return Ok(vec![None; fields]);
        }
        let (upper, zeros) = self.count(tensor, fields, keys, &|_, key| [Some((key >> 16) as u16), None])?;
        let ranks: Vec<_> = (0..fields).map(|field| ranks(field, zeros[field])).collect();
        let bins: Vec<_> = ranks
            .iter()
            .zip(&upper)
            .map(|(ranks, [upper, _])| ranks.map_or([None; 2], |ranks| ranks.bins(upper)))
            .collect();
        // The lower half of a bfloat16 is all zeros: one bin, which holds what the upper half's did.
        let lower = if self.tensors[tensor].work == Dtype::BF16 {
            let alone = |field: usize| {
                [0, 1].map(|which| {
                    let mut histogram = Histogram::new();
                    if let Some(bin) = bins[field][which] {
                        histogram.add_many(0, upper[field][0].count(bin));
                    }
                    histogram
                })
            };
            (0..fields).map(alone).collect()
        } else {
            let of_bins = |field: usize, key: u32| {
                bins[field].map(|bin| (bin == Some((key >> 16) as u16)).then_some(key as u16))
            };
            self.count(tensor, fields, keys, &of_bins)?.0
        };
        let found = ranks.iter().zip(upper.iter().zip(&lower)).map(|(ranks, ([upper, _], [low, high]))| {
            ranks.map(|ranks| ranks.thresholds(upper, [low, high]))
        });
        Ok(found.collect())
    }

    /// Two histograms of every field, of what `bin` makes of its keys; and how many keys are 0.
    fn count(
        &self,
        tensor: usize,
        fields: usize,
        keys: &(dyn Fn(&Strip, usize, &mut Vec<u32>) + Sync),
        bin: &(impl Fn(usize, u32) -> [Option<u16>; 2] + Sync),
    ) -> Result<(Vec<[Histogram; 2]>, Vec<u64>), Error> {
        let new = || -> (Vec<u32>, Vec<[Histogram; 2]>, Vec<u64>) {
            (vec![], (0..fields).map(|_| [Histogram::new(), Histogram::new()]).collect(), vec![0; fields])
        };
        let look = |(found, histograms, zeros): &mut (Vec<u32>, Vec<[Histogram; 2]>, Vec<u64>),
                    (): &mut (),
                    strip: &Strip| {
            for (field, [low, high]) in histograms.iter_mut().enumerate() {
                found.clear();
                keys(strip, field, found);
                let [low, high] = [low, high].map(Histogram::counts);
                for key in found.iter().copied() {
                    let [first, second] = bin(field, key);
                    if let Some(bin) = first {
                        low[usize::from(bin)] += 1;
                    }
                    if let Some(bin) = second {
                        high[usize::from(bin)] += 1;
                    }
                }
                zeros[field] += sums::count_equal(strip.level, found, 0);
            }
        };
        let (_, all) = self.pieces(tensor, self.options.threads, new, look)?;
        let merge = |(_, a, zeros): (Vec<u32>, Vec<[Histogram; 2]>, Vec<u64>),
                     (_, b, more): (Vec<u32>, Vec<[Histogram; 2]>, Vec<u64>)| {
            let both = |([a, c], [b, d]): ([Histogram; 2], [Histogram; 2])| [a.merge(&b), c.merge(&d)];
            let zeros = zeros.iter().zip(more).map(|(a, b)| a + b).collect();
            (vec![], a.into_iter().zip(b).map(both).collect(), zeros)
        };
        let (_, histograms, zeros) = all.into_iter().reduce(merge).unwrap_or_else(new);
        Ok((histograms, zeros))
    }
}

fn add_all(total: &mut Vec<f64>, more: &[f64]) {
    total.resize(more.len().max(total.len()), 0.0);
    total.iter_mut().zip(more).for_each(|(total, more)| *total += more);
}

impl Span {
    /// Products with each other of the vectors' elements in `run`.
    pub(crate) fn gram(&self, level: Level, strip: &Strip, run: Range<usize>) -> Vec<f64> {
        let n = self.vectors.len();
        let difference = |vector: usize, origin: usize| {
            let mut difference = vec![0.0; run.len()];
            let [x, base] = [vector, origin].map(|input| &strip.inputs[input][run.clone()]);
            sums::subtract(level, x, base, &mut difference);
            difference
        };
        let differences: Vec<Vec<f64>> = match self.origin {
            Some(origin) => self.vectors.iter().map(|vector| difference(*vector, origin)).collect(),
            None => vec![],
        };
        let vector = |i: usize| match self.origin {
            Some(_) => &differences[i][..],
            None => &strip.inputs[self.vectors[i]][run.clone()],
        };
        let mut gram = vec![0.0; n * n];
        for a in 0..n {
            for b in a..n {
                gram[a * n + b] = sums::dot(level, vector(a), vector(b));
                gram[b * n + a] = gram[a * n + b];
            }
        }
        gram
    }

    /// The same of all of a run that is stored as `BF16` and not rounded.
    fn gram_of_bf16(&self, level: Level, run: &Run<'_>) -> Vec<f64> {
        let n = self.vectors.len();
        let bytes = |vector: usize| run.bytes(self.vectors[vector], 2);
        let mut gram = vec![0.0; n * n];
        // All pairs; of one vector that with itself.
        for a in 0..n {
            for b in (a + 1..n).chain((n == 1).then_some(0)) {
                let products = match self.origin {
                    Some(origin) => {
                        let origin = run.bytes(origin, 2);
                        sums::products_of_differences(level, bytes(a), bytes(b), origin)
                    }
                    None => sums::products(level, bytes(a), bytes(b)),
                };
                gram[a * n + a] = products[0];
                (gram[a * n + b], gram[b * n + a]) = (products[1], products[1]);
                gram[b * n + b] = products[2];
            }
        }
        gram
    }

    /// Adds the products of the vectors' elements to those of their columns.
    fn add_columns(&self, strip: &Strip, grams: &mut [f64]) {
        let n = self.vectors.len();
        let columns = grams.len() / (n * n);
        for i in 0..strip.len() {
            let column = ((strip.first + i as u64) % columns as u64) as usize;
            let origin = self.origin.map_or(0.0, |origin| strip.inputs[origin][i]);
            for a in 0..n {
                for b in 0..n {
                    let product = |v: usize| strip.inputs[self.vectors[v]][i] - origin;
                    grams[(column * n + a) * n + b] += product(a) * product(b);
                }
            }
        }
    }
}
