//! Several LoRA adapters combined into one, as PEFT's `add_weighted_adapter` does.
//!
//! With weights `w`, scales `s` and factors `A`, `B` of each adapter that
//! adapts a module, the new factors are, and are multiplied with a scale of 1:
//!
//! | how | `A` | `B` |
//! | --- | --- | --- |
//! | `linear` | `Σ ±√\|w s\| A` | `Σ √\|w s\| B` |
//! | `ties`, `magnitude_prune`, `dare_linear`, `dare_ties` | the same of pruned factors | the same |
//! | `cat` | all `w s A`, one below the other | all `B`, side by side |
//! | `svd` | the `r` largest singular directions of `Σ w s B A` | |
//!
//! The sign of `w s` goes to `A`. `magnitude` pruning keeps the `⌊density · n⌋`
//! elements of a factor with the largest magnitudes; DARE keeps each with
//! probability `density` and divides it by that. The methods with `ties` then
//! elect a sign for each element, that of the sum over the adapters (`total`)
//! or of most of them (`frequency`), and take the mean of the weighted
//! elements that have it. Sources: Yadav et al. 2023 (TIES); Yu et al. 2024
//! (DARE); PEFT 0.21.2, `tuners/lora/model.py`, `utils/merge_utils.py`.
//!
//! All of it is computed in `f64` and rounded once, to `f32`. Which elements
//! DARE keeps is decided by a generator of Tenon's own from the seed and the
//! tensor's name: the same each time, not those that PyTorch would keep.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::lowrank_svd::truncate;
use crate::method::lora::{self, Pair};
use crate::{Adapter, Error};

/// How adapters are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Weighted sums of the factors.
    Linear,
    /// All factors beside each other: exactly the weighted sum of the updates, at the sum of the ranks.
    Cat,
    /// The weighted sum of the updates, cut to a rank.
    Svd,
    /// Pruned by magnitude, a sign elected.
    Ties,
    /// Pruned at random, rescaled.
    DareLinear,
    /// Pruned at random, rescaled, a sign elected.
    DareTies,
    /// Pruned by magnitude.
    MagnitudePrune,
}

impl FromStr for How {
    type Err = Error;

    /// By PEFT's names (`combination_type`).
    fn from_str(name: &str) -> Result<Self, Error> {
        Ok(match name {
            "linear" => How::Linear,
            "cat" => How::Cat,
            "svd" => How::Svd,
            "ties" => How::Ties,
            "dare_linear" => How::DareLinear,
            "dare_ties" => How::DareTies,
            "magnitude_prune" => How::MagnitudePrune,
            "ties_svd" | "dare_linear_svd" | "dare_ties_svd" | "magnitude_prune_svd" => {
                return Err(Error::Combination(format!(
                    "{name} prunes whole updates and takes the singular values of the whole matrix, which Tenon \
                     does not do; without _svd it prunes the factors"
                )));
            }
            _ => {
                return Err(Error::Combination(format!(
                    "{name} is none of linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune"
                )));
            }
        })
    }
}

/// How an element's sign is elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MajoritySign {
    /// That of the sum.
    #[default]
    Total,
    /// That of most adapters.
    Frequency,
}

/// What to do with the adapters.
#[derive(Debug, Clone)]
pub struct Combination {
    /// How they are combined.
    pub how: How,
    /// Share of elements that pruning keeps, above 0 and at most 1.
    pub density: f64,
    /// How signs are elected.
    pub majority_sign: MajoritySign,
    /// Rank of the result of [`How::Svd`]; the largest of the adapters' by default.
    pub rank: Option<u64>,
    /// What decides the elements that DARE keeps.
    pub seed: u64,
}

/// An adapter made of others: the contents of its two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Combined {
    /// `adapter_config.json`.
    pub config: String,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

/// A factor of one adapter, and what it is multiplied with.
struct Term {
    weight: f64,
    values: Vec<f64>,
}

