// What programs with the npm package `openai` do.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI, { BadRequestError, NotFoundError, toFile } from "openai";

const client = new OpenAI({ baseURL: process.env.GATEWAY_URL + "/v1", apiKey: "none", maxRetries: 0 });
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const ticket = {
  type: "object",
  properties: { subject: { type: "string" }, urgency: { type: "string", enum: ["low", "high"] } },
  required: ["subject", "urgency"],
  additionalProperties: false,
};
const asked = (content, more = {}) => ({ model: "scripted", messages: [{ role: "user", content }], ...more });

async function all(stream) {
  const found = [];
  for await (const one of stream) found.push(one);
  return found;
}

test("models are listed and shown", async () => {
  const ids = (await all(await client.models.list())).map((model) => model.id);
  assert.ok(ids.includes("scripted") && ids.includes("words"));
  assert.equal((await client.models.retrieve("scripted")).object, "model");
  await assert.rejects(client.models.retrieve("nobody"), NotFoundError);
});

test("a chat comes whole and streamed", async () => {
  const whole = await client.chat.completions.create(asked("say one two", { seed: 1, max_tokens: 9 }));
  assert.equal(whole.choices[0].message.content, "one two");
  const options = { stream: true, stream_options: { include_usage: true } };
  const chunks = await all(await client.chat.completions.create(asked("say one two", options)));
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), "one two");
  assert.deepEqual(chunks.at(-1).usage, whole.usage);
});

test("the stream helper collects an answer", async () => {
  const stream = client.chat.completions.stream(asked("say one two"));
  assert.equal(await stream.finalContent(), "one two");
});

test("the tool runner calls functions and sends their results", async () => {
  const runner = client.chat.completions.runTools(
    asked("the weather?", {
      tools: [
        {
          type: "function",
          function: {
            name: "get_weather",
            parameters,
            parse: JSON.parse,
            function: ({ city }) => `sunny in ${city}`,
          },
        },
      ],
    }),
  );
  assert.equal(await runner.finalContent(), "The tool says: sunny in Oslo");
});

test("structured output keeps to its schema", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "ticket", strict: true, schema: ticket } };
  const parsed = await client.chat.completions.parse(asked("the heating is off", { response_format }));
  assert.equal(parsed.choices[0].message.parsed.urgency, "high");
});

test("several answers have their index", async () => {
  const answer = await client.chat.completions.create(asked("say hi", { n: 2 }));
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
});

test("completions continue texts", async () => {
  assert.equal((await client.completions.create({ model: "scripted", prompt: "say hi" })).choices[0].text, "hi");
  const chunks = await all(await client.completions.create({ model: "scripted", prompt: "say a b", stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), "a b");
});

test("embeddings come as base64 and as numbers", async () => {
  const packed = await client.embeddings.create({ model: "words", input: ["a b", "c"] });
  const plain = await client.embeddings.create({ model: "words", input: ["a b", "c"], encoding_format: "float" });
  assert.equal(packed.data[0].embedding.length, 16);
  plain.data[0].embedding.forEach((value, at) => assert.ok(Math.abs(value - packed.data[0].embedding[at]) < 1e-6));
});

test("responses are made, streamed and kept", async () => {
  const made = await client.responses.create({ model: "scripted", input: "say hi" });
  assert.equal(made.output_text, "hi");
  assert.equal((await client.responses.retrieve(made.id)).output_text, "hi");
  const events = await all(await client.responses.create({ model: "scripted", input: "say a b", stream: true }));
  events.forEach((event, at) => assert.equal(event.sequence_number, at));
  assert.equal(events.at(-1).type, "response.completed");
  assert.equal((await all(await client.responses.inputItems.list(made.id))).length, 1);
  await client.responses.delete(made.id);
  await assert.rejects(client.responses.retrieve(made.id), NotFoundError);
});

test("the stream helper builds a response", async () => {
  const stream = client.responses.stream({ model: "scripted", input: "say one two" });
  assert.equal((await stream.finalResponse()).output_text, "one two");
});

test("a function is called and its result makes a second round", async () => {
  const tools = [{ type: "function", name: "get_weather", parameters, strict: true }];
  const first = await client.responses.create({ model: "scripted", input: "the weather?", tools });
  const call = first.output.find((item) => item.type === "function_call");
  assert.deepEqual(JSON.parse(call.arguments), { city: "Oslo" });
  const input = [{ type: "function_call_output", call_id: call.call_id, output: "rain" }];
  const second = await client.responses.create({ model: "scripted", input, previous_response_id: first.id, tools });
  assert.equal(second.output_text, "The tool says: rain");
});

test("structured output of a response is parsed", async () => {
  const text = { format: { type: "json_schema", name: "ticket", strict: true, schema: ticket } };
  const parsed = await client.responses.parse({ model: "scripted", input: "the heating is off", text });
  assert.equal(parsed.output_parsed.urgency, "high");
});

test("background responses are cancelled", async () => {
  const made = await client.responses.create({ model: "scripted", input: "hang", background: true });
  assert.equal((await client.responses.cancel(made.id)).status, "cancelled");
});

test("files go into stores and are found", async () => {
  const content = "The roof is red and made of tin.";
  const file = await client.files.create({ file: await toFile(Buffer.from(content), "roof.txt"), purpose: "assistants" });
  assert.equal(await (await client.files.content(file.id)).text(), content);
  const store = await client.vectorStores.create({ name: "docs", embedding_model: "words" });
  const attributes = { colour: "red" };
  const made = await client.vectorStores.files.createAndPoll(
    store.id,
    { file_id: file.id, attributes },
    { pollIntervalMs: 50 },
  );
  assert.equal(made.status, "completed");
  const [found] = await all(await client.vectorStores.search(store.id, { query: "red roof" }));
  assert.deepEqual([found.file_id, found.attributes, found.content[0].text], [file.id, attributes, content]);
  await client.vectorStores.fileBatches.createAndPoll(store.id, { file_ids: [file.id] }, { pollIntervalMs: 50 });
  assert.ok((await all(await client.files.list({ limit: 1 }))).some((one) => one.id === file.id));
  await client.vectorStores.delete(store.id);
  await client.files.delete(file.id);
  await assert.rejects(client.files.retrieve(file.id), NotFoundError);
});

test("moderations tell what they think of each input", async () => {
  const shield = { shield_id: "guard", provider_id: "llama-guard", provider_shield_id: "the-guard" };
  await client.post("/shields", { body: shield });
  const answer = await client.moderations.create({ model: "the-guard", input: ["fine", "a forbidden thing"] });
  assert.deepEqual(answer.results.map((result) => result.flagged), [false, true]);
});

test("a conversation remembers", async () => {
  const conversation = await client.conversations.create({ metadata: { a: "b" } });
  await client.responses.create({ model: "scripted", input: "say hi", conversation: conversation.id });
  const items = await all(await client.conversations.items.list(conversation.id, { order: "asc" }));
  assert.deepEqual(items.map((item) => item.role), ["user", "assistant"]);
  await client.conversations.delete(conversation.id);
});

test("errors are the package's own classes", async () => {
  await assert.rejects(client.chat.completions.create({ ...asked("x"), model: "nope" }), NotFoundError);
  await assert.rejects(client.chat.completions.create(asked("x", { temperature: 9 })), (error) => {
    return error instanceof BadRequestError && error.param === "temperature";
  });
  await assert.rejects(all(await client.chat.completions.create(asked("break", { stream: true }))), /engine broke/);
});
