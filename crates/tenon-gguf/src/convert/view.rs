//! Tensors that are looked at another way: reshaped, transposed, cut, stacked, before any byte is read.
//!
//! As in torch, a look is extents and strides over elements that lie where
//! they lie. What architectures do to their weights on the way into a GGUF
//! (rows of heads rearranged, a fused projection cut, experts stacked) is said
//! in these words when the conversion is planned, and evaluated row by row
//! when it is written.

use crate::Error;

/// One axis of a look: how many steps, and how many elements each goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) len: u64,
    pub(crate) stride: u64,
}

/// Elements of one tensor of the source, or numbers made up at planning.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Origin {
    /// Number of the tensor in the source, and its first element that is looked at.
    Source { tensor: usize, offset: u64 },
    /// The numbers themselves.
    Numbers(Vec<f32>),
    /// Zero, all of them.
    Zeros,
}

/// A strided look at one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Look {
    pub(crate) origin: Origin,
    /// For each axis the steps that it is made of, outermost first.
    axes: Vec<Vec<Step>>,
}

/// What is done to each number.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) enum Arithmetic {
    /// Nothing.
    #[default]
    Keep,
    /// `x + n`
    Add(f32),
    /// `-exp(x)`
    NegExp,
}

/// A tensor of the output in terms of the source: looks one after the other along the first axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) looks: Vec<Look>,
    pub(crate) arithmetic: Arithmetic,
}

impl Tensor {
    /// A tensor of the source as it is.
    pub(crate) fn of(tensor: usize, shape: &[u64]) -> Self {
        let look = Look { origin: Origin::Source { tensor, offset: 0 }, axes: contiguous(shape) };
        Self { looks: vec![look], arithmetic: Arithmetic::Keep }
    }

    /// A vector of given numbers.
    pub(crate) fn numbers(numbers: Vec<f32>) -> Self {
        let look = Look { axes: contiguous(&[numbers.len() as u64]), origin: Origin::Numbers(numbers) };
        Self { looks: vec![look], arithmetic: Arithmetic::Keep }
    }

    /// Zeros.
    pub(crate) fn zeros(shape: &[u64]) -> Self {
        let look = Look { axes: contiguous(shape), origin: Origin::Zeros };
        Self { looks: vec![look], arithmetic: Arithmetic::Keep }
    }

    /// Extents, outermost first.
    pub(crate) fn shape(&self) -> Vec<u64> {
        let mut shape = self.looks[0].shape();
        if let Some(first) = shape.first_mut() {
            *first = self.looks.iter().map(|look| look.shape()[0]).sum();
        }
        shape
    }

    /// Adds to each number.
    pub(crate) fn add(mut self, n: f32) -> Self {
        self.arithmetic = Arithmetic::Add(n);
        self
    }

    /// `-exp(x)` of each number.
    pub(crate) fn neg_exp(mut self) -> Self {
        self.arithmetic = Arithmetic::NegExp;
        self
    }

    /// The same elements in the same order, in another shape.
    pub(crate) fn reshape(self, shape: &[u64]) -> Result<Self, Error> {
        self.one(|look| look.reshape(shape))
    }

    /// Two axes exchanged.
    pub(crate) fn swap_axes(self, a: usize, b: usize) -> Result<Self, Error> {
        self.one(|mut look| {
            let rank = look.axes.len();
            if a >= rank || b >= rank {
                return None;
            }
            look.axes.swap(a, b);
            Some(look)
        })
    }

    /// `len` indices of an axis, from `start`.
    pub(crate) fn slice(self, axis: usize, start: u64, len: u64) -> Result<Self, Error> {
        self.one(|look| look.slice(axis, start, len))
    }

    /// An axis cut into pieces of these lengths.
    pub(crate) fn split<const N: usize>(self, axis: usize, lengths: [u64; N]) -> Result<[Self; N], Error> {
        let whole = self.shape().get(axis).copied();
        if whole.is_none() || whole != lengths.iter().try_fold(0, |all: u64, n| all.checked_add(*n)) {
            return Err(impossible(&self.shape()));
        }
        let mut start = 0;
        let mut pieces = vec![];
        for len in lengths {
            pieces.push(self.clone().slice(axis, start, len)?);
            start += len;
        }
        Ok(pieces.try_into().expect("one a length"))
    }

    /// Axes of length 1 removed.
    pub(crate) fn squeeze(self) -> Result<Self, Error> {
        let shape: Vec<u64> = self.shape().into_iter().filter(|n| *n != 1).collect();
        self.reshape(&shape)
    }

