// The Anthropic client for TypeScript: messages, streamed by the client's own helper.
import { Answer, CITY, PROMPT, require, run, sayVersions, stage } from "./common.mjs";

const anthropic = require("@anthropic-ai/sdk");

const TYPED = {
  0: anthropic.APIError ?? anthropic.Anthropic.APIError,
  400: anthropic.BadRequestError,
  429: anthropic.RateLimitError,
  503: anthropic.InternalServerError,
};
const FINISH = { end_turn: "stop", max_tokens: "length", tool_use: "tools" };
const TOOL = { name: "get_weather", description: "the weather in a city", input_schema: CITY };
const client = new anthropic.Anthropic({ baseURL: stage.url, apiKey: "none" });
const once = { maxRetries: 0 };

function question(model, limit, tools = false) {
  const messages = [{ role: "user", content: PROMPT }];
  return { model, messages, max_tokens: limit ?? 1000, ...(tools ? { tools: [TOOL] } : {}) };
}

function finished(message) {
  const call = message.content.find((block) => block.type === "tool_use");
  const text = message.content.filter((block) => block.type === "text").map((block) => block.text);
  return {
    text: text.join(""),
    finish: FINISH[message.stop_reason],
    tokens: message.usage.output_tokens,
    call: call ? { name: call.name, arguments: call.input } : null,
  };
}

const messages = {
  isError: (error, status) =>
    error instanceof TYPED[status] && (status === 0 || error.status === status),

  async *stream(model, { tools = false, limit } = {}) {
    const answer = new Answer();
    const stream = client.messages.stream(question(model, limit, tools), once);
    for await (const event of stream) {
      if (event.type === "content_block_delta") answer.add(event.delta.text);
      yield answer; // leaving the loop here aborts the request
    }
    const { finish, tokens, call } = finished(await stream.finalMessage());
    yield Object.assign(answer, { finish, tokens, call });
  },

  async ask(model, { limit, retries = 0 } = {}) {
    const options = retries === null ? {} : once;
    return finished(await client.messages.create(question(model, limit), options));
  },
};

sayVersions("@anthropic-ai/sdk");
await run("anthropic-ts.messages", messages);
