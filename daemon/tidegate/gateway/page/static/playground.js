// Streams an answer from any model, loses its connection on a button, and resumes.

import { $, el, setText } from "./dom.js";
import { ask, askJson, events, Refused } from "./server.js";

let run = null; // { id, seen, whole, abort }

const say = (text) => setText($("play-state"), text);

export async function fillPlayground() {
  const select = $("play-model");
  if (select.childElementCount) return;
  try {
    const { data } = await askJson("/v1/models");
    select.replaceChildren(...data.map((model) => el("option", { value: model.id }, model.id)));
  } catch (error) {
    say(error.message);
  }
}

function showButtons() {
  const isOpen = run?.abort !== null && run !== null;
  $("play-send").disabled = isOpen;
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
    const event = JSON.parse(data);
    if (event.error) {
      current.whole = true;
      say(`It broke off: ${event.error.message}`);
      continue;
    }
    const { content, reasoning_content, reasoning } = event.choices?.[0]?.delta ?? {};
    $("play-answer").append(content ?? reasoning_content ?? reasoning ?? "");
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
    if (response.status === 204) current.whole = true;
    say(`Run ${current.id} is being read.`);
    showButtons();
    await read(response, current);
    if (run === current && !current.whole) say(`The connection is gone after ${current.seen} events. Run ${current.id} goes on: resume it.`);
  } catch (error) {
    if (run !== current) return;
    if (error instanceof Refused) say(error.message);
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
  try {
    await ask(`/v1/runs/${encodeURIComponent(run.id)}/cancel`, { method: "POST" });
  } catch (error) {
    say(error.message);
  }
});
