// What is asked of this server, with the token in a header and nowhere else.

const KEY = "tidegate-token";

export class Refused extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// What to tell of a request that failed: what the server said, or that it said nothing.
export const messageOf = (error) => (error instanceof Refused ? error.message : "The server does not answer.");

export const token = () => sessionStorage.getItem(KEY) ?? "";
export const keepToken = (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY));

export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (token()) sent.authorization = `Bearer ${token()}`;
  if (body !== undefined) sent["content-type"] = "application/json";
  const response = await fetch(path, {
    method, signal, headers: sent, cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  let code = "";
  try {
    const { error } = await response.json();
    message = error.message ?? message;
    code = error.code ?? "";
  } catch { /* no JSON: the status says enough */ }
  throw new Refused(response.status, message, code);
}

export const askJson = async (path, options) => (await ask(path, options)).json();

// The events of a stream: { event, data, id }, comments left out.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const parts = text.split(/\r\n\r?\n|\n\r?\n|\r\r/);
      text = parts.pop();
      for (const part of parts) {
        const found = { event: "message", data: [], id: null };
        for (const line of part.split(/\r?\n|\r/)) {
          const at = line.indexOf(":");
          if (at === 0) continue;
          const name = at < 0 ? line : line.slice(0, at);
          const rest = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
          if (name === "data") found.data.push(rest);
          else if (name === "event" || name === "id") found[name] = rest;
        }
        if (found.data.length) yield { ...found, data: found.data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
