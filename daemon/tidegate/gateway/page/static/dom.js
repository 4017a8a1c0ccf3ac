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

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Keeps the rows that are there and changes what differs, so that focus and selection stay.
// columns: [{ title, kind: "number" | "long" | undefined, cell: (item) => text | Node }]
export function fillTable(table, columns, items, { key = (item) => item.id, empty = "None.", caption = "" } = {}) {
  const signature = columns.map((column) => column.title).join("|");
  if (table.dataset.columns !== signature) {
    table.dataset.columns = signature;
    const head = el("thead", {}, el("tr", {}, ...columns.map((column) => el("th", { scope: "col", class: column.kind }, column.title))));
    table.replaceChildren(...(caption ? [el("caption", { class: "note" }, caption)] : []), head, el("tbody"));
  }
  const body = table.tBodies[0];
  if (!items.length) {
    body.replaceChildren(el("tr", {}, el("td", { class: "empty", colspan: columns.length }, empty)));
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
  for (const row of body.querySelectorAll("tr:not([data-key])")) row.remove();
  for (const row of former.values()) row.remove();
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
