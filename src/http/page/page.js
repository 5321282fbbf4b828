"use strict";
const $ = id => document.getElementById(id);
// Text is only ever put in as text: what a model writes is never markup.
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const svg = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

// Numbers.
const bytes = n => {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (n >= size) return (n / size).toPrecision(3).replace(/e\+?.*/, "") * 1 + " " + unit;
  return n + " B";
};
const seconds = s => s === null ? "–" : s >= 1 ? s.toFixed(2) + " s" : Math.round(s * 1000) + " ms";
const rate = n => n >= 100 ? Math.round(n) : n.toFixed(1);
const lasting = s => s >= 172800 ? Math.floor(s / 86400) + " days" : s >= 7200 ? Math.floor(s / 3600) + " h"
  : s >= 120 ? Math.floor(s / 60) + " min" : s + " s";

// The key is in this variable and nowhere else.
let key = "";
const call = (path, options = {}) => {
  const headers = { ...options.headers };
  if (key) headers.authorization = "Bearer " + key;
  return fetch(path, { cache: "no-store", credentials: "omit", ...options, headers });
};
const askForKey = () => {
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("key").focus();
};
$("key-form").addEventListener("submit", event => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  check();
});
// A route that needs a key wherever any does, and no computation.
const check = async () => {
  try {
    const answer = await call("v1/models");
    if (answer.status === 401) {
      $("key-problem").textContent = key ? "The server does not accept this key." : "";
      key = "";
      askForKey();
    } else $("key-form").hidden = true;
  } catch { /* The next reading of the status says so. */ }
  poll();
};

// The state of the server, every two seconds, and only while somebody can see it.
const EVERY = 2000, POINTS = 60;
let last = null, timer = 0, model = null, busy = false;
const poll = async () => {
  clearTimeout(timer);
  if (busy || document.hidden) return;
  busy = true;
  try {
    const answer = await call("status");
    if (answer.status === 401) { busy = false; return askForKey(); }
    if (!answer.ok) throw new Error("status " + answer.status);
    show(await answer.json());
  } catch {
    $("about").textContent = "The server does not answer. Trying again …";
    last = null;
  }
  busy = false;
  timer = setTimeout(poll, EVERY);
};
document.addEventListener("visibilitychange", poll);

const STATES = {
  loading: "loading the model", ready: "ready", draining: "shutting down", stalled: "stalled: a step does not end",
  damaged: "stopped: the weights are damaged", canary_failed: "stopped: the model does not answer as it did", stopped: "stopped",
};
const show = now => {
  now.at = performance.now() / 1000;
  $("version").textContent = "microgranite " + now.version;
  if (now.model && !model) {
    model = now.model;
    $("name").textContent = model.name;
    document.title = model.name + " · microgranite";
    $("think-option").hidden = !model.thinks;
    $("mode-option").hidden = !model.chats;
    setMode(model.chats ? "chat" : "completion");
  }
  const facts = model ? [(model.parameters / 1e6).toFixed(0) + " M parameters", "int8",
    "context " + model.context_length, model.instruction_set] : [];
  const about = [STATES[now.state] + " for " + lasting(now.uptime_seconds), ...facts].join(" · ");
  if (now.state !== "ready") $("about").textContent = [STATES[now.state], ...facts].join(" · ");
  else if ($("about").textContent !== about) $("about").textContent = about;
  $("main").hidden = !model;
  if (model) { memory(now.memory); charts(now); }
  last = now;
};

const bar = (box, label, value, most, used) => {
  let row = box.querySelector(`[data-for="${label}"]`);
  if (!row) {
    row = make("div", used ? "bar used" : "bar");
    row.dataset.for = label;
    const text = make("div");
    text.append(make("span", "", label), make("span", "value"));
    const picture = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    picture.append(svg("rect", { height: 10, rx: 1 }));
    row.append(text, picture);
    box.append(row);
  }
  row.querySelector(".value").textContent = bytes(value);
  row.querySelector("rect").setAttribute("width", most ? 100 * value / most : 0);
};
const memory = m => {
  const resident = m.resident_anon + m.resident_file;
  const most = Math.max(m.weights_f32, resident);
  $("saved").textContent = "int8 saves " + bytes(m.weights_f32 - m.weights) + " of f32 and "
    + bytes(Math.max(0, m.weights_bf16 - m.weights)) + " of bf16.";
  const box = $("bars");
  bar(box, "weights as f32", m.weights_f32, most, false);
  bar(box, "weights as bf16", m.weights_bf16, most, false);
  bar(box, "weights as int8", m.weights, most, true);
  bar(box, "resident, measured", resident, most, true);
};

