// Markdown -> elements. marked takes the text apart; nothing of it ever becomes HTML: a tag that a model writes is shown
// as the text it is, a link goes to http, https or mailto only, an image becomes a link (the page asks no other host).

import { lexer } from "/page/vendor/marked.js";
import { copy, make } from "/page/dom.js";
import { t } from "/page/i18n.js";

const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", hellip: "…", mdash: "—", ndash: "–", times: "×", rarr: "→", larr: "←" };
const MAX_CODE_POINT = 0x10ffff;

const point = (number) => (number > 0 && number <= MAX_CODE_POINT ? String.fromCodePoint(number) : "\ufffd");

const plain = (text) =>
  text.replace(/&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(\w+));/g, (all, decimal, hex, name) =>
    decimal ? point(+decimal) : hex ? point(parseInt(hex, 16)) : (NAMED[name] ?? all),
  );

const safe = (href) => {
  try {
    const url = new URL(href, location.href);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
};

const all = (tokens = []) => tokens.map(one);
const into = (tag, attributes) => (token) => make(tag, attributes, ...all(token.tokens));

function link(token, inner) {
  const href = safe(token.href);
  return href ? make("a", { href, target: "_blank", rel: "noopener noreferrer", title: token.title || undefined }, ...inner) : make("span", {}, ...inner);
}

function code(token) {
  const button = make("button", { type: "button", class: "copy", "data-t": "copy" }, t("copy"));
  button.addEventListener("click", async () => {
    await copy(token.text);
    button.textContent = t("copied");
    setTimeout(() => (button.textContent = t("copy")), 1500);
  });
  const language = (token.lang || "").split(/\s/)[0];
  return make("figure", { class: "code" },
    make("figcaption", {}, make("span", {}, language || t("code")), button),
    make("pre", { tabindex: "0" }, make("code", {}, token.text)));
}

function list(token) {
  const items = token.items.map((item) => make("li", item.task ? { class: "task" } : {}, ...all(item.tokens)));
  return token.ordered ? make("ol", { start: token.start === 1 ? undefined : String(token.start) }, ...items) : make("ul", {}, ...items);
}

function table(token) {
  const cell = (tag) => (one) => make(tag, { class: one.align ? `to-${one.align}` : undefined }, ...all(one.tokens));
  return make("div", { class: "table", tabindex: "0" }, make("table", {},
    make("thead", {}, make("tr", {}, ...token.header.map(cell("th")))),
    make("tbody", {}, ...token.rows.map((row) => make("tr", {}, ...row.map(cell("td")))))));
}

const MAKE = {
  space: () => "",
  def: () => "",
  hr: () => make("hr"),
  br: () => make("br"),
  paragraph: into("p"),
  blockquote: into("blockquote"),
  strong: into("strong"),
  em: into("em"),
  del: into("del"),
  heading: (token) => make(`h${Math.min(6, token.depth + 2)}`, {}, ...all(token.tokens)),
  text: (token) => (token.tokens ? make("span", {}, ...all(token.tokens)) : plain(token.text)),
  escape: (token) => token.text,
  codespan: (token) => make("code", {}, token.text),
  checkbox: (token) => make("input", { type: "checkbox", disabled: true, checked: token.checked }),
  html: (token) => (token.block ? make("p", {}, token.text) : token.text),
  link: (token) => link(token, all(token.tokens)),
  image: (token) => link(token, [plain(token.text || token.href)]),
  code,
  list,
  table,
};

const one = (token) => (MAKE[token.type] ?? ((unknown) => unknown.raw))(token);

// Draws `text` into `target`; what is the same as last time stays, so that a selection survives a stream.
export function draw(target, text) {
  const blocks = lexer(text, { gfm: true }).filter((token) => token.type !== "space");
  const before = target.blocks ?? [];
  let same = 0;
  while (same < before.length && same < blocks.length && before[same] === blocks[same].raw) same++;
  while (target.childNodes.length > same) target.lastChild.remove();
  for (const token of blocks.slice(same)) {
    const made = one(token);
    target.append(made instanceof Node ? made : make("p", {}, made));
  }
  target.blocks = blocks.map((token) => token.raw);
}
