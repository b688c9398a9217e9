// Everything that the page says, in each language, and the switch between them.

import { all, kept, one, relabel } from "./dom.js";

const CHOSEN = "language";

const WORDS = {
  en: {
    title: "Speech",
    skip: "Skip to the text",
    api: "API",
    language: "Language",

    text: "Text",
    textHint: "Type or paste what shall be said …",
    count: ({ n, most }) => `${n.toLocaleString("en")} of ${most.toLocaleString("en")} characters`,
    clear: "Clear",
    example: "Try an example",
    exampleText:
      "Good evening, and welcome. Every sentence is spoken as soon as its turn comes, so you never wait for the end. 中文也可以，换一种声音试试吧。",
    voice: "Voice",
    filter: "Find a voice",
    hearVoice: "Hear {name}",
    hushVoice: "Stop {name}",
    removeVoice: "Remove {name}",
    addVoice: "Add a voice",
    noVoices: "There are no voices yet. The default one speaks.",
    voicesFailed: "The voices cannot be read.",
    format: "Format",
    speed: "Speed",
    streaming: "Play while it is spoken",
    streamingHint: "With mp3 only: sound starts with the first sentence.",
    key: "API key",
    keyHint: "Kept in this tab only, and forgotten when it closes.",
    keyNeeded: "This service wants an API key.",
    speak: "Speak",
    stop: "Stop",
    shortcut: "Ctrl + Enter speaks, Esc stops",

    listening: "Listen",
    nothing: "Nothing spoken yet",
    nothingHint: "Write something, choose a voice, and press Speak.",
    waiting: "Waiting for the first sentence …",
    preparing: "Being spoken …",
    progress: ({ n, percent }) => `${sentences(n)} spoken, ${percent} % of the text`,
    done: ({ n }) => (n ? `All spoken: ${sentences(n)}` : "All spoken"),
    stopped: "Stopped. What was spoken so far can be heard.",
    stoppedEarly: "Stopped.",
    play: "Play",
    pause: "Pause",
    previous: "Previous sentence",
    next: "Next sentence",
    download: "Download",
    position: "Position",
    positionOf: "{now} of {total}",
    transcript: "The text, sentence by sentence",
    firstSound: "First sound",
    total: "Complete",
    cache: "Cache",
    seconds: "{n} s",
    HIT: "from the cache",
    PARTIAL: "partly from the cache",
    COALESCED: "shared with another request",
    MISS: "newly spoken",
    NGINX: "from nginx’s cache",

    unreachable: "The service cannot be reached. Is it running, and is the network there?",
    broke: "The answer broke off after {heard}. What was spoken so far can be heard.",
    brokeEarly: "The answer broke off before there was any sound.",
    unplayable: "This browser cannot play {format}. The file can still be downloaded.",
    requestId: "Request {id}",
    emptyText: "There is no text to speak.",

    shelf: "Heard before",
    shelfEmpty: "What you have had spoken stays here, the last twelve, in this browser only.",
    clearShelf: "Clear all",
    hearAgain: "Hear again:",
    forget: "Forget: {text}",

    code: "The same as code",
    codeHint: "What Speak asks for, to copy into your own program.",
    link: "Link",
    linkTooLong: "The text is too long for a link.",
    linkNeedsKey: "A link cannot carry a key.",
    copy: "Copy",
    copied: "Copied",

    service: "Service",
    stateReady: "Ready",
    stateDown: "No backend answers",
    stateLost: "Not reachable",
    stateUnknown: "Asking …",
    backends: "Backends",
    new: "not connected yet",
    ready: "ready",
    resting: "failed, is tried again",
    "kept out": "kept out",
    calls: ({ n }) => (n === 1 ? "1 call" : `${n.toLocaleString("en")} calls`),
    pace: "{n} × real time",
    queue: "Queue",
    queueEmpty: "Nobody waits",
    queueLong: ({ requests, segments }) =>
      `${requests === 1 ? "1 request waits" : `${requests} requests wait`}, ${sentences(segments)} to come`,
    kept: "Cache",
    keptOf: ({ n, most, size }) => `${n} of ${most} entries, ${size}`,
    hitShare: "{percent} % of look-ups were hits",
    shared: "Redis",
    up: "up",
    down: "down",
    selfTest: "Self-test",
    passed: "passed",
    failed: "failed",
    running: "running",
    pending: "not yet run",

    newVoice: "Add a voice",
    newVoiceHint: "5 to 15 seconds of one person speaking, without music or noise. Only with their consent.",
    dropHere: "Drop a recording here",
    orChoose: "or choose a file",
    record: "Record",
    recordStop: "Stop recording",
    recording: "Recording, {time}",
    level: "Loudness",
    readAloud: "Read this aloud, for example:",
    readAloudText:
      "When I was young, the river behind our house seemed as wide as the sea, and every evening I asked where all that water was going.",
    microphoneInsecure: "Recording works only by https, or on this machine itself.",
    microphoneRefused: "The microphone may not be used. Allow it in the browser, or choose a file.",
    microphoneNone: "There is no microphone that could be used.",
    yourRecording: "The recording",
    voiceName: "Name",
    voiceNameHint: "Letters, digits, - _ and . ; it is what requests say.",
    save: "Add this voice",
    saving: "Adding …",
    cancel: "Cancel",
    added: "{name} can speak now.",
    removeTitle: "Remove {name}?",
    removeText: "The recording is deleted from the service. Nobody can use this voice any more.",
    remove: "Remove",
    removed: "{name} was removed.",
  },
  zh: {
    title: "语音合成",
    skip: "跳到文本",
    api: "接口",
    language: "语言",

    text: "文本",
    textHint: "输入或粘贴要朗读的内容……",
    count: ({ n, most }) => `${n.toLocaleString("zh")} / ${most.toLocaleString("zh")} 字`,
    clear: "清空",
    example: "试一段示例",
    exampleText:
      "晚上好，欢迎来到这里。每句话一轮到就会马上读出来，不必等到最后。English works as well. 换一种声音试试吧。",
    voice: "声音",
    filter: "查找声音",
    hearVoice: "试听 {name}",
    hushVoice: "停止 {name}",
    removeVoice: "删除 {name}",
    addVoice: "添加声音",
    noVoices: "还没有声音，将使用默认声音。",
    voicesFailed: "无法读取声音列表。",
    format: "格式",
    speed: "语速",
    streaming: "边合成边播放",
    streamingHint: "仅限 mp3：第一句合成后立即开始播放。",
    key: "API 密钥",
    keyHint: "只保存在此标签页中，关闭后即忘记。",
    keyNeeded: "此服务需要 API 密钥。",
    speak: "朗读",
    stop: "停止",
    shortcut: "Ctrl + Enter 朗读，Esc 停止",

    listening: "聆听",
    nothing: "尚未朗读",
    nothingHint: "写点什么，选一个声音，然后点“朗读”。",
    waiting: "正在等待第一句……",
    preparing: "正在合成……",
    progress: ({ n, percent }) => `已合成 ${n} 句，占全文 ${percent}%`,
    done: ({ n }) => (n ? `已全部合成，共 ${n} 句` : "已全部合成"),
    stopped: "已停止。已合成的部分可以播放。",
    stoppedEarly: "已停止。",
    play: "播放",
    pause: "暂停",
    previous: "上一句",
    next: "下一句",
    download: "下载",
    position: "播放位置",
    positionOf: "{now}，共 {total}",
    transcript: "逐句文本",
    firstSound: "首个声音",
    total: "全部完成",
    cache: "缓存",
    seconds: "{n} 秒",
    HIT: "来自缓存",
    PARTIAL: "部分来自缓存",
    COALESCED: "与其他请求共享",
    MISS: "新合成",
    NGINX: "来自 nginx 缓存",

    unreachable: "无法连接到服务。请检查服务是否在运行、网络是否可用。",
    broke: "回答在 {heard} 处中断。已合成的部分可以播放。",
    brokeEarly: "回答在有声音之前就中断了。",
    unplayable: "此浏览器无法播放 {format}，但仍可下载文件。",
    requestId: "请求 {id}",
    emptyText: "没有可朗读的文本。",

    shelf: "最近听过",
    shelfEmpty: "最近十二次朗读会保存在这里，仅限此浏览器。",
    clearShelf: "全部清除",
    hearAgain: "再听一遍：",
    forget: "移除：{text}",

    code: "对应的代码",
    codeHint: "与“朗读”相同的请求，可复制到您的程序中。",
    link: "链接",
    linkTooLong: "文本太长，无法做成链接。",
    linkNeedsKey: "链接不能携带密钥。",
    copy: "复制",
    copied: "已复制",

    service: "服务状态",
    stateReady: "就绪",
    stateDown: "没有可用的后端",
    stateLost: "无法连接",
    stateUnknown: "正在查询……",
    backends: "后端",
    new: "尚未连接",
    ready: "就绪",
    resting: "出错，正在重试",
    "kept out": "已排除",
    calls: ({ n }) => `${n.toLocaleString("zh")} 次调用`,
    pace: "{n} 倍实时",
    queue: "队列",
    queueEmpty: "无人等待",
    queueLong: ({ requests, segments }) => `${requests} 个请求等待中，还有 ${segments} 句`,
    kept: "缓存",
    keptOf: ({ n, most, size }) => `${n} / ${most} 条，${size}`,
    hitShare: "命中率 {percent}%",
    shared: "Redis",
    up: "正常",
    down: "不可用",
    selfTest: "自检",
    passed: "通过",
    failed: "失败",
    running: "进行中",
    pending: "尚未运行",

    newVoice: "添加声音",
    newVoiceHint: "5 到 15 秒的单人讲话，没有音乐和噪声。请务必征得本人同意。",
    dropHere: "将录音拖到这里",
    orChoose: "或选择文件",
    record: "录音",
    recordStop: "停止录音",
    recording: "正在录音，{time}",
    level: "音量",
    readAloud: "例如，请朗读：",
    readAloudText: "小时候，我总觉得屋后的那条河像大海一样宽。每天傍晚我都会问，那么多的水，究竟要流到哪里去呢？",
    microphoneInsecure: "只有通过 https 或在本机上才能录音。",
    microphoneRefused: "无法使用麦克风。请在浏览器中允许，或选择文件。",
    microphoneNone: "没有可用的麦克风。",
    yourRecording: "录音",
    voiceName: "名称",
    voiceNameHint: "可用文字、数字、- _ 和 .；请求中就用这个名称。",
    save: "添加此声音",
    saving: "正在添加……",
    cancel: "取消",
    added: "{name} 现在可以说话了。",
    removeTitle: "删除 {name}？",
    removeText: "录音将从服务中删除，之后任何人都不能再使用这个声音。",
    remove: "删除",
    removed: "{name} 已删除。",
  },
};