// The times that came between two readings, and a quantile of them.
const since = (now, before) => ({
  count: now.count - before.count, bounds: now.bounds,
  counts: now.counts.map((count, at) => count - before.counts[at]),
});
const quantile = (times, share) => {
  if (times.count <= 0) return null;
  const rank = share * times.count;
  let low = 0, below = 0;
  for (const [at, bound] of times.bounds.entries()) {
    const count = times.counts[at];
    if (count >= rank && count > below) return low + (bound - low) * Math.max(0, (rank - below) / (count - below));
    low = bound; below = count;
  }
  return low;
};
const history = {};
const chart = (label, value, text) => {
  let box = $("charts").querySelector(`[data-for="${label}"]`);
  if (!box) {
    box = make("div", "chart");
    box.dataset.for = label;
    const picture = svg("svg", { viewBox: `0 0 ${POINTS - 1} 30`, preserveAspectRatio: "none", "aria-hidden": "true" });
    picture.append(svg("polyline", {}));
    box.append(make("p", "", label), make("strong"), picture);
    $("charts").append(box);
    history[label] = [];
  }
  const points = history[label];
  points.push(value ?? 0);
  if (points.length > POINTS) points.shift();
  const most = Math.max(...points, 1e-9), from = POINTS - points.length;
  const line = points.map((point, at) => `${from + at},${(29 - 28 * point / most).toFixed(2)}`).join(" ");
  box.querySelector("polyline").setAttribute("points", line);
  box.querySelector("strong").textContent = text;
};
const charts = now => {
  const before = last || now, passed = Math.max(now.at - before.at, 1e-3);
  const grown = name => last ? Math.max(0, now.totals[name] - before.totals[name]) : 0;
  const first = quantile(since(now.latency.first_token, before.latency.first_token), 0.95);
  const next = quantile(since(now.latency.next_token, before.latency.next_token), 0.95);
  const written = grown("generated_tokens") / passed, read = grown("prompt_tokens") / passed;
  const steps = grown("steps"), kv = now.memory.kv;
  chart("running", now.load.running, `${now.load.running} of ${now.load.batch_places}`);
  chart("waiting", now.load.waiting, String(now.load.waiting));
  chart("written", written, rate(written) + " tokens/s");
  chart("read", read, rate(read) + " tokens/s");
  chart("first token, p95", first, seconds(first));
  chart("next token, p95", next, seconds(next));
  chart("batch", steps ? grown("rows") / steps : 0, steps ? rate(grown("rows") / steps) + " rows a step" : "–");
  chart("KV cache", kv.used, (kv.reserved ? Math.round(100 * kv.used / kv.reserved) : 0) + " % of " + bytes(kv.reserved));
};

// The conversation.
let said = [], stopper = null;
const setMode = mode => {
  $("mode").value = mode;
  $("question-label").textContent = mode === "chat" ? "Your message" : "Text to continue";
};
$("mode").addEventListener("change", () => { setMode($("mode").value); forget(); });
const forget = () => {
  if (stopper) stopper.abort();
  said = [];
  $("messages").replaceChildren();
  $("speed").textContent = "";
  $("question").focus();
};
const message = (who, className) => {
  const box = make("div", "message " + className);
  box.append(make("span", "who", who + ": "));
  $("messages").append(box);
  return box;
};
const follow = () => { const box = $("messages"); box.scrollTop = box.scrollHeight; };

// The events of a stream.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts)
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

const ask = async text => {
  const chats = $("mode").value === "chat";
  const request = { model: model.name, stream: true, stream_options: { include_usage: true } };
  const temperature = $("temperature").valueAsNumber;
  if (temperature >= 0) request.temperature = temperature;
  message(chats ? "You" : "Text", "user").append(text);
  if (chats) {
    said.push({ role: "user", content: text });
    request.messages = said;
    const think = $("think").value;
    if (model.thinks && think === "on") request.reasoning = { enabled: true };
    else if (model.thinks && think) request.reasoning_effort = think;
  } else {
    // Models without a chat template seldom end by themselves: a paragraph.
    Object.assign(request, { prompt: text, max_tokens: 128 });
  }
  const box = message(chats ? model.name : "Continuation", "model");
  let thought = null, answer = null, content = "", reasoning = "", usage = null, failed = "";
  const asked = performance.now();
  let first = 0, latest = 0;
  stopper = new AbortController();
  const stopping = stopper.signal;
  $("send").disabled = true;
  $("stop").disabled = false;
  $("messages").setAttribute("aria-busy", "true");
  try {
    const response = await call(chats ? "v1/chat/completions" : "v1/completions", {
      method: "POST", body: JSON.stringify(request), signal: stopping, headers: { "content-type": "application/json" },
    });
    if (response.status === 401) askForKey();
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage || usage;
      const choice = event.choices[0];
      if (!choice) continue;
      const more = choice.delta?.reasoning_content, words = choice.delta?.content ?? choice.text;
      if (more || words) { latest = performance.now(); first ||= latest; }
      if (more) {
        if (!thought) {
          const details = make("details");
          details.append(make("summary", "", "Thinking …"), thought = make("div", "thought"));
          box.append(details);
        }
        thought.append(more);
        reasoning += more;
      }
      if (words) {
        if (!answer) {
          box.append(answer = make("span", "answer"));
          if (thought) box.querySelector("summary").textContent = "Thoughts";
        }
        answer.append(words);
        content += words;
      }
      if (choice.finish_reason === "length") failed = "The answer reached its length limit.";
      follow();
    }
  } catch (problem) {
    failed = stopping.aborted ? "Stopped." : problem.message || "The connection was lost.";
  }
  if (thought) box.querySelector("summary").textContent = "Thoughts";
  if (failed) box.append(make("p", "problem", failed));
  if (chats && content) {
    said.push({ role: "assistant", content, ...(reasoning && { reasoning_content: reasoning }) });
  } else if (chats) said.pop();
  if (usage) {
    const took = (latest - first) / 1000;
    $("speed").textContent = `${usage.prompt_tokens} tokens read, first token after ${seconds((first - asked) / 1000)}, `
      + `${usage.completion_tokens} tokens written`
      + (took > 0 && usage.completion_tokens > 1 ? `, ${rate((usage.completion_tokens - 1) / took)} tokens/s` : "");
  }
  stopper = null;
  $("send").disabled = false;
  $("stop").disabled = true;
  $("messages").removeAttribute("aria-busy");
  follow();
};

$("ask").addEventListener("submit", event => {
  event.preventDefault();
  const text = $("question").value;
  if (stopper || !model || !text.trim()) return;
  $("question").value = "";
  ask(text);
});
$("question").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
document.addEventListener("keydown", event => { if (event.key === "Escape" && stopper) stopper.abort(); });
$("stop").addEventListener("click", () => { stopper?.abort(); $("question").focus(); });
$("clear").addEventListener("click", forget);
check();
