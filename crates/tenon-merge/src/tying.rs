//! Input and output embeddings that are one tensor (`tie_word_embeddings`), and adapters that part them.
//!
//! A tied checkpoint stores the embedding alone; PEFT saves the head beside it
//! nevertheless, whenever it saves embeddings at all. That head is the
//! embedding again, unless training gave one of the two a copy of its own:
//! `modules_to_save` does, except with `ensure_weight_tying`.

use tenon_checkpoint::TensorInfo;

use crate::planner::{Origin, Planner, Slot};

const HEADS: [&str; 3] = ["lm_head", "embed_out", "output"];
const EMBEDDINGS: [&str; 6] =
    ["embed_tokens", "wte", "word_embeddings", "embed_in", "shared", "tok_embeddings"];

/// The last component of the module that a weight belongs to.
fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or_default().rsplit('.').next().unwrap_or_default()
}

/// Whether this names the weight of an output head.
pub(crate) fn is_output_head(name: &str) -> bool {
    HEADS.contains(&module_of(name))
}

impl Planner<'_> {
    /// The input embedding, by the names that architectures give it.
    pub(crate) fn input_embedding(&self) -> Option<usize> {
        self.slots.iter().position(|slot| EMBEDDINGS.contains(&module_of(&slot.info.name)))
    }

    /// The embedding that stands for an output head without a tensor of its own.
    pub(crate) fn tied_to(&self, head: &str) -> Option<usize> {
        (self.is_tied() && is_output_head(head)).then(|| self.input_embedding()).flatten()
    }

    /// Whether training gave embedding or head a copy of its own.
    pub(crate) fn parts_tied(&self) -> bool {
        let config = self.adapter.config();
        let saved = config.texts("modules_to_save").unwrap_or_default();
        let last = |module: &str| module.rsplit('.').next().unwrap_or_default().to_string();
        let names_one = saved.iter().map(|module| last(module));
        let mut names_one = names_one.filter(|m| HEADS.contains(&&**m) || EMBEDDINGS.contains(&&**m));
        names_one.next().is_some() && !config.flag("ensure_weight_tying").unwrap_or(false)
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
        self.slots.iter().position(|slot| {
            module_of(&slot.info.name) == "lm_head" || module_of(&slot.info.name) == "embed_out"
        })
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
