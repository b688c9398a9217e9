// The microphone, as a WAV file: what MediaRecorder writes not every server can read.

import { waveHeader } from "./answer.js";

export const LONGEST = 30; // seconds; models use about the first 15

/** A recording under way. Made by `Recorder.start`; ends by `stop` or `cancel`. */
export class Recorder {
  #context = new AudioContext();
  #stream;
  #blocks = [];
  #samples = 0;

  /** Raises a DOMException if the microphone may not be used, or there is none.
   *  `onLevel(loudness from 0 to 1, seconds)` is told as it goes on, `onFull()` at `LONGEST`. */
  static async start(onLevel, onFull) {
    const recorder = new Recorder();
    try {
      await recorder.#open(onLevel, onFull);
    } catch (error) {
      recorder.cancel();
      throw error;
    }
    return recorder;
  }

  async #open(onLevel, onFull) {
    this.#stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false },
    });
    await this.#context.audioWorklet.addModule(new URL("tape.js", import.meta.url));
    const tape = new AudioWorkletNode(this.#context, "tape");
    tape.port.onmessage = ({ data }) => {
      if (this.seconds >= LONGEST) return;
      this.#blocks.push(data);
      this.#samples += data.length;
      onLevel(data.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0), this.seconds);
      if (this.seconds >= LONGEST) onFull();
    };
    this.#context.createMediaStreamSource(this.#stream).connect(tape);
    tape.connect(this.#context.destination); // silent; only so that it is asked for samples
    await this.#context.resume();
  }

  get seconds() {
    return this.#samples / this.#context.sampleRate;
  }

  /** End it; the recording as a WAV file. */
  stop() {
    this.cancel();
    const samples = new DataView(new ArrayBuffer(this.#samples * 2));
    let at = 0;
    for (const block of this.#blocks) {
      for (const sample of block) {
        samples.setInt16(at, Math.max(-1, Math.min(1, sample)) * 32767, true);
        at += 2;
      }
    }
    const header = waveHeader(samples.byteLength, this.#context.sampleRate);
    return new File([header, samples], "recording.wav", { type: "audio/wav" });
  }

  /** End it, and let go of the microphone. */
  cancel() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    if (this.#context.state !== "closed") this.#context.close();
  }
}
