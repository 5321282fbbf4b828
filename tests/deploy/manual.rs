//! The completions and manual pages that the binary prints, which packages install.

/// Runs the command and returns its standard output.
fn output(arguments: &[&str]) -> String {
    let output = crate::microgranite().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn completions_and_manual_pages_name_every_flag_of_every_command() {
    let folder = tempfile::tempdir().unwrap();
    output(&["man", "--output", folder.path().to_str().unwrap()]);
    let shells = ["bash", "zsh", "fish"];
    let completions = shells.map(|shell| output(&["completions", shell]));
    let mut flags = 0;
    for command in [
        "serve", "quantize", "eval", "bench", "pull", "inspect", "man",
    ] {
        let page = folder.path().join(format!("microgranite-{command}.1"));
        let page = std::fs::read_to_string(page).unwrap();
        let help = output(&[command, "--help"]);
        let long = |line: &str| {
            let flag = line
                .trim_start()
                .trim_start_matches("-o, ")
                .strip_prefix("--")?;
            Some(flag.split([' ', '=']).next().unwrap_or_default().to_owned())
        };
        for flag in help.lines().filter_map(long) {
            // roff escapes hyphens.
            let escaped = flag.replace('-', "\\-");
            assert!(page.contains(&escaped), "{command}: {flag}");
            for (shell, text) in shells.iter().zip(&completions) {
                assert!(text.contains(&flag), "{shell}: {command}: {flag}");
            }
            flags += 1;
        }
    }
    assert!(flags > 40, "only {flags} flags were found");
    assert!(output(&["man"]).contains(".TH microgranite"));
}

/// `check-grammar` is a command for the program's own use.
#[test]
fn hidden_commands_are_in_no_completions_and_no_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    output(&["man", "--output", folder.path().to_str().unwrap()]);
    assert!(!folder.path().join("microgranite-check-grammar.1").exists());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = output(&["completions", shell]);
        assert!(
            text.contains("quantize") && !text.contains("check-grammar"),
            "{shell}"
        );
    }
}
