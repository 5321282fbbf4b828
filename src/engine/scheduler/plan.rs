//! Chooses the rows of the next step.

use super::{Job, Running, Scheduler, Work};
use crate::engine::request::Flow;
use crate::model::{PAGE_TOKENS, Save};

impl<T: Job> Scheduler<T> {
    /// Plans the next step into `plan`, after [`Scheduler::admit`]. If no generation is decoding, prompts get at most
    /// `rows_alone`; otherwise at most `prompt_rows`, and at least one.
    ///
    /// Decoding rows come first, since a client is reading their answers as they grow. Drafts are checked only in steps
    /// without prompts: a prompt's rows are always useful, a draft's may not be.
    pub fn plan(&mut self, prompt_rows: usize, rows_alone: usize, plan: &mut Vec<Work>) {
        plan.clear();
        let decoding = self.decoding();
        // A generation needs no more rows than it had in the step before, so all of them fit.
        let mut left = self.budget.step_tokens.saturating_sub(self.decoding_rows());
        let mut drafts_left = if decoding == self.running.len() {
            left
        } else {
            0
        };
        for index in 0..self.running.len() {
            let running = &self.running[index];
            if running.is_decoding() {
                let (cached, certain) = (running.cached, running.next_end());
                // The last token is never computed, so a draft for it or behind it would be useless.
                let most = running.max_len.saturating_sub(certain + 1);
                let drafts = running.job.drafts().min(most).min(drafts_left);
                let drafts = self.cover(index, certain + drafts) - certain;
                drafts_left -= drafts;
                plan.push(self.running[index].decode(index, certain - cached, drafts));
            }
        }
        if decoding > 0 {
            // A row for each flow: none waits for another.
            left = left.min(prompt_rows.max(self.flows_with_prompts()));
        } else {
            left = left.min(rows_alone.max(self.flows_with_prompts()));
        }
        self.plan_prompts(left, self.budget.max_batch - decoding, plan);
        self.plan_snapshots(plan);
    }

    /// Divides `rows` rows between the flows of prompts, so that their shares of the step follow their weights, with the rows
    /// that they decode in it; and the rows of a flow between its prompts, at most `slots` of which may finish their prefill
    /// and begin to decode.
    fn plan_prompts(&mut self, rows: usize, mut slots: usize, plan: &mut Vec<Work>) {
        let [mut in_order, mut shortest_first] = std::mem::take(&mut self.prompts);
        let is_prompt = |&index: &usize| !self.running[index].is_decoding();
        in_order.clear();
        in_order.extend((0..self.running.len()).filter(is_prompt));
        shortest_first.clear();
        shortest_first.extend(&in_order);
        // Compared by powers of two, and in order of admission within one: prompts of about the same length gain
        // nothing from running side by side.
        shortest_first.sort_by_key(|&index| self.running[index].prefill_left().ilog2());
        let mut flows = std::mem::take(&mut self.prompt_flows);
        self.flows_of(&in_order, &mut flows);
        let level = level(&flows, rows);
        let (mut left, mut given, mut due) = (0, 0, 0.0);
        for (flow, decoding) in &flows {
            due += (level * flow.weight - decoding).max(0.0);
            // Rounded up, so that every row is given to somebody, but not for an error of rounding.
            let upto = ((due - 1e-6).ceil() as usize).clamp(given, rows);
            let share = upto - given;
            given = upto;
            let half = if self.odd_row_in_order {
                share.div_ceil(2)
            } else {
                share / 2
            };
            self.odd_row_in_order ^= !share.is_multiple_of(2);
            for (share, prompts) in [(half, &in_order), (share - half, &shortest_first)] {
                left += share;
                for &index in prompts {
                    let is_of_flow = self.running[index].job.flow().id == flow.id;
                    if left > 0 && is_of_flow && !self.is_following(index) {
                        left -= self.add_rows(index, left, &mut slots);
                    }
                }
            }
        }
        // Rows that others left over.
        for &index in &in_order {
            if left > 0 && !self.is_following(index) {
                left -= self.add_rows(index, left, &mut slots);
            }
        }
        self.prompt_flows = flows;
        let planned = in_order.iter();
        let planned = planned.filter(|&&index| self.running[index].planned > 0);
        plan.extend(planned.map(|&index| self.running[index].prefill_work(index)));
        self.prompts = [in_order, shortest_first];
    }

    /// The flows of `prompts`, with the rows that they decode in the planned step, in place of what is in `flows`; in each
    /// step another one is first.
    fn flows_of(&mut self, prompts: &[usize], flows: &mut Vec<(Flow, f64)>) {
        flows.clear();
        for &index in prompts {
            let flow = self.running[index].job.flow();
            if flows.iter().all(|(other, _)| other.id != flow.id) {
                let running = self.running.iter();
                let decoding =
                    running.filter(|one| one.is_decoding() && one.job.flow().id == flow.id);
                let rows: usize = decoding.map(|one| one.planned).sum();
                flows.push((flow, rows as f64));
            }
        }
        if flows.len() > 1 {
            let first = self.turn % flows.len();
            flows.rotate_left(first);
            self.turn = self.turn.wrapping_add(1);
        }
    }

