// The AI SDK: streamText and generateText over its three providers.
import { Answer, CITY, PROMPT, require, run, sayVersions, stage } from "./common.mjs";

const { APICallError, generateText, jsonSchema, streamText, tool } = require("ai");
const { createAnthropic } = require("@ai-sdk/anthropic");
const { createOpenAI } = require("@ai-sdk/openai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");

const FINISH = { stop: "stop", length: "length", "tool-calls": "tools" };
const get_weather = tool({ description: "the weather in a city", inputSchema: jsonSchema(CITY) });

function over(model, more = {}) {
  return {
    ...more,
    // A status is an APICallError; an error inside a stream is whatever the stream's part holds.
    isError: (error, status) =>
      status === 0 || (APICallError.isInstance(error) && error.statusCode === status),

    async *stream(name, { tools = false, limit } = {}) {
      const answer = new Answer();
      const abort = new AbortController();
      const result = streamText({
        model: model(name),
        prompt: PROMPT,
        maxRetries: 0,
        maxOutputTokens: limit,
        abortSignal: abort.signal,
        onError: () => {}, // it would print what is thrown below
        ...(tools ? { tools: { get_weather } } : {}),
      });
      try {
        for await (const part of result.fullStream) {
          if (part.type === "error") throw asError(part.error);
          if (part.type === "text-delta") answer.add(part.text);
          if (part.type === "tool-call") {
            answer.call = { name: part.toolName, arguments: part.input };
          }
          if (part.type === "finish") {
            answer.finish = FINISH[part.finishReason];
            answer.tokens = part.totalUsage.outputTokens;
          }
          yield answer;
        }
      } finally {
        abort.abort();
      }
    },

    async ask(name, { limit, retries = 0 } = {}) {
      const whole = await generateText({
        model: model(name),
        prompt: PROMPT,
        maxOutputTokens: limit,
        ...(retries === null ? {} : { maxRetries: 0 }),
      });
      return {
        text: whole.text,
        finish: FINISH[whole.finishReason],
        tokens: whole.usage.outputTokens,
      };
    },
  };
}

// A part of a stream may hold an error's text or its object.
function asError(error) {
  return error instanceof Error ? error : new Error(JSON.stringify(error));
}

const baseURL = `${stage.url}/v1`;
const apiKey = "none";
const compatible = createOpenAICompatible({
  name: "tidegate", baseURL, apiKey, includeUsage: true,
});
const openai = createOpenAI({ baseURL, apiKey });
const anthropic = createAnthropic({ baseURL, apiKey });

sayVersions("ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai", "@ai-sdk/anthropic");
await run("ai-sdk.chat", over((name) => compatible(name)));
await run("ai-sdk.responses", over((name) => openai.responses(name), {
  cut: "stop", // llama.cpp calls every end of a response completed
  scriptedStreamsOnly: true, // and leaves fields out that the AI SDK insists on
}));
await run("ai-sdk.messages", over((name) => anthropic(name)));
