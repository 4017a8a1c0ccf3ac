// A browser for tests: does what each line of standard input asks for, and answers with one.
// node page.mjs NODE_FOLDER CHROMIUM
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [, , node, executablePath] = process.argv;
const require = createRequire(join(node, "any.js"));
const { chromium } = require("playwright-core");
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const LIMIT_MS = 20000;

const browser = await chromium.launch({ executablePath, headless: true, args: FLAGS });
const contexts = new Map();
const tabs = new Map();

// What a policy of the page forbids is told on its console, with all else that goes wrong there.
const WATCH = `
  document.addEventListener("securitypolicyviolation", (event) =>
    console.error("forbidden: " + event.violatedDirective + " " + event.blockedURI));
  window.addEventListener("unhandledrejection", (event) => console.error("rejected: " + event.reason));
`;

async function open({ tab, url, browsing, options }) {
  if (!contexts.has(browsing)) {
    const context = await browser.newContext(options);
    context.setDefaultTimeout(LIMIT_MS);
    await context.addInitScript(WATCH);
    contexts.set(browsing, context);
  }
  const page = await contexts.get(browsing).newPage();
  const seen = { requests: [], complaints: [], dialogs: [] };
  page.on("request", (request) => seen.requests.push({ url: request.url(), headers: request.headers(), open: true, atMs: Date.now() }));
  for (const end of ["requestfinished", "requestfailed"]) {
    page.on(end, (request) => {
      const found = seen.requests.find((each) => each.open && each.url === request.url());
      if (found) found.open = false;
    });
  }
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) seen.complaints.push(message.text());
  });
  page.on("pageerror", (error) => seen.complaints.push(`thrown: ${error.stack}`));
  page.on("dialog", (dialog) => {
    seen.dialogs.push(dialog.message());
    dialog.dismiss();
  });
  tabs.set(tab, { page, seen });
  await page.goto(url);
}

async function axe({ tab }) {
  const { page } = tabs.get(tab);
  await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  const { violations, passes } = await page.evaluate("axe.run()");
  return {
    passed: passes.length,
    wrong: violations.map((each) => `${each.id}: ${each.help}: ${each.nodes.map((one) => `${one.html} ${one.failureSummary}`).join("; ")}`),
  };
}

// A method of the page, or of what it has: "click", "keyboard.press".
function call({ tab, name, args }) {
  const names = name.split(".");
  const method = names.pop();
  const target = names.reduce((found, each) => found[each], tabs.get(tab).page);
  return target[method](...args);
}

const DOES = {
  open,
  axe,
  call,
  seen: ({ tab }) => tabs.get(tab).seen,
  forget: ({ tab }) => Object.values(tabs.get(tab).seen).forEach((list) => list.splice(0)),
  frames: ({ tab }) => tabs.get(tab).page.frames().map((frame) => frame.url()),
  cookies: ({ browsing }) => contexts.get(browsing).cookies(),
  close: async ({ tab }) => {
    await tabs.get(tab).page.close();
    tabs.delete(tab);
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  let answer;
  try {
    const value = await DOES[asked.does](asked);
    answer = { value: Buffer.isBuffer(value) ? null : value ?? null };
  } catch (error) {
    answer = { error: String(error.stack ?? error) };
  }
  let text;
  try {
    text = JSON.stringify(answer);
  } catch {
    text = '{"value": null}'; // what it gave is no value: a response, a handle
  }
  process.stdout.write(`${text}\n`);
}
await browser.close();