    /// How many flows have a prompt that is not computed, at least 1.
    fn flows_with_prompts(&self) -> usize {
        let prompts = || self.running.iter().filter(|one| !one.is_decoding());
        let id = |one: &Running<T>| one.job.flow().id;
        let is_first = |(at, one): &(usize, &Running<T>)| {
            prompts().take(*at).all(|other| id(other) != id(one))
        };
        prompts().enumerate().filter(is_first).count().max(1)
    }

    /// Orders the snapshots of the planned step: where the prompt ends, so that the same prompt, another answer to it and
    /// the next turn of a conversation can begin there; where it parts from other prompts; and the last full page of an
    /// answer.
    fn plan_snapshots(&mut self, plan: &[Work]) {
        let Some(snapshots) = self.pages.snapshots_mut() else {
            return;
        };
        for work in plan {
            let running = &mut self.running[work.index];
            let certain = work.start..work.start + work.rows - work.drafts;
            let ends = match running.is_decoding() {
                true => [Some(certain.end / PAGE_TOKENS), None],
                false => {
                    let end = (running.prefill_len - 1) / PAGE_TOKENS;
                    let parting = running.parting.filter(|pages| *pages < end);
                    [parting, Some(end)]
                }
            };
            let ends = ends.into_iter().flatten().map(|pages| pages * PAGE_TOKENS);
            for end in ends.filter(|end| *end > certain.start && *end <= certain.end) {
                if let Some(snapshot) = snapshots.take() {
                    let rows = end - certain.start;
                    running.saves.push(Save { rows, snapshot });
                }
            }
        }
    }

    /// Adds up to `rows` rows to a prompt's plan; returns how many.
    fn add_rows(&mut self, index: usize, rows: usize, slots: &mut usize) -> usize {
        let running = &self.running[index];
        let (start, planned) = (running.cached, running.planned);
        let left = running.prefill_left() - planned;
        let mut rows = rows.min(left);
        if rows > 0 && rows == left && *slots == 0 {
            rows -= 1;
        }
        let end = start + planned + rows;
        let rows = self.cover(index, end).saturating_sub(start + planned);
        *slots -= usize::from(rows > 0 && rows == left);
        self.running[index].planned += rows;
        rows
    }

    /// Whether another prompt computes, in this step, the next page of this prompt, which has not begun: it is then
    /// worth waiting for the page.
    fn is_following(&self, index: usize) -> bool {
        let follower = &self.running[index];
        let end = follower.cached + PAGE_TOKENS;
        // Every generation computes the last token of its prompt, because its logits choose the next token.
        if !self.pages.publishes()
            || follower.planned > 0
            || !follower.awaits_its_first_step()
            || end >= follower.prefill_len
        {
            return false;
        }
        let begins_alike = |other: &Running<T>| {
            // A prompt that needs a state to go on from waits until the other takes its snapshot.
            let end = match self.keeps_states {
                true => (other.prefill_len - 1) / PAGE_TOKENS * PAGE_TOKENS,
                false => end,
            };
            other.planned > 0
                && !other.is_decoding()
                && other.published * PAGE_TOKENS < end
                && follower.cached < end
                && end < follower.prefill_len
                && other.job.salt() == follower.job.salt()
                && other.prefill().starts_with(&follower.prefill()[..end])
        };
        self.running.iter().any(begins_alike)
    }
}

/// The rows of the step for each unit of weight, with which `rows` further rows are used up when each flow is filled up to
/// it. A flow that decodes more rows already gets none.
fn level(flows: &[(Flow, f64)], rows: usize) -> f64 {
    let mut level = f64::INFINITY;
    loop {
        let (mut sum, mut weights) = (rows as f64, 0.0);
        for (flow, decoding) in flows {
            if *decoding < level * flow.weight {
                sum += decoding;
                weights += flow.weight;
            }
        }
        let lower = sum / weights;
        // As low as it gets, or there is nothing to fill.
        if lower >= level || weights == 0.0 {
            return level;
        }
        level = lower;
    }
}

impl<T: Job> Running<T> {
    /// The last `certain` tokens, of which all but one are drafts that turned out right, and the drafts behind them.
    fn decode(&mut self, index: usize, certain: usize, drafts: usize) -> Work {
        self.planned = certain + drafts;
        Work {
            index,
            start: self.cached,
            rows: certain + drafts,
            drafts,
            logit_rows: 1 + drafts,
        }
    }

    /// The planned chunk of a prompt.
    fn prefill_work(&self, index: usize) -> Work {
        let (start, rows) = (self.cached, self.planned);
        let logit_rows = if self.job.scores_prompt() {
            rows
        } else {
            usize::from(start + rows == self.prefill_len)
        };
        Work {
            index,
            start,
            rows,
            drafts: 0,
            logit_rows,
        }
    }
}
