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

// `MODEL@DEVICE` -> both. One model may be served on several devices; each is a model of its own to the API.
function parts(id) {
  const at = id.lastIndexOf("@");
  return at > 0 ? { model: id.slice(0, at), where: id.slice(at + 1) } : { model: id, where: "" };
}

const card = () => cards.find((one) => one.id === $("devices").value);

function notice(text, action, milliseconds, act) {
  clearTimeout(timer);
  const close = () => ($("notice").hidden = true);
  $("notice").replaceChildren(text);
  if (action) $("notice").append(" ", make("button", { type: "button", onclick: () => (close(), act()) }, action));
  $("notice").hidden = false;
  if (milliseconds) timer = setTimeout(close, milliseconds);
}

// The devices of the chosen model; the picker is there if there is a choice.
function devices(id) {
  const same = cards.filter((one) => parts(one.id).model === $("model").value);
  const label = (one) => one.device ?? (parts(one.id).where || t("device_default"));
  $("devices").replaceChildren(...same.map((one) => make("option", { value: one.id, selected: one.id === id }, label(one))));
  $("devices").hidden = same.length < 2;
  device();
}

function choose() {
  if (card()) localStorage.setItem(MODEL, card().id);
  device();
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
  const kept = $("devices").value || localStorage.getItem(MODEL);
  const chosen = cards.find((one) => one.id === kept) ?? cards[0];
  const names = [...new Set(cards.map((one) => parts(one.id).model))];
  const mine = chosen && parts(chosen.id).model;
  $("model").replaceChildren(...names.map((name) => make("option", { value: name, selected: name === mine }, name)));
  devices(chosen?.id);
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
  devices(card()?.id);
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
  $("model").addEventListener("change", () => (devices(), choose()));
  $("devices").addEventListener("change", choose);
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
