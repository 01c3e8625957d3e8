//! What a training left beside its adapter, read for the Model Card.
//!
//! PEFT, TRL, Axolotl, LLaMA-Factory, Unsloth and transformers' `Trainer` each
//! leave some of: a card, `trainer_state.json`, results, arguments as JSON or
//! YAML. All of it is optional, none of it is trusted: a file that cannot be
//! read is passed over with a note, and `training_args.bin` is never opened.

use std::path::Path;

use serde_json::{Map, Value};
use tenon_card::{Group, LossPoint, Metric, Setting, Training, front_matter, parse_yaml};
use tenon_checkpoint::{read_json, read_text};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) training: Training,
    /// Front matter of the adapter's card.
    pub(crate) card: Map<String, Value>,
    /// Versions of the tools.
    pub(crate) versions: Vec<Setting>,
    /// Files that could not be read, and why.
    pub(crate) notes: Vec<String>,
}

/// Reads what lies beside the adapter.
pub(crate) fn read(dir: &Path) -> Found {
    let mut found = Found::default();
    found.read_card(dir);
    found.read_state(dir);
    found.read_results(dir);
    found.read_arguments(dir);
    found
}

/// The front matter of a card; empty where there is none that can be read.
pub(crate) fn card_metadata(dir: &Path) -> Map<String, Value> {
    let text = read_text(&dir.join("README.md")).unwrap_or_default();
    match front_matter(&text) {
        Ok((Value::Object(metadata), _)) => metadata,
        _ => Map::new(),
    }
}

/// A field of a card that is a string or a list of strings.
pub(crate) fn texts(metadata: &Map<String, Value>, field: &str) -> Vec<String> {
    match metadata.get(field) {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(|v| v.as_str().map(str::to_string)).collect(),
        // `language: no` is Norwegian to its author and false to YAML 1.1.
        Some(Value::Bool(false)) if field == "language" => vec!["no".into()],
        _ => vec![],
    }
}

/// Most entries shown of one file.
const MAX_ENTRIES: usize = 60;
/// Most points shown of a loss curve.
const MAX_POINTS: usize = 12;

impl Found {
    fn note(&mut self, file: &str, error: impl std::fmt::Display) {
        self.notes.push(format!("{file} of the adapter could not be read: {error}"));
    }

    fn dataset(&mut self, name: &str) {
        let name = name.trim();
        if !name.is_empty() && !self.training.datasets.iter().any(|known| known == name) {
            self.training.datasets.push(name.to_string());
        }
    }

    fn metric(&mut self, name: &str, value: f64, source: &str) {
        let name = name.trim().to_lowercase().replace(' ', "_");
        let is_about_time = ["runtime", "samples", "steps", "per_second", "tokens", "flos"]
            .iter()
            .any(|part| name.contains(part));
        let known = self.training.metrics.iter().any(|metric| metric.name == name);
        if !is_about_time && !known && value.is_finite() {
            self.training.metrics.push(Metric { name, value, source: source.into() });
        }
    }

    fn group(&mut self, title: &str, source: &str, entries: impl IntoIterator<Item = (String, Value)>) {
        let shown = |(name, value): &(String, Value)| {
            let empty = match value {
                Value::Null => true,
                Value::String(text) => text.is_empty() || text.contains("More Information Needed"),
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty(),
                _ => false,
            };
            !empty && !is_secret(name)
        };
        let entries: Vec<_> = entries
            .into_iter()
            .filter(shown)
            .take(MAX_ENTRIES)
            .map(|(name, value)| Setting { name, value })
            .collect();
        if !entries.is_empty() {
            self.training.groups.push(Group { title: title.into(), source: source.into(), entries });
        }
    }

