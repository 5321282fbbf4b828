//! The names of GGUF files in parts, as llama.cpp splits them: `NAME-00001-of-00003.gguf` and so on.

/// The most parts of a model. The largest published models have some fifty.
const MAX_PARTS: usize = 512;

/// The name of one part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'n> {
    /// The name of the model: what precedes the numbers.
    pub model: &'n str,
    /// The number of this part, from 1 on.
    pub number: usize,
    /// The number of all parts.
    pub count: usize,
    extension: &'n str,
}

impl<'n> Part<'n> {
    /// Parses the name of a file; `None` if it is not the name of a part.
    pub fn of(file: &'n str) -> Option<Self> {
        let at = file.len().checked_sub(".gguf".len())?;
        let (stem, extension) = file.split_at_checked(at)?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (model, number) = rest.rsplit_once('-')?;
        let parse = |digits: &str| {
            let is_number = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| is_number)
        };
        let (number, count) = (parse(number)?, parse(count)?);
        let is_part = extension.eq_ignore_ascii_case(".gguf")
            && (1..=count).contains(&number)
            && count <= MAX_PARTS;
        is_part.then_some(Self {
            model,
            number,
            count,
            extension,
        })
    }

    /// The names of all parts, in order.
    pub fn all(self) -> impl Iterator<Item = String> {
        (1..=self.count).map(move |number| self.named(number))
    }

    /// Whether both are parts of one model.
    pub fn belongs_to(self, other: Self) -> bool {
        let set = |part: Self| (part.model, part.count, part.extension);
        set(self) == set(other)
    }

    fn named(self, number: usize) -> String {
        let (model, count, extension) = (self.model, self.count, self.extension);
        format!("{model}-{number:05}-of-{count:05}{extension}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_in_a_name_tell_a_part() {
        let part = Part::of("granite-Q8_0-00002-of-00003.GGUF").unwrap();
        let (model, number, count) = (part.model, part.number, part.count);
        assert_eq!((model, number, count), ("granite-Q8_0", 2, 3));
        let all: Vec<String> = part.all().collect();
        assert_eq!(all[2], "granite-Q8_0-00003-of-00003.GGUF");
        assert!(part.belongs_to(Part::of(&all[0]).unwrap()));
        for other in [
            "granite-Q8_0.gguf",
            "granite-00000-of-00003.gguf",
            "granite-00004-of-00003.gguf",
            "granite-00001-of-99999.gguf",
            "granite-1-of-3.gguf",
            "granite-+0001-of-00003.gguf",
            "granite-00001-of-00003.bin",
            "é-of-éé",
            ".gguf",
            "",
        ] {
            assert_eq!(Part::of(other), None, "{other}");
        }
    }
}
