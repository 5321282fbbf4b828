// The page at / in a headless Chromium, as people use it: streams, thoughts, stop, keys, dark, a phone, the keyboard alone.
// Nothing may offend the page's policy, and nothing may be written to the console.

import assert from "node:assert/strict";

import axe from "axe-core";
import { chromium } from "playwright-core";

const { MICROGRANITE_URL, MICROGRANITE_THINKING_URL, MICROGRANITE_KEYED_URL, MICROGRANITE_KEY, SCREENSHOTS } = process.env;
// Root has no sandbox for its browser, and containers have little shared memory.
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-dev-shm-usage"],
});
// Machines that test are slow.
const PATIENCE = 60_000;
const DESK = { viewport: { width: 1180, height: 800 }, colorScheme: "light" };
const DARK = { ...DESK, colorScheme: "dark" };
const PHONE = { viewport: { width: 360, height: 740 }, colorScheme: "light", hasTouch: true, isMobile: true };

const open = async (url, options, expected = []) => {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const problems = [];
  const isExpected = text => expected.some(words => text.includes(words));
  page.on("console", message => { if (!isExpected(message.text())) problems.push(message.text()); });
  page.on("pageerror", error => problems.push(String(error)));
  page.on("request", request => { if (new URL(request.url()).origin !== new URL(url).origin && !request.url().startsWith("data:")) problems.push(request.url()); });
  await page.addInitScript(() => {
    window.offences = [];
    addEventListener("securitypolicyviolation", event => window.offences.push(event.violatedDirective + " " + event.blockedURI));
  });
  await page.goto(url);
  return { page, problems };
};
const close = async ({ page, problems }) => {
  assert.deepEqual(await page.evaluate(() => window.offences), []);
  assert.deepEqual(problems, []);
  // Nothing is stored.
  const stored = await page.evaluate(async () => [localStorage.length, sessionStorage.length, document.cookie, (await caches.keys()).length]);
  assert.deepEqual(stored, [0, 0, "", 0]);
  await page.context().close();
};
const ready = page => page.waitForSelector("#main:not([hidden])");
const ask = async (page, text) => {
  await page.fill("#question", text);
  await page.press("#question", "Enter");
};
// At random a tiny model may say nothing; its likeliest tokens are always the same.
const likeliest = page => page.fill("#temperature", "0");
const over = page => page.waitForFunction(() => document.querySelector(".message.model") && !document.getElementById("send").disabled);
// What is wrong for people who see, hear or type in other ways than most: contrast, names, roles, order.
const accessible = async page => {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map(node => node.target.join(" "))]), []);
};

// A model that thinks: the answer streams, and the thought is folded.
for (const options of [DESK, DARK, PHONE]) {
  const opened = await open(MICROGRANITE_THINKING_URL, options);
  const { page } = opened;
  await ready(page);
  assert.equal(await page.textContent("#name"), "granite-4.2-tiny");
  assert.match(await page.textContent("#about"), /^ready for .* int8 · context \d+ · /);
  assert.equal(await page.locator(".bar").count(), 4);
  assert.equal(await page.locator(".chart").count(), 8);
  const widths = await page.locator(".bar rect").evaluateAll(all => all.map(rect => Number(rect.getAttribute("width"))));
  assert(widths[0] > 0 && widths[0] > widths[1] && widths[1] > widths[2], String(widths));
  await accessible(page);

  await likeliest(page);
  await page.selectOption("#think", "on");
  const markup = "<img src=x onerror=alert(1)><b>Hello</b>";
  await ask(page, markup);
  await over(page);
  const said = page.locator(".message.user");
  assert.equal(await said.textContent(), "You: " + markup);
  assert.equal(await page.locator("#messages img, #messages b").count(), 0);
  const details = page.locator("#messages details");
  assert.equal(await details.getAttribute("open"), null);
  assert.equal(await page.locator(".thought").isVisible(), false);
  await details.locator("summary").click();
  assert((await page.locator(".thought").textContent()).length > 0);
  assert.match(await page.textContent("#speed"), /^\d+ tokens read, first token after .* tokens written/);
  await accessible(page);

  // Without the thought.
  await page.click("#clear");
  assert.equal(await page.locator(".message").count(), 0);
  await page.selectOption("#think", "none");
  await ask(page, "Hello");
  await over(page);
  assert.equal(await page.locator("#messages details").count(), 0);
  assert((await page.textContent(".answer")).length > 0);

  // The charts have seen it.
  await page.waitForFunction(() => [...document.querySelectorAll(".chart polyline")].every(line => line.getAttribute("points").includes(" ")));
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert(width <= options.viewport.width, `${width} is wider than the screen`);
  await close(opened);
}

