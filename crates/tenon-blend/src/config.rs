//! mergekit's YAML, read from strangers.

use std::cell::RefCell;
use std::ops::Range;

use serde_json::Value;
use tenon_checkpoint::Dtype;

use crate::node::{self, Node};
use crate::setting::{Setting, Settings};
use crate::tokenizer::{self, TokenizerChoice};
use crate::{ConfigFault, Error, Method};

/// No configuration may be longer.
const MAX_BYTES: usize = 1 << 20;

/// A model as the configuration names it: a directory, and an adapter to be merged into it first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelReference {
    /// Directory of the model.
    pub model: String,
    /// Directory of the adapter (`model+adapter`).
    pub adapter: Option<String>,
}

impl std::fmt::Display for ModelReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.model)?;
        match &self.adapter {
            Some(adapter) => write!(f, "+{adapter}"),
            None => Ok(()),
        }
    }
}

/// A configuration that says one thing: which layers of which models become which layers, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct BlendConfig {
    pub(crate) method: Method,
    pub(crate) shape: Shape,
    pub(crate) base: Option<ModelReference>,
    pub(crate) dtype: Option<Dtype>,
    pub(crate) out_dtype: Option<Dtype>,
    pub(crate) parameters: Settings,
    /// Parameters of the only module, where the configuration speaks of modules.
    pub(crate) module_parameters: Settings,
    tokenizer: Option<TokenizerChoice>,
    chat_template: Option<ChatTemplate>,
    text: String,
    notes: Vec<String>,
}

/// Where the result's chat template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatTemplate {
    /// Most of the models have it.
    Auto,
    /// The configuration.
    Text(String),
}

/// What the output is made of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    /// All layers of all models.
    Models(Vec<Source>),
    /// Runs of layers, one after the other.
    Slices(Vec<Slice>),
}

/// A run of the output's layers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slice {
    pub(crate) sources: Vec<Source>,
    pub(crate) base: Option<ModelReference>,
    pub(crate) parameters: Settings,
}

/// A model, or layers of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    pub(crate) model: ModelReference,
    pub(crate) layers: Option<Range<u64>>,
    pub(crate) parameters: Settings,
}

