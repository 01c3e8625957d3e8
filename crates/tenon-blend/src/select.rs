//! Which elements of a difference are kept: the largest, or all but the smallest and the largest.
//!
//! Elements are ranked by the bits of their magnitude as `f32`, equals by
//! their place, so that a rank is one element for any cut into tiles. Ranks
//! are found from histograms (upper half of the bits, then lower half), never
//! by sorting.

use tenon_merge::kernel::Level;

use crate::kernel as sums;
use crate::method::Sparsity;

/// Bits of a magnitude: ordered as the magnitudes are.
#[inline(always)]
pub(crate) fn key(difference: f64) -> u32 {
    (difference as f32).abs().to_bits()
}

fn magnitude(key: u32) -> f64 {
    f32::from_bits(key).into()
}

/// Ranks to be found (from the smallest, at 0) so that a method's choice is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ranks {
    sparsity: Sparsity,
    elements: u64,
    low: Option<u64>,
    high: Option<u64>,
}

/// What is to be kept, before its thresholds are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    All,
    Nothing,
    Ranked(Ranks),
}

impl Choice {
    /// `density` of `elements`; with `gamma` of the largest left out where the method does that.
    ///
    /// The counts are mergekit's: products of doubles, truncated.
    pub(crate) fn new(sparsity: Sparsity, elements: u64, density: f64, gamma: f64) -> Self {
        let part = |fraction: f64| (fraction * elements as f64).max(0.0) as u64;
        match sparsity {
            Sparsity::All | Sparsity::Random => Choice::All,
            _ if density >= 1.0 => Choice::All,
            Sparsity::Largest if density <= 0.0 || elements == 0 => Choice::Nothing,
            Sparsity::Largest => {
                let low = Some(elements - part(density).max(1));
                Choice::Ranked(Ranks { sparsity, elements, low, high: None })
            }
            Sparsity::Middle => {
                let kept = part(density);
                let below = elements.saturating_sub(kept).saturating_sub(part(gamma));
                let end = below + kept;
                if kept == 0 {
                    return Choice::Nothing;
                }
                let (low, high) = ((below > 0).then_some(below), (end < elements).then_some(end));
                Choice::Ranked(Ranks { sparsity, elements, low, high })
            }
        }
    }
}

impl Ranks {
    /// The `kept` largest of `elements`.
    pub(crate) fn largest(elements: u64, kept: u64) -> Self {
        Self { sparsity: Sparsity::Largest, elements, low: Some(elements - kept), high: None }
    }
}

/// Counts of keys by their upper half.
pub(crate) struct Histogram {
    counts: Vec<u64>,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; 1 << 16] }
    }

    /// The count of each half.
    pub(crate) fn counts(&mut self) -> &mut [u64; 1 << 16] {
        self.counts.as_mut_slice().try_into().expect("it was made so long")
    }

    pub(crate) fn add_many(&mut self, half: u16, count: u64) {
        self.counts[usize::from(half)] += count;
    }

    pub(crate) fn merge(mut self, other: &Self) -> Self {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self
    }

    /// The bin in which a rank lies, and how many elements are in those below.
    fn find(&self, rank: u64) -> (u16, u64) {
        let mut below = 0;
        for (bin, count) in self.counts.iter().enumerate() {
            if rank < below + count {
                return (bin as u16, below);
            }
            below += count;
        }
        (u16::MAX, below)
    }

    pub(crate) fn count(&self, bin: u16) -> u64 {
        self.counts[usize::from(bin)]
    }
}

impl Ranks {
    /// The bins whose lower halves are to be counted next: those of the two ranks.
    pub(crate) fn bins(&self, upper: &Histogram) -> [Option<u16>; 2] {
        [self.low, self.high].map(|rank| rank.map(|rank| upper.find(rank).0))
    }

    /// The thresholds, from the histogram of upper halves and those of the lower halves in both bins.
    pub(crate) fn thresholds(&self, upper: &Histogram, lower: [&Histogram; 2]) -> Thresholds {
        let find = |rank: u64, lower: &Histogram| {
            let (bin, below) = upper.find(rank);
            let (half, below_in_bin) = lower.find(rank - below);
            let key = u32::from(bin) << 16 | u32::from(half);
            (key, below + below_in_bin, lower.count(half))
        };
        let low = self.low.map(|rank| {
            let (key, below, equal) = find(rank, lower[0]);
            let above = self.elements - below - equal;
            let ties = match self.sparsity {
                Sparsity::Largest => Ties::First(self.elements - rank - above),
                _ => Ties::After(rank - below),
            };
            Low { key, ties, equal }
        });
        let high = self.high.map(|rank| {
            let (key, below, _) = find(rank, lower[1]);
            High { key, first: rank - below }
        });
        Thresholds { low, high }
    }
}

