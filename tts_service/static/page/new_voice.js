// The dialog that adds a voice: a file or the microphone, a name, and off it goes.

import { clock, make, one } from "./dom.js";
import { ask, failure, key } from "./service.js";
import { LONGEST, Recorder } from "./recorder.js";
import { onLanguage, say } from "./words.js";

const NOT_IN_NAMES = /[^\p{L}\p{M}\p{N}_.-]+/gu;
const LONGEST_NAME = 64;

export class NewVoice {
  #dialog = one("#new-voice");
  #preview = one("#preview");
  #name = one("#voice-name");
  #recorder = null;
  #file = null;
  #url = "";
  #upload = null; // aborts what is under way

  constructor() {
    one("#add-voice").addEventListener("click", () => this.#open());
    one("#cancel-voice").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#reset());
    one("#record").addEventListener("click", () => this.#record());
    one("#voice-file").addEventListener("change", ({ target }) => this.#take(target.files[0]));
    one("#new-voice-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#save();
    });
    this.#name.addEventListener("input", () => this.#show());
    this.#acceptDrops(one("#drop"));
    onLanguage(() => this.#show());
  }

  /** Called with the new voice. */
  onAdded = () => {};
  /** Called when the dialog opens, with nothing. */
  onOpen = () => {};
  /** Called when the service wants another key, with nothing. */
  onKeyNeeded = () => {};

  #open() {
    this.onOpen();
    this.#reset();
    this.#dialog.showModal();
  }

  #reset() {
    this.#recorder?.cancel();
    this.#recorder = null;
    this.#upload?.abort();
    this.#upload = null;
    this.#keep(null);
    this.#name.value = "";
    one("#voice-file").value = "";
    this.#complain("");
  }

  #keep(file) {
    this.#preview.pause();
    this.#preview.removeAttribute("src");
    URL.revokeObjectURL(this.#url);
    this.#file = file;
    this.#url = file ? URL.createObjectURL(file) : "";
    if (file) this.#preview.src = this.#url;
    this.#show();
  }

  #take(file) {
    if (!file) return;
    this.#complain("");
    this.#keep(file);
    if (!this.#name.value) this.#name.value = suggested(file.name);
    this.#name.focus();
    this.#name.select();
    this.#show();
  }

  #acceptDrops(place) {
    for (const name of ["dragenter", "dragover"]) {
      place.addEventListener(name, (event) => {
        event.preventDefault();
        place.classList.add("is-over");
      });
    }
    place.addEventListener("dragleave", () => place.classList.remove("is-over"));
    place.addEventListener("drop", (event) => {
      event.preventDefault();
      place.classList.remove("is-over");
      this.#take(event.dataTransfer.files[0]);
    });
  }

  // -- the microphone ---------------------------------------------------------------------------

  async #record() {
    if (this.#recorder) {
      this.#finishRecording();
      return;
    }
    this.#complain("");
    if (!navigator.mediaDevices) {
      this.#complain(say("microphoneInsecure"));
      return;
    }
    const button = one("#record");
    button.disabled = true; // while the browser asks for leave
    try {
      const recorder = await Recorder.start(
        (level, seconds) => this.#showLevel(level, seconds),
        () => this.#finishRecording(),
      );
      if (this.#dialog.open) this.#recorder = recorder;
      else recorder.cancel();
    } catch (error) {
      this.#complain(say(error.name === "NotFoundError" ? "microphoneNone" : "microphoneRefused"));
    }
    button.disabled = false;
    this.#keep(null);
  }

  #finishRecording() {
    const file = this.#recorder.stop();
    this.#recorder = null;
    this.#keep(file);
    this.#name.focus();
  }

  #showLevel(level, seconds) {
    const meter = one("#level");
    // Loudness falls slowly, so that it can be followed by eye.
    meter.value = Math.max(level, meter.value * 0.97);
    const words = say("recording", { time: `${clock(seconds)} / ${clock(LONGEST)}` });
    if (one("#recording-time").textContent !== words) one("#recording-time").textContent = words;
  }

  // -- off it goes ------------------------------------------------------------------------------

  async #save() {
    if (!this.#file || this.#upload) return;
    this.#complain("");
    const form = new FormData();
    form.append("name", this.#name.value.trim());
    form.append("audio_sample", this.#file);
    const upload = new AbortController();
    this.#upload = upload;
    this.#show();
    try {
      const answer = await ask("v1/audio/voices", { method: "POST", form, signal: upload.signal });
      const voice = await answer.json();
      this.#upload = null;
      this.#dialog.close();
      this.onAdded(voice);
    } catch (error) {
      this.#upload = null;
      this.#tell(failure(error, upload.signal));
    }
    this.#show();
  }

  #tell({ kind, message, status, param }) {
    if (kind === "stopped") return;
    if (status === 401) this.onKeyNeeded();
    const words = status === 401 && !key.get() ? say("keyNeeded") : message;
    this.#complain(kind === "unreachable" ? say("unreachable") : words, param === "name");
    if (param === "name") this.#name.focus();
  }

  #complain(words, isOfName = false) {
    one("#voice-trouble").replaceChildren(...(words ? [make("p", {}, words)] : []));
    this.#name.ariaInvalid = String(isOfName);
  }

  #show() {
    const isRecording = Boolean(this.#recorder);
    one("#record-words").textContent = say(isRecording ? "recordStop" : "record");
    one("#record").classList.toggle("is-on", isRecording);
    one("#recording").hidden = !isRecording;
    one("#read-aloud").hidden = Boolean(this.#file);
    one("#preview-box").hidden = !this.#file;
    const save = one("#save-voice");
    save.disabled = !this.#file || !this.#name.value.trim() || Boolean(this.#upload);
    save.textContent = say(this.#upload ? "saving" : "save");
  }
}

/** A voice's name from a file's: without its ending, and only what names may hold. */
function suggested(name) {
  const stem = name.replace(/\.[^.]*$/, "").normalize("NFC");
  return stem.replace(NOT_IN_NAMES, "-").replace(/^[-.]+|-+$/g, "").slice(0, LONGEST_NAME);
}
