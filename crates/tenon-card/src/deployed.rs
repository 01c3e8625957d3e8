//! What became of a model since: where it is live, and what quantizing cost it there.

use serde::{Deserialize, Serialize};

use crate::Card;
use crate::document::{Block, Inline, Line, code, text};
use crate::{chart, figures};

/// A Live Model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployed {
    /// The Deployment Environment.
    pub environment: String,
    /// Name of the model there.
    pub model: String,
    /// Kind of server.
    pub kind: String,
    /// When it went live, RFC 3339.
    pub created: String,
    /// What it was quantized to.
    pub quantization: String,
    /// Bytes of the files that it was made of.
    pub bytes: u64,
    /// What that cost, where Tenon quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<Quantized>,
}

/// What quantizing cost, measured while it was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantized {
    /// Bits of the file for each element of all tensors.
    pub bits_per_weight: f64,
    /// Tensors that were quantized.
    pub tensors: u64,
    /// Their elements among all.
    pub share_quantized: f64,
    /// `‖decoded - x‖ / ‖x‖` over all of these.
    pub relative_error: f64,
    /// Mean over the tensors of each one's relative error.
    pub mean_relative_error: f64,
    /// Signal to noise over all in decibels; none where nothing was lost.
    #[serde(default)]
    pub signal_to_noise: Option<f64>,
    /// Rows with what is no finite number, which the other figures leave out.
    #[serde(default)]
    pub infinite_rows: u64,
    /// By element type.
    pub types: Vec<Loss>,
    /// By layer.
    pub layers: Vec<Loss>,
    /// The tensors that lost most.
    pub worst: Vec<TensorLoss>,
}

/// What some tensors lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Element type, or number of the layer.
    pub name: String,
    /// Tensors in it.
    pub tensors: u64,
    /// Their elements.
    pub elements: u64,
    /// Over all of these.
    pub relative_error: f64,
}

/// What a tensor lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorLoss {
    /// Its name in the file.
    pub name: String,
    /// Its element type there.
    pub element_type: String,
    /// `‖decoded - x‖ / ‖x‖`.
    pub relative_error: f64,
    /// The same in decibels; none where nothing was lost.
    #[serde(default)]
    pub signal_to_noise: Option<f64>,
    /// The largest `|decoded - x|`.
    pub largest_error: f64,
}

impl Card {
    /// Where the model is live. Nothing where it is not.
    pub(crate) fn deployed_section(&self, blocks: &mut Vec<Block>) {
        if !self.deployed.is_empty() {
            Block::deployed(&self.deployed, blocks);
        }
    }
}

impl Block {
    fn deployed(all: &[Deployed], blocks: &mut Vec<Block>) {
        blocks.push(Block::Heading(2, "Live Models".into()));
        let row = |live: &Deployed| -> Vec<Line> {
            let quantized = live.quantized.as_ref();
            let figure = |figure: Option<String>| vec![text(figure.unwrap_or_default())];
            vec![
                vec![text(&live.environment)],
                vec![code(&live.model)],
                vec![text(&live.quantization)],
                vec![text(figures::bytes(live.bytes))],
                figure(quantized.map(|quantized| format!("{:.2}", quantized.bits_per_weight))),
                figure(quantized.map(|quantized| figures::percent(quantized.relative_error))),
                vec![text(live.created.split('T').next().unwrap_or_default())],
            ]
        };
        let head = [
            "Environment",
            "Model there",
            "Quantization",
            " Size",
            " Bits per weight",
            " Relative error",
            "Since",
        ];
        blocks.push(Block::Table {
            head: head.map(str::to_string).to_vec(),
            rows: all.iter().map(row).collect(),
        });
        let mut told: Vec<(&str, &Quantized)> = vec![];
        for live in all {
            let Some(quantized) = &live.quantized else { continue };
            // The same file in several environments is told of once.
            if !told.contains(&(&live.quantization, quantized)) {
                told.push((&live.quantization, quantized));
                quantized.section(&live.quantization, told.len() == 1, blocks);
            }
        }
    }
}

