// The page: what its parts do to each other.

import { Answer } from "./answer.js";
import { all, clock, kept, make, one } from "./dom.js";
import { NewVoice } from "./new_voice.js";
import { Panel } from "./panel.js";
import { Player } from "./player.js";
import { ask, failure, key } from "./service.js";
import { Shelf } from "./shelf.js";
import { Snippets } from "./snippets.js";
import { Voices } from "./voices.js";
import { onLanguage, say, startSpeaking } from "./words.js";

const text = one("#text");
const longest = Number(document.body.dataset.longestText);
let needsKey = document.body.dataset.needsKey === "true";
let making = null; // the AbortController of the answer that is being made

const player = new Player();
const voices = new Voices();
const shelf = new Shelf();
const snippets = new Snippets();
const panel = new Panel();
const newVoice = new NewVoice();

// -- what is wanted -------------------------------------------------------------------------------

function wanted() {
  const format = one("#format").value;
  return {
    input: text.value.trim(),
    voice: voices.chosen,
    format,
    speed: Number(one("#speed").value),
    streams: format === "mp3" && one("#streaming").checked,
  };
}

function showWanted() {
  const n = [...text.value].length;
  one("#count").textContent = say("count", { n, most: longest });
  one("#count").classList.toggle("is-over", n > longest);
  one("#clear").hidden = !n;
  one("#example").hidden = n > 0;
  const { speed, format, ...rest } = wanted();
  one("#speed-shown").textContent = `${speed}×`;
  one("#streaming").disabled = format !== "mp3";
  const input = rest.input || say("exampleText");
  snippets.show({ ...rest, speed, format, input }, needsKey);
}

function keepWanted() {
  const { format, speed } = wanted();
  kept.set("format", format);
  kept.set("speed", speed);
  kept.set("streaming", one("#streaming").checked);
  kept.set("text", text.value.length < 20_000 ? text.value : "");
  showWanted();
}

function recall() {
  const recalled = { "#format": kept.get("format"), "#speed": kept.get("speed"), "#text": kept.get("text") };
  for (const [selector, value] of Object.entries(recalled)) {
    if (value) one(selector).value = value;
  }
  if (!one("#format").value) one("#format").value = "mp3";
  one("#streaming").checked = kept.get("streaming") !== "false";
}

// -- speaking -------------------------------------------------------------------------------------

async function speak() {
  const asked = wanted();
  complain("");
  if (!asked.input) {
    complain(say("emptyText"));
    text.focus();
    return;
  }
  making?.abort();
  const mine = new AbortController();
  making = mine;
  showMaking();
  const answer = new Answer(asked);
  answer.state = "making";
  player.begin(answer);
  try {
    await answer.make(mine.signal, {
      head: () => panel.refresh(),
      segment: (segment) => making === mine && player.segment(segment),
      sound: (bytes) => making === mine && player.sound(bytes),
    });
    if (making === mine) await player.finish();
    shelf.add(answer);
  } catch (error) {
    if (making === mine) await goneWrong(answer, failure(error, mine.signal));
  }
  if (making === mine) making = null;
  showMaking();
  panel.refresh();
}

async function goneWrong(answer, reason) {
  const isStopped = reason.kind === "stopped";
  const heard = answer.segments.at(-1)?.end ?? 0;
  if (isStopped) complain(say(answer.sound.length ? "stopped" : "stoppedEarly"), { isMild: true });
  else complain(inWords(reason, answer.sound.length, heard), reason);
  if (reason.status === 401) wantKey();
  await player.finish({ isStopped });
}

function inWords({ kind, status, message }, hasSound, heard) {
  if (status === 401 && !key.get()) return say("keyNeeded");
  if (kind === "refused") return message;
  if (kind === "unreachable") return say("unreachable");
  const broke = hasSound ? say("broke", { heard: clock(heard) }) : say("brokeEarly");
  return message ? `${broke} ${message}` : broke;
}

function complain(words, { isMild = false, requestId } = {}) {
  const trouble = one("#trouble");
  trouble.classList.toggle("is-mild", isMild);
  trouble.replaceChildren();
  if (!words) return;
  trouble.append(make("p", {}, words));
  if (requestId) trouble.append(make("small", {}, say("requestId", { id: requestId })));
}

function showMaking() {
  const button = one("#speak");
  button.classList.toggle("is-making", Boolean(making));
  one("#speak-words").textContent = say(making ? "stop" : "speak");
  one("use", button).setAttribute("href", making ? "#icon-stop" : "#icon-play");
}

// -- the key --------------------------------------------------------------------------------------

function wantKey() {
  needsKey = true;
  showKey();
  if (!one("#new-voice").open) one("#key").focus();
}

function showKey() {
  for (const field of all(".key-field")) field.hidden = !needsKey;
  for (const input of all(".key-field input")) input.value = key.get();
  showWanted();
}

for (const input of all(".key-field input")) {
  input.addEventListener("input", () => {
    key.set(input.value);
    for (const other of all(".key-field input")) if (other !== input) other.value = input.value;
  });
}

// -- removing a voice -----------------------------------------------------------------------------

const removal = one("#removal");

voices.onRemove = (voice) => {
  one("#removal-title").textContent = say("removeTitle", voice);
  removal.returnValue = "";
  removal.showModal();
  removal.onclose = () => removal.returnValue === "remove" && remove(voice);
};

async function remove({ id, name }) {
  try {
    await ask(`v1/audio/voices/${encodeURIComponent(id)}`, { method: "DELETE" });
    announce(say("removed", { name }));
  } catch (error) {
    complain(inWords(failure(error), false, 0), error);
    if (error.status === 401) wantKey();
  }
  await voices.refresh();
  one("#add-voice").focus();
}

function announce(words) {
  one("#news").textContent = words;
}

// -- who is told of what --------------------------------------------------------------------------

one("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (making) making.abort();
  else speak();
});
one("#composer").addEventListener("input", keepWanted);
one("#clear").addEventListener("click", () => setText(""));
one("#example").addEventListener("click", () => setText(say("exampleText")));
document.addEventListener("keydown", (event) => {
  if (one("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) {
    event.preventDefault(); // a button in focus would take it for a click
    speak();
  } else if (event.key === "Escape") making?.abort();
});

function setText(value) {
  text.value = value;
  keepWanted();
  text.focus();
}

player.onPlay = () => voices.hush();
player.onTrouble = (words) => complain(words);
voices.onPlay = () => player.pause();
voices.onChange = showWanted;
shelf.onOpen = (answer) => {
  making?.abort();
  making = null;
  showMaking();
  complain("");
  player.open(answer);
  one("#player").scrollIntoView({ block: "nearest" });
};
newVoice.onOpen = () => {
  player.pause();
  voices.hush();
};
newVoice.onAdded = async (voice) => {
  await voices.refresh(voice.id);
  announce(say("added", voice));
};
newVoice.onKeyNeeded = wantKey;

recall();
onLanguage(() => {
  showWanted();
  showMaking();
});
startSpeaking();
showKey();
voices.refresh();
document.body.dataset.isReady = "true";
