//! The tokens of `tokenizer.json` as transformers has them once it has loaded a tokenizer.
//!
//! The converter asks transformers, which adds to the file's own what other
//! files name: the tokens of `added_tokens_decoder` and `added_tokens.json`,
//! and each special token that is not among the added ones, at its place in
//! the vocabulary or behind it. Some classes of tokenizers name special tokens
//! themselves, and take no more of `tokenizer.json` than its model.
//!
//! Source: transformers 5.23, `tokenization_utils_base.py`,
//! `tokenization_utils_tokenizers.py`, `models/auto/tokenization_auto.py`;
//! `add_tokens` of tokenizers 0.23.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value as Json};

use super::super::arch::Model;
use super::super::files::ModelFiles;
use super::{MAX_TOKENS, text};
use crate::Error;

pub(super) const FILE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

/// A token that was added to the vocabulary of the model.
#[derive(Clone)]
pub(super) struct Added {
    pub(super) text: String,
    pub(super) special: bool,
    /// Whether a text is normalized before this is looked for in it.
    pub(super) normalized: bool,
}

/// A tokenizer.
pub(super) struct Loaded {
    /// Tokens of the model by number.
    pub(super) vocabulary: BTreeMap<u64, String>,
    /// Added tokens by number; some are in the vocabulary, too.
    pub(super) added: BTreeMap<u64, Added>,
    /// The tokens that have a part: to begin a text, to end it.
    pub(super) named: HashSet<String>,
}

/// Parts that every tokenizer may have a token for.
const PARTS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Classes that are made anew from the model of `tokenizer.json`, and the tokens of [`PARTS`] that they name.
const CLASSES: [(&str, [&str; 7]); 10] = {
    let end = "<|endoftext|>";
    [
        ("Qwen2Tokenizer", ["", end, end, "", end, "", ""]),
        ("Qwen3_5Tokenizer", ["", end, end, "", end, "", ""]),
        ("GPT2Tokenizer", [end, end, end, "", "", "", ""]),
        ("CodeGenTokenizer", [end, end, end, "", "", "", ""]),
        ("GPTNeoXTokenizer", [end, end, end, "", "<|padding|>", "", ""]),
        ("LlamaTokenizer", ["<s>", "</s>", "<unk>", "", "", "", ""]),
        ("GemmaTokenizer", ["<bos>", "<eos>", "<unk>", "", "<pad>", "", "<mask>"]),
        (
            "CohereTokenizer",
            ["<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<UNK>", "<SEP>", "<PAD>", "<CLS>", "<MASK_TOKEN>"],
        ),
        ("BertTokenizer", ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]),
        ("RobertaTokenizer", ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"]),
    ]
};

/// Classes that models of a `model_type` have, where it is one of [`CLASSES`].
const REGISTERED: [(&str, &[&str]); 8] = [
    (
        "Qwen2Tokenizer",
        &[
            "qwen2",
            "qwen2_moe",
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3",
            "qwen3_moe",
            "qwen3_next",
            "qwen3_vl",
            "qwen3_vl_moe",
        ],
    ),
    ("Qwen3_5Tokenizer", &["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"]),
    ("GPT2Tokenizer", &["gpt2", "phi", "starcoder2"]),
    ("GPTNeoXTokenizer", &["gpt_neox", "mpt", "olmo", "olmoe"]),
    ("GemmaTokenizer", &["gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"]),
    ("CohereTokenizer", &["cohere", "cohere2"]),
    ("BertTokenizer", &["bert", "distilbert", "nomic_bert"]),
    ("RobertaTokenizer", &["roberta"]),
];

/// Types of models whose tokenizer is the plain one, whatever class is named.
const PLAIN: [&str; 27] = [
    "mistral",
    "mixtral",
    "ministral3",
    "mistral3",
    "phi3",
    "phimoe",
    "olmo2",
    "olmo3",
    "granite",
    "granitemoe",
    "granitemoeshared",
    "granitemoehybrid",
    "glm",
    "glm4",
    "glm4v",
    "glm4v_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "ernie4_5",
    "ernie4_5_moe",
    "stablelm",
    "internlm2",
    "internlm3",
    "gpt_bigcode",
    "flex_olmo",
    "olmo_hybrid",
    "modernbert",
];

/// Types of models of which transformers knows the class better than what is named.
const KNOWN_BETTER: [&str; 4] = ["qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"];