impl Quantized {
    fn section(&self, quantization: &str, is_first: bool, blocks: &mut Vec<Block>) {
        blocks.push(Block::Heading(3, format!("What {quantization} cost")));
        if is_first {
            blocks.push(Block::Paragraph(vec![text(
                "Measured on every element while quantizing. A relative error is the norm of what the numbers in \
                 the file differ from the weights, divided by the norm of the weights.",
            )]));
        }
        let decibels = |snr: Option<f64>| snr.map_or("nothing lost".into(), |db| format!("{db:.1} dB"));
        let share = figures::percent(self.share_quantized);
        let mut rows: Vec<(&str, String)> = vec![
            ("Bits per weight", format!("{:.2}", self.bits_per_weight)),
            ("Tensors quantized", format!("{} ({share} of the elements)", self.tensors)),
            ("Relative error", figures::percent(self.relative_error)),
            ("Signal to noise", decibels(self.signal_to_noise)),
            ("Mean relative error of the tensors", figures::percent(self.mean_relative_error)),
        ];
        for loss in &self.types {
            let tensors = if loss.tensors == 1 { "tensor" } else { "tensors" };
            let error = figures::percent(loss.relative_error);
            rows.push((&loss.name, format!("{} {tensors}, relative error {error}", loss.tensors)));
        }
        if self.infinite_rows > 0 {
            rows.push(("Rows with no finite number, left out", self.infinite_rows.to_string()));
        }
        let rows = rows.into_iter().map(|(name, value)| vec![vec![text(name)], vec![text(value)]]);
        blocks.push(Block::Table { head: vec![String::new(), String::new()], rows: rows.collect() });
        if self.layers.len() > 1 {
            let bars: Vec<_> =
                self.layers.iter().map(|loss| (loss.name.as_str(), loss.relative_error)).collect();
            let title = format!("Relative error of {quantization}, by layer");
            let svg = chart::bars(&title, &bars);
            blocks.push(Block::Figure { file: None, alt: title, svg });
        }
        let row = |tensor: &TensorLoss| -> Vec<Line> {
            vec![
                vec![code(&tensor.name)],
                vec![text(&tensor.element_type)],
                vec![text(figures::percent(tensor.relative_error))],
                vec![text(decibels(tensor.signal_to_noise))],
                vec![text(figures::number(tensor.largest_error))],
            ]
        };
        blocks.push(Block::Paragraph(vec![Inline::Strong("The tensors that lost most:".into())]));
        let head = ["Tensor", "Type", " Relative error", " Signal to noise", " Largest error"];
        blocks.push(Block::Table {
            head: head.map(str::to_string).to_vec(),
            rows: self.worst.iter().map(row).collect(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{html_blocks, markdown};

    #[test]
    fn names_stay_text_and_the_same_file_is_told_of_once() {
        let loss =
            |name: &str, relative_error| Loss { name: name.into(), tensors: 1, elements: 10, relative_error };
        let quantized = Quantized {
            bits_per_weight: 4.939,
            tensors: 2,
            share_quantized: 0.5,
            relative_error: 0.05,
            mean_relative_error: 0.04,
            signal_to_noise: Some(26.02),
            infinite_rows: 1,
            types: vec![loss("Q4_K", 0.05)],
            layers: vec![loss("0", 0.05), loss("1", 0.025)],
            worst: vec![TensorLoss {
                name: "blk.0.<b>|".into(),
                element_type: "Q8_0".into(),
                relative_error: 0.0,
                signal_to_noise: None,
                largest_error: 0.0,
            }],
        };
        let live = |environment: &str, quantized: Option<Quantized>| Deployed {
            environment: environment.into(),
            model: "m<script>:latest".into(),
            kind: "ollama".into(),
            created: "2026-03-09T12:00:00Z".into(),
            quantization: if quantized.is_some() { "q4_K_M" } else { "no_quantization" }.into(),
            bytes: 1_340_000,
            quantized,
        };
        let all = [live("one", Some(quantized.clone())), live("two", Some(quantized)), live("three", None)];
        let mut blocks = vec![];
        Block::deployed(&all, &mut blocks);
        let text = markdown(&blocks);
        assert!(
            text.contains("| one | `m<script>:latest` | q4_K_M | 1.34 MB | 4.94 | 5.00 % | 2026-03-09 |")
        );
        assert!(
            text.contains("| three | `m<script>:latest` | no_quantization | 1.34 MB |  |  | 2026-03-09 |")
        );
        assert_eq!(text.matches("### What q4_K_M cost").count(), 1, "{text}");
        assert!(text.contains("| `blk.0.<b>\\|` | Q8_0 | 0 % | nothing lost | 0 |"), "{text}");
        assert!(!text.contains("!["), "there is no file to show: {text}");
        let page = html_blocks(&blocks);
        assert!(!page.contains("<script>") && !page.contains("<b>"));
        assert_eq!(page.matches("<rect").count(), 2);
    }
}
