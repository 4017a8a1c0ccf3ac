// What was used, by what the history knows.

import { $, fillFigures, fillTable, setText } from "./dom.js";
import { askJson, messageOf } from "./server.js";
import { count, duration, size, when } from "./text.js";

const FRESH_MS = 30000;
let askedMs = -FRESH_MS;
let asked = 0; // which answer is the newest: one that comes late is not shown

const sum = (lines, field) => lines.reduce((total, line) => total + line[field], 0);
const money = (value) => value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: value < 1 ? 4 : 2 });

export async function refreshUsage({ now = false } = {}) {
  if (!now && performance.now() - askedMs < FRESH_MS) return;
  askedMs = performance.now();
  const mine = ++asked;
  try {
    const [today, chosen] = await Promise.all([askJson("/v1/usage?by=token&since=today"), askJson(query())]);
    if (mine !== asked) return;
    showToday(today.data);
    showTable(chosen.data);
  } catch (error) {
    if (mine !== asked) return;
    setText($("usage-note"), `${messageOf(error)} ${$("usage-table").tBodies.length ? "What stands above is from before." : ""}`.trim());
    if (!$("today").childElementCount) fillFigures($("today"), [["Usage", messageOf(error)]]);
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
    { title: "Not completed", kind: "number", rem: 7, cell: (line) => count(line.failed) },
    { title: "In", kind: "number", cell: (line) => count(line.input) },
    { title: "Out", kind: "number", cell: (line) => count(line.output) },
    { title: "Cached", kind: "number", cell: (line) => count(line.cached) },
    { title: "Unknown", kind: "number", cell: (line) => count(line.unknown) },
    { title: "Time", kind: "number", rem: 5, cell: (line) => duration(line.seconds) },
    { title: "Bytes", kind: "number", cell: (line) => size(line.bytes) },
    ...(priced ? [{ title: "Cost", kind: "number", cell: (line) => (typeof line.cost === "number" ? money(line.cost) : "no price") }] : []),
    { title: "Last", rem: 7.5, cell: (line) => when(line.last) },
  ], lines, { key: (line) => line.key, empty: "Nothing in this time." });
  setText($("usage-note"), lines.some((line) => line.unknown) ? "Unknown: answers whose upstream did not say how many tokens they had. They are not guessed." : "");
}

for (const name of ["usage-by", "usage-since"]) $(name).addEventListener("change", () => refreshUsage({ now: true }));
$("usage-form").addEventListener("submit", (event) => event.preventDefault());
