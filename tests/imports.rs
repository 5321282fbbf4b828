//! Tests that no file imports upwards: folders use only folders below them, and the imports inside a folder have no
//! cycles.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The folders of `src/` from the top down, as `lib.rs` lists them. Each may use only the ones after it.
const FOLDERS: [&str; 8] = [
    "cli", "http", "text", "engine", "study", "model", "sources", "int8",
];

/// Folders in which `mod.rs` is included in the search for cycles, because code that their files share has a file of
/// its own. In the other folders, files may use items of their `mod.rs`.
const STRICT: [&str; 2] = ["model", "study"];

/// The only modules that `int8` may use, so that it could be a crate of its own.
const BELOW_INT8: [&str; 2] = ["error", "config"];

/// The source text of every module of the crate, by its path such as `model::packed::read`; `lib` is the root.
type Sources = BTreeMap<String, String>;

/// The modules that each module names.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn read(folder: &Path, prefix: &str, sources: &mut Sources) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let join = |name: &str| match prefix {
            "" => name.to_owned(),
            _ => format!("{prefix}::{name}"),
        };
        if path.is_dir() {
            read(&path, &join(&stem), sources);
        } else if path.extension().is_some_and(|end| end == "rs") && stem != "main" {
            let module = match stem.as_str() {
                "mod" => prefix.to_owned(),
                _ => join(&stem),
            };
            sources.insert(module, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The code without comments, and without the tests at its end.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| match line.find("//") {
        Some(at) => &line[..at],
        None => line,
    });
    let code: Vec<&str> = lines.collect();
    let code = code.join("\n");
    let tests = code.find("#[cfg(test)]\nmod tests {");
    code[..tests.unwrap_or(code.len())].to_owned()
}

/// All paths at the beginning of `text`, which is a path that may end with a list in braces.
fn paths(text: &str, prefix: &str, found: &mut Vec<String>) {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    if !text[end..].starts_with('{') || !(path.is_empty() || path.ends_with("::")) {
        found.push(path.trim_end_matches("::").to_owned());
        return;
    }
    let (mut depth, mut start) = (0, end + 1);
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at < end) {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if (c == ',' && depth == 1) || depth == 0 {
            let part = text[start..at].trim();
            if !part.is_empty() {
                paths(part, &path, found);
            }
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
}

/// For each module, the modules that its code names, by `crate::`, by `super::` or as a file of its own folder.
fn imports(sources: &Sources) -> Imports {
    let of_module = |(module, text): (&String, &String)| {
        let code = code(text);
        let mut found = Vec::new();
        for (at, _) in code.match_indices("crate::") {
            paths(&code[at + "crate::".len()..], "", &mut found);
        }
        for (at, _) in code.match_indices("super::") {
            // Only the first `super::` of a chain is looked at.
            if !code[..at].ends_with("super::") {
                let (mut base, mut rest) = (module.as_str(), &code[at..]);
                while let Some(shorter) = rest.strip_prefix("super::") {
                    (base, rest) = (base.rsplit_once("::").map_or("", |up| up.0), shorter);
                }
                let prefix = match base {
                    "" => String::new(),
                    _ => format!("{base}::"),
                };
                paths(rest, &prefix, &mut found);
            }
        }
        // A folder names its files without a prefix.
        let children = sources
            .keys()
            .filter_map(|other| other.strip_prefix(module.as_str()));
        for child in children.filter_map(|rest| rest.strip_prefix("::")) {
            for (at, _) in code.match_indices(&format!("{child}::")) {
                if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                    paths(&code[at..], &format!("{module}::"), &mut found);
                }
            }
        }
        let modules = found.into_iter().filter_map(|mut path| {
            // A path that is not a module names an item of the module before its last `::`.
            while !sources.contains_key(&path) {
                path.truncate(path.rfind("::")?);
            }
            (path != *module).then_some(path)
        });
        (module.clone(), modules.collect())
    };
    sources.iter().map(of_module).collect()
}

fn folder_of(module: &str) -> &str {
    module.split("::").next().unwrap()
}

