//! Chooses one of a repository's GGUF files by the quantization label in its name.

use std::collections::BTreeMap;
use std::path::Path;

use super::parts::Part;
use super::reference::is_gguf;

/// Supported labels, best for int8 first. Q8_0 was made from the float weights and is half the download of f16 or bf16;
/// below it, more bits are closer to the original.
const BEST_FIRST: [&str; 22] = [
    "Q8_0", "BF16", "F16", "F32", "Q6_K_L", "Q6_K", "Q5_K_L", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0",
    "Q4_K_L", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q3_K_XL", "Q3_K_L", "Q3_K_M", "Q3_K_S",
    "Q2_K_L", "Q2_K",
];

/// The models among a repository's files: GGUF files in its root folder, and the first part that is there of each model
/// in parts. Auxiliary files are left out.
pub fn models<'n>(files: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    let is_model = |name: &&str| {
        let plain = name.to_lowercase();
        is_gguf(Path::new(name))
            && !name.contains('/')
            && !plain.starts_with("mmproj")
            && !plain.contains("imatrix")
    };
    let mut models: Vec<&str> = files.filter(is_model).collect();
    let mut firsts: BTreeMap<(&str, usize), &str> = BTreeMap::new();
    for file in &models {
        if let Some(part) = Part::of(file) {
            let first = firsts.entry((part.model, part.count)).or_insert(file);
            *first = (*first).min(file);
        }
    }
    models.retain(|file| {
        Part::of(file).is_none_or(|part| firsts.get(&(part.model, part.count)) == Some(file))
    });
    models
}

/// All files of a model that [`models`] returned: its parts, or it alone.
pub fn files_of(model: &str) -> Vec<String> {
    match Part::of(model) {
        Some(part) => part.all().collect(),
        None => vec![model.to_owned()],
    }
}

/// Those of `models` of which all parts are among the files, as `has` says.
pub fn whole<'n>(models: &[&'n str], has: impl Fn(&str) -> bool) -> Vec<&'n str> {
    let is_whole = |model: &&str| files_of(model).iter().all(|file| has(file));
    models.iter().copied().filter(is_whole).collect()
}

/// The label in a file's name: what follows the last `-`, or the last `.`, before the numbers of a part and the
/// extension.
pub fn label(file: &str) -> &str {
    let stem = &file[..file.len() - ".gguf".len()];
    let stem = Part::of(file).map_or(stem, |part| part.model);
    stem.rsplit(['-', '.']).next().unwrap_or(stem)
}

/// The file that `wanted` names, by its label or in full; the first of several with the label. A single file is
/// preferred to parts.
pub fn named<'n>(files: &[&'n str], wanted: &str) -> Option<&'n str> {
    let wanted_part = Part::of(wanted);
    let is_wanted = |file: &&&str| {
        let parts = Part::of(file).zip(wanted_part);
        **file == wanted || parts.is_some_and(|(one, other)| one.belongs_to(other))
    };
    let in_full = files.iter().find(is_wanted);
    let by_label = || {
        let mut sorted = files.to_vec();
        sorted.sort_unstable_by_key(|file| (Part::of(file).is_some(), *file));
        let has_label = |file: &&str| label(file).eq_ignore_ascii_case(wanted);
        sorted.into_iter().find(has_label)
    };
    in_full.copied().or_else(by_label)
}

/// The file to use if none is named: the best that can be read, or the only one there is.
pub fn best<'n>(files: &[&'n str]) -> Option<&'n str> {
    match files {
        [only] => Some(only),
        _ => BEST_FIRST.iter().find_map(|label| named(files, label)),
    }
}

/// The labels of all files, for messages.
pub fn listed(files: &[&str]) -> String {
    let mut labels: Vec<&str> = files.iter().map(|file| label(file)).collect();
    labels.sort_unstable();
    labels.dedup();
    labels.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 11] = [
        "README.md",
        "granite-3.3-2b-instruct-Q4_K_M.gguf",
        "granite-3.3-2b-instruct-IQ2_XXS.gguf",
        "granite-3.3-2b-instruct.f16.gguf",
        "granite-3.3-2b-instruct-Q8_0.gguf",
        "granite-3.3-2b-instruct-Q6_K.GGUF",
        "granite-3.3-2b-instruct-BF16-00002-of-00002.gguf",
        "granite-3.3-2b-instruct-BF16-00001-of-00002.gguf",
        "granite-3.3-2b-instruct-Q8_0-00001-of-00002.gguf",
        "mmproj-granite-F16.gguf",
        "Q8_0/granite-Q8_0.gguf",
    ];

    #[test]
    fn eight_bits_come_first_then_floats_then_the_most_bits() {
        let mut files = models(FILES.into_iter());
        assert_eq!(listed(&files), "BF16, IQ2_XXS, Q4_K_M, Q6_K, Q8_0, f16");
        for expected in [
            "-Q8_0.gguf",
            "-Q8_0-00001-of-00002.gguf",
            "-BF16-00001-of-00002.gguf",
            ".f16.gguf",
            "-Q6_K.GGUF",
            "-Q4_K_M.gguf",
        ] {
            let best = best(&files).unwrap();
            assert!(best.ends_with(expected), "{best}");
            files.retain(|file| *file != best);
        }
        // The only file is chosen whatever its type; opening it reports what is wrong.
        assert_eq!(files.len(), 1);
        assert_eq!(best(&files), Some(files[0]));
        assert_eq!(best(&["a-IQ2_XXS.gguf", "a-IQ4_NL.gguf"]), None);
    }

    #[test]
    fn a_file_is_named_by_its_label_in_any_case_or_in_full() {
        let files = models(FILES.into_iter());
        let f16 = Some("granite-3.3-2b-instruct.f16.gguf");
        assert_eq!(named(&files, "F16"), f16);
        assert_eq!(named(&files, "granite-3.3-2b-instruct.f16.gguf"), f16);
        let parts = "granite-3.3-2b-instruct-BF16-00001-of-00002.gguf";
        assert_eq!(named(&files, "bf16"), Some(parts));
        assert_eq!(
            named(&files, &parts.replace("00001-of", "00002-of")),
            Some(parts)
        );
        assert_eq!(files_of(parts)[1], parts.replace("00001-of", "00002-of"));
        assert_eq!(named(&files, "Q5_K_M"), None);
        assert_eq!(named(&files, "K_M"), None);
    }
}
