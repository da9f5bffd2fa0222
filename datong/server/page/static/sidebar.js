// The list of conversations; on a phone it slides in.

import * as chat from "/page/chat.js";
import { $, make } from "/page/dom.js";
import * as history from "/page/history.js";
import { t } from "/page/i18n.js";

const UNDO = 6000; // milliseconds

let notice = () => {};

export function show(on) {
  document.body.classList.toggle("side-open", on);
  $("menu").setAttribute("aria-expanded", String(on));
}

export function draw() {
  const items = history.all().map((one) => {
    const title = one.title || t("untitled");
    const open = make("button", { type: "button", class: "open", "aria-current": one.id === chat.current().id && "true", onclick: () => go(one) }, title);
    const drop = make("button", { type: "button", class: "icon drop", "aria-label": t("delete", { title }), onclick: () => remove(one) }, "×");
    return make("li", {}, open, drop);
  });
  $("list").replaceChildren(...items);
}

function go(one) {
  chat.show(one);
  show(false);
  draw();
  $("input").focus();
}

export const fresh = () => go(history.create());

function remove(one) {
  const mine = one.id === chat.current().id;
  if (mine) chat.show(history.create());
  history.remove(one.id);
  draw();
  notice(t("deleted"), t("undo"), UNDO, () => {
    history.save(one);
    if (mine) chat.show(one);
    draw();
  });
}

export function start(options) {
  notice = options.notice;
  $("new").addEventListener("click", fresh);
  $("menu").addEventListener("click", () => {
    const on = !document.body.classList.contains("side-open");
    show(on);
    if (on) $("new").focus();
  });
  $("veil").addEventListener("click", () => show(false));
  addEventListener("storage", (event) => history.isOurs(event.key) && draw()); // another tab
}