/// All forbidden imports: from a folder to one above it, from a module outside the folders to a folder, and from `int8`
/// to any module that it may not use.
fn upwards(imports: &Imports) -> Vec<String> {
    let rank = |module: &str| {
        FOLDERS
            .iter()
            .position(|folder| *folder == folder_of(module))
    };
    let mut problems = Vec::new();
    for (from, all) in imports.iter().filter(|(from, _)| *from != "lib") {
        for to in all {
            let is_wrong = match (rank(from), rank(to)) {
                (Some(from), Some(to)) => to < from,
                (None, Some(_)) => true,
                (_, None) => folder_of(from) == "int8" && !BELOW_INT8.contains(&folder_of(to)),
            };
            if is_wrong {
                problems.push(format!("{from} imports {to}"));
            }
        }
    }
    problems
}

/// A cycle of imports among the modules of `folder`, if there is one. Unless `strict`, modules that have files below
/// them are left out.
fn circle(imports: &Imports, folder: &str, strict: bool) -> Option<String> {
    let has_files = |module: &str| {
        let mut below = imports
            .keys()
            .filter_map(|other| other.strip_prefix(module));
        below.any(|rest| rest.starts_with("::"))
    };
    let inside = |module: &&String| folder_of(module) == folder && (strict || !has_files(module));
    let mut left: BTreeMap<&String, BTreeSet<&String>> = (imports.iter())
        .filter(|(module, _)| inside(module))
        .map(|(module, all)| (module, all.iter().filter(inside).collect()))
        .collect();
    // A module that imports none of the remaining ones is not part of a cycle.
    while let Some(done) = left
        .iter()
        .find(|(_, all)| all.is_empty())
        .map(|one| *one.0)
    {
        left.remove(done);
        for all in left.values_mut() {
            all.remove(done);
        }
    }
    let mut way = vec![*left.keys().next()?];
    loop {
        let next = *left[way[way.len() - 1]].first()?;
        if let Some(start) = way.iter().position(|module| *module == next) {
            way.push(next);
            let names: Vec<&str> = way[start..].iter().map(|name| name.as_str()).collect();
            return Some(names.join(" → "));
        }
        way.push(next);
    }
}

#[test]
fn no_file_imports_upwards() {
    let mut sources = Sources::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read(&root, "", &mut sources);
    for folder in FOLDERS {
        assert!(sources.contains_key(folder), "{folder} is a folder");
        assert!(sources["lib"].contains(&format!("pub mod {folder};")));
    }
    let imports = imports(&sources);
    // If no imports were found, the test would pass without checking anything.
    assert!(imports["model::granite"].contains("model::blueprint"));
    assert!(imports["study::pack"].contains("sources::hash"));
    let problems = upwards(&imports);
    assert!(problems.is_empty(), "{problems:#?}");
    for folder in FOLDERS {
        assert_eq!(circle(&imports, folder, STRICT.contains(&folder)), None);
    }
}

#[test]
fn imports_upwards_and_circles_are_found() {
    let source = |(module, text): (&str, &str)| (module.to_owned(), text.to_owned());
    let sources: Sources = [
        ("lib", "pub mod model;"),
        ("error", ""),
        ("telemetry", "use crate::model::Granite;"),
        (
            "int8",
            "use crate::{error::{self, Error}, sources::{names, Mapped}};",
        ),
        ("sources", "// use crate::model::a;\nuse crate::int8;"),
        ("model", "mod a;\npub use a::Granite;"),
        (
            "model::a",
            "fn f() { super::b::g() }\nuse crate::int8::{Matrix};",
        ),
        (
            "model::b",
            "use super::{c::C};\n#[cfg(test)]\nmod tests { use crate::cli::Cli; }",
        ),
        ("model::c", "use super::a::A;"),
        ("study", ""),
        (
            "study::pack",
            "use super::super::model::a;\nuse super::linear::L;",
        ),
        ("study::linear", ""),
        ("cli", "use crate::{http, study::pack};"),
        ("http", ""),
    ]
    .map(source)
    .into();
    let imports = imports(&sources);
    let problems = upwards(&imports);
    assert_eq!(
        problems,
        ["int8 imports sources", "telemetry imports model"]
    );
    let found = circle(&imports, "model", true).expect("a circle");
    assert_eq!(found, "model::a → model::b → model::c → model::a");
    assert_eq!(circle(&imports, "study", true), None);
    assert!(imports["model"].contains("model::a"));
    assert!(imports["study::pack"].contains("model::a"));
}
