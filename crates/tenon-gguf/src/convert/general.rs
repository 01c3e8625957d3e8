//! `general.*`: what the model is called and made from, as llama.cpp's converter guesses it.
//!
//! The guesses (`gguf-py/gguf/metadata.py` of build 10488) go from the model
//! card's front matter over `_name_or_path` in `config.json` to the name of
//! the directory.

use serde_json::{Map, Value as Json};

use super::files::ModelFiles;
use crate::{Error, Metadata, Value};

/// What is known of the model besides its tensors.
pub(super) struct Known<'a> {
    /// Front matter of its card.
    pub(super) card: &'a Map<String, Json>,
    /// `config.json`.
    pub(super) config: &'a Json,
    /// `generation_config.json`.
    pub(super) generation: &'a Map<String, Json>,
    /// Name of its directory.
    pub(super) directory: &'a str,
    /// A name given by hand.
    pub(super) name: Option<&'a str>,
    /// Elements of all tensors; of those that are no experts; of one expert each; experts.
    pub(super) parameters: Parameters,
}

/// Elements, as the size label counts them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parameters {
    pub(super) total: u64,
    pub(super) shared: u64,
    pub(super) one_expert: u64,
    pub(super) experts: u64,
}

/// Front matter that is parsed at most.
const MAX_CARD_BYTES: usize = 1 << 20;

/// Front matter of the model's card, `README.md`; empty where there is none that can be read.
pub(super) fn card(files: &ModelFiles) -> Result<Map<String, Json>, Error> {
    let text = files.text("README.md")?.unwrap_or_default();
    let mut lines = text.lines();
    if lines.next() != Some("---") {
        return Ok(Map::new());
    }
    let mut yaml: String = lines.take_while(|line| *line != "---").flat_map(|line| [line, "\n"]).collect();
    if yaml.len() > MAX_CARD_BYTES {
        return Ok(Map::new());
    }
    // YAML's old readers take the code of Norwegian for a refusal.
    yaml = yaml.replace("- no\n", "- \"no\"\n").replace('\t', "  ");
    Ok(serde_saphyr::from_str(&yaml).unwrap_or_default())
}

#[derive(Default)]
struct Guess {
    name: Option<String>,
    organization: Option<String>,
    basename: Option<String>,
    finetune: Option<String>,
    version: Option<String>,
    size_label: Option<String>,
}

