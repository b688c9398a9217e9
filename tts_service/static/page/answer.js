// An answer: what was asked, the sound that has come of it so far, and where its sentences are.

import { Failure, ask, events, failure } from "./service.js";

export const TYPES = {
  mp3: "audio/mpeg",
  wav: "audio/wav",
  opus: "audio/ogg",
  aac: "audio/aac",
  flac: "audio/flac",
  pcm: "audio/pcm",
};
const PCM_RATE = 24000; // Hz, 16 bit, mono: what the service calls pcm

export class Answer {
  /** `wanted`: {input, voice, format, speed, streams}; kept answers bring the rest along. */
  constructor(wanted, { segments = [], sound = [], facts = {} } = {}) {
    this.wanted = wanted;
    this.segments = segments; // {text, start, end}, in seconds
    this.sound = sound; // Uint8Arrays or Blobs
    this.facts = facts; // cache, firstSound and total (ms)
    this.state = "whole"; // making, whole, stopped, broken
  }

  get file() {
    return new Blob(this.sound, { type: TYPES[this.wanted.format] });
  }

  /** What an audio element can play. */
  async playable() {
    const { file } = this;
    if (this.wanted.format !== "pcm") return file;
    const header = waveHeader(file.size, PCM_RATE);
    return new Blob([header, file], { type: "audio/wav" });
  }

  get name() {
    const voice = this.wanted.voice || "speech";
    return `${voice}-${this.id ?? "new"}.${this.wanted.format}`;
  }

  /** Have it made. `told` hears: head(), segment(one), sound(bytes). Raises Failure. */
  async make(signal, told) {
    this.state = "making";
    const began = performance.now();
    try {
      const response = await ask("v1/audio/speech", { method: "POST", json: body(this.wanted), signal });
      this.facts.cache = response.headers.get("X-Cache");
      told.head();
      if (this.wanted.streams) await this.#stream(response, signal, told);
      else await this.#whole(response, signal, told);
      this.facts.total = performance.now() - began;
      this.state = "whole";
    } catch (error) {
      const reason = failure(error, signal);
      this.state = reason.kind === "stopped" ? "stopped" : "broken";
      throw reason;
    }
  }

  async #stream(response, signal, told) {
    for await (const event of events(response)) {
      if (event.type === "speech.audio.done") return;
      if (event.type === "error") throw new Failure("broke", event.error?.message);
      if (event.type === "speech.audio.segment") {
        this.segments.push(event);
        told.segment(event);
      } else if (event.type === "speech.audio.delta") {
        const bytes = Uint8Array.from(atob(event.audio), (letter) => letter.charCodeAt(0));
        this.sound.push(bytes);
        told.sound(bytes);
      }
    }
    throw new Failure("broke"); // it ended, and did not say so
  }

  async #whole(response, signal, told) {
    const captions = captionsOf(response);
    const bytes = new Uint8Array(await response.arrayBuffer());
    // Highlighting is a comfort: without captions the sound is as good.
    const segments = captions ? await readCaptions(captions, signal).catch(() => []) : [];
    this.sound.push(bytes);
    for (const segment of segments) {
      this.segments.push(segment);
      told.segment(segment);
    }
    told.sound(bytes);
  }
}

/** The request's fields; what is as usual is left out. */
export function body({ input, voice, format, speed, streams }, extras = { timestamps: true }) {
  return {
    model: "tts-1",
    input,
    ...(voice && { voice }),
    response_format: format,
    ...(speed !== 1 && { speed }),
    ...(streams && { stream_format: "sse" }),
    ...extras,
  };
}

/** The URL of the answer's WebVTT, told by its `Link` headers, or undefined. */
function captionsOf(response) {
  const links = (response.headers.get("Link") ?? "").matchAll(/<([^>]*)>([^,]*)/g);
  for (const [, url, parameters] of links) {
    if (parameters.includes("text/vtt")) return url.replace(/^\//, "");
  }
  return undefined;
}

async function readCaptions(url, signal) {
  const text = await (await ask(url, { signal })).text();
  const cues = text.matchAll(/^([\d:.]+) --> ([\d:.]+).*\n((?:.+\n?)+)/gm);
  return [...cues].map(([, start, end, lines]) => ({
    start: seconds(start),
    end: seconds(end),
    text: unescaped(lines.trim()),
  }));
}

/** "01:02.500" or "00:01:02.500" as 62.5. */
const seconds = (stamp) => stamp.split(":").reduce((total, part) => total * 60 + Number(part), 0);

const unescaped = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;

/** A WAV header for 16-bit mono samples. */
export function waveHeader(bytes, rate) {
  const view = new DataView(new ArrayBuffer(44));
  const write = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, 36 + bytes, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // the size of this chunk
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // one channel
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * 2, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, bytes, true);
  return view.buffer;
}
