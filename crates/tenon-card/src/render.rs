//! From facts to text: what a card says and in which order.

use serde_json::{Map, Value, json};

use crate::card::{Card, FileFacts, Group, Measured, Modality, Move, Setting};
use crate::document::{self, Block, Inline, Line, code, text};
use crate::{chart, figures, yaml};

/// Tags of the base that say what the base is, not what a model made from it is.
const NOT_INHERITED: [&str; 4] = ["base_model:", "region:", "license:", "arxiv:"];

impl Card {
    /// Version of the schema that this version writes.
    pub const SCHEMA: u32 = 1;
    /// Name of the Markdown file.
    pub const MARKDOWN_FILE: &'static str = "README.md";
    /// Name of the file of facts.
    pub const JSON_FILE: &'static str = "card.json";
    /// Name of the picture that the Markdown refers to.
    pub const CHART_FILE: &'static str = "change-by-layer.svg";

    /// The facts as JSON.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("texts, numbers and lists always serialize");
        text.push('\n');
        text
    }

    /// `README.md`: front matter and Markdown.
    pub fn markdown(&self) -> String {
        format!("---\n{}---\n\n{}", yaml::write(&self.metadata()), document::markdown(&self.blocks()))
    }

    /// A page of its own; nothing is loaded from elsewhere.
    pub fn html(&self) -> String {
        document::html(&self.name, &self.blocks())
    }

    /// The card as a part of a page.
    pub fn html_fragment(&self) -> String {
        document::html_blocks(&self.blocks())
    }

    /// The picture of what the merge changed, layer by layer, as SVG; nothing where no layer was.
    pub fn chart(&self) -> Option<String> {
        let measured = self.measured.as_ref().filter(|measured| !measured.layers.is_empty())?;
        let layers: Vec<_> =
            measured.layers.iter().map(|layer| (layer.name.as_str(), layer.relative_delta)).collect();
        Some(chart::bars("Relative change of the weights, by layer", &layers))
    }

    /// The metadata that the Hugging Face Hub reads.
    pub fn metadata(&self) -> Map<String, Value> {
        let mut metadata = Map::new();
        let mut put = |key: &str, value: Value| {
            let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if !empty {
                metadata.insert(key.to_string(), value);
            }
        };
        let base = &self.base;
        let base_id = base.id.as_ref().filter(|id| is_hub_id(id));
        put("base_model", json!(base_id));
        if base_id.is_some() {
            put("base_model_relation", json!("merge"));
        }
        put("license", json!(base.license));
        put("license_name", json!(base.license_name));
        put("license_link", json!(base.license_link));
        match &base.languages[..] {
            [one] => put("language", json!(one)),
            many => put("language", json!(many)),
        }
        put("library_name", json!("transformers"));
        put("pipeline_tag", json!(self.model.pipeline_tag));
        let mut tags = vec!["merge".to_string(), "tenon".to_string(), self.adapter.method.to_lowercase()];
        for tag in &base.tags {
            if !NOT_INHERITED.iter().any(|prefix| tag.starts_with(prefix)) && !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        put("tags", json!(tags));
        let datasets = self.datasets();
        put("datasets", json!(datasets.into_iter().filter(|id| is_hub_id(id)).collect::<Vec<_>>()));
        let metrics: Vec<_> = self
            .training
            .metrics
            .iter()
            .filter(|metric| metric.value.is_finite())
            .map(|metric| json!({ "type": metric.name, "value": metric.value, "name": metric.name }))
            .collect();
        if !metrics.is_empty() {
            let dataset = self.training.datasets.first().map_or("not named by the training", |d| d.as_str());
            put(
                "model-index",
                json!([{ "name": self.name, "results": [{
                    "task": { "type": self.model.pipeline_tag.as_deref().unwrap_or("other") },
                    "dataset": { "name": dataset, "type": dataset },
                    "metrics": metrics,
                }] }]),
            );
        }
        metadata
    }

    fn datasets(&self) -> Vec<&String> {
        let mut all: Vec<&String> = vec![];
        for dataset in self.training.datasets.iter().chain(&self.base.datasets) {
            if !all.contains(&dataset) {
                all.push(dataset);
            }
        }
        all
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks = vec![Block::Heading(1, self.name.clone())];
        self.summary(&mut blocks);
        self.architecture(&mut blocks);
        self.adapter_section(&mut blocks);
        self.training_section(&mut blocks);
        if let Some(measured) = &self.measured {
            self.measured_section(measured, &mut blocks);
        }
        self.deployed_section(&mut blocks);
        self.use_section(&mut blocks);
        self.provenance_section(&mut blocks);
        self.licence_section(&mut blocks);
        blocks
    }

    fn base_link(&self) -> Inline {
        match &self.base.id {
            // Only what has an owner is a place on the Hub.
            Some(id) if id.contains('/') && is_hub_id(id) => {
                Inline::Link { text: id.clone(), url: format!("https://huggingface.co/{id}") }
            }
            Some(id) => code(id),
            None => code(&self.base.name),
        }
    }

    fn summary(&self, blocks: &mut Vec<Block>) {
        let day = self.created.split('T').next().unwrap_or_default();
        blocks.push(Block::Paragraph(vec![
            text("A whole model of "),
            Inline::Strong(format!("{} parameters", figures::count(self.model.parameters))),
            text(": "),
            self.base_link(),
            text(format!(" with the {} adapter ", self.adapter.method)),
            code(&self.adapter.train_name),
            text(format!(
                " merged into it by Tenon {} on {day}. It needs neither of them to run.",
                self.tenon
            )),
        ]));
        for note in &self.notes {
            blocks.push(Block::Paragraph(vec![Inline::Strong("Note:".into()), text(format!(" {note}"))]));
        }
    }

    fn architecture(&self, blocks: &mut Vec<Block>) {
        let model = &self.model;
        blocks.push(Block::Heading(2, "Architecture and size".into()));
        let mut rows: Vec<(String, Line)> = vec![("Architecture".into(), vec![code(&model.architecture)])];
        rows.push((
            "Parameters".into(),
            vec![text(format!(
                "{} ({} in {} tensors)",
                figures::count(model.parameters),
                grouped(model.parameters),
                grouped(model.tensors)
            ))],
        ));
        for size in &model.sizes {
            rows.push((size.name.clone(), vec![text(figures::value(&size.value))]));
        }
        let dtypes: Vec<_> = match &model.dtypes[..] {
            [(one, _)] => vec![one.clone()],
            many => {
                many.iter().map(|(dtype, bytes)| format!("{dtype} ({})", figures::bytes(*bytes))).collect()
            }
        };
        rows.push(("Element type".into(), vec![text(dtypes.join(", "))]));
        let files = if model.shards == 1 { "file" } else { "files" };
        rows.push((
            "Weights".into(),
            vec![text(format!("{} in {} {files}", figures::bytes(model.bytes), model.shards))],
        ));
        let template = if model.chat_template { "comes with the tokenizer" } else { "none" };
        if model.modality == Modality::Generation {
            rows.push(("Chat template".into(), vec![text(template)]));
        }
        blocks.push(facts_table(rows));
    }

    fn adapter_section(&self, blocks: &mut Vec<Block>) {
        let adapter = &self.adapter;
        blocks.push(Block::Heading(2, "Adapter".into()));
        let mut rows: Vec<(String, Line)> = vec![
            ("Customized Model".into(), vec![code(&adapter.name)]),
            ("Method".into(), vec![text(&adapter.method)]),
        ];
        for Setting { name, value } in &adapter.settings {
            rows.push((name.clone(), vec![code(figures::value(value))]));
        }
        rows.push(("Training UUID".into(), vec![code(&adapter.training_id)]));
        blocks.push(facts_table(rows));
    }

    fn training_section(&self, blocks: &mut Vec<Block>) {
        let training = &self.training;
        blocks.push(Block::Heading(2, "Training".into()));
        if training.groups.is_empty() && training.metrics.is_empty() && training.losses.is_empty() {
            blocks.push(Block::Paragraph(vec![text(
                "The adapter came without a record of its training (no trainer_state.json, no results, no filled-in card).",
            )]));
        }
        if !training.datasets.is_empty() {
            let mut line = vec![text("Data: ")];
            for (at, dataset) in training.datasets.iter().enumerate() {
                if at > 0 {
                    line.push(text(", "));
                }
                line.push(code(dataset));
            }
            blocks.push(Block::Paragraph(line));
        }
        for Group { title, source, entries } in &training.groups {
            blocks.push(Block::Heading(3, title.clone()));
            blocks.push(Block::Paragraph(vec![text("From "), code(source), text(":")]));
            let rows = entries.iter().map(|e| (e.name.clone(), vec![text(figures::value(&e.value))]));
            blocks.push(facts_table(rows.collect()));
        }
        if !training.losses.is_empty() {
            blocks.push(Block::Heading(3, "Training loss".into()));
            let row = |point: &crate::LossPoint| {
                vec![vec![text(figures::number(point.step))], vec![text(figures::number(point.loss))]]
            };
            blocks.push(Block::Table {
                head: vec![" Step".into(), " Loss".into()],
                rows: training.losses.iter().map(row).collect(),
            });
        }
        if !training.metrics.is_empty() {
            blocks.push(Block::Heading(3, "Evaluation during training".into()));
            let row = |metric: &crate::Metric| {
                vec![
                    vec![text(&metric.name)],
                    vec![text(figures::number(metric.value))],
                    vec![code(&metric.source)],
                ]
            };
            blocks.push(Block::Table {
                head: vec!["Metric".into(), " Value".into(), "From".into()],
                rows: training.metrics.iter().map(row).collect(),
            });
            blocks.push(Block::Paragraph(vec![text(
                "These were measured with the adapter, before it was merged; Tenon did not measure them again.",
            )]));
        }
    }

    fn measured_section(&self, measured: &Measured, blocks: &mut Vec<Block>) {
        blocks.push(Block::Heading(2, "What the merge changed".into()));
        blocks.push(Block::Paragraph(vec![text(
            "Measured on every element while merging. A relative change is the norm of what the adapter added, \
             divided by the norm of the base's weights.",
        )]));
        let mut rows: Vec<(String, Line)> = vec![
            ("Tensors edited".into(), vec![text(format!("{} of {}", measured.tensors, self.model.tensors))]),
            ("Parameters in tensors touched".into(), vec![text(figures::percent(measured.share_touched))]),
            (
                "Elements of them with a new value".into(),
                vec![text(figures::percent(measured.share_changed))],
            ),
            ("Relative change".into(), vec![text(figures::percent(measured.relative_delta))]),
            ("Largest change of one element".into(), vec![text(figures::number(measured.largest_delta))]),
            (
                "Rounding, relative to the change".into(),
                vec![text(figures::percent(measured.rounding_of_delta))],
            ),
        ];
        if measured.replaced > 0 {
            rows.push(("Tensors replaced whole or added".into(), vec![text(measured.replaced.to_string())]));
        }
        if let Some(rank) = measured.effective_rank {
            rows.push(("Mean effective rank".into(), vec![text(figures::number(rank))]));
        }
        blocks.push(facts_table(rows));
        if let Some(svg) = self.chart() {
            let alt = measured
                .layers
                .iter()
                .max_by(|a, b| a.relative_delta.total_cmp(&b.relative_delta))
                .map(|most| {
                    let change = figures::percent(most.relative_delta);
                    format!("Relative change by layer; layer {} changed most, by {change}", most.name)
                })
                .unwrap_or_default();
            blocks.push(Block::Figure { file: Some(Self::CHART_FILE), alt, svg });
        }
        moves_table("By module", "Module", &measured.modules, blocks);
        moves_table("Tensors that changed most", "Tensor", &measured.most, blocks);
    }

    fn use_section(&self, blocks: &mut Vec<Block>) {
        let name = &self.name;
        blocks.push(Block::Heading(2, "Use".into()));
        blocks.push(Block::Paragraph(vec![
            text("The directory is loaded as it is. "),
            code(format!("tenon path {name}")),
            text(" prints where it lies."),
        ]));
        let mut snippet = |tool: &str, language: &'static str, snippet: String| {
            blocks.push(Block::Paragraph(vec![text(format!("{tool}:"))]));
            blocks.push(Block::Code { language, text: snippet });
        };
        let class = auto_class(&self.model.architecture);
        let prompt = if self.model.modality == Modality::Generation {
            "\nprint(tokenizer.decode(model.generate(**tokenizer(\"Hello\", return_tensors=\"pt\"), max_new_tokens=40)[0]))"
        } else {
            ""
        };
        snippet(
            "transformers",
            "python",
            format!(
                "from transformers import AutoTokenizer, {class}\n\npath = \"{name}\"  # tenon path {name}\n\
                 tokenizer = AutoTokenizer.from_pretrained(path)\n\
                 model = {class}.from_pretrained(path, dtype=\"auto\"){prompt}"
            ),
        );
        if self.model.modality == Modality::Generation {
            snippet("vLLM", "sh", format!("vllm serve \"$(tenon path {name})\" --served-model-name {name}"));
            snippet(
                "Ollama",
                "sh",
                format!(
                    "echo \"FROM $(tenon path {name})\" > Modelfile\nollama create {name} -f Modelfile\nollama run {name}"
                ),
            );
            snippet(
                "llama.cpp",
                "sh",
                format!(
                    "python convert_hf_to_gguf.py \"$(tenon path {name})\" --outfile {name}.gguf\nllama-cli -m {name}.gguf -p Hello"
                ),
            );
        }
    }

    fn provenance_section(&self, blocks: &mut Vec<Block>) {
        let provenance = &self.provenance;
        blocks.push(Block::Heading(2, "Provenance".into()));
        let mut rows: Vec<(String, Line)> = vec![
            ("Saving".into(), vec![code(&provenance.saving)]),
            ("Made".into(), vec![text(&self.created)]),
            ("Merged in".into(), vec![text(figures::seconds(provenance.seconds))]),
            ("Tenon".into(), vec![text(&self.tenon)]),
        ];
        if let Some(revision) = &self.base.revision {
            rows.push(("Revision of the base".into(), vec![code(revision)]));
        }
        for version in &provenance.versions {
            rows.push((version.name.clone(), vec![text(figures::value(&version.value))]));
        }
        blocks.push(facts_table(rows));
        let mut files = vec![];
        for (role, list) in
            [("base", &provenance.base), ("adapter", &provenance.adapter), ("weights", &provenance.weights)]
        {
            for FileFacts { name, bytes, sha256 } in list {
                files.push(vec![
                    vec![text(role)],
                    vec![code(name)],
                    vec![text(figures::bytes(*bytes))],
                    vec![code(sha256)],
                ]);
            }
        }
        let head = ["", "File", " Size", "SHA-256"].map(str::to_string).to_vec();
        blocks.push(Block::Table { head, rows: files });
        blocks.push(Block::Paragraph(vec![text(
            "The same inputs give the same weights, byte for byte. To make them again:",
        )]));
        blocks.push(Block::Code { language: "sh", text: provenance.command.clone() });
        blocks.push(Block::Paragraph(vec![
            code("tenon.json"),
            text(" has the SHA-256 of every file, "),
            code("card.json"),
            text(" the facts of this card. "),
            code(format!("tenon verify {}", self.name)),
            text(" checks them all."),
        ]));
    }

    fn licence_section(&self, blocks: &mut Vec<Block>) {
        let base = &self.base;
        blocks.push(Block::Heading(2, "Licence and limits".into()));
        let licence = base.license_name.as_ref().or(base.license.as_ref());
        let mut line = match licence {
            Some(licence) => vec![text("The base's licence holds for this model too: "), code(licence)],
            None => vec![text(
                "The base's card names no licence. That does not mean that there is none: ask whoever published the base",
            )],
        };
        if let Some(url) = &base.license_link {
            line.extend([text(" ("), Inline::Link { text: url.clone(), url: url.clone() }, text(")")]);
        }
        line.push(text("."));
        if !base.license_files.is_empty() {
            line.push(text(" Its texts are in this directory: "));
            for (at, file) in base.license_files.iter().enumerate() {
                if at > 0 {
                    line.push(text(", "));
                }
                line.push(code(file));
            }
            line.push(text("."));
        }
        blocks.push(Block::Paragraph(line));
        if let Some(licence) = &self.adapter.license {
            blocks.push(Block::Paragraph(vec![
                text("The adapter's card names another: "),
                code(licence),
                text(". Both hold."),
            ]));
        }
        blocks.push(Block::Paragraph(vec![text(
            "What the base cannot do or gets wrong, this model may get wrong as well; what the training \
             taught is only as good as its data. Tenon checked that the files are whole and the arithmetic \
             exact, not that the answers are good.",
        )]));
    }
}

