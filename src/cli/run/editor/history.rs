//! The texts that were typed before, also in earlier conversations.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::line::Line;

/// Entries that are kept: months of use.
const MOST_ENTRIES: usize = 1000;
/// Bytes of the longest entry: pages of text are kept somewhere else.
const MOST_BYTES: usize = 4096;
/// Bytes that are read of the file: twice as many entries of the longest kind.
const MOST_FILE_BYTES: u64 = (2 * MOST_ENTRIES * MOST_BYTES) as u64;

/// The texts, and a file for them, which has each as JSON on a line.
pub struct History {
    file: Option<PathBuf>,
    entries: Vec<String>,
    /// The entry that is shown, and what was typed before it was.
    shown: Option<(usize, String)>,
}

/// The file's place by the rules of XDG: state that should outlive the session, but is no setting.
pub fn file(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME");
    let state = state.or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.map(|state| state.join("microgranite/history"))
}

impl History {
    /// Reads the history. If it cannot be kept, there is one for this conversation only.
    pub fn open(file: Option<PathBuf>) -> Self {
        let mut history = Self {
            file,
            entries: Vec::new(),
            shown: None,
        };
        if let Some(file) = &history.file {
            match read(file) {
                Ok(entries) => history.entries = entries,
                Err(problem) => {
                    tracing::warn!(file = %file.display(), %problem, "texts are not kept for later conversations");
                    history.file = None;
                }
            }
        }
        history
    }

    /// Adds a text. One that begins with a space is for nobody's eyes, as in shells.
    pub fn add(&mut self, text: String) {
        let is_new = self.entries.last() != Some(&text);
        let is_kept = !text.trim().is_empty() && !text.starts_with(' ');
        if !is_new || !is_kept || text.len() > MOST_BYTES {
            return;
        }
        if let Some(file) = &self.file {
            // What is no longer possible is no reason not to chat.
            let _not_kept = append(file, std::slice::from_ref(&text));
        }
        self.entries.push(text);
    }

    /// Shows the text before the one that is shown.
    pub fn older(&mut self, line: &mut Line) {
        let (at, draft) = match self.shown.take() {
            Some((at, draft)) => (at, draft),
            None => (self.entries.len(), line.text().to_owned()),
        };
        let older = at.saturating_sub(1);
        if let Some(entry) = self.entries.get(older) {
            line.set(entry.clone());
            self.shown = Some((older, draft));
        }
    }

    /// Shows the text after it, and in the end what was being typed.
    pub fn newer(&mut self, line: &mut Line) {
        let Some((at, draft)) = self.shown.take() else {
            return;
        };
        match self.entries.get(at + 1) {
            Some(entry) => {
                line.set(entry.clone());
                self.shown = Some((at + 1, draft));
            }
            None => line.set(draft),
        }
    }

    /// Shows none any more.
    pub fn leave(&mut self) {
        self.shown = None;
    }
}

/// Reads the newest entries, and makes the file if there is none. One that has grown too long is written again.
fn read(file: &Path) -> io::Result<Vec<String>> {
    append(file, &[])?;
    let mut entries = Vec::new();
    let lines = BufReader::new(File::open(file)?.take(MOST_FILE_BYTES)).lines();
    for line in lines.map_while(Result::ok) {
        // A damaged line is no reason to lose the others.
        entries.extend(serde_json::from_str::<String>(&line));
    }
    if entries.len() > 2 * MOST_ENTRIES {
        entries.drain(..entries.len() - MOST_ENTRIES);
        std::fs::remove_file(file)?;
        append(file, &entries)?;
    }
    Ok(entries)
}

/// Adds entries to the file, which only its owner can read.
fn append(file: &Path, entries: &[String]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).mode(0o600).open(file)?;
    let mut lines = String::new();
    for entry in entries {
        lines += &serde_json::Value::from(entry.as_str()).to_string();
        lines.push('\n');
    }
    file.write_all(lines.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_history_is_in_the_state_folder_and_its_owner_s_alone() {
        let home = tempfile::tempdir().unwrap();
        let at = |state: Option<PathBuf>| {
            let lookup = |name: &str| match name {
                "XDG_STATE_HOME" => state.clone(),
                _ => Some(home.path().to_owned()),
            };
            file(lookup).unwrap()
        };
        assert_eq!(at(Some("/s".into())), Path::new("/s/microgranite/history"));
        let kept = at(Some("relative".into()));
        assert_eq!(kept, home.path().join(".local/state/microgranite/history"));
        assert_eq!(file(|_| None), None);

        let mut history = History::open(Some(kept.clone()));
        for text in ["one", "two\nlines", "two\nlines", " secret", ""] {
            history.add(text.to_owned());
        }
        history.add("x".repeat(MOST_BYTES + 1));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&kept), 0o600);
        assert_eq!(mode(kept.parent().unwrap()), 0o700);
        let again = History::open(Some(kept));
        assert_eq!(again.entries, ["one", "two\nlines"]);
    }

    #[test]
    fn a_long_history_is_cut_and_a_damaged_line_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history");
        let entries: Vec<String> = (0..=2 * MOST_ENTRIES).map(|n| n.to_string()).collect();
        append(&file, &entries).unwrap();
        let mut text = std::fs::read_to_string(&file).unwrap();
        text.insert_str(0, "not JSON\n\u{0}\n");
        std::fs::write(&file, text).unwrap();
        let history = History::open(Some(file.clone()));
        assert_eq!(history.entries.len(), MOST_ENTRIES);
        assert_eq!(history.entries.last(), entries.last());
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert_eq!(lines, MOST_ENTRIES);
        // Where nothing can be kept, the conversation works all the same.
        let mut history = History::open(Some("/proc/no/history".into()));
        history.add("one".to_owned());
        assert_eq!(history.entries, ["one"]);
    }
}
