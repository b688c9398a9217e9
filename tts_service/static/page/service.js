// The service, as any client of it: requests, errors, keys, server-sent events.

const KEY = "api-key"; // in sessionStorage: the tab forgets it
const root = new URL(document.body.dataset.root, location);

/** Where a path of the service is. */
export const address = (path) => new URL(path, root);

/** What went wrong. `kind`: refused (the service said no), unreachable, broke (in the middle of
 *  an answer), stopped (by whoever listens). `message` is the service's own where it gave one. */
export class Failure extends Error {
  constructor(kind, message = "", facts = {}) {
    super(message);
    this.kind = kind;
    Object.assign(this, facts);
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value.trim()),
};

/** Ask for `path`, with an object as JSON or a FormData as it is. Raises Failure. */
export async function ask(path, { method = "GET", json, form, signal } = {}) {
  const headers = new Headers();
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  if (json) headers.set("Content-Type", "application/json");
  const body = json ? JSON.stringify(json) : form;
  let response;
  try {
    response = await fetch(address(path), { method, headers, body, signal });
  } catch (error) {
    throw failure(error, signal, "unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** What a failed fetch or read comes down to. */
export function failure(error, signal, kind = "broke") {
  if (error instanceof Failure) return error;
  return new Failure(signal?.aborted ? "stopped" : kind, "", { cause: error });
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  let told = {};
  try {
    told = JSON.parse(text).error ?? {};
  } catch {
    // an answer of something in between: its status has to do
  }
  return new Failure("refused", told.message ?? `HTTP ${response.status} ${response.statusText}`, {
    status: response.status,
    param: told.param,
    requestId: response.headers.get("X-Request-ID"),
  });
}

/** The events of a `text/event-stream`, parsed. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
    }
  }
}
