//! Clusters of points as scikit-learn's `KMeans(init="random", n_init=1, max_iter=10, random_state=123456789)` finds
//! them, for adapters that leave them out.
//!
//! Lloyd's turns: each point belongs to the nearest centre, each centre moves to the mean of its points, until no
//! point changes or the centres move less than a ten-thousandth of the points' variance. scikit-learn computes in
//! `f32`; here it is `f64`, which differs where a point is as near to two centres as rounding can tell. Source:
//! scikit-learn 1.9, `cluster/_kmeans.py`, `_k_means_common.pyx`; NumPy 2.4, `RandomState.choice`.

use crate::kernel::{self, Level};
use crate::random::Generator;

const SEED: u64 = 123_456_789;
const TURNS: usize = 10;

/// Points, row-major.
pub(crate) struct Points {
    pub(crate) values: Vec<f64>,
    pub(crate) dimensions: usize,
}

impl Points {
    fn iter(&self) -> std::slice::ChunksExact<'_, f64> {
        self.values.chunks_exact(self.dimensions)
    }
}

/// The cluster of each point, of `count`.
pub(crate) fn clusters(points: &Points, count: usize) -> Vec<usize> {
    let n = points.iter().len();
    let point = |at: usize| &points.values[at * points.dimensions..][..points.dimensions];
    let mut centers: Vec<Vec<f64>> = beginnings(n, count).into_iter().map(|at| point(at).to_vec()).collect();
    let tolerance = 1e-4 * variance(points);
    let mut before = vec![];
    for _ in 0..TURNS {
        let labels = nearest(points, &centers);
        let moved = means(points, &labels, &centers);
        let shift: f64 = centers.iter().zip(&moved).map(|(a, b)| squared_distance(a, b)).sum();
        centers = moved;
        if labels == before {
            return labels;
        }
        if shift <= tolerance {
            break;
        }
        before = labels;
    }
    nearest(points, &centers)
}

/// `RandomState(SEED).choice(n, count, replace=False, p=...)` with equal weights in `f32`.
fn beginnings(n: usize, count: usize) -> Vec<usize> {
    let mut generator = Generator::seeded(SEED);
    let mut weights = vec![f64::from(1.0 / n as f32); n];
    let mut chosen: Vec<usize> = vec![];
    while chosen.len() < count.min(n) {
        let drawn: Vec<f64> = (chosen.len()..count.min(n)).map(|_| generator.numpy_unit()).collect();
        chosen.iter().for_each(|at| weights[*at] = 0.0);
        let sums = weights.iter().scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        let mut sums: Vec<f64> = sums.collect();
        let all = sums[n - 1];
        sums.iter_mut().for_each(|sum| *sum /= all);
        for x in drawn {
            let at = sums.partition_point(|sum| *sum <= x).min(n - 1);
            if !chosen.contains(&at) {
                chosen.push(at);
            }
        }
    }
    chosen
}

/// The mean of the variances along each dimension.
fn variance(points: &Points) -> f64 {
    let n = points.iter().len() as f64;
    let mut mean = vec![0.0; points.dimensions];
    points.iter().for_each(|point| kernel::add_scaled(Level::detect(), &mut mean, point, 1.0 / n));
    points.iter().map(|point| squared_distance(point, &mean)).sum::<f64>() / (n * points.dimensions as f64)
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The nearest centre of each point; of equally near ones the first.
fn nearest(points: &Points, centers: &[Vec<f64>]) -> Vec<usize> {
    let level = Level::detect();
    let squares: Vec<f64> = centers.iter().map(|center| kernel::dot(level, center, center)).collect();
    let of = |point: &[f64]| {
        let (mut best, mut least) = (0, f64::INFINITY);
        for (k, (center, square)) in centers.iter().zip(&squares).enumerate() {
            let distance = square - 2.0 * kernel::dot(level, point, center);
            if distance < least {
                (best, least) = (k, distance);
            }
        }
        best
    };
    points.iter().map(of).collect()
}

/// The mean of each cluster's points. A cluster without any takes the point that is farthest from its own centre.
fn means(points: &Points, labels: &[usize], centers: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let level = Level::detect();
    let mut sums = vec![vec![0.0; points.dimensions]; centers.len()];
    let mut counts = vec![0.0f64; centers.len()];
    for (point, label) in points.iter().zip(labels) {
        kernel::add_scaled(level, &mut sums[*label], point, 1.0);
        counts[*label] += 1.0;
    }
    let empty: Vec<usize> = (0..centers.len()).filter(|k| counts[*k] == 0.0).collect();
    if !empty.is_empty() {
        let distance = |(point, label): (&[f64], &usize)| squared_distance(point, &centers[*label]);
        let distances: Vec<f64> = points.iter().zip(labels).map(distance).collect();
        let mut farthest: Vec<usize> = (0..labels.len()).collect();
        farthest.sort_by(|a, b| distances[*b].total_cmp(&distances[*a]).then(b.cmp(a)));
        for (k, at) in empty.into_iter().zip(farthest) {
            if distances[at] == 0.0 {
                break;
            }
            let point = points.values[at * points.dimensions..][..points.dimensions].to_vec();
            kernel::add_scaled(level, &mut sums[labels[at]], &point, -1.0);
            counts[labels[at]] -= 1.0;
            (sums[k], counts[k]) = (point, 1.0);
        }
    }
    // What is still empty goes to the largest cluster's place.
    let largest = (0..counts.len()).rev().max_by(|a, b| counts[*a].total_cmp(&counts[*b])).unwrap_or(0);
    let mean = |k: usize| sums[k].iter().map(|sum| sum / counts[k]).collect();
    (0..centers.len()).map(|k| if counts[k] > 0.0 { mean(k) } else { mean(largest) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_as_numpy_chooses_them() {
        // numpy.random.RandomState(123456789).choice(n, k, replace=False, p=ones(n, float32) / n)
        assert_eq!(beginnings(7, 3), [3, 5, 1]);
        assert_eq!(beginnings(40, 10), [21, 20, 28, 10, 30, 35, 6, 26, 25, 29]);
        assert_eq!(beginnings(1000, 5), [532, 534, 509, 713, 256]);
        assert_eq!(beginnings(5, 5), [2, 3, 1, 4, 0]);
    }

    #[test]
    fn points_that_lie_in_heaps_are_told_apart() {
        let heaps = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]];
        let values = (0..30).flat_map(|i| {
            let [x, y] = heaps[i % 3];
            [x + (i as f64 * 0.7).sin(), y + (i as f64 * 1.3).cos()]
        });
        let points = Points { values: values.collect(), dimensions: 2 };
        let labels = clusters(&points, 3);
        for i in 3..30 {
            assert_eq!(labels[i], labels[i % 3], "{labels:?}");
        }
        // More clusters than different points: the rest is empty.
        let points = Points { values: vec![1.0; 8], dimensions: 2 };
        assert_eq!(clusters(&points, 4), [0; 4]);
    }
}
