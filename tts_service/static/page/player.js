// Plays an answer, also while it is still being spoken; shows its waveform and its sentences.

import { TYPES } from "./answer.js";
import { clock, isStill, make, one, relabel, snippet } from "./dom.js";
import { LiveSound, canStream } from "./live.js";
import { Waveform, loudness } from "./wave.js";
import { canSay, onLanguage, say } from "./words.js";

const STEP = 5; // seconds that an arrow key seeks
const EARLY = 0.03; // seconds: a playhead put at a sentence may land this much before it

export class Player {
  #root = one("#player");
  #audio = one("#sound");
  #wave = new Waveform(one("#wave"));
  #slider = one("#wave");
  #text = one("#transcript");
  #answer = null;
  #live = null;
  #spans = []; // one for each segment
  #now = -1; // the segment being heard
  #readTo = 0; // characters of the input that the segments so far cover
  #piece = { start: 0, from: 0 }; // what is not in the picture yet: its start, its first chunk
  #url = "";
  #drawn = Promise.resolve();

  constructor() {
    const audio = this.#audio;
    one("#play").addEventListener("click", () => this.toggle());
    one("#previous").addEventListener("click", () => this.#step(-1));
    one("#next").addEventListener("click", () => this.#step(1));
    one("#download").addEventListener("click", () => this.#download());
    this.#slider.addEventListener("pointerdown", (event) => this.#drag(event));
    this.#slider.addEventListener("keydown", (event) => this.#key(event));
    this.#text.addEventListener("click", ({ target }) => {
      const index = this.#spans.indexOf(target.closest(".sentence"));
      if (index >= 0) this.seek(this.#answer.segments[index].start);
    });
    for (const name of ["play", "pause", "ended", "seeked", "durationchange", "waiting", "playing"]) {
      audio.addEventListener(name, () => this.#show());
    }
    audio.addEventListener("playing", () => this.#heardFirst());
    audio.addEventListener("play", () => this.#follow());
    audio.addEventListener("error", () => this.#unplayable());
    onLanguage(() => this.#show());
    this.#show();
  }

  /** Called when an answer starts to play, with nothing. */
  onPlay = () => {};
  /** Called with words when the browser cannot play an answer. */
  onTrouble = () => {};

  get isPlaying() {
    return Boolean(this.#answer) && !this.#audio.paused && !this.#audio.ended;
  }

  /** Play `answer` while it is made. Within a click: browsers want a gesture for sound. */
  begin(answer) {
    this.#reset(answer);
    this.#began = performance.now();
    if (!answer.wanted.streams || !canStream(TYPES.mp3)) return;
    this.#live = new LiveSound(this.#audio, TYPES.mp3);
    this.#play();
  }

  /** A sentence begins with the next sound. */
  segment(segment) {
    if (this.#drawPiece()) this.#piece.start = segment.start;
    this.#addSentence(segment);
    this.#show();
  }

  sound(bytes) {
    this.#live?.append(bytes);
    this.#show();
  }

  /** Nothing more will come, for whatever reason. What is there is played. */
  async finish({ isStopped = false } = {}) {
    this.#drawPiece();
    const hasSound = this.#answer.sound.length > 0;
    if (!hasSound) this.#empty();
    else if (this.#live) this.#live.end();
    else await this.#load();
    if (isStopped) this.#audio.pause();
    else if (hasSound && !this.#live) this.#play();
    await this.#drawn;
    this.#show();
  }

  /** Play an answer that is there already. */
  async open(answer) {
    this.#reset(answer);
    for (const segment of answer.segments) this.#addSentence(segment);
    this.#drawPiece();
    await this.#load();
    this.#play();
  }

  toggle() {
    if (!this.#answer?.sound.length) return;
    if (this.isPlaying) this.#audio.pause();
    else this.#play();
  }

  pause() {
    this.#audio.pause();
  }

  async seek(time) {
    const wanted = Math.min(Math.max(0, time), Math.max(0, this.#there - 0.05));
    if (this.#live && !this.#live.has(wanted)) {
      if (this.#answer.state === "making") return; // the browser let go of it, for want of memory
      const wasPlaying = this.isPlaying;
      this.#live = null;
      await this.#load();
      if (wasPlaying) this.#play();
    }
    this.#audio.currentTime = wanted;
    this.#show();
  }

  // -- what there is ----------------------------------------------------------------------------

  #began = 0;

  /** Seconds that can be heard. */
  get #there() {
    if (this.#live) return this.#live.seconds;
    return Number.isFinite(this.#audio.duration) ? this.#audio.duration : 0;
  }

  /** Seconds of the whole: estimated from the text, while it is being spoken. */
  get #seconds() {
    const share = this.#readTo / (this.#answer?.wanted.input.length || 1);
    const isOpen = this.#answer?.state === "making" && this.#live && share > 0;
    return isOpen ? Math.max(this.#there, this.#lastEnd / share) : this.#there;
  }

  get #lastEnd() {
    return this.#answer.segments.at(-1)?.end ?? 0;
  }

  #reset(answer) {
    this.#empty();
    this.#answer = answer;
    this.#spans = [];
    this.#now = -1;
    this.#readTo = 0;
    this.#piece = { start: 0, from: 0 };
    this.#drawn = Promise.resolve();
    this.#wave.clear();
    this.#text.replaceChildren(make("span", { class: "ahead" }, answer.wanted.input));
    this.#text.scrollTop = 0;
    this.#root.classList.add("is-used");
    this.#show();
  }

  /** Take away whatever the audio element has. */
  #empty() {
    this.#live = null;
    this.#audio.pause();
    this.#audio.removeAttribute("src");
    this.#audio.load();
    URL.revokeObjectURL(this.#url);
  }

  async #load() {
    const answer = this.#answer;
    const file = await answer.playable();
    if (answer !== this.#answer) return;
    URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(file);
    this.#audio.src = this.#url;
  }

  #play() {
    this.onPlay();
    // Refused without a gesture, or overtaken by the next answer: the button shows what is.
    this.#audio.play().catch(() => this.#show());
  }

  #heardFirst() {
    const facts = this.#answer?.facts;
    if (!facts || facts.firstSound) return;
    facts.firstSound = performance.now() - this.#began;
    this.#show();
  }

  #unplayable() {
    if (!this.#audio.getAttribute("src")) return;
    this.onTrouble(say("unplayable", { format: this.#answer.wanted.format }));
  }

  #download() {
    const url = URL.createObjectURL(this.#answer.file);
    make("a", { href: url, download: this.#answer.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000); // a browser may ask where to, first
  }

  /** Decode what has come since the last call, and put it into the picture; false if nothing has. */
  #drawPiece() {
    const { sound, wanted } = this.#answer;
    const { start, from } = this.#piece;
    if (from === sound.length) return false;
    const answer = this.#answer;
    // A stream's pieces can be decoded by themselves, since mp3 frames stand alone here.
    const blob = wanted.format === "pcm" ? answer.playable() : new Blob(sound.slice(from));
    this.#piece.from = sound.length;
    this.#drawn = this.#drawn.then(async () => {
      const values = await loudness(await blob);
      if (answer === this.#answer) this.#wave.add(values, start);
    });
    return true;
  }

  // -- sentences --------------------------------------------------------------------------------

  #addSentence({ text }) {
    const { input } = this.#answer.wanted;
    const found = input.indexOf(text, this.#readTo);
    const start = found < 0 ? this.#readTo : found;
    const end = found < 0 ? this.#readTo : found + text.length;
    const span = make("span", { class: "sentence" }, text);
    this.#spans.push(span);
    this.#text.lastChild.remove(); // what is still ahead, until now
    this.#text.append(
      input.slice(this.#readTo, start),
      span,
      make("span", { class: "ahead" }, input.slice(end)),
    );
    this.#readTo = end;
  }

  #highlight() {
    const { segments } = this.#answer;
    const time = this.#audio.currentTime + EARLY;
    const isOver = this.#audio.ended && this.#answer.state !== "making";
    const now = isOver ? -1 : segments.findLastIndex(({ start }) => start <= time);
    const isQuiet = this.#audio.currentTime === 0 && this.#audio.paused;
    this.#mark(isQuiet ? -1 : now);
  }

  #mark(now) {
    if (now === this.#now) return;
    this.#spans[this.#now]?.removeAttribute("aria-current");
    this.#now = now;
    const span = this.#spans[now];
    if (!span) return;
    span.setAttribute("aria-current", "true");
    // Only the text's own box scrolls, never the page.
    const box = this.#text.getBoundingClientRect();
    const place = span.getBoundingClientRect();
    if (place.top < box.top || place.bottom > box.bottom) {
      const top = this.#text.scrollTop + place.top - box.top - box.height / 3;
      this.#text.scrollTo({ top, behavior: isStill() ? "auto" : "smooth" });
    }
  }

  #step(by) {
    const segments = this.#answer?.segments ?? [];
    const time = this.#audio.currentTime;
    const at = segments.findLastIndex(({ start }) => start <= time + EARLY);
    // As on any player: back goes to the beginning of this one first.
    const isWellIn = by < 0 && at >= 0 && time - segments[at].start > 1.5;
    const wanted = segments[isWellIn ? at : at + by];
    if (wanted) this.seek(wanted.start);
    else if (by < 0) this.seek(0);
  }

  // -- what is seen -----------------------------------------------------------------------------

  #follow() {
    this.#show();
    if (this.isPlaying) requestAnimationFrame(() => this.#follow());
  }

  #show() {
    const answer = this.#answer;
    const hasSound = Boolean(answer?.sound.length);
    const play = one("#play");
    play.disabled = !hasSound;
    const isOn = this.isPlaying && hasSound;
    relabel(play, say(isOn ? "pause" : "play"), isOn ? "pause" : "play");
    one("#download").disabled = !hasSound || answer.state === "making";
    for (const name of ["previous", "next"]) one(`#${name}`).disabled = !answer?.segments.length;
    this.#showPlace();
    if (!answer) return;
    one("#player-title").textContent = snippet(answer.wanted.input, 120);
    one("#player-facts").textContent = describe(answer.wanted);
    this.#showFacts(answer);
    one("#progress").textContent = this.#progress(answer);
    const share = answer.state === "making" ? this.#readTo / answer.wanted.input.length : 1;
    one("#bar").value = share;
    one("#bar").hidden = answer.state !== "making";
    this.#highlight();
  }

  #showPlace() {
    const time = this.#answer ? this.#audio.currentTime : 0;
    const there = this.#answer ? this.#there : 0;
    const seconds = this.#answer ? this.#seconds : 0;
    this.#wave.show({ time, there, seconds });
    const isGuess = seconds > there;
    const total = `${isGuess ? "≈ " : ""}${clock(seconds)}`;
    one("#time").textContent = clock(time);
    one("#length").textContent = total;
    this.#slider.ariaValueMax = String(Math.ceil(seconds));
    this.#slider.ariaValueNow = String(Math.floor(time));
    this.#slider.ariaValueText = say("positionOf", { now: clock(time), total });
    this.#slider.ariaDisabled = String(there === 0);
  }

  #showFacts({ facts }) {
    const time = (ms) => (ms === undefined ? "–" : say("seconds", { n: (ms / 1000).toFixed(2) }));
    one("#first-sound").textContent = time(facts.firstSound);
    one("#total").textContent = time(facts.total);
    const { cache } = facts;
    one("#verdict").textContent = canSay(cache) ? `${cache} · ${say(cache)}` : (cache ?? "–");
  }

  #progress(answer) {
    const n = answer.segments.length;
    if (answer.state === "whole") return say("done", { n });
    if (answer.state !== "making") return "";
    if (!answer.wanted.streams) return say("preparing");
    const percent = Math.round((100 * this.#readTo) / answer.wanted.input.length);
    return n ? say("progress", { n, percent }) : say("waiting");
  }

  // -- seeking ----------------------------------------------------------------------------------

  #drag(event) {
    if (!this.#there) return;
    const to = ({ clientX }) => {
      const { left, width } = this.#slider.getBoundingClientRect();
      this.seek(((clientX - left) / width) * this.#seconds);
    };
    to(event);
    this.#slider.setPointerCapture(event.pointerId);
    this.#slider.addEventListener("pointermove", to);
    const end = () => this.#slider.removeEventListener("pointermove", to);
    for (const name of ["pointerup", "pointercancel"]) {
      this.#slider.addEventListener(name, end, { once: true });
    }
  }

  #key(event) {
    const time = this.#audio.currentTime;
    const to = {
      ArrowLeft: time - STEP,
      ArrowDown: time - STEP,
      ArrowRight: time + STEP,
      ArrowUp: time + STEP,
      Home: 0,
      End: this.#there,
    }[event.key];
    if (event.key === " ") this.toggle();
    else if (to !== undefined) this.seek(to);
    else return;
    event.preventDefault();
  }
}

/** "alice · mp3 · 1.25×" */
export function describe({ voice, format, speed }) {
  return [voice, format, speed === 1 ? "" : `${speed}×`].filter(Boolean).join(" · ");
}
