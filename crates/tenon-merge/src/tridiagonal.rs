//! Eigenvalues and eigenvectors of symmetric tridiagonal matrices, by dividing.
//!
//! Halves are solved each, and the element that ties them is put back as a change of rank 1 (Cuppen 1981): the
//! eigenvalues are the roots of a rational function between its poles, and the vectors follow from the roots after
//! the change was adapted to them (Gu and Eisenstat 1994), which keeps them orthogonal. Most of the work is products
//! of matrices. Small matrices are solved by implicit QL steps.

use crate::kernel::{self, Matrix, Multiply};

/// Eigenvalues, ascending, and for each its eigenvector, `[count, n]`.
pub(crate) struct Eigen {
    pub(crate) values: Vec<f64>,
    pub(crate) vectors: Vec<f64>,
}

/// Rows that are solved without dividing.
const LEAF: usize = 32;

/// Solves the matrix with this diagonal and this one beside it, and gives the eigenvectors in the places `wanted`.
pub(crate) fn solve(diagonal: &[f64], beside: &[f64], wanted: std::ops::Range<usize>) -> Eigen {
    let n = diagonal.len();
    if n <= LEAF {
        let mut all = by_steps(diagonal.to_vec(), beside);
        all.vectors = all.vectors[wanted.start * n..wanted.end * n].to_vec();
        return all;
    }
    let half = n / 2;
    let tie = beside[half - 1];
    let (mut first, mut second) = (diagonal[..half].to_vec(), diagonal[half..].to_vec());
    first[half - 1] -= tie.abs();
    second[0] -= tie.abs();
    let first = solve(&first, &beside[..half - 1], 0..half);
    let second = solve(&second, &beside[half..], 0..n - half);
    Tied::new(first, second, tie).solve(wanted)
}

/// Two solved halves and what ties them: `D + rho z zᵀ` in the basis of their eigenvectors.
struct Tied {
    half: usize,
    rho: f64,
    /// Ascending, with the element of `z` and the vector of each.
    directions: Vec<Direction>,
    /// Eigenvectors of the halves, `[n, n]`, by rows.
    vectors: Vec<f64>,
}

struct Direction {
    value: f64,
    z: f64,
    vector: usize,
    /// Whether the vector has elements in the first half, and in the second.
    spans: [bool; 2],
}

impl Tied {
    fn new(first: Eigen, second: Eigen, tie: f64) -> Self {
        let (half, rest) = (first.values.len(), second.values.len());
        let n = half + rest;
        let mut vectors = vec![0.0; n * n];
        let mut directions = Vec::with_capacity(n);
        // z has length 1: each half's unit vectors give it 1.
        let root = std::f64::consts::FRAC_1_SQRT_2;
        for (k, vector) in first.vectors.chunks_exact(half).enumerate() {
            vectors[k * n..][..half].copy_from_slice(vector);
            let z = vector[half - 1] * root;
            directions.push(Direction { value: first.values[k], z, vector: k, spans: [true, false] });
        }
        for (k, vector) in second.vectors.chunks_exact(rest).enumerate() {
            vectors[(half + k) * n + half..][..rest].copy_from_slice(vector);
            let z = vector[0] * root.copysign(tie);
            directions.push(Direction { value: second.values[k], z, vector: half + k, spans: [false, true] });
        }
        let mut tied = Self { half, rho: 2.0 * tie.abs(), directions, vectors };
        tied.sort();
        tied
    }

    fn sort(&mut self) {
        self.directions.sort_by(|a, b| a.value.total_cmp(&b.value).then(a.vector.cmp(&b.vector)));
    }

    fn solve(mut self, wanted: std::ops::Range<usize>) -> Eigen {
        let n = self.directions.len();
        let loose = self.take_loose();
        let kept = std::mem::take(&mut self.directions);
        let (roots, shares) = secular(&kept, self.rho);
        // Where each eigenvalue comes from: a loose direction, or a root.
        let from_loose = loose.iter().enumerate().map(|(k, d)| (d.value, false, k));
        let from_roots = roots.iter().enumerate().map(|(k, value)| (*value, true, k));
        let mut all: Vec<(f64, bool, usize)> = from_loose.chain(from_roots).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let chosen = &all[wanted];
        let mut vectors = vec![0.0; chosen.len() * n];
        let of_roots: Vec<(usize, usize)> = chosen
            .iter()
            .enumerate()
            .filter(|(_, (_, is_root, _))| *is_root)
            .map(|(place, (_, _, k))| (place, *k))
            .collect();
        for (place, (_, is_root, k)) in chosen.iter().enumerate() {
            if !is_root {
                vectors[place * n..][..n].copy_from_slice(&self.vectors[loose[*k].vector * n..][..n]);
            }
        }
        let halves = [0..self.half, self.half..n];
        for (side, columns) in halves.into_iter().enumerate() {
            // Of vectors that have nothing in this half nothing comes.
            let spanning: Vec<usize> = (0..kept.len()).filter(|i| kept[*i].spans[side]).collect();
            let mut left = Vec::with_capacity(of_roots.len() * spanning.len());
            for (_, k) in &of_roots {
                let shares = &shares[k * kept.len()..][..kept.len()];
                left.extend(spanning.iter().map(|i| shares[*i]));
            }
            let mut right = Vec::with_capacity(spanning.len() * columns.len());
            for i in &spanning {
                let vector = &self.vectors[kept[*i].vector * n..][..n];
                right.extend_from_slice(&vector[columns.clone()]);
            }
            let mut product = vec![0.0; of_roots.len() * columns.len()];
            Multiply {
                left: Matrix { values: &left, stride: spanning.len() },
                right: Matrix { values: &right, stride: columns.len() },
                shape: (of_roots.len(), spanning.len(), columns.len()),
                scale: 1.0,
                lower: false,
            }
            .add_to(&mut product, columns.len());
            for ((place, _), row) in of_roots.iter().zip(product.chunks_exact(columns.len())) {
                vectors[place * n + columns.start..][..row.len()].copy_from_slice(row);
            }
        }
        Eigen { values: all.into_iter().map(|(value, ..)| value).collect(), vectors }
    }

