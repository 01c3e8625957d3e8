//! Results that are weighted sums of the inputs, by weights that follow from the angles between them.
//!
//! All that such a method must know are the products of the inputs, or of
//! their differences from the base, with each other: with these, every step on
//! a sphere (a mean, a tangent, an arc) is arithmetic on one weight for each
//! input. So a tensor is read once for the products and once for the sum,
//! whatever the method, and nothing as large as a tensor is made.

use crate::Error;

/// How the weights follow from the products.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rule {
    /// Along the arc between two, `t` of the way; mergekit's slerp.
    Slerp { t: f64 },
    /// The same, with nuslerp's idea of when the arc is a straight line.
    NuSlerp { t: f64 },
    /// Between the base and the mean of the others (Jang et al. 2024).
    Stock,
    /// The weighted mean on the sphere, in the tangent space at the normalized weighted sum.
    MultiSlerp { weights: Vec<f64>, normalize: bool, eps: f64 },
    /// The mean on the sphere: the point whose tangents towards all sum to zero.
    Karcher { max_iter: u64, tol: f64 },
}

/// What the products are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The whole tensor.
    Whole,
    /// Each row: the last dimension.
    Rows,
    /// Each column of a matrix.
    Columns,
}

/// A weighted sum of inputs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Span {
    pub(crate) rule: Rule,
    /// The inputs between which angles are taken.
    pub(crate) vectors: Vec<usize>,
    /// What they are differences from.
    pub(crate) origin: Option<usize>,
    pub(crate) scope: Scope,
}

/// Products of `n` vectors with each other: a symmetric matrix, row-major.
pub(crate) type Gram<'a> = &'a [f64];

impl Span {
    /// Of `inputs` inputs, what each is multiplied by.
    pub(crate) fn weights(&self, gram: Gram<'_>, inputs: usize, tensor: &str) -> Result<Vec<f64>, Error> {
        let own = self.rule.weights(gram, self.vectors.len(), tensor)?;
        let mut weights = vec![0.0; inputs];
        if let Some(origin) = self.origin {
            weights[origin] = 1.0 - own.iter().sum::<f64>();
        }
        for (vector, weight) in self.vectors.iter().zip(own) {
            weights[*vector] += weight;
        }
        Ok(weights)
    }
}

/// Beyond this cosine mergekit's slerp takes the straight line.
const ALL_BUT_PARALLEL: f64 = 0.9995;

impl Rule {
    fn weights(&self, gram: Gram<'_>, n: usize, tensor: &str) -> Result<Vec<f64>, Error> {
        let norm = |i: usize| gram[i * n + i].max(0.0).sqrt();
        Ok(match self {
            Rule::Slerp { t } => {
                let unit = |norm: f64| if norm > 1e-8 { norm } else { 1.0 };
                let cosine = (gram[1] / (unit(norm(0)) * unit(norm(1)))).clamp(-1.0, 1.0);
                arc(*t, cosine, cosine.abs() > ALL_BUT_PARALLEL)
            }
            Rule::NuSlerp { t } => {
                let cosine = (gram[1] / (norm(0).max(1e-7) * norm(1).max(1e-7))).clamp(-1.0, 1.0);
                arc(*t, cosine, 1.0 - cosine * cosine <= 1e-16)
            }
            Rule::Stock => {
                let mut cosines = vec![];
                for a in 0..n {
                    for b in a + 1..n {
                        cosines.push((gram[a * n + b] / (norm(a) * norm(b)).max(1e-6)).clamp(-1.0, 1.0));
                    }
                }
                let cosine = cosines.iter().sum::<f64>() / cosines.len() as f64;
                let denominator = 1.0 + (n as f64 - 1.0) * cosine;
                // Where the estimate has a pole, the base stays, as in mergekit.
                let t = if denominator.abs() < 1e-6 { 0.0 } else { n as f64 * cosine / denominator };
                vec![t / n as f64; n]
            }
            Rule::MultiSlerp { weights, normalize, eps } => {
                multi_slerp(gram, weights, *normalize, *eps, tensor)?
            }
            Rule::Karcher { max_iter, tol } => karcher(gram, n, *max_iter, *tol),
        })
    }
}

