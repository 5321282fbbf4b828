//! Rewrites the source of a template for the engine that runs it.
//!
//! Published templates use two features that the engine does not have. The tags `generation` and `endgeneration` mark
//! the text on which a model is trained, and do not change the rendered text; they become a `with` block, which has no
//! effect. Python's `'…' % values` becomes the filter [`FORMAT`]. What a namespace is given passes the filter [`KEPT`].

/// The filter that replaces Python's `%` after a text.
pub const FORMAT: &str = "python_format";
/// The filter that looks at what `{% set namespace.name = … %}` keeps.
pub const KEPT: &str = "kept_in_namespace";
/// The deepest nesting of `%` within operands of `%`. Deeper ones are left unchanged, and the engine reports an error.
const MAX_DEPTH: usize = 20;
/// The most operands of `%` in a template; further ones are left unchanged too. Each is searched for up to the end of
/// its block.
const MAX_OPERANDS: usize = 500;

/// The most words and signs between the brackets of one tag. In each operator of a row the engine's compiler tries again whether
/// everything before it is constant: twenty thousand of them took four seconds. Templates of models have up to forty.
const MAX_PARTS: usize = 1_000;

/// Returns `source` without features that the engine does not have.
///
/// # Errors
/// In words, if a tag has more than [`MAX_PARTS`] words and signs.
pub fn prepare(source: &str) -> Result<String, String> {
    let mut prepared = String::with_capacity(source.len());
    let (mut rest, mut operands_left) = (source, MAX_OPERANDS);
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        prepared += text;
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'%' | b'{') => tag_length(tag),
            _ => 1,
        };
        let (tag, after) = tag.split_at(length);
        rest = after;
        match block_name(tag) {
            Some("generation") => prepared += &tag.replacen("generation", "with", 1),
            Some("endgeneration") => prepared += &tag.replacen("endgeneration", "endwith", 1),
            Some("raw") => {
                // Everything up to `endraw` is text.
                let end = raw_length(rest);
                prepared += tag;
                prepared += &rest[..end];
                rest = &rest[end..];
            }
            _ if tag.starts_with("{%") || tag.starts_with("{{") => {
                if parts(tag) > MAX_PARTS {
                    return Err(format!(
                        "an expression has more than {MAX_PARTS} words and signs"
                    ));
                }
                let tag = unfolded(&formats_as_filters(tag, 0, &mut operands_left));
                prepared += &looked_at(tag);
            }
            _ => prepared += tag,
        }
    }
    Ok(prepared + rest)
}

/// Adds the filter [`KEPT`] to a tag that sets something with a dot in its name, which is an attribute of a namespace:
/// to the expression, or to the filters of a block.
fn looked_at(tag: String) -> String {
    let Some(at) = tag
        .find(['=', '|'])
        .filter(|_| block_name(&tag) == Some("set"))
    else {
        return tag;
    };
    let end = tag
        .strip_suffix("%}")
        .map_or("", |inside| inside.trim_end_matches(['-', '+']))
        .len();
    let is_empty = tag
        .get(at + 1..end)
        .is_none_or(|value| value.trim().is_empty());
    if is_empty || !tag[..at].contains('.') {
        return tag;
    }
    let (target, value, close) = (&tag[..=at], &tag[at + 1..end], &tag[end..]);
    match target.ends_with('=') {
        true => format!("{target} ({value})|{KEPT} {close}"),
        false => format!("{target}{value}|{KEPT} {close}"),
    }
}

/// The number of words and other characters in `tag`; each text counts as one of them, spaces do not count.
fn parts(tag: &str) -> usize {
    let (mut count, mut at, mut is_in_word) = (0, 0, false);
    while let Some(next) = tag[at..].chars().next() {
        let continues = is_in_word && is_word(next);
        is_in_word = is_word(next);
        count += usize::from(!continues && !next.is_whitespace());
        at += match next {
            '\'' | '"' => text_length(&tag[at..]),
            _ => next.len_utf8(),
        };
    }
    count
}

/// The length of the block or expression at the beginning of `tag`: all of `tag` if it is not closed.
fn tag_length(tag: &str) -> usize {
    let bytes = tag.as_bytes();
    let close: &[u8] = if bytes[1] == b'%' { b"%}" } else { b"}}" };
    let mut open_braces = 0_usize;
    let mut at = 2;
    while at < bytes.len() {
        if open_braces == 0 && bytes[at..].starts_with(close) {
            return at + 2;
        }
        match bytes[at] {
            b'\'' | b'"' => {
                at += text_length(&tag[at..]);
                continue;
            }
            b'{' => open_braces += 1,
            b'}' => open_braces = open_braces.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    tag.len()
}

/// The first word of a block, such as `for`.
fn block_name(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?;
    let inside = inside.trim_start_matches(['-', '+']).trim_start();
    let end = inside.find(|c: char| !is_word(c)).unwrap_or(inside.len());
    Some(&inside[..end])
}

/// The length of the text before the block that ends a raw block.
fn raw_length(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%") {
        if block_name(&text[from + at..]) == Some("endraw") {
            return from + at;
        }
        from += at + 2;
    }
    text.len()
}

/// The length of the quoted text at the beginning of `source`: all of `source` if it is not closed.
fn text_length(source: &str) -> usize {
    let quote = source.as_bytes()[0];
    let mut is_escaped = false;
    for (at, &byte) in source.as_bytes().iter().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            byte if byte == quote => return at + 1,
            _ => {}
        }
    }
    source.len()
}

