//! Tokenizers of several models made one, as `tokenizer_source` of a blend asks: read from, and written as,
//! `tokenizer.json`.
//!
//! As mergekit 0.1.5 does it: of the base's tokenizer what its model has no
//! rows for is taken out; a union adds to it what others have. mergekit numbers
//! what is added by the order of a hash table; here it is in the order of the
//! models and of their own numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tenon_blend::{TokenizerChoice, TokenizerSource, Vocabularies, Vocabulary};
use tenon_checkpoint::read_json;

use crate::Error;
use crate::companions::{self, Content, TOKENIZER_CONFIG};

/// What the result's tokens are, where the models have theirs, and the result's tokenizer files.
pub(crate) struct Joined {
    pub(crate) vocabularies: Vocabularies,
    pub(crate) files: BTreeMap<String, Content>,
}

/// Makes one tokenizer for models, the base first: the one in `chosen`, or the base's, or all.
pub(crate) fn join(
    choice: &TokenizerChoice,
    chosen: Option<&Path>,
    models: &[(&Path, &Value)],
) -> Result<Joined, Error> {
    let (base_dir, base_config) = models[0];
    let mut base = Tokenizer::open(base_dir)?.ok_or_else(|| Tokenizer::missing(base_dir))?;
    let mut changed = base.strip(size_of(base_config))?;
    let mut all: Vec<Option<Tokenizer>> = vec![None];
    for (dir, _) in &models[1..] {
        all.push(Tokenizer::open(dir)?);
    }
    let mut result = match chosen {
        Some(dir) => {
            changed = false;
            Tokenizer::open(dir)?.ok_or_else(|| Tokenizer::missing(dir))?
        }
        None => base.clone(),
    };
    if choice.source == TokenizerSource::Union {
        let others = all.iter().zip(models).map(|(tokenizer, (_, config))| {
            let tokenizer = tokenizer.as_ref().unwrap_or(&base);
            (tokenizer, size_of(config).unwrap_or(tokenizer.tokens.len() as u64))
        });
        changed |= result.unite(&others.collect::<Vec<_>>());
    }
    for token in choice.tokens() {
        if !result.tokens.contains_key(token) {
            result.add(json!({
                "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": true, "special": false,
            }));
            changed = true;
        }
    }
    let dir = chosen.unwrap_or(base_dir);
    let mut files = companions::tokenizer_of(dir)?;
    // As in mergekit, where the base's tokenizer is the result's, and then a row that nothing used stands for
    // a token that was added.
    let of_base = if choice.source == TokenizerSource::Base { &result } else { &base };
    // A model without a tokenizer is taken to have the base's.
    let of_model = |tokenizer: &Option<Tokenizer>| tokenizer.as_ref().unwrap_or(of_base).tokens.clone();
    let of_models: Vec<Vocabulary> = all.iter().map(of_model).collect();
    let vocabularies = Vocabularies { result: result.tokens.clone(), models: of_models };
    if changed {
        result.write(&mut files)?;
    }
    Ok(Joined { vocabularies, files })
}

/// Tokens that a model has rows for, by its `config.json`.
fn size_of(config: &Value) -> Option<u64> {
    let of = |config: &Value| config.get("vocab_size").and_then(Value::as_u64);
    of(config).or_else(|| of(config.get("text_config")?))
}

#[derive(Debug, Clone)]
struct Tokenizer {
    path: PathBuf,
    json: Value,
    tokens: Vocabulary,
    /// Those that are matched before the model's rules, by their numbers.
    added: BTreeMap<u64, Value>,
}

