//! Random chat templates, run in this process: a model's template is as untrusted as a request.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use microgranite::text::Tokenizer;
use microgranite::text::chat::{ChatTemplate, Conversation, Message, Role};
use minijinja::Value;
use peak_alloc::PeakAlloc;

use crate::inputs::Inputs;
use crate::targets::{alone, duration, seed};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A conversation must be rendered, or refused, within this processor time and memory. Processor time, because a busy machine
/// can make any template wait.
const LONGEST: Duration = Duration::from_secs(2);
const MOST_MEGABYTES: f32 = 256.0;
/// A template that has not ended after this time hangs.
const PATIENCE: Duration = Duration::from_secs(60);

const GOOD: [&str; 8] = [
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% for m in messages if m.role != 'system' %}{{ m['content'] | trim }}{% endfor %}",
    "{% macro show(x, depth=0) %}{{ x ~ depth }}{% if depth < 3 %}{{ show(x, depth + 1) }}{% endif %}{% endmacro %}{{ show(messages[0].content) }}",
    "{% set ns = namespace(text='a') %}{% for i in range(20) %}{% set ns.text = ns.text ~ ns.text %}{% endfor %}{{ ns.text | length }}",
    "{{ messages | map(attribute='content') | join(', ') | upper | replace('A', 'AA') | indent(4) }}",
    "{% generation %}{{ messages[-1]['content'].split(' ')[0].strip() }}{% endgeneration %}{{ raise_exception('no') if false }}",
    "{{ '%s: %05d' % (messages[0].role, 7) }}{{ 'ab'.rjust(9) }}{{ 'x' * 3 }}{{ strftime_now('%Y') }}{{ {'a': [1, 2]}.items() | list }}",
    "{%- set loop_messages = messages[1:] -%}{%- for m in loop_messages | reverse -%}{{ loop.index }}{{ m.content | tojson }}{%- else -%}none{%- endfor -%}",
];

const WORDS: [&str; 40] = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "(",
    ")",
    "[",
    "]",
    "messages",
    "range(1000000000)",
    "'x' * 1000000000",
    "* 99999999",
    "| indent(1000000000)",
    ".zfill(1000000000)",
    ".center(1000000000)",
    ".ljust(1000000000)",
    "'%1000000000s' % 'x'",
    "'%.1000000000f' % 1.5",
    "{% for i in range(100000) %}",
    "{% endfor %}",
    "{% if true %}",
    "{% endif %}",
    "~ ns.text",
    "| list",
    "| join",
    "| tojson",
    "| replace('', 'xxxxxxxx')",
    "| reverse",
    "| sort",
    "| batch(3)",
    "| wordcount",
    ".split('')",
    ".rsplit('a', 3)",
    ".append(1)",
    "| map('upper')",
    "not ",
    "loop.cycle('a')",
    "| center(99999999)",
];

#[test]
fn no_template_ends_freezes_or_bloats_whoever_runs_it() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let file = fixtures.join("granite-3-tiny/tokenizer.json");
    let inner = tokenizers::Tokenizer::from_file(&file).expect("the fixture loads");
    let tokenizer = Tokenizer::new(inner, &file).expect("the fixture is a tokenizer");
    let _alone = alone();
    let seed = seed();
    let mut inputs = Inputs::new(seed);
    let (to_do, sources) = channel::<String>();
    let (done, results) = channel();
    // The same stack size as in the service.
    thread::spawn(move || {
        for source in sources {
            done.send(render(&source, &tokenizer))
                .expect("the test waits");
        }
    });
    let (began, mut cases, mut rendered) = (Instant::now(), 0, 0);
    let kept = std::env::temp_dir().join("microgranite-fuzz-templates.jinja");
    while began.elapsed() < duration() {
        let good = inputs.pick(&GOOD);
        let source = inputs.spoil(good, &WORDS);
        // Saved before it runs, because it may end the process.
        std::fs::write(&kept, &source).expect("the template is kept");
        cases += 1;
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage_as_mb();
        let used_before = processor_time();
        to_do.send(source).expect("the thread lives");
        let wrong = match results.recv_timeout(PATIENCE) {
            Ok(is_rendered) => {
                rendered += u64::from(is_rendered);
                let peak = MEMORY.peak_usage_as_mb() - before;
                let used = processor_time() - used_before;
                match used > LONGEST {
                    true => Some(format!("it took {used:?}")),
                    false => (peak > MOST_MEGABYTES).then(|| format!("it took {peak} MB")),
                }
            }
            Err(RecvTimeoutError::Timeout) => Some(format!("it did not end within {PATIENCE:?}")),
            Err(RecvTimeoutError::Disconnected) => Some("it panicked".to_owned()),
        };
        if let Some(wrong) = wrong {
            panic!(
                "{wrong}: template {cases} of seed {seed}, in {}",
                kept.display()
            );
        }
    }
    println!("templates: {cases}, of which {rendered} were rendered");
    assert!(rendered > 0, "none was rendered");
}

/// The processor time that this process has used. No other test runs meanwhile, see [`alone`].
fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

/// Whether the template compiles and renders a small conversation.
fn render(source: &str, tokenizer: &Tokenizer) -> bool {
    let Ok(template) = ChatTemplate::new(source, tokenizer, None, Some(0)) else {
        return false;
    };
    let conversation = Conversation {
        messages: vec![
            message(Role::System, "Be brief."),
            message(Role::User, "What is the answer to everything?"),
        ],
        tools: Some(Value::from(vec!["f", "g"])),
        ..Conversation::default()
    };
    template
        .render(&conversation, Timestamp::UNIX_EPOCH)
        .is_ok()
}

fn message(role: Role, content: &str) -> Message {
    Message {
        role,
        content: content.to_owned(),
        reasoning: None,
        name: None,
        calls: Vec::new(),
        call_id: None,
    }
}
