//! A model's own `chat_template`, rendered as transformers does it.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map as JsonMap, Value as Json, json};

use crate::template::Conversation;

/// Steps that a template may take; those of large models take some thousands.
const FUEL: u64 = 5_000_000;

/// A Jinja template that parses.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like.
    specials: JsonMap<String, Json>,
}

impl ChatTemplate {
    pub(crate) fn new(source: &str, specials: JsonMap<String, Json>) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment.add_function("strftime_now", |format: String| strftime(&format));
        environment.add_filter("tojson", tojson);
        // Python's None is not; tools that there are not are None.
        environment.add_test("iterable", |value: &Value| {
            use ValueKind::{Iterable, Map, Seq, String, Undefined};
            matches!(value.kind(), Iterable | Map | Seq | String | Undefined)
        });
        environment
            .add_template_owned("chat_template", without_generation_tags(source))
            .map_err(|error| error.to_string())?;
        Ok(Self { environment, specials })
    }

    /// The prompt for a conversation; with `generation` it ends where the assistant begins.
    pub(crate) fn render(&self, conversation: &Conversation, generation: bool) -> Result<String, String> {
        let messages: Vec<Json> = conversation.messages.iter().map(message).collect();
        let mut context = self.specials.clone();
        context.insert("messages".into(), messages.into());
        let tools = if conversation.tools.is_empty() { Json::Null } else { json!(conversation.tools) };
        context.insert("tools".into(), tools);
        context.insert("documents".into(), Json::Null);
        context.insert("add_generation_prompt".into(), generation.into());
        let template = self.environment.get_template("chat_template").map_err(|error| error.to_string())?;
        template.render(Value::from(Serde(context))).map_err(|error| match error.detail() {
            Some(detail) => detail.to_string(),
            None => error.to_string(),
        })
    }
}

/// A message as OpenAI's API has it, which is what chat templates expect.
fn message(message: &crate::template::Message) -> Json {
    let mut json = json!({"role": message.role, "content": message.content});
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            json!({"id": call.id, "type": "function",
                   "function": {"name": call.function.name, "arguments": call.function.arguments}})
        });
        json["tool_calls"] = calls.collect();
    }
    if !message.tool_name.is_empty() {
        json["name"] = message.tool_name.as_str().into();
    }
    if !message.tool_call_id.is_empty() {
        json["tool_call_id"] = message.tool_call_id.as_str().into();
    }
    json
}

/// `{% generation %}` marks for training what the assistant says, and writes nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let inner = tag[2..].trim_start_matches(['-', '+']);
        let word = inner.trim_start();
        let keyword = if word.starts_with("generation") {
            Some(("generation", "if true"))
        } else if word.starts_with("endgeneration") {
            Some(("endgeneration", "endif"))
        } else {
            None
        };
        match keyword {
            Some((keyword, stands_for)) => {
                out.push_str(&tag[..tag.len() - word.len()]);
                out.push_str(stands_for);
                rest = &word[keyword.len()..];
            }
            None => {
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Today, in the format that a template asks for.
fn strftime(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, jiff::Timestamp::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// `json.dumps` with `ensure_ascii=False`.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get::<Option<usize>>("indent")?;
    let sort: bool = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let _: Option<bool> = options.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        _ if indent.is_some() => (",".into(), ": ".into()),
        _ => (", ".into(), ": ".into()),
    };
    let mut out = String::new();
    dump(&json, &Style { indent, sort, item, key }, 0, &mut out);
    Ok(out)
}

struct Style {
    indent: Option<usize>,
    sort: bool,
    item: String,
    key: String,
}

fn dump(json: &Json, style: &Style, depth: usize, out: &mut String) {
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    match json {
        Json::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(&style.item);
                }
                line(depth + 1, out);
                dump(item, style, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        Json::Object(map) if !map.is_empty() => {
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort {
                entries.sort_by_key(|(key, _)| *key);
            }
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push_str(&style.item);
                }
                line(depth + 1, out);
                out.push_str(&Json::from(key.as_str()).to_string());
                out.push_str(&style.key);
                dump(value, style, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::template::Message;

    fn render(source: &str) -> Result<String, String> {
        let specials = json!({"bos_token": "<s>"}).as_object().cloned().unwrap();
        let conversation = Conversation::of([Message::new("user", " hi "), Message::new("assistant", "yo")]);
        ChatTemplate::new(source, specials)?.render(&conversation, true)
    }

    #[test]
    fn as_transformers_sets_jinja_up() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m['content'].strip() }}|\n  {% endif %}\n{% generation %}{{ loop.index0 }}{% endgeneration %}{% if loop.last %}{% break %}{% endif %}\n{% endfor %}";
        assert_eq!(render(source).unwrap(), "<s>hi|\n01");
        assert_eq!(render("{{ raise_exception('no') }}").unwrap_err(), "no");
        assert_eq!(
            render("{{ {'b': [1, 2.5, 'é<'], 'a': none}|tojson }}").unwrap(),
            r#"{"b": [1, 2.5, "é<"], "a": null}"#
        );
        assert_eq!(render("{{ [1]|tojson(indent=2) }}").unwrap(), "[\n  1\n]");
        assert_eq!(
            render("{{ tools is none }}{{ messages[::-1][0].content }}{{ strftime_now('%Y') | length }}")
                .unwrap(),
            "Trueyo4"
        );
        assert!(render("{% for i in range(100000000) %}{{ i }}{% endfor %}").is_err());
        assert!(render("{% if %}").is_err());
        let iterable =
            "{{ tools is iterable }}{{ 'a' is iterable }}{{ messages is iterable }}{{ 1 is iterable }}";
        assert_eq!(render(iterable).unwrap(), "FalseTrueTrueFalse");
    }
}