/// Rewrites the products in the expression `source` so that the engine's compiler does not evaluate them, even if their
/// factors are constants. The compiler uses no fuel, it would repeat the evaluation for each enclosing operator, and a
/// text multiplied by a number may have 100 MB.
fn unfolded(source: &str) -> String {
    // The compiler does not treat the result of a filter as a constant.
    const ONE: &str = "* 1|int *";
    let bytes = source.as_bytes();
    let mut written = String::with_capacity(source.len());
    let (mut copied, mut at) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at += text_length(&source[at..]),
            b'*' => {
                // Two stars are a power; a star that does not follow a factor unpacks arguments of a call.
                let stars = source[at..].len() - source[at..].trim_start_matches('*').len();
                let before = source[..at].trim_end();
                let is_product =
                    stars == 1 && before.ends_with(|c: char| is_word(c) || "'\")]}.".contains(c));
                if is_product {
                    written += &source[copied..at];
                    written += ONE;
                    copied = at + 1;
                }
                at += stars;
            }
            _ => at += 1,
        }
    }
    written + &source[copied..]
}

/// Rewrites `'…' % operand` in the expression `source` as `'…'|python_format(operand)`.
fn formats_as_filters(source: &str, depth: usize, operands_left: &mut usize) -> String {
    let bytes = source.as_bytes();
    let mut written = String::with_capacity(source.len());
    // The source is copied up to `copied` and examined up to `at`.
    let (mut copied, mut at) = (0, 0);
    while at < bytes.len() {
        if !matches!(bytes[at], b'\'' | b'"') {
            at += 1;
            continue;
        }
        at += text_length(&source[at..]);
        // Several `%` are applied from left to right.
        while let Some(operand) = after_percent(source, at) {
            if depth == MAX_DEPTH || *operands_left == 0 {
                break;
            }
            *operands_left -= 1;
            let length = operand_length(&source[operand..]);
            if length == 0 {
                break;
            }
            let end = operand + length;
            written += &source[copied..at];
            let inside = formats_as_filters(&source[operand..end], depth + 1, operands_left);
            written += &format!("|{FORMAT}({inside})");
            (copied, at) = (end, end);
        }
    }
    written + &source[copied..]
}

/// The position of the operand, if there is a `%` at `at` that does not end a block.
fn after_percent(source: &str, at: usize) -> Option<usize> {
    let after = source[at..].trim_start().strip_prefix('%')?;
    let operand = after.trim_start();
    (!after.starts_with('}')).then(|| source.len() - operand.len())
}

/// The length of the operand at the beginning of `source`, including filters and calls; 0 if there is none.
fn operand_length(source: &str) -> usize {
    let skip_space = |at: usize| source.len() - source[at..].trim_start().len();
    let mut end = skip_space(0);
    while source[end..].starts_with(['-', '+']) {
        end = skip_space(end + 1);
    }
    let primary = primary_length(&source[end..]);
    if primary == 0 {
        return 0;
    }
    end += primary;
    loop {
        let next = skip_space(end);
        let rest = &source[next..];
        let length = match rest.as_bytes().first() {
            Some(b'(' | b'[') => group_length(rest),
            Some(separator @ (b'.' | b'|')) => {
                let name = skip_space(next + 1);
                let length = word_length(&source[name..]);
                // Either `||`, or a bar that is not followed by the name of a filter.
                if length == 0 || *separator == b'|' && rest.starts_with("||") {
                    return end;
                }
                name + length - next
            }
            _ => 0,
        };
        // The operand ends here, or a bracket is not closed.
        if length == 0 {
            return end;
        }
        end = next + length;
    }
}

fn primary_length(source: &str) -> usize {
    match source.as_bytes().first() {
        Some(b'\'' | b'"') => text_length(source),
        Some(b'(' | b'[' | b'{') => group_length(source),
        Some(b'0'..=b'9') => {
            let end = source.find(|c: char| !(is_word(c) || c == '.'));
            end.unwrap_or(source.len())
        }
        _ => word_length(source),
    }
}

