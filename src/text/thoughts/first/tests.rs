use std::path::Path;

use proptest::prelude::*;

use super::super::Part;
use super::*;

const OPEN: u32 = 316;
const CLOSE: u32 = 317;
const TEMPLATE: &str = "<think> <function=";

fn tokenizer() -> Arc<Tokenizer> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let file = fixtures.join("granite-4.2-tiny/tokenizer.json");
    let inner = tokenizers::Tokenizer::from_file(&file).unwrap();
    Arc::new(Tokenizer::new(inner, &file).unwrap())
}

/// An inner constraint that allows the ids 40 to 71 and is satisfied after three tokens.
#[derive(Debug, Clone)]
struct Thrice(usize);

impl Constraint for Thrice {
    fn allowed(&mut self) -> Option<&[u32]> {
        Some(&[0, 0xFFFF_FF00, 0xFF])
    }

    fn accept(&mut self, token: u32) -> bool {
        assert!((40..72).contains(&token), "{token}");
        self.0 += 1;
        self.0 == 3
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

fn constraint(template: &str, prompt: &str, budget: Option<usize>, inner: bool) -> ThoughtFirst {
    let form = Form::of(template).unwrap();
    let tokens = Arc::new(ThoughtTokens::new(form, tokenizer()).unwrap());
    let bounds = Bounds {
        budget,
        ..Bounds::default()
    };
    let inner = inner.then(|| Box::new(Thrice(0)) as Box<dyn Constraint>);
    ThoughtFirst::new(tokens, form.after(prompt), bounds, inner)
}

/// Runs `constraint` with a model that prefers the tokens `wanted`, and returns the generated tokens.
fn run(constraint: &mut dyn Constraint, wanted: &[u32]) -> Vec<u32> {
    let mut written = Vec::new();
    for &token in wanted {
        let token = match constraint.turn() {
            Turn::Forced(forced) => forced,
            Turn::Free { .. } => token,
            Turn::Masked => {
                let allowed = constraint.allowed().unwrap();
                let word = allowed.get(token as usize / 32).copied().unwrap_or(0);
                if word >> (token % 32) & 1 == 1 {
                    token
                } else {
                    41
                }
            }
        };
        written.push(token);
        if constraint.accept(token) {
            break;
        }
    }
    written
}

#[test]
fn what_must_be_begins_behind_the_thought() {
    let mut all = constraint(TEMPLATE, "<think>\n", None, true);
    assert_eq!(all.turn(), Turn::Free { may_end: false });
    // Token 11 is a line feed: byte 10, after the end-of-text token, which has id 0.
    let written = run(&mut all, &[5, 6, 11, CLOSE, 99, 50, 99, 60, 99]);
    assert_eq!(written, [5, 6, 11, CLOSE, 11, 50, 41, 60]);
}

#[test]
fn a_model_that_need_not_think_may_answer_at_once() {
    let unsaid = || constraint(TEMPLATE, "assistant\n", None, true);
    assert_eq!(run(&mut unsaid(), &[50, 60, 70, 99]), [50, 60, 70]);
    let written = run(&mut unsaid(), &[OPEN, 99, CLOSE, 99, 50, 60, 70]);
    assert_eq!(written, [OPEN, 99, CLOSE, 11, 50, 60, 70]);
    let off = run(
        &mut constraint(TEMPLATE, "<think></think>", None, true),
        &[OPEN, 50, 60],
    );
    assert_eq!(off, [41, 50, 60]);
}

#[test]
fn a_budget_ends_the_thought_with_the_one_token_and_is_over_then() {
    let mut free = constraint(TEMPLATE, "<think>\n", Some(4), false);
    let written = run(&mut free, &[99; 8]);
    assert_eq!(written, [99, 99, 99, 11, CLOSE, 99, 99, 99]);
    let mut at_line = constraint(TEMPLATE, "<think>\n", Some(4), false);
    let written = run(&mut at_line, &[99, 99, 11, 99, OPEN, 99, 99]);
    assert_eq!(
        written,
        [99, 99, 11, CLOSE, OPEN, 99, 99],
        "no thought begins again"
    );
    let mut early = constraint(TEMPLATE, "<think>\n", Some(4), false);
    assert_eq!(
        run(&mut early, &[99, CLOSE, 99, 99, 99, 99, 99])[2..],
        [99; 5]
    );
    let mut none = constraint(TEMPLATE, "<think>\n", Some(0), false);
    assert_eq!(run(&mut none, &[99, 99]), [CLOSE, 99]);
}

#[test]
fn a_stop_id_of_the_answer_is_a_token_like_others_in_the_thought() {
    let form = Form::of(TEMPLATE).unwrap();
    let tokens = Arc::new(ThoughtTokens::new(form, tokenizer()).unwrap());
    let bounds = Bounds {
        stops: vec![7, CLOSE],
        ..Bounds::default()
    };
    assert!(!bounds.are_empty());
    let mut free = ThoughtFirst::new(tokens, form.after("<think>\n"), bounds, None);
    for (token, heeds_seven) in [(5, false), (7, false), (CLOSE, true), (5, true)] {
        assert!(free.heeds(8), "an id of the model's own");
        assert!(!free.heeds(CLOSE) || heeds_seven || token == 5);
        free.accept(token);
        assert_eq!(free.heeds(7), heeds_seven, "after {token}");
    }
}

#[test]
fn a_form_without_tokens_of_its_own_is_ended_by_its_words() {
    let template = "Here is my thought process: Here is my response:";
    let tokenizer = tokenizer();
    let mut wanted = tokenizer
        .encode("Here is my thought process:", 100)
        .unwrap();
    wanted.extend([99; 60]);
    let mut free = constraint(template, "assistant\n", Some(3), false);
    let written = run(&mut free, &wanted);
    let bytes: Vec<u8> = written
        .iter()
        .flat_map(|&id| tokenizer.bytes(id))
        .copied()
        .collect();
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.starts_with("Here is my thought process:Here is my response:bb"),
        "{text}"
    );
}

proptest! {
    /// Whatever the model writes, a client counts no more tokens in the thought than the budget allows.
    #[test]
    fn no_thought_is_longer_than_its_budget(
        wanted in prop::collection::vec(prop_oneof![0_u32..320, Just(OPEN), Just(CLOSE), Just(11)], 0..80),
        budget in 0..12_usize,
        prompt in prop_oneof![Just("<think>\n"), Just("assistant\n"), Just("<think></think>")],
        inner in any::<bool>(),
    ) {
        let mut all = constraint(TEMPLATE, prompt, Some(budget), inner);
        let written = run(&mut all, &wanted);
        let mut decoder = Decoder::new(tokenizer());
        let mut reader = Form::of(TEMPLATE).unwrap().after(prompt);
        let (mut thought, mut count) = (String::new(), 0);
        for token in written {
            let before = reader.phase();
            for part in reader.push(&decoder.push(token)) {
                if let Part::Thought(more) = part {
                    thought += &more;
                }
            }
            if before == Phase::Thought && reader.phase() == Phase::Thought {
                count += 1;
            }
        }
        prop_assert!(count <= budget, "{count} tokens: {thought}");
    }
}
