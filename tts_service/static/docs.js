// Shows the service's own OpenAPI document, and sends the requests it describes.

const KEY = "api-key"; // in sessionStorage: the tab forgets it
const FORM = "multipart/form-data";
const LONG_TEXT = 1000; // characters: from here on a text gets a field of several lines

const documentUrl = new URL(document.body.dataset.document, location);
const main = document.querySelector("main");
const keyField = document.querySelector("#key");
let spec;

keyField.value = sessionStorage.getItem(KEY) ?? "";
keyField.addEventListener("input", () => sessionStorage.setItem(KEY, keyField.value));
start();

async function start() {
  try {
    spec = await (await fetch(documentUrl)).json();
    document.querySelector("#about").append(...paragraphs(spec.info.description));
    main.append(...spec.tags.flatMap(section));
  } catch (error) {
    main.append(make("p", { role: "alert" }, `The document cannot be read: ${error.message}`));
  }
  main.ariaBusy = "false";
}

// -- the document as elements ---------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// What is written `like this` is code.
function prose(text = "") {
  return text.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

function paragraphs(text = "") {
  return text.split("\n\n").map((paragraph) => make("p", {}, ...prose(paragraph)));
}

function resolve(node) {
  if (!node?.$ref) return node;
  const found = node.$ref.slice(2).split("/").reduce((at, key) => at[key], spec);
  return resolve(found);
}

// The proper form of a value, of those that are accepted.
function proper(schema) {
  const { anyOf, ...own } = resolve(schema ?? {});
  return anyOf ? { ...own, ...proper(anyOf[0]) } : own;
}

function operations() {
  return Object.entries(spec.paths).flatMap(([path, item]) =>
    ["post", "get", "put", "delete"].filter((method) => item[method]).map((method) => {
      const operation = item[method];
      const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])];
      return { ...operation, method, path, parameters };
    }),
  );
}

function section(tag) {
  const mine = operations().filter((operation) => operation.tags.includes(tag.name));
  const about = make("p", { class: "quiet" }, ...prose(tag.description));
  return [make("h2", {}, tag.name), about, ...mine.map(card)];
}

function card(operation) {
  const { method, path, summary, description } = operation;
  return make("details", { id: operation.operationId },
    make("summary", {},
      make("span", { class: `method ${method}` }, method.toUpperCase()), " ",
      make("span", { class: "path" }, path), " ",
      make("span", { class: "quiet" }, summary)),
    make("div", { class: "inside" },
      ...paragraphs(description),
      form(operation),
      make("h3", {}, "Answers"),
      make("table", {}, ...Object.entries(operation.responses).map(answerRow))));
}

function answerRow([status, response]) {
  const { description, content = {} } = resolve(response);
  const kinds = make("small", {}, Object.keys(content).join(", "));
  return make("tr", {},
    make("th", { scope: "row" }, status),
    make("td", {}, ...prose(description), make("br"), kinds));
}

// -- trying it ------------------------------------------------------------------------------------

function form(operation) {
  const fields = fieldsOf(operation);
  const button = make("button", {}, "Send");
  const result = make("div", { "aria-live": "polite" });
  const element = make("form", {},
    make("div", { class: "fields" }, ...fields.flatMap((field) => [field.label, field.cell])),
    button, result);
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    await send(operation, fields, result);
    button.disabled = false;
  });
  return element;
}

function fieldsOf(operation) {
  const parameters = operation.parameters.map(({ name, in: place, required, description, schema }) =>
    field(operation, { name, place, required, description, schema: proper(schema) }));
  const { "application/json": json, [FORM]: form } = operation.requestBody?.content ?? {};
  const schema = proper((json ?? form)?.schema);
  const properties = Object.entries(schema.properties ?? {}).map(([name, property]) =>
    field(operation, {
      name,
      place: "body",
      required: schema.required.includes(name),
      description: resolve(property).description,
      schema: proper(property),
    }));
  return [...parameters, ...properties];
}

function field(operation, told) {
  const id = `${operation.operationId}-${told.name}`;
  const attributes = { id, "aria-describedby": `${id}-hint`, required: told.required };
  const control = controlFor(told.schema, attributes);
  if (control.type !== "file") control.value = told.schema.examples?.[0] ?? "";
  const hint = make("small", { id: `${id}-hint` }, ...prose(told.description), limits(told.schema));
  const label = make("label", { for: id }, make("code", {}, told.name), told.required ? " *" : "");
  return { ...told, control, label, cell: make("div", {}, control, hint) };
}