    /// Takes out the directions that the tie does not reach, or that a rotation keeps it from: they are
    /// eigenvectors already.
    fn take_loose(&mut self) -> Vec<Direction> {
        let n = self.directions.len();
        let largest =
            |of: fn(&Direction) -> f64| self.directions.iter().map(|d| of(d).abs()).fold(0.0, f64::max);
        let tolerance = 8.0 * f64::EPSILON * largest(|d| d.value).max(largest(|d| d.z));
        let (mut loose, mut kept) = (vec![], Vec::<Direction>::with_capacity(n));
        for mut next in std::mem::take(&mut self.directions) {
            if self.rho * next.z.abs() <= tolerance {
                loose.push(next);
                continue;
            }
            if let Some(last) = kept.last_mut() {
                let length = last.z.hypot(next.z);
                let (cosine, sine) = (next.z / length, -last.z / length);
                if ((next.value - last.value) * cosine * sine).abs() <= tolerance {
                    rotate(&mut self.vectors, n, last.vector, next.vector, cosine, sine);
                    let (a, b) = (last.value, next.value);
                    last.value = a * cosine * cosine + b * sine * sine;
                    next.value = a * sine * sine + b * cosine * cosine;
                    next.z = length;
                    let both = [0, 1].map(|side| last.spans[side] || next.spans[side]);
                    (last.spans, next.spans) = (both, both);
                    loose.push(std::mem::replace(last, next));
                    continue;
                }
            }
            kept.push(next);
        }
        self.directions = kept;
        loose
    }
}

/// `(x, y) := (c x + s y, c y - s x)` for two rows.
fn rotate(vectors: &mut [f64], n: usize, x: usize, y: usize, cosine: f64, sine: f64) {
    let (low, high) = vectors.split_at_mut(x.max(y) * n);
    let (low, high) = (&mut low[x.min(y) * n..][..n], &mut high[..n]);
    let (x, y) = if x < y { (low, high) } else { (high, low) };
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (cosine * *x + sine * *y, cosine * *y - sine * *x);
    }
}

/// Eigenvalues of `D + rho z zᵀ`, ascending, and their vectors, `[count, count]`, by rows.
fn secular(directions: &[Direction], rho: f64) -> (Vec<f64>, Vec<f64>) {
    let count = directions.len();
    let poles: Vec<f64> = directions.iter().map(|d| d.value).collect();
    let weights: Vec<f64> = directions.iter().map(|d| rho * d.z * d.z).collect();
    let total: f64 = weights.iter().sum();
    let mut roots = vec![0.0; count];
    // Row k: distance of each pole from root k.
    let mut distances = vec![0.0; count * count];
    let parts = distances.chunks_mut(count.max(1)).zip(&mut roots);
    kernel::on_all_cores(parts, (count * count) >> 14, |k, (distances, root)| {
        *root = find_root(&poles, &weights, total, k, distances);
    });
    // The z of which these are exactly the eigenvalues.
    let mut adapted = vec![0.0; count];
    kernel::on_all_cores(adapted.iter_mut(), (count * count) >> 16, |i, z| {
        let mut product = -distances[i * count + i];
        for (k, pole) in poles.iter().enumerate() {
            if k != i {
                product *= distances[k * count + i] / (poles[i] - pole);
            }
        }
        *z = product.abs().sqrt().copysign(directions[i].z);
    });
    kernel::on_all_cores(distances.chunks_mut(count.max(1)), (count * count) >> 16, |_, row| {
        row.iter_mut().zip(&adapted).for_each(|(share, z)| *share = z / *share);
        let level = kernel::Level::detect();
        let norm = kernel::row_norm(level, row);
        kernel::scale_row(level, row, 1.0 / norm);
    });
    (roots, distances)
}