/// Which of the elements that are equal to a threshold are kept, by their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ties {
    First(u64),
    After(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Low {
    key: u32,
    ties: Ties,
    equal: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct High {
    key: u32,
    /// How many of the equal ones are kept.
    first: u64,
}

/// What an element must be to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thresholds {
    low: Option<Low>,
    high: Option<High>,
}

/// How many elements equal to either threshold came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    low: u64,
    high: u64,
}

impl Seen {
    pub(crate) fn and(self, other: Self) -> Self {
        Self { low: self.low + other.low, high: self.high + other.high }
    }
}

/// `true` or `false` where one of both holds for certain.
fn side(all: bool, none: bool) -> Option<bool> {
    all.then_some(true).or(none.then_some(false))
}

impl Thresholds {
    /// Sets to 0 in all of `values` what is not kept, by the elements' keys; `seen` counts on.
    pub(crate) fn keep(&self, level: Level, keys: &[u32], values: &mut [&mut Vec<f64>], seen: &mut Seen) {
        let (before, after) = (*seen, seen.and(self.ties(level, keys)));
        // Mostly all the ties of a run are kept, or none is.
        let low = self.low.map(|low| match low.ties {
            Ties::First(n) => side(after.low <= n, before.low >= n),
            Ties::After(n) => side(before.low >= n, after.low <= n),
        });
        let high = self.high.map(|high| side(after.high <= high.first, before.high >= high.first));
        if let (None | Some(Some(_)), None | Some(Some(_))) = (low, high) {
            self.keep_between(level, keys, values, low.flatten() == Some(true), high.flatten() == Some(true));
        } else {
            let mut seen = before;
            for (i, key) in keys.iter().enumerate() {
                if !self.keeps(*key, &mut seen) {
                    values.iter_mut().filter_map(|values| values.get_mut(i)).for_each(|value| *value = 0.0);
                }
            }
        }
        *seen = after;
    }

    /// The same for what is equal to a threshold: it is not kept, only counted.
    pub(crate) fn keep_strictly(&self, level: Level, keys: &[u32], values: &mut Vec<f64>, seen: &mut Seen) {
        self.keep_between(level, keys, &mut [values], false, false);
        *seen = seen.and(self.ties(level, keys));
    }

    /// How many keys are equal to the thresholds.
    pub(crate) fn ties(&self, level: Level, keys: &[u32]) -> Seen {
        Seen {
            low: self.low.map_or(0, |low| sums::count_equal(level, keys, low.key)),
            high: self.high.map_or(0, |high| sums::count_equal(level, keys, high.key)),
        }
    }

    /// Keeps what lies between the thresholds, and what is equal to either as its flag says.
    fn keep_between(
        &self,
        level: Level,
        keys: &[u32],
        values: &mut [&mut Vec<f64>],
        with_low: bool,
        with_high: bool,
    ) {
        // No magnitude has the highest bit, so nothing overflows at that end.
        let low = self.low.map_or(0, |low| low.key + u32::from(!with_low));
        let high = self.high.map_or(Some(u32::MAX), |high| high.key.checked_sub(u32::from(!with_high)));
        for values in values {
            match high {
                Some(high) => sums::keep_between(level, keys, low, high, values),
                None => values.fill(0.0),
            }
        }
    }

    /// Whether an element is kept; `seen` counts on.
    pub(crate) fn keeps(&self, key: u32, seen: &mut Seen) -> bool {
        let mut kept = true;
        if let Some(low) = self.low {
            if key < low.key {
                kept = false;
            } else if key == low.key {
                kept = match low.ties {
                    Ties::First(n) => seen.low < n,
                    Ties::After(n) => seen.low >= n,
                };
                seen.low += 1;
            }
        }
        if let Some(high) = self.high {
            if key > high.key {
                kept = false;
            } else if key == high.key {
                kept &= seen.high < high.first;
                seen.high += 1;
            }
        }
        kept
    }

