// One message as elements: a question with edit, or an answer with reasoning, Markdown, figures and its buttons.

import { copy, make } from "/page/dom.js";
import { draw } from "/page/markdown.js";
import { t } from "/page/i18n.js";

const ERRORS = ["unreachable", "broken"]; // ours, to be translated; others are the server's sentences
const ENOUGH = 16; // tokens: the speed of a shorter answer says nothing
const ENDS = { stopped: "stopped", length: "cut", timeout: "late" };

export const sentence = (error) => (ERRORS.includes(error) ? t(error) : error);

function button(word, act) {
  return make("button", { type: "button", "data-t": word, onclick: act }, t(word));
}

function copier(text) {
  const found = button("copy", async () => {
    await copy(text());
    found.textContent = t("copied");
    setTimeout(() => (found.textContent = t("copy")), 1500);
  });
  return found;
}

function figures(message) {
  const { tokens, seconds, first, used, context } = message.stats ?? {};
  return [
    message.model,
    message.device && `${message.device} · ${t(message.evidence)}`,
    tokens >= ENOUGH && seconds > 0 && t("speed", { speed: ((tokens - 1) / seconds).toFixed(1) }),
    first !== undefined && t("first", { seconds: first.toFixed(2) }),
    used && context && t("used", { tokens: used, context }),
    ENDS[message.end] && t(ENDS[message.end]),
  ].filter(Boolean);
}

// `acts`: {edit(index, text), again(index)}.
export function question(message, index, acts) {
  const body = make("div", { class: "bubble" }, message.content);
  const foot = make("div", { class: "foot" }, copier(() => message.content), button("edit", () => editor(found, message, index, acts)));
  const found = make("article", { class: "question", "aria-label": t("you") }, body, foot);
  return found;
}

function editor(target, message, index, acts) {
  const area = make("textarea", { "aria-label": t("edit"), rows: "3" });
  area.value = message.content;
  const close = () => target.replaceWith(question(message, index, acts));
  const send = () => area.value.trim() && acts.edit(index, area.value);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  target.replaceChildren(make("div", { class: "editor" }, area, make("div", { class: "foot" }, button("save", send), button("cancel", close))));
  area.focus();
}

// Has `update(message, running)`.
export function answer(message, index, acts) {
  const thoughts = make("div", { class: "prose" });
  const folded = make("details", { class: "thoughts" }, make("summary", { "data-t": "thoughts" }, t("thoughts")), thoughts);
  const body = make("div", { class: "prose" });
  const error = make("p", { class: "error", role: "alert" });
  const numbers = make("span", { class: "figures" });
  const foot = make("div", { class: "foot" }, copier(() => message.content), button("again", () => acts.again(index)), numbers);
  const found = make("article", { class: "answer", "aria-label": message.model ?? "" }, folded, body, error, foot);
  found.update = (running) => {
    folded.hidden = !message.reasoning;
    if (message.reasoning) draw(thoughts, message.reasoning);
    draw(body, message.content);
    error.hidden = !message.error;
    error.textContent = sentence(message.error ?? "");
    foot.hidden = running;
    found.classList.toggle("running", running);
    found.setAttribute("aria-busy", String(running));
    numbers.textContent = figures(message).join(" · ");
  };
  found.update(false);
  return found;
}
