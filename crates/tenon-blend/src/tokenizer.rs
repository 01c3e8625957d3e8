//! What a configuration says of the result's tokenizer: whose it is, and where rows of tokens come from.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::reference;
use crate::node::Node;
use crate::{ConfigFault, Error, ModelReference};

/// Tokens and their numbers.
pub type Vocabulary = BTreeMap<String, u64>;

/// The result's tokens and those of each model, in the order of
/// [`BlendConfig::models`](crate::BlendConfig::models).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocabularies {
    /// Of the result.
    pub result: Vocabulary,
    /// Of each model.
    pub models: Vec<Vocabulary>,
}

/// The tokenizer that a configuration asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerChoice {
    /// Whose it is.
    pub source: TokenizerSource,
    /// Tokens that the result has in any case, and where their rows come from.
    pub(crate) tokens: Vec<(String, TokenRule)>,
    /// The number of rows is made a multiple of this.
    pub(crate) pad_to_multiple_of: Option<u64>,
}

impl TokenizerChoice {
    /// The tokens that the result has in any case.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(|(token, _)| token.as_str())
    }
}

/// Whose tokens the result has.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// The base model's, or the first model's.
    Base,
    /// All models'.
    Union,
    /// One model's.
    Model(ModelReference),
}

/// Where the row of a token comes from in models that do not have it, or, by force, in all.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenRule {
    pub(crate) source: Option<RowSource>,
    pub(crate) force: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RowSource {
    Zero,
    /// The same token of a model.
    Model(ModelReference),
    /// Another token of a model.
    Token(ModelReference, String),
    /// A row of a model.
    Row(ModelReference, u64),
}

/// `tokenizer` or, as older configurations have it, `tokenizer_source`.
pub(crate) fn read(top: &Node<'_>) -> Result<Option<TokenizerChoice>, Error> {
    let Some(node) = top.get("tokenizer") else {
        let Some(node) = top.get("tokenizer_source") else { return Ok(None) };
        let source = source(&node)?;
        return Ok(Some(TokenizerChoice { source, tokens: vec![], pad_to_multiple_of: None }));
    };
    if let Some(other) = top.get("tokenizer_source") {
        return Err(other.unexpected("nothing beside tokenizer: one of both"));
    }
    node.fields(&["source", "tokens", "pad_to_multiple_of"])?;
    let pad = node.get("pad_to_multiple_of").map(|pad| {
        let number = pad.value.as_u64().filter(|n| (1..=1 << 20).contains(n));
        number.ok_or_else(|| pad.unexpected("a number from 1 on"))
    });
    Ok(Some(TokenizerChoice {
        source: node.get("source").map_or(Ok(TokenizerSource::Union), |node| source(&node))?,
        tokens: node.get("tokens").map_or(Ok(vec![]), |tokens| rules(&tokens))?,
        pad_to_multiple_of: pad.transpose()?,
    }))
}

fn source(node: &Node<'_>) -> Result<TokenizerSource, Error> {
    Ok(match node.value.as_str() {
        Some("base") => TokenizerSource::Base,
        Some("union") => TokenizerSource::Union,
        _ => TokenizerSource::Model(reference(node)?),
    })
}

fn rules(tokens: &Node<'_>) -> Result<Vec<(String, TokenRule)>, Error> {
    let Value::Object(fields) = tokens.value else { return Err(tokens.unexpected("a mapping")) };
    let rule = |(token, value): (&String, &Value)| {
        let node = Node { value, place: tokens.at(token), notes: tokens.notes };
        node.fields(&["source", "force"])?;
        let force = match node.get("force") {
            None => false,
            Some(force) => force.value.as_bool().ok_or_else(|| force.unexpected("true or false"))?,
        };
        let source = node.get("source").map(|source| row_source(&source)).transpose()?;
        Ok((token.clone(), TokenRule { source, force }))
    };
    fields.iter().map(rule).collect()
}

fn row_source(node: &Node<'_>) -> Result<RowSource, Error> {
    let Some(kind) = node.get("kind") else { return Ok(RowSource::Model(reference(node)?)) };
    match kind.text("zero or model_token")? {
        "zero" => Ok(RowSource::Zero),
        "model_token" => {
            node.fields(&["kind", "model", "token", "token_id"])?;
            let model = reference(&node.need("model")?)?;
            match (node.get("token"), node.get("token_id")) {
                (Some(token), None) => Ok(RowSource::Token(model, token.text("a token")?.into())),
                (None, Some(row)) => {
                    let number = row.value.as_u64().ok_or_else(|| row.unexpected("the number of a token"))?;
                    Ok(RowSource::Row(model, number))
                }
                _ => Err(node.unexpected("one of token and token_id")),
            }
        }
        _ => Err(kind.unexpected("zero or model_token")),
    }
}

/// What a rule names must be there, and be among the models whose rows are joined.
pub(crate) fn fault(token: &str, what: String, remedy: &'static str) -> Error {
    let short: String = token.chars().take(60).collect();
    Error::Config {
        place: format!("tokenizer.tokens.{short}"),
        fault: ConfigFault::Unsupported { what, remedy },
    }
}