/// The length of the bracketed text at the beginning of `source`, for brackets of any kind; 0 if they are not closed.
fn group_length(source: &str) -> usize {
    let bytes = source.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => {
                at += text_length(&source[at..]);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    0
}

fn word_length(source: &str) -> usize {
    source.find(|c: char| !is_word(c)).unwrap_or(source.len())
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_blocks_that_change_nothing() {
        for (source, prepared) in [
            (
                "a{% generation %}b{% endgeneration %}",
                "a{% with %}b{% endwith %}",
            ),
            (
                "{%- generation -%} b {%-endgeneration-%}",
                "{%- with -%} b {%-endwith-%}",
            ),
            ("{% set generation = 1 %}", "{% set generation = 1 %}"),
            ("{{ generation }}", "{{ generation }}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            (
                "{% raw %}{% generation %}{% endraw %}{% generation %}",
                "{% raw %}{% generation %}{% endraw %}{% with %}",
            ),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
        ] {
            assert_eq!(prepare(source).unwrap(), prepared);
        }
    }

    #[test]
    fn words_signs_and_texts_are_counted() {
        for (tag, count) in [
            ("{{ a1 ~ 'b c \\' d' }}", 7),
            ("{%- if not -b_2 == \"%}\" -%}", 13),
            ("{{ é|ü }}", 7),
            ("{{", 2),
        ] {
            assert_eq!(parts(tag), count, "{tag}");
        }
    }

    #[test]
    fn what_a_namespace_is_given_passes_a_filter() {
        for (source, prepared) in [
            (
                "{%- set ns.a = b ~ '=' -%}",
                "{%- set ns.a = ( b ~ '=' )|kept_in_namespace -%}",
            ),
            (
                "{% set (ns.a, b)=1, 2%}",
                "{% set (ns.a, b)= (1, 2)|kept_in_namespace %}",
            ),
            (
                "{% set ns.a | default('=') %}x{% endset %}",
                "{% set ns.a | default('=') |kept_in_namespace %}x{% endset %}",
            ),
            ("{% set ns.a %}x{% endset %}", "{% set ns.a %}x{% endset %}"),
            ("{% set a = b.c %}", "{% set a = b.c %}"),
            ("{% set ns.a =", "{% set ns.a ="),
            ("{% set ns.a =%}", "{% set ns.a =%}"),
        ] {
            assert_eq!(prepare(source).unwrap(), prepared);
        }
    }

    #[test]
    fn products_are_worked_out_when_the_template_runs() {
        for (source, prepared) in [
            ("{{ 'x' * 3*y }}", "{{ 'x' * 1|int * 3* 1|int *y }}"),
            ("{{ f(*a, **b) ** 2 ~ '*' }}", "{{ f(*a, **b) ** 2 ~ '*' }}"),
            ("a * b {# c * d #}", "a * b {# c * d #}"),
        ] {
            assert_eq!(prepare(source).unwrap(), prepared);
        }
    }

    #[test]
    fn percent_after_a_text_becomes_a_filter() {
        for (source, prepared) in [
            ("{{ '%s' % x }}", "{{ '%s'|python_format(x) }}"),
            (
                "{{ \"%s %d\"%(a, b[1]) ~ c }}",
                "{{ \"%s %d\"|python_format((a, b[1])) ~ c }}",
            ),
            (
                "{{ '%s' % a.b['%'](c) | trim + d }}",
                "{{ '%s'|python_format(a.b['%'](c) | trim) + d }}",
            ),
            (
                "{% set a = '%s' % ('%d' % -1) %}",
                "{% set a = '%s'|python_format(('%d'|python_format(-1))) %}",
            ),
            (
                "{{ '%%%s' % 'a' % b }}",
                "{{ '%%%s'|python_format('a')|python_format(b) }}",
            ),
            ("{{ 'a' }}% b", "{{ 'a' }}% b"),
            (
                "{% if a == 'b' %}c{% endif %}",
                "{% if a == 'b' %}c{% endif %}",
            ),
            ("{%- if 'b' -%}{{ 7 % 4 }}", "{%- if 'b' -%}{{ 7 % 4 }}"),
            ("'%s' % x", "'%s' % x"),
            (
                "{{ '{{' ~ {'a': {'b': 1}} }}'%s' % x",
                "{{ '{{' ~ {'a': {'b': 1}} }}'%s' % x",
            ),
            ("{{ '%s' % (x", "{{ '%s' % (x"),
            (
                "{{ '%s' % a[((((b('c') }}",
                "{{ '%s'|python_format(a)[((((b('c') }}",
            ),
            ("{{ 'open", "{{ 'open"),
            ("{%", "{%"),
        ] {
            assert_eq!(prepare(source).unwrap(), prepared);
        }
    }
}
