//! The files of a model that are not weights: which go along, and from where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tenon_checkpoint::{Error, read_json, read_text};

/// Where a companion file's bytes come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// Copied.
    File(PathBuf),
    /// Written.
    Text(String),
}

impl Content {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, Error> {
        match self {
            Content::Text(text) => Ok(text.clone().into_bytes()),
            Content::File(path) => std::fs::read(path).map_err(Error::io("read", path)),
        }
    }
}

/// Bytes of all of them together.
pub(crate) fn bytes(files: &BTreeMap<String, Content>) -> Result<u64, Error> {
    let size = |content: &Content| match content {
        Content::Text(text) => Ok(text.len() as u64),
        Content::File(path) => Ok(std::fs::metadata(path).map_err(Error::io("examine", path))?.len()),
    };
    files.values().map(size).sum()
}

/// The files of a model that are no weights, by name. `config.json` is not among them.
pub(crate) fn of_model(dir: &Path) -> Result<BTreeMap<String, Content>, Error> {
    let files = list(dir)?.into_iter().filter(|(name, _)| belongs_to_model(name));
    Ok(files.map(|(name, path)| (name, Content::File(path))).collect())
}

/// The files that go along with the weights, by name. `config.json` is not among them.
pub(crate) fn gather<'a>(
    base: &Path,
    adapters: impl Iterator<Item = &'a Path>,
) -> Result<BTreeMap<String, Content>, Error> {
    let mut files = of_model(base)?;
    for adapter in adapters {
        overlay(&mut files, adapter)?;
    }
    Ok(files)
}

/// Whether a tokenizer lies beside an adapter.
pub(crate) fn has_tokenizer(adapter: &Path) -> Result<bool, Error> {
    Ok(adapter.is_dir() && list(adapter)?.iter().any(|(name, _)| belongs_to_tokenizer(name)))
}

/// Puts the tokenizer files that an adapter brings in place of those that are there.
fn overlay(files: &mut BTreeMap<String, Content>, adapter: &Path) -> Result<(), Error> {
    // An adapter that is a file says nothing of what lies beside it.
    let beside = if adapter.is_dir() { list(adapter)? } else { vec![] };
    let from_adapter: BTreeMap<_, _> =
        beside.into_iter().filter(|(name, _)| belongs_to_tokenizer(name)).collect();
    // One chat template, the adapter's if it has one in any of the places where a template can be.
    let adapter_template = embedded_template(from_adapter.get(TOKENIZER_CONFIG))?.is_some()
        || from_adapter.keys().any(|name| is_template(name));
    if adapter_template {
        files.retain(|name, _| !is_template(name));
    } else if from_adapter.contains_key(TOKENIZER_CONFIG) && !files.keys().any(|name| is_template(name)) {
        // The template before stands in a tokenizer_config.json that the adapter's is about to hide.
        let before = match files.get(TOKENIZER_CONFIG) {
            Some(Content::File(path)) => embedded_template(Some(path))?,
            _ => None,
        };
        if let Some(template) = before {
            files.insert("chat_template.jinja".into(), Content::Text(template));
        }
    }
    files.extend(from_adapter.into_iter().map(|(name, path)| (name, Content::File(path))));
    Ok(())
}

/// Puts a tokenizer in place of the one that is there, with the chat template that comes with it.
pub(crate) fn set_tokenizer(files: &mut BTreeMap<String, Content>, tokenizer: BTreeMap<String, Content>) {
    let processors = |name: &str| name.contains("processor_config");
    files.retain(|name, _| !belongs_to_tokenizer(name) || processors(name));
    files.extend(tokenizer);
}

/// The files of a model's tokenizer.
pub(crate) fn tokenizer_of(dir: &Path) -> Result<BTreeMap<String, Content>, Error> {
    let files = list(dir)?.into_iter();
    let files = files.filter(|(name, _)| belongs_to_tokenizer(name) && !name.contains("processor_config"));
    Ok(files.map(|(name, path)| (name, Content::File(path))).collect())
}

pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

fn is_template(name: &str) -> bool {
    name.starts_with("chat_template.")
}

/// Puts a chat template in place of all that are there.
pub(crate) fn set_template(files: &mut BTreeMap<String, Content>, template: String) -> Result<(), Error> {
    files.retain(|name, _| !is_template(name));
    if let Some(Content::File(path)) = files.get(TOKENIZER_CONFIG) {
        let mut config: Value = read_json(path)?;
        if config.as_object_mut().and_then(|fields| fields.remove("chat_template")).is_some() {
            files.insert(TOKENIZER_CONFIG.into(), Content::Text(format!("{config:#}\n")));
        }
    }
    files.insert("chat_template.jinja".into(), Content::Text(template));
    Ok(())
}

/// The chat template of a model, where it has one.
pub(crate) fn template_of(dir: &Path) -> Result<Option<String>, Error> {
    let jinja = dir.join("chat_template.jinja");
    if jinja.is_file() {
        return Ok(Some(read_text(&jinja)?));
    }
    let config = dir.join(TOKENIZER_CONFIG);
    embedded_template(config.is_file().then_some(&config))
}

