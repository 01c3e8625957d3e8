//! What must be known of a whole tensor before its first tile: angles, thresholds, norms.
//!
//! A survey reads the inputs by pieces, on several threads. Sums are taken
//! within a piece and then over the pieces in order, so that they are the same
//! for any number of threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tenon_checkpoint::Dtype;

use crate::Error;
use crate::plan::{ArcRecipe, BlendPlan, Differences, Recipe, Tensor};
use crate::select::{Choice, Histogram, Seen, Thresholds, key};
use crate::source::{Draw, Strip};

/// What a survey found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Survey {
    /// Nothing was to be found.
    Nothing,
    /// `from * a + to * b`, of whatever the arc is between.
    Arc { from: f64, to: f64 },
    /// For each part of a sum of differences.
    Parts(Vec<PartSurvey>),
    /// How far from the base to the mean.
    Stock { t: f64 },
}

/// What is kept of one difference, and by what it is scaled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PartSurvey {
    pub(crate) thresholds: Option<Thresholds>,
    /// Ties with the thresholds before each piece.
    pub(crate) seen_before: Vec<Seen>,
    pub(crate) scale: f64,
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
            Recipe::Arc(arc) => self.survey_arc(tensor, arc),
            Recipe::Stock { base } => self.survey_stock(tensor, *base),
            Recipe::Differences(what) => self.survey_parts(tensor, what),
            _ => Ok(Survey::Nothing),
        }
    }

    /// Calls `look` with every piece of a tensor's inputs and gives its answers in order.
    fn pieces<R: Send>(&self, tensor: usize, look: impl Fn(&Strip) -> R + Sync) -> Result<Vec<R>, Error> {
        let info = &self.infos[tensor];
        let rows_per_piece = Tensor::piece_rows(info);
        let count = info.rows().div_ceil(rows_per_piece);
        let next = AtomicU64::new(0);
        let answers = Mutex::new(Vec::with_capacity(count as usize));
        let work = || {
            let (mut strip, mut bytes) = (Strip::default(), vec![]);
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= count {
                    return Ok(());
                }
                let first = piece * rows_per_piece;
                let rows = first..(first + rows_per_piece).min(info.rows());
                strip.read(self, tensor, rows, &mut bytes)?;
                let answer = look(&strip);
                answers.lock().unwrap_or_else(PoisonError::into_inner).push((piece, answer));
            }
        };
        let threads = (self.options.threads as u64).clamp(1, count.max(1));
        let outcome = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let panicked = || {
                let text = "a survey of a tensor".to_string();
                Err(Error::Checkpoint(tenon_checkpoint::Error::WorkerPanicked(text)))
            };
            let others = others.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked()));
            others.fold(own, |outcome: Result<(), Error>, other| outcome.and(other))
        });
        outcome?;
        let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        answers.sort_unstable_by_key(|(piece, _)| *piece);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    fn survey_arc(&self, tensor: usize, arc: &ArcRecipe) -> Result<Survey, Error> {
        let sums = self.pieces(tensor, |strip| {
            let mut sums = [0.0; 3];
            for i in 0..strip.len() {
                let origin = arc.base.map_or(0.0, |base| strip.inputs[base][i]);
                let (a, b) = (strip.inputs[arc.from][i] - origin, strip.inputs[arc.to][i] - origin);
                sums[0] += a * a;
                sums[1] += b * b;
                sums[2] += a * b;
            }
            sums
        })?;
        let [aa, bb, ab] =
            sums.into_iter().fold([0.0; 3], |total, sums| [0, 1, 2].map(|i| total[i] + sums[i]));
        let (from, to) = coefficients(arc, aa.sqrt(), bb.sqrt(), ab);
        Ok(Survey::Arc { from, to })
    }

    fn survey_stock(&self, tensor: usize, base: usize) -> Result<Survey, Error> {
        let count = self.tensors[tensor].inputs.len();
        let others: Vec<usize> = (0..count).filter(|input| *input != base).collect();
        let n = others.len();
        let products = self.pieces(tensor, |strip| {
            let mut products = vec![0.0; n * n];
            for i in 0..strip.len() {
                let origin = strip.inputs[base][i];
                for (a, x) in others.iter().enumerate() {
                    let x = strip.inputs[*x][i] - origin;
                    for (b, y) in others.iter().enumerate().skip(a) {
                        products[a * n + b] += x * (strip.inputs[*y][i] - origin);
                    }
                }
            }
            products
        })?;
        let mut total = vec![0.0; n * n];
        for products in products {
            total.iter_mut().zip(products).for_each(|(total, product)| *total += product);
        }
        let norm = |a: usize| total[a * n + a].sqrt();
        let mut cosines = vec![];
        for a in 0..n {
            for b in a + 1..n {
                cosines.push((total[a * n + b] / (norm(a) * norm(b)).max(1e-6)).clamp(-1.0, 1.0));
            }
        }
        let cosine = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let denominator = 1.0 + (n as f64 - 1.0) * cosine;
        // Where the estimate has a pole, the base stays, as in mergekit.
        let t = if denominator.abs() < 1e-6 { 0.0 } else { n as f64 * cosine / denominator };
        Ok(Survey::Stock { t })
    }

    fn survey_parts(&self, tensor: usize, what: &Differences) -> Result<Survey, Error> {
        let thresholds = self.thresholds(tensor, what)?;
        let is_drawn = what.rescale && what.parts.iter().any(|part| part.chance.is_some());
        let plain = PartSurvey { thresholds: None, seen_before: vec![], scale: 1.0 };
        if thresholds.iter().all(Option::is_none) && !is_drawn {
            return Ok(Survey::Parts(vec![plain; what.parts.len()]));
        }
        // Of each piece and part: ties with the thresholds, the sum of magnitudes before and after.
        let draws: Vec<Draw> = (0..what.parts.len()).map(|part| Draw::new(self, tensor, part)).collect();
        let sums = self.pieces(tensor, |strip| {
            let mut sums = vec![(Seen::default(), 0.0, 0.0); what.parts.len()];
            for (number, (part, sums)) in what.parts.iter().zip(&mut sums).enumerate() {
                let differences = strip.rounded_differences(what.base, part.input);
                for (i, difference) in differences.iter().enumerate() {
                    let kept = match (&thresholds[number], part.chance) {
                        (Some(thresholds), _) => thresholds.strictly_keeps(key(*difference), &mut sums.0),
                        (None, Some(chance)) => draws[number].keeps(strip.first + i as u64, chance),
                        (None, None) => true,
                    };
                    sums.1 += difference.abs();
                    sums.2 += if kept { difference.abs() } else { 0.0 };
                }
            }
            sums
        })?;
        let mut surveys = vec![plain; what.parts.len()];
        for (number, survey) in surveys.iter_mut().enumerate() {
            survey.thresholds = thresholds[number];
            let mut seen = Seen::default();
            let (mut before, mut after) = (0.0, thresholds[number].map_or(0.0, |t| t.kept_ties()));
            for piece in &sums {
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

    /// The thresholds of the parts that are chosen by rank.
    fn thresholds(&self, tensor: usize, what: &Differences) -> Result<Vec<Option<Thresholds>>, Error> {
        let ranks: Vec<_> = what
            .parts
            .iter()
            .map(|part| if let Choice::Ranked(ranks) = part.choice { Some(ranks) } else { None })
            .collect();
        if ranks.iter().all(Option::is_none) {
            return Ok(vec![None; what.parts.len()]);
        }
        let upper = self.count(tensor, what, &|_, key| [Some((key >> 16) as u16), None])?;
        let bins: Vec<_> = ranks
            .iter()
            .zip(&upper)
            .map(|(ranks, [upper, _])| ranks.map_or([None; 2], |ranks| ranks.bins(upper)))
            .collect();
        // The lower half of a bfloat16 is all zeros: one bin, which holds what the upper half's did.
        let lower = if self.tensors[tensor].work == Dtype::BF16 {
            let alone = |part: usize| {
                [0, 1].map(|which| {
                    let mut histogram = Histogram::new();
                    if let Some(bin) = bins[part][which] {
                        histogram.add_many(0, upper[part][0].count(bin));
                    }
                    histogram
                })
            };
            (0..what.parts.len()).map(alone).collect()
        } else {
            self.count(tensor, what, &|part, key| {
                bins[part].map(|bin| (bin == Some((key >> 16) as u16)).then_some(key as u16))
            })?
        };
        let found = ranks.iter().zip(upper.iter().zip(&lower)).map(|(ranks, ([upper, _], [low, high]))| {
            ranks.map(|ranks| ranks.thresholds(upper, [low, high]))
        });
        Ok(found.collect())
    }

    /// Two histograms of every part, of what `bin` makes of the keys of its difference.
    fn count(
        &self,
        tensor: usize,
        what: &Differences,
        bin: &(dyn Fn(usize, u32) -> [Option<u16>; 2] + Sync),
    ) -> Result<Vec<[Histogram; 2]>, Error> {
        let new = || -> Vec<[Histogram; 2]> {
            what.parts.iter().map(|_| [Histogram::new(), Histogram::new()]).collect()
        };
        // Histograms not in use at the moment; as many as threads, in the end.
        let pool = Mutex::new(Vec::new());
        self.pieces(tensor, |strip| {
            let taken = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut histograms = taken.unwrap_or_else(new);
            for (number, part) in what.parts.iter().enumerate() {
                if !matches!(part.choice, Choice::Ranked(_)) {
                    continue;
                }
                for difference in strip.rounded_differences(what.base, part.input).iter() {
                    let bins = bin(number, key(*difference));
                    for (histogram, bin) in histograms[number].iter_mut().zip(bins) {
                        if let Some(bin) = bin {
                            histogram.add(bin);
                        }
                    }
                }
            }
            pool.lock().unwrap_or_else(PoisonError::into_inner).push(histograms);
        })?;
        let all = pool.into_inner().unwrap_or_else(PoisonError::into_inner);
        let merge = |a: Vec<[Histogram; 2]>, b: Vec<[Histogram; 2]>| {
            let both = |([a, c], [b, d]): ([Histogram; 2], [Histogram; 2])| [a.merge(&b), c.merge(&d)];
            a.into_iter().zip(b).map(both).collect()
        };
        Ok(all.into_iter().reduce(merge).unwrap_or_else(new))
    }
}

/// Beyond this cosine mergekit's slerp takes the straight line.
const ALL_BUT_PARALLEL: f64 = 0.9995;

/// What the two ends of an arc are multiplied by, from their norms and their product.
fn coefficients(arc: &ArcRecipe, norm_a: f64, norm_b: f64, product: f64) -> (f64, f64) {
    let t = arc.t;
    let (cosine, is_straight) = if arc.is_slerp {
        let unit = |norm: f64| if norm > 1e-8 { norm } else { 1.0 };
        let cosine = (product / (unit(norm_a) * unit(norm_b))).clamp(-1.0, 1.0);
        (cosine, cosine.abs() > ALL_BUT_PARALLEL)
    } else {
        let cosine = (product / (norm_a.max(1e-7) * norm_b.max(1e-7))).clamp(-1.0, 1.0);
        (cosine, 1.0 - cosine * cosine <= 1e-16)
    };
    if is_straight {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
}
