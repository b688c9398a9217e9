// How the service is, from /health: asked again only while somebody can see the answer.

import { make, one } from "./dom.js";
import { address } from "./service.js";
import { canSay, onLanguage, say } from "./words.js";

const EVERY = 4000; // ms

export class Panel {
  #health = null;
  #isLost = false;
  #isSeen = false;
  #timer = 0;
  #isAsking = false;

  constructor() {
    const seen = new IntersectionObserver(([{ isIntersecting }]) => {
      this.#isSeen = isIntersecting;
      this.#again();
    });
    seen.observe(one("#service"));
    document.addEventListener("visibilitychange", () => this.#again());
    onLanguage(() => this.#render());
    this.refresh();
  }

  /** Ask now. */
  async refresh() {
    if (this.#isAsking) return;
    this.#isAsking = true;
    try {
      this.#health = await (await fetch(address("health"))).json();
      this.#isLost = false;
    } catch {
      this.#isLost = true;
    }
    this.#isAsking = false;
    this.#render();
    this.#wait();
  }

  #again() {
    clearTimeout(this.#timer);
    if (this.#isLookedAt) this.refresh();
  }

  #wait() {
    clearTimeout(this.#timer);
    if (this.#isLookedAt) this.#timer = setTimeout(() => this.refresh(), EVERY);
  }

  get #isLookedAt() {
    return this.#isSeen && document.visibilityState === "visible";
  }

  #render() {
    const mood = this.#isLost ? "lost" : this.#health ? this.#mood() : "unknown";
    const words = { ok: "stateReady", degraded: "stateDown", lost: "stateLost", unknown: "stateUnknown" };
    one("#state").dataset.state = mood;
    const said = say(words[mood]);
    if (one("#state-words").textContent !== said) one("#state-words").textContent = said;
    if (!this.#health) return;
    const { backends, queue, cache, redis, self_test: selfTest } = this.#health;
    one("#facts").replaceChildren(
      ...row(say("backends"), ...backends.map(backend)),
      ...row(say("queue"), waiting(queue)),
      ...row(say("kept"), ...filling(cache)),
      ...(redis ? row(say("shared"), dotted(redis.state === "up", known(redis.state))) : []),
      ...(selfTest.state === "off" ? [] : row(say("selfTest"), tested(selfTest))),
    );
    one("#facts").classList.toggle("is-old", this.#isLost);
  }

  #mood() {
    return this.#health.status === "ok" ? "ok" : "degraded";
  }
}

const row = (name, ...values) => [make("dt", {}, name), make("dd", {}, ...values)];
const known = (word) => (canSay(word) ? say(word) : word);

function dotted(isGood, ...words) {
  return make("span", { class: `dotted ${isGood ? "good" : "bad"}` }, ...words);
}

function backend({ url, state, calls, real_time_factor: factor, last_error: error }) {
  const pace = factor ? `, ${say("pace", { n: (1 / factor).toFixed(1) })}` : "";
  const isBad = state === "resting" || state === "kept out";
  return make("div", { class: "backend" },
    dotted(state === "ready", known(state)),
    make("span", { class: "url" }, url),
    make("small", {}, say("calls", { n: calls }), pace),
    ...(isBad && error ? [make("small", { class: "bad" }, error)] : []));
}

function waiting({ requests, segments }) {
  return requests || segments ? say("queueLong", { requests, segments }) : say("queueEmpty");
}

function filling({ size: n, max_size: most, bytes, max_bytes: mostBytes, hits, misses }) {
  const share = Math.max(most ? n / most : 0, mostBytes ? bytes / mostBytes : 0);
  const bar = make("meter", { min: 0, max: 1, value: share, "aria-label": say("kept") });
  const looked = hits + misses;
  const percent = looked ? Math.round((100 * hits) / looked) : 0;
  return [
    bar,
    make("span", {}, say("keptOf", { n, most, size: readable(bytes) })),
    ...(looked ? [make("small", {}, say("hitShare", { percent }))] : []),
  ];
}

function tested({ state, error }) {
  return make("span", {}, dotted(state === "passed", known(state)),
    ...(error ? [make("small", { class: "bad" }, error)] : []));
}

function readable(bytes) {
  const mega = bytes / 1024 ** 2;
  return mega < 1 ? `${Math.ceil(bytes / 1024)} KB` : `${mega.toFixed(1)} MB`;
}
