// The official OpenAI client for Node: node openai_client.cjs BASE_URL MODEL
// Prints one JSON object that says what it saw. NODE_PATH must lead to the package.
const { OpenAI } = require("openai");

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me of the tide." }];

async function main() {
  const said = {};

  let stream = await client.chat.completions.create({
    model, messages, stream: true, max_tokens: 50, ignore_eos: true,
  });
  said.streamed = 0;
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta?.content) said.streamed += 1;
    said.finish = chunk.choices[0]?.finish_reason ?? said.finish;
  }

  const plain = await client.chat.completions.create({
    model, messages, max_tokens: 20, ignore_eos: true,
  });
  said.plain = plain.choices[0].finish_reason;

  said.models = [];
  for await (const each of client.models.list()) said.models.push(each.id);

  said.broken = "no error was raised";
  try {
    const broken = await client.chat.completions.create({
      model: "box/drop:5", messages, stream: true,
    });
    for await (const _ of broken);
  } catch (error) {
    said.broken = String(error.message);
  }

  stream = await client.chat.completions.create({
    model, messages, stream: true, max_tokens: 100000, ignore_eos: true,
  });
  let seen = 0;
  for await (const _ of stream) if (++seen === 10) break; // leaving the loop aborts the request
  said.cancelled = stream.controller.signal.aborted;

  console.log(JSON.stringify(said));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
