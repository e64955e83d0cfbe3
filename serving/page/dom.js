// Make elements without any HTML: text from outside only ever becomes text, whatever it holds.

/** Make an element: properties are attributes, `on…` listeners, `vars` CSS variables, or `class`. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "value") element.value = value;
    else if (name === "vars") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

/** Replace what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(3)) {
    if (child !== undefined && child !== null && child !== false) element.append(child);
  }
}

/** Text of a stranger, kept from turning its surroundings around when it is written from right to left. */
export const told = (text, properties = {}) => h("bdi", { title: text, ...properties }, text);

const DRAWN = {
  sun: "M12 4V2m0 20v-2m8-8h2M2 12h2m13.7-5.7 1.4-1.4M4.9 19.1l1.4-1.4m0-11.4L4.9 4.9m14.2 14.2-1.4-1.4M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  check: "m5 12 5 5L20 7",
  close: "M6 6l12 12M18 6 6 18",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
  trash: "M4 7h16M9 7V4h6v3m-8 0 1 13h8l1-13",
  tag: "M4 4h8l8 8-8 8-8-8zM8 8h.01",
  save: "M12 4v11m-5-5 5 5 5-5M5 20h14",
  lasso: "M12 4c5 0 9 3 9 6s-4 6-9 6-9-3-9-6 4-6 9-6M7 15c-2 2-1 5 2 5",
  whole: "M4 9V4h5m6 0h5v5m0 6v5h-5m-6 0H4v-5",
  help: "M9 9a3 3 0 1 1 4 3c-1 .5-1 1-1 2m0 3h.01M21 12a9 9 0 1 1-18 0 9 9 0 0 1 18 0",
};

/** Return a drawing; it says nothing to a screen reader. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", DRAWN[name]);
  svg.append(path);
  return svg;
}

/**
 * Return a button; `label` is its text, or with `drawing` what it is called, unless `withText` shows both.
 * @param {string} label
 * @param {(event: any) => void} onclick
 * @param {{drawing?: string, kind?: string, withText?: boolean, [attribute: string]: any}} [options]
 */
export function button(label, onclick, { drawing, kind = "", withText = false, ...rest } = {}) {
  const named = drawing && !withText ? { "aria-label": label, title: label } : {};
  const text = named["aria-label"] ? null : h("span", {}, label);
  return h("button", { type: "button", class: `button ${kind}`, onclick, ...named, ...rest }, drawing && icon(drawing), text);
}

/** Return a notice in place of what is not there: a heading, what to do, and a command to type. */
export function notice(heading, text, command, ...more) {
  return h("div", { class: "notice" }, h("h2", {}, heading), h("p", {}, text), command && h("pre", {}, command), more);
}

/** Return a labelled field of a form. */
export const field = (name, control) => h("label", { class: "field" }, h("span", {}, name), control);

/** Return a bar that is filled to a share between 0 and 1. */
export const bar = (share) => h("span", { class: "bar", "aria-hidden": "true", vars: { "--share": Math.max(0, Math.min(1, share)) } });

/** Call a function once nothing has asked for it for some milliseconds. */
export function later(milliseconds, call) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), milliseconds);
  };
}

export const count = (number) => Number(number).toLocaleString("en");
export const plural = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;
export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

/** Return a number of bytes as people say it. */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (number >= 1024 && at < units.length - 1) [number, at] = [number / 1024, at + 1];
  return `${at ? number.toFixed(number < 10 ? 1 : 0) : number} ${units[at]}`;
}
