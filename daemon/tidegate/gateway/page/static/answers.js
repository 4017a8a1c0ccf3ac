// The answers that run, and the last ones that are over.

import { $, el, fillTable } from "./dom.js";
import { ask } from "./server.js";
import { count, duration, size, speed, when } from "./text.js";

const STATES = { queued: "waiting", connecting: "begins", streaming: "running", completed: "whole", failed: "failed", cancelled: "cancelled", expired: "took too long" };
const CLASSES = { completed: "good", failed: "bad", expired: "bad", cancelled: "warn" };

const shortId = (run) => el("code", { title: run.id }, run.id.replace(/^run_/, "").slice(0, 8));
const state = (run) => el("span", { class: CLASSES[run.state] ?? "" }, STATES[run.state] ?? run.state);
const keep = (cell, made, text) => (cell.textContent === text ? cell.firstChild : made);

const id = { title: "Id", rem: 5.5, cell: (run, cell) => cell.firstChild ?? shortId(run) };
const client = { title: "Token", rem: 6.5, cell: (run) => run.token || "none" };
const model = { title: "Model", kind: "long", rem: 9, cell: (run) => run.model };
const upstream = { title: "Upstream", rem: 6.5, cell: (run) => run.upstream ?? "" };

export function showAnswers(overview) {
  const { runs, scope, at } = overview;
  const mayCancel = (run) => scope === "owner" || (scope === "use" && run.mine);
  fillTable($("running"), [
    id, client, model, upstream,
    { title: "State", rem: 5.5, cell: (run, cell) => keep(cell, state(run), STATES[run.state] ?? run.state) },
    { title: "Age", kind: "number", rem: 4.5, cell: (run) => duration(Math.max(0, at - run.created)) },
    { title: "Speed", kind: "number", rem: 7.5, cell: (run) => speed(run.per_s, "events/s") },
    { title: "Readers", kind: "number", rem: 5, cell: (run) => count(run.subscribers) },
    { title: "Held", kind: "number", cell: (run) => size(run.bytes) },
    ...(scope === "read" ? [] : [{ title: "Cancel", kind: "action", cell: (run, cell) => (mayCancel(run) ? cell.querySelector("button") ?? cancelButton(run) : "") }]),
  ], runs.active, { empty: "No answer is running.", caption: runs.active_total > runs.active.length ? `${runs.active.length} of ${count(runs.active_total)}` : "" });
  fillTable($("over"), [
    { title: "Ended", rem: 7, cell: (run) => when(run.ended ?? run.created) },
    id, client, model, upstream,
    { title: "Outcome", rem: 6, cell: (run, cell) => keep(cell, state(run), STATES[run.state] ?? run.state) },
    { title: "Took", kind: "number", rem: 4.5, cell: (run) => duration((run.ended ?? run.created) - run.created) },
    { title: "First output", kind: "number", rem: 5, cell: (run) => duration(run.first_output_s) },
    { title: "Tokens", kind: "number", rem: 5.5, cell: (run) => count(run.output_tokens) },
    { title: "Why", kind: "long", rem: 9, cell: (run) => (run.state === "completed" ? "" : run.reason ?? "") },
  ], runs.finished, { empty: "None: no answer has ended yet, or there is no history." });
}

function cancelButton(run) {
  const button = el("button", { type: "button", class: "quiet", "aria-label": `Cancel ${run.id}` }, "Cancel");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await ask(`/v1/runs/${encodeURIComponent(run.id)}/cancel`, { method: "POST" });
    } catch (error) {
      button.disabled = false;
      button.textContent = "Again";
      button.title = error.message;
    }
  });
  return button;
}
