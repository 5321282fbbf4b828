//! Runs the text scripts beside this file: given these arrivals, the scheduler plans these steps.
//!
//! A line that begins with `>` is a command; the lines below it, up to the next command, are its expected output. After
//! a change of the rules, `BLESS=1 cargo test --test scheduler scripts` writes the actual output, to be reviewed line
//! by line.
//!
//! | command | what it does and prints |
//! |---|---|
//! | `settings batch=N rows=N prompt_rows=N pages=N` | restarts without a prefix cache |
//! | `caching batch=N rows=N prompt_rows=N pages=N` | restarts with a prefix cache |
//! | `arrive NAME prompt=N tokens=N` | a generation arrives, with a text of its own |
//! | `arrive NAME prompt=N tokens=N like=OTHER` | a generation arrives with the text of OTHER, as far as both go |
//! | `arrive NAME prompt=N tokens=N flow=N:WEIGHT priority=N` | a generation of a client with this number and weight arrives |
//! | `score NAME prompt=N tokens=N like=OTHER` | the same, and it needs the logits of its whole prompt |
//! | `step` | one step: the number of preemptions, and for each generation its positions, its new tokens, and whether it ends |
//! | `run steps=N` | N steps, of which only preemptions and ends are printed |
//! | `draft NAME drafts=N right=N` | a step in which NAME has N drafts, of which the first `right` are right |
//! | `leave NAME` | a generation is cancelled |
//! | `state` | the running generations, how many wait, pages that hold tokens and free pages |
//! | `cache` | free pages that can still be found, and the number of pages evicted so far |
//! | `pages NAME` | the pages of a generation, in order |

use std::fmt::Write;
use std::path::Path;

use microgranite::engine::Flow;
use microgranite::engine::pages::Pages;
use microgranite::engine::scheduler::{Budget, Scheduler};

/// The script's record of a generation.
struct Job {
    name: String,
    /// The prompt, all tokens that will be generated, and some more, for drafts past the end.
    text: Vec<u32>,
    prompt: usize,
    tokens: usize,
    generated: usize,
    drafts: usize,
    scores: bool,
    flow: Flow,
    priority: i64,
}

impl microgranite::engine::scheduler::Job for Job {
    fn tokens(&self) -> &[u32] {
        &self.text[..self.prompt + self.generated + self.drafts]
    }

    fn drafts(&self) -> usize {
        self.drafts
    }

    fn scores_prompt(&self) -> bool {
        self.scores
    }

    fn flow(&self) -> Flow {
        self.flow
    }

    fn priority(&self) -> i64 {
        self.priority
    }
}

/// The largest number of drafts in a script.
const MOST_DRAFTS: usize = 30;

struct Script {
    scheduler: Scheduler<Job>,
    prompt_rows: usize,
    /// For each text, the name of the generation that it belongs to.
    texts: Vec<String>,
}

#[test]
fn every_script_says_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scheduler");
    let mut scripts: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 11, "scripts are missing: {scripts:?}");
    for path in scripts {
        let script = std::fs::read_to_string(&path).unwrap();
        let happened = run(&script);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &happened).unwrap();
            continue;
        }
        assert!(
            happened == script,
            "{} does not say what happened:\n{happened}",
            path.display()
        );
    }
}

/// The script with the expected output replaced by the actual one.
fn run(script: &str) -> String {
    let mut state = settings(&[1, 1, 1, 1], false);
    let mut happened = String::new();
    let mut in_answer = false;
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(happened, "{line}").unwrap();
            happened += &state.execute(command);
            in_answer = true;
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(happened, "{line}").unwrap();
            in_answer = false;
        } else {
            assert!(in_answer, "an answer without a command: {line}");
        }
    }
    happened
}

