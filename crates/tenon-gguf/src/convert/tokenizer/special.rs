//! Special tokens, merges, chat templates and normalizing: what `gguf.SpecialVocab` of the converter finds.
//!
//! Source: `gguf-py/gguf/vocab.py` of llama.cpp build 10488.

use serde_json::{Map, Value as Json};

use super::super::files::ModelFiles;
use crate::{Error, Metadata, Value};

/// Kinds that are looked for unless said otherwise.
const KINDS: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];
/// Kinds that have a key, and its name.
const KEYS: [(&str, &str); 8] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"), // as the format has it
    ("pad", "padding"),
    ("mask", "mask"),
    ("eot", "eot"),
    ("eom", "eom"),
];

/// Special tokens as they are found: the first to be found stays.
pub(crate) struct Special {
    types: Vec<String>,
    ids: Vec<(String, u32)>,
    add: Vec<(String, bool)>,
    n_vocab: Option<u64>,
    /// Merges of a BPE tokenizer.
    pub(crate) merges: Vec<String>,
    /// `chat_template`: a text, or a list of named ones.
    pub(crate) template: Option<Json>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

impl Special {
    /// Looks in all files that can have them. Ids of `n_vocab` and more are none.
    pub(crate) fn load(
        files: &ModelFiles,
        merges: bool,
        kinds: Option<&[&str]>,
        n_vocab: Option<u64>,
    ) -> Result<Self, Error> {
        let mut special = Self {
            types: kinds.unwrap_or(&KINDS).iter().map(|kind| (*kind).to_string()).collect(),
            ids: vec![],
            add: vec![],
            n_vocab,
            merges: vec![],
            template: None,
            lowercase: None,
            strip_accents: None,
        };
        let tokenizer = files.object("tokenizer.json")?;
        let mut config = files.object("tokenizer_config.json")?.filter(|config| !config.is_empty());
        if let Some(tokenizer) = &tokenizer {
            if merges {
                special.merges = json_merges(files, tokenizer)?;
            }
            special.normalizer(tokenizer.get("normalizer"), 0);
            special.post_processor(tokenizer.get("post_processor"), config.as_mut());
        }
        if let Some(config) = &config {
            special.template = chat_template(files, config)?;
            let added = tokenizer
                .as_ref()
                .and_then(|tokenizer| tokenizer.get("added_tokens"))
                .and_then(Json::as_array);
            special.named(config, added);
        }
        let outer = files.object("config.json")?.unwrap_or_default();
        for kind in special.types.clone() {
            let field = format!("{kind}_token_id");
            let id = outer.get(&field).filter(|id| !id.is_null());
            let id = id.or_else(|| outer.get("text_config").and_then(|inner| inner.get(&field)));
            special.set_id(&kind, id);
        }
        if merges && special.merges.is_empty() {
            special.merges = text_merges(files)?;
        }
        Ok(special)
    }

    /// Tokens that `tokenizer_config.json` names.
    fn named(&mut self, config: &Map<String, Json>, added: Option<&Vec<Json>>) {
        for kind in self.types.clone() {
            if let Some(add) = config.get(&format!("add_{kind}_token")).and_then(Json::as_bool) {
                self.set_add(&kind, add);
            }
            let content = match config.get(&format!("{kind}_token")) {
                Some(Json::String(text)) => Some(text.as_str()),
                Some(Json::Object(token)) => token.get("content").and_then(Json::as_str),
                _ => None,
            };
            let Some(content) = content else { continue };
            let is_it = |token: &&Json| token.get("content").and_then(Json::as_str) == Some(content);
            let found = added.into_iter().flatten().find(is_it);
            self.set_id(&kind, found.and_then(|token| token.get("id")));
        }
    }

    /// Sets the token of a kind if none was found.
    pub(crate) fn set_id(&mut self, kind: &str, id: Option<&Json>) {
        if let Some(id) = id.and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok()) {
            self.set(kind, id);
        }
    }

    /// Sets the token of a kind if none was found.
    pub(crate) fn set(&mut self, kind: &str, id: u32) {
        let in_vocabulary = self.n_vocab.is_none_or(|n| u64::from(id) < n);
        if in_vocabulary && !self.ids.iter().any(|(known, _)| known == kind) {
            self.ids.push((kind.to_string(), id));
        }
    }

    /// Sets the token of a kind where one was found.
    pub(crate) fn replace(&mut self, kind: &str, id: u32) {
        if let Some((_, known)) = self.ids.iter_mut().find(|(known, _)| known == kind) {
            *known = id;
        }
    }

    /// Whether the token of a kind is added to a text.
    pub(crate) fn set_add(&mut self, kind: &str, add: bool) {
        match self.add.iter_mut().find(|(known, _)| known == kind) {
            Some((_, known)) => *known = add,
            None => self.add.push((kind.to_string(), add)),
        }
    }

