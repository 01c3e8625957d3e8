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
//! | `ties_svd`, `magnitude_prune_svd`, `dare_linear_svd`, `dare_ties_svd` | those of the whole pruned `s B A` | |
//!
//! The sign of `w s` goes to `A`. `magnitude` pruning keeps the `⌊density · n⌋`
//! elements of a factor with the largest magnitudes; DARE keeps each with
//! probability `density` and divides it by that. The methods with `ties` then
//! elect a sign for each element, that of the sum over the adapters (`total`)
//! or of most of them (`frequency`), and take the mean of the weighted
//! elements that have it. Sources: Yadav et al. 2023 (TIES); Yu et al. 2024
//! (DARE); PEFT 0.21.2, `tuners/lora/model.py`, `utils/merge_utils.py`.
//!
//! What prunes before `_svd` makes `s B A` in whole, one module after the other:
//! as many matrices in `f64` as adapters, and eight for the decomposition. PEFT's
//! `svd_clamp` is not offered: it cuts the new factors at a quantile of their
//! elements, whose signs are whatever the decomposition happens to pick.
//! `svd_full_matrices` and `svd_driver` change nothing in the result.
//!
//! All of it is computed in `f64` and rounded once, to `f32`. Which elements
//! DARE keeps is decided by a generator of Tenon's own from the seed and the
//! tensor's name: the same each time, not those that PyTorch would keep.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use tenon_checkpoint::{Dtype, Error as SourceError, Rows, TensorInfo, TensorSource};

use crate::kernel::{self, Level};
use crate::method::lora::{self, Pair};
use crate::svd::{Along, part, truncate};
use crate::{Adapter, Error};

/// How adapters are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// As [`Ties`](How::Ties), of the whole updates, cut to a rank.
    TiesSvd,
    /// As [`DareLinear`](How::DareLinear), of the whole updates, cut to a rank.
    DareLinearSvd,
    /// As [`DareTies`](How::DareTies), of the whole updates, cut to a rank.
    DareTiesSvd,
    /// As [`MagnitudePrune`](How::MagnitudePrune), of the whole updates, cut to a rank.
    MagnitudePruneSvd,
}

/// PEFT's names (`combination_type`).
const NAMES: [(&str, How); 11] = [
    ("linear", How::Linear),
    ("cat", How::Cat),
    ("svd", How::Svd),
    ("ties", How::Ties),
    ("ties_svd", How::TiesSvd),
    ("dare_linear", How::DareLinear),
    ("dare_linear_svd", How::DareLinearSvd),
    ("dare_ties", How::DareTies),
    ("dare_ties_svd", How::DareTiesSvd),
    ("magnitude_prune", How::MagnitudePrune),
    ("magnitude_prune_svd", How::MagnitudePruneSvd),
];

impl How {
    /// PEFT's name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, how)| *how == self).map_or("", |(name, _)| name)
    }

    /// Whether whole updates are pruned, not factors, and what comes out is cut to a rank.
    fn is_of_whole(self) -> bool {
        matches!(self, How::TiesSvd | How::DareLinearSvd | How::DareTiesSvd | How::MagnitudePruneSvd)
    }

    fn prunes_by_magnitude(self) -> bool {
        matches!(self, How::Ties | How::MagnitudePrune | How::TiesSvd | How::MagnitudePruneSvd)
    }

    fn prunes_at_random(self) -> bool {
        matches!(self, How::DareLinear | How::DareTies | How::DareLinearSvd | How::DareTiesSvd)
    }

    fn elects_signs(self) -> bool {
        matches!(self, How::Ties | How::DareTies | How::TiesSvd | How::DareTiesSvd)
    }

    /// Whether factors are added up, which must be of one rank for that.
    fn needs_one_rank(self) -> bool {
        !matches!(self, How::Cat | How::Svd) && !self.is_of_whole()
    }
}

impl MajoritySign {
    /// PEFT's name (`majority_sign_method`).
    pub fn name(self) -> &'static str {
        match self {
            MajoritySign::Total => "total",
            MajoritySign::Frequency => "frequency",
        }
    }
}

impl FromStr for How {
    type Err = Error;

    /// By PEFT's names (`combination_type`).
    fn from_str(name: &str) -> Result<Self, Error> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, how)| *how).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            Error::Combination(format!("{name} is none of {}", names.join(", ")))
        })
    }
}

/// How an element's sign is elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MajoritySign {
    /// That of the sum.
    #[default]
    Total,
    /// That of most adapters.
    Frequency,
}

