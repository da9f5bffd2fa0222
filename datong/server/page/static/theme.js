// Light or dark: what the reader chose, else what the system has.

const KEY = "datong.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export const chosen = () => localStorage.getItem(KEY) ?? "auto";

export function show() {
  const name = chosen();
  document.documentElement.dataset.theme = name === "auto" ? (dark.matches ? "dark" : "light") : name;
}

export function choose(name) {
  localStorage.setItem(KEY, name);
  show();
}

dark.addEventListener("change", show);
