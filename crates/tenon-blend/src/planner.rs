//! How a plan is made: layers matched, tensors found, parameters resolved.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde_json::{Value, json};
use tenon_checkpoint::{Dtype, TensorInfo};

use crate::config::{Shape, Slice, Source};
use crate::error::ShapeMismatch;
use crate::layers::{comes_first, layer_of, stacks};
use crate::method::{Base, Sparsity};
use crate::plan::{Chance, Differences, Input, Model, Part, Recipe, Reinforced, Sce, Tensor};
use crate::select::Choice;
use crate::setting::Settings;
use crate::span::{Rule, Scope as Over, Span};
use crate::{BlendConfig, ConfigFault, Error, Method, ModelReference};

/// All tensors of the result, how each is made, and the result's `config.json`.
pub(crate) fn plan(
    config: &BlendConfig,
    models: &[Model],
) -> Result<(Vec<TensorInfo>, Vec<Tensor>, Value), Error> {
    let names = models.iter().map(|model| {
        model.source.tensors().iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect()
    });
    let mut planner =
        Planner { config, models, names: names.collect(), infos: vec![], tensors: vec![], unties: false };
    let mut output = models[0].config.clone();
    match &config.shape {
        Shape::Models(sources) => planner.whole_models(sources)?,
        Shape::Slices(slices) => planner.slices(slices, &mut output)?,
    }
    if planner.unties {
        output["tie_word_embeddings"] = json!(false);
    }
    if let Some(name) = config.out_dtype.or(config.dtype).and_then(Dtype::torch_name) {
        let key = if output.get("torch_dtype").is_some() { "torch_dtype" } else { "dtype" };
        output[key] = json!(name);
    }
    Ok((planner.infos, planner.tensors, output))
}

/// What holds for a run of layers.
struct Scope<'a> {
    /// The models, by number, and what the configuration says of each.
    sources: Vec<(usize, &'a Source)>,
    base: Option<usize>,
    parameters: Option<&'a Settings>,
}

/// A tensor of the result: its name, its inputs' names (one a source), how far along the slice it is.
struct Place<'a> {
    name: String,
    inputs: Vec<String>,
    scope: &'a Scope<'a>,
    t: f64,
}

/// An input that was found: number of the source, number of the model, number of the tensor.
type Found = (usize, usize, usize);

struct Planner<'a> {
    config: &'a BlendConfig,
    models: &'a [Model],
    names: Vec<HashMap<&'a str, usize>>,
    infos: Vec<TensorInfo>,
    tensors: Vec<Tensor>,
    /// An input embedding stood in for an output embedding that others have.
    unties: bool,
}

impl<'a> Planner<'a> {
    fn number_of(&self, model: &ModelReference) -> usize {
        let found = self.models.iter().position(|known| known.reference == *model);
        found.expect("all models of the configuration were given")
    }

    fn reference(&self, model: usize) -> String {
        self.models[model].reference.to_string()
    }