    /// The sum of the magnitudes of kept elements that are equal to a threshold.
    pub(crate) fn kept_ties(&self) -> f64 {
        match (self.low, self.high) {
            (Some(low), Some(high)) if low.key == high.key => {
                let from = if let Ties::After(n) = low.ties { n } else { 0 };
                (high.first - from) as f64 * magnitude(low.key)
            }
            (low, high) => {
                let low = low.map_or(0.0, |low| {
                    let kept = match low.ties {
                        Ties::First(n) => n,
                        Ties::After(n) => low.equal - n,
                    };
                    kept as f64 * magnitude(low.key)
                });
                low + high.map_or(0.0, |high| high.first as f64 * magnitude(high.key))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn thresholds(values: &[f64], ranks: &Ranks) -> Thresholds {
        let mut upper = Histogram::new();
        values.iter().for_each(|v| upper.add_many((key(*v) >> 16) as u16, 1));
        let lower = ranks.bins(&upper).map(|bin| {
            let mut lower = Histogram::new();
            values
                .iter()
                .map(|v| key(*v))
                .filter(|k| Some((k >> 16) as u16) == bin)
                .for_each(|k| lower.add_many(k as u16, 1));
            lower
        });
        ranks.thresholds(&upper, [&lower[0], &lower[1]])
    }

    proptest! {
        /// As mergekit has it: a stable sort, then a run of it.
        #[test]
        fn as_a_stable_sort_would_choose(
            values in proptest::collection::vec(prop_oneof![-3i32..3, any::<i32>()], 1..200),
            density in 0.0f64..1.0,
            gamma in 0.0f64..0.3,
        ) {
            let values: Vec<f64> = values.into_iter().map(|v| f64::from(v as f32 / 7.0)).collect();
            let n = values.len();
            for sparsity in [Sparsity::Largest, Sparsity::Middle] {
                let mut order: Vec<usize> = (0..n).collect();
                let expected = if sparsity == Sparsity::Largest {
                    order.sort_by_key(|i| std::cmp::Reverse(key(values[*i])));
                    &order[..((density * n as f64) as usize).max(1).min(if density <= 0.0 { 0 } else { n })]
                } else {
                    order.sort_by_key(|i| key(values[*i]));
                    let kept = (density * n as f64) as usize;
                    let below = n.saturating_sub(kept).saturating_sub((gamma * n as f64) as usize);
                    &order[below..below + kept]
                };
                let mut expected = expected.to_vec();
                expected.sort_unstable();
                let choice = Choice::new(sparsity, n as u64, density, gamma);
                let (found, sum) = match choice {
                    Choice::All => ((0..n).collect(), None),
                    Choice::Nothing => (vec![], None),
                    Choice::Ranked(ranks) => {
                        let thresholds = thresholds(&values, &ranks);
                        let keys: Vec<u32> = values.iter().map(|v| key(*v)).collect();
                        let level = Level::detect();
                        let (mut seen, mut again) = (Seen::default(), Seen::default());
                        let (mut kept, mut strict) = (vec![], 0.0);
                        // In runs of seven, as a tensor comes in strips.
                        for (run, keys) in keys.chunks(7).enumerate() {
                            let mut marks = vec![1.0; keys.len()];
                            thresholds.keep(level, keys, &mut [&mut marks, &mut vec![]], &mut seen);
                            kept.extend((0..keys.len()).filter(|i| marks[*i] != 0.0).map(|i| run * 7 + i));
                            let mut magnitudes: Vec<f64> =
                                keys.iter().map(|key| magnitude(*key)).collect();
                            thresholds.keep_strictly(level, keys, &mut magnitudes, &mut again);
                            strict += magnitudes.iter().sum::<f64>();
                        }
                        prop_assert_eq!(seen, again);
                        (kept, Some(strict + thresholds.kept_ties()))
                    }
                };
                prop_assert_eq!(&found, &expected);
                if let Some(sum) = sum {
                    let expected: f64 = expected.iter().map(|i| values[*i].abs()).sum();
                    prop_assert!((sum - expected).abs() <= 1e-9 * expected.max(1.0), "{} {}", sum, expected);
                }
            }
        }
    }
}
