//! Differences from a base, summed: what is kept of each, with which sign and weight.

use tenon_checkpoint::{Dtype, TensorInfo};

use crate::kernel as sums;
use crate::plan::{BlendPlan, Chance, Differences, Reinforced, Sce};
use crate::select::{Choice, Seen, Thresholds};
use crate::strip::Strip;
use crate::survey::{PartSurvey, SceSurvey};

impl BlendPlan {
    /// `b + λ Σ w d`, over what is kept of each `d` and, with consensus, has the majority's sign.
    #[allow(clippy::too_many_arguments)] // the parts of one sum
    pub(crate) fn sum_differences(
        &self,
        tensor: usize,
        what: &Differences,
        surveys: &[PartSurvey],
        strip: &Strip,
        seen: &mut [Seen],
        out: &mut [f64],
        room: &mut Vec<Vec<f64>>,
    ) {
        let (base, level) = (&strip.inputs[what.base], strip.level);
        let count = base.len();
        let (seed, info, unit) = (self.options.seed, &self.infos[tensor], self.unit(tensor));
        // Of each part what is kept, exactly; with consensus also as mergekit rounds it, weighted.
        let mut kept: Vec<Vec<f64>> = Vec::with_capacity(what.parts.len());
        let mut votes: Vec<Vec<f64>> = Vec::new();
        let mut keys = vec![];
        for (number, (part, survey)) in what.parts.iter().zip(surveys).enumerate() {
            let mut exact = strip.differences(what.base, part.input);
            let mut rounded = vec![];
            let by_rank = matches!(part.chance, Some(Chance::ByRank { .. }));
            if what.consensus || survey.thresholds.is_some() || by_rank {
                rounded.clone_from(&exact);
                strip.round(&mut rounded);
                strip.keys(&rounded, &mut keys);
            }
            if survey.scale != 1.0 {
                sums::scale(level, survey.scale, &mut exact);
            }
            if part.choice == Choice::Nothing {
                exact.fill(0.0);
                rounded.fill(0.0);
            } else if let Some(thresholds) = &survey.thresholds {
                thresholds.keep(level, &keys, &mut [&mut exact, &mut rounded], &mut seen[number]);
            } else if let Some(chance) = part.chance {
                let draw = Draw::new(seed, info, number);
                draw.keep(chance, strip, &keys, unit, &mut [&mut exact, &mut rounded]);
            }
            if what.consensus {
                if survey.scale != 1.0 {
                    sums::scale(level, survey.scale, &mut rounded);
                    strip.round(&mut rounded);
                }
                let mut weight = [part.weight];
                strip.round(&mut weight);
                sums::scale(level, weight[0], &mut rounded);
                strip.round(&mut rounded);
                votes.push(rounded);
            }
            kept.push(exact);
        }
        out.fill(0.0);
        if what.consensus {
            room.resize_with(2, Vec::new);
            let [totals, divisors] = &mut room[..] else { unreachable!("it was made two long") };
            for room in [&mut *totals, &mut *divisors] {
                room.clear();
                room.resize(count, 0.0);
            }
            votes.iter().for_each(|votes| strip.add_votes(votes, totals));
            for ((part, kept), votes) in what.parts.iter().zip(&kept).zip(&votes) {
                sums::add_agreeing(level, totals, votes, kept, part.weight, out, divisors);
            }
            if what.normalize {
                sums::divide_each(level, divisors, out);
            }
        } else {
            for (part, kept) in what.parts.iter().zip(&kept) {
                sums::add_scaled_values(level, kept, part.weight, out);
            }
            let divisor: f64 = what.parts.iter().map(|part| part.weight).sum();
            if what.normalize && divisor.abs() >= 1e-8 {
                sums::divide(level, divisor, out);
            }
        }
        sums::add_to_base(level, base, what.lambda, out);
    }
}

impl Strip {
    /// Adds to the sums whose signs are the majorities', as torch adds them: where they cancel out, rounding
    /// decides.
    fn add_votes(&self, votes: &[f64], totals: &mut [f64]) {
        if self.work == Dtype::F64 {
            sums::add_scaled_values(self.level, votes, 1.0, totals);
        } else {
            sums::add_in_f32(self.level, votes, totals);
        }
    }

    /// Magnitudes of values as [`key`](crate::select::key)s.
    pub(crate) fn keys(&self, values: &[f64], keys: &mut Vec<u32>) {
        keys.resize(values.len(), 0);
        sums::keys(self.level, values, keys);
    }

    /// The rounded differences of all inputs but the base from it.
    pub(crate) fn all_differences(&self, base: usize) -> Vec<Vec<f64>> {
        let others = (0..self.inputs.len()).filter(|input| *input != base);
        others.map(|input| self.rounded_differences(base, input)).collect()
    }
}

impl Reinforced {
    /// `epsilon` as the working type holds it.
    fn limit(&self, strip: &Strip) -> f64 {
        let mut epsilon = [self.epsilon];
        strip.round(&mut epsilon);
        epsilon[0]
    }