    fn read_card(&mut self, dir: &Path) {
        const FILE: &str = "README.md";
        let path = dir.join(FILE);
        if !path.exists() {
            return;
        }
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(error) => return self.note(FILE, error),
        };
        let body = match front_matter(&text) {
            Ok((metadata, body)) => {
                self.card = metadata.as_object().cloned().unwrap_or_default();
                body
            }
            Err(error) => {
                self.note(FILE, format!("its front matter is no YAML: {error}"));
                return;
            }
        };
        for dataset in texts(&self.card, "datasets") {
            self.dataset(&dataset);
        }
        for section in sections(body) {
            let heading = section.heading.to_lowercase();
            let items = || section.items().map(|(name, value)| (name.to_string(), number_or_text(value)));
            if heading.contains("hyperparameters") {
                self.group("Hyper-parameters", FILE, items());
            } else if heading.contains("framework versions") {
                self.versions.extend(section.versions());
            } else if heading.contains("training results") {
                self.results_table(&section.lines, FILE);
            }
            if section.lines.iter().any(|line| line.contains("following results on the evaluation set")) {
                for (name, value) in section.items() {
                    if let Ok(value) = value.parse() {
                        self.metric(name, value, FILE);
                    }
                }
            }
            // TRL: "This model was trained with SFT."
            let procedure = section
                .lines
                .iter()
                .find_map(|line| line.trim().strip_prefix("This model was trained with "));
            if let Some(procedure) = procedure {
                let procedure = procedure.split([',', '.']).next().unwrap_or_default().to_string();
                self.group("Procedure", FILE, [("Trained with".to_string(), Value::String(procedure))]);
            }
        }
        // Axolotl keeps its configuration in the card, folded away.
        if let Some((_, after)) = body.split_once("See axolotl config")
            && let Some((_, after)) = after.split_once("```yaml")
            && let Some((yaml, _)) = after.split_once("```")
        {
            match parse_yaml(yaml) {
                Ok(Value::Object(config)) => self.configuration(config, "README.md (axolotl config)"),
                Ok(_) => {}
                Err(error) => self.note("the axolotl config in README.md", error),
            }
        }
    }

    /// The table that `Trainer` puts into a card: losses by step, and the last evaluation.
    fn results_table(&mut self, lines: &[&str], source: &str) {
        let cells = |line: &str| -> Vec<String> {
            line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
        };
        let mut rows = lines.iter().filter(|line| line.trim().starts_with('|'));
        let Some(head) = rows.next().map(|line| cells(line)) else { return };
        let rows: Vec<_> = rows.map(|line| cells(line)).filter(|row| row.len() == head.len()).collect();
        let column = |name: &str| head.iter().position(|cell| cell.eq_ignore_ascii_case(name));
        if let (Some(step), Some(loss)) = (column("Step"), column("Training Loss")) {
            let points = rows.iter().filter_map(|row| {
                Some(LossPoint { step: row[step].parse().ok()?, loss: row[loss].parse().ok()? })
            });
            self.training.losses = thinned(points.collect());
        }
        let Some(last) = rows.last() else { return };
        for (name, value) in head.iter().zip(last) {
            let is_metric = !["training loss", "epoch", "step"].contains(&name.to_lowercase().as_str());
            if let (true, Ok(value)) = (is_metric, value.parse()) {
                let name = if name.eq_ignore_ascii_case("validation loss") { "loss" } else { name };
                self.metric(name, value, source);
            }
        }
    }

    fn read_state(&mut self, dir: &Path) {
        const FILE: &str = "trainer_state.json";
        let Some(state) = self.read_object(dir, FILE) else { return };
        let fields = [
            "global_step",
            "max_steps",
            "epoch",
            "num_train_epochs",
            "train_batch_size",
            "num_input_tokens_seen",
            "total_flos",
            "best_metric",
            "best_global_step",
        ];
        let entries = fields.iter().filter_map(|field| Some((field.to_string(), state.get(*field)?.clone())));
        self.group("Progress", FILE, entries);
        let history =
            state.get("log_history").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let points = history.iter().filter_map(|entry| {
            Some(LossPoint { step: entry.get("step")?.as_f64()?, loss: entry.get("loss")?.as_f64()? })
        });
        let points: Vec<_> = points.collect();
        if !points.is_empty() {
            self.training.losses = thinned(points);
        }
        for entry in history.iter().rev().filter_map(Value::as_object) {
            for (name, value) in entry {
                if let (Some(name), Some(value)) = (name.strip_prefix("eval_"), value.as_f64()) {
                    self.metric(name, value, FILE);
                }
            }
        }
    }

    fn read_results(&mut self, dir: &Path) {
        let all = self.read_object(dir, "all_results.json");
        let files = if all.is_some() {
            vec!["all_results.json"]
        } else {
            vec!["train_results.json", "eval_results.json"]
        };
        let mut all = all;
        for file in files {
            let Some(results) = all.take().or_else(|| self.read_object(dir, file)) else { continue };
            for (name, value) in &results {
                if let (Some(name), Some(value)) = (name.strip_prefix("eval_"), value.as_f64()) {
                    self.metric(name, value, file);
                }
            }
            self.group("Results", file, results);
        }
    }

    fn read_arguments(&mut self, dir: &Path) {
        if let Some(arguments) = self.read_object(dir, "training_args.json") {
            self.group("Arguments", "training_args.json", arguments);
        }
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        let mut names: Vec<_> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        for name in names.iter().filter(|name| name.ends_with(".yaml") || name.ends_with(".yml")) {
            let parsed = read_text(&dir.join(name)).map_err(|e| e.to_string());
            match parsed.and_then(|text| parse_yaml(&text).map_err(|e| e.to_string())) {
                Ok(Value::Object(config)) => self.configuration(config, name),
                Ok(_) => {}
                Err(error) => self.note(name, error),
            }
        }
    }

    /// A configuration of Axolotl or LLaMA-Factory: both say which datasets they used.
    fn configuration(&mut self, config: Map<String, Value>, source: &str) {
        let title = if config.contains_key("finetuning_type") || config.contains_key("dataset_dir") {
            if let Some(names) = config.get("dataset").and_then(Value::as_str) {
                names.split(',').for_each(|name| self.dataset(name));
            }
            "LLaMA-Factory configuration"
        } else if config.contains_key("base_model")
            && (config.contains_key("datasets") || config.contains_key("adapter"))
        {
            for dataset in config.get("datasets").and_then(Value::as_array).into_iter().flatten() {
                if let Some(path) = dataset.get("path").and_then(Value::as_str) {
                    self.dataset(path);
                }
            }
            "Axolotl configuration"
        } else {
            "Configuration"
        };
        self.group(title, source, config);
    }

    fn read_object(&mut self, dir: &Path, file: &str) -> Option<Map<String, Value>> {
        let path = dir.join(file);
        if !path.exists() {
            return None;
        }
        match read_json(&path) {
            Ok(Value::Object(object)) => Some(object),
            Ok(_) => {
                self.note(file, "it is no JSON object");
                None
            }
            Err(error) => {
                self.note(file, error);
                None
            }
        }
    }
}

