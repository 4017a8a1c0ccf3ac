// The base URL as each place sees it, and what to paste there.

import { $, el, fillTable, setText } from "./dom.js";

let shown = "";

export function showConnect({ addresses, tokens, aliases, upstreams }) {
  const signature = JSON.stringify([addresses, tokens, aliases.map((each) => each.name), upstreams.map((each) => each.models[0]?.name)]);
  if (signature === shown) return;
  shown = signature;
  const { port, host_name, lan, reachable } = addresses;
  const local = `http://127.0.0.1:${port}`;
  const places = [
    { where: "This computer", base: local },
    ...(reachable ? [
      ...lan.map((address) => ({ where: "The network", base: `http://${address.includes(":") ? `[${address}]` : address}:${port}` })),
      { where: "The network, by name", base: `http://${host_name}${host_name.includes(".") ? "" : ".local"}:${port}` },
    ] : []),
    { where: "A container here", base: `http://host.docker.internal:${port}` },
    { where: "This page's address", base: location.origin },
  ];
  fillTable($("bases"), [
    { title: "From", rem: 11, cell: (place) => place.where },
    { title: "OpenAI base URL", kind: "long", rem: 15, cell: (place) => el("code", {}, `${place.base}/v1`) },
    { title: "Anthropic and Ollama", kind: "long", rem: 15, cell: (place) => el("code", {}, place.base) },
  ], places, { key: (place) => place.where + place.base });
  setText($("connect-note"), reachable
    ? "A container on Linux needs --add-host=host.docker.internal:host-gateway."
    : 'It listens on this computer alone. For others set listen = "0.0.0.0:' + port + '" in the config and make a token. A container on Linux then needs --add-host=host.docker.internal:host-gateway.');
  const model = aliases[0]?.name ?? upstreams.find((each) => each.models.length)?.models[0].name ?? "demo";
  $("snippets").replaceChildren(...snippets(location.origin, model, tokens ? "YOUR_TOKEN" : "none").map(([title, text]) => snippet(title, text)));
}

// A model's name as JSON and Python write it. What would turn a line around, or hide in it, is written as a number.
const quoted = (name) => JSON.stringify(name).replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
  (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
// The same inside a shell's single quotes, which it must not end: an upstream may call a model what it likes.
const inShell = (text) => text.replaceAll("'", "'\\''");

function snippets(base, model, key) {
  return [
    ["curl", `curl ${base}/v1/chat/completions -H 'Authorization: Bearer ${key}' \\\n  -H 'Content-Type: application/json' \\\n  -d '{"model": ${inShell(quoted(model))}, "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'`],
    ["OpenAI's Python SDK", `from openai import OpenAI\n\nclient = OpenAI(base_url="${base}/v1", api_key="${key}")\nfor chunk in client.chat.completions.create(\n    model=${quoted(model)}, stream=True, messages=[{"role": "user", "content": "Hello"}]\n):\n    print(chunk.choices[0].delta.content or "", end="")`],
    ["Anthropic's Python SDK", `from anthropic import Anthropic\n\nclient = Anthropic(base_url="${base}", api_key="${key}")`],
    ["Open WebUI", `OPENAI_API_BASE_URL=${base}/v1\nOPENAI_API_KEY=${key}`],
    ["Claude Code", `export ANTHROPIC_BASE_URL=${base}\nexport ANTHROPIC_AUTH_TOKEN=${key}`],
    ["Ollama's clients", `export OLLAMA_HOST=${base}`],
  ];
}

function snippet(title, text) {
  const pre = el("pre", { tabindex: "0", role: "group", "aria-label": title }, text);
  const button = el("button", { type: "button", class: "quiet", "aria-label": `Copy for ${title}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch { // a page that did not come over https may not: the text is selected instead
      getSelection().selectAllChildren(pre);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return el("div", {}, el("div", { class: "snippet-head" }, el("h3", {}, title), button), pre);
}