    /// Of each difference how many elements others have too, and how many it has alone.
    pub(crate) fn count(&self, strip: &Strip) -> Vec<[u64; 2]> {
        let (differences, limit) = (strip.all_differences(self.base), self.limit(strip));
        let mut counts = vec![[0; 2]; differences.len()];
        for i in 0..strip.len() {
            let have = differences.iter().filter(|d| d[i].abs() > limit).count();
            for (counts, difference) in counts.iter_mut().zip(&differences) {
                if difference[i].abs() > limit {
                    counts[usize::from(have == 1)] += 1;
                }
            }
        }
        counts
    }

    /// What an element that is one difference's alone is multiplied by.
    pub(crate) fn factor(&self, [shared, alone]: [u64; 2]) -> f64 {
        let Some((r, alpha)) = self.more else { return 1.0 };
        let share = shared as f64 / (alone as f64).max(self.epsilon);
        1.0 + r * if share.is_nan() { 0.0 } else { share.max(0.0).min(alpha) }
    }

    pub(crate) fn apply(&self, factors: &[f64], strip: &Strip, out: &mut [f64]) {
        let (rounded, limit) = (strip.all_differences(self.base), self.limit(strip));
        let others = (0..strip.inputs.len()).filter(|input| *input != self.base);
        let exact: Vec<Vec<f64>> = others.map(|input| strip.differences(self.base, input)).collect();
        for (i, out) in out.iter_mut().enumerate() {
            let have = rounded.iter().filter(|d| d[i].abs() > limit).count();
            let mut sum = 0.0;
            for ((rounded, exact), factor) in rounded.iter().zip(&exact).zip(factors) {
                if rounded[i].abs() > limit {
                    sum += if have == 1 { exact[i] * factor } else { exact[i] / have as f64 };
                }
            }
            *out = strip.inputs[self.base][i] + sum;
        }
    }
}

impl Sce {
    /// How much the differences vary at each place, as mergekit rounds it, as [`key`]s.
    pub(crate) fn variances(&self, strip: &Strip, differences: &[Vec<f64>]) -> Vec<u32> {
        let (n, level) = (differences.len() as f64, strip.level);
        let (mut mean, mut variances) = (vec![0.0; strip.len()], vec![0.0; strip.len()]);
        differences.iter().for_each(|d| sums::add_scaled_values(level, d, 1.0, &mut mean));
        sums::divide(level, n, &mut mean);
        differences.iter().for_each(|d| sums::add_squares_from(level, d, &mean, &mut variances));
        sums::divide(level, n, &mut variances);
        strip.round(&mut variances);
        let mut keys = vec![];
        strip.keys(&variances, &mut keys);
        keys
    }

    /// Sets the differences to 0 where they vary too little.
    pub(crate) fn select(
        &self,
        thresholds: Option<&Thresholds>,
        strip: &Strip,
        seen: &mut Seen,
        differences: &mut [Vec<f64>],
    ) {
        if self.share <= 0.0 || self.selects() && thresholds.is_none() {
            differences.iter_mut().for_each(|d| d.fill(0.0));
        } else if let Some(thresholds) = thresholds {
            let keys = self.variances(strip, differences);
            let mut all: Vec<&mut Vec<f64>> = differences.iter_mut().collect();
            thresholds.keep(strip.level, &keys, &mut all, seen);
        }
    }

    pub(crate) fn apply(&self, survey: &SceSurvey, strip: &Strip, seen: &mut Seen, out: &mut [f64]) {
        let mut differences = strip.all_differences(self.base);
        self.select(survey.thresholds.as_ref(), strip, seen, &mut differences);
        let level = strip.level;
        let (mut totals, mut divisors) = (vec![0.0; out.len()], vec![0.0; out.len()]);
        differences.iter().for_each(|d| strip.add_votes(d, &mut totals));
        out.fill(0.0);
        for (difference, weight) in differences.iter().zip(&survey.weights) {
            sums::add_agreeing(level, &totals, difference, difference, *weight, out, &mut divisors);
        }
        for ((out, base), divisor) in out.iter_mut().zip(&strip.inputs[self.base]).zip(&divisors) {
            *out = base + *out / divisor.max(1e-6);
        }
    }
}

/// Draws which elements of a difference are kept: a function of seed, tensor, model and place alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw {
    key: u64,
}

impl Draw {
    pub(crate) fn new(seed: u64, info: &TensorInfo, part: usize) -> Self {
        let mut key = sums::mix(seed ^ part as u64);
        for byte in info.name.bytes() {
            key = sums::mix(key ^ u64::from(byte));
        }
        Self { key }
    }

