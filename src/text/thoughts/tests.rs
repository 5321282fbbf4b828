use proptest::prelude::*;

use super::*;

/// Splits `pieces`, which follow `prompt`, into thought and answer, in the form that `template` uses.
fn split<'a>(
    template: &str,
    prompt: &str,
    pieces: impl IntoIterator<Item = &'a str>,
) -> (String, String) {
    let form = Form::of(template).expect("it teaches one");
    let mut splitter = form.after(prompt);
    let mut parts = Vec::new();
    let mut whole = String::new();
    for piece in pieces {
        whole += piece;
        parts.extend(splitter.push(piece));
    }
    parts.extend(splitter.finish());
    let (mut thought, mut answer, mut all) = (String::new(), String::new(), String::new());
    for part in parts {
        match &part {
            Part::Thought(text) => thought += text,
            Part::Answer(text) => answer += text,
            Part::Mark(_) => {}
        }
        let (Part::Thought(text) | Part::Mark(text) | Part::Answer(text)) = part;
        all += &text;
    }
    assert_eq!(all, whole, "nothing is lost");
    (thought, answer)
}

const GRANITE_3_2: &str = "write Here is my thought process: and Here is my response:";
const GRANITE_3_3: &str = "between <think></think> and <response></response>";
const GRANITE_4_2: &str = "{{ '<think>' }} <function=";

#[track_caller]
fn check(template: &str, prompt: &str, text: &str, thought: &str, answer: &str) {
    let expected = (thought.to_owned(), answer.to_owned());
    assert_eq!(split(template, prompt, [text]), expected, "{text:?}");
}

#[test]
fn the_end_of_the_prompt_says_where_an_answer_begins() {
    let open = "<|im_start|>assistant\n<think>\n";
    check(
        GRANITE_4_2,
        open,
        "I think.\n</think>\nYes.",
        "I think.",
        "Yes.",
    );
    check(
        GRANITE_4_2,
        open,
        "<think>\nI think.\n</think>\n\nYes.",
        "I think.",
        "Yes.",
    );
    check(GRANITE_4_2, open, "I think", "I think", "");
    check(GRANITE_4_2, open, "</think>Yes", "", "Yes");
    check(GRANITE_4_2, open, "a<think>b</think>c", "a<think>b", "c");
    check(GRANITE_4_2, open, "a</think>b</think>c", "a", "b</think>c");
    check(GRANITE_4_2, open, "a</think> \nb", "a", " \nb");
    let off = "<|im_start|>assistant\n<think></think>";
    check(
        GRANITE_4_2,
        off,
        "\n<think>a</think>b",
        "",
        "<think>a</think>b",
    );
    let unsaid = "<|im_start|>assistant\n";
    check(GRANITE_4_2, unsaid, "\n<think>\na\n</think>\n\nb", "a", "b");
    check(
        GRANITE_4_2,
        unsaid,
        "\nb <think>a</think>",
        "",
        "\nb <think>a</think>",
    );
    check(GRANITE_4_2, unsaid, " <th", "", " <th");
}

#[test]
fn older_granites_have_marks_of_their_own() {
    let prompt = "<|start_of_role|>assistant<|end_of_role|>";
    let text = "Here is my thought process: a\nHere's my response: b";
    check(GRANITE_3_2, prompt, text, " a", " b");
    let text = "Here's my thought process:\na";
    check(GRANITE_3_2, prompt, text, "a", "");
    check(
        GRANITE_3_2,
        prompt,
        "Here is the answer",
        "",
        "Here is the answer",
    );
    let text = "<think>I'm\nthinking</think>\n<response> Hello</response>\n";
    check(GRANITE_3_3, prompt, text, "I'm\nthinking", "Hello");
    check(GRANITE_3_3, prompt, "<think>a</think>b", "a", "b");
    let text = "<think>a</think><response>b</response> c</resp";
    check(GRANITE_3_3, prompt, text, "a", "b</response> c</resp");
    check(GRANITE_3_3, prompt, "b</response>", "", "b</response>");
}

#[test]
fn what_does_not_think_has_no_form() {
    assert_eq!(Form::of("{{ '<|start_of_role|>assistant' }}"), None);
    assert!(Form::of(GRANITE_3_3).is_some_and(|form| !form.is_default));
}

#[test]
fn a_thought_goes_out_as_far_as_it_is_certain() {
    let form = Form::of(GRANITE_4_2).unwrap();
    let mut splitter = form.after("<think>\n");
    assert_eq!(splitter.push("a b"), [Part::Thought("a b".into())]);
    assert_eq!(splitter.push("\n"), []);
    assert_eq!(splitter.push("c</th"), [Part::Thought("\nc".into())]);
    assert_eq!(splitter.phase(), Phase::Thought);
    assert_eq!(splitter.push("ink>"), [Part::Mark("</think>".into())]);
    assert_eq!(splitter.phase(), Phase::Answer);
}

#[test]
fn past_thoughts_are_split_off_the_text_that_they_begin() {
    let form = Form::of(GRANITE_4_2).unwrap();
    let past = form
        .split_off("\n<think>\na</b>\n</think>\n\nc</think>")
        .unwrap();
    assert_eq!((past.thought, past.answer), ("a</b>", "c</think>"));
    assert_eq!(
        past.whole.concat(),
        "\n<think>\na</b>\n</think>\n\nc</think>"
    );
    for text in ["a<think>b</think>", "<think>a", "a</think>", ""] {
        assert!(form.split_off(text).is_none(), "{text}");
    }
}

#[test]
fn much_white_space_takes_little_time() {
    for (template, prompt) in [(GRANITE_4_2, "<think>"), (GRANITE_3_3, "")] {
        let form = Form::of(template).unwrap();
        for before in ["", "<think>", "<think></think><response></response>"] {
            let mut splitter = form.after(prompt);
            splitter.push(before);
            let start = std::time::Instant::now();
            for _ in 0..500_000 {
                splitter.push(" ");
            }
            // Linear time is a fraction of a second; quadratic time would be minutes.
            assert!(start.elapsed().as_secs() < 20, "{before}");
        }
    }
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        parts in prop::collection::vec(prop_oneof![
            Just("<think>"), Just("</think>"), Just("<response>"), Just("</response>"), Just("\n"), Just(" "),
            Just("Here is my thought process:"), Just("Here's my response:"), Just("é"), Just("</"), Just("<th"), Just("Here"),
        ], 0..9),
        cuts in prop::collection::vec(any::<bool>(), 200),
        which in 0..3_usize,
        prompt in prop_oneof![Just("<think>\n"), Just("<think></think>"), Just("assistant\n")],
    ) {
        let template = [GRANITE_3_2, GRANITE_3_3, GRANITE_4_2][which];
        let text = parts.concat();
        let mut pieces = vec![String::new()];
        for (character, &cut) in text.chars().zip(cuts.iter().cycle()) {
            if cut {
                pieces.push(String::new());
            }
            pieces.last_mut().expect("never empty").push(character);
        }
        let whole = split(template, prompt, [text.as_str()]);
        prop_assert_eq!(split(template, prompt, pieces.iter().map(String::as_str)), whole);
    }
}