/// What to do with the adapters.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Combination {
    /// How they are combined.
    pub how: How,
    /// Share of elements that pruning keeps, above 0 and at most 1.
    pub density: f64,
    /// How signs are elected.
    pub majority_sign: MajoritySign,
    /// Rank of the result of [`How::Svd`] and the others that are cut to a rank; the largest of the adapters' by default.
    pub rank: Option<u64>,
    /// What decides the elements that DARE keeps.
    pub seed: u64,
}

/// A factor of one adapter, and what it is multiplied with.
struct Term {
    weight: f64,
    values: Vec<f64>,
}

/// An adapter made of others. A [`TensorSource`]: the factors of a module are made when one of them is
/// read, and those of the last few modules are kept.
#[derive(Debug)]
pub struct Combined {
    adapters: Vec<(Arc<Adapter>, f64)>,
    what: Combination,
    modules: Vec<CombinedModule>,
    config: Map<String, Value>,
    infos: Vec<TensorInfo>,
    /// Of each tensor what it is.
    places: Vec<Place>,
    recent: Mutex<VecDeque<(usize, Arc<Factors>)>>,
}

/// A module that one adapter or more adapt.
#[derive(Debug)]
struct CombinedModule {
    name: String,
    /// Number of the adapter, its weight, and its factors.
    pairs: Vec<(usize, f64, Pair)>,
    rank: u64,
}

/// What a tensor of the result is.
#[derive(Debug, Clone)]
enum Place {
    /// A factor of a module: `B`, or `A`.
    Factor { module: usize, is_b: bool },
    /// What adapters hold whole, the same in all of them: their numbers, and that of the tensor in each.
    Whole(Vec<(usize, usize)>),
}

/// Modules whose factors are kept: the one being read, and those that other threads have begun with.
const RECENT_MODULES: usize = 3;

impl Combined {
    /// Plans the combination of adapters, each with its weight. Reads no tensor byte.
    pub fn new(adapters: Vec<(Arc<Adapter>, f64)>, what: &Combination) -> Result<Self, Error> {
        let wrong = |why: String| Error::Combination(why);
        if adapters.is_empty() {
            return Err(wrong("no adapter was given".into()));
        }
        if !(what.density > 0.0 && what.density <= 1.0) {
            return Err(wrong(format!("density is {}; it must be above 0 and at most 1", what.density)));
        }
        if let Some((adapter, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
            return Err(wrong(format!("the weight of {} is {weight}", adapter.dir().display())));
        }
        let mut by_module: BTreeMap<String, Vec<(usize, f64, Pair)>> = BTreeMap::new();
        let mut embeddings: BTreeMap<String, (TensorInfo, Vec<(usize, usize)>)> = BTreeMap::new();
        let mut largest = 1;
        for (number, (adapter, weight)) in adapters.iter().enumerate() {
            let plain = lora::plain(adapter)?;
            largest = plain.largest_rank.max(largest);
            for tensor in plain.embeddings {
                let info = &adapter.tensors()[tensor];
                let (first, holders) =
                    embeddings.entry(info.name.clone()).or_insert_with(|| (info.clone(), vec![]));
                if (first.dtype, &first.shape) != (info.dtype, &info.shape) {
                    return Err(wrong(differ(&info.name)));
                }
                holders.push((number, tensor));
            }
            for (module, pair) in plain.pairs {
                by_module.entry(module).or_default().push((number, *weight, pair));
            }
        }
        // PEFT can only copy one.
        let alone = adapters.len() == 1 && what.how != How::Svd;
        let what = Combination {
            how: if alone { How::Linear } else { what.how },
            // PEFT's own default, one for all modules.
            rank: Some(what.rank.unwrap_or(largest)),
            ..what.clone()
        };
        let mut modules = Vec::with_capacity(by_module.len());
        for (name, pairs) in by_module {
            check_alike(&name, &pairs, &adapters, what.how)?;
            let rank = what.rank_of(&pairs);
            modules.push(CombinedModule { name, pairs, rank });
        }
        let mut tensors = BTreeMap::new();
        for (number, module) in modules.iter().enumerate() {
            let first = &module.pairs[0].2;
            let (mut a_shape, mut b_shape) = (first.a_shape.clone(), first.b_shape.clone());
            (a_shape[0], b_shape[1]) = (module.rank, module.rank);
            for (name, shape, is_b) in [(&first.a_name, a_shape, false), (&first.b_name, b_shape, true)] {
                let info = TensorInfo::new(name, Dtype::F32, shape);
                tensors.insert(name.clone(), (info, Place::Factor { module: number, is_b }));
            }
        }
        tensors.extend(embeddings.into_iter().map(|(name, (info, of))| (name, (info, Place::Whole(of)))));
        let ranks = modules.iter().map(|module| (module.name.clone(), module.rank)).collect();
        let config = config(&adapters, &ranks);
        let (infos, places) = tensors.into_values().unzip();
        Ok(Self { adapters, what, modules, config, infos, places, recent: Mutex::default() })
    }

    /// Its `adapter_config.json`.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The adapters that it is made of, and their weights.
    pub fn adapters(&self) -> &[(Arc<Adapter>, f64)] {
        &self.adapters
    }

    fn factors(&self, number: usize) -> Result<Arc<Factors>, Error> {
        // Held while they are made: a second thread waits for the first one's instead of repeating it.
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, factors)) = recent.iter().find(|(known, _)| *known == number) {
            return Ok(factors.clone());
        }
        let factors = Arc::new(self.make_factors(&self.modules[number])?);
        if recent.len() == RECENT_MODULES {
            recent.pop_front();
        }
        recent.push_back((number, factors.clone()));
        Ok(factors)
    }

    /// Reads rows that all holders of a tensor have, and fails where they have others.
    fn read_alike(&self, holders: &[(usize, usize)], rows: Rows, out: &mut [u8]) -> Result<(), Error> {
        let mut others = vec![0; out.len()];
        for (i, (adapter, tensor)) in holders.iter().enumerate() {
            let source = self.adapters[*adapter].0.source();
            if i == 0 {
                source.read_rows(*tensor, rows.clone(), out)?;
                continue;
            }
            source.read_rows(*tensor, rows.clone(), &mut others)?;
            if others != out {
                return Err(Error::Combination(differ(&source.tensors()[*tensor].name)));
            }
        }
        Ok(())
    }

    fn make_factors(&self, module: &CombinedModule) -> Result<Factors, Error> {
        let read = |tensor_of: fn(&Pair) -> usize| -> Result<Vec<Vec<f64>>, Error> {
            let pairs = module.pairs.iter();
            pairs.map(|(number, _, pair)| self.adapters[*number].0.values_once(tensor_of(pair))).collect()
        };
        let (a, b) = (read(|pair| pair.a)?, read(|pair| pair.b)?);
        let (a, b) = combine_module(&module.pairs, a, b, module.rank, &self.what)?;
        let first = &module.pairs[0].2;
        debug_assert_eq!(a.len() as u64, module.rank * first.a_shape[1..].iter().product::<u64>());
        let rounded = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Ok(Factors { a: rounded(a), b: rounded(b) })
    }
}

