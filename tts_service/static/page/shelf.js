// The last answers, to hear again. They are kept by this browser, and nowhere else.

import { Answer } from "./answer.js";
import { iconButton, make, one, paint, snippet } from "./dom.js";
import { describe } from "./player.js";
import { onLanguage, say } from "./words.js";

const MOST = 12;
const MOST_BYTES = 64 * 1024 * 1024;
const STORE = "answers";

export class Shelf {
  #kept = []; // newest first: {id, wanted, segments, facts, file}
  #database = open();

  constructor() {
    one("#clear-shelf").addEventListener("click", () => this.#clear());
    onLanguage(() => this.#render());
    this.#read();
  }

  /** Called with an answer that shall be heard again. */
  onOpen = () => {};

  /** Keep an answer that is whole; the oldest leave. */
  add(answer) {
    answer.id = Date.now();
    const { id, wanted, segments, facts, file } = answer;
    this.#kept.unshift({ id, wanted, segments, facts, file });
    this.#write((store) => store.put({ id, wanted, segments, facts, file }));
    while (this.#kept.length > 1 && this.#isOver()) this.#forget(this.#kept.at(-1).id);
    this.#render();
  }

  #isOver() {
    const bytes = this.#kept.reduce((sum, { file }) => sum + file.size, 0);
    return this.#kept.length > MOST || bytes > MOST_BYTES;
  }

  #forget(id) {
    this.#kept = this.#kept.filter((entry) => entry.id !== id);
    this.#write((store) => store.delete(id));
    this.#render();
  }

  #clear() {
    this.#kept = [];
    this.#write((store) => store.clear());
    this.#render();
  }

  async #read() {
    const database = await this.#database;
    if (!database) return;
    const asked = database.transaction(STORE).objectStore(STORE).getAll();
    asked.onsuccess = () => {
      this.#kept = [...this.#kept, ...asked.result.reverse()];
      this.#render();
    };
  }

  async #write(change) {
    const database = await this.#database;
    try {
      if (database) change(database.transaction(STORE, "readwrite").objectStore(STORE));
    } catch {
      // Without a database, or one that takes no files, the shelf lasts as long as the page.
    }
  }

  #render() {
    const rows = this.#kept.map((entry) => this.#row(entry));
    one("#shelf").replaceChildren(...rows);
    one("#shelf").hidden = !rows.length;
    one("#shelf-empty").hidden = rows.length > 0;
    one("#clear-shelf").hidden = !rows.length;
  }

  #row({ id, wanted, segments, facts, file }) {
    const text = snippet(wanted.input, 60);
    const face = make("span", { class: "face", "aria-hidden": "true" }, [...(wanted.voice || "?")][0].toUpperCase());
    paint(face, wanted.voice);
    const again = make("button", { type: "button", class: "again" },
      face,
      make("span", { class: "words" },
        make("span", { class: "sr-only" }, say("hearAgain")),
        make("span", { class: "name" }, text),
        make("small", {}, describe(wanted))));
    again.addEventListener("click", () => {
      const answer = new Answer(wanted, { segments, facts: { ...facts }, sound: [file] });
      answer.id = id;
      this.onOpen(answer);
    });
    const forget = iconButton("close", say("forget", { text }), () => this.#forget(id));
    return make("li", {}, again, forget);
  }
}

/** The database, or null where the browser has none for us. */
function open() {
  return new Promise((resolve) => {
    try {
      const asked = indexedDB.open("speech", 1);
      asked.onupgradeneeded = () => asked.result.createObjectStore(STORE, { keyPath: "id" });
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => resolve(null);
      asked.onblocked = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
}
