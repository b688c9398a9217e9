// The request as code, to be copied.

import { all, one } from "./dom.js";
import { body } from "./answer.js";
import { address } from "./service.js";
import { onLanguage, say } from "./words.js";

const LONGEST_LINK = 2000; // characters; what browsers, proxies and players take

export class Snippets {
  #wanted = null;
  #needsKey = false;
  #tabs = all("[role=tab]", one("#code"));
  #shown = "curl";

  constructor() {
    for (const tab of this.#tabs) {
      tab.addEventListener("click", () => this.#choose(tab));
      tab.addEventListener("keydown", (event) => this.#move(event));
    }
    one("#copy").addEventListener("click", () => this.#copy());
    onLanguage(() => this.#render());
  }

  show(wanted, needsKey) {
    this.#wanted = wanted;
    this.#needsKey = needsKey;
    this.#render();
  }

  #choose(tab) {
    this.#shown = tab.dataset.code;
    this.#render();
  }

  #move({ key, target }) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!by) return;
    const count = this.#tabs.length;
    const next = this.#tabs[(this.#tabs.indexOf(target) + by + count) % count];
    this.#choose(next);
    next.focus();
  }

  #render() {
    if (!this.#wanted) return;
    for (const tab of this.#tabs) {
      const isShown = tab.dataset.code === this.#shown;
      tab.ariaSelected = String(isShown);
      tab.tabIndex = isShown ? 0 : -1;
      if (isShown) one("#snippet").setAttribute("aria-labelledby", tab.id);
    }
    one("#snippet").textContent = WRITERS[this.#shown](this.#wanted, this.#needsKey);
    one("#copy-words").textContent = say("copy");
  }

  async #copy() {
    const snippet = one("#snippet");
    try {
      await navigator.clipboard.writeText(snippet.textContent);
    } catch {
      // By plain http browsers have no clipboard but this old one.
      getSelection().selectAllChildren(snippet);
      document.execCommand("copy");
    }
    one("#copy-words").textContent = say("copied");
    setTimeout(() => {
      one("#copy-words").textContent = say("copy");
    }, 2000);
  }
}

const base = () => address("v1").href;
const file = ({ format }) => `speech.${format}`;

/** What a program asks for that wants a file, or bytes as they come. */
const asked = (wanted) => body({ ...wanted, streams: false }, wanted.streams ? { stream_format: "audio" } : {});

function curl(wanted, needsKey) {
  const quoted = JSON.stringify(asked(wanted), null, 2).replaceAll("'", "'\\''");
  return [
    `curl ${base()}/audio/speech \\`,
    ...(needsKey ? ['  -H "Authorization: Bearer $API_KEY" \\'] : []),
    "  -H 'Content-Type: application/json' \\",
    `  -d '${quoted}' \\`,
    `  -o ${file(wanted)}`,
  ].join("\n");
}

function python(wanted, needsKey) {
  const { input, voice, format, speed, streams } = wanted;
  const fields = [
    'model="tts-1"',
    `voice=${JSON.stringify(voice || "alloy")}`,
    `input=${JSON.stringify(input)}`,
    `response_format="${format}"`,
    ...(speed !== 1 ? [`speed=${speed}`] : []),
    ...(streams ? ['stream_format="audio"'] : []),
  ].map((field) => `    ${field},`);
  return [
    ...(needsKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${base()}", api_key=${needsKey ? 'os.environ["API_KEY"]' : '"any"'})`,
    "with client.audio.speech.with_streaming_response.create(",
    ...fields,
    ") as answer:",
    `    answer.stream_to_file("${file(wanted)}")`,
  ].join("\n");
}

function javascript(wanted, needsKey) {
  const headers = [
    '"Content-Type": "application/json"',
    ...(needsKey ? ["Authorization: `Bearer ${process.env.API_KEY}`"] : []),
  ];
  const fields = JSON.stringify(asked(wanted), null, 2).replaceAll("\n", "\n  ");
  return [
    'import { writeFile } from "node:fs/promises";',
    "",
    `const answer = await fetch("${base()}/audio/speech", {`,
    '  method: "POST",',
    `  headers: { ${headers.join(", ")} },`,
    `  body: JSON.stringify(${fields}),`,
    "});",
    "if (!answer.ok) throw new Error(await answer.text());",
    `await writeFile("${file(wanted)}", answer.body);`,
  ].join("\n");
}

function link(wanted, needsKey) {
  if (needsKey) return say("linkNeedsKey");
  const url = address("v1/audio/speech");
  const { model, ...fields } = body({ ...wanted, streams: false }, {});
  for (const [name, value] of Object.entries(fields)) url.searchParams.set(name, value);
  return url.href.length > LONGEST_LINK ? say("linkTooLong") : url.href;
}

const WRITERS = { curl, python, javascript, link };