    /// Sets to 0 in all of `values`, a strip's, what is not kept. Chances by rank go by `keys` within runs
    /// of `unit` elements.
    pub(crate) fn keep(
        self,
        chance: Chance,
        strip: &Strip,
        keys: &[u32],
        unit: usize,
        values: &mut [&mut Vec<f64>],
    ) {
        match chance {
            Chance::Even(chance) => {
                for values in values {
                    sums::keep_drawn(strip.level, self.key, strip.first, limit(chance), values);
                }
            }
            Chance::ByRank { low, high } => {
                let (mut drawn, mut kept) = (vec![0; keys.len()], vec![0; keys.len()]);
                sums::draw(strip.level, self.key, strip.first, &mut drawn);
                each_by_rank(keys, unit, low, high, |i, chance| {
                    kept[i] = u32::from(drawn[i] < limit(chance));
                });
                for values in values {
                    sums::keep_between(strip.level, &kept, 1, 1, values);
                }
            }
        }
    }
}

/// What a number drawn of 53 bits is below with this chance.
fn limit(chance: f64) -> u64 {
    (chance * (1u64 << 53) as f64).ceil() as u64
}

/// Sorts by the upper halves, which leaves equals in their order: a byte after the other, from the lowest
/// on, those left out in which all agree.
fn sort_by_key(order: &mut Vec<u64>, room: &mut Vec<u64>) {
    let Some(first) = order.first().copied() else { return };
    let varying = order.iter().fold(0, |varying, entry| varying | (entry ^ first));
    for shift in [32, 40, 48, 56].into_iter().filter(|shift| varying >> shift & 0xff != 0) {
        let byte = |entry: u64| (entry >> shift & 0xff) as usize;
        let mut starts = [0; 257];
        order.iter().for_each(|entry| starts[byte(*entry) + 1] += 1);
        for value in 0..256 {
            starts[value + 1] += starts[value];
        }
        room.resize(order.len(), 0);
        for entry in order.iter() {
            let place = &mut starts[byte(*entry)];
            room[*place] = *entry;
            *place += 1;
        }
        std::mem::swap(order, room);
    }
}

/// Tells `keep` the chance of each element, by the rank of its magnitude within its run of `unit` elements.
fn each_by_rank(keys: &[u32], unit: usize, low: f64, high: f64, mut keep: impl FnMut(usize, f64)) {
    let (mut order, mut room): (Vec<u64>, Vec<u64>) = (vec![], vec![]);
    for (number, run) in keys.chunks(unit.max(1)).enumerate() {
        order.clear();
        // Key and place in one number: equals by their place.
        order.extend(run.iter().enumerate().map(|(i, key)| u64::from(*key) << 32 | i as u64));
        sort_by_key(&mut order, &mut room);
        let last = run.len().max(2) - 1;
        let chance = |rank: usize| low + (high - low) * (rank as f64 / last as f64);
        let place = |entry: u64| number * unit.max(1) + (entry as u32) as usize;
        order.iter().enumerate().for_each(|(rank, entry)| keep(place(*entry), chance(rank)));
    }
}

#[cfg(test)]
mod tests {
    use tenon_merge::kernel::Level;

    use super::*;

    fn keeps(key: u64, element: u64, chance: f64) -> bool {
        let mut value = [1.0];
        sums::keep_drawn(Level::detect(), key, element, limit(chance), &mut value);
        let mut drawn = [0];
        sums::draw(Level::Scalar, key, element, &mut drawn);
        assert_eq!(value[0] == 1.0, drawn[0] < limit(chance));
        value[0] == 1.0
    }

    #[test]
    fn as_many_are_drawn_as_the_chance_says() {
        for (key, chance) in [(1, 0.1), (2, 0.5), (3, 0.93)] {
            let kept = (0..100_000).filter(|i| keeps(key, *i, chance)).count() as f64 / 1e5;
            assert!((kept - chance).abs() < 0.01, "{kept} of {chance}");
        }
        assert!((0..1000).all(|i| keeps(7, i, 1.0) && !keeps(7, i, 0.0)));
    }

    #[test]
    fn a_byte_after_the_other_sorts() {
        let keys = (0..1000u32).map(|i| i.wrapping_mul(0x9e37_79b9) & 0xff3f_0007);
        let mut order: Vec<u64> = keys.enumerate().map(|(i, key)| u64::from(key) << 32 | i as u64).collect();
        let mut expected = order.clone();
        expected.sort_unstable();
        sort_by_key(&mut order, &mut vec![]);
        assert_eq!(order, expected);
    }

    #[test]
    fn the_larger_is_the_likelier_to_be_kept() {
        // Rows of ten, each from large to small, and a rest.
        let keys: Vec<u32> = (0..25).map(|i| 1000 - i % 10 * 100).collect();
        let mut chances = vec![0.0; keys.len()];
        each_by_rank(&keys, 10, 0.2, 0.8, |i, chance| chances[i] = chance);
        for (i, chance) in chances.into_iter().enumerate() {
            let length = if i < 20 { 10 } else { 5 };
            let expected = 0.8 - 0.6 * (i % 10) as f64 / f64::from(length - 1);
            assert!((chance - expected).abs() < 1e-12, "{i}: {chance}");
        }
    }
}