    /// An axis of length 1 put in.
    pub(crate) fn unsqueeze(self, axis: usize) -> Result<Self, Error> {
        let mut shape = self.shape();
        shape.insert(axis.min(shape.len()), 1);
        self.reshape(&shape)
    }

    /// Tensors one after the other along the first axis.
    pub(crate) fn cat(tensors: Vec<Tensor>) -> Result<Self, Error> {
        let Some(first) = tensors.first() else { return Err(impossible(&[])) };
        let (shape, arithmetic) = (first.shape(), first.arithmetic);
        let fits = |other: &Tensor| {
            let there = other.shape();
            other.arithmetic == arithmetic
                && !there.is_empty()
                && there.len() == shape.len()
                && there[1..] == shape[1..]
        };
        if let Some(other) = tensors.iter().find(|tensor| !fits(tensor)) {
            return Err(impossible(&other.shape()));
        }
        Ok(Self { looks: tensors.into_iter().flat_map(|tensor| tensor.looks).collect(), arithmetic })
    }

    /// Tensors of one shape along a new first axis.
    pub(crate) fn stack(tensors: Vec<Tensor>) -> Result<Self, Error> {
        let tensors: Result<Vec<_>, _> = tensors.into_iter().map(|tensor| tensor.unsqueeze(0)).collect();
        Self::cat(tensors?)
    }

    /// The source's tensor and row that each row lies in (all axes but the last taken as one), where all
    /// rows are whole rows of the source. `row_lens` are those of the source's tensors.
    pub(crate) fn whole_rows(&self, row_lens: &[u64]) -> Option<Vec<(usize, u64)>> {
        let mut rows = vec![];
        for look in &self.looks {
            let Origin::Source { tensor, offset } = look.origin else { return None };
            let width = *row_lens.get(tensor)?;
            let (last, outer) = look.axes.split_last()?;
            let within: Vec<Step> = join(last).into_iter().filter(|step| step.len != 1).collect();
            match within[..] {
                [] if width == 1 => {}
                [Step { len, stride: 1 }] if len == width => {}
                _ => return None,
            }
            let outer: Vec<Step> = outer.iter().flatten().copied().collect();
            for n in 0..outer.iter().map(|step| step.len).product() {
                let (mut rest, mut at) = (n, offset);
                for step in outer.iter().rev() {
                    at += rest % step.len * step.stride;
                    rest /= step.len;
                }
                if !at.is_multiple_of(width) {
                    return None;
                }
                rows.push((tensor, at / width));
            }
        }
        Some(rows)
    }

    fn one(self, change: impl FnOnce(Look) -> Option<Look>) -> Result<Self, Error> {
        let shape = self.shape();
        let arithmetic = self.arithmetic;
        let [look] = <[Look; 1]>::try_from(self.looks).map_err(|_| impossible(&shape))?;
        let look = change(look).ok_or_else(|| impossible(&shape))?;
        Ok(Self { looks: vec![look], arithmetic })
    }
}

fn impossible(shape: &[u64]) -> Error {
    // Named by whoever knows the tensor's name.
    Error::Tensor {
        tensor: String::new(),
        reason: format!(
            "its shape {shape:?} does not fit what config.json says of heads, experts and widths"
        ),
    }
}

fn contiguous(shape: &[u64]) -> Vec<Vec<Step>> {
    let mut stride = 1;
    let mut axes: Vec<Vec<Step>> = shape
        .iter()
        .rev()
        .map(|len| {
            let step = Step { len: *len, stride };
            stride *= len;
            vec![step]
        })
        .collect();
    axes.reverse();
    axes
}

impl Look {
    fn shape(&self) -> Vec<u64> {
        self.axes.iter().map(|axis| axis.iter().map(|step| step.len).product()).collect()
    }

    /// Elements.
    pub(crate) fn elements(&self) -> u64 {
        self.shape().iter().product()
    }

