// Upstreams, their models, and the aliases that stand for them.

import { $, el, fillTable } from "./dom.js";
import { count, duration, speed } from "./text.js";

const GOOD = { ok: "good", unknown: "" };

export function showModels({ upstreams, aliases }) {
  fillTable($("upstreams"), [
    { title: "Upstream", cell: (each) => each.name },
    { title: "Kind", rem: 6, cell: (each) => each.kind ?? "" },
    { title: "State", rem: 8.5, cell: (each, cell) => status(each, cell) },
    { title: "Busy", kind: "number", rem: 5, cell: (each) => (each.max_concurrent ? `${each.active} of ${each.max_concurrent}` : count(each.active)) },
    { title: "Waiting", kind: "number", rem: 5, cell: (each) => count(each.queued) },
    { title: "First output", kind: "number", cell: (each) => duration(each.first_output_s) },
    { title: "Speed", kind: "number", rem: 7.5, cell: (each) => speed(each.per_s, each.unit) },
    { title: "Last error", kind: "long", cell: (each) => (each.state === "ok" ? "" : each.last_error ?? "") },
  ], upstreams, { key: (each) => each.name, empty: "There is no upstream." });

  const models = upstreams.flatMap((upstream) => upstream.models.map((model) => ({ ...model, upstream: upstream.name, isAside: upstream.state !== "ok" && upstream.state !== "unknown" })));
  const more = upstreams.reduce((sum, each) => sum + each.models_total - each.models.length, 0);
  fillTable($("model-table"), [
    { title: "Model", kind: "long", cell: (each) => each.name },
    { title: "Upstream", cell: (each) => each.upstream },
    { title: "Loaded", rem: 5, cell: (each) => (each.isAside || each.loaded === null ? "" : each.loaded ? "yes" : "no") },
    { title: "First output", kind: "number", cell: (each) => duration(each.first_output_s) },
    { title: "Speed", kind: "number", rem: 7.5, cell: (each) => speed(each.per_s, each.unit) },
    { title: "Left alone for", kind: "number", rem: 6.5, cell: (each) => duration(each.aside_s) },
  ], models, { key: (each) => `${each.upstream}/${each.name}`, empty: "No model is known.", caption: more > 0 ? `${count(more)} more are not shown` : "" });

  $("aliases-card").hidden = aliases.length === 0;
  fillTable($("aliases"), [
    { title: "Alias", cell: (each) => each.name },
    { title: "Asked in this order", kind: "long", cell: (each) => each.levels.map((level) => level.join(" or ")).join(", then ") },
  ], aliases, { key: (each) => each.name });
}

function status(each, cell) {
  const text = each.aside_s ? `${each.state} for ${duration(each.aside_s)}` : each.state;
  if (cell.textContent === text) return cell.firstChild;
  return el("span", { class: GOOD[each.state] ?? "bad" }, text);
}