/// Writes the keys, in the converter's order.
pub(super) fn write(known: &Known<'_>, out: &mut Metadata) {
    sampling(known.generation, out);
    let card = |keys: &[&str]| {
        keys.iter().filter_map(|key| known.card.get(*key)).find(|v| !v.is_null()).and_then(text)
    };
    let total = known.parameters.total;
    let mut guess = Guess {
        name: card(&["name", "model_name"]),
        organization: card(&["organization", "model_organization"]),
        basename: card(&["basename", "model_basename", "model_type"]),
        finetune: card(&["finetune", "model_finetune"]),
        version: card(&["version", "model_version"]),
        size_label: card(&["size_label", "model_size_label"]),
    };
    let in_config = known.config.get("_name_or_path").and_then(Json::as_str);
    for id in in_config.filter(|id| id.matches('/').count() <= 1).into_iter().chain([known.directory]) {
        let found = components(id, total);
        guess.name = guess.name.or_else(|| found.name.as_deref().map(title));
        guess.organization = guess.organization.or_else(|| found.organization.as_deref().map(title));
        guess.basename = guess.basename.or(found.basename);
        guess.finetune = guess.finetune.or(found.finetune);
        guess.version = guess.version.or(found.version);
        guess.size_label = guess.size_label.or(found.size_label);
    }
    let mut put = |key: &str, value: Option<String>| {
        // An empty text is none.
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            out.set(format!("general.{key}"), Value::String(value));
        }
    };
    put(
        "name",
        Some(known.name.map(str::to_string).or(guess.name).unwrap_or_else(|| known.directory.into())),
    );
    put("author", card(&["author", "model_author", "model_creator"]));
    put("version", guess.version);
    put("organization", guess.organization);
    put("finetune", guess.finetune);
    put("basename", guess.basename);
    put("description", card(&["description", "model_description"]));
    put("size_label", Some(guess.size_label.unwrap_or_else(|| size_label(known.parameters))));
    put(
        "license",
        known.card.get("license").and_then(|license| match license {
            Json::Array(many) => Some(many.iter().filter_map(text).collect::<Vec<_>>().join(",")),
            one => text(one),
        }),
    );
    put("license.name", card(&["license_name"]));
    put("license.link", card(&["license_link"]));
    put("source.url", card(&["url", "model_url"]));
    put("source.doi", card(&["doi", "model_doi"]));
    put("source.uuid", card(&["uuid", "model_uuid"]));
    put("source.repo_url", card(&["repo_url", "model_repo_url"]));
    for (keys, prefix) in [
        (["base_model", "base_models", "base_model_sources"], "general.base_model"),
        (["datasets", "dataset", "dataset_sources"], "general.dataset"),
    ] {
        let Some(list) = keys.iter().find_map(|key| known.card.get(*key)) else { continue };
        let list = match list {
            Json::Array(list) => list.as_slice(),
            Json::String(_) => std::slice::from_ref(list),
            _ => &[],
        };
        out.set(format!("{prefix}.count"), Value::U32(list.len() as u32));
        for (number, one) in list.iter().enumerate() {
            let fields = match one {
                Json::String(id) => origin(id, total),
                told => FIELDS
                    .iter()
                    .filter_map(|field| Some((*field, told.get(*field)?.as_str()?.into())))
                    .collect(),
            };
            for (field, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
                out.set(format!("{prefix}.{number}.{field}"), Value::String(value));
            }
        }
    }
    for (field, keys) in [("tags", ["tags", "pipeline_tag"]), ("languages", ["languages", "language"])] {
        let all: Vec<String> = keys.iter().filter_map(|key| known.card.get(*key)).flat_map(texts).collect();
        if !all.is_empty() {
            out.set(format!("general.{field}"), Value::Strings(all));
        }
    }
}

/// How the model's makers would have it sampled.
fn sampling(generation: &Map<String, Json>, out: &mut Metadata) {
    type Read = fn(&Json) -> Option<Value>;
    let whole: Read = |value| value.as_i64().and_then(|n| i32::try_from(n).ok()).map(Value::I32);
    let number: Read = |value| value.as_f64().map(|n| Value::F32(n as f32));
    let text: Read =
        |value| value.as_str().filter(|text| !text.is_empty()).map(|text| Value::String(text.into()));
    let fields = [
        ("sequence", "sequence", text),
        ("top_k", "top_k", whole),
        ("top_p", "top_p", number),
        ("min_p", "min_p", number),
        ("xtc_probability", "xtc_probability", number),
        ("xtc_threshold", "xtc_threshold", number),
        ("temp", "temperature", number),
        ("penalty_last_n", "penalty_last_n", whole),
        ("penalty_repeat", "penalty_repeat", number),
        ("mirostat", "mirostat", whole),
        ("mirostat_tau", "mirostat_tau", number),
        ("mirostat_eta", "mirostat_eta", number),
    ];
    for (key, field, value) in fields {
        if let Some(value) = generation.get(field).and_then(value) {
            out.set(format!("general.sampling.{key}"), value);
        }
    }
}