/// The chat template inside a `tokenizer_config.json`.
fn embedded_template(path: Option<&PathBuf>) -> Result<Option<String>, Error> {
    let Some(path) = path else { return Ok(None) };
    let config: Value = read_json(path)?;
    Ok(match config.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        // Named templates; the one called default is the one that is used.
        Some(Value::Array(templates)) => templates
            .iter()
            .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|t| t.get("template")?.as_str().map(str::to_string)),
        _ => None,
    })
}

/// Regular files (or links to such) directly in a directory, by name, dot files left out.
fn list(dir: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut files = vec![];
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !name.starts_with('.') && path.is_file() {
            files.push((name.to_string(), path));
        }
    }
    files.sort();
    Ok(files)
}

fn belongs_to_tokenizer(name: &str) -> bool {
    let starts = [
        "tokenizer",
        "special_tokens_map",
        "added_tokens",
        "vocab",
        "merges",
        "chat_template",
        "spiece",
        "sentencepiece",
    ];
    let processor = ["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"];
    let ends = [".json", ".model", ".txt", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab"];
    (starts.iter().any(|s| name.starts_with(s)) && ends.iter().any(|e| name.ends_with(e)))
        || name.ends_with(".tiktoken")
        || processor.contains(&name)
}

/// Whether a file is a licence or a notice.
pub(crate) fn is_licence(name: &str) -> bool {
    let upper = name.to_uppercase();
    ["LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY"].iter().any(|s| upper.starts_with(s))
}

/// Whether a file beside a base's weights is part of the model rather than of its training or another format.
fn belongs_to_model(name: &str) -> bool {
    let not = [
        "config.json", // follows the merge
        "adapter_config.json",
        "all_results.json",
        "card.json", // of a Complete Model that is a base now
        "eval_results.json",
        // What a base is quantized with; what comes out is not.
        "hf_quant_config.json",
        "quant_config.json",
        "quantize_config.json",
        "requirements.txt",
        "tenon.json",
        "train_results.json",
        "trainer_log.jsonl",
        "trainer_state.json",
        "training_args.json",
    ];
    if not.contains(&name) || name.ends_with(".index.json") {
        return false;
    }
    if is_licence(name) {
        return true;
    }
    // .py: a model whose code comes with it is not whole without.
    let ends = [".json", ".jinja", ".py"];
    belongs_to_tokenizer(name) || ends.iter().any(|e| name.ends_with(e)) || name.ends_with(".model")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn weights_training_and_hidden_files_stay_behind() {
        let base = dir(&[
            ("config.json", "{}"),
            ("generation_config.json", "{}"),
            ("model.safetensors", ""),
            ("model.safetensors.index.json", "{}"),
            ("pytorch_model.bin", ""),
            ("optimizer.pt", ""),
            ("consolidated.00.pth", ""),
            ("tokenizer.model", ""),
            ("LICENSE.txt", ""),
            ("USE_POLICY.md", ""),
            ("modeling_x.py", ""),
            (".gitattributes", ""),
            ("trainer_state.json", "{}"),
            ("README.md", ""),
            ("preprocessor_config.json", "{}"),
        ]);
        let adapter = dir(&[
            ("adapter_config.json", "{}"),
            ("adapter_model.safetensors", ""),
            ("training_args.bin", ""),
        ]);
        let files = gather(base.path(), [adapter.path()].into_iter()).unwrap();
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "LICENSE.txt",
                "USE_POLICY.md",
                "generation_config.json",
                "modeling_x.py",
                "preprocessor_config.json",
                "tokenizer.model"
            ]
        );
    }

    #[test]
    fn the_adapters_tokenizer_and_template_win() {
        let base = dir(&[("tokenizer.json", "b"), ("chat_template.jinja", "b"), ("merges.txt", "b")]);
        let adapter = dir(&[("tokenizer.json", "a"), ("tokenizer_config.json", r#"{"chat_template":"a"}"#)]);
        let files = gather(base.path(), [adapter.path()].into_iter()).unwrap();
        assert_eq!(files["tokenizer.json"], Content::File(adapter.path().join("tokenizer.json")));
        assert_eq!(files["merges.txt"], Content::File(base.path().join("merges.txt")));
        assert!(!files.contains_key("chat_template.jinja"));
    }

    #[test]
    fn the_bases_template_survives_an_adapters_tokenizer_without_one() {
        let base = dir(&[("tokenizer_config.json", r#"{"chat_template":"the base's"}"#)]);
        let adapter = dir(&[("tokenizer_config.json", "{}")]);
        let files = gather(base.path(), [adapter.path()].into_iter()).unwrap();
        assert_eq!(files["chat_template.jinja"], Content::Text("the base's".into()));
        assert_eq!(
            files["tokenizer_config.json"],
            Content::File(adapter.path().join("tokenizer_config.json"))
        );
    }
}
