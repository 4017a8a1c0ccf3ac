// Memory against the budget: the figures, the chart of two hours, its table, and what happened.

import { $, el, fillFigures, fillTable, setText } from "./dom.js";
import { clock, clockWithSeconds, count, duration, mib, plural } from "./text.js";

const MIB = 1024 * 1024;
const TABLE_EVERY = 30; // rows of ten seconds
const LEAST_S = 600;

let chart = null;
let samples = { rows: [], marks: [] };
let budgetBytes = 0;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export function showMemory(memory) {
  const { budget_bytes, used_bytes, base_bytes, explained_bytes, unexplained_bytes } = memory;
  const grows = memory.growth_bytes_per_h;
  fillFigures($("memory-figures"), [
    ["Used", mib(used_bytes)],
    ["Budget", mib(budget_bytes)],
    ["Base", mib(base_bytes), "key base"],
    ["Answers", mib(explained_bytes), "key explained"],
    ["Unexplained", mib(unexplained_bytes), "key unexplained", unexplained_bytes > 0.25 * budget_bytes ? "bad" : ""],
    ["Growth", grows === null ? "not known yet" : grows > 0 ? `${mib(grows)} an hour` : "none"],
    ["Full in", memory.limit_in_s === null ? "not growing" : duration(memory.limit_in_s), "", memory.limit_in_s === null ? "" : "warn"],
    ["Level", memory.level === 0 ? "0, normal" : `${memory.level} of 5`, "", memory.level >= 3 ? "bad" : memory.level ? "warn" : "good"],
  ]);
  if (budget_bytes !== budgetBytes) {
    budgetBytes = budget_bytes;
    draw();
  }
}

export function showSamples(found) {
  samples = found;
  draw();
  showTable();
  showMarks();
}

export function addSample() {
  draw();
  showTable();
}

export const addMark = () => {
  draw();
  showMarks();
};

function columns() {
  const rows = samples.rows;
  const part = (index) => rows.map((row) => (index < 0 ? null : row[index] / MIB));
  const [base, explained, unexplained] = [part(2), part(3), part(4)];
  const stack = (...parts) => rows.map((_, index) => parts.reduce((sum, each) => sum + each[index], 0));
  return [rows.map((row) => row[0]), stack(base, explained, unexplained), stack(base, explained), base, rows.map(() => budgetBytes / MIB)];
}

function draw() {
  if (!samples.rows.length || $("overview").hidden) return;
  const data = columns();
  if (chart === null) chart = new window.uPlot(options(), data, $("chart"));
  else chart.setData(data);
  const used = samples.rows.map((row) => row[1]);
  const last = used[used.length - 1];
  setText($("chart-text"), `${plural(Math.round((samples.rows.length * 10) / 60), "minute")}: least ${mib(Math.min(...used))}, most ${mib(Math.max(...used))}, now ${mib(last)} of ${mib(budgetBytes)}.`);
}

function options() {
  const axis = { stroke: colour("quiet"), grid: { stroke: colour("rule"), width: 1 }, ticks: { stroke: colour("rule"), width: 1 } };
  const area = (label, name) => ({ label, stroke: colour(name), fill: colour(name), width: 1, points: { show: false }, value: () => "" });
  return {
    width: $("chart").clientWidth || 600,
    height: $("chart").clientHeight || 240,
    legend: { show: false },
    cursor: { show: false },
    // Two hours are twelve times as wide as ten minutes; a chart that has just begun is not stretched further.
    scales: { x: { range: (_, first, last) => [Math.min(first, last - LEAST_S), last] }, y: { range: (_, __, most) => [0, Math.max(most * 1.05, 1)] } },
    axes: [
      { ...axis, values: (_, values, __, ___, step) => values.map((value) => (step < 60 ? clockWithSeconds(value) : clock(value))) },
      { ...axis, size: 56, values: (_, values) => values.map((value) => count(Math.round(value))), label: "MiB", labelSize: 20 },
    ],
    series: [
      {},
      area("unexplained", "unexplained"),
      area("explained", "explained"),
      area("base", "base"),
      { label: "budget", stroke: colour("budget"), width: 1, dash: [6, 4], points: { show: false } },
    ],
    hooks: { draw: [drawMarks] },
  };
}

function drawMarks(plot) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = colour("text");
  ctx.fillStyle = colour("text");
  ctx.lineWidth = 1;
  for (const mark of samples.marks) {
    const x = Math.round(plot.valToPos(mark.at, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.beginPath();
    ctx.moveTo(x - 5, bbox.top);
    ctx.lineTo(x + 5, bbox.top);
    ctx.lineTo(x, bbox.top + 8);
    ctx.fill();
  }
  ctx.restore();
}

function showTable() {
  if (!$("chart-details").open) return;
  const rows = samples.rows.filter((_, index) => (samples.rows.length - 1 - index) % TABLE_EVERY === 0).reverse();
  fillTable($("chart-table"), [
    { title: "At", cell: (row) => clock(row[0]) },
    { title: "Used", kind: "number", cell: (row) => mib(row[1]) },
    { title: "Base", kind: "number", cell: (row) => mib(row[2]) },
    { title: "Explained", kind: "number", cell: (row) => mib(row[3]) },
    { title: "Unexplained", kind: "number", cell: (row) => mib(row[4]) },
  ], rows, { key: (row) => row[0], empty: "Nothing was measured yet." });
}

function showMarks() {
  const shown = samples.marks.slice(-12).reverse();
  $("marks").replaceChildren(...shown.map((mark) => el("li", {}, el("time", { datetime: new Date(mark.at * 1000).toISOString() }, clock(mark.at)), mark.text)));
}

$("chart-details").addEventListener("toggle", showTable);

function again() {
  chart?.destroy();
  chart = null;
  draw();
}

window.addEventListener("resize", () => chart?.setSize({ width: $("chart").clientWidth, height: $("chart").clientHeight }));
window.addEventListener("hashchange", () => requestAnimationFrame(() => {
  if ($("overview").hidden) return;
  chart?.setSize({ width: $("chart").clientWidth, height: $("chart").clientHeight });
  draw();
}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