fn text(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn texts(value: &Json) -> Vec<String> {
    match value {
        Json::Array(items) => items.iter().filter_map(text).collect(),
        one => text(one).into_iter().collect(),
    }
}

/// What a card may tell of a model or dataset that it refers to.
const FIELDS: [&str; 9] =
    ["name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url"];

/// Name, version, organization and URL of a model or dataset that a card refers to.
fn origin(id: &str, total: u64) -> Vec<(&'static str, String)> {
    let mut fields = vec![];
    let is_url = ["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme));
    let hub_id = if is_url {
        let rest =
            id.strip_prefix("https://huggingface.co/").or_else(|| id.strip_prefix("http://huggingface.co/"));
        rest.filter(|rest| rest.split('/').count() == 2 && rest.split('/').all(|part| !part.is_empty()))
    } else {
        Some(id)
    };
    let found = hub_id.map(|id| components(id, total)).unwrap_or_default();
    fields.extend(found.name.as_deref().map(|name| ("name", title(name))));
    fields.extend(found.version.clone().map(|version| ("version", version)));
    fields.extend(found.organization.as_deref().map(|organization| ("organization", title(organization))));
    if is_url {
        fields.push(("repo_url", id.to_string()));
    } else if let (Some(organization), Some(name)) = (&found.organization, &found.name) {
        fields.push(("repo_url", format!("https://huggingface.co/{organization}/{name}")));
    }
    fields
}

/// `my-model-v2` as `My Model v2`: words in lower case get a capital, versions and numbers do not.
fn title(text: &str) -> String {
    let is_version = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            || word.strip_prefix('v').is_some_and(|rest| {
                rest.split('.').all(|part| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()))
            })
    };
    let is_lower = |word: &str| word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
    let words = text.trim().replace('-', " ");
    let shown = words
        .split_whitespace()
        .map(|word| if is_lower(word) && !is_version(word) { capitalized(word) } else { word.to_string() });
    shown.collect::<Vec<_>>().join(" ")
}

/// As Python's `str.title`: a capital after everything that is no letter.
fn capitalized(word: &str) -> String {
    let mut out = String::new();
    let mut in_word = false;
    for c in word.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        in_word = c.is_alphabetic();
    }
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Basename,
    SizeLabel,
    Finetune,
    Version,
    Type,
}

#[derive(Default)]
struct Components {
    name: Option<String>,
    organization: Option<String>,
    basename: Option<String>,
    finetune: Option<String>,
    version: Option<String>,
    size_label: Option<String>,
}

/// Takes `org/base-7B-chat-v1` apart.
fn components(id: &str, total: u64) -> Components {
    if id.contains(' ') {
        return Components { name: Some(id.to_string()), ..Components::default() };
    }
    let (organization, full) = match id.split_once('/') {
        Some((organization, name)) => (Some(organization), name),
        None => (None, id),
    };
    let organization = organization.filter(|organization| !organization.starts_with('.'));
    let mut parts: Vec<String> =
        full.split('-').filter(|part| !part.is_empty()).map(str::to_string).collect();
    let mut kinds: Vec<Vec<Part>> = vec![vec![]; parts.len()];
    for i in 0..parts.len() {
        let lower = parts[i].to_lowercase();
        if is_version(&lower) {
            kinds[i].push(Part::Version);
        } else if is_quantization(&lower) {
            kinds[i].push(Part::Type);
            parts[i] = parts[i].to_uppercase();
        } else if i > 0 && is_size(&lower) {
            let (part, is_size) = size(&parts[i], total);
            parts[i] = part;
            kinds[i].push(if is_size { Part::SizeLabel } else { Part::Finetune });
        } else if i > 0 && ["chat", "instruct", "vision", "lora"].contains(&lower.as_str()) {
            kinds[i].push(Part::Finetune);
        }
    }
    let is_size = |kinds: &[Part]| kinds.contains(&Part::SizeLabel);
    let has_number = |part: &str| part.chars().any(|c| c.is_numeric());
    if parts.iter().zip(&kinds).any(|(part, kinds)| is_size(kinds) && has_number(part)) {
        for (part, kinds) in parts.iter().zip(&mut kinds) {
            if part.chars().all(char::is_alphabetic) {
                kinds.retain(|kind| *kind != Part::SizeLabel);
            }
        }
    }
    let mut at_start = true;
    for (part, kinds) in parts.iter().zip(&mut kinds) {
        let begins_alphabetic = part.starts_with(char::is_alphabetic);
        if at_start && ((kinds.is_empty() && begins_alphabetic) || kinds.contains(&Part::Version)) {
            kinds.push(Part::Basename);
        } else {
            at_start = false;
            if kinds.is_empty() {
                kinds.push(Part::Finetune);
            }
        }
    }
    for kinds in kinds.iter_mut().rev() {
        if kinds.contains(&Part::Basename) && kinds.len() > 1 {
            kinds.retain(|kind| *kind != Part::Basename);
        } else {
            break;
        }
    }
    let joined = |wanted: &dyn Fn(&[Part]) -> bool, unique: bool| {
        let mut found: Vec<&str> = vec![];
        for (part, kinds) in parts.iter().zip(&kinds) {
            if wanted(kinds) && !(unique && found.contains(&part.as_str())) {
                found.push(part);
            }
        }
        (!found.is_empty()).then(|| found.join("-"))
    };
    let basename = joined(&|kinds| kinds.contains(&Part::Basename), false);
    let size_label = joined(&is_size, true);
    let finetune = joined(&|kinds| kinds.contains(&Part::Finetune), false);
    let version = joined(&|kinds| kinds.contains(&Part::Version) && !kinds.contains(&Part::Basename), false);
    let ambiguous = size_label.is_none() && finetune.is_none() && version.is_none();
    Components {
        name: Some(full.to_string()),
        organization: organization.map(str::to_string),
        basename: basename.filter(|_| !ambiguous),
        finetune,
        version,
        size_label,
    }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
}

