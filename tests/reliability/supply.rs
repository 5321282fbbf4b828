//! R32: what the program is built from.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use spdx::Expression;

use crate::arguments::Context;
use crate::findings::{Findings, Problem};
use crate::machine::find_program;

/// Licences and sources of everything in `Cargo.lock` that the targets of `deny.toml` use, by its rules. If cargo-deny is
/// installed, it judges as well.
pub async fn supply_chain(_: Context) -> Result<Findings, Problem> {
    let Some(cargo) = std::env::var_os("CARGO") else {
        return Ok(Findings::skipped("run this program through cargo"));
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(folder.join("deny.toml"))?;
    let mut command = Command::new(&cargo);
    command.args(["metadata", "--locked", "--offline", "--format-version", "1"]);
    for target in list(&rules, "targets")? {
        command.args(["--filter-platform", &target]);
    }
    let metadata = command.current_dir(folder).output()?;
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("packages")?;
    let allowed = list(&rules, "allow")?;
    let mut found = Findings::default();
    let (mut licences, mut sources) = (0, 0);
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        // An older way to write "or".
        let licence = package["license"]
            .as_str()
            .unwrap_or_default()
            .replace(" / ", " OR ")
            .replace('/', " OR ");
        let is_allowed = Expression::parse(&licence).is_ok_and(|expression| {
            expression.evaluate(|one| {
                allowed
                    .iter()
                    .any(|allowed| one.license.to_string() == *allowed)
            })
        });
        let is_known = match package["source"].as_str() {
            None => name == env!("CARGO_PKG_NAME"),
            Some(source) => source.starts_with("registry+") && source.ends_with("/crates.io-index"),
        };
        licences += usize::from(is_allowed);
        sources += usize::from(is_known);
        if !is_allowed || !is_known {
            found.note(format!("{name}: {licence:?} from {}", package["source"]));
        }
    }
    found.always(
        "packages with a licence of the list",
        licences,
        packages.len(),
    );
    found.always("from crates.io", sources, packages.len());
    match find_program("cargo-deny") {
        Some(_) => {
            let deny = ["deny", "--offline", "check", "licenses", "bans", "sources"];
            let status = Command::new(&cargo)
                .args(deny)
                .current_dir(folder)
                .output()?
                .status;
            found.always("cargo deny agrees", usize::from(status.success()), 1);
        }
        None => found.note("cargo-deny is not installed"),
    }
    found.note("advisories are not looked up: that needs RustSec's database");
    Ok(found)
}

/// A list of `deny.toml`.
fn list(text: &str, name: &str) -> Result<Vec<String>, Problem> {
    let (_, rest) = text
        .split_once(&format!("\n{name} = ["))
        .ok_or_else(|| format!("deny.toml has no list {name:?}"))?;
    let (list, _) = rest.split_once(']').ok_or("the list ends")?;
    let lines = list
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let names = lines.flat_map(|line| {
        line.split('"')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    Ok(names.collect())
}