    /// Its steps, outermost first: neighbours that go on from one another joined, single steps left out.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = vec![];
        for step in self.axes.iter().flatten().filter(|step| step.len != 1) {
            match steps.last_mut() {
                Some(last) if last.stride == step.len * step.stride => {
                    *last = Step { len: last.len * step.len, stride: step.stride };
                }
                _ => steps.push(*step),
            }
        }
        if steps.is_empty() {
            steps.push(Step { len: 1, stride: 1 });
        }
        steps
    }

    fn reshape(self, shape: &[u64]) -> Option<Self> {
        if shape.iter().try_fold(1, |all: u64, n| all.checked_mul(*n)) != Some(self.elements()) {
            return None;
        }
        if self.elements() == 0 {
            return Some(Self { axes: contiguous(shape), ..self });
        }
        let mut steps = self.steps().into_iter();
        let mut left: Option<Step> = None;
        let mut axes = vec![];
        for extent in shape {
            let mut need = *extent;
            let mut axis = vec![];
            while need > 1 {
                let step = left.take().or_else(|| steps.next())?;
                if step.len == 1 {
                    continue;
                }
                if need.is_multiple_of(step.len) {
                    need /= step.len;
                    axis.push(step);
                } else if step.len.is_multiple_of(need) {
                    let inner = step.len / need;
                    axis.push(Step { len: need, stride: step.stride * inner });
                    left = Some(Step { len: inner, stride: step.stride });
                    need = 1;
                } else {
                    return None;
                }
            }
            if axis.is_empty() {
                axis.push(Step { len: 1, stride: 1 });
            }
            axes.push(axis);
        }
        Some(Self { axes, ..self })
    }

    fn slice(mut self, axis: usize, start: u64, len: u64) -> Option<Self> {
        let steps = self.axes.get_mut(axis)?;
        let whole: u64 = steps.iter().map(|step| step.len).product();
        if start.checked_add(len)? > whole {
            return None;
        }
        let joined = join(steps);
        *steps = joined;
        let inner: u64 = steps[1..].iter().map(|step| step.len).product();
        if !start.is_multiple_of(inner) || !len.is_multiple_of(inner) {
            return None;
        }
        let skipped = start / inner * steps[0].stride;
        steps[0].len = len / inner;
        match &mut self.origin {
            Origin::Source { offset, .. } => *offset += skipped,
            Origin::Zeros => {}
            Origin::Numbers(numbers) => {
                numbers.drain(..usize::try_from(skipped).ok()?.min(numbers.len()));
            }
        }
        Some(self)
    }
}

fn join(steps: &[Step]) -> Vec<Step> {
    let mut joined: Vec<Step> = vec![];
    for step in steps {
        match joined.last_mut() {
            Some(last) if last.stride == step.len * step.stride => {
                *last = Step { len: last.len * step.len, stride: step.stride };
            }
            _ => joined.push(*step),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All addresses, in order.
    fn addresses(tensor: &Tensor) -> Vec<u64> {
        let mut out = vec![];
        for look in &tensor.looks {
            let Origin::Source { offset, .. } = look.origin else { panic!("no source") };
            let steps = look.steps();
            for n in 0..look.elements() {
                let (mut rest, mut at) = (n, offset);
                for step in steps.iter().rev() {
                    at += rest % step.len * step.stride;
                    rest /= step.len;
                }
                out.push(at);
            }
        }
        out
    }

    #[test]
    fn the_rows_of_a_head_are_rearranged() {
        // 2 heads of 4 rows of 1: torch's reshape(2, 2, 2).swapaxes(1, 2).reshape(8).
        let tensor = Tensor::of(0, &[8, 1]).reshape(&[2, 2, 2, 1]).unwrap();
        let tensor = tensor.swap_axes(1, 2).unwrap().reshape(&[8, 1]).unwrap();
        assert_eq!(tensor.shape(), [8, 1]);
        assert_eq!(addresses(&tensor), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn cut_transposed_and_stacked() {
        let [a, b] = Tensor::of(0, &[4, 3]).split(0, [1, 3]).unwrap();
        assert_eq!(addresses(&a), [0, 1, 2]);
        assert_eq!(addresses(&b.clone().swap_axes(0, 1).unwrap()), [3, 6, 9, 4, 7, 10, 5, 8, 11]);
        assert_eq!(addresses(&Tensor::of(0, &[2, 4]).slice(1, 2, 2).unwrap()), [2, 3, 6, 7]);
        let stacked = Tensor::stack(vec![a.clone(), a]).unwrap();
        assert_eq!((stacked.shape(), addresses(&stacked)), (vec![2, 1, 3], vec![0, 1, 2, 0, 1, 2]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let tensor = || Tensor::of(0, &[6, 4]);
        assert!(tensor().reshape(&[5, 4]).is_err());
        assert!(tensor().slice(0, 5, 2).is_err());
        assert!(tensor().slice(0, u64::MAX, 2).is_err());
        assert!(tensor().slice(2, 0, 1).is_err());
        assert!(tensor().swap_axes(0, 1).unwrap().reshape(&[3, 8]).is_err());
        assert!(Tensor::cat(vec![tensor(), Tensor::of(0, &[6, 5])]).is_err());
        assert!(Tensor::cat(vec![]).is_err());
    }
}