const sentences = (n) => (n === 1 ? "1 sentence" : `${n} sentences`);
const listeners = [];
let language = "en";

/** The words for `name`, with `{values}` filled in. */
export function say(name, values = {}) {
  const words = WORDS[language][name];
  if (typeof words === "function") return words(values);
  return words.replace(/\{(\w+)\}/g, (_, value) => values[value]);
}

/** Whether there are words for it: what a service reports may be newer than this page. */
export const canSay = (name) => Object.hasOwn(WORDS[language], name);

/** Call `render` whenever the language changes: for what was put together at run time. */
export const onLanguage = (render) => listeners.push(render);

/** Speak the language that was chosen before, or else the browser's, from now on. */
export function startSpeaking() {
  for (const button of all("[data-language]")) {
    button.addEventListener("click", () => {
      kept.set(CHOSEN, button.dataset.language);
      speakIn(button.dataset.language);
    });
  }
  speakIn(kept.get(CHOSEN) ?? preferred());
}

function preferred() {
  const asked = navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase());
  return asked.find((tag) => tag in WORDS) ?? "en";
}

function speakIn(chosen) {
  language = chosen in WORDS ? chosen : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = say("title");
  for (const element of all("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of all("[data-say-hint]")) element.placeholder = say(element.dataset.sayHint);
  for (const element of all("[data-say-label]")) {
    if (one("use", element)) relabel(element, say(element.dataset.sayLabel));
    else element.ariaLabel = say(element.dataset.sayLabel);
  }
  for (const button of all("[data-language]")) {
    button.ariaPressed = String(button.dataset.language === language);
  }
  for (const render of listeners) render();
}