/// `(v|iter)?\d+([.]\d+)*`
fn is_version(part: &str) -> bool {
    let rest = part.strip_prefix("iter").or_else(|| part.strip_prefix('v')).unwrap_or(part);
    rest.split('.').all(digits)
}

/// `i?q\d(_\w)*|b?fp?(16|32)`
fn is_quantization(part: &str) -> bool {
    let float = part.strip_prefix('b').unwrap_or(part);
    if let Some(rest) = float.strip_prefix('f')
        && ["16", "32"].contains(&rest.strip_prefix('p').unwrap_or(rest))
    {
        return true;
    }
    let rest = part.strip_prefix('i').unwrap_or(part);
    let Some(rest) = rest.strip_prefix('q') else { return false };
    let mut chars = rest.chars();
    if !chars.next().is_some_and(|c| c.is_numeric()) {
        return false;
    }
    let rest: Vec<char> = chars.collect();
    rest.chunks(2).all(|pair| matches!(pair, ['_', c] if c.is_alphanumeric() || *c == '_'))
}

/// `(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)`
fn is_size(part: &str) -> bool {
    if ["small", "mini", "medium", "large", "xl", "xxl"].contains(&part) {
        return true;
    }
    let numeric = |part: &str| {
        let part = part
            .strip_suffix(|c: char| c.is_ascii_digit())
            .filter(|rest| rest.ends_with(['k', 'm', 'b', 't']))
            .unwrap_or(part);
        let Some(number) = part.strip_suffix(['k', 'm', 'b', 't']) else { return false };
        match number.split_once(['.', '_']) {
            Some((whole, fraction)) => digits(whole) && digits(fraction),
            None => digits(number),
        }
    };
    let after_times = part.split_once('x').filter(|(n, _)| digits(n)).map(|(_, rest)| rest);
    numeric(part) || part.strip_prefix('a').is_some_and(numeric) || after_times.is_some_and(numeric)
}

/// A size as the label has it, and whether it is one: far from the model's size it is a context length.
fn size(part: &str, total: u64) -> (String, bool) {
    let mut part: Vec<char> = part.replace('_', ".").chars().collect();
    let n = part.len();
    // `7b1` is 7.1B.
    if part[n - 1].is_ascii_digit() && n >= 2 {
        let (unit, fraction) = (part[n - 2], part[n - 1]);
        part.truncate(n - 2);
        part.extend(['.', fraction, unit]);
    }
    let n = part.len();
    if n > 1 && part[n - 2].is_ascii_digit() && "kmbt".contains(part[n - 1]) {
        part[n - 1] = part[n - 1].to_ascii_uppercase();
    }
    let number: String = part[..n - 1].iter().collect();
    let power = match part[n - 1] {
        'K' => 1,
        'M' => 2,
        'B' => 3,
        'T' => 4,
        _ => 0,
    };
    if total > 0
        && power > 0
        && let Ok(number) = number.parse::<f64>()
        && (number * 1000f64.powi(power) - total as f64).abs() > (7 * total / 8) as f64
    {
        part[n - 1] = part[n - 1].to_ascii_lowercase();
        return (part.into_iter().collect(), false);
    }
    (part.into_iter().collect(), true)
}