    /// Writes the keys.
    pub(crate) fn write(self, out: &mut Metadata) {
        if !self.merges.is_empty() {
            out.set("tokenizer.ggml.merges", Value::Strings(self.merges));
        }
        for (kind, id) in &self.ids {
            if let Some((_, key)) = KEYS.iter().find(|(known, _)| known == kind) {
                out.set(format!("tokenizer.ggml.{key}_token_id"), Value::U32(*id));
            }
        }
        for (kind, add) in &self.add {
            if ["bos", "eos", "sep"].contains(&kind.as_str()) {
                out.set(format!("tokenizer.ggml.add_{kind}_token"), Value::Bool(*add));
            }
        }
        if let Some(template) = &self.template {
            write_templates(template, out);
        }
        for (key, value) in [("lowercase", self.lowercase), ("strip_accents", self.strip_accents)] {
            if let Some(value) = value {
                out.set(format!("tokenizer.ggml.normalizer.{key}"), Value::Bool(value));
            }
        }
    }

    fn normalizer(&mut self, normalizer: Option<&Json>, depth: u32) {
        let Some(normalizer) = normalizer else { return };
        match normalizer.get("type").and_then(Json::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                for (field, value) in
                    [("lowercase", &mut self.lowercase), ("strip_accents", &mut self.strip_accents)]
                {
                    if let Some(found) = normalizer.get(field) {
                        *value = found.as_bool();
                    }
                }
            }
            Some("Sequence") if depth < 16 => {
                for inner in normalizer.get("normalizers").and_then(Json::as_array).into_iter().flatten() {
                    self.normalizer(Some(inner), depth + 1);
                }
            }
            _ => {}
        }
    }

    /// What the post-processor says about tokens at the beginning, end and middle; it may give names
    /// to tokens that the configuration has none for.
    fn post_processor(&mut self, processor: Option<&Json>, config: Option<&mut Map<String, Json>>) {
        let has_config = config.is_some();
        let mut empty = Map::new();
        let config = config.unwrap_or(&mut empty);
        // A token in the configuration is a text or an object; only texts are compared, as the converter does.
        let get = |config: &Map<String, Json>, kind: &str| {
            config.get(&format!("{kind}_token")).filter(|v| is_truthy(v)).cloned()
        };
        let (mut bos, mut cls) = (get(config, "bos"), get(config, "cls"));
        let (mut eos, mut sep) = (get(config, "eos"), get(config, "sep"));
        if bos.is_none() && cls.is_some() && has_config {
            bos = cls.clone();
            config.insert("bos_token".into(), cls.clone().unwrap_or_default());
        }
        if eos.is_none() && sep.is_some() && has_config {
            eos = sep.clone();
            config.insert("eos_token".into(), sep.clone().unwrap_or_default());
        }
        let Some(processor) = processor.filter(|processor| !processor.is_null()) else { return };
        let single = [processor.clone()];
        let processors =
            processor.get("processors").and_then(Json::as_array).map_or(&single[..], Vec::as_slice);
        for processor in processors {
            match processor.get("type").and_then(Json::as_str) {
                Some("RobertaProcessing") => {
                    for kind in ["bos", "eos", "sep"] {
                        self.set_add(kind, true);
                    }
                    let first = |field: &str| processor.get(field).and_then(|pair| pair.get(0)).cloned();
                    if cls.is_none() && has_config {
                        cls = first("cls").or_else(|| bos.clone());
                        config.insert("cls_token".into(), cls.clone().unwrap_or_default());
                    }
                    if sep.is_none() && has_config {
                        sep = first("sep").or_else(|| eos.clone());
                        config.insert("sep_token".into(), sep.clone().unwrap_or_default());
                    }
                }
                Some("TemplateProcessing") => {
                    let list = |field: &str| {
                        processor.get(field).and_then(Json::as_array).cloned().unwrap_or_default()
                    };
                    let (single, pair) = (list("single"), list("pair"));
                    let id = |entry: Option<&Json>, kind: &str| {
                        entry.and_then(|entry| entry.get(kind)?.get("id")).filter(|v| is_truthy(v)).cloned()
                    };
                    let (mut first, mut last) = (None, None);
                    if single.len() > 1 {
                        first = id(single.first(), "SpecialToken");
                        if let Some(first) = &first {
                            if !has_config {
                                bos = Some(first.clone());
                            } else if Some(first) != bos.as_ref() && Some(first) != cls.as_ref() {
                                if bos.is_none() {
                                    bos = Some(first.clone());
                                    config.insert("bos_token".into(), first.clone());
                                }
                                if cls.is_none() {
                                    cls = Some(first.clone());
                                    config.insert("cls_token".into(), first.clone());
                                }
                            }
                            let known = Some(first) == bos.as_ref() || Some(first) == cls.as_ref();
                            self.set_add("bos", known);
                        }
                        last = id(single.last(), "SpecialToken");
                        if let Some(last) = &last {
                            if !has_config {
                                eos = Some(last.clone());
                            } else if Some(last) != eos.as_ref() {
                                for kind in ["eot", "eom"] {
                                    if !self.types.iter().any(|known| known == kind) {
                                        self.types.push(kind.to_string());
                                        config
                                            .insert(format!("{kind}_token"), eos.clone().unwrap_or_default());
                                        break;
                                    }
                                }
                                config.insert("eos_token".into(), last.clone());
                                eos = Some(last.clone());
                            }
                            self.set_add("eos", Some(last) == eos.as_ref());
                        }
                    }
                    if pair.is_empty() {
                        continue;
                    }
                    let start = usize::from(first.is_some() && id(pair.first(), "SpecialToken") == first);
                    let stops = last.is_some() && id(pair.last(), "SpecialToken") == last;
                    let end = pair.len() - usize::from(stops);
                    let inner = pair.get(start..end).unwrap_or_default();
                    if inner.is_empty() {
                        continue;
                    }
                    let sequence = |entry: Option<&Json>| {
                        id(entry, "Sequence").and_then(|id| id.as_str().map(str::to_string))
                    };
                    let around = (sequence(inner.first()), sequence(inner.last()));
                    // With nothing between the two there is nothing to say.
                    if (around.0.as_deref(), around.1.as_deref()) != (Some("A"), Some("B"))
                        || inner.len() <= 2
                    {
                        continue;
                    }
                    let middle = &inner[1..inner.len() - 1];
                    let is_separator =
                        |token: &Json| Some(token) == sep.as_ref() || Some(token) == eos.as_ref();
                    let mut add = false;
                    if let Some(token) = id(middle.first(), "SpecialToken") {
                        add = is_separator(&token) && last.is_none();
                    }
                    if middle.len() == 2
                        && let Some(token) = id(middle.get(1), "SpecialToken")
                    {
                        add |= is_separator(&token);
                    }
                    self.set_add("sep", add);
                    if add && sep.is_none() && has_config {
                        config.insert("sep_token".into(), eos.clone().unwrap_or_default());
                    }
                }
                _ => {}
            }
        }
    }
}