/// Whether a setting may hold what must not be on a card.
fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    ["token", "api_key", "apikey", "password", "secret", "credential"].iter().any(|word| {
        name == *word || name.ends_with(&format!("_{word}")) || name.starts_with(&format!("{word}_key"))
    })
}

fn number_or_text(text: &str) -> Value {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => {
            text.parse::<i64>().map_or_else(|_| Value::from(number), Value::from)
        }
        _ => Value::String(text.to_string()),
    }
}

/// First, last, and evenly spread points between.
fn thinned(points: Vec<LossPoint>) -> Vec<LossPoint> {
    let n = points.len();
    if n <= MAX_POINTS {
        return points;
    }
    (0..MAX_POINTS).map(|i| points[i * (n - 1) / (MAX_POINTS - 1)]).collect()
}

/// A heading of a card and the lines below it.
struct Section<'a> {
    heading: &'a str,
    lines: Vec<&'a str>,
}

fn sections(body: &str) -> Vec<Section<'_>> {
    let mut sections = vec![Section { heading: "", lines: vec![] }];
    for line in body.lines() {
        match line.strip_prefix('#') {
            Some(rest) => {
                sections.push(Section { heading: rest.trim_start_matches('#').trim(), lines: vec![] })
            }
            None => sections.last_mut().expect("begins with one").lines.push(line),
        }
    }
    sections
}

impl<'a> Section<'a> {
    /// `- name: value` lines.
    fn items(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.lines.iter().filter_map(|line| {
            let (name, value) = line.trim().strip_prefix("- ")?.split_once(':')?;
            Some((name.trim(), value.trim()))
        })
    }

