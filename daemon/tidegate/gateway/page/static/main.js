// The page: one stream of news, shown where it belongs.

import { showAnswers } from "./answers.js";
import { showConnect } from "./connect.js";
import { $, el, setText } from "./dom.js";
import { Live } from "./live.js";
import { addMark, addSample, showMemory, showSamples } from "./memory.js";
import { showModels } from "./models.js";
import { fillPlayground } from "./playground.js";
import { keepToken, token } from "./server.js";
import { duration, when } from "./text.js";
import { refreshUsage } from "./usage.js";

const VIEWS = ["overview", "answers", "models", "usage", "playground", "connect"];
const STATES = { healthy: "good", degraded: "warn", parked: "bad", draining: "warn" };
let last = null;
let announced = "";
let downSince = null;

function show(name) {
  const wanted = VIEWS.includes(name) ? name : "overview";
  for (const view of VIEWS) $(view).hidden = view !== wanted || !$("door").hidden;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if ($("door").hidden) fill(wanted);
}

const view = () => location.hash.slice(1);

// What is hidden is not drawn.
function fill(name) {
  if (last === null) return;
  if (name === "overview") showOverview(last);
  if (name === "answers") showAnswers(last);
  if (name === "models") showModels(last);
  if (name === "connect") showConnect(last);
  if (name === "playground") fillPlayground(last);
  if (name === "overview" || name === "usage") refreshUsage();
}

function showOverview({ memory, repairs, decisions }) {
  showMemory(memory);
  $("repairs-card").hidden = repairs.length === 0;
  const shown = JSON.stringify(repairs);
  if ($("repairs").dataset.shown !== shown) {
    $("repairs").dataset.shown = shown;
    $("repairs").replaceChildren(...repairs.map((each) => el("li", { class: each.severity === "note" ? "note-level" : each.severity },
      el("p", {}, `${each.cause} (${each.severity}, since ${when(each.since)})`), el("p", { class: "fix" }, each.fix))));
  }
  const log = JSON.stringify(decisions);
  if ($("decisions").dataset.shown !== log) {
    $("decisions").dataset.shown = log;
    const lines = decisions.map((each) => el("li", {}, el("time", { datetime: new Date(each.at * 1000).toISOString() }, when(each.at)), each.text));
    $("decisions").replaceChildren(...(lines.length ? lines : [el("li", { class: "note" }, "Nothing had to be done yet.")]));
  }
}

function hear(name, data) {
  if (name === "overview") {
    last = data;
    setText($("sentence"), data.health.sentence);
    if (data.health.state !== announced) { // a screen reader hears of changes, not of every figure
      announced = data.health.state;
      setText($("announcement"), data.health.sentence);
    }
    downSince = null;
    $("sentence").className = STATES[data.health.state] ?? "";
    setText($("version"), `tidegate ${data.version}, worker ${data.generation}`);
    document.title = data.health.state === "healthy" ? "tidegate" : `${data.health.state}: tidegate`;
    line("");
    fill(VIEWS.includes(view()) ? view() : "overview");
  } else if (name === "samples") showSamples(data);
  else if (name === "sample") addSample();
  else if (name === "mark") addMark();
}

function line(text) {
  $("line").hidden = !text;
  setText($("line"), text);
}

function onState(state, message) {
  if (state === "up") {
    downSince = null;
    line("");
    openDoor(false);
  } else if (state === "door") {
    setText($("sentence"), "A token is needed to see more.");
    openDoor(true, message);
  } else {
    downSince ??= performance.now();
    const long = performance.now() - downSince > 2500;
    if (message) {
      setText($("sentence"), message);
      $("sentence").className = "bad";
    }
    if (message || long) line(message ? "Trying again." : `The server has not answered for ${duration((performance.now() - downSince) / 1000)}; trying again.`);
  }
}

function openDoor(isOpen, message = "") {
  const was = !$("door").hidden;
  $("door").hidden = !isOpen;
  setText($("door-error"), message);
  $("forget-token").hidden = isOpen || !token();
  if (isOpen && !was) $("token").focus();
  if (isOpen !== was) show(view());
}

$("door-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken($("token").value.trim());
  $("token").value = "";
  live.start();
});
$("forget-token").addEventListener("click", () => {
  keepToken("");
  location.reload();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // its target is no section
  $("content").focus();
});
window.addEventListener("hashchange", () => {
  show(view());
  $("content").focus({ preventScroll: true });
});

show(view());
const live = new Live(hear, onState);