impl BlendConfig {
    /// Reads a configuration. Of what mergekit ignores silently, [`notes`](Self::notes) tells.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let whole = |fault| Error::Config { place: "the configuration".into(), fault };
        if text.len() > MAX_BYTES {
            return Err(whole(ConfigFault::TooLarge { found: text.len(), limit: MAX_BYTES }));
        }
        let value: Value =
            serde_saphyr::from_str(text).map_err(|e| whole(ConfigFault::NotYaml(e.to_string())))?;
        let notes = RefCell::default();
        let top = Node { value: &value, place: String::new(), notes: &notes };
        top.fields(&node::TOP)?;
        let method = top.need("merge_method")?;
        let name = method.text("the name of a method")?;
        let method = Method::named(name).ok_or_else(|| {
            let known = Method::ALL.map(Method::name).join(", ");
            method.fault(ConfigFault::Method { found: name.chars().take(60).collect(), known })
        })?;
        let mut module_parameters = Settings::new();
        let given = ["models", "slices", "modules"].map(|key| top.get(key));
        let shape = match given {
            [Some(models), None, None] => Shape::Models(sources(&models, false)?),
            [None, Some(slices), None] => Shape::Slices(read_slices(&slices)?),
            [None, None, Some(modules)] => {
                let module = only_module(&modules)?;
                module_parameters = settings(&module)?;
                match (module.get("models"), module.get("slices")) {
                    (Some(models), None) => Shape::Models(sources(&models, false)?),
                    (None, Some(slices)) => Shape::Slices(read_slices(&slices)?),
                    _ => return Err(module.fault(ConfigFault::OneOf)),
                }
            }
            _ => return Err(whole(ConfigFault::OneOf)),
        };
        let mut config = Self {
            method,
            shape,
            base: top.get("base_model").map(|node| reference(&node)).transpose()?,
            dtype: top.get("dtype").map(|node| dtype(&node)).transpose()?,
            out_dtype: top.get("out_dtype").map(|node| dtype(&node)).transpose()?,
            parameters: settings(&top)?,
            module_parameters,
            tokenizer: tokenizer::read(&top)?,
            chat_template: chat_template(&top)?,
            text: text.to_string(),
            notes: notes.take(),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&mut self) -> Result<(), Error> {
        let slices: Vec<(String, &[Source], &Option<ModelReference>)> = match &self.shape {
            Shape::Models(models) => vec![("models".into(), models, &None)],
            Shape::Slices(slices) => slices
                .iter()
                .enumerate()
                .map(|(i, slice)| (format!("slices[{i}]"), slice.sources.as_slice(), &slice.base))
                .collect(),
        };
        let mut used = self.parameters.keys().chain(self.module_parameters.keys()).collect::<Vec<_>>();
        for (place, sources, base) in slices {
            let fault = |fault| Err(Error::Config { place: place.clone(), fault });
            for (i, source) in sources.iter().enumerate() {
                if sources[..i].iter().any(|other| other.model == source.model) {
                    return fault(ConfigFault::Duplicate { model: source.model.to_string() });
                }
                used.extend(source.parameters.keys());
            }
            let base = base.as_ref().or(self.base.as_ref());
            let mut count = sources.len();
            if let Some(base) = base
                && sources.iter().all(|source| source.model != *base)
            {
                match self.shape {
                    // The plan adds it.
                    Shape::Models(_) => count += 1,
                    Shape::Slices(_) if self.method.base() == crate::method::Base::Ignored => {}
                    Shape::Slices(_) => {
                        return fault(ConfigFault::BaseNotInSlice { model: base.to_string() });
                    }
                }
            }
            let method = self.method.name();
            if base.is_none() && self.method.base() == crate::method::Base::Needed {
                return fault(ConfigFault::NoBase { method });
            }
            let has_base = usize::from(base.is_some());
            let (fits, expected) = match self.method {
                Method::Slerp | Method::NearSwap => (count == 2, "the base model and one other"),
                Method::MultiSlerp => (count > has_base, "one model at least, and a base model if need be"),
                Method::NuSlerp => (count - has_base == 2, "two models, and a base model if need be"),
                Method::ModelStock => (count >= 3, "the base model and two others at least"),
                Method::Passthrough => (count == 1, "one model"),
                _ => (count >= 1, "one model at least"),
            };
            if !fits {
                return fault(ConfigFault::Inputs { method, expected, found: count });
            }
        }
        if let Shape::Slices(slices) = &self.shape {
            used.extend(slices.iter().flat_map(|slice| slice.parameters.keys()));
        }
        used.retain(|name| !self.method.parameters().contains(&name.as_str()));
        used.sort();
        used.dedup();
        let method = self.method.name();
        let note = |name| format!("parameter {name} means nothing to method {method}; it is ignored");
        self.notes.extend(used.into_iter().map(note));
        Ok(())
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The base model, where the configuration names one.
    pub fn base(&self) -> Option<&ModelReference> {
        self.base.as_ref()
    }

    /// All models that it names, each once, the base first, else in order.
    pub fn models(&self) -> Vec<&ModelReference> {
        let mut all: Vec<&ModelReference> = self.base.iter().collect();
        match &self.shape {
            Shape::Models(models) => all.extend(models.iter().map(|source| &source.model)),
            Shape::Slices(slices) => {
                for slice in slices {
                    all.extend(&slice.base);
                    all.extend(slice.sources.iter().map(|source| &source.model));
                }
            }
        }
        let mut seen = vec![];
        all.retain(|model| {
            let new = !seen.contains(model);
            seen.push(*model);
            new
        });
        all
    }

    /// The model whose configuration and tokenizer the result takes.
    pub fn donor(&self) -> &ModelReference {
        self.models()[0]
    }

    /// The tokenizer that the result gets, where the configuration names one.
    pub fn tokenizer(&self) -> Option<&TokenizerChoice> {
        self.tokenizer.as_ref()
    }

    /// The chat template that the result gets, where the configuration names one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Its text, as it was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What a person should know of it.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

fn settings(node: &Node<'_>) -> Result<Settings, Error> {
    let Some(parameters) = node.get("parameters") else { return Ok(Settings::new()) };
    let Value::Object(fields) = parameters.value else { return Err(parameters.unexpected("a mapping")) };
    fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| Ok((name.clone(), Setting::read(value, &parameters.at(name))?)))
        .collect()
}

fn sources(node: &Node<'_>, sliced: bool) -> Result<Vec<Source>, Error> {
    let source = |node: Node<'_>| {
        let known: &[&str] =
            if sliced { &["model", "layer_range", "parameters"] } else { &["model", "parameters"] };
        node.fields(known)?;
        let layers = if sliced { Some(layer_range(&node.need("layer_range")?)?) } else { None };
        Ok(Source { model: reference(&node.need("model")?)?, layers, parameters: settings(&node)? })
    };
    node.items()?.into_iter().map(source).collect()
}