/// Reads the tokens. Fails if there is no `tokenizer.json`.
pub(super) fn load(model: &Model<'_>) -> Result<Loaded, Error> {
    let files = model.files;
    let Some(tokenizer) = files.object(FILE)? else {
        return Err(Error::NoTokenizer { dir: files.root().into() });
    };
    let vocabulary = vocabulary(files, &tokenizer)?;
    let config = files.object(CONFIG)?.unwrap_or_default();
    let own = own(files, &tokenizer)?;
    let named_by_class = class(model, &config, &tokenizer);
    let mut tokens = Tokens::new(&vocabulary);
    if named_by_class.is_none() {
        own.iter().for_each(|(_, token)| tokens.add(token.clone()));
    }
    let legacy = !config.contains_key("added_tokens_decoder");
    let map = if legacy { files.object("special_tokens_map.json")? } else { None };
    let special = special(&config, map.unwrap_or_default(), named_by_class);
    let mut decoder = BTreeMap::new();
    if legacy {
        for (text, id) in files.object("added_tokens.json")?.unwrap_or_default() {
            let is_special = special.iter().any(|(_, token)| token.text == text);
            let id = id.as_u64().ok_or_else(|| files.wrong("added_tokens.json", "a token has no number"))?;
            decoder.insert(id, Added { text, special: is_special, normalized: !is_special });
        }
        decoder.extend(own);
    } else {
        for (id, token) in config.get("added_tokens_decoder").and_then(Json::as_object).into_iter().flatten()
        {
            let found = id.parse().ok().zip(added(token));
            let (id, token): (u64, _) = found.ok_or_else(|| {
                files.wrong(CONFIG, "a token of added_tokens_decoder has no number or no content")
            })?;
            decoder.insert(id, token);
        }
    }
    let has_part = |token: &Added| special.iter().any(|(part, named)| *part && named.text == token.text);
    for mut token in decoder.into_values() {
        token.special |= has_part(&token);
        tokens.add(token);
    }
    for (part, token) in &special {
        if !tokens.numbers.contains_key(&token.text) {
            tokens.add(Added { special: token.special || *part, ..token.clone() });
        }
    }
    let added = tokens.added;
    let named = special.into_iter().map(|(_, token)| token.text).collect();
    Ok(Loaded { vocabulary, added, named })
}

/// Added tokens as they come.
struct Tokens<'a> {
    model: HashMap<&'a str, u64>,
    added: BTreeMap<u64, Added>,
    numbers: HashMap<String, u64>,
}

impl<'a> Tokens<'a> {
    fn new(vocabulary: &'a BTreeMap<u64, String>) -> Self {
        let model = vocabulary.iter().map(|(id, text)| (text.as_str(), *id)).collect();
        Self { model, added: BTreeMap::new(), numbers: HashMap::new() }
    }

    /// Adds a token: at its place if it has one, else behind all others.
    fn add(&mut self, token: Added) {
        if token.text.is_empty() {
            return;
        }
        let number = self.numbers.get(&token.text).or_else(|| self.model.get(token.text.as_str())).copied();
        let size = self.model.len() as u64;
        let number = number
            .unwrap_or_else(|| self.added.last_key_value().map_or(size, |(last, _)| size.max(last + 1)));
        self.numbers.insert(token.text.clone(), number);
        self.added.insert(number, token);
    }
}

