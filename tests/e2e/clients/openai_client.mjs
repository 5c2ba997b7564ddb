// What a user of the JavaScript client does with an OpenAI-compatible server. Prints what came back as one JSON object.
// Run as: node openai_client.mjs BASE_URL MODEL
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "javascript", maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "Tell me a story." }];
const got = {};

got.models = [];
for await (const card of client.models.list()) got.models.push(card.id);
got.card = (await client.models.retrieve(model)).id;

const plain = await client.completions.create({ model, prompt: [5, 6, 7], max_tokens: 8, temperature: 0 });
got.completion = { text: plain.choices[0].text, finish: plain.choices[0].finish_reason, usage: plain.usage };

got.streamed = { text: "", events: 0, finish: null };
const stream = await client.completions.create({ model, prompt: [5, 6, 7], max_tokens: 8, temperature: 0, stream: true });
for await (const event of stream) {
  got.streamed.events += 1;
  got.streamed.text += event.choices[0].text;
  got.streamed.finish = event.choices[0].finish_reason;
}

const chat = await client.chat.completions.create({ model, messages, max_completion_tokens: 8, temperature: 0 });
got.chat = { text: chat.choices[0].message.content, role: chat.choices[0].message.role, usage: chat.usage };

got.chatStreamed = { text: "", usage: null };
const chatStream = await client.chat.completions.create({
  model, messages, max_completion_tokens: 8, temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const event of chatStream) {
  got.chatStreamed.text += event.choices[0]?.delta?.content ?? "";
  got.chatStreamed.usage = event.usage ?? null;
}

// The client's own helper, which puts the pieces together and checks them.
const runner = client.chat.completions.stream({ model, messages, max_completion_tokens: 8, temperature: 0 });
got.helper = await runner.finalContent();

// Leaving a stream early ends it on the server, too.
const left = await client.completions.create({ model, prompt: "Once", max_tokens: 1000, stream: true });
for await (const _ of left) break;

got.errors = [];
for (const wrong of [{ model: "other" }, { model, temperature: -1 }, { model, no_such_field: 1 }]) {
  try {
    await client.chat.completions.create({ messages, ...wrong });
    got.errors.push(null);
  } catch (error) {
    got.errors.push({ kind: error.constructor.name, status: error.status, code: error.code, param: error.param });
  }
}
console.log(JSON.stringify(got));
