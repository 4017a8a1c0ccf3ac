// What was used, by what the history knows.

import { $, fillFigures, fillTable, setText } from "./dom.js";
import { askJson } from "./server.js";
import { count, duration, size, when } from "./text.js";

const FRESH_MS = 30000;
let askedMs = -FRESH_MS;

const sum = (lines, field) => lines.reduce((total, line) => total + line[field], 0);
const money = (value) => value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: value < 1 ? 4 : 2 });

export async function refreshUsage({ now = false } = {}) {
  if (!now && performance.now() - askedMs < FRESH_MS) return;
  askedMs = performance.now();
  try {
    const [today, chosen] = await Promise.all([askJson("/v1/usage?by=token&since=today"), askJson(query())]);
    showToday(today.data);
    showTable(chosen.data);
  } catch (error) {
    setText($("usage-note"), error.message);
    if (!$("today").childElementCount) fillFigures($("today"), [["Usage", error.message]]);
  }
}

const query = () => `/v1/usage?by=${$("usage-by").value}&since=${$("usage-since").value}`;

function showToday(lines) {
  const costs = lines.filter((line) => typeof line.cost === "number");
  fillFigures($("today"), [
    ["Answers", count(sum(lines, "runs"))],
    ["Not completed", count(sum(lines, "failed")), "", sum(lines, "failed") ? "warn" : ""],
    ["Tokens in", count(sum(lines, "input"))],
    ["Tokens out", count(sum(lines, "output"))],
    ["Tokens unknown", count(sum(lines, "unknown"))],
    ...(costs.length ? [["Cost", money(sum(costs, "cost"))]] : []),
  ]);
}

function showTable(lines) {
  const by = $("usage-by").value;
  const priced = lines.some((line) => typeof line.cost === "number");
  fillTable($("usage-table"), [
    { title: by[0].toUpperCase() + by.slice(1), kind: "long", cell: (line) => line.key || "none" },
    { title: "Answers", kind: "number", cell: (line) => count(line.runs) },
    { title: "Not completed", kind: "number", cell: (line) => count(line.failed) },
    { title: "In", kind: "number", cell: (line) => count(line.input) },
    { title: "Out", kind: "number", cell: (line) => count(line.output) },
    { title: "Cached", kind: "number", cell: (line) => count(line.cached) },
    { title: "Unknown", kind: "number", cell: (line) => count(line.unknown) },
    { title: "Time", kind: "number", cell: (line) => duration(line.seconds) },
    { title: "Bytes", kind: "number", cell: (line) => size(line.bytes) },
    ...(priced ? [{ title: "Cost", kind: "number", cell: (line) => (typeof line.cost === "number" ? money(line.cost) : "no price") }] : []),
    { title: "Last", cell: (line) => when(line.last) },
  ], lines, { key: (line) => line.key, empty: "Nothing in this time." });
  setText($("usage-note"), lines.some((line) => line.unknown) ? "Unknown: answers whose upstream did not say how many tokens they had. They are not guessed." : "");
}

for (const name of ["usage-by", "usage-since"]) $(name).addEventListener("change", () => refreshUsage({ now: true }));
$("usage-form").addEventListener("submit", (event) => event.preventDefault());
