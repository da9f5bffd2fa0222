// The conversation that is open: drawn, continued, stopped.

import { ApiError, chat as ask } from "/page/api.js";
import { $ } from "/page/dom.js";
import * as history from "/page/history.js";
import { answer, question } from "/page/message.js";
import { sampling, system } from "/page/settings.js";
import { t } from "/page/i18n.js";

const SAVE_EVERY = 1000; // milliseconds: a reload in the middle of an answer keeps what was there
const TITLE = 60; // characters
const NEAR = 80; // pixels from the end: the view follows a stream

let open = history.create();
let running = null; // AbortController
let tell = () => {}; // something changed: {saved, failed}
let card = () => undefined; // of the chosen model

export const current = () => open;
export const busy = () => running !== null;

export function start(options) {
  tell = options.tell;
  card = options.card;
}

export function show(chat) {
  stop();
  open = chat;
  draw();
  toEnd();
}

export function draw() {
  const parts = open.messages.map((message, i) => (message.role === "user" ? question : answer)(message, i, { edit, again }));
  $("log").replaceChildren(...parts);
  $("empty").hidden = parts.length > 0;
}

export const stop = () => running?.abort();

export const toEnd = () => ($("scroll").scrollTop = $("scroll").scrollHeight);

export const atEnd = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < NEAR;

export function send(text) {
  open.messages.push({ role: "user", content: text });
  open.title ||= text.trim().split("\n")[0].slice(0, TITLE);
  draw();
  return go();
}

function edit(index, text) {
  stop();
  open.messages.length = index;
  if (index === 0) open.title = "";
  return send(text);
}

function again(index) {
  stop();
  open.messages.length = index;
  draw();
  return go();
}

function keep(chat) {
  chat.changed = Date.now();
  tell({ saved: history.save(chat) });
}

function body(model) {
  const before = system() ? [{ role: "system", content: system() }] : [];
  const said = open.messages.filter((one) => one.role === "user" || one.content);
  return { model, ...sampling(), messages: [...before, ...said.map(({ role, content }) => ({ role, content }))] };
}

async function go() {
  const used = card();
  const chat = open;
  const request = body(used?.id ?? "");
  const message = { role: "assistant", content: "", model: used?.id, device: used?.device, evidence: used?.evidence };
  chat.messages.push(message);
  draw();
  toEnd();
  const view = $("log").lastChild;
  const mine = (running = new AbortController());
  keep(chat);
  $("status").textContent = t("answering");
  view.update(true);
  try {
    await read(request, message, view, mine, chat);
  } catch (error) {
    if (error.name === "AbortError") message.end = "stopped";
    else if (error instanceof ApiError) message.error = error.message;
    else throw error;
    if (error.status === 401) tell({ refused: error.message });
  } finally {
    if (running === mine) running = null;
    const follow = atEnd();
    view.update(false);
    if (follow) toEnd();
    $("status").textContent = message.error ? "" : t(message.end === "stopped" ? "stopped" : "answered");
    if (chat.messages.includes(message)) keep(chat);
    tell({ ended: message });
  }
}

async function read(request, message, view, mine, chat) {
  const begin = performance.now();
  let first;
  let last = begin;
  let saved = begin;
  let frame = 0;
  const paint = () => {
    frame = 0;
    const follow = atEnd();
    view.update(true);
    if (follow) toEnd();
  };
  try {
    for await (const event of ask(request, mine.signal)) {
      const [choice] = event.choices;
      const { content, reasoning_content: thought } = choice?.delta ?? {};
      if (content || thought) {
        last = performance.now();
        first ??= last;
        message.content += content ?? "";
        if (thought) message.reasoning = (message.reasoning ?? "") + thought;
        frame ||= requestAnimationFrame(paint);
      }
      if (choice?.finish_reason) message.end = choice.finish_reason;
      if (event.usage) message.stats = { tokens: event.usage.completion_tokens, used: event.usage.total_tokens, context: card()?.context_length };
      if (last - saved > SAVE_EVERY) {
        saved = last;
        keep(chat);
      }
    }
  } finally {
    cancelAnimationFrame(frame);
    if (first !== undefined) message.stats = { ...message.stats, first: (first - begin) / 1000, seconds: (last - first) / 1000 };
  }
}
