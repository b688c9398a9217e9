// The voices as cards: one is chosen, each can be heard, and what was added can be removed.

import { all, icon, iconButton, kept, make, one, paint, relabel } from "./dom.js";
import { address, ask } from "./service.js";
import { onLanguage, say } from "./words.js";

const CHOSEN = "voice";
const MANY = 12; // from here on there is a field to find one

export class Voices {
  #list = one("#voices");
  #found = [];
  #sample = one("#sample");
  #sampled = ""; // whose recording is being played
  #hasFailed = false;

  constructor() {
    this.#list.addEventListener("change", ({ target }) => {
      kept.set(CHOSEN, target.value);
      this.onChange();
    });
    one("#filter").addEventListener("input", () => this.#filter());
    for (const name of ["playing", "pause", "ended", "error"]) {
      this.#sample.addEventListener(name, () => this.#label());
    }
    onLanguage(() => this.#render());
  }

  /** Called when another voice is chosen, with nothing. */
  onChange = () => {};
  /** Called when a recording starts to play, with nothing. */
  onPlay = () => {};
  /** Called with a voice that shall be removed. */
  onRemove = () => {};

  /** The chosen voice's id; empty if there is none. */
  get chosen() {
    return one("input:checked", this.#list)?.value ?? "";
  }

  hush() {
    this.#sample.pause();
  }

  /** Read the list anew, and choose `id` if it is given. */
  async refresh(id) {
    if (id) kept.set(CHOSEN, id);
    try {
      this.#found = (await (await ask("v1/audio/voices")).json()).voices;
      this.#hasFailed = false;
    } catch {
      this.#hasFailed = true;
    }
    this.#render();
    this.onChange();
  }

  #render() {
    const names = this.#found.map(({ id }) => id);
    const wanted = [this.chosen, kept.get(CHOSEN), "default", names[0]];
    const chosen = this.#pick(wanted, names);
    this.#list.replaceChildren(...this.#found.map((voice) => this.#card(voice, voice.id === chosen)));
    one("#filter").hidden = names.length <= MANY;
    const empty = one("#no-voices");
    empty.hidden = names.length > 0 && !this.#hasFailed;
    empty.textContent = say(this.#hasFailed ? "voicesFailed" : "noVoices");
    this.#filter();
  }

  #pick(wanted, names) {
    const [shown, last, ...others] = wanted;
    // The last choice first: it is newer than what is shown when a voice was just added.
    return [last, shown, ...others].find((name) => names.includes(name));
  }

  #card(voice, isChosen) {
    const id = `voice-${voice.id}`;
    const choice = make("input", { type: "radio", name: "voice", id, value: voice.id, checked: isChosen });
    const face = make("span", { class: "face", "aria-hidden": "true" }, [...voice.name][0].toUpperCase());
    paint(face, voice.name);
    const length = voice.duration ? `${voice.duration.toFixed(1)} s` : "";
    const words = make("span", { class: "words" },
      make("span", { class: "name" }, voice.name), make("small", {}, length));
    const label = make("label", { for: id }, face, words, icon("check"));
    const hear = iconButton("play", "", () => this.#toggle(voice));
    hear.dataset.hears = voice.id;
    const buttons = make("span", { class: "buttons" }, hear);
    if (voice.removable) {
      const remove = iconButton("bin", say("removeVoice", voice), () => this.onRemove(voice));
      buttons.append(remove);
    }
    const card = make("li", { class: "voice" }, choice, label, buttons);
    this.#labelOne(hear, voice.name);
    return card;
  }

  #toggle(voice) {
    const isOn = this.#sampled === voice.id && !this.#sample.paused;
    this.#sample.pause();
    if (isOn) return;
    this.#sampled = voice.id;
    this.onPlay();
    this.#sample.src = address(`v1/audio/voices/${encodeURIComponent(voice.id)}/sample`);
    this.#sample.play().catch(() => this.#label());
  }

  #label() {
    for (const button of all("[data-hears]", this.#list)) {
      const { name } = this.#found.find(({ id }) => id === button.dataset.hears);
      this.#labelOne(button, name);
    }
  }

  #labelOne(button, name) {
    const { paused, ended } = this.#sample;
    const isOn = this.#sampled === button.dataset.hears && !paused && !ended;
    relabel(button, say(isOn ? "hushVoice" : "hearVoice", { name }), isOn ? "pause" : "play");
    button.classList.toggle("is-on", isOn);
  }

  #filter() {
    const field = one("#filter");
    const wanted = field.hidden ? "" : field.value.trim().toLowerCase();
    for (const card of this.#list.children) {
      card.hidden = !one(".name", card).textContent.toLowerCase().includes(wanted);
    }
  }
}
