// The official client against the server at argv[3]: `node client.js CASE URL`. Prints what came as JSON for test_js.py,
// which knows the truth from the Python side; what only this side sees is asserted here.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [, , name, url] = process.argv;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const chat = client.chat.completions;
const messages = [{ role: "user", content: "Say something." }];
const ask = { model: "tiny", messages, temperature: 0, max_tokens: 20 };
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: {
      type: "object",
      properties: { place: { enum: ["Beijing", "Berlin"] } },
      required: ["place"],
      additionalProperties: false,
    },
  },
};
const forced = { ...ask, temperature: 1, seed: 3, max_tokens: 400, tools: [weather], tool_choice: "required", parallel_tool_calls: false };

async function all(source) {
  const found = [];
  for await (const one of source) found.push(one);
  return found;
}

const CASES = {
  async models() {
    return (await client.models.list()).data.map((one) => one.id);
  },

  async chat() {
    const { choices, usage } = await chat.create(ask);
    return { text: choices[0].message.content, end: choices[0].finish_reason, tokens: usage.completion_tokens };
  },

  async stream() {
    const chunks = await all(await chat.create({ ...ask, stream: true, stream_options: { include_usage: true } }));
    const text = chunks.map((one) => one.choices[0]?.delta.content ?? "").join("");
    return { text, pieces: chunks.length, tokens: chunks.at(-1).usage.completion_tokens };
  },

  async helper() {
    const stream = chat.stream(ask);
    let text = "";
    stream.on("content", (piece) => (text += piece));
    const whole = await stream.finalChatCompletion();
    assert.equal(text, whole.choices[0].message.content);
    return { text };
  },

  async tools() {
    const { message, finish_reason: end } = (await chat.create(forced)).choices[0];
    return { end, content: message.content, calls: message.tool_calls };
  },

  async streamed_tools() {
    const whole = await chat.stream(forced).finalChatCompletion();
    return { end: whole.choices[0].finish_reason, calls: whole.choices[0].message.tool_calls };
  },

  async run_tools() {
    const asked = [];
    const work = (text) => (asked.push(JSON.parse(text)), "12 degrees");
    const tool = { type: "function", function: { ...weather.function, function: work } };
    const run = chat.runTools({ ...forced, tools: [tool] }, { maxChatCompletions: 2 });
    await run.done();
    return { asked, roles: run.messages.map((one) => one.role) };
  },

  async mistake() {
    const error = await chat.create({ ...ask, temperature: -3 }).catch((found) => found);
    assert.ok(error instanceof OpenAI.BadRequestError);
    return { status: error.status, code: error.code, param: error.param };
  },

  async abort() {
    const stream = await chat.create({ ...ask, max_tokens: 1900, ignore_eos: true, stream: true });
    for await (const one of stream) {
      if (one.choices[0].delta.content) break; // leaving the loop aborts the request
    }
    return { aborted: stream.controller.signal.aborted };
  },
};

console.log(JSON.stringify(await CASES[name]()));
