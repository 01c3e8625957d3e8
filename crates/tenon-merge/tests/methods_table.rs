//! `docs/adapters.md` lists every method that the code knows, as the code knows it.
#![allow(clippy::unwrap_used)] // a test file

use std::fmt::Write;
use std::path::Path;

use tenon_merge::methods;

/// The table's rows, from the code's own.
fn table() -> String {
    let mut table =
        String::from("| `peft_type` | method | merged weight | source |\n| --- | --- | --- | --- |\n");
    for method in methods() {
        let merged = match method.refusal() {
            None => method.formula.to_string(),
            Some(why) => format!("refused: {why}"),
        };
        let row =
            [method.peft_type, method.name, &merged, method.source].map(|cell| cell.replace('|', "\\|"));
        writeln!(table, "| `{}` | {} | {} | {} |", row[0], row[1], row[2], row[3]).unwrap();
    }
    table
}

/// With `TENON_WRITE_DOCS=1` the page gets the code's table instead of failing.
#[test]
fn the_page_has_the_codes_own_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/adapters.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let table = table();
    if std::env::var_os("TENON_WRITE_DOCS").is_some() {
        let start = page.find("| `peft_type` |").unwrap();
        let len: usize =
            page[start..].split_inclusive('\n').take_while(|line| line.starts_with('|')).map(str::len).sum();
        std::fs::write(path, format!("{}{table}{}", &page[..start], &page[start + len..])).unwrap();
    } else {
        assert!(
            page.contains(&table),
            "docs/adapters.md lacks the table of methods; it should be:\n\n{table}"
        );
    }
}

#[test]
fn each_peft_type_is_there_once() {
    let mut seen: Vec<_> = methods().map(|method| method.peft_type).collect();
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count);
    for method in methods() {
        assert!(
            method.refusal().is_some() || !method.formula.is_empty(),
            "{} has no formula",
            method.peft_type
        );
        assert!(!method.name.is_empty() && !method.source.is_empty(), "{}", method.peft_type);
    }
}
