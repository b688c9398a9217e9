// The waveform: loudness from sound, and the picture of it.

const RATE = 8000; // Hz; enough for loudness, and a sixth of the memory
const PER_SECOND = 50;
const BAR = 3; // pixels
const GAP = 2;
const MOST_BYTES = 48 * 1024 * 1024; // decoding more than that would cost too much memory

/** The loudness of some encoded sound, `PER_SECOND` values of 0 to 1; none if it is unreadable. */
export async function loudness(blob) {
  if (blob.size > MOST_BYTES) return [];
  try {
    const context = new OfflineAudioContext(1, 1, RATE);
    const decoded = await context.decodeAudioData(await blob.arrayBuffer());
    return peaks(decoded.getChannelData(0));
  } catch {
    return []; // the picture is missing, not the sound
  }
}

function peaks(samples) {
  const size = RATE / PER_SECOND;
  const found = [];
  for (let start = 0; start < samples.length; start += size) {
    let peak = 0;
    for (const sample of samples.subarray(start, start + size)) peak = Math.max(peak, Math.abs(sample));
    found.push(peak);
  }
  return found;
}

export class Waveform {
  #canvas;
  #values = [];
  #loudest = 0;
  #seconds = 0; // that the whole width stands for
  #there = 0; // seconds that have arrived
  #time = 0;
  #isAsked = false;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.#ask()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#ask());
    this.#ask();
  }

  clear() {
    this.#values = [];
    this.#loudest = 0;
    this.show({ time: 0, there: 0, seconds: 0 });
  }

  /** Put `values` where their sound begins, in seconds. */
  add(values, start) {
    const first = Math.round(start * PER_SECOND);
    while (this.#values.length < first) this.#values.push(0);
    values.forEach((value, i) => {
      this.#values[first + i] = value;
      this.#loudest = Math.max(this.#loudest, value);
    });
    this.#ask();
  }

  show({ time, there, seconds }) {
    this.#time = time;
    this.#there = there;
    this.#seconds = seconds;
    this.#ask();
  }

  #ask() {
    if (this.#isAsked) return;
    this.#isAsked = true;
    requestAnimationFrame(() => {
      this.#isAsked = false;
      this.#draw();
    });
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = devicePixelRatio;
    this.#canvas.width = Math.round(width * scale);
    this.#canvas.height = Math.round(height * scale);
    const pen = this.#canvas.getContext("2d");
    pen.scale(scale, scale);
    const { color: heard, fill: ahead, stroke: missing } = getComputedStyle(this.#canvas);
    const bars = Math.floor((width + GAP) / (BAR + GAP));
    for (let bar = 0; bar < bars; bar += 1) {
      const from = (bar / bars) * this.#seconds;
      const isThere = this.#seconds > 0 && from < this.#there;
      const tall = isThere ? Math.max(BAR, this.#level(bar, bars) * height) : BAR;
      pen.fillStyle = isThere ? (from < this.#time ? heard : ahead) : missing;
      pen.beginPath();
      pen.roundRect(bar * (BAR + GAP), (height - tall) / 2, BAR, tall, BAR / 2);
      pen.fill();
    }
  }

  #level(bar, bars) {
    const step = (this.#seconds * PER_SECOND) / bars;
    const first = Math.floor(bar * step);
    const last = Math.max(first + 1, Math.floor((bar + 1) * step));
    const peak = Math.max(0, ...this.#values.slice(first, last));
    return this.#loudest ? (peak / this.#loudest) ** 0.8 : 0;
  }
}
