// Runs beside the page, where sound is handled: passes the microphone's samples on.

class Tape extends AudioWorkletProcessor {
  process([channels]) {
    if (channels.length) this.port.postMessage(channels[0].slice());
    return true;
  }
}

registerProcessor("tape", Tape);
