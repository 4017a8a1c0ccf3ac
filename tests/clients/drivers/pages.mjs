// Web pages in Chromium that ask a gateway of another origin, as far as their browser lets them.
// Prints what became of each; the test judges.
import { createRequire } from "node:module";
import { join } from "node:path";

const told = JSON.parse(process.argv[2]);
const { chromium } = createRequire(join(told.node, "any.js"))("playwright-core");
const browser = await chromium.launchPersistentContext(join(told.scratch, "chromium"), {
  executablePath: told.chromium,
  headless: true,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    // Chromium would ask a person before such a page reaches this computer; other browsers do not.
    "--disable-features=LocalNetworkAccessChecks",
    `--host-resolver-rules=${told.rebound.map((name) => `MAP ${name} 127.0.0.1`).join(", ")}`,
  ],
});

// What a page can do: each is called in the page, with what it is told.
async function withOpenAi({ url, token, model }) {
  const { default: OpenAI } = await import("/openai/index.mjs");
  const client = new OpenAI({
    baseURL: `${url}/v1`, apiKey: token, dangerouslyAllowBrowser: true, maxRetries: 0,
  });
  const messages = [{ role: "user", content: "Tell me of the tide." }];
  try {
    const { data, response } = await client.chat.completions
      .create({ model, messages, stream: true }).withResponse();
    let text = "";
    for await (const chunk of data) text += chunk.choices[0]?.delta.content ?? "";
    return { text, run: response.headers.get("x-run-id") };
  } catch (error) {
    return { error: String(error), status: error.status ?? null };
  }
}

async function withAnthropic({ url, token, model }) {
  const { default: Anthropic } = await import("/@anthropic-ai/sdk/index.mjs");
  const client = new Anthropic({
    baseURL: url, apiKey: token, dangerouslyAllowBrowser: true, maxRetries: 0,
  });
  const messages = [{ role: "user", content: "Tell me of the tide." }];
  try {
    const stream = client.messages.stream({ model, messages, max_tokens: 64 });
    return { text: await stream.finalText(), request: stream.request_id };
  } catch (error) {
    return { error: String(error), status: error.status ?? null };
  }
}

async function withFetch({ url, path, method, headers, body }) {
  try {
    const answer = await fetch(url + path, { method, headers, body });
    return { status: answer.status, text: await answer.text() };
  } catch (error) {
    return { error: String(error) };
  }
}

const withSocket = ({ url, path, protocols, message }) => new Promise((resolve) => {
  const socket = new WebSocket(url.replace("http", "ws") + path, protocols);
  const said = { protocol: null, messages: [] };
  socket.onopen = () => {
    said.protocol = socket.protocol;
    socket.send(message);
  };
  socket.onmessage = ({ data }) => {
    said.messages.push(data);
    if (JSON.parse(data).type === "response.completed") socket.close(1000);
  };
  socket.onclose = ({ code }) => resolve({ ...said, code });
});

const DOES = { withOpenAi, withAnthropic, withFetch, withSocket };

// The page of a name that leads to the gateway by now came from elsewhere: no gateway serves it.
const PAGE = "<!doctype html><title>page</title>";
await browser.route("**/came-from-elsewhere", (route) => (
  route.fulfill({ contentType: "text/html", body: PAGE })
));
const outcomes = [];
try {
  for (const { at, does, ...what } of told.asks) {
    const page = await browser.newPage();
    const answer = await page.goto(at);
    outcomes.push(
      does === "look" ? { status: answer.status() } : await page.evaluate(DOES[does], what),
    );
    await page.close();
  }
} finally {
  await browser.close();
}
process.stdout.write(JSON.stringify(outcomes));
