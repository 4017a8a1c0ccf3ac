// What the JavaScript drivers share: common.py's situations again, over the same small adapter.
// A client's `stream` yields one growing answer; leaving its loop gives the answer up.
import { createRequire } from "node:module";
import { join } from "node:path";
import assert from "node:assert/strict";

// Standard output is the matrix's alone; what a client has to say goes to the other.
console.log = console.info = console.warn = console.error;

export const stage = JSON.parse(process.argv[2]);
export const require = createRequire(join(stage.node, "any.js"));
export const PROMPT = "Tell me of the tide.";
export const CITY = {
  type: "object",
  properties: { city: { type: "string", description: "the city" } },
  required: ["city"],
};
export const TOOL = { name: "get_weather", description: "the weather in a city", parameters: CITY };
const CALL = { name: "get_weather", arguments: { city: "Paris" } };

export class Answer {
  text = "";
  pieces = 0;
  finish = null;
  tokens = null;
  call = null;

  add(piece) {
    if (!piece) return;
    this.text += piece;
    this.pieces += 1;
  }
}

export const numbers = (count) => Array.from({ length: count }, (_, n) => `${n} `).join("");

export async function last(stream) {
  let answer = new Answer();
  for await (const each of stream) answer = each;
  return answer;
}

async function expectWhole(client, names) {
  assert.equal((await client.ask(`${names.box}/ok`)).text, "one two three");
}

// What `ask` throws must be the client's own error for the status, with the upstream's words.
async function expectError(client, status, words, ask) {
  let answer;
  try {
    answer = await ask();
  } catch (error) {
    assert.ok(client.isError(error, status), `${error?.constructor?.name}: ${error?.stack}`);
    assert.ok(String(error.message).includes(words), String(error.message));
    return;
  }
  assert.fail(`an error became an answer: ${JSON.stringify(answer)}`);
}

export const SITUATIONS = {
  async stream(client, names) {
    let answer = await last(client.stream(`${names.box}/numbered:100:1`));
    assert.equal(answer.text, numbers(100));
    assert.equal(answer.finish, "stop");
    if (client.scriptedStreamsOnly) return;
    answer = await last(client.stream(names.genuine, { limit: 50 }));
    assert.ok(answer.pieces > 20, JSON.stringify(answer));
    assert.equal(answer.finish, client.cut ?? "length");
    assert.equal(answer.tokens, 50);
  },

  async plain(client, names) {
    const answer = await client.ask(names.genuine, { limit: 20 });
    assert.ok(answer.text);
    assert.equal(answer.finish, client.cut ?? "length");
    assert.equal(answer.tokens, 20);
    await expectWhole(client, names);
  },

  async tools(client, names) {
    const answer = await last(client.stream(`${names.box}/tools`, { tools: true }));
    assert.deepEqual(answer.call, CALL);
    assert.equal(answer.finish, "tools");
  },

  async cancel(client, names) {
    let events = 0;
    for await (const answer of client.stream(`${names.box}/numbered:100000:10`)) {
      events += 1;
      assert.ok(events < 100, `a hundred events without text: ${JSON.stringify(answer)}`);
      if (answer.pieces >= 10) break;
    }
  },

  async "error before"(client, names) {
    const faults = [
      ["status:429", 429, "the fake says 429"],
      ["status:503", 503, "the fake says 503"],
      ["context-length", 400, "prompt is too long"],
    ];
    for (const [script, status, words] of faults) {
      const model = `${names.box}/${script}`;
      await expectError(client, status, words, () => client.ask(model));
      await expectError(client, status, words, () => last(client.stream(model)));
      await expectWhole(client, names);
    }
    const answer = await client.ask(`${names.box}/times:1:503`, { retries: null });
    assert.equal(answer.text, "one two three");
  },

  async "error in the middle"(client, names) {
    for (const model of [
      `${names.box}/drop:5`, `${names.idle}/stall:5`, `${names.box}/error-middle`,
    ]) {
      await expectError(client, 0, "", () => last(client.stream(model)));
      await expectWhole(client, names);
    }
  },

  async "long silence"(client, names) {
    let answer = await last(client.stream(`${names.slow}/wait:3000`));
    assert.equal(answer.text, "one two three");
    assert.equal(answer.finish, "stop");
    answer = await last(client.stream(`${names.slow}/gap:3000`));
    assert.equal(answer.text, numbers(2));
    assert.equal(answer.finish, "stop");
  },
};

export function say(values) {
  process.stdout.write(`${JSON.stringify(values)}\n`);
}

export function sayVersions(...packages) {
  const version = (name) => require(join(stage.node, "node_modules", name, "package.json")).version;
  say({ versions: Object.fromEntries(packages.map((name) => [name, version(name)])) });
}

export async function run(column, client, more = {}) {
  for (const [cell, situation] of Object.entries({ ...SITUATIONS, ...more })) {
    if (stage.skip[column].includes(cell)) continue;
    let error = null;
    try {
      await situation(client, stage.columns[column]);
    } catch (caught) {
      error = String(caught?.stack ?? caught);
    }
    say({ column, cell, error, gone: cell === "cancel" });
  }
}