fn is_truthy(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::String(text) => !text.is_empty(),
        Json::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

/// Merges of `tokenizer.json`, as one text each.
fn json_merges(files: &ModelFiles, tokenizer: &Map<String, Json>) -> Result<Vec<String>, Error> {
    let merges = tokenizer.get("model").and_then(|model| model.get("merges")).and_then(Json::as_array);
    let merge = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        // A space within a part would look like the one between parts.
        Json::Array(pair) if pair.len() == 2 => {
            let part = |at: usize| pair[at].as_str().map(|part: &str| part.replace(' ', "\u{120}"));
            Some(format!("{} {}", part(0)?, part(1)?))
        }
        _ => None,
    };
    let merges: Option<Vec<_>> = merges.into_iter().flatten().map(merge).collect();
    merges.ok_or_else(|| files.wrong("tokenizer.json", "a merge is neither a text nor a pair of texts"))
}

/// Merges of `merges.txt`.
fn text_merges(files: &ModelFiles) -> Result<Vec<String>, Error> {
    let text = files.text("merges.txt")?.unwrap_or_default();
    let lines = text.lines().enumerate().filter(|(at, line)| !(*at == 0 && line.trim().starts_with('#')));
    let merge = |line: &str| {
        let parts: Vec<&str> = line.split_whitespace().collect();
        (parts.len() == 2).then(|| parts.join(" "))
    };
    Ok(lines.filter_map(|(_, line)| merge(line)).collect())
}

fn chat_template(files: &ModelFiles, config: &Map<String, Json>) -> Result<Option<Json>, Error> {
    if let Some(template) = config.get("chat_template") {
        return Ok(Some(template.clone()).filter(|template| template.is_string() || template.is_array()));
    }
    if let Some(text) = files.text("chat_template.jinja")? {
        let dir = "additional_chat_templates";
        let mut templates = vec![];
        for file in files.list(dir) {
            if let Some(name) = file.strip_suffix(".jinja") {
                let text = files.text(&format!("{dir}/{file}"))?;
                templates.push(serde_json::json!({ "name": name, "template": text }));
            }
        }
        if templates.is_empty() {
            return Ok(Some(Json::String(text)));
        }
        templates.insert(0, serde_json::json!({ "name": "default", "template": text }));
        return Ok(Some(Json::Array(templates)));
    }
    let file = files.object("chat_template.json")?;
    Ok(file.and_then(|file| file.get("chat_template").cloned()).filter(|it| it.is_string() || it.is_array()))
}

fn write_templates(template: &Json, out: &mut Metadata) {
    let Json::Array(choices) = template else {
        write_template("tokenizer.chat_template", template.as_str().unwrap_or_default(), out);
        return;
    };
    let mut names = vec![];
    let mut default = None;
    for choice in choices {
        let (Some(name), Some(text)) =
            (choice.get("name").and_then(Json::as_str), choice.get("template").and_then(Json::as_str))
        else {
            continue;
        };
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if name == "default" {
            default = Some(text);
        } else if !name.is_empty() {
            write_template(&format!("tokenizer.chat_template.{name}"), text, out);
            names.push(name);
        }
    }
    if !names.is_empty() {
        out.set("tokenizer.chat_templates", Value::Strings(names));
    }
    write_template("tokenizer.chat_template", default.unwrap_or_default(), out);
}

/// An empty one is none.
fn write_template(key: &str, text: &str, out: &mut Metadata) {
    if !text.is_empty() {
        out.set(key, Value::String(text.to_string()));
    }
}
