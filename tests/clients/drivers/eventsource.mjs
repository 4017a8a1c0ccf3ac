// EventSource in Chromium, which reads a run's stream: the page makes the run, and joins it.
import assert from "node:assert/strict";
import net from "node:net";
import { join } from "node:path";
import { numbers, require, run, say, sayVersions, stage } from "./common.mjs";

const { chromium } = require("playwright-core");
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

// A piece of cable between the browser and the gateway, which can be cut once.
const cable = { cutAfterBytes: Infinity, cuts: 0, asked: [] };
const server = net.createServer((near) => {
  const far = net.connect(new URL(stage.url).port, "127.0.0.1");
  let passed = 0;
  near.on("data", (data) => {
    const head = String(data);
    if (head.includes("/stream")) {
      passed = 0;
      cable.asked.push(/^last-event-id: *(\S+)/im.exec(head)?.[1] ?? null);
    } else {
      passed = -Infinity;
    }
    far.write(data);
  });
  far.on("data", (data) => {
    near.write(data);
    passed += data.length;
    if (passed < cable.cutAfterBytes) return;
    cable.cutAfterBytes = Infinity;
    cable.cuts += 1;
    near.resetAndDestroy();
    far.destroy();
  });
  for (const [one, other] of [[near, far], [far, near]]) {
    one.on("error", () => other.destroy());
    one.on("close", () => other.destroy());
  }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

const browser = await chromium.launchPersistentContext(join(stage.scratch, "chromium"), {
  executablePath: stage.chromium, headless: true, args: FLAGS,
});
const page = browser.pages()[0] ?? await browser.newPage();
await page.goto(`http://127.0.0.1:${server.address().port}/`);

// Makes a run and leaves it to itself; returns its id.
const make = (model) => page.evaluate(async (asked) => {
  const answer = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", "x-on-disconnect": "continue" },
    body: JSON.stringify({
      model: asked, stream: true, messages: [{ role: "user", content: "Tell me of the tide." }],
    }),
  });
  await answer.body.cancel();
  return answer.headers.get("x-run-id");
}, model);

// All that an EventSource hands out until it gives up by itself.
const read = (id) => page.evaluate((asked) => new Promise((resolve) => {
  const source = new EventSource(`/v1/runs/${asked}/stream`);
  const seen = { events: [], errors: 0 };
  source.onmessage = ({ lastEventId, data }) => seen.events.push([lastEventId, data]);
  source.onerror = () => {
    seen.errors += 1;
    if (source.readyState === EventSource.CLOSED) resolve(seen);
  };
}), id);

function assertWhole({ events }, text) {
  assert.deepEqual(events.map(([id]) => id), events.map((_, n) => String(n)));
  assert.equal(events.at(-1)[1], "[DONE]");
  const chunks = events.slice(0, -1).map(([, data]) => JSON.parse(data));
  const words = chunks.flatMap((chunk) => chunk.choices).map(({ delta }) => delta.content ?? "");
  assert.equal(words.join(""), text);
}

const source = {
  async stream(_, names) {
    const seen = await read(await make(`${names.box}/numbered:100:1`));
    assertWhole(seen, numbers(100));
    assert.equal(seen.errors, 2); // it comes again once, is told 204, and stops
  },

  // The page's own reader goes first; the run is then this EventSource's alone.
  async cancel(_, names) {
    await page.evaluate(async (model) => {
      const abort = new AbortController();
      const answer = await fetch("/v1/chat/completions", {
        method: "POST",
        signal: abort.signal,
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({
          model, stream: true, messages: [{ role: "user", content: "Tell me of the tide." }],
        }),
      });
      const source = new EventSource(`/v1/runs/${answer.headers.get("x-run-id")}/stream`);
      let seen = 0;
      await new Promise((enough) => {
        source.onmessage = () => {
          seen += 1;
          if (seen === 10) abort.abort();
          if (seen === 200) enough();
        };
      });
      source.close();
    }, `${names.box}/numbered:100000:10`);
  },

  // Anything but a 200 closes it for good; the status is in no event.
  async "error before"() {
    const { events, errors } = await read("no-such-run");
    assert.deepEqual([events, errors], [[], 1]);
  },

  async "error in the middle"(_, names) {
    for (const model of [
      `${names.box}/drop:5`, `${names.idle}/stall:5`, `${names.box}/error-middle`,
    ]) {
      const { events } = await read(await make(model));
      const [, data] = events.at(-1);
      assert.ok(JSON.parse(data).error.message, data);
    }
  },

  async "long silence"(_, names) {
    assertWhole(await read(await make(`${names.slow}/wait:3000`)), "one two three");
    assertWhole(await read(await make(`${names.slow}/gap:3000`)), numbers(2));
  },

  async resume(_, names) {
    const id = await make(`${names.box}/numbered:400:5`);
    cable.asked = [];
    cable.cutAfterBytes = 20_000;
    const seen = await read(id);
    assertWhole(seen, numbers(400)); // nothing is missing, nothing comes twice
    assert.equal(cable.cuts, 1);
    assert.equal(cable.asked.length, 3);
    assert.equal(cable.asked[0], null);
    assert.ok(Number(cable.asked[1]) > 10, cable.asked[1]);
    assert.equal(Number(cable.asked[2]), seen.events.length - 1); // answered with 204
  },
};

sayVersions("playwright-core");
say({ versions: { chromium: browser.browser()?.version() ?? await page.evaluate(
  () => navigator.userAgent.match(/Chrome\/([\d.]+)/)[1],
) } });
try {
  await run("eventsource.runs", null, source);
} finally {
  await browser.close();
  server.close();
}