fn arc(t: f64, cosine: f64, is_straight: bool) -> Vec<f64> {
    if is_straight {
        return vec![1.0 - t, t];
    }
    let angle = cosine.acos();
    vec![((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
}

/// The product of two weighted sums.
fn product(gram: Gram<'_>, a: &[f64], b: &[f64]) -> f64 {
    let n = a.len();
    let row = |i: usize| -> f64 { (0..n).map(|j| gram[i * n + j] * b[j]).sum() };
    (0..n).map(|i| a[i] * row(i)).sum()
}

fn length(gram: Gram<'_>, a: &[f64]) -> f64 {
    product(gram, a, a).max(0.0).sqrt()
}

fn multi_slerp(
    gram: Gram<'_>,
    weights: &[f64],
    normalize: bool,
    eps: f64,
    tensor: &str,
) -> Result<Vec<f64>, Error> {
    let n = weights.len();
    if n == 1 {
        return Ok(vec![1.0]);
    }
    let total: f64 = if normalize { weights.iter().sum() } else { 1.0 };
    let weights: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
    let norms: Vec<f64> = (0..n).map(|i| gram[i * n + i].max(0.0).sqrt()).collect();
    let mut mean: Vec<f64> = (0..n).map(|i| weights[i] / (norms[i] + eps)).collect();
    let mean_length = length(gram, &mean);
    if mean_length < eps {
        return if n == 2 { Ok(weights) } else { Err(Error::NoMean { tensor: tensor.into() }) };
    }
    mean.iter_mut().for_each(|m| *m /= mean_length);
    let towards_mean = |i: usize| {
        let dot: f64 = (0..n).map(|j| gram[i * n + j] * mean[j]).sum();
        weights[i] * dot / (norms[i] + eps)
    };
    let along: f64 = (0..n).map(towards_mean).sum();
    let tangent: Vec<f64> = (0..n).map(|i| weights[i] / (norms[i] + eps) - along * mean[i]).collect();
    let angle = length(gram, &tangent) + eps;
    let average: f64 = norms.iter().zip(&weights).map(|(norm, weight)| norm * weight).sum();
    let on_sphere = |i: usize| mean[i] * angle.cos() + tangent[i] * (angle.sin() / angle);
    Ok((0..n).map(|i| on_sphere(i) * average).collect())
}

fn karcher(gram: Gram<'_>, n: usize, max_iter: u64, tol: f64) -> Vec<f64> {
    if n == 1 {
        return vec![1.0];
    }
    let norms: Vec<f64> = (0..n).map(|i| gram[i * n + i].max(0.0).sqrt()).collect();
    let valid: Vec<usize> = (0..n).filter(|i| norms[*i] > tol).collect();
    let Some(&first) = valid.first() else { return vec![0.0; n] };
    let share = 1.0 / valid.len() as f64;
    let unit = |i: usize, j: usize| if i == j { 1.0 / norms[i] } else { 0.0 };
    let mut mean: Vec<f64> = (0..n).map(|i| if norms[i] > tol { share / norms[i] } else { 0.0 }).collect();
    let mean_length = length(gram, &mean);
    if mean_length < tol {
        mean = (0..n).map(|j| unit(first, j)).collect();
    } else {
        mean.iter_mut().for_each(|m| *m /= mean_length);
    }
    for _ in 0..max_iter {
        let mut tangent = vec![0.0; n];
        for &i in &valid {
            let dot: f64 = (0..n).map(|j| gram[i * n + j] * mean[j]).sum::<f64>() / norms[i];
            let dot = dot.clamp(-1.0, 1.0);
            let angle = dot.acos();
            if angle < tol {
                continue;
            }
            let factor = share * angle / angle.sin();
            for j in 0..n {
                tangent[j] += factor * (unit(i, j) - dot * mean[j]);
            }
        }
        let step = length(gram, &tangent);
        // Opposite to one of them the direction is not defined.
        if !step.is_finite() || step < tol {
            break;
        }
        for (m, t) in mean.iter_mut().zip(&tangent) {
            *m = step.cos() * *m + step.sin() * (t / step);
        }
        let mean_length = length(gram, &mean);
        if mean_length > tol {
            mean.iter_mut().for_each(|m| *m /= mean_length);
        }
    }
    let scale = norms.iter().sum::<f64>() / n as f64;
    mean.iter_mut().for_each(|m| *m *= scale);
    mean
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Products of unit vectors at these angles in a plane.
    fn circle(angles: &[f64]) -> Vec<f64> {
        angles.iter().flat_map(|a| angles.iter().map(move |b| (a - b).cos())).collect()
    }

    fn angle_of(weights: &[f64], angles: &[f64]) -> f64 {
        let sum = |f: fn(f64) -> f64| -> f64 { weights.iter().zip(angles).map(|(w, a)| w * f(*a)).sum() };
        sum(f64::sin).atan2(sum(f64::cos))
    }

    #[test]
    fn on_a_circle_means_are_means_of_angles() {
        let angles = [0.1, 0.5, 0.9, 1.4];
        let gram = circle(&angles);
        let karcher = Rule::Karcher { max_iter: 20, tol: 1e-12 }.weights(&gram, 4, "t").unwrap();
        assert!((angle_of(&karcher, &angles) - 0.725).abs() < 1e-9, "{karcher:?}");
        assert!((length(&gram, &karcher) - 1.0).abs() < 1e-12);
        let rule = Rule::Slerp { t: 0.25 };
        let slerp = rule.weights(&circle(&[0.2, 1.0]), 2, "t").unwrap();
        assert!((angle_of(&slerp, &[0.2, 1.0]) - 0.4).abs() < 1e-12);
        let rule = Rule::MultiSlerp { weights: vec![1.0, 3.0], normalize: true, eps: 1e-8 };
        let multi = rule.weights(&circle(&[0.0, 0.2]), 2, "t").unwrap();
        assert!((angle_of(&multi, &[0.0, 0.2]) - 0.15).abs() < 1e-3, "{multi:?}");
    }

    #[test]
    fn opposite_vectors_have_no_mean_of_three() {
        let angles = [0.0, std::f64::consts::TAU / 3.0, 2.0 * std::f64::consts::TAU / 3.0];
        let rule = Rule::MultiSlerp { weights: vec![1.0; 3], normalize: true, eps: 1e-8 };
        assert!(matches!(rule.weights(&circle(&angles), 3, "t"), Err(Error::NoMean { .. })));
        let zeros = Rule::Karcher { max_iter: 10, tol: 1e-5 }.weights(&[0.0; 9], 3, "t").unwrap();
        assert_eq!(zeros, [0.0; 3]);
    }
}
