//! A card's text as blocks, and the two languages it is written in.
//!
//! What is text here comes out as text in either language, whatever it says:
//! this is the one place where Markdown and HTML are escaped.

/// A run of text within a block.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Inline {
    Text(String),
    Code(String),
    Strong(String),
    /// Shown as a link if its target is an `http` or `https` URL, else as text.
    Link {
        text: String,
        url: String,
    },
}

/// Text.
pub(crate) fn text(text: impl Into<String>) -> Inline {
    Inline::Text(text.into())
}

/// Code.
pub(crate) fn code(text: impl Into<String>) -> Inline {
    Inline::Code(text.into())
}

pub(crate) type Line = Vec<Inline>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Block {
    Heading(usize, String),
    Paragraph(Line),
    /// Columns whose heading begins with a space are aligned right.
    Table {
        head: Vec<String>,
        rows: Vec<Vec<Line>>,
    },
    Code {
        language: &'static str,
        text: String,
    },
    /// A picture: a file beside the Markdown if there is one, in the page in HTML.
    Figure {
        file: Option<&'static str>,
        alt: String,
        svg: String,
    },
}

/// Writes blocks as Markdown (GitHub's, which the Hub renders).
pub(crate) fn markdown(blocks: &[Block]) -> String {
    let mut out = String::new();
    for block in blocks {
        if matches!(block, Block::Figure { file: None, .. }) {
            continue;
        }
        if !out.is_empty() {
            out.push('\n');
        }
        match block {
            Block::Heading(level, text) => {
                out.push_str(&format!("{} {}\n", "#".repeat(*level), markdown_text(text)));
            }
            Block::Paragraph(line) => out.push_str(&format!("{}\n", markdown_line(line, false))),
            Block::Table { head, rows } => {
                let cells: Vec<_> = head.iter().map(|cell| markdown_text(cell.trim())).collect();
                out.push_str(&format!("| {} |\n", cells.join(" | ")));
                let rules: Vec<_> =
                    head.iter().map(|cell| if cell.starts_with(' ') { "---:" } else { "---" }).collect();
                out.push_str(&format!("| {} |\n", rules.join(" | ")));
                for row in rows {
                    let cells: Vec<_> = row.iter().map(|cell| markdown_line(cell, true)).collect();
                    out.push_str(&format!("| {} |\n", cells.join(" | ")));
                }
            }
            Block::Code { language, text } => {
                let fence = "`".repeat(longest_run(text).max(2) + 1);
                out.push_str(&format!("{fence}{language}\n{text}\n{fence}\n"));
            }
            Block::Figure { file, alt, .. } => {
                out.push_str(&format!("![{}]({})\n", markdown_text(alt), file.unwrap_or_default()));
            }
        }
    }
    out
}

fn markdown_line(line: &Line, in_table: bool) -> String {
    let mut out = String::new();
    for inline in line {
        match inline {
            Inline::Text(text) => out.push_str(&markdown_text(text)),
            Inline::Strong(text) => out.push_str(&format!("**{}**", markdown_text(text))),
            Inline::Code(text) => {
                let text = one_line(text);
                // In a table a pipe ends the cell even within code.
                let text = if in_table { text.replace('|', "\\|") } else { text };
                let fence = "`".repeat(longest_run(&text) + 1);
                let pad = if text.starts_with('`') || text.ends_with('`') || text.trim().is_empty() {
                    " "
                } else {
                    ""
                };
                out.push_str(&format!("{fence}{pad}{text}{pad}{fence}"));
            }
            Inline::Link { text, url } => match safe_url(url) {
                Some(url) => out.push_str(&format!("[{}]({url})", markdown_text(text))),
                None => out.push_str(&markdown_text(text)),
            },
        }
    }
    out
}

/// Text that no Markdown reader takes for markup.
fn markdown_text(text: &str) -> String {
    let mut out = String::new();
    let line: Vec<char> = one_line(text).chars().collect();
    for (at, &c) in line.iter().enumerate() {
        let beside = |at: Option<usize>| at.and_then(|at| line.get(at)).is_some_and(|c| c.is_alphanumeric());
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            // Within a word it is no markup.
            '_' if beside(at.checked_sub(1)) && beside(Some(at + 1)) => out.push('_'),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' | '#' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    // At the start of a line these would begin a list, a rule or a quotation.
    let first = out.chars().next();
    let begins_list = out
        .split_once(['.', ')'])
        .is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()))
        && out.split_once(['.', ')']).is_some_and(|(_, rest)| rest.starts_with(' '));
    match first {
        Some('-' | '+' | '=') => out.insert(0, '\\'),
        _ if begins_list => {
            let at = out.find(['.', ')']).unwrap_or(0);
            out.insert(at, '\\');
        }
        _ => {}
    }
    out
}

