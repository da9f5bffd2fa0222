// The settings dialog: sampling and system prompt are kept in localStorage, the API key for this tab only.

import { key } from "/page/api.js";
import { $ } from "/page/dom.js";

const KEY = "datong.sampling";
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

const form = () => $("settings").querySelector("form");

function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

// What goes into a request; empty fields do not.
export function sampling() {
  const values = kept();
  return Object.fromEntries(NUMBERS.filter((name) => values[name] !== undefined).map((name) => [name, values[name]]));
}

export const system = () => kept().system ?? "";

function fill() {
  const values = kept();
  for (const name of [...NUMBERS, "system"]) form().elements[name].value = values[name] ?? "";
  form().elements.key.value = key.get();
}

function keep() {
  const values = {};
  for (const name of NUMBERS) {
    const input = form().elements[name];
    if (input.value !== "" && input.validity.valid) values[name] = input.valueAsNumber;
  }
  if (form().elements.system.value.trim()) values.system = form().elements.system.value;
  localStorage.setItem(KEY, JSON.stringify(values));
}

export function open(focus) {
  fill();
  $("settings").showModal();
  if (focus) form().elements[focus].focus();
}

// `changed` is called when the dialog closes.
export function start(changed) {
  form().addEventListener("input", () => {
    keep();
    key.set(form().elements.key.value.trim());
  });
  $("open-settings").addEventListener("click", () => open());
  $("reset").addEventListener("click", () => {
    localStorage.removeItem(KEY);
    fill();
  });
  $("settings").addEventListener("click", (event) => event.target === $("settings") && $("settings").close());
  $("settings").addEventListener("close", changed);
}
