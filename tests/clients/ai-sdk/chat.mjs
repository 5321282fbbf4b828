// Vercel's AI SDK with its provider for compatible servers: texts, streams with thoughts, tools, objects, and errors.

import assert from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "microgranite",
  baseURL: process.env.MICROGRANITE_THINKING_URL + "/v1",
  includeUsage: true,
  // Otherwise schemas are left out, and the server is asked for any JSON.
  supportsStructuredOutputs: true,
});
const settings = {
  model: provider("granite-4.2-tiny"),
  prompt: "What is gravity?",
  // A token is little more than a byte here, and a call in tags has many.
  maxOutputTokens: 300,
  seed: 7,
  maxRetries: 0,
  providerOptions: { microgranite: { thinking_token_budget: 20 } },
};

const whole = await generateText(settings);
assert(whole.reasoningText && whole.text, JSON.stringify(whole.content));
const { outputTokens, outputTokenDetails } = whole.usage;
assert(outputTokenDetails.reasoningTokens > 0 && outputTokenDetails.reasoningTokens <= 20, JSON.stringify(whole.usage));

const stream = streamText(settings);
let [text, thought] = ["", ""];
for await (const part of stream.fullStream) {
  assert.notEqual(part.type, "error", JSON.stringify(part));
  if (part.type === "text-delta") text += part.text;
  if (part.type === "reasoning-delta") thought += part.text;
}
assert.equal(text, whole.text);
assert.equal(thought, whole.reasoningText);
assert.equal((await stream.usage).outputTokens, outputTokens);

// Thinking is turned off by the effort, which the SDK sends as `reasoning_effort`.
const off = await generateText({ ...settings, providerOptions: { microgranite: { reasoningEffort: "none" } } });
assert.equal(off.reasoningText, undefined);

// A forced call is run; its result, and the thought before it, go back in the second step. The model's weights are
// random, so it decides by chance what it writes then.
const weather = tool({
  description: "The weather of a city in the next days.",
  inputSchema: z.object({ city: z.enum(["Rome", "Oslo"]), days: z.number().int().min(1).max(9) }),
  execute: async ({ city, days }) => `${days} days of sun in ${city}`,
});
const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });
const withTools = { ...settings, tools: { weather }, stopWhen: stepCountIs(2), prepareStep };
const called = await generateText(withTools);
assert.equal(called.steps.length, 2);
assert.equal(called.steps[0].finishReason, "tool-calls");
assert.match(called.steps[0].toolResults[0].output, /^\d days of sun in (Rome|Oslo)$/);
const streamed = streamText(withTools);
await streamed.consumeStream();
const [first] = await streamed.steps;
assert.deepEqual(first.toolCalls[0].input, called.steps[0].toolCalls[0].input);

const schema = z.object({ holds: z.boolean(), certainty: z.number().int().min(0).max(9) });
const formatted = await generateText({ ...settings, output: Output.object({ schema }) });
assert.equal(typeof formatted.output.holds, "boolean");

await assert.rejects(generateText({ ...settings, temperature: 3 }), (error) => {
  assert(APICallError.isInstance(error), error);
  assert.equal(error.statusCode, 400);
  assert.match(error.message, /temperature/);
  return true;
});
console.log("The AI SDK is content");