/// `1.2B`, `8x7B`.
fn size_label(parameters: Parameters) -> String {
    if parameters.experts > 0 {
        format!("{}x{}", parameters.experts, rounded(parameters.shared + parameters.one_expert))
    } else {
        rounded(parameters.total)
    }
}

fn rounded(n: u64) -> String {
    let n = n as f64;
    let (scaled, unit) = match n {
        n if n > 1e12 => (n * 1e-12, "T"),
        n if n > 1e9 => (n * 1e-9, "B"),
        n if n > 1e6 => (n * 1e-6, "M"),
        n => (n * 1e-3, "K"),
    };
    let whole = format!("{}", scaled.round_ties_even());
    let digits = 2usize.saturating_sub(whole.trim_start_matches('0').len());
    format!("{scaled:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart(id: &str, total: u64) -> [Option<String>; 6] {
        let c = components(id, total);
        [c.name, c.organization, c.basename, c.finetune, c.version, c.size_label]
    }

    fn some(texts: [&str; 6]) -> [Option<String>; 6] {
        texts.map(|text| (!text.is_empty()).then(|| text.to_string()))
    }

    /// Cases of `gguf-py/tests/test_metadata.py`.
    #[test]
    fn names_come_apart_as_in_the_converter() {
        for (id, total, expected) in [
            (
                "Mistral/Mixtral-8x7B-Instruct-v0.1",
                0,
                ["Mixtral-8x7B-Instruct-v0.1", "Mistral", "Mixtral", "Instruct", "v0.1", "8x7B"],
            ),
            (
                "Mixtral-8x7B-Instruct-v0.1",
                0,
                ["Mixtral-8x7B-Instruct-v0.1", "", "Mixtral", "Instruct", "v0.1", "8x7B"],
            ),
            ("Mixtral-8x7B-Instruct", 0, ["Mixtral-8x7B-Instruct", "", "Mixtral", "Instruct", "", "8x7B"]),
            ("Mixtral", 0, ["Mixtral", "", "", "", "", ""]),
            ("Mixtral-v0.1", 0, ["Mixtral-v0.1", "", "Mixtral", "", "v0.1", ""]),
            (
                "hermes-2-pro-llama-3-8b-DPO",
                0,
                ["hermes-2-pro-llama-3-8b-DPO", "", "hermes-2-pro-llama-3", "DPO", "", "8B"],
            ),
            (
                "NousResearch/Meta-Llama-3-8B",
                0,
                ["Meta-Llama-3-8B", "NousResearch", "Meta-Llama-3", "", "", "8B"],
            ),
            (
                "Qwen1.5-MoE-A2.7B-Chat",
                14_315_784_192,
                ["Qwen1.5-MoE-A2.7B-Chat", "", "Qwen1.5-MoE", "Chat", "", "A2.7B"],
            ),
            (
                "microsoft/Phi-3-mini-4k-instruct",
                4_000_000_000,
                ["Phi-3-mini-4k-instruct", "microsoft", "Phi-3", "4k-instruct", "", "mini"],
            ),
            ("kjv-lora", 2_164_480, ["kjv-lora", "", "kjv", "lora", "", ""]),
            (
                "bigscience/bloom-7b1-petals",
                7_100_000_000,
                ["bloom-7b1-petals", "bigscience", "bloom", "petals", "", "7.1B"],
            ),
        ] {
            assert_eq!(apart(id, total), some(expected), "{id}");
        }
    }

    #[test]
    fn titles_and_sizes() {
        assert_eq!(title("kjv-lora"), "Kjv Lora");
        assert_eq!(title("Mixtral-8x7B-instruct-v0.1"), "Mixtral 8x7B Instruct v0.1");
        assert_eq!(
            [rounded(2_164_480), rounded(1_235_814_400), rounded(70_553_706_496), rounded(900)],
            ["2.2M", "1.2B", "71B", "0.9K"]
        );
        assert_eq!(
            size_label(Parameters {
                total: 46,
                shared: 1_600_000_000,
                one_expert: 5_600_000_000,
                experts: 8
            }),
            "8x7.2B"
        );
    }
}