impl Tokenizer {
    fn open(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            if dir.join("tokenizer.model").is_file() {
                let reason = "has no tokenizer.json, which tokenizers are joined by; load it once with transformers and save it".into();
                return Err(Error::Tokenizer { path: dir.into(), reason });
            }
            return Ok(None);
        }
        let json: Value = read_json(&path)?;
        let Some(tokens) = vocabulary(&json) else {
            let reason = "has no vocabulary that numbers tokens".into();
            return Err(Error::Tokenizer { path, reason });
        };
        let mut tokenizer = Self { path, json, tokens, added: BTreeMap::new() };
        for entry in tokenizer.json["added_tokens"].as_array().into_iter().flatten() {
            if let Some(number) = entry.get("id").and_then(Value::as_u64) {
                tokenizer.added.insert(number, entry.clone());
            }
        }
        // What only this file speaks of is added when a tokenizer is loaded.
        let config = dir.join(TOKENIZER_CONFIG);
        let config: Value = if config.is_file() { read_json(&config)? } else { Value::Null };
        let more = config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten();
        for (number, entry) in more {
            let (Ok(number), Some(token)) =
                (number.parse::<u64>(), entry.get("content").and_then(Value::as_str))
            else {
                continue;
            };
            if !tokenizer.tokens.contains_key(token) && !tokenizer.added.contains_key(&number) {
                tokenizer.tokens.insert(token.into(), number);
                let mut entry = entry.clone();
                entry["id"] = json!(number);
                tokenizer.added.insert(number, entry);
            }
        }
        Ok(Some(tokenizer))
    }

    fn missing(dir: &Path) -> Error {
        let reason = "has no tokenizer.json, and tokenizer_source asks for its tokenizer; leave tokenizer_source out to merge embeddings row by row".into();
        Error::Tokenizer { path: dir.into(), reason }
    }

    /// Takes out the tokens that a model of `size` tokens has no rows for.
    fn strip(&mut self, size: Option<u64>) -> Result<bool, Error> {
        let Some(size) = size else { return Ok(false) };
        let unused: BTreeSet<String> =
            self.tokens.iter().filter(|(_, id)| **id >= size).map(|(token, _)| token.clone()).collect();
        if unused.is_empty() {
            return Ok(false);
        }
        if self.json["model"]["type"] != "BPE" {
            let reason = format!(
                "{} of its tokens have no row in the model, and only of BPE can they be taken out",
                unused.len()
            );
            return Err(Error::Tokenizer { path: self.path.clone(), reason });
        }
        self.tokens.retain(|token, _| !unused.contains(token));
        self.added.retain(|id, _| *id < size);
        if let Some(vocabulary) = self.json["model"]["vocab"].as_object_mut() {
            vocabulary.retain(|token, _| !unused.contains(token));
        }
        let is_kept = |merge: &Value| {
            let parts: Vec<&str> = match merge {
                Value::String(pair) => pair.split(' ').collect(),
                Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect(),
                _ => vec![],
            };
            // Nor may what they make be gone: mergekit leaves these, which no tokenizer then loads.
            !parts.iter().any(|part| unused.contains(*part)) && !unused.contains(&parts.concat())
        };
        if let Some(merges) = self.json["model"]["merges"].as_array_mut() {
            merges.retain(is_kept);
        }
        Ok(true)
    }

    /// Adds what other tokenizers have below their models' sizes: first what is plain there, then what is
    /// matched before the rules. Says whether there was any.
    fn unite(&mut self, others: &[(&Tokenizer, u64)]) -> bool {
        let mut special: Vec<Value> = vec![];
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut plain: Vec<String> = vec![];
        for (other, size) in others {
            for entry in other.added.range(..*size).map(|(_, entry)| entry) {
                let content = entry["content"].as_str().unwrap_or_default();
                if known.insert(content.into()) {
                    special.push(entry.clone());
                }
            }
            let mut by_number: Vec<(u64, &String)> =
                other.tokens.iter().map(|(token, id)| (*id, token)).filter(|(id, _)| id < size).collect();
            by_number.sort_unstable();
            plain.extend(
                by_number.into_iter().filter(|(id, _)| !other.added.contains_key(id)).map(|p| p.1.clone()),
            );
        }
        let mut changed = false;
        for token in plain {
            if !known.contains(&token) && !self.tokens.contains_key(&token) {
                changed = true;
                self.add(json!({
                    "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": true, "special": false,
                }));
            }
        }
        for entry in special {
            let is_there = self.added.values().any(|known| known["content"] == entry["content"]);
            if !is_there {
                changed = true;
                self.add(entry);
            }
        }
        changed
    }

    /// Adds a token, with the number that it has or the next.
    fn add(&mut self, mut entry: Value) {
        let token = entry["content"].as_str().unwrap_or_default().to_string();
        let in_model = match &self.json["model"]["vocab"] {
            Value::Object(vocabulary) => vocabulary.len() as u64,
            Value::Array(pieces) => pieces.len() as u64,
            _ => 0,
        };
        let next = self.added.keys().next_back().map_or(in_model, |last| in_model.max(last + 1));
        let number = *self.tokens.entry(token).or_insert(next);
        entry["id"] = json!(number);
        self.added.insert(number, entry);
    }

    /// The files of a tokenizer that was changed, in place of those of the one that it was made from.
    fn write(self, files: &mut BTreeMap<String, Content>) -> Result<(), Error> {
        // What says the same in other formats no longer does.
        files.retain(|name, _| {
            name.starts_with("chat_template.")
                || ["special_tokens_map.json", TOKENIZER_CONFIG].contains(&name.as_str())
        });
        if let Some(Content::File(path)) = files.get(TOKENIZER_CONFIG) {
            let mut config: Value = read_json(path)?;
            if config.get("added_tokens_decoder").is_some() {
                let entry = |(number, entry): (&u64, &Value)| {
                    let mut entry = entry.clone();
                    entry.as_object_mut().map(|fields| fields.remove("id"));
                    (number.to_string(), entry)
                };
                let decoder: Map<String, Value> = self.added.iter().map(entry).collect();
                config["added_tokens_decoder"] = Value::Object(decoder);
                files.insert(TOKENIZER_CONFIG.into(), Content::Text(format!("{config:#}\n")));
            }
        }
        let mut json = self.json;
        json["added_tokens"] = self.added.into_values().collect();
        files.insert("tokenizer.json".into(), Content::Text(format!("{json:#}\n")));
        Ok(())
    }
}

