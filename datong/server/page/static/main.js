// Puts the parts together.

import { models } from "/page/api.js";
import * as chat from "/page/chat.js";
import { $, make } from "/page/dom.js";
import * as history from "/page/history.js";
import * as i18n from "/page/i18n.js";
import { sentence } from "/page/message.js";
import * as settings from "/page/settings.js";
import * as sidebar from "/page/sidebar.js";
import * as theme from "/page/theme.js";

const MODEL = "datong.model";
const { t } = i18n;
let cards = [];
let timer = 0;

const card = () => cards.find((one) => one.id === $("model").value);

function notice(text, action, milliseconds, act) {
  clearTimeout(timer);
  const close = () => ($("notice").hidden = true);
  $("notice").replaceChildren(text);
  if (action) $("notice").append(" ", make("button", { type: "button", onclick: () => (close(), act()) }, action));
  $("notice").hidden = false;
  if (milliseconds) timer = setTimeout(close, milliseconds);
}

function device() {
  const found = card();
  $("device").hidden = !found;
  if (!found) return;
  $("device").textContent = found.loaded ? `${found.device} · ${t(found.evidence)}` : t("not_loaded");
  $("device").title = t("device_title");
  $("device").dataset.evidence = found.evidence ?? "";
}

async function look() {
  try {
    cards = await models();
  } catch (error) {
    notice(sentence(error.message), error.status === 401 ? t("settings") : "", 0, () => settings.open("key"));
    return;
  }
  $("notice").hidden = true;
  const chosen = $("model").value || localStorage.getItem(MODEL);
  $("model").replaceChildren(...cards.map((one) => make("option", { value: one.id, selected: one.id === chosen }, one.id)));
  device();
}

function buttons() {
  $("stop").hidden = !chat.busy();
  $("send").hidden = chat.busy();
  $("send").disabled = !$("input").value.trim();
}

function grow() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight}px`;
}

function submit(event) {
  event?.preventDefault();
  const text = $("input").value.trim();
  if (!text || chat.busy()) return;
  $("input").value = "";
  grow();
  chat.send(text);
  buttons();
}

function tell(change) {
  if (change.saved === false) notice(t("full"), "", 8000);
  if (change.refused) notice(change.refused, t("settings"), 0, () => settings.open("key"));
  if (change.ended && !card()?.loaded) look();
  sidebar.draw();
  buttons();
}

function keys(event) {
  if (event.key === "Escape" && !$("settings").open) {
    if (document.body.classList.contains("side-open")) sidebar.show(false);
    else chat.stop();
  }
}

function redraw() {
  if (!chat.busy()) chat.draw();
  sidebar.draw();
  device();
}

async function start() {
  theme.show();
  await i18n.use(i18n.preferred());
  $("language").value = i18n.preferred();
  $("theme").value = theme.chosen();
  chat.start({ tell, card });
  sidebar.start({ notice });
  settings.start(look);
  $("form").addEventListener("submit", submit);
  $("stop").addEventListener("click", () => (chat.stop(), $("input").focus()));
  $("input").addEventListener("input", () => (grow(), buttons()));
  // isComposing: Enter chooses a word in an input method for Chinese and does not send.
  $("input").addEventListener("keydown", (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && submit(event));
  $("language").addEventListener("change", () => i18n.use($("language").value).then(redraw));
  $("theme").addEventListener("change", () => theme.choose($("theme").value));
  $("model").addEventListener("change", () => (localStorage.setItem(MODEL, $("model").value), device()));
  $("scroll").addEventListener("scroll", () => ($("down").hidden = chat.atEnd()), { passive: true });
  $("down").addEventListener("click", chat.toEnd);
  addEventListener("keydown", keys);
  const [latest] = history.all();
  if (latest) chat.show(latest);
  redraw();
  buttons();
  document.documentElement.dataset.ready = "";
  await look();
  $("input").focus({ preventScroll: true });
}

start();