    fn tensors_of(&self, model: usize) -> &'a [TensorInfo] {
        self.models[model].source.tensors()
    }

    fn scope<'s>(
        &self,
        sources: &'s [Source],
        base: Option<&ModelReference>,
        parameters: Option<&'s Settings>,
    ) -> Scope<'s> {
        let base = base.or(self.config.base.as_ref()).filter(|_| self.config.method.base() != Base::Ignored);
        Scope {
            sources: sources.iter().map(|source| (self.number_of(&source.model), source)).collect(),
            base: base.map(|base| self.number_of(base)),
            parameters,
        }
    }

    /// All tensors of models that have the same.
    fn whole_models(&mut self, sources: &[Source]) -> Result<(), Error> {
        let mut sources = sources.to_vec();
        if let Some(base) = &self.config.base
            && sources.iter().all(|source| source.model != *base)
        {
            sources.push(Source { model: base.clone(), layers: None, parameters: Settings::new() });
        }
        let scope = self.scope(&sources, None, None);
        let first = scope.sources[0].0;
        let layers = stacks(self.tensors_of(first));
        for &(model, _) in &scope.sources[1..] {
            let others = stacks(self.tensors_of(model));
            for (stack, &expected) in &layers {
                let found = others.get(stack).copied().unwrap_or(0);
                if found != expected {
                    let (first, second) = (self.reference(first), self.reference(model));
                    return Err(Error::LayerCount { first, expected, second, found });
                }
            }
        }
        for name in self.names_of_all(&scope) {
            let t = layer_of(name).map_or(0.0, |layer| {
                part_of_way(layer.layer, layers.get(layer.before).copied().unwrap_or(1))
            });
            let inputs = vec![name.to_string(); scope.sources.len()];
            self.tensor(Place { name: name.to_string(), inputs, scope: &scope, t })?;
        }
        Ok(())
    }

    /// Names of all models of a scope, in the order of the first model that has them.
    fn names_of_all(&self, scope: &Scope<'_>) -> Vec<&'a str> {
        let mut seen = HashSet::new();
        let tensors = scope.sources.iter().flat_map(|(model, _)| self.tensors_of(*model));
        tensors.map(|tensor| tensor.name.as_str()).filter(|name| seen.insert(*name)).collect()
    }

    /// Runs of layers one after the other; what comes before them from the first, what comes after
    /// from the last.
    fn slices(&mut self, slices: &[Slice], output: &mut Value) -> Result<(), Error> {
        let scopes: Vec<Scope<'_>> = slices
            .iter()
            .map(|slice| self.scope(&slice.sources, slice.base.as_ref(), Some(&slice.parameters)))
            .collect();
        let stacks: Vec<&str> =
            (0..self.models.len()).map(|model| self.main_stack(model)).collect::<Result<_, _>>()?;
        self.outside_layers(&scopes[0], &stacks, true)?;
        let mut taken: Vec<(usize, u64)> = vec![];
        for scope in &scopes {
            let mut starts = vec![];
            let mut count = 0;
            for (model, source) in &scope.sources {
                let layers = source.layers.clone().expect("sources of slices have ranges");
                self.check_range(*model, stacks[*model], &layers)?;
                starts.push(layers.start);
                count = layers.end - layers.start;
            }
            for offset in 0..count {
                let layers: Vec<u64> = starts.iter().map(|start| start + offset).collect();
                let next = taken.len();
                taken.push((scope.sources[0].0, layers[0]));
                for after in self.names_in_layer(scope, &stacks, &layers) {
                    let inputs = scope.sources.iter().zip(&layers);
                    let inputs = inputs
                        .map(|((model, _), layer)| format!("{}{layer}{after}", stacks[*model]))
                        .collect();
                    let name = format!("{}{next}{after}", stacks[scope.sources[0].0]);
                    self.tensor(Place { name, inputs, scope, t: part_of_way(offset, count) })?;
                }
            }
        }
        self.outside_layers(&scopes[scopes.len() - 1], &stacks, false)?;
        self.set_layers(output, &taken);
        Ok(())
    }

    /// Plans the tensors before the layers (`first`) or after them.
    fn outside_layers(&mut self, scope: &Scope<'_>, stacks: &[&str], first: bool) -> Result<(), Error> {
        for name in self.names_of_all(scope) {
            let in_layers = |(model, _): &(usize, &Source)| {
                layer_of(name).is_some_and(|layer| layer.before == stacks[*model])
            };
            if comes_first(name) == first && !scope.sources.iter().any(in_layers) {
                let inputs = vec![name.to_string(); scope.sources.len()];
                self.tensor(Place { name: name.to_string(), inputs, scope, t: 0.0 })?;
            }
        }
        Ok(())
    }

    /// What stands before the layer numbers of a model that has one stack of layers.
    fn main_stack(&self, model: usize) -> Result<&'a str, Error> {
        let stacks = stacks(self.tensors_of(model));
        let count = layer_count(&self.models[model].config).filter(|_| stacks.len() > 1);
        let fits = |layers: u64| count.is_none_or(|count| count == layers);
        let fitting: Vec<&str> = stacks.iter().filter(|(_, n)| fits(**n)).map(|(stack, _)| *stack).collect();
        match fitting[..] {
            [stack] => Ok(stack),
            [] if stacks.is_empty() => Err(Error::NoLayers { model: self.reference(model) }),
            _ => Err(Error::Stacks {
                model: self.reference(model),
                count: stacks.len(),
                stacks: stacks.keys().copied().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    fn check_range(&self, model: usize, stack: &str, layers: &Range<u64>) -> Result<(), Error> {
        let found = stacks(self.tensors_of(model)).get(stack).copied().unwrap_or(0);
        if layers.end <= found {
            return Ok(());
        }
        Err(Error::LayerRange { model: self.reference(model), found, from: layers.start, to: layers.end })
    }

    /// What stands after the layer number in the names of one layer.
    fn names_in_layer(&self, scope: &Scope<'_>, stacks: &[&str], layers: &[u64]) -> Vec<&'a str> {
        let mut seen = HashSet::new();
        let mut names = vec![];
        for ((model, _), wanted) in scope.sources.iter().zip(layers) {
            let names_of_model = self.tensors_of(*model).iter().filter_map(|tensor| layer_of(&tensor.name));
            let here = names_of_model.filter(|name| (name.before, name.layer) == (stacks[*model], *wanted));
            names.extend(here.map(|name| name.after).filter(|after| seen.insert(*after)));
        }
        names
    }

    /// Lets the number of layers, and lists with a value for each layer, follow.
    fn set_layers(&self, output: &mut Value, taken: &[(usize, u64)]) {
        let nested = output.get("text_config").is_some_and(|text| layer_count(text).is_some());
        let target = if nested { &mut output["text_config"] } else { output };
        let Some(count) = layer_count(target) else { return };
        let config_of = |model: usize| {
            let config = &self.models[model].config;
            if nested { config.get("text_config") } else { Some(config) }
        };
        let Value::Object(fields) = target else { return };
        for (key, value) in fields {
            if LAYER_COUNTS.contains(&key.as_str()) {
                *value = json!(taken.len());
            } else if value.as_array().is_some_and(|list| list.len() as u64 == count) {
                let of_layer = |(model, layer): &(usize, u64)| {
                    let list = config_of(*model)?.get(key)?.as_array()?;
                    list.get(usize::try_from(*layer).ok()?).cloned()
                };
                if let Some(list) = taken.iter().map(of_layer).collect() {
                    *value = Value::Array(list);
                }
            }
        }
    }

    /// Plans one tensor of the result.
    fn tensor(&mut self, place: Place<'_>) -> Result<(), Error> {
        let found = self.find_inputs(&place)?;
        self.check_shapes(&place.name, &found)?;
        let inputs: Vec<Input> = found
            .iter()
            .map(|&(_, model, tensor)| Input { model, tensor, stored: self.tensors_of(model)[tensor].dtype })
            .collect();
        let first = &self.tensors_of(found[0].1)[found[0].2];
        let (stored, shape) = (first.dtype, first.shape.clone());
        if let Some(odd) = inputs.iter().find(|input| !input.stored.is_editable()) {
            if inputs.iter().any(|input| input.stored != stored) {
                let (model, dtype) = (self.reference(odd.model), odd.stored.name());
                return Err(Error::Dtype { tensor: place.name, model, dtype });
            }
            self.infos.push(TensorInfo::new(place.name, stored, shape));
            self.tensors.push(Tensor { inputs, work: stored, recipe: Recipe::Same });
            return Ok(());
        }
        let promoted = inputs.iter().map(|input| input.stored).fold(stored, promote);
        let work = self.config.dtype.unwrap_or(promoted);
        // What one model alone has, and a base without others, stays as it is.
        let is_alone = found.len() < place.scope.sources.len()
            || found.len() == 1 && place.scope.base == Some(found[0].1);
        let recipe = if is_alone {
            Recipe::Sum { weights: vec![1.0], divisor: 1.0 }
        } else {
            self.recipe(&place, &found, first)?
        };
        // What a model was dequantized to is computed with; it is stored as the model's own type.
        let own = found.iter().map(|&(_, model, tensor)| {
            let info = &self.tensors_of(model)[tensor];
            info.narrow.unwrap_or(info.dtype)
        });
        let natural = own.reduce(promote).expect("every tensor has an input");
        let output = self.config.out_dtype.or(self.config.dtype).unwrap_or(natural);
        let mut info = TensorInfo::new(place.name, output, shape);
        let tensor = Tensor { inputs, work, recipe };
        if tensor.counts_ties() {
            // So that a tile begins where the ties before it were counted.
            info.row_block = Tensor::piece_rows(&info);
        } else if tensor.by_rows() && info.shape.len() < 2 {
            // A vector is one row.
            info.row_block = info.elements().max(1);
        }
        self.infos.push(info);
        self.tensors.push(tensor);
        Ok(())
    }

    /// The inputs of a tensor: of every source, or of one alone where the method passes that on.
    fn find_inputs(&mut self, place: &Place<'_>) -> Result<Vec<Found>, Error> {
        let (mut found, mut missing) = (vec![], None);
        let mut borrowed = false;
        for (source, ((model, _), input)) in place.scope.sources.iter().zip(&place.inputs).enumerate() {
            let own = self.names[*model].get(input.as_str()).copied();
            let tied = if own.is_none() { self.tied_embedding(*model, input) } else { None };
            borrowed |= tied.is_some();
            match own.or(tied) {
                Some(tensor) => found.push((source, *model, tensor)),
                None => missing = missing.or(Some(*model)),
            }
        }
        match missing {
            Some(model) if !(found.len() == 1 && self.config.method.passes_singletons()) => {
                Err(Error::MissingTensor {
                    tensor: place.name.clone(),
                    present: found.first().map(|(_, model, _)| self.reference(*model)).unwrap_or_default(),
                    missing: self.reference(model),
                })
            }
            _ => {
                self.unties |= borrowed;
                Ok(found)
            }
        }
    }

    /// The input embedding, where a model has no tensor of its own for the output's.
    fn tied_embedding(&self, model: usize, name: &str) -> Option<usize> {
        let is_tied = self.models[model].config.get("tie_word_embeddings") != Some(&json!(false));
        if !is_tied || !is_head(name) {
            return None;
        }
        let is_embedding = |name: &str| {
            ["embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight"]
                .iter()
                .any(|end| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
        };
        self.tensors_of(model).iter().position(|tensor| is_embedding(&tensor.name))
    }

    fn check_shapes(&self, name: &str, found: &[Found]) -> Result<(), Error> {
        let shape = |found: &Found| &self.tensors_of(found.1)[found.2].shape;
        let Some(other) = found.iter().find(|other| shape(other) != shape(&found[0])) else { return Ok(()) };
        let (expected, different) = (shape(&found[0]).clone(), shape(other).clone());
        let is_vocabulary = (comes_first(name) || is_head(name)) && expected.get(1..) == different.get(1..);
        let hint = if is_vocabulary {
            "; their vocabularies differ, and Tenon does not join tokenizers: give them one of a size first"
        } else {
            ""
        };
        Err(Error::Shape(Box::new(ShapeMismatch {
            tensor: name.to_string(),
            first: self.reference(found[0].1),
            expected,
            second: self.reference(other.1),
            found: different,
            hint,
        })))
    }

    fn recipe(&self, place: &Place<'_>, found: &[Found], first: &TensorInfo) -> Result<Recipe, Error> {
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
        let elements = first.elements();
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
                    _ if first.shape.len() < 2 => Over::Whole,
                    (true, _) => Over::Whole,
                    (false, false) => Over::Rows,
                    (false, true) if first.shape.len() == 2 => Over::Columns,
                    _ => return Err(unsupported("nuslerp_row_wise", "it is for matrices; leave it false")),
                };
                Recipe::Span(Span { rule: Rule::NuSlerp { t }, vectors: others, origin: base, scope })
            }
            Method::ModelStock => {
                let scope = if truth("filter_wise", false) && first.shape.len() > 1 {
                    Over::Rows
                } else {
                    Over::Whole
                };
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

fn is_head(name: &str) -> bool {
    ["lm_head.weight", "embed_out.weight"].iter().any(|end| name.ends_with(end))
}

/// How far a layer of a slice is from the first (0) to the last (1).
fn part_of_way(layer: u64, layers: u64) -> f64 {
    if layers <= 1 { 1.0 } else { layer as f64 / (layers - 1) as f64 }
}

/// The names under which configurations have their number of layers.
const LAYER_COUNTS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];

fn layer_count(config: &Value) -> Option<u64> {
    let of = |config: &Value| LAYER_COUNTS.iter().find_map(|key| config.get(key).and_then(Value::as_u64));
    of(config).or_else(|| of(config.get("text_config")?))
}

/// The type that holds both, as PyTorch promotes.
fn promote(a: Dtype, b: Dtype) -> Dtype {
    match (a, b) {
        (a, b) if a == b => a,
        (Dtype::F64, _) | (_, Dtype::F64) => Dtype::F64,
        _ => Dtype::F32,
    }
}