impl TensorSource for Combined {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), SourceError> {
        let (module, is_b) = match &self.places[tensor] {
            Place::Factor { module, is_b } => (*module, *is_b),
            Place::Whole(holders) => return Ok(self.read_alike(holders, rows, out)?),
        };
        let factors = self.factors(module)?;
        let values = if is_b { &factors.b } else { &factors.a };
        let start = (rows.start * self.infos[tensor].row_len()) as usize;
        for (bytes, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(&values[start..]) {
            *bytes = value.to_le_bytes();
        }
        Ok(())
    }
}

/// Both factors of a module of the result.
#[derive(Debug)]
struct Factors {
    a: Vec<f32>,
    b: Vec<f32>,
}

fn differ(tensor: &str) -> String {
    format!(
        "the adapters hold {tensor:?} whole, and not the same: they are of different bases, or their embeddings were \
         trained, and only merging one after the other can take both"
    )
}

/// Fails unless the adapters' factors of a module can be combined.
fn check_alike(
    module: &str,
    pairs: &[(usize, f64, Pair)],
    adapters: &[(Arc<Adapter>, f64)],
    how: How,
) -> Result<(), Error> {
    let (_, _, first) = &pairs[0];
    for (adapter, _, pair) in pairs {
        let unlike = pair.a_shape[1..] != first.a_shape[1..]
            || pair.b_shape[0] != first.b_shape[0]
            || pair.b_shape[2..] != first.b_shape[2..]
            || pair.a_name != first.a_name;
        let ranks_differ = pair.rank != first.rank && how.needs_one_rank();
        if unlike || ranks_differ {
            let why = if unlike { "other features" } else { "another rank" };
            return Err(Error::Combination(format!(
                "{module}: {} has {why} there than the first adapter; {}",
                adapters[*adapter].0.dir().display(),
                if unlike {
                    "they belong to different bases"
                } else {
                    "cat, svd and those with _svd can combine them"
                }
            )));
        }
    }
    Ok(())
}

