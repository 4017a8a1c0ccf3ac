// openai-node: chat completions and responses.
import assert from "node:assert/strict";
import {
  Answer, PROMPT, SITUATIONS, TOOL, numbers, require, run, sayVersions, stage,
} from "./common.mjs";

const { OpenAI, APIError, BadRequestError, InternalServerError, RateLimitError } = require("openai");

const TYPED = { 0: APIError, 400: BadRequestError, 429: RateLimitError, 503: InternalServerError };
const FINISH = { stop: "stop", length: "length", tool_calls: "tools" };
const client = new OpenAI({ baseURL: `${stage.url}/v1`, apiKey: "none" });
const once = { maxRetries: 0 };
const tries = (retries) => (retries === null ? {} : once);
const isError = (error, status) =>
  error instanceof TYPED[status] && (status === 0 || error.status === status);

const chat = {
  isError,

  async *stream(model, { tools = false, limit } = {}) {
    const answer = new Answer();
    let name = "";
    let args = "";
    const stream = await client.chat.completions.create({
      model,
      messages: [{ role: "user", content: PROMPT }],
      stream: true,
      ...(limit ? { max_tokens: limit, stream_options: { include_usage: true } } : {}),
      ...(tools ? { tools: [{ type: "function", function: TOOL }] } : {}),
    }, once);
    for await (const chunk of stream) {
      answer.tokens = chunk.usage?.completion_tokens ?? answer.tokens;
      for (const choice of chunk.choices) {
        answer.add(choice.delta.content);
        answer.finish = FINISH[choice.finish_reason] ?? answer.finish;
        for (const call of choice.delta.tool_calls ?? []) {
          name += call.function.name ?? "";
          args += call.function.arguments ?? "";
        }
      }
      yield answer; // leaving the loop here aborts the request
    }
    if (name) answer.call = { name, arguments: JSON.parse(args) };
    yield answer;
  },

  async ask(model, { limit, retries = 0 } = {}) {
    const whole = await client.chat.completions.create({
      model,
      messages: [{ role: "user", content: PROMPT }],
      ...(limit ? { max_tokens: limit } : {}),
    }, tries(retries));
    return {
      text: whole.choices[0].message.content,
      finish: FINISH[whole.choices[0].finish_reason],
      tokens: whole.usage?.completion_tokens,
    };
  },
};

function finished(response) {
  const call = response.output.find((item) => item.type === "function_call");
  const finish = response.status === "incomplete" ? "length" : "stop";
  return {
    text: response.output_text,
    finish: call ? "tools" : finish,
    tokens: response.usage?.output_tokens,
    call: call ? { name: call.name, arguments: JSON.parse(call.arguments) } : null,
  };
}

const responses = {
  isError,
  cut: "stop", // llama.cpp calls every end of a response completed

  async *stream(model, { tools = false, limit } = {}) {
    const answer = new Answer();
    const stream = await client.responses.create({
      model,
      input: PROMPT,
      stream: true,
      ...(limit ? { max_output_tokens: limit } : {}),
      ...(tools ? { tools: [{ type: "function", strict: false, ...TOOL }] } : {}),
    }, once);
    for await (const event of stream) {
      // These failures are events that the client hands to its user.
      const failure = event.type === "response.failed" ? event.response.error
        : event.type === "error" ? event : null;
      if (failure) throw new APIError(undefined, failure, failure.message);
      if (event.type === "response.output_text.delta") answer.add(event.delta);
      if (event.type === "response.completed" || event.type === "response.incomplete") {
        const { finish, tokens, call } = finished(event.response);
        Object.assign(answer, { finish, tokens, call });
      }
      yield answer;
    }
    assert.ok(answer.finish, "the stream ended without its last event");
  },

  async ask(model, { limit, retries = 0 } = {}) {
    return finished(await client.responses.create({
      model, input: PROMPT, ...(limit ? { max_output_tokens: limit } : {}),
    }, tries(retries)));
  },
};

// A response in the background goes on where its reader left it.
async function resume(_, names) {
  const seen = [];
  const model = `${names.box}/numbered:200:5`;
  const head = await client.responses.create({
    model, input: PROMPT, stream: true, background: true,
  });
  for await (const event of head) if (seen.push(event) === 50) break;
  const { id } = seen.find((event) => event.type === "response.created").response;
  const after = seen.at(-1).sequence_number;
  const rest = await client.responses.retrieve(id, { stream: true, starting_after: after });
  for await (const event of rest) seen.push(event);
  assert.deepEqual(seen.map((event) => event.sequence_number), seen.map((_, n) => n));
  const deltas = seen.filter((event) => event.type === "response.output_text.delta");
  assert.equal(deltas.map((event) => event.delta).join(""), numbers(200));
  assert.equal(seen.at(-1).type, "response.completed");
}

sayVersions("openai");
await run("openai-node.chat", chat, {
  // The list of models comes with it.
  async plain(client_, names) {
    await SITUATIONS.plain(client_, names);
    const models = [];
    for await (const { id } of client.models.list()) models.push(id);
    assert.ok(models.includes(names.genuine.split("/")[1]), models.join());
  },
});
await run("openai-node.responses", responses, { resume });
