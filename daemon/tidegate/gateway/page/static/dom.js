// Elements, made so that whatever comes from outside is text and nothing else.

export const $ = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const REM = { number: 6, long: 10, action: 6 };
const remOf = ({ kind, rem }) => rem ?? REM[kind] ?? 7;

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Keeps the rows that are there and changes what differs, so that focus and selection stay.
// columns: [{ title, kind: "number" | "long" | "action" | undefined, rem, cell: (item, cell) => text | Node }]
// A column is `rem` wide whatever is in it, so that nothing moves when a figure changes; long ones share the rest.
export function fillTable(table, columns, items, { key = (item) => item.id, empty = "None.", caption = "" } = {}) {
  const signature = columns.map((column) => column.title).join("|");
  if (table.dataset.columns !== signature) {
    table.dataset.columns = signature;
    const head = el("thead", {}, el("tr", {}, ...columns.map((column) => el("th", { scope: "col", class: column.kind },
      column.kind === "action" ? el("span", { class: "unseen" }, column.title) : column.title))));
    const widths = el("colgroup", {}, ...columns.map(() => el("col")));
    columns.forEach((column, index) => {
      if (column.kind !== "long") widths.children[index].style.width = `${remOf(column)}rem`;
    });
    table.style.minWidth = `${columns.reduce((sum, column) => sum + remOf(column), 0)}rem`;
    table.replaceChildren(el("caption", { class: "note" }), widths, head, el("tbody"));
  }
  setText(table.caption, caption);
  table.caption.hidden = !caption;
  const body = table.tBodies[0];
  if (!items.length) {
    if (body.textContent !== empty) body.replaceChildren(el("tr", {}, el("td", { class: "empty", colspan: columns.length }, empty)));
    return;
  }
  const former = new Map([...body.rows].filter((row) => row.dataset.key !== undefined).map((row) => [row.dataset.key, row]));
  const rows = items.map((item) => {
    const name = String(key(item));
    const row = former.get(name) ?? el("tr", { "data-key": name }, ...columns.map((column) => el("td", { class: column.kind })));
    former.delete(name);
    columns.forEach((column, index) => {
      const cell = row.cells[index];
      const value = column.cell(item, cell);
      if (value instanceof Node) {
        if (cell.firstChild !== value) cell.replaceChildren(value);
      } else setText(cell, value ?? "");
    });
    return row;
  });
  const kept = new Set(rows);
  for (const row of [...body.rows]) if (!kept.has(row)) row.remove();
  rows.forEach((row, index) => {
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
  });
}

// [name, value, class of the name, class of the value]
export function fillFigures(list, figures) {
  if (list.childElementCount !== figures.length) {
    list.replaceChildren(...figures.map(() => el("div", {}, el("dt"), el("dd"))));
  }
  figures.forEach(([name, value, nameClass = "", valueClass = ""], index) => {
    const [term, definition] = list.children[index].children;
    setText(term, name);
    setText(definition, value);
    if (term.className !== nameClass) term.className = nameClass;
    if (definition.className !== valueClass) definition.className = valueClass;
  });
}