impl Combination {
    /// Rank of the result for a module.
    fn rank_of(&self, pairs: &[(usize, f64, Pair)]) -> u64 {
        let sum = pairs.iter().map(|(_, _, pair)| pair.rank).sum();
        match self.how {
            How::Cat => sum,
            How::Svd => self.rank.unwrap_or(sum).max(1).min(sum),
            how if how.is_of_whole() => {
                let first = &pairs[0].2;
                let smaller = first.b_shape[0].min(first.a_shape[1..].iter().product());
                self.rank.unwrap_or(first.rank).max(1).min(smaller)
            }
            _ => pairs[0].2.rank,
        }
    }
}

/// `A` and `B` of a module of the result, of this rank.
fn combine_module(
    pairs: &[(usize, f64, Pair)],
    a: Vec<Vec<f64>>,
    b: Vec<Vec<f64>>,
    rank: u64,
    what: &Combination,
) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let first = &pairs[0].2;
    let weights: Vec<f64> = pairs.iter().map(|(_, weight, pair)| weight * pair.scale).collect();
    match what.how {
        How::Cat | How::Svd => {
            let (whole, a, b) = concatenate(pairs, &weights, a, b, first.b_shape[0] as usize);
            Ok(if whole > rank { truncate(&a, &b, whole as usize, rank as usize) } else { (a, b) })
        }
        how if how.is_of_whole() => {
            let factors = pairs.iter().zip(a.into_iter().zip(b));
            let terms = factors.map(|((_, weight, pair), (a, b))| {
                let values = update(&a, &b, pair);
                Term { weight: *weight, values }
            });
            let name = format!("{}{}", first.b_name, first.a_name);
            let whole = sum(terms.collect(), how, what, &name);
            largest_directions(&whole, first.b_shape[0] as usize, rank as usize)
        }
        how => {
            let term = |sign: bool| {
                move |(values, weight): (Vec<f64>, &f64)| {
                    let root = weight.abs().sqrt();
                    Term { weight: if sign && *weight < 0.0 { -root } else { root }, values }
                }
            };
            let of_a = a.into_iter().zip(&weights).map(term(true)).collect();
            let of_b = b.into_iter().zip(&weights).map(term(false)).collect();
            Ok((sum(of_a, how, what, &first.a_name), sum(of_b, how, what, &first.b_name)))
        }
    }
}

/// All factors beside each other, the weights in `A`.
fn concatenate(
    pairs: &[(usize, f64, Pair)],
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

/// `s B A` in whole, `[out, in]`.
fn update(a: &[f64], b: &[f64], pair: &Pair) -> Vec<f64> {
    let (level, rank) = (Level::detect(), pair.rank as usize);
    let input = a.len() / rank;
    let mut whole = vec![0.0; b.len() / rank * input];
    for (row, factors) in whole.chunks_exact_mut(input).zip(b.chunks_exact(rank)) {
        for (direction, factor) in a.chunks_exact(input).zip(factors) {
            kernel::add_scaled(level, row, direction, factor * pair.scale);
        }
    }
    whole
}

/// Factors of the part of a matrix along its `rank` largest singular values.
fn largest_directions(whole: &[f64], out: usize, rank: usize) -> Result<(Vec<f64>, Vec<f64>), Error> {
    if !whole.iter().all(|value| value.is_finite()) {
        return Err(Error::Combination("an update has values that are not finite".into()));
    }
    Ok(part(whole, out, whole.len() / out, Along::Largest(rank)))
}

/// The combination of one factor of all adapters, or of the whole updates.
fn sum(mut terms: Vec<Term>, how: How, what: &Combination, name: &str) -> Vec<f64> {
    for (i, term) in terms.iter_mut().enumerate() {
        if how.prunes_by_magnitude() {
            keep_largest(&mut term.values, what.density);
        } else if how.prunes_at_random() {
            keep_random(&mut term.values, what.density, &format!("{} {i} {name}", what.seed));
        }
    }
    let element = |at: usize| {
        if !how.elects_signs() {
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
    if kept == 0 {
        return values.fill(0.0);
    }
    // The smallest magnitude that stays, and how many of just that size do.
    let mut sizes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
    let (larger, smallest, _) = sizes.select_nth_unstable_by(kept - 1, |a, b| b.total_cmp(a));
    let smallest = *smallest;
    let mut equal = 1 + larger.iter().filter(|size| **size == smallest).count();
    for value in values {
        let size = value.abs();
        let stays = size > smallest || size == smallest && equal > 0;
        if size == smallest {
            equal = equal.saturating_sub(1);
        }
        if !stays {
            *value = 0.0;
        }
    }
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
fn config(adapters: &[(Arc<Adapter>, f64)], ranks: &BTreeMap<String, u64>) -> Map<String, Value> {
    let mut fields = adapters[0].0.config().fields().clone();
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
    fields
}