fn read_slices(node: &Node<'_>) -> Result<Vec<Slice>, Error> {
    let slice = |node: Node<'_>| {
        node.fields(&["sources", "base_model", "parameters", "residual_weight"])?;
        if let Some(weight) = node.get("residual_weight") {
            node.notes
                .borrow_mut()
                .push(format!("{} means nothing to mergekit; it is ignored", weight.place));
        }
        let sources = sources(&node.need("sources")?, true)?;
        let counts: Vec<u64> = sources
            .iter()
            .flat_map(|source| &source.layers)
            .map(|layers| layers.end - layers.start)
            .collect();
        if counts.iter().any(|count| *count != counts[0]) {
            return Err(node.fault(ConfigFault::LayerCounts { counts }));
        }
        let base = node.get("base_model").map(|node| reference(&node)).transpose()?;
        Ok(Slice { sources, base, parameters: settings(&node)? })
    };
    node.items()?.into_iter().map(slice).collect()
}

/// The module of a configuration that names one. Text models have no more.
fn only_module<'a>(node: &Node<'a>) -> Result<Node<'a>, Error> {
    let Value::Object(modules) = node.value else { return Err(node.unexpected("a mapping")) };
    let mut names = modules.iter();
    match (names.next(), names.next()) {
        (Some((name, value)), None) => {
            let module = Node { value, place: node.at(name), notes: node.notes };
            module.fields(&["models", "slices", "parameters"])?;
            Ok(module)
        }
        _ => Err(node.fault(ConfigFault::Unsupported {
            what: format!("{} modules", modules.len()),
            remedy: "Tenon merges text models, which have one; write models or slices without modules",
        })),
    }
}

fn layer_range(node: &Node<'_>) -> Result<Range<u64>, Error> {
    let expected = "two layer numbers, the second larger";
    let items = node.value.as_array().ok_or_else(|| node.unexpected(expected))?;
    match items.iter().map(Value::as_u64).collect::<Option<Vec<_>>>().as_deref() {
        Some([from, to]) if from < to && *to <= 1_000_000 => Ok(*from..*to),
        _ => Err(node.unexpected(expected)),
    }
}

pub(crate) fn reference(node: &Node<'_>) -> Result<ModelReference, Error> {
    let path = |node: Node<'_>| match node.value {
        Value::Object(_) => {
            node.fields(&["path", "revision"])?;
            if let Some(revision) = node.get("revision") {
                let what = "a revision".to_string();
                let remedy = "name the directory that holds it; Tenon does not download";
                return Err(revision.fault(ConfigFault::Unsupported { what, remedy }));
            }
            Ok(node.need("path")?.text("a directory")?.to_string())
        }
        _ => Ok(node.text("a directory")?.to_string()),
    };
    if node.value.is_object() {
        node.fields(&["model", "lora", "override_architecture"])?;
        let adapter = node.get("lora").map(path).transpose()?;
        return Ok(ModelReference { model: path(node.need("model")?)?, adapter });
    }
    let text = node.text("the directory of a model")?;
    Ok(match text.split_once('+') {
        // A plus sign may be part of a path; then there is no adapter behind it.
        Some((model, adapter)) if !adapter.is_empty() && !model.is_empty() => {
            ModelReference { model: model.into(), adapter: Some(adapter.into()) }
        }
        _ => ModelReference { model: text.into(), adapter: None },
    })
}

fn dtype(node: &Node<'_>) -> Result<Dtype, Error> {
    match node.value.as_str().map(|name| name.strip_prefix("torch.").unwrap_or(name)) {
        Some("bfloat16" | "bf16") => Ok(Dtype::BF16),
        Some("float16" | "fp16" | "half" | "f16") => Ok(Dtype::F16),
        Some("float32" | "fp32" | "float" | "f32") => Ok(Dtype::F32),
        Some("float64" | "f64" | "double") => Ok(Dtype::F64),
        _ => Err(node.unexpected("float32, float16, bfloat16 or float64")),
    }
}

