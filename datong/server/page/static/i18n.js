// The words, in two languages. Elements say which: data-t (text), data-label (aria-label and title), data-placeholder.

const KEY = "datong.language";
const LANGUAGES = ["en", "zh"];
let words = {};

export const preferred = () => {
  const kept = localStorage.getItem(KEY);
  return LANGUAGES.includes(kept) ? kept : navigator.language.startsWith("zh") ? "zh" : "en";
};

export const t = (name, values = {}) =>
  (words[name] ?? name).replace(/\{(\w+)\}/g, (_, key) => String(values[key] ?? ""));

export const apply = (root = document) => {
  for (const one of root.querySelectorAll("[data-t]")) one.textContent = t(one.dataset.t);
  for (const one of root.querySelectorAll("[data-placeholder]")) one.placeholder = t(one.dataset.placeholder);
  for (const one of root.querySelectorAll("[data-label]")) {
    one.setAttribute("aria-label", t(one.dataset.label));
    if (one.tagName === "BUTTON") one.title = t(one.dataset.label);
  }
};

export async function use(language) {
  const answer = await fetch(`/page/i18n/${language}.json`);
  words = await answer.json();
  localStorage.setItem(KEY, language);
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  apply();
}