/// Whether the Hub could have something under this name: `name` or `owner/name`. It refuses cards that refer to
/// anything else, such as a path.
fn is_hub_id(id: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.contains("--")
            && !part.contains("..")
            && !part.ends_with(['.', '-'])
    };
    id.len() <= 96 && id.split('/').count() <= 2 && id.split('/').all(part)
}

fn facts_table(rows: Vec<(String, Line)>) -> Block {
    let rows = rows.into_iter().map(|(name, value)| vec![vec![text(name)], value]).collect();
    Block::Table { head: vec![String::new(), String::new()], rows }
}

fn moves_table(title: &str, what: &str, moves: &[Move], blocks: &mut Vec<Block>) {
    if moves.is_empty() {
        return;
    }
    blocks.push(Block::Heading(3, title.into()));
    let ranks = moves.iter().any(|moved| moved.effective_rank.is_some());
    let mut head = vec![what.to_string()];
    let counts = moves.iter().any(|moved| moved.tensors > 1);
    if counts {
        head.push(" Tensors".into());
    }
    head.extend([" Relative change".into(), " Largest change".into()]);
    if ranks {
        head.push(" Effective rank".into());
    }
    let row = |moved: &Move| {
        let mut row: Vec<Line> = vec![vec![code(&moved.name)]];
        if counts {
            row.push(vec![text(moved.tensors.to_string())]);
        }
        row.push(vec![text(figures::percent(moved.relative_delta))]);
        row.push(vec![text(figures::number(moved.largest_delta))]);
        if ranks {
            row.push(vec![text(moved.effective_rank.map(figures::number).unwrap_or_default())]);
        }
        row
    };
    blocks.push(Block::Table { head, rows: moves.iter().map(row).collect() });
}