/// The templates that go by a name, as mergekit has them.
const NAMED_TEMPLATES: [(&str, &str); 5] = [
    ("alpaca", include_str!("../templates/alpaca.jinja")),
    ("chatml", include_str!("../templates/chatml.jinja")),
    ("exaone", include_str!("../templates/exaone.jinja")),
    ("llama3", include_str!("../templates/llama3.jinja")),
    ("mistral", include_str!("../templates/mistral.jinja")),
];

/// `auto`, a template's name, or its text.
fn chat_template(top: &Node<'_>) -> Result<Option<ChatTemplate>, Error> {
    let Some(node) = top.get("chat_template") else { return Ok(None) };
    let name = node.text("auto, the name of a template or its text")?;
    if let Some((_, text)) = NAMED_TEMPLATES.iter().find(|(known, _)| *known == name) {
        return Ok(Some(ChatTemplate::Text(text.trim_end().into())));
    }
    match name {
        "auto" => Ok(Some(ChatTemplate::Auto)),
        text if text.contains('{') => Ok(Some(ChatTemplate::Text(text.into()))),
        name => Err(node.fault(ConfigFault::Unsupported {
            what: format!("the template {:?}", name.chars().take(60).collect::<String>()),
            remedy: "give its text, auto for the one that most of the models have, or alpaca, chatml, exaone, llama3 or mistral",
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        BlendConfig::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn mergekits_own_examples_are_understood() {
        let config = BlendConfig::parse(
            "slices:\n  - sources:\n      - model: a\n        layer_range: [0, 32]\n      - model: b+lora\n        layer_range: [0, 32]\nmerge_method: slerp\nbase_model: a\nparameters:\n  t:\n    - filter: self_attn\n      value: [0, 0.5, 0.3, 0.7, 1]\n    - value: 0.5\ndtype: bfloat16\n",
        )
        .unwrap();
        assert_eq!((config.method(), config.dtype), (Method::Slerp, Some(Dtype::BF16)));
        let names: Vec<String> = config.models().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a", "b+lora"]);
        assert!(config.notes().is_empty());
        let config = BlendConfig::parse(
            "models:\n  - model: x\n    parameters: {weight: 1, t: 3}\nmerge_method: linear\n",
        )
        .unwrap();
        assert_eq!(config.notes(), ["parameter t means nothing to method linear; it is ignored"]);
        let config =
            BlendConfig::parse("models: [{model: x, comment: y}]\nmerge_method: linear\nrandom_seed: 5\n")
                .unwrap();
        assert_eq!(
            config.notes(),
            ["random_seed means nothing; it is ignored", "models[0].comment means nothing; it is ignored"]
        );
    }

    #[test]
    fn faults_say_where_they_are() {
        for (text, expected) in [
            ("merge_method: magic\nmodels: [{model: a}]", "merge_method: method \"magic\" is not known"),
            ("merge_method: linear", "exactly one of models, slices and modules"),
            ("merge_method: linear\nmodels: []", "models: found an empty list"),
            ("merge_method: slerp\nmodels: [{model: a}, {model: b}]", "method slerp needs base_model"),
            (
                "merge_method: slerp\nbase_model: c\nmodels: [{model: a}, {model: b}]",
                "takes the base model and one other, found 3",
            ),
            ("merge_method: linear\nmodels: [{model: a}, {model: a}]", "models: a is named twice"),
            (
                "merge_method: linear\nmodels: [{model: a, layer_range: [0, 1]}]",
                "models[0].layer_range: there is no such key",
            ),
            (
                "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [4, 2]}]}]",
                "slices[0].sources[0].layer_range",
            ),
            (
                "merge_method: linear\nmodels: [{model: a, parameters: {weight: heavy}}]",
                "models[0].parameters.weight: found \"heavy\"",
            ),
            ("merge_method: linear\nmodel: [{model: a}]", "did you mean models?"),
            (
                "merge_method: linear\nmodels: [{model: a, paramters: {weight: 1}}]",
                "did you mean parameters?",
            ),
            (
                "merge_method: linear\nmodels: [{model: a, weight: 1}]",
                "models[0].weight: there is no such key",
            ),
            (
                "merge_method: linear\nmodels: [{model: a}]\ndtype: int4",
                "dtype: found \"int4\", expected float32",
            ),
            ("models: [", "not YAML"),
        ] {
            let found = fault(text);
            assert!(found.contains(expected), "{text}: {found}");
        }
    }
}
