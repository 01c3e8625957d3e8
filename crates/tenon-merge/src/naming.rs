//! From the module names of a model in memory to the tensor names of a checkpoint on disk.
//!
//! Mostly they are equal. They differ where a checkpoint was written by a
//! bare or a wrapped model (`h.0.` for `transformer.h.0.`), or where a library
//! moved modules between versions (`language_model.model.` and
//! `model.language_model.`). A name that is not there as it stands is looked
//! for by its tail: the longest one that exactly one base tensor shares. Then
//! the same is tried under the names that families of models have for parts of
//! themselves ([`crate::renamed`]).

use std::collections::HashMap;

use crate::Error;
use crate::renamed::spellings;

/// The names of the tensors being planned.
#[derive(Debug, Default)]
pub(crate) struct Names {
    exact: HashMap<String, usize>,
    /// Tensors by every tail that still means one thing.
    tails: HashMap<String, Vec<usize>>,
    all: Vec<String>,
}

impl Names {
    pub(crate) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut this = Self::default();
        for name in names {
            this.insert(name);
        }
        this
    }

    pub(crate) fn insert(&mut self, name: &str) {
        let index = self.all.len();
        self.all.push(name.into());
        self.exact.insert(name.into(), index);
        for tail in tails(name) {
            self.tails.entry(tail.into()).or_default().push(index);
        }
    }

    pub(crate) fn exact(&self, name: &str) -> Option<usize> {
        self.exact.get(name).copied()
    }

    /// The tensor that `wanted` means, asked for by adapter tensor `tensor`.
    pub(crate) fn resolve(&self, tensor: &str, wanted: &str) -> Result<usize, Error> {
        match self.look_up(wanted) {
            Some([index]) => Ok(*index),
            Some(several @ [first, second, ..]) => Err(Error::Ambiguous {
                tensor: tensor.into(),
                count: several.len(),
                first: self.all[*first].clone(),
                second: self.all[*second].clone(),
            }),
            None | Some([]) => Err(Error::NoHome {
                tensor: tensor.into(),
                wanted: wanted.into(),
                nearest: self.nearest(wanted),
            }),
        }
    }

    /// The tensor that `wanted` means, if it means just one.
    pub(crate) fn find(&self, wanted: &str) -> Option<usize> {
        match self.look_up(wanted) {
            Some([index]) => Some(*index),
            _ => None,
        }
    }

    /// The tensors that `wanted` may mean: one, or several with nothing to choose by.
    fn look_up(&self, wanted: &str) -> Option<&[usize]> {
        if let Some(index) = self.exact.get(wanted) {
            return Some(std::slice::from_ref(index));
        }
        for tail in tails(wanted) {
            match self.tails.get(tail).map(Vec::as_slice) {
                None | Some([]) => continue,
                Some(several) => return Some(self.most_alike(several, wanted, tail).unwrap_or(several)),
            }
        }
        spellings(wanted).iter().find_map(|other| self.in_wrappers(other)).map(std::slice::from_ref)
    }

    /// The one tensor that has this name but for wrappers of the whole model at its front.
    fn in_wrappers(&self, wanted: &str) -> Option<&usize> {
        if let Some(index) = self.exact.get(wanted) {
            return Some(index);
        }
        let wraps = |name: &str, tail: &str| {
            let front = name.strip_suffix(tail).unwrap_or_default();
            front.split('.').all(|part| part.is_empty() || WRAPPERS.contains(&part))
        };
        tails(wanted).find_map(|tail| match self.tails.get(tail).map(Vec::as_slice) {
            Some([index]) if wraps(wanted, tail) && wraps(&self.all[*index], tail) => Some(index),
            _ => None,
        })
    }

    /// Of the tensors that share `tail`, the one whose front has most components in common with the
    /// front of `wanted`, in whatever order: `language_model.model.` for `model.language_model.`, not
    /// `vision_tower.encoder.`. None if two have as many.
    fn most_alike<'a>(&self, several: &'a [usize], wanted: &str, tail: &str) -> Option<&'a [usize]> {
        let front = |name: &str| -> Vec<String> {
            let front = name.strip_suffix(tail).unwrap_or_default();
            front.split('.').filter(|part| !part.is_empty()).map(str::to_string).collect()
        };
        let wanted = front(wanted);
        let common = |index: usize| {
            let parts = front(&self.all[index]);
            wanted.iter().filter(|part| parts.contains(part)).count()
        };
        let best = several.iter().map(|index| common(*index)).max()?;
        let mut alike = several.iter().filter(|index| common(**index) == best);
        match (alike.next(), alike.next()) {
            (Some(index), None) => Some(std::slice::from_ref(index)),
            _ => None,
        }
    }

    /// The name most like `wanted`, if any is alike.
    fn nearest(&self, wanted: &str) -> Option<String> {
        let score = |name: &str| strsim::normalized_levenshtein(name, wanted);
        let best = self.all.iter().map(|name| (score(name), name)).max_by(|a, b| a.0.total_cmp(&b.0))?;
        (best.0 > 0.5).then(|| best.1.clone())
    }
}

/// Components that wrap a whole model; a name means the same without them at its front.
const WRAPPERS: [&str; 14] = [
    "model",
    "transformer",
    "base_model",
    "language_model",
    "text_model",
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "deberta",
    "gpt_neox",
    "backbone",
    "module",
    "_orig_mod",
];

/// All tails of `name` that still mean one thing, longest first: those that keep the list its first
/// number counts in (`layers.0.`), or, without a number, those that lack wrappers only.
fn tails(name: &str) -> impl Iterator<Item = &str> {
    let parts: Vec<&str> = name.split('.').collect();
    let number = parts.iter().position(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let last = match number {
        Some(number) => number.saturating_sub(1),
        None => parts
            .iter()
            .take(parts.len().saturating_sub(2))
            .take_while(|part| WRAPPERS.contains(part))
            .count(),
    };
    let mut start = 0;
    let starts: Vec<usize> = parts[..=last]
        .iter()
        .map(|part| {
            let at = start;
            start += part.len() + 1;
            at
        })
        .collect();
    starts.into_iter().map(move |at| &name[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_its_longest_unique_tail() {
        let names = Names::new(
            [
                "h.0.attn.c_attn.weight",
                "model.lm.layers.0.q.weight",
                "model.vision.layers.0.q.weight",
                "wte.weight",
            ]
            .into_iter(),
        );
        assert_eq!(names.resolve("t", "transformer.h.0.attn.c_attn.weight").unwrap(), 0);
        assert_eq!(names.resolve("t", "wte.weight").unwrap(), 3);
        assert!(matches!(
            names.resolve("t", "base.layers.0.q.weight"),
            Err(Error::Ambiguous { count: 2, .. })
        ));
        assert_eq!(names.resolve("t", "model.lm.layers.0.q.weight").unwrap(), 1);
        // Moved modules: the components count, not their order.
        assert_eq!(names.resolve("t", "lm.model.layers.0.q.weight").unwrap(), 1);
        // Never another layer, though its tail be the only one of its kind.
        assert!(matches!(names.resolve("t", "h.1.attn.c_attn.weight"), Err(Error::NoHome { .. })));
        assert!(matches!(names.resolve("t", "visual.wte.weight"), Err(Error::NoHome { .. })));
        match names.resolve("t", "model.lm.layers.9.q.weight") {
            Err(Error::NoHome { nearest, .. }) => assert_eq!(nearest.unwrap(), "model.lm.layers.0.q.weight"),
            other => panic!("{other:?}"),
        }
    }
}