impl Script {
    fn execute(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        match words[..] {
            [
                start @ ("settings" | "caching"),
                batch,
                rows,
                prompt_rows,
                pages,
            ] => {
                let values = [
                    number(batch, "batch"),
                    number(rows, "rows"),
                    number(prompt_rows, "prompt_rows"),
                    number(pages, "pages"),
                ];
                *self = settings(&values, start == "caching");
                String::new()
            }
            ["arrive", name, prompt, tokens] => self.arrive(name, prompt, tokens, name, false),
            ["arrive", name, prompt, tokens, flow, priority] => {
                self.arrive(name, prompt, tokens, name, false);
                let flow = flow.strip_prefix("flow=").expect("flow=N:WEIGHT");
                let (id, weight) = flow.split_once(':').expect("flow=N:WEIGHT");
                let job = self.scheduler.remove_if(|job| job.name == name);
                let mut job = job.into_iter().next().expect("it has arrived");
                job.flow = Flow {
                    id: id.parse().unwrap(),
                    weight: weight.parse().unwrap(),
                };
                let priority = priority.strip_prefix("priority=");
                job.priority = priority.expect("priority=N").parse().unwrap();
                let (prompt, tokens) = (job.prompt, job.tokens);
                self.scheduler.arrive(job, prompt, tokens);
                String::new()
            }
            [how @ ("arrive" | "score"), name, prompt, tokens, like] => {
                let like = like.strip_prefix("like=").expect("like=OTHER");
                self.arrive(name, prompt, tokens, like, how == "score")
            }
            ["leave", name] => {
                let gone = self.scheduler.remove_if(|job| job.name == name);
                assert_eq!(gone.len(), 1, "{name} is not there");
                String::new()
            }
            ["step"] => self.step(0),
            ["run", steps] => {
                let steps = 0..number(steps, "steps");
                let said: String = steps.map(|_| self.step(0)).collect();
                let is_news = |line: &&str| !line.contains("..");
                let news = said.lines().filter(is_news);
                news.map(|line| format!("{line}\n")).collect()
            }
            ["draft", name, drafts, right] => {
                self.job(name).drafts = number(drafts, "drafts");
                self.step(number(right, "right"))
            }
            ["state"] => self.state(),
            ["cache"] => {
                let pages = self.scheduler.pages();
                format!("{} cached, {} evicted\n", pages.cached(), pages.evicted())
            }
            ["pages", name] => {
                let running = self.scheduler.running().iter();
                let one = running.clone().find(|running| running.job.name == name);
                format!("{:?}\n", one.expect("it runs").pages())
            }
            _ => panic!("not a command: {command}"),
        }
    }

    fn job(&mut self, name: &str) -> &mut Job {
        let mut running = self.scheduler.running_mut().iter_mut();
        let one = running.find(|running| running.job.name == name);
        &mut one.expect("it runs").job
    }

    fn arrive(
        &mut self,
        name: &str,
        prompt: &str,
        tokens: &str,
        like: &str,
        scores: bool,
    ) -> String {
        let (prompt, tokens) = (number(prompt, "prompt"), number(tokens, "tokens"));
        if !self.texts.iter().any(|text| text == like) {
            self.texts.push(like.into());
        }
        let text = self.texts.iter().position(|text| text == like);
        let first = 1000 * text.expect("it was added") as u32;
        let job = Job {
            name: name.into(),
            text: (first..).take(prompt + tokens + MOST_DRAFTS).collect(),
            prompt,
            tokens,
            generated: 0,
            drafts: 0,
            scores,
            flow: Flow::SHARED,
            priority: 0,
        };
        self.scheduler.arrive(job, prompt, tokens);
        String::new()
    }

    fn step(&mut self, right: usize) -> String {
        let scheduler = &mut self.scheduler;
        let preempted = scheduler.preemptions();
        scheduler.admit();
        let mut plan = Vec::new();
        scheduler.plan(self.prompt_rows, usize::MAX, &mut plan);
        let mut said = String::new();
        let preempted = scheduler.preemptions() - preempted;
        if preempted > 0 {
            writeln!(said, "{preempted} preempted").unwrap();
        }
        if plan.is_empty() {
            said += "nothing to do\n";
        }
        for work in &mut plan {
            let job = &mut scheduler.running_mut()[work.index].job;
            let end = work.start + work.rows;
            write!(said, "{} {}..{end}", job.name, work.start).unwrap();
            let reaches_end = end - work.drafts == job.prompt + job.generated;
            if work.logit_rows > usize::from(reaches_end) {
                write!(said, ", {} rows of logits", work.logit_rows).unwrap();
            }
            if reaches_end {
                let right = right.min(work.drafts);
                work.rows -= work.drafts - right;
                for _ in 0..1 + right {
                    job.generated += 1;
                    write!(said, ", token {}", job.generated).unwrap();
                }
            }
            job.drafts = 0;
            said.push('\n');
        }
        scheduler.settle(&plan);
        for job in scheduler.remove_if(|job| job.generated == job.tokens) {
            writeln!(said, "{} ends", job.name).unwrap();
        }
        said
    }

    fn state(&self) -> String {
        let running = self.scheduler.running().iter();
        let names: Vec<&str> = running.map(|running| running.job.name.as_str()).collect();
        format!(
            "running {names:?}, {} waiting, pages {} used {} free\n",
            self.scheduler.waiting(),
            self.scheduler.pages_used(),
            self.scheduler.pages().free(),
        )
        .replace('"', "")
    }
}

fn settings(values: &[usize; 4], prefix_cache: bool) -> Script {
    let [max_batch, step_tokens, prompt_rows, pages] = *values;
    let budget = Budget {
        max_batch,
        step_tokens,
    };
    Script {
        scheduler: Scheduler::new(budget, Pages::new(pages, prefix_cache, None), false),
        prompt_rows,
        texts: Vec::new(),
    }
}

fn number(word: &str, name: &str) -> usize {
    word.strip_prefix(name)
        .and_then(|rest| rest.strip_prefix('='))
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("expected {name}=N, not {word}"))
}
