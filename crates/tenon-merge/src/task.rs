//! Adapters that make another kind of model of their base: a classifier of a
//! language model, a tagger of a bare encoder.
//!
//! `task_type` says so. The output's `architectures` and labels follow, the
//! head of the base's own task goes, and where the base was saved bare, its
//! tensors take the prefix under which the task's model holds it: without it
//! transformers would look for the head inside the bare model.

use serde_json::{Map, Value};

use crate::planner::Planner;

/// A task that changes the class of the model.
struct Task {
    task_type: &'static str,
    /// How transformers ends the names of its classes.
    class: &'static str,
    /// Modules that count labels along their first dimension.
    heads: &'static [&'static str],
    /// Modules of other tasks, which the class does not have.
    drops: &'static [&'static str],
}

const TASKS: &[Task] = &[
    Task {
        task_type: "SEQ_CLS",
        class: "ForSequenceClassification",
        heads: &["score", "classifier"],
        drops: &["lm_head", "cls", "embed_out"],
    },
    Task {
        task_type: "TOKEN_CLS",
        class: "ForTokenClassification",
        heads: &["score", "classifier"],
        drops: &["lm_head", "cls", "embed_out", "pooler"],
    },
    Task {
        task_type: "QUESTION_ANS",
        class: "ForQuestionAnswering",
        heads: &["qa_outputs"],
        drops: &["lm_head", "cls", "embed_out", "pooler"],
    },
];

/// Ends of class names that a task's end takes the place of.
const ENDS: [&str; 6] =
    ["LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration", "Model"];

impl Planner<'_> {
    /// Makes the model that the adapter's task asks for, if the adapter brings its head.
    pub(crate) fn settle_task(&mut self) {
        let task_type = self.adapter.config().text("task_type").ok().flatten();
        let Some(task) = TASKS.iter().find(|task| Some(task.task_type) == task_type) else {
            self.settle_trained_class();
            self.settle_prefix();
            return;
        };
        let head = self.slots.iter().position(|slot| {
            slot.new && slot.info.name.split('.').next().is_some_and(|first| task.heads.contains(&first))
        });
        let Some(head) = head else { return };
        let labels = self.slots.iter().rev().find(|slot| {
            let first = slot.info.name.split('.').next().unwrap_or_default();
            slot.new && task.heads.contains(&first) && slot.info.name.ends_with(".weight")
        });
        let labels = labels.unwrap_or(&self.slots[head]).info.shape.first().copied().unwrap_or(0);
        self.settle_class(task);
        if task.task_type != "QUESTION_ANS" {
            self.settle_labels(labels);
        }
        let dropped = |name: &str| {
            let parts: Vec<&str> = name.split('.').collect();
            parts[0] == "lm_head" || task.drops.contains(&parts[0])
        };
        let gone: Vec<_> = self.slots.iter().filter(|s| !s.new && dropped(&s.info.name)).collect();
        if let [first, ..] = gone[..] {
            let note = format!(
                "{} belongs to another task than the adapter's ({}): left out",
                first.info.name, task.task_type
            );
            self.notes.push(note);
        }
        self.slots.retain(|slot| slot.new || !dropped(&slot.info.name));
        self.settle_prefix();
    }

    fn settle_class(&mut self, task: &Task) {
        let class = self.config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
        let Some(stem) = ENDS.iter().find_map(|end| class.strip_suffix(end)) else { return };
        let class = format!("{stem}{}", task.class);
        self.notes.push(format!("the adapter's task makes the model a {class}"));
        self.set_config("architectures", vec![class].into());
    }

    /// A base that was saved bare (`GPT2Model`) says nothing of what its adapter was trained in
    /// (`GPT2LMHeadModel`); the adapter does, and a serving tool needs to know.
    fn settle_trained_class(&mut self) {
        let class = self.config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
        let Some(stem) = class.strip_suffix("Model").filter(|stem| !stem.ends_with("LMHead")) else { return };
        let trained = self.adapter.config().value("auto_mapping").and_then(|m| m.get("base_model_class"));
        let Some(trained) = trained.and_then(Value::as_str).filter(|t| t.starts_with(stem) && *t != class)
        else {
            return;
        };
        if trained.bytes().all(|b| b.is_ascii_alphanumeric()) {
            let trained = trained.to_string();
            self.notes
                .push(format!("the base was saved as a bare {class}, the adapter trained in a {trained}"));
            self.set_config("architectures", vec![trained].into());
        }
    }

    fn settle_labels(&mut self, labels: u64) {
        let known = self.config.get("id2label").and_then(Value::as_object).map(Map::len);
        // transformers leaves two labels unsaid, its default; and a model has no million labels.
        if known == usize::try_from(labels).ok() || known.is_none() && labels == 2 || labels > 1_000_000 {
            return;
        }
        let label = |i: u64| format!("LABEL_{i}");
        let id2label: Map<_, _> = (0..labels).map(|i| (i.to_string(), label(i).into())).collect();
        let label2id: Map<_, _> = (0..labels).map(|i| (label(i), i.into())).collect();
        self.set_config("id2label", id2label.into());
        self.set_config("label2id", label2id.into());
    }

    /// Puts a bare base's tensors under the prefix by which the adapter names them, where a new head
    /// stands beside it.
    fn settle_prefix(&mut self) {
        let Some(prefix) = self.prefix.take() else { return };
        if !self.slots.iter().any(|slot| slot.new) {
            return;
        }
        for slot in self.slots.iter_mut().filter(|slot| !slot.new) {
            slot.info.name = format!("{prefix}{}", slot.info.name);
        }
        self.notes.push(format!(
            "the base was saved bare; its tensors are now under {:?}, beside the adapter's head",
            prefix.trim_end_matches('.')
        ));
    }
}