function controlFor(schema, attributes) {
  const choices = schema.enum ?? (schema.type === "boolean" ? [true, false] : undefined);
  if (choices) {
    const options = choices.map((choice) => make("option", {}, String(choice)));
    return make("select", attributes, make("option", { value: "" }, "–"), ...options);
  }
  if (schema.type === "number" || schema.type === "integer") {
    const { minimum: min, maximum: max } = schema;
    return make("input", { ...attributes, type: "number", step: "any", min, max });
  }
  if (schema.format === "binary") return make("input", { ...attributes, type: "file" });
  const maxlength = schema.maxLength;
  if (maxlength >= LONG_TEXT) return make("textarea", { ...attributes, maxlength, rows: 2 });
  return make("input", { ...attributes, maxlength });
}

function limits({ minimum, maximum, maxLength, default: usual }) {
  const told = [];
  if (minimum !== undefined) told.push(`${minimum} to ${maximum}`);
  if (maxLength !== undefined) told.push(`at most ${maxLength} characters`);
  if (usual !== undefined) told.push(`${usual} if absent`);
  return told.length ? ` (${told.join("; ")})` : "";
}

async function send(operation, fields, result) {
  const began = performance.now();
  for (const { href } of result.querySelectorAll("a[download]")) URL.revokeObjectURL(href);
  try {
    const response = await fetch(...requestOf(operation, fields));
    const body = await response.blob();
    result.replaceChildren(...(await shown(response, body, performance.now() - began)));
  } catch (error) {
    result.replaceChildren(make("p", { class: "status failed" }, `No answer: ${error.message}`));
  }
}

function requestOf(operation, fields) {
  const given = fields.filter(({ control }) => control.value !== "");
  const at = (place) => given.filter((field) => field.place === place);
  let path = operation.path.slice(1); // beside the document, wherever a proxy has put it
  for (const { name, control } of at("path")) {
    path = path.replace(`{${name}}`, encodeURIComponent(control.value));
  }
  const url = new URL(path, documentUrl);
  for (const { name, control } of at("query")) url.searchParams.set(name, control.value);
  const headers = new Headers(at("header").map(({ name, control }) => [name, control.value]));
  if (keyField.value && operation.security) headers.set("Authorization", `Bearer ${keyField.value}`);
  if (!operation.requestBody) return [url, { method: operation.method, headers }];
  if (operation.requestBody.content[FORM]) {
    const form = new FormData(); // the browser names its type, and with it the boundary
    for (const { name, control } of at("body")) form.set(name, control.files?.[0] ?? control.value);
    return [url, { method: operation.method, headers, body: form }];
  }
  headers.set("Content-Type", "application/json");
  const body = JSON.stringify(Object.fromEntries(at("body").map((field) => [field.name, typed(field)])));
  return [url, { method: operation.method, headers, body }];
}

function typed({ control, schema }) {
  if (schema.type === "boolean") return control.value === "true";
  return ["number", "integer"].includes(schema.type) ? Number(control.value) : control.value;
}

// -- what came ------------------------------------------------------------------------------------

async function shown(response, body, milliseconds) {
  const kind = (response.headers.get("Content-Type") ?? "").split(";")[0];
  const size = `${body.size.toLocaleString()} bytes in ${Math.round(milliseconds)} ms`;
  const rows = [...response.headers].map(([name, value]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  return [
    make("p", { class: response.ok ? "status" : "status failed" },
      `${response.status} ${response.statusText}, ${size}`),
    ...(await content(kind, body)),
    make("details", {},
      make("summary", {}, "Headers"),
      make("div", { class: "inside" }, make("table", {}, ...rows))),
  ];
}

async function content(kind, body) {
  if (!body.size) return [];
  if (kind.startsWith("audio/")) return player(body, kind);
  const text = await body.text();
  if (kind === "text/event-stream") return events(text);
  const isJson = kind === "application/json";
  return [make("pre", { tabindex: 0 }, isJson ? JSON.stringify(JSON.parse(text), null, 2) : text)];
}

function player(body, kind) {
  const source = URL.createObjectURL(body);
  const link = make("a", { href: source, download: "speech" }, "Download");
  if (kind === "audio/pcm") return [make("p", {}, "Samples alone: browsers cannot play them. ", link)];
  return [make("audio", { controls: true, src: source }), link];
}

function events(text) {
  const data = text.split("\n").filter((line) => line.startsWith("data: "));
  const all = data.map((line) => JSON.parse(line.slice(6)));
  const pieces = all.filter((event) => event.type === "speech.audio.delta");
  const others = all.filter((event) => event.type !== "speech.audio.delta");
  const sound = new Blob(pieces.map(({ audio }) => Uint8Array.from(atob(audio), (c) => c.charCodeAt(0))));
  return [
    make("p", {}, `${pieces.length} pieces of sound, then:`),
    make("pre", { tabindex: 0 }, JSON.stringify(others, null, 2)),
    ...(sound.size ? player(sound, "") : []),
  ];
}