/// The root of `1 + Σ weights / (poles - x)` above pole `k`, and in `distances` how far each pole is from it.
///
/// Steps are those of the function's interpolation by two poles (Li 1994), inside an interval that each makes
/// smaller; where one leads out of it, it is halved.
fn find_root(poles: &[f64], weights: &[f64], total: f64, k: usize, distances: &mut [f64]) -> f64 {
    let last = k + 1 == poles.len();
    let gap = if last { total } else { poles[k + 1] - poles[k] };
    // Distances are from the nearer pole, so that small ones have all their digits.
    let value_at = |origin: f64, x: f64| {
        let sum: f64 = poles.iter().zip(weights).map(|(pole, w)| w / ((pole - origin) - x)).sum();
        1.0 + sum
    };
    let upper = !last && value_at(poles[k], gap / 2.0) < 0.0;
    let origin = if upper { poles[k + 1] } else { poles[k] };
    let (mut low, mut high) = match (last, upper) {
        (true, _) => (0.0, gap),
        (false, true) => (-gap / 2.0, 0.0),
        (false, false) => (0.0, gap / 2.0),
    };
    let mut x = low / 2.0 + high / 2.0;
    for turn in 1..400 {
        let (mut below, mut above, mut slope_below, mut slope_above) = (0.0, 0.0, 0.0, 0.0);
        let split = if last { k } else { k + 1 };
        for (pole, w) in poles[..split].iter().zip(weights) {
            let term = w / ((pole - origin) - x);
            below += term;
            slope_below += term / ((pole - origin) - x);
        }
        for (pole, w) in poles[split..].iter().zip(&weights[split..]) {
            let term = w / ((pole - origin) - x);
            above += term;
            slope_above += term / ((pole - origin) - x);
        }
        let value = 1.0 + below + above;
        // The function rises from each pole to the next.
        if value < 0.0 {
            low = x
        } else {
            high = x
        }
        let width = high - low;
        if value == 0.0 || width <= 2.0 * f64::EPSILON * low.abs().max(high.abs()) {
            break;
        }
        let near = split.saturating_sub(1);
        let (d, e) = ((poles[near] - origin) - x, (poles[split.min(poles.len() - 1)] - origin) - x);
        let a = (d + e) * value - d * e * (slope_below + slope_above);
        let b = d * e * value;
        let c = value - d * slope_below - e * slope_above;
        let root = (a * a - 4.0 * b * c).max(0.0).sqrt();
        // Of the two roots the one between the poles; above the last pole the other.
        let step = match (last, a <= 0.0) {
            (false, true) => (a - root) / (2.0 * c),
            (false, false) => 2.0 * b / (a + root),
            (true, true) => 2.0 * b / (a - root),
            (true, false) => (a + root) / (2.0 * c),
        };
        let next = x + step;
        // Now and then a half, that a slow end comes nearer too.
        if next > low && next < high && turn % 8 != 0 {
            x = next;
            if step.abs() <= f64::EPSILON * x.abs() {
                break;
            }
        } else {
            x = low / 2.0 + high / 2.0;
        }
    }
    distances.iter_mut().zip(poles).for_each(|(distance, pole)| *distance = (pole - origin) - x);
    origin + x
}

/// Implicit QL steps with Wilkinson's shifts (Bowdler et al. 1968).
fn by_steps(mut d: Vec<f64>, beside: &[f64]) -> Eigen {
    let n = d.len();
    let mut e = beside.to_vec();
    e.push(0.0);
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for first in 0..n {
        // Two or three steps an eigenvalue are usual.
        for _ in 0..200 {
            let small = |m: usize| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs());
            let end = (first..n - 1).find(|m| small(*m)).unwrap_or(n - 1);
            if end == first {
                break;
            }
            let g = (d[first + 1] - d[first]) / (2.0 * e[first]);
            let mut g = d[end] - d[first] + e[first] / (g + g.hypot(1.0).copysign(g));
            let (mut sine, mut cosine, mut taken) = (1.0, 1.0, 0.0);
            let mut stopped = false;
            for i in (first..end).rev() {
                let (f, b) = (sine * e[i], cosine * e[i]);
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= taken;
                    e[end] = 0.0;
                    stopped = true;
                    break;
                }
                (sine, cosine) = (f / r, g / r);
                let before = d[i + 1] - taken;
                let r = (d[i] - before) * sine + 2.0 * cosine * b;
                taken = sine * r;
                d[i + 1] = before + taken;
                g = cosine * r - b;
                rotate(&mut vectors, n, i + 1, i, cosine, sine);
            }
            if !stopped {
                d[first] -= taken;
                e[first] = g;
                e[end] = 0.0;
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| d[*a].total_cmp(&d[*b]).then(a.cmp(b)));
    let sorted = order.iter().flat_map(|k| vectors[k * n..][..n].iter().copied()).collect();
    Eigen { values: order.iter().map(|k| d[*k]).collect(), vectors: sorted }
}