/// The special tokens, and of each whether it has a part or is only one more.
fn special(
    config: &Map<String, Json>,
    map: Map<String, Json>,
    named_by_class: Option<&[&'static str; 7]>,
) -> Vec<(bool, Added)> {
    let more = |fields: &Map<String, Json>| -> Vec<Json> {
        let lists = ["extra_special_tokens", "additional_special_tokens"].map(|key| fields.get(key));
        let list = lists.into_iter().flatten().find(|list| {
            list.as_array().is_some_and(|list| !list.is_empty())
                || list.as_object().is_some_and(|map| !map.is_empty())
        });
        match list {
            Some(Json::Array(tokens)) => tokens.clone(),
            Some(Json::Object(tokens)) => tokens.values().cloned().collect(),
            _ => vec![],
        }
    };
    let mut extra = more(config);
    extra.extend(more(&map));
    let has_name = |key: &&String| key.ends_with("_token") && !PARTS.contains(&key.as_str());
    let others: Vec<&String> = config.keys().chain(map.keys()).filter(has_name).collect();
    let mut found: Vec<(bool, Added)> = vec![];
    let mut put = |part: bool, token: Added| {
        if !found.iter().any(|(_, known)| known.text == token.text) {
            found.push((part, token));
        }
    };
    for (n, part) in PARTS.iter().enumerate() {
        match map.get(*part).or_else(|| config.get(*part)) {
            Some(token) => named(token).into_iter().for_each(|token| put(true, token)),
            None => {
                let text = named_by_class.map_or("", |names| names[n]);
                named(&Json::from(text)).into_iter().for_each(|token| put(true, token));
            }
        }
    }
    for key in others {
        let token = map.get(key).or_else(|| config.get(key));
        token.and_then(named).into_iter().for_each(|token| put(true, token));
    }
    extra.iter().filter_map(named).for_each(|token| put(false, token));
    found
}

/// A token that is named: by its text, or with what it is.
fn named(token: &Json) -> Option<Added> {
    let whole = |text: &str| Added { text: text.into(), special: true, normalized: false };
    token.as_str().map(whole).or_else(|| added(token)).filter(|token| !token.text.is_empty())
}

/// A token with what it is.
fn added(token: &Json) -> Option<Added> {
    let flag = |name: &str| token.get(name).and_then(Json::as_bool);
    let special = flag("special").unwrap_or(false);
    let normalized = flag("normalized").unwrap_or(!special);
    Some(Added { text: text(token, "content")?.to_string(), special, normalized })
}

/// The special tokens that the tokenizer's class names, where it is one that is made anew.
fn class(
    model: &Model<'_>,
    config: &Map<String, Json>,
    tokenizer: &Map<String, Json>,
) -> Option<&'static [&'static str; 7]> {
    let model_type = model.config.outer_model_type.as_str();
    let in_config = || model.config.get("tokenizer_class").and_then(Json::as_str);
    let said = config.get("tokenizer_class").and_then(Json::as_str).or_else(in_config);
    let said = said.map(|class| class.strip_suffix("Fast").unwrap_or(class));
    let registered =
        REGISTERED.iter().find(|(_, types)| types.contains(&model_type)).map(|(class, _)| *class);
    let has_byte_level = || {
        ["pre_tokenizer", "decoder", "post_processor", "normalizer"]
            .iter()
            .any(|step| tokenizer.get(*step).is_some_and(|step| step.to_string().contains("\"ByteLevel\"")))
    };
    let class = match (said, registered) {
        _ if PLAIN.contains(&model_type) => return None,
        (Some("LlamaTokenizer"), _) if !KNOWN_BETTER.contains(&model_type) && has_byte_level() => {
            return None;
        }
        (Some(_), Some(registered)) if KNOWN_BETTER.contains(&model_type) => registered,
        (Some("DistilBertTokenizer"), _) => "BertTokenizer",
        (Some(said), _) => said,
        (None, registered) => registered?,
    };
    CLASSES.iter().find(|(name, _)| *name == class).map(|(_, names)| names)
}

/// Tokens of the model by number.
fn vocabulary(files: &ModelFiles, tokenizer: &Map<String, Json>) -> Result<BTreeMap<u64, String>, Error> {
    let words = tokenizer.get("model").and_then(|model| model.get("vocab")).and_then(Json::as_object);
    let words = words.ok_or_else(|| files.wrong(FILE, "its model has no vocab of tokens and numbers"))?;
    let entry =
        |(text, id): (&String, &Json)| Some((id.as_u64().filter(|id| *id < MAX_TOKENS)?, text.clone()));
    let entries: Option<BTreeMap<_, _>> = words.iter().map(entry).collect();
    entries.ok_or_else(|| files.wrong(FILE, "a token of its vocab has no number"))
}

/// The added tokens that the file itself has, in its order, with the numbers that it gives them.
pub(super) fn own(files: &ModelFiles, tokenizer: &Map<String, Json>) -> Result<Vec<(u64, Added)>, Error> {
    let list = tokenizer.get("added_tokens").and_then(Json::as_array);
    let token = |token: &Json| {
        let id = token.get("id")?.as_u64().filter(|id| *id < MAX_TOKENS)?;
        Some((id, added(token)?))
    };
    let tokens: Option<Vec<_>> = list.into_iter().flatten().map(token).collect();
    tokens.ok_or_else(|| files.wrong(FILE, "an added token has no number or no content"))
}
