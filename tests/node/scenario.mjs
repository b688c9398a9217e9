// OpenAI's SDK on a pipe: reads one command a line, does it, and tells what came of it, as JSON.
// `node scenario.mjs <package>`; tests/sdk_process.py says what the commands are.

import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";

const name = process.argv[2];
const { default: OpenAI } = await import(name);
const { VERSION } = await import(`${name}/version`);

const ways = { whole, chunks, file, events };
const deeds = { speak, models, model };

tell({ version: VERSION });
for await (const line of createInterface({ input: process.stdin })) {
  tell(await answer(JSON.parse(line)));
}

function tell(facts) {
  process.stdout.write(`${JSON.stringify(facts)}\n`);
}

async function answer(command) {
  const { url, key, retries } = command;
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: retries, timeout: 60_000 });
  const began = performance.now();
  const facts = await deeds[command.do](client, command).catch(refusal);
  return { ...facts, took: (performance.now() - began) / 1000 };
}

async function speak(client, { how, fields, request_id, path }) {
  const options = { headers: { "X-Request-ID": request_id } };
  const response = await client.audio.speech.create(fields, options);
  return { ...(await ways[how](response, path)), type: response.headers.get("content-type") };
}

async function models(client) {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  return { ids };
}

async function model(client, { id }) {
  const { object, owned_by } = await client.models.retrieve(id);
  return { object, owned_by };
}

function refusal(error) {
  if (!(error instanceof OpenAI.APIError)) throw error;
  const names = [];
  for (let kind = error.constructor; kind.name; kind = Object.getPrototypeOf(kind)) names.push(kind.name);
  const { message, status, type, param, code } = error;
  return { error: { names, message, status, type, param, code, request_id: error.requestID } };
}

// -- ways to take the sound -----------------------------------------------------------------------

function digest(bytes) {
  return { size: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") };
}

async function whole(response) {
  return digest(Buffer.from(await response.arrayBuffer()));
}

async function chunks(response) {
  const pieces = [];
  let first;
  for await (const piece of response.body) {
    first ??= Number(process.hrtime.bigint()) / 1e9; // CLOCK_MONOTONIC, in seconds
    pieces.push(piece);
  }
  return { ...digest(Buffer.concat(pieces)), chunks: pieces.length, first };
}

async function file(response, path) {
  await writeFile(path, response.body);
  return digest(await readFile(path));
}

async function events(response) {
  const all = [];
  const lines = (await response.text()).split("\n");
  for (const line of lines) if (line.startsWith("data: ")) all.push(JSON.parse(line.slice(6)));
  const sound = all.filter((event) => event.audio).map((event) => Buffer.from(event.audio, "base64"));
  return { ...digest(Buffer.concat(sound)), events: all.map((event) => event.type), last: all.at(-1) };
}
