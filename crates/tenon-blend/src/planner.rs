//! How a plan is made: layers matched, tensors found.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde_json::{Value, json};
use tenon_checkpoint::{Dtype, TensorInfo};

use crate::alignment::{Alignment, Embeddings};
use crate::config::{Shape, Slice, Source};
use crate::error::ShapeMismatch;
use crate::layers::{EMBEDDINGS, comes_first, ends, is_by_token, is_head, layer_of, stacks};
use crate::method::Base;
use crate::plan::{Input, Model, Recipe, Tensor};
use crate::setting::Settings;
use crate::{BlendConfig, Error, ModelReference, TokenizerChoice, Vocabularies};

/// All tensors of the result and how each is made.
pub(crate) struct Planned {
    pub(crate) infos: Vec<TensorInfo>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignments: Vec<Alignment>,
    /// The result's `config.json`.
    pub(crate) config: Value,
}

pub(crate) fn plan(
    config: &BlendConfig,
    models: &[Model],
    vocabularies: Option<&Vocabularies>,
) -> Result<Planned, Error> {
    let names = models.iter().map(|model| {
        model.source.tensors().iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect()
    });
    let mut planner = Planner {
        config,
        models,
        vocabularies: config.tokenizer().zip(vocabularies),
        names: names.collect(),
        infos: vec![],
        tensors: vec![],
        alignments: vec![],
        unties: false,
    };
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
    if let Some(rows) = planner.alignments.first().map(Alignment::len) {
        set_vocabulary(&mut output, rows);
    }
    Ok(Planned {
        infos: planner.infos,
        tensors: planner.tensors,
        alignments: planner.alignments,
        config: output,
    })
}

/// What holds for a run of layers.
pub(crate) struct Scope<'a> {
    /// The models, by number, and what the configuration says of each.
    pub(crate) sources: Vec<(usize, &'a Source)>,
    pub(crate) base: Option<usize>,
    /// The model whose rows stand for tokens that others lack, also where the method has no base.
    token_base: Option<usize>,
    pub(crate) parameters: Option<&'a Settings>,
}

/// A tensor of the result: its name, its inputs' names (one a source), how far along the slice it is.
pub(crate) struct Place<'a> {
    pub(crate) name: String,
    pub(crate) inputs: Vec<String>,
    pub(crate) scope: &'a Scope<'a>,
    pub(crate) t: f64,
}

/// An input that was found: number of the source, number of the model, number of the tensor.
pub(crate) type Found = (usize, usize, usize);

pub(crate) struct Planner<'a> {
    pub(crate) config: &'a BlendConfig,
    models: &'a [Model],
    vocabularies: Option<(&'a TokenizerChoice, &'a Vocabularies)>,
    names: Vec<HashMap<&'a str, usize>>,
    infos: Vec<TensorInfo>,
    tensors: Vec<Tensor>,
    alignments: Vec<Alignment>,
    /// An input embedding stood in for an output embedding that others have.
    unties: bool,
}

impl<'a> Planner<'a> {
    fn number_of(&self, model: &ModelReference) -> usize {
        let found = self.models.iter().position(|known| known.reference == *model);
        found.expect("all models of the configuration were given")
    }

    pub(crate) fn reference(&self, model: usize) -> String {
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
        let base = base.or(self.config.base.as_ref()).map(|base| self.number_of(base));
        Scope {
            sources: sources.iter().map(|source| (self.number_of(&source.model), source)).collect(),
            base: base.filter(|_| self.config.method.base() != Base::Ignored),
            token_base: base,
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
        let mut inputs: Vec<Input> = found
            .iter()
            .map(|&(_, model, tensor)| {
                let stored = self.tensors_of(model)[tensor].dtype;
                Input { model, tensor, stored, aligned: None }
            })
            .collect();
        let first = &self.tensors_of(found[0].1)[found[0].2];
        let (stored, mut shape) = (first.dtype, first.shape.clone());
        let is_aligned = self.vocabularies.is_some() && is_by_token(&place.name);
        self.check_shapes(&place.name, &found, is_aligned)?;
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
        if is_aligned && let Some(rows) = self.align(&place, &found, &mut inputs, work)? {
            shape[0] = rows;
        }
        // What one model alone has, and a base without others, stays as it is.
        let is_alone = found.len() < place.scope.sources.len()
            || found.len() == 1 && place.scope.base == Some(found[0].1);
        let recipe = if is_alone {
            Recipe::Sum { weights: vec![1.0], divisor: 1.0 }
        } else {
            self.recipe(&place, &found, &shape)?
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
        self.tensors_of(model).iter().position(|tensor| ends(&tensor.name, &EMBEDDINGS))
    }

    /// Has inputs read with their rows in the order of the result's tokens; gives the number of rows where
    /// that is not how they lie.
    fn align(
        &mut self,
        place: &Place<'_>,
        found: &[Found],
        inputs: &mut [Input],
        work: Dtype,
    ) -> Result<Option<u64>, Error> {
        let Some((choice, vocabularies)) = self.vocabularies else { return Ok(None) };
        let infos = found.iter().map(|&(_, model, tensor)| &self.tensors_of(model)[tensor]);
        let embeddings = Embeddings {
            name: &place.name,
            inputs: inputs.iter().copied().zip(infos).collect(),
            base: place.scope.token_base,
            work,
            models: self.models,
        };
        let Some(alignments) = embeddings.align(vocabularies, choice)? else { return Ok(None) };
        let rows = alignments.first().map(Alignment::len);
        for (input, alignment) in inputs.iter_mut().zip(alignments) {
            (input.stored, input.aligned) = (work, Some(self.alignments.len()));
            self.alignments.push(alignment);
        }
        Ok(rows)
    }

    /// All inputs must have one shape, but for the number of tokens where that is made alike.
    fn check_shapes(&self, name: &str, found: &[Found], is_aligned: bool) -> Result<(), Error> {
        let shape = |found: &Found| &self.tensors_of(found.1)[found.2].shape;
        let fits = |other: &Found| {
            let (expected, found) = (shape(&found[0]), shape(other));
            expected == found
                || is_aligned && expected.len() == found.len() && expected.get(1..) == found.get(1..)
        };
        let Some(other) = found.iter().find(|other| !fits(other)) else { return Ok(()) };
        let (expected, different) = (shape(&found[0]).clone(), shape(other).clone());
        let is_vocabulary = is_by_token(name) && expected.get(1..) == different.get(1..);
        let hint = if is_vocabulary {
            "; their vocabularies differ: say with tokenizer_source (base, union or a model) whose the result has"
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
}

/// Says in a `config.json` how many tokens there are.
fn set_vocabulary(config: &mut Value, rows: u64) {
    let nested = config.get("text_config").is_some_and(|text| text.get("vocab_size").is_some());
    let target = if nested { &mut config["text_config"] } else { config };
    target["vocab_size"] = json!(rows);
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
