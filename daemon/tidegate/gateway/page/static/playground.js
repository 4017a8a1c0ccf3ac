// Streams an answer from any model, loses its connection on a button, and resumes.

import { $, el, setText } from "./dom.js";
import { ask, askJson, events, messageOf, Refused } from "./server.js";

const FRESH_MS = 10000;
let run = null; // { id, seen, whole, abort }
let askedMs = -FRESH_MS;
let mayAsk = true;

const say = (text) => setText($("play-state"), text);

export async function fillPlayground({ scope }) {
  if (mayAsk !== (scope !== "read")) {
    mayAsk = scope !== "read";
    if (!mayAsk) say("A token of scope read may look on, not ask.");
    showButtons();
  }
  if (performance.now() - askedMs < FRESH_MS) return;
  askedMs = performance.now();
  try {
    showModels((await askJson("/v1/models")).data.map((model) => model.id));
  } catch (error) {
    if (run === null) say(messageOf(error));
  }
}

function showModels(names) {
  const select = $("play-model");
  const former = [...select.options].map((option) => option.value);
  if (names.length === former.length && names.every((name, index) => name === former[index])) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}

function showButtons() {
  const isOpen = run?.abort !== null && run !== null;
  $("play-send").disabled = isOpen || !mayAsk;
  $("play-drop").disabled = !isOpen || !run.id;
  $("play-resume").disabled = run === null || isOpen || !run.id || run.whole;
  $("play-cancel").disabled = run === null || !run.id || run.whole;
}

async function read(response, current) {
  for await (const { data, id } of events(response)) {
    if (run !== current) return;
    current.seen = id === null ? current.seen + 1 : Number(id) + 1;
    if (data === "[DONE]") {
      current.whole = true;
      say(`Whole: ${current.seen} events, run ${current.id}.`);
      continue;
    }
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      say(`Event ${current.seen - 1} is no JSON: ${data.slice(0, 200)}`);
      continue;
    }
    if (event.error) {
      current.whole = true;
      say(`It broke off: ${event.error.message ?? JSON.stringify(event.error)}`);
      continue;
    }
    const { content, reasoning_content, reasoning } = event.choices?.[0]?.delta ?? {};
    $("play-answer").append(content || reasoning_content || reasoning || "");
  }
}

async function follow(open) {
  const current = run;
  const abort = new AbortController();
  current.abort = abort;
  showButtons();
  try {
    const response = await open(abort.signal);
    current.id = response.headers.get("x-run-id") ?? current.id;
    if (response.status === 204) { // nothing is left to read
      current.whole = true;
      say(`Whole: ${current.seen} events, run ${current.id}.`);
      return;
    }
    say(`Run ${current.id} is being read.`);
    showButtons();
    await read(response, current);
    if (run === current && !current.whole) say(`The connection is gone after ${current.seen} events. Run ${current.id} goes on: resume it.`);
  } catch (error) {
    if (run !== current) return;
    if (error instanceof Refused) {
      if (error.status === 404 || error.status === 410) current.whole = true; // it cannot be had any more
      say(error.message);
    }
    else say(`The connection is gone after ${current.seen} events.${current.id ? ` Run ${current.id} goes on: resume it.` : ""}`);
  } finally {
    if (current.abort === abort) current.abort = null;
    if (run === current) showButtons();
  }
}

$("play-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("play-answer").replaceChildren();
  run = { id: null, seen: 0, whole: false, abort: null };
  say("Asked.");
  const body = { model: $("play-model").value, stream: true, messages: [{ role: "user", content: $("play-prompt").value }] };
  follow((signal) => ask("/v1/chat/completions", { method: "POST", body, signal, headers: { "x-on-disconnect": "continue" } }));
});
$("play-drop").addEventListener("click", () => run?.abort?.abort());
$("play-resume").addEventListener("click", () => {
  const after = run.seen - 1;
  follow((signal) => ask(`/v1/runs/${encodeURIComponent(run.id)}/stream?starting_after=${after}`, { signal }));
});
$("play-cancel").addEventListener("click", async () => {
  const current = run;
  try {
    await ask(`/v1/runs/${encodeURIComponent(current.id)}/cancel`, { method: "POST" });
    if (run !== current || current.abort !== null || current.whole) return; // its reader is told
    current.whole = true;
    say(`Cancelled after ${current.seen} events.`);
    showButtons();
  } catch (error) {
    if (run === current) say(messageOf(error));
  }
});