    /// `- PEFT 0.21.2` and `- TRL: 0.12.0` lines.
    fn versions(&self) -> impl Iterator<Item = Setting> {
        self.lines.iter().filter_map(|line| {
            let line = line.trim().strip_prefix("- ")?;
            let (name, version) = line.split_once(':').or_else(|| line.split_once(' '))?;
            let (name, value) = (name.trim().to_string(), Value::String(version.trim().to_string()));
            Some(Setting { name, value })
        })
    }
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
    fn a_trainers_card_gives_hyper_parameters_results_and_versions() {
        let dir = dir(&[(
            "README.md",
            "---\ndatasets:\n- org/data\nlicense: mit\n---\n# run\n\
             It achieves the following results on the evaluation set:\n- Loss: 1.5\n- Accuracy: 0.75\n\n\
             ### Training hyperparameters\n\nThe following were used:\n- learning_rate: 0.0002\n- seed: 42\n- optimizer: Use adamw\n\n\
             ### Training results\n\n| Training Loss | Epoch | Step | Validation Loss |\n|:---:|:---:|:---:|:---:|\n\
             | 2.0 | 0.5 | 10 | 1.8 |\n| 1.0 | 1.0 | 20 | 1.5 |\n\n### Framework versions\n\n- PEFT 0.21.2\n- TRL: 0.12.0\n",
        )]);
        let found = read(dir.path());
        assert_eq!(found.notes, [""; 0]);
        assert_eq!(found.training.datasets, ["org/data"]);
        let entries: Vec<_> =
            found.training.groups[0].entries.iter().map(|e| format!("{}={}", e.name, e.value)).collect();
        assert_eq!(entries, ["learning_rate=0.0002", "seed=42", "optimizer=\"Use adamw\""]);
        let metrics: Vec<_> = found.training.metrics.iter().map(|m| (m.name.as_str(), m.value)).collect();
        assert_eq!(metrics, [("loss", 1.5), ("accuracy", 0.75)]);
        assert_eq!(
            found.training.losses,
            [LossPoint { step: 10.0, loss: 2.0 }, LossPoint { step: 20.0, loss: 1.0 }]
        );
        let versions: Vec<_> = found.versions.iter().map(|v| format!("{} {}", v.name, v.value)).collect();
        assert_eq!(versions, ["PEFT \"0.21.2\"", "TRL \"0.12.0\""]);
    }

    #[test]
    fn state_results_and_arguments_are_read_and_secrets_left_out() {
        let history: Vec<_> = (1..=100)
            .map(|i| format!("{{\"step\": {i}, \"loss\": {}}}", 5.0 - f64::from(i) / 50.0))
            .collect();
        let state = format!(
            "{{\"global_step\": 100, \"epoch\": 2.0, \"log_history\": [{}, {{\"step\": 100, \"eval_loss\": 1.25, \"eval_runtime\": 3.0}}]}}",
            history.join(",")
        );
        let dir = dir(&[
            ("trainer_state.json", &state),
            ("eval_results.json", "{\"eval_loss\": 1.25, \"eval_f1\": 0.5, \"eval_samples_per_second\": 9}"),
            (
                "training_args.json",
                "{\"learning_rate\": 0.1, \"hub_token\": \"hf_x\", \"wandb_api_key\": \"k\", \"max_new_tokens\": 5}",
            ),
            ("axolotl.yml", "base_model: b\nadapter: lora\ndatasets:\n- path: org/a\n  type: alpaca\n"),
            ("llama.yaml", "finetuning_type: lora\ndataset: x, y\nlora_rank: 8\n"),
            ("broken.yaml", "a: ["),
            ("training_args.bin", "never opened"),
        ]);
        let found = read(dir.path());
        assert_eq!(found.training.losses.len(), MAX_POINTS);
        assert_eq!(found.training.losses[0].step, 1.0);
        assert_eq!(found.training.losses[MAX_POINTS - 1].step, 100.0);
        let metrics: Vec<_> = found.training.metrics.iter().map(|m| (m.name.as_str(), m.value)).collect();
        assert_eq!(metrics, [("loss", 1.25), ("f1", 0.5)]);
        let text = format!("{:?}", found.training);
        assert!(!text.contains("hf_x") && !text.contains("wandb") && text.contains("max_new_tokens"));
        assert_eq!(found.training.datasets, ["org/a", "x", "y"]);
        let titles: Vec<_> = found.training.groups.iter().map(|group| group.title.as_str()).collect();
        assert_eq!(
            titles,
            ["Progress", "Results", "Arguments", "Axolotl configuration", "LLaMA-Factory configuration"]
        );
        assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
    }

    #[test]
    fn the_card_that_peft_leaves_empty_says_nothing() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/kjv-llama/adapter-lora");
        let found = read(Path::new(fixture));
        assert_eq!(found.notes, [""; 0]);
        let titles: Vec<_> = found.training.groups.iter().map(|group| group.title.as_str()).collect();
        assert_eq!(titles, ["Results"]);
        assert!(!format!("{:?}", found.training).contains("More Information"));
    }
}
