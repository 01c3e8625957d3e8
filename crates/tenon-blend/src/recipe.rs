//! What a tensor is made by: the method's formula with its parameters as they hold at that place.

use crate::method::Sparsity;
use crate::plan::{Chance, Differences, Part, Recipe, Reinforced, Sce};
use crate::planner::{Found, Place, Planner};
use crate::select::Choice;
use crate::span::{Rule, Scope as Over, Span};
use crate::{ConfigFault, Error, Method};

impl Planner<'_> {
    /// The recipe of a tensor of this shape.
    pub(crate) fn recipe(&self, place: &Place<'_>, found: &[Found], shape: &[u64]) -> Result<Recipe, Error> {
        let Place { name, inputs, scope, t } = place;
        let config = self.config;
        let method = config.method;
        let shared = || {
            let scopes = [scope.parameters, Some(&config.module_parameters), Some(&config.parameters)];
            scopes.into_iter().flatten()
        };
        let number =
            |parameter: &str| shared().find_map(|settings| settings.get(parameter)?.number(name, *t));
        let truth = |parameter: &str, default: bool| {
            shared().find_map(|settings| settings.get(parameter)?.bool(name, *t)).unwrap_or(default)
        };
        let of_input = |input: usize, parameter: &str| {
            let source = found[input].0;
            let own = std::iter::once(&scope.sources[source].1.parameters);
            own.chain(shared()).find_map(|settings| settings.get(parameter)?.number(&inputs[source], *t))
        };
        let missing = |parameter, model: String| Error::MissingParameter {
            parameter,
            tensor: name.to_string(),
            model,
            method: method.name(),
        };
        let weight = |input: usize| {
            let model = || self.reference(found[input].1);
            of_input(input, "weight").ok_or_else(|| missing("weight", model()))
        };
        let elements: u64 = shape.iter().product();
        let needed_t = || number("t").ok_or_else(|| missing("t", "the slice".into()));
        let unsupported = |parameter: &str, remedy| Error::Config {
            place: format!("parameters.{parameter}"),
            fault: ConfigFault::Unsupported { what: format!("{parameter} for {}", method.name()), remedy },
        };
        let base = scope.base.and_then(|base| found.iter().position(|(_, model, _)| *model == base));
        let others: Vec<usize> = (0..found.len()).filter(|input| Some(*input) != base).collect();
        let base_needed = || base.expect("the configuration's check found a base in every slice");
        Ok(match method {
            Method::Linear => {
                let weights = (0..found.len()).map(weight).collect::<Result<Vec<_>, _>>()?;
                let divisor = if truth("normalize", true) { weights.iter().sum() } else { 1.0 };
                if divisor == 0.0 {
                    return Err(Error::NoWeight { tensor: name.to_string() });
                }
                Recipe::Sum { weights, divisor }
            }
            Method::Passthrough => {
                Recipe::Sum { weights: vec![of_input(0, "scale").unwrap_or(1.0)], divisor: 1.0 }
            }
            Method::Slerp => Recipe::Span(Span {
                rule: Rule::Slerp { t: needed_t()? },
                vectors: vec![base_needed(), others[0]],
                origin: None,
                scope: Over::Whole,
            }),
            Method::NuSlerp => {
                let (a, b) = (weight(others[0])?, weight(others[1])?);
                let t = if (a + b).abs() < 1e-6 { 0.5 } else { b / (a + b) };
                let scope = match (truth("nuslerp_flatten", true), truth("nuslerp_row_wise", false)) {
                    _ if shape.len() < 2 => Over::Whole,
                    (true, _) => Over::Whole,
                    (false, false) => Over::Rows,
                    (false, true) if shape.len() == 2 => Over::Columns,
                    _ => return Err(unsupported("nuslerp_row_wise", "it is for matrices; leave it false")),
                };
                Recipe::Span(Span { rule: Rule::NuSlerp { t }, vectors: others, origin: base, scope })
            }
            Method::ModelStock => {
                let scope =
                    if truth("filter_wise", false) && shape.len() > 1 { Over::Rows } else { Over::Whole };
                Recipe::Span(Span { rule: Rule::Stock, vectors: others, origin: Some(base_needed()), scope })
            }
            Method::MultiSlerp => {
                let weights = others.iter().map(|input| weight(*input)).collect::<Result<Vec<_>, _>>()?;
                let normalize = truth("normalize_weights", true);
                if normalize && weights.iter().sum::<f64>() == 0.0 {
                    return Err(Error::NoWeight { tensor: name.to_string() });
                }
                let rule = Rule::MultiSlerp { weights, normalize, eps: number("eps").unwrap_or(1e-8) };
                Recipe::Span(Span { rule, vectors: others, origin: base, scope: Over::Whole })
            }
            Method::Karcher => {
                // More steps than that change nothing.
                let max_iter = number("max_iter").unwrap_or(10.0).clamp(0.0, 1e4) as u64;
                let rule = Rule::Karcher { max_iter, tol: number("tol").unwrap_or(1e-5) };
                Recipe::Span(Span {
                    rule,
                    vectors: (0..found.len()).collect(),
                    origin: None,
                    scope: Over::Whole,
                })
            }
            Method::Sce => {
                Recipe::Sce(Sce { base: base_needed(), share: number("select_topk").unwrap_or(1.0) })
            }
            Method::Ram | Method::RamPlusTl => {
                let more = (number("r").unwrap_or(0.1), number("alpha").unwrap_or(0.2));
                Recipe::Reinforced(Reinforced {
                    base: base_needed(),
                    epsilon: number("epsilon").unwrap_or(1e-5),
                    more: (method == Method::RamPlusTl).then_some(more),
                })
            }
            Method::NearSwap => Recipe::NearSwap { base: base_needed(), t: needed_t()? },
            _ => {
                let part = |&input: &usize| {
                    let density = of_input(input, "density").unwrap_or(1.0);
                    let gamma = of_input(input, "gamma").unwrap_or(0.01);
                    let mut choice = Choice::new(method.sparsity(), elements, density, gamma);
                    let mut chance = None;
                    if method.sparsity() == Sparsity::Random && density < 1.0 {
                        chance = Some(Chance::Even(density.max(0.0)));
                        if matches!(method, Method::Della | Method::DellaLinear) {
                            let epsilon = of_input(input, "epsilon").unwrap_or(0.15);
                            let (low, high) = (density - epsilon, density + epsilon);
                            if density <= 0.0 {
                                (choice, chance) = (Choice::Nothing, None);
                            } else if low <= 0.0 || high >= 1.0 {
                                let model = self.reference(found[input].1);
                                return Err(Error::Chances { tensor: name.to_string(), model, low, high });
                            } else {
                                chance = Some(Chance::ByRank { low, high });
                            }
                        }
                    }
                    Ok(Part { input, weight: weight(input)?, choice, chance })
                };
                differences(
                    Differences {
                        base: base_needed(),
                        parts: others.iter().map(part).collect::<Result<_, Error>>()?,
                        consensus: method.has_consensus(),
                        normalize: truth("normalize", method.normalizes()),
                        rescale: truth("rescale", method.rescales()),
                        lambda: number("lambda").unwrap_or(1.0),
                    },
                    found.len(),
                )
            }
        })
    }
}

/// The recipe for a sum of differences: where all of each is taken, a sum of the inputs.
fn differences(what: Differences, inputs: usize) -> Recipe {
    let whole = |part: &Part| part.choice == Choice::All && part.chance.is_none();
    if what.consensus || !what.parts.iter().all(whole) {
        return Recipe::Differences(what);
    }
    let total: f64 = what.parts.iter().map(|part| part.weight).sum();
    let divisor = if what.normalize && total.abs() >= 1e-8 { total } else { 1.0 };
    let mut weights = vec![0.0; inputs];
    for part in &what.parts {
        weights[part.input] = what.lambda * part.weight / divisor;
    }
    weights[what.base] = 1.0 - weights.iter().sum::<f64>();
    Recipe::Sum { weights, divisor: 1.0 }
}