/// Without line breaks and other controls.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c })
        .collect()
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// A URL that can stand in a link as it is.
fn safe_url(url: &str) -> Option<&str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~:/?#@!&*+,;=%".contains(c);
    let is_web = url.starts_with("https://") || url.starts_with("http://");
    (is_web && url.chars().all(allowed)).then_some(url)
}

/// Writes blocks as a page of its own.
pub(crate) fn html(title: &str, blocks: &[Block]) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        html_text(title)
    );
    out.push_str(&html_blocks(blocks));
    out.push_str("</body>\n</html>\n");
    out
}

const STYLE: &str = "body{font:16px/1.55 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1d2329;background:#fff}\
h1,h2,h3{line-height:1.25}h2{margin-top:2.2rem;border-bottom:1px solid #d9dee3;padding-bottom:.25rem}\
h1{overflow-wrap:anywhere}table{border-collapse:collapse;display:block;overflow-x:auto;font-size:.94em}\
th,td{padding:.3rem .7rem;border-bottom:1px solid #e5e9ed;text-align:left;vertical-align:top;overflow-wrap:anywhere}\
.r{text-align:right;font-variant-numeric:tabular-nums}code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}\
pre{background:#f4f6f8;padding:.8rem 1rem;border-radius:6px;overflow-x:auto}svg{max-width:100%;height:auto}\
@media(prefers-color-scheme:dark){body{color:#dfe4e9;background:#14181c}h2,th,td{border-color:#313940}pre{background:#1d2329}a{color:#7db8ff}}";

/// Writes blocks as a part of a page.
pub(crate) fn html_blocks(blocks: &[Block]) -> String {
    let mut out = String::new();
    for block in blocks {
        match block {
            Block::Heading(level, text) => {
                out.push_str(&format!("<h{level}>{}</h{level}>\n", html_text(text)))
            }
            Block::Paragraph(line) => out.push_str(&format!("<p>{}</p>\n", html_line(line))),
            Block::Table { head, rows } => {
                let class = |at: usize| {
                    if head.get(at).is_some_and(|cell| cell.starts_with(' ')) { " class=\"r\"" } else { "" }
                };
                let cells = |row: Vec<String>, tag: &str| -> String {
                    let cell = |(at, text): (usize, String)| format!("<{tag}{}>{text}</{tag}>", class(at));
                    row.into_iter().enumerate().map(cell).collect()
                };
                let heading = cells(head.iter().map(|cell| html_text(cell.trim())).collect(), "th");
                out.push_str(&format!("<table>\n<tr>{heading}</tr>\n"));
                for row in rows {
                    out.push_str(&format!("<tr>{}</tr>\n", cells(row.iter().map(html_line).collect(), "td")));
                }
                out.push_str("</table>\n");
            }
            Block::Code { text, .. } => {
                out.push_str(&format!("<pre><code>{}</code></pre>\n", html_text(text)))
            }
            Block::Figure { svg, .. } => out.push_str(&format!("<figure>{svg}</figure>\n")),
        }
    }
    out
}

fn html_line(line: &Line) -> String {
    let mut out = String::new();
    for inline in line {
        match inline {
            Inline::Text(text) => out.push_str(&html_text(text)),
            Inline::Strong(text) => out.push_str(&format!("<strong>{}</strong>", html_text(text))),
            Inline::Code(text) => out.push_str(&format!("<code>{}</code>", html_text(text))),
            Inline::Link { text, url } => match safe_url(url) {
                Some(url) => out.push_str(&format!("<a href=\"{}\">{}</a>", html_text(url), html_text(text))),
                None => out.push_str(&html_text(text)),
            },
        }
    }
    out
}

/// Text that no HTML or SVG reader takes for markup.
pub(crate) fn html_text(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let hostile = "<script>alert(1)</script> [x](javascript:y) **b** `c` | \n# no\u{7}";
        let blocks = [
            Block::Paragraph(vec![text(hostile), code("a`|`b")]),
            Block::Table {
                head: vec!["k|".into(), " v".into()],
                rows: vec![vec![vec![code("x|y")], vec![text("1|2")]]],
            },
            Block::Paragraph(vec![Inline::Link { text: "go".into(), url: "javascript:alert(1)".into() }]),
            Block::Paragraph(vec![text("- no list"), text("1. nor this")]),
            Block::Code { language: "sh", text: "echo ```".into() },
        ];
        let written = markdown(&blocks);
        assert_eq!(
            written,
            "&lt;script&gt;alert(1)&lt;/script&gt; \\[x\\](javascript:y) \\*\\*b\\*\\* \\`c\\` \\|  \\# no ``a`|`b``\n\n\
             | k\\| | v |\n| --- | ---: |\n| `x\\|y` | 1\\|2 |\n\ngo\n\n\\- no list1\\. nor this\n\n````sh\necho ```\n````\n"
        );
        let page = html("<b>", &blocks);
        assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains("href"));
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    }
}