/// `1,235,814,400`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, c) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// The class of transformers that loads an architecture.
fn auto_class(architecture: &str) -> &'static str {
    let classes = [
        ("ForCausalLM", "AutoModelForCausalLM"),
        ("LMHeadModel", "AutoModelForCausalLM"),
        ("ForSequenceClassification", "AutoModelForSequenceClassification"),
        ("ForTokenClassification", "AutoModelForTokenClassification"),
        ("ForQuestionAnswering", "AutoModelForQuestionAnswering"),
        ("ForMaskedLM", "AutoModelForMaskedLM"),
        ("ForImageClassification", "AutoModelForImageClassification"),
        ("ForSpeechSeq2Seq", "AutoModelForSpeechSeq2Seq"),
        ("WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq"),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("BartForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("ForConditionalGeneration", "AutoModelForImageTextToText"),
    ];
    classes.iter().find(|(ending, _)| architecture.ends_with(ending)).map_or("AutoModel", |(_, class)| class)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::*;

    fn card() -> Card {
        let moved = |name: &str, relative_delta| Move {
            name: name.into(),
            tensors: 1,
            relative_delta,
            largest_delta: 0.25,
            effective_rank: Some(3.5),
        };
        Card {
            schema: 1,
            name: "llama_run_20260309_abcd_s_0123".into(),
            created: "2026-03-09T12:00:00Z".into(),
            tenon: "0.1.0".into(),
            base: BaseFacts {
                name: "llama".into(),
                id: Some("meta-llama/Llama".into()),
                license: Some("other".into()),
                license_name: Some("llama3".into()),
                license_link: Some("https://llama.com/license".into()),
                languages: vec!["en".into()],
                tags: vec!["facebook".into(), "region:us".into()],
                datasets: vec!["org/pretraining".into()],
                ..BaseFacts::default()
            },
            adapter: AdapterFacts {
                name: "llama_run_20260309_abcd".into(),
                train_name: "run".into(),
                training_id: "abcd".into(),
                method: "LoRA".into(),
                license: None,
                settings: vec![Setting { name: "r".into(), value: json!(8) }],
            },
            model: ModelFacts {
                architecture: "LlamaForCausalLM".into(),
                pipeline_tag: Some("text-generation".into()),
                modality: Modality::Generation,
                parameters: 1_235_814_400,
                tensors: 146,
                dtypes: vec![("BF16".into(), 2_471_628_800)],
                bytes: 2_471_645_608,
                shards: 1,
                sizes: vec![Setting { name: "Layers".into(), value: json!(16) }],
                chat_template: true,
            },
            training: Training {
                groups: vec![Group {
                    title: "Results".into(),
                    source: "all_results.json".into(),
                    entries: vec![Setting { name: "train_loss".into(), value: json!(1.0755815505981445) }],
                }],
                datasets: vec!["org/data: \"set\"".into()],
                metrics: vec![Metric {
                    name: "loss".into(),
                    value: 1.25,
                    source: "eval_results.json".into(),
                }],
                losses: vec![LossPoint { step: 10.0, loss: 2.5 }],
            },
            measured: Some(Measured {
                tensors: 112,
                replaced: 0,
                share_touched: 0.787,
                share_changed: 0.5,
                relative_delta: 0.0123,
                rounding_of_delta: 0.08,
                largest_delta: 0.25,
                effective_rank: Some(3.5),
                layers: vec![moved("0", 0.01), moved("1", 0.02)],
                modules: vec![moved("q_proj", 0.01)],
                most: vec![moved("model.layers.1.self_attn.q_proj.weight", 0.02)],
            }),
            provenance: Provenance {
                saving: "0123".into(),
                seconds: 1.5,
                command: "tenon merge --base B --adapter A --out O".into(),
                ..Provenance::default()
            },
            notes: vec!["the head was <img src=x onerror=alert(1)> tied".into()],
            deployed: vec![],
        }
    }

    #[test]
    fn markdown_reads_well() {
        insta::assert_snapshot!(card().markdown());
    }

    #[test]
    fn what_strangers_wrote_is_not_markup() {
        let page = card().html();
        assert!(!page.contains("<img"));
        assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;"));
        assert!(!card().markdown().contains("<img"));
        let (metadata, _) = yaml::front_matter(&card().markdown()).map(|(m, rest)| (m, rest.len())).unwrap();
        assert_eq!(metadata["datasets"], json!(["org/pretraining"]), "the Hub refuses what is no name");
        assert_eq!(metadata, Value::Object(card().metadata()));
    }

    #[test]
    fn facts_come_back_from_json() {
        assert_eq!(serde_json::from_str::<Card>(&card().json()).unwrap(), card());
    }

    #[test]
    fn the_chart_has_a_bar_a_layer() {
        let svg = card().chart().unwrap();
        assert_eq!(svg.matches("<rect").count(), 2);
        let mut without = card();
        without.measured = None;
        assert_eq!(without.chart(), None);
        assert!(!without.markdown().contains(Card::CHART_FILE));
    }
}