/// The tokens of a `tokenizer.json` and their numbers, where that can be told.
fn vocabulary(json: &Value) -> Option<Vocabulary> {
    let mut tokens: Vocabulary = match json.get("model")?.get("vocab")? {
        Value::Object(vocabulary) => {
            let of = |(token, id): (&String, &Value)| Some((token.clone(), id.as_u64()?));
            vocabulary.iter().map(of).collect::<Option<_>>()?
        }
        Value::Array(pieces) => {
            let of = |(id, piece): (usize, &Value)| Some((piece.get(0)?.as_str()?.to_string(), id as u64));
            pieces.iter().enumerate().map(of).collect::<Option<_>>()?
        }
        _ => return None,
    };
    for added in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        tokens.insert(added.get("content")?.as_str()?.to_string(), added.get("id")?.as_u64()?);
    }
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(json: Value) -> Tokenizer {
        let tokens = vocabulary(&json).unwrap();
        let added = json["added_tokens"].as_array().unwrap().iter();
        let added = added.map(|entry| (entry["id"].as_u64().unwrap(), entry.clone())).collect();
        Tokenizer { path: "t".into(), json, tokens, added }
    }

    #[test]
    fn vocabularies_are_read_from_mappings_and_from_pieces() {
        let pairs =
            json!({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]});
        let list = json!({"version": 1, "model": {"vocab": [["a", -1.5], ["b", -2], ["<s>", 0]]}});
        assert_eq!(vocabulary(&pairs).unwrap().len(), 3);
        assert_eq!(vocabulary(&pairs), vocabulary(&list));
        for none in [json!({}), json!({"model": {"vocab": {"a": "b"}}}), json!({"model": {"vocab": [1]}})] {
            assert_eq!(vocabulary(&none), None, "{none}");
        }
    }

    #[test]
    fn a_union_keeps_numbers_and_adds_what_others_have() {
        let base = json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "added_tokens": [{"id": 3, "content": "<s>"}]});
        let other = json!({"model": {"vocab": {"b": 0, "c": 1, "gone": 9}}, "added_tokens": [{"id": 2, "content": "<t>"}, {"id": 3, "content": "a"}]});
        let (mut base, other) = (tokenizer(base), tokenizer(other));
        let first = base.clone();
        assert!(base.unite(&[(&first, 4), (&other, 4)]));
        let expected = [("<s>", 3), ("<t>", 5), ("a", 0), ("ab", 2), ("b", 1), ("c", 4)];
        assert_eq!(base.tokens, expected.map(|(token, id)| (token.to_string(), id)).into());
        assert_eq!(base.added[&0]["content"], "a", "a word there is matched first here too");
        let mut stripped = first;
        assert!(stripped.strip(Some(1)).unwrap());
        assert_eq!(stripped.json["model"]["merges"], json!([]), "one of its parts is gone");
        assert_eq!(stripped.tokens.keys().collect::<Vec<_>>(), ["a"]);
    }
}
