//! Input and output embeddings that are one tensor (`tie_word_embeddings`), and adapters that part them.
//!
//! A tied checkpoint stores the embedding alone; PEFT saves the head beside it
//! nevertheless, whenever it saves embeddings at all. That head is the
//! embedding again, unless training gave one of the two a copy of its own:
//! `modules_to_save` does, except with `ensure_weight_tying`.

use serde_json::Value;
use tenon_checkpoint::TensorInfo;

use crate::planner::{Origin, Planner, Slot};

/// What architectures call the output head, by the end of its path.
const HEADS: [&str; 9] = [
    "lm_head",
    "embed_out",
    "output",
    "output_projection",
    "generator_lm_head",
    "vocab_projector",
    "proj_out",
    "pred_layer.proj",
    "predictions.decoder",
];
/// And the input embedding; those first that mean nothing else.
const EMBEDDINGS: [&str; 11] = [
    "embed_tokens",
    "wte",
    "word_embeddings",
    "embed_in",
    "shared",
    "tok_embeddings",
    "tokens_embed",
    "input_embedding",
    "embeddings",
    "embed",
    "w",
];

/// The module that a weight belongs to.
fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or_default()
}

/// Whether a path is this one or ends with it.
fn ends_with(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// Whether this names the weight of an output head.
pub(crate) fn is_output_head(name: &str) -> bool {
    is_head(module_of(name))
}

fn is_head(module: &str) -> bool {
    // Inside a head of several layers, or the whole model's own: everywhere else a decoder is a stack of layers.
    let decoder = module == "decoder" || module == "lm_head.decoder";
    decoder || HEADS.iter().any(|head| ends_with(module, head))
}

impl Planner<'_> {
    /// The input embedding, by the names that architectures give it.
    pub(crate) fn input_embedding(&self) -> Option<usize> {
        let called = |name: &&str| {
            self.slots
                .iter()
                .position(|slot| slot.info.shape.len() == 2 && ends_with(module_of(&slot.info.name), name))
        };
        EMBEDDINGS.iter().find_map(called)
    }

    /// The embedding that stands for an output head without a tensor of its own, or for the embedding of
    /// one half of an encoder and decoder that share it.
    pub(crate) fn tied_to(&self, weight: &str) -> Option<usize> {
        let of_a_half = || {
            let shared = self.slots.iter().position(|slot| ends_with(module_of(&slot.info.name), "shared"));
            shared.filter(|_| ends_with(module_of(weight), "embed_tokens"))
        };
        if !self.is_tied() {
            return None;
        }
        if is_output_head(weight) { self.input_embedding() } else { of_a_half() }
    }

    /// Whether input and output embeddings are one tensor. A configuration that does not say so leaves it
    /// to its architecture; then they are, if a language model has no output head.
    pub(crate) fn is_tied(&self) -> bool {
        if let Some(said) = self.config_field("tie_word_embeddings").and_then(Value::as_bool) {
            return said;
        }
        let class = self.config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
        let ends = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM"];
        ends.iter().any(|end| class.ends_with(end))
            && !self.base_infos.iter().any(|info| is_output_head(&info.name))
    }

    /// Whether training gave embedding or head a copy of its own.
    pub(crate) fn parts_tied(&self) -> bool {
        let config = self.adapter.config();
        let saved = config.texts("modules_to_save").unwrap_or_default();
        let is_one = |module: &&str| is_head(module) || EMBEDDINGS.iter().any(|name| ends_with(module, name));
        saved.iter().any(is_one) && !config.flag("ensure_weight_tying").unwrap_or(false)
    }

    /// Gives the head the base's embedding, where the adapter replaces the embedding alone.
    pub(crate) fn untie(&mut self) {
        if !self.is_tied() || !self.parts_tied() || self.head().is_some() {
            return;
        }
        let Some(embedding) = self.input_embedding() else { return };
        let Origin::Adapter(_) = self.slots[embedding].origin else { return };
        let name = self.slots[embedding].info.name.clone();
        // Checkpoints of image-text models may hold the whole language model under one name.
        let head = match name.split_once(".model.") {
            Some((front, _)) => format!("{front}.lm_head.weight"),
            None => "lm_head.weight".into(),
        };
        let Some(base) = self.base_infos.iter().position(|info| info.name == name) else { return };
        let stored = self.base_infos[base].clone();
        if stored.shape != self.slots[embedding].info.shape {
            self.notes.push(format!(
                "{name} grew, and the adapter has no head of that size: the grown embedding is the head too"
            ));
            return;
        }
        self.names.insert(&head);
        self.slots.push(Slot {
            stored: stored.dtype,
            info: TensorInfo { name: head, ..stored },
            origin: Origin::Base(base),
            edits: vec![],
            method: Some("untied"),
            new: true,
        });
    }

    fn head(&self) -> Option<usize> {
        let is_head =
            |end: &str| self.slots.iter().position(|slot| ends_with(module_of(&slot.info.name), end));
        is_head("lm_head").or_else(|| is_head("embed_out"))
    }

    /// Keeps `tie_word_embeddings` true to what the output holds.
    pub(crate) fn settle_tying(&mut self) {
        if !self.is_tied() {
            return;
        }
        let Some(embedding) = self.input_embedding() else { return };
        let name = self.slots[embedding].info.name.clone();
        match self.head() {
            Some(head) if self.slots[head].new => {
                self.set_config("tie_word_embeddings", false.into());
                self.notes.push(format!(
                    "the adapter trained a copy of its own of {name} or of the output head: they are no longer tied"
                ));
            }
            None if !self.slots[embedding].edits.is_empty() => self.notes.push(format!(
                "{name} is also the output head (tied): the head changes with it, as when PEFT merges it"
            )),
            _ => {}
        }
    }
}
