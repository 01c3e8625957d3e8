//! What a model's directory says of conversations: its `chat_template`, its
//! special tokens, and which of them end an answer.

use std::path::Path;

use serde_json::{Map as JsonMap, Value as Json};
use tenon_checkpoint::{read_json, read_text};

use crate::Error;

/// What the files say.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelChat {
    /// Jinja source.
    pub(crate) template: String,
    /// `bos_token` and its like, for the template.
    pub(crate) specials: JsonMap<String, Json>,
    /// The token that a prompt begins with, where the tokenizer puts it there by itself.
    pub(crate) added_bos: Option<String>,
    /// Tokens that end an answer, by `eos_token` and `generation_config.json`.
    pub(crate) ends: Vec<String>,
    /// All special tokens.
    pub(crate) tokens: Vec<String>,
}

impl ModelChat {
    /// Reads the files; `None` where there is no chat template.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let json = |name: &str| -> Result<Json, Error> {
            let path = dir.join(name);
            if path.is_file() { Ok(read_json(&path)?) } else { Ok(Json::Null) }
        };
        let config = json("tokenizer_config.json")?;
        let jinja = dir.join("chat_template.jinja");
        let template = if jinja.is_file() {
            Some(read_text(&jinja)?)
        } else {
            default_of(&config["chat_template"]).or(default_of(&json("chat_template.json")?["chat_template"]))
        };
        let Some(template) = template else { return Ok(None) };
        let mut specials = JsonMap::new();
        for file in [&json("special_tokens_map.json")?, &config] {
            for name in
                ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"]
            {
                if let Some(token) = token(&file[name]) {
                    specials.insert(name.into(), token.into());
                }
            }
        }
        let tokenizer = json("tokenizer.json")?;
        let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
        let added: Vec<(i64, String)> = added
            .filter_map(|token| Some((token["id"].as_i64()?, token["content"].as_str()?.to_string())))
            .collect();
        let special = |name: &str| specials.get(name).and_then(Json::as_str).map(str::to_string);
        let bos = special("bos_token");
        let adds_bos = match config["add_bos_token"].as_bool() {
            Some(adds) => adds,
            None => adds_bos(&tokenizer["post_processor"], bos.as_deref())
                .unwrap_or_else(|| dir.join("tokenizer.model").is_file()),
        };
        let mut ends: Vec<String> = special("eos_token").into_iter().collect();
        let generation = json("generation_config.json")?;
        let ids = match &generation["eos_token_id"] {
            Json::Array(ids) => ids.iter().filter_map(Json::as_i64).collect(),
            id => id.as_i64().into_iter().collect::<Vec<_>>(),
        };
        for id in ids {
            if let Some((_, token)) = added.iter().find(|(known, _)| *known == id)
                && !ends.contains(token)
            {
                ends.push(token.clone());
            }
        }
        let mut tokens: Vec<String> = added.into_iter().map(|(_, token)| token).collect();
        tokens.extend(specials.values().filter_map(Json::as_str).map(str::to_string));
        Ok(Some(Self { template, added_bos: bos.filter(|_| adds_bos), specials, ends, tokens }))
    }
}

/// A template, or the one called default of several.
fn default_of(json: &Json) -> Option<String> {
    match json {
        Json::String(template) => Some(template.clone()),
        Json::Array(templates) => {
            let default = templates.iter().find(|template| template["name"] == "default");
            default?["template"].as_str().map(str::to_string)
        }
        _ => None,
    }
}

/// A token is a string, or an object with its text as `content`.
fn token(json: &Json) -> Option<String> {
    json.as_str().or_else(|| json["content"].as_str()).map(str::to_string)
}

/// Whether the tokenizer's post-processor puts the token before a text; `None` where it does not tell.
fn adds_bos(processor: &Json, bos: Option<&str>) -> Option<bool> {
    let bos = bos?;
    match processor["type"].as_str()? {
        "TemplateProcessing" => Some(processor["single"][0]["SpecialToken"]["id"] == bos),
        "Sequence" => {
            let steps = processor["processors"].as_array()?;
            steps.iter().find_map(|step| adds_bos(step, Some(bos)))
        }
        _ => None,
    }
}