/// Combines adapters, each with its weight.
pub fn combine(adapters: &[(Adapter, f64)], what: &Combination) -> Result<Combined, Error> {
    let wrong = |why: String| Error::Combination(why);
    let [(first, _), ..] = adapters else { return Err(wrong("no adapter was given".into())) };
    if !(what.density > 0.0 && what.density <= 1.0) {
        return Err(wrong(format!("density is {}; it must be above 0 and at most 1", what.density)));
    }
    if let Some((adapter, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
        return Err(wrong(format!("the weight of {} is {weight}", adapter.dir().display())));
    }
    let (mut by_adapter, mut largest) = (Vec::new(), 1);
    for (adapter, _) in adapters {
        let (pairs, rank) = lora::plain_pairs(adapter)?;
        by_adapter.push(pairs);
        largest = rank.max(largest);
    }
    // PEFT's own default, one for all modules.
    let what = &Combination { rank: Some(what.rank.unwrap_or(largest)), ..what.clone() };
    // PEFT can only copy one.
    let how = if adapters.len() == 1 && what.how != How::Svd { How::Linear } else { what.how };
    let modules: BTreeSet<&String> = by_adapter.iter().flat_map(|pairs| pairs.keys()).collect();
    let mut tensors = BTreeMap::new();
    let mut ranks = BTreeMap::new();
    for module in modules {
        let mut pairs: Vec<(&Adapter, f64, &Pair)> = Vec::new();
        for ((adapter, weight), by_module) in adapters.iter().zip(&by_adapter) {
            if let Some(pair) = by_module.get(module) {
                pairs.push((adapter, weight * pair.scale, pair));
            }
        }
        let factors = of_module(module, &pairs, how, what)?;
        ranks.insert(module.clone(), factors.rank);
        tensors.insert(factors.a.0, (factors.a.1, factors.a.2));
        tensors.insert(factors.b.0, (factors.b.1, factors.b.2));
    }
    Ok(Combined { config: config(first, adapters, &ranks)?, weights: safetensors(&tensors) })
}

/// Both factors of a module of the result: name, shape, values.
struct Factors {
    rank: u64,
    a: (String, Vec<u64>, Vec<f64>),
    b: (String, Vec<u64>, Vec<f64>),
}

fn of_module(
    module: &str,
    pairs: &[(&Adapter, f64, &Pair)],
    how: How,
    what: &Combination,
) -> Result<Factors, Error> {
    let (_, _, first) = pairs[0];
    for (adapter, _, pair) in pairs {
        let unlike = pair.a_shape[1..] != first.a_shape[1..]
            || pair.b_shape[0] != first.b_shape[0]
            || pair.b_shape[2..] != first.b_shape[2..]
            || pair.a_name != first.a_name;
        let ranks_differ = pair.rank != first.rank && !matches!(how, How::Cat | How::Svd);
        if unlike || ranks_differ {
            let why = if unlike { "other features" } else { "another rank" };
            return Err(Error::Combination(format!(
                "{module}: {} has {why} there than the first adapter; {}",
                adapter.dir().display(),
                if unlike { "they belong to different bases" } else { "cat and svd can combine them" }
            )));
        }
    }
    let read = |tensor_of: fn(&Pair) -> usize| -> Result<Vec<Vec<f64>>, Error> {
        pairs.iter().map(|(adapter, _, pair)| Ok(adapter.values(tensor_of(pair))?.to_vec())).collect()
    };
    let (a, b) = (read(|pair| pair.a)?, read(|pair| pair.b)?);
    let weights: Vec<f64> = pairs.iter().map(|(_, weight, _)| *weight).collect();
    let out = first.b_shape[0];
    let input: u64 = first.a_shape[1..].iter().product();
    let (rank, a, b) = match how {
        How::Cat | How::Svd => {
            let (rank, a, b) = concatenate(pairs, &weights, a, b, out as usize);
            let wanted = what.rank.unwrap_or(rank).max(1);
            if how == How::Svd && rank > wanted {
                let (a, b) = truncate(&a, &b, rank as usize, wanted as usize);
                (wanted, a, b)
            } else {
                (rank, a, b)
            }
        }
        _ => {
            let term = |sign: bool| {
                move |(values, weight): (Vec<f64>, &f64)| {
                    let root = weight.abs().sqrt();
                    Term { weight: if sign && *weight < 0.0 { -root } else { root }, values }
                }
            };
            let of_a = a.into_iter().zip(&weights).map(term(true)).collect();
            let of_b = b.into_iter().zip(&weights).map(term(false)).collect();
            let a = sum(of_a, how, what, &first.a_name);
            let b = sum(of_b, how, what, &first.b_name);
            (first.rank, a, b)
        }
    };
    debug_assert_eq!(a.len() as u64, rank * input);
    let mut a_shape = first.a_shape.clone();
    let mut b_shape = first.b_shape.clone();
    (a_shape[0], b_shape[1]) = (rank, rank);
    Ok(Factors { rank, a: (first.a_name.clone(), a_shape, a), b: (first.b_name.clone(), b_shape, b) })
}

/// All factors beside each other, the weights in `A`.
fn concatenate(
    pairs: &[(&Adapter, f64, &Pair)],
    weights: &[f64],
    a: Vec<Vec<f64>>,
    b: Vec<Vec<f64>>,
    out: usize,
) -> (u64, Vec<f64>, Vec<f64>) {
    let rank: u64 = pairs.iter().map(|(_, _, pair)| pair.rank).sum();
    let all_a = a.iter().zip(weights).flat_map(|(a, w)| a.iter().map(move |v| v * w)).collect();
    let mut all_b = Vec::with_capacity(out * rank as usize);
    for row in 0..out {
        for ((_, _, pair), b) in pairs.iter().zip(&b) {
            let rank = pair.rank as usize;
            all_b.extend_from_slice(&b[row * rank..][..rank]);
        }
    }
    (rank, all_a, all_b)
}

/// The combination of one factor of all adapters.
fn sum(mut terms: Vec<Term>, how: How, what: &Combination, name: &str) -> Vec<f64> {
    for (i, term) in terms.iter_mut().enumerate() {
        match how {
            How::Ties | How::MagnitudePrune => keep_largest(&mut term.values, what.density),
            How::DareLinear | How::DareTies => {
                keep_random(&mut term.values, what.density, &format!("{} {i} {name}", what.seed));
            }
            _ => {}
        }
    }
    let elect = matches!(how, How::Ties | How::DareTies);
    let element = |at: usize| {
        if !elect {
            return terms.iter().map(|term| term.values[at] * term.weight).sum();
        }
        let sign = |value: f64| {
            if value > 0.0 {
                1.0
            } else if value < 0.0 {
                -1.0
            } else {
                0.0
            }
        };
        let total: f64 = match what.majority_sign {
            MajoritySign::Total => terms.iter().map(|term| term.values[at]).sum(),
            MajoritySign::Frequency => terms.iter().map(|term| sign(term.values[at])).sum(),
        };
        let majority = if total >= 0.0 { 1.0 } else { -1.0 };
        let of_majority = terms.iter().filter(|term| sign(term.values[at]) == majority);
        let (mut sum, mut count) = (0.0, 0.0f64);
        for term in of_majority {
            sum += term.values[at] * term.weight;
            count += 1.0;
        }
        sum / count.max(1.0)
    };
    (0..terms[0].values.len()).map(element).collect()
}

/// Sets all but the largest magnitudes to 0. Of equal ones the first stay.
fn keep_largest(values: &mut [f64], density: f64) {
    if density >= 1.0 {
        return;
    }
    let kept = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
    order[kept..].iter().for_each(|at| values[*at] = 0.0);
}

/// Keeps each value with the probability `density`, divided by it; sets the others to 0.
fn keep_random(values: &mut [f64], density: f64, seed: &str) {
    if density >= 1.0 {
        return;
    }
    // SplitMix64 (Steele et al. 2014), started from an FNV hash of the text.
    let mut state = seed
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    for value in values {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let uniform = ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
        *value = if uniform < density { *value / density } else { 0.0 };
    }
}

/// The first adapter's configuration with the new ranks, a scale of 1, and the targets of all.
fn config(
    first: &Adapter,
    adapters: &[(Adapter, f64)],
    ranks: &BTreeMap<String, u64>,
) -> Result<String, Error> {
    let mut fields = first.config().fields().clone();
    let rank = ranks.values().copied().max().unwrap_or(1);
    // Modules that have less: some adapters do not adapt them.
    let escape = |name: &str| name.replace('.', "\\.");
    let fewer = ranks.iter().filter(|(_, r)| **r != rank);
    let pattern: Map<String, Value> = fewer.map(|(name, r)| (escape(name), json!(r))).collect();
    let targets: BTreeSet<&str> = ranks.keys().map(|name| name.rsplit('.').next().unwrap_or(name)).collect();
    fields.insert("r".into(), json!(rank));
    fields.insert("lora_alpha".into(), json!(rank));
    fields.insert("alpha_pattern".into(), json!(pattern));
    fields.insert("rank_pattern".into(), json!(pattern));
    fields.insert("use_rslora".into(), json!(false));
    fields.insert("init_lora_weights".into(), json!(true));
    fields.insert("target_modules".into(), json!(targets));
    for field in ["exclude_modules", "layers_to_transform", "layers_pattern", "auto_mapping"] {
        // What was left out before must stay so; the tensors tell what is adapted.
        let said: BTreeSet<String> = adapters
            .iter()
            .map(|(a, _)| a.config().value(field).map(Value::to_string).unwrap_or_default())
            .collect();
        if said.len() > 1 {
            fields.insert(field.into(), Value::Null);
        }
    }
    Ok(format!("{:#}\n", Value::from(fields)))
}

/// A safetensors file of `f32` tensors.
fn safetensors(tensors: &BTreeMap<String, (Vec<u64>, Vec<f64>)>) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for (name, (shape, values)) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| (*value as f32).to_le_bytes()));
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let mut header = Value::from(header).to_string();
    // Data begins at a multiple of 8.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    file
}