// Light and dark differ.
const ground = async options => {
  const opened = await open(MICROGRANITE_THINKING_URL, options);
  await ready(opened.page);
  const color = await opened.page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  await close(opened);
  return color.match(/\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
};
assert(await ground(DESK) > 600 && await ground(DARK) < 150);

// A real model, slow enough to be stopped, with the keyboard alone.
{
  const opened = await open(MICROGRANITE_URL, DESK);
  const { page } = opened;
  await ready(page);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Tab");
  await page.focus("#question");
  await page.selectOption("#mode", "completion");
  // Counting goes on to the limit, and a question gets its answer.
  await likeliest(page);
  await page.focus("#question");
  await page.keyboard.type("One, two, three, four,");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.press("Backspace");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".answer");
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => document.querySelector(".message.model .problem")?.textContent === "Stopped.");
  const text = await page.textContent(".answer");
  await page.waitForTimeout(300);
  assert.equal(await page.textContent(".answer"), text, "nothing comes after the stop");

  await page.selectOption("#mode", "chat");
  await ask(page, "Tell me a long story about a mountain.");
  await page.waitForSelector(".answer");
  await page.click("#stop");
  await over(page);
  await page.click("#clear");
  await ask(page, "What is granite made of? Answer in one sentence.");
  await over(page);
  assert.match(await page.textContent(".answer"), /ranite/);
  // The conversation goes on.
  await ask(page, "Why is the sky blue? Answer in one sentence.");
  await page.waitForFunction(() => document.querySelectorAll(".answer").length === 2 && !document.getElementById("send").disabled);
  await page.waitForFunction(() => /of 16$/.test(document.querySelector('.chart[data-for="running"] strong').textContent));
  await page.waitForTimeout(4500);
  if (SCREENSHOTS) {
    await page.evaluate(() => document.activeElement.blur());
    await page.screenshot({ path: `${SCREENSHOTS}/page-light.png`, fullPage: true });
    await page.emulateMedia({ colorScheme: "dark" });
    await page.screenshot({ path: `${SCREENSHOTS}/page-dark.png`, fullPage: true });
    await page.emulateMedia({ colorScheme: "light" });
    await page.setViewportSize(PHONE.viewport);
    await page.screenshot({ path: `${SCREENSHOTS}/page-phone.png`, fullPage: true });
  }
  await close(opened);
}

// A server with keys: the page asks for one, and forgets it. The browser itself notes each refusal on the console.
{
  const opened = await open(MICROGRANITE_KEYED_URL, DESK, ["status of 401"]);
  const { page } = opened;
  await page.waitForSelector("#key-form:not([hidden])");
  assert.equal(await page.locator("#main").isVisible(), false);
  await accessible(page);
  await page.fill("#key", "wrong");
  await page.press("#key", "Enter");
  await page.waitForFunction(() => document.getElementById("key-problem").textContent === "The server does not accept this key.");
  await page.fill("#key", MICROGRANITE_KEY);
  await page.press("#key", "Enter");
  await ready(page);
  assert.equal(await page.locator("#key-form").isVisible(), false);
  assert.equal(await page.inputValue("#key"), "");
  await likeliest(page);
  await ask(page, "Hello");
  await over(page);
  const notes = await page.locator(".problem:visible").allTextContents();
  assert.deepEqual(notes.filter(note => note !== "The answer reached its length limit."), []);
  await page.reload();
  await page.waitForSelector("#key-form:not([hidden])");
  await close(opened);
}

await browser.close();
