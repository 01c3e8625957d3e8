//! What all servers with OpenAI's API have: a list of models, and completions.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tenon_checkpoint::Digest;

use crate::http::Http;
use crate::{Answer, Error, Refusal, Watch};

/// A listed model; what is not OpenAI's own is there where the server tells.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Listed {
    pub(crate) id: String,
    /// vLLM, SGLang: where the model lies.
    #[serde(default)]
    pub(crate) root: Option<String>,
    /// vLLM: of an adapter, the model that it is applied to.
    #[serde(default)]
    pub(crate) parent: Option<String>,
    /// llama-server that routes.
    #[serde(default)]
    pub(crate) status: Option<Status>,
    /// llama-server: sizes.
    #[serde(default)]
    pub(crate) meta: Option<Value>,
}

/// How far a model is in a llama-server that routes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) value: String,
    pub(crate) failed: bool,
    pub(crate) exit_code: Option<i64>,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    data: Option<Vec<Listed>>,
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    message: Option<Said>,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    content: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    completion_tokens: u64,
}

/// The path of OpenAI's API below an address that people give with or without `/v1`.
pub(crate) fn path(http: &Http, rest: &str) -> String {
    if http.base().path().ends_with("/v1/") { rest.into() } else { format!("v1/{rest}") }
}

/// All models that the server lists.
pub(crate) async fn models(http: &Http, query: &str, watch: &dyn Watch) -> Result<Vec<Listed>, Error> {
    let request = http.request(Method::GET, &path(http, "models"));
    let request = if query.is_empty() { request } else { request.query(&[(query, "1")]) };
    let list: List = http.json("listing its models", request, http.timeout(), watch).await?;
    Ok(list.data.unwrap_or_default())
}

/// Whether a listed name is that of a model: itself, or the last part of a path.
pub(crate) fn is(listed: &str, model: &str) -> bool {
    let last = listed.trim_end_matches('/').rsplit('/').next().unwrap_or(listed);
    listed == model || last == model || last.strip_suffix(".gguf") == Some(model)
}

/// Asks a model for one token.
pub(crate) async fn answer(
    http: &Http,
    id: &str,
    limit: Duration,
    watch: &dyn Watch,
) -> Result<Answer, Error> {
    let begin = Instant::now();
    let doing = "asking it for a token";
    let no_answer = |reason: String| Error::NoAnswer { model: http.quote(id), reason };
    let chat = json!({"model": id, "max_tokens": 1, "temperature": 0, "stream": false,
        "messages": [{"role": "user", "content": "Who are you?"}]});
    let request = http.request(Method::POST, &path(http, "chat/completions")).json(&chat);
    let mut result = http.json::<Completion>(doing, request, limit, watch).await;
    if let Err(Error::Refused { refusal: Refusal::Invalid | Refusal::NotFound, .. }) = &result {
        // A model without a chat template completes text all the same.
        let plain = json!({"model": id, "max_tokens": 1, "temperature": 0, "stream": false,
            "prompt": "Who are you?"});
        let request = http.request(Method::POST, &path(http, "completions")).json(&plain);
        let second = http.json::<Completion>(doing, request, limit, watch).await;
        // What the first said is nearer to what people will ask.
        if second.is_ok() || matches!(second, Err(Error::Cancelled | Error::Hung { .. })) {
            result = second;
        }
    }
    let completion = match result {
        Ok(completion) => completion,
        Err(Error::Refused {
            refusal: Refusal::Fault | Refusal::Invalid | Refusal::NotFound, said, ..
        }) => return Err(no_answer(said)),
        Err(Error::Garbage { reason, .. }) => return Err(no_answer(reason)),
        Err(error) => return Err(error),
    };
    let tokens = completion.usage.map_or(0, |usage| usage.completion_tokens);
    let Some(choice) = completion.choices.into_iter().next() else {
        return Err(no_answer("its answer holds no choice".into()));
    };
    let said = choice.message.unwrap_or_default();
    let texts = [said.content, said.reasoning_content, choice.text];
    let text = texts.into_iter().flatten().find(|text| !text.is_empty()).unwrap_or_default();
    // A special token has no text, and was counted.
    if text.is_empty() && tokens == 0 {
        return Err(no_answer("it was asked for one token and gave none".into()));
    }
    Ok(Answer { text: http.quote(&text), seconds: begin.elapsed().as_secs_f64() })
}

/// How the names of files begin that llama-server takes for drafts of other models (`common/preset.cpp`).
const DRAFTS: [&str; 3] = ["mtp-", "dspark-", "dflash-"];

/// A name with the characters that file names, URLs and command lines all bear.
pub(crate) fn model_name(wanted: &str, exact: bool) -> Result<String, Error> {
    let bad = |reason: &str| Err(Error::BadModelName { name: wanted.into(), reason: reason.into() });
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if exact {
        return match wanted {
            "" => bad("it is empty"),
            name if name.len() > 128 => bad("it is longer than 128 characters"),
            name if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) => {
                bad("it does not begin with a letter or digit")
            }
            name if !name.chars().all(allowed) => bad("only letters, digits and -_. have a place in it"),
            // llama-server takes files of such names for parts of other models.
            name if name.contains("mmproj") => {
                bad("mmproj is in it, by which llama-server knows parts of models")
            }
            name if DRAFTS.iter().any(|prefix| name.starts_with(prefix)) => bad(
                "it begins as files do that llama-server takes for parts of models: mtp-, dspark-, dflash-",
            ),
            name => Ok(name.into()),
        };
    }
    let mapped: String = wanted.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let mapped = mapped.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).replace("mmproj", "mm-proj");
    let is_draft = DRAFTS.iter().any(|prefix| mapped.starts_with(prefix));
    let mapped = if is_draft { format!("model-{mapped}") } else { mapped };
    let mapped = match mapped.len() {
        0..=128 => mapped,
        // What is cut off is told apart by a digest.
        _ => format!("{}-{}", &mapped[..119], &Digest::of(wanted.as_bytes()).to_string()[..8]),
    };
    if mapped.is_empty() {
        bad("nothing is left of it without what is not allowed")
    } else {
        model_name(&mapped, true)
    }
}

/// How often a server is asked whether it has a model by now.
const POLL: Duration = Duration::from_millis(500);

/// Waits a little, and ends where somebody asks to stop.
pub(crate) async fn pause(watch: &dyn Watch) -> Result<(), Error> {
    let end = Instant::now() + POLL;
    while Instant::now() < end {
        if watch.cancelled() {
            return Err(Error::Cancelled);
        }
        tokio::time::sleep(crate::http::TICK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names() {
        assert_eq!(model_name("a/b:c d", false).unwrap(), "a-b-c-d");
        assert_eq!(model_name("--x", false).unwrap(), "x");
        assert_eq!(model_name("mmproj-x", false).unwrap(), "mm-proj-x");
        assert_eq!(model_name("mtp-x", false).unwrap(), "model-mtp-x");
        assert!(model_name("mtp-x", true).is_err() && model_name("a-mmproj", true).is_err());
        let long = |end: &str| model_name(&format!("{}{end}", "x".repeat(200)), false).unwrap();
        assert!(long("a") != long("b") && long("a").len() == 128);
        assert!(
            model_name("a/b", true).is_err()
                && model_name("..", true).is_err()
                && model_name("-x", true).is_err()
        );
        assert!(model_name("///", false).is_err());
        assert!(is("/models/m/", "m") && is("m", "m") && is("m.gguf", "m") && !is("mm", "m"));
    }
}
