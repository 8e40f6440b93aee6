// The unmodified `openai` client for Node against a hub: does everything once, and says what it got as JSON.
// Usage: node client.mjs PACKAGES BASE_URL API_KEY MODEL POOR_KEY
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [packages, baseURL, apiKey, model, poorKey] = process.argv.slice(2);
const require = createRequire(path.join(packages, "package.json"));
const { default: OpenAI, toFile } = await import(pathToFileURL(require.resolve("openai")).href);

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 10_000 });
const messages = [{ role: "user", content: "count" }];
const sound = () => toFile(Buffer.from("ID3 sound"), "a.mp3");
const image = () => toFile(Buffer.from("png"), "a.png", { type: "image/png" });

async function collect(stream) {
  const out = [];
  for await (const item of await stream) out.push(item);
  return out;
}

async function failure(work) {
  try {
    await work();
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code ?? null };
  }
  return null;
}

const told = {};
told.models = (await client.models.list()).data.map((item) => item.id);
told.chat = (await client.chat.completions.create({ model, messages })).choices[0].message.content;
const chunks = await collect(client.chat.completions.create({ model, messages, stream: true }));
told.finish = chunks.at(-1).choices[0].finish_reason;
told.usage = chunks.at(-1).usage ?? null;
told.tool = chunks.flatMap((c) => c.choices[0].delta.tool_calls ?? []).map((t) => t.function.arguments).join("");
const counted = await collect(
  client.chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } }),
);
told.counted = counted.at(-1).usage.completion_tokens;
told.text = (await client.completions.create({ model, prompt: "x" })).choices[0].text;
told.vector = (await client.embeddings.create({ model, input: "x", encoding_format: "float" })).data[0].embedding;
told.response = (await client.responses.create({ model, input: "x" })).output_text;
told.events = (await collect(client.responses.create({ model, input: "x", stream: true }))).map((e) => e.type);
told.heard = (await client.audio.transcriptions.create({ model, file: await sound() })).text;
told.heardEvents = (
  await collect(client.audio.transcriptions.create({ model, file: await sound(), stream: true }))
).map((e) => e.type);
told.translated = (await client.audio.translations.create({ model, file: await sound() })).text;
const speech = await client.audio.speech.create({ model, voice: "alloy", input: "x" });
told.speech = [speech.headers.get("content-type"), (await speech.arrayBuffer()).byteLength];
told.image = (await client.images.generate({ model, prompt: "x" })).data[0].b64_json;
told.edited = (await client.images.edit({ model, prompt: "x", image: [await image(), await image()] })).data.length;

const once = { idempotencyKey: "k", headers: { "Idempotency-Key": "k" } };
const replay = [];
for (let n = 0; n < 2; n += 1) {
  const made = client.embeddings.create({ model, input: "once", encoding_format: "float" }, once);
  const { response } = await made.withResponse();
  replay.push([response.headers.get("x-emc-call-id"), response.headers.get("x-emc-idempotent-replay")]);
}
told.replay = replay;

told.errors = {
  key: await failure(() => new OpenAI({ baseURL, apiKey: "emc_sk_x", maxRetries: 0 }).models.list()),
  model: await failure(() => client.chat.completions.create({ model: "nothing", messages })),
  quota: await failure(() => {
    const poor = new OpenAI({ baseURL, apiKey: poorKey, maxRetries: 3 });
    return poor.chat.completions.create({ model, messages });
  }),
  field: await failure(() => client.responses.create({ model, input: "x", background: true })),
};
process.stdout.write(JSON.stringify(told));
