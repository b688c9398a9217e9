// Sound that is played while it comes, by a MediaSource.

const Source = window.MediaSource ?? window.ManagedMediaSource;
const KEPT_BEHIND = 10; // seconds before the playhead that stay when the browser wants room

/** Whether this browser plays such a type while it comes. */
export const canStream = (type) => Boolean(Source?.isTypeSupported(type));

export class LiveSound {
  #audio;
  #source = new Source();
  #buffer;
  #waiting = [];
  #isAll = false;

  constructor(audio, type) {
    this.#audio = audio;
    audio.disableRemotePlayback = true; // a ManagedMediaSource opens only then
    const url = URL.createObjectURL(this.#source);
    this.#source.addEventListener("sourceopen", () => {
      URL.revokeObjectURL(url);
      // The event waits its turn: the audio element may have been given something else since.
      if (this.#source.readyState !== "open") return;
      this.#buffer = this.#source.addSourceBuffer(type);
      this.#buffer.addEventListener("updateend", () => this.#next());
      this.#next();
    }, { once: true });
    audio.src = url;
  }

  append(bytes) {
    this.#waiting.push(bytes);
    this.#next();
  }

  /** No more will come: what is there plays to its end. */
  end() {
    this.#isAll = true;
    this.#next();
  }

  /** Seconds that are there already. */
  get seconds() {
    const ranges = this.#audio.buffered;
    return ranges.length ? ranges.end(ranges.length - 1) : 0;
  }

  has(time) {
    const ranges = this.#audio.buffered;
    for (let i = 0; i < ranges.length; i += 1) {
      if (ranges.start(i) <= time && time <= ranges.end(i)) return true;
    }
    return false;
  }

  #next() {
    if (this.#source.readyState !== "open" || !this.#buffer || this.#buffer.updating) return;
    if (!this.#waiting.length) {
      if (this.#isAll) this.#source.endOfStream();
      return;
    }
    try {
      this.#buffer.appendBuffer(this.#waiting[0]);
      this.#waiting.shift();
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      this.#makeRoom();
    }
  }

  #makeRoom() {
    const until = this.#audio.currentTime - KEPT_BEHIND;
    if (this.#buffer.buffered.length && until > this.#buffer.buffered.start(0)) {
      this.#buffer.remove(0, until);
    } else {
      this.#audio.addEventListener("timeupdate", () => this.#next(), { once: true });
    }
  }
}
