// Elements, and the few things that all parts of the page do with them.

export const one = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with attributes; `true` is an empty attribute, `false` and undefined are none. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** One of the icons that the page's own HTML holds. */
export function icon(name) {
  const namespace = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(namespace, "svg");
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(namespace, "use");
  use.setAttribute("href", `#icon-${name}`);
  picture.append(use);
  return picture;
}

/** A button that is an icon; `label` is what it does, in words. */
export function iconButton(name, label, onClick) {
  const button = make("button", { type: "button", class: "round" }, icon(name));
  relabel(button, label);
  button.addEventListener("click", onClick);
  return button;
}

export function relabel(button, label, iconName) {
  button.ariaLabel = label;
  button.title = label;
  if (iconName) one("use", button).setAttribute("href", `#icon-${iconName}`);
}

/** Whether whoever looks has asked for less movement. */
export const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** 75.4 as "1:15". */
export function clock(seconds) {
  const whole = Math.floor(Number.isFinite(seconds) ? seconds : 0);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

export const isSmall = (text, longest) => [...text].length <= longest;

/** The beginning of a text, on one line. */
export function snippet(text, longest = 80) {
  const line = text.replace(/\s+/g, " ").trim();
  return isSmall(line, longest) ? line : `${[...line].slice(0, longest - 1).join("")}…`;
}

/** Voices keep their colour: a hue from the name. */
export function paint(element, name) {
  let hash = 0;
  for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) % 360;
  element.style.setProperty("--hue", hash);
}

/** A value that survives the visit; nothing where the browser keeps none. */
export const kept = {
  get(name) {
    try {
      return localStorage.getItem(name);
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(name, value);
    } catch {
      // private windows of some browsers
    }
  },
};
