//! Refuses regular expressions that are too complex, before they are compiled.

use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::ast::{Ast, ClassSetItem, RepetitionKind, RepetitionRange, Visitor, visit};

/// The deepest nesting of parentheses. The regex crate allows 250; people write fewer than ten.
const MAX_NESTING: u32 = 100;
/// The most optional parts (`a?`, `b*`). Each can be skipped to reach the next, so the work for one byte of an answer
/// grows with the square of their number.
pub const MAX_OPTIONAL: usize = 500;
/// The most Unicode classes such as `\w` and `\p{L}`, each of which has hundreds of ranges.
const MAX_CLASSES: usize = 500;

/// Refuses an expression that certainly takes too much work. An expression that cannot be parsed is accepted here,
/// because the compiler reports its error.
///
/// # Errors
/// A message for the author of the expression.
pub fn check(regex: &str) -> Result<(), String> {
    let mut parser = ParserBuilder::new().nest_limit(MAX_NESTING).build();
    match parser.parse(regex) {
        Ok(ast) => visit(&ast, Counts::default()),
        Err(problem)
            if matches!(
                problem.kind(),
                regex_syntax::ast::ErrorKind::NestLimitExceeded(_)
            ) =>
        {
            Err(format!(
                "a regular expression is nested more than {MAX_NESTING} deep"
            ))
        }
        Err(_left_to_the_compiler) => Ok(()),
    }
}

#[derive(Default)]
struct Counts {
    optional: usize,
    classes: usize,
}

impl Counts {
    fn add_class(&mut self) -> Result<(), String> {
        self.classes += 1;
        if self.classes > MAX_CLASSES {
            return Err(format!(
                "a regular expression has more than {MAX_CLASSES} classes such as \\w"
            ));
        }
        Ok(())
    }
}

/// The crate guarantees that a visitor is called without recursion.
impl Visitor for Counts {
    type Output = ();
    type Err = String;

    fn finish(self) -> Result<(), String> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), String> {
        match ast {
            Ast::Repetition(repetition) => {
                let may_be_absent = match &repetition.op.kind {
                    RepetitionKind::ZeroOrOne | RepetitionKind::ZeroOrMore => true,
                    RepetitionKind::OneOrMore => false,
                    RepetitionKind::Range(
                        RepetitionRange::Exactly(least)
                        | RepetitionRange::AtLeast(least)
                        | RepetitionRange::Bounded(least, _),
                    ) => *least == 0,
                };
                self.optional += usize::from(may_be_absent);
                if self.optional > MAX_OPTIONAL {
                    return Err(format!(
                        "a regular expression has more than {MAX_OPTIONAL} parts that may be left out"
                    ));
                }
                Ok(())
            }
            Ast::ClassUnicode(_) | Ast::ClassPerl(_) => self.add_class(),
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), String> {
        match item {
            ClassSetItem::Unicode(_) | ClassSetItem::Perl(_) => self.add_class(),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_that_multiply_work_are_refused_and_long_plain_ones_are_not() {
        for bomb in [
            "a?".repeat(30_000),
            "a?b*".repeat(20_000),
            "(a|b)*".repeat(16_000),
            "a{0,3}".repeat(501),
            r"\w".repeat(501),
            r"[\pL\d]".repeat(251),
            format!("{}a{}", "(".repeat(30_000), ")".repeat(30_000)),
        ] {
            assert!(check(&bomb).is_err(), "{}", &bomb[..20]);
        }
        for fine in [
            "word|".repeat(20_000),
            "((a{100}){100}){100}".to_owned(),
            r"(\+\d{1,3}[- ]?)?\(?\d{3}\)?[- ]?\d{3}[- ]?\d{4}".to_owned(),
            "a?".repeat(MAX_OPTIONAL),
            "(".to_owned(),
        ] {
            assert_eq!(check(&fine), Ok(()));
        }
    }
}
