// What every page needs: data that scripts bring, the theme, and a few ways to make elements. No text becomes markup.
"use strict";
const board = (() => {
  const kept = new Map();
  const root = () => document.body.dataset.root || "";
  const put = (kind, key, content) => kept.set(`${kind} ${key}`, content);
  const get = (kind, key) => kept.get(`${kind} ${key}`);

  // A page that was opened from a file may not fetch, but it may load a script.
  const load = (kind, key) => new Promise((done, fail) => {
    const known = get(kind, key);
    if (known !== undefined) return done(known);
    const script = document.createElement("script");
    script.src = `${root()}data/${encodeURIComponent(key)}.js`;
    script.onload = () => { script.remove(); done(get(kind, key)); };
    script.onerror = () => { script.remove(); fail(new Error(`data/${key}.js cannot be read`)); };
    document.head.append(script);
  });

  const SVG = "http://www.w3.org/2000/svg";
  const fill = (made, attributes, children) => {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat(Infinity).filter(one => one !== null && one !== undefined && one !== ""));
    return made;
  };
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  const state = () => new URLSearchParams(location.hash.slice(1));
  const remember = values => {
    const said = state();
    for (const [key, value] of Object.entries(values)) value === null || value === "" ? said.delete(key) : said.set(key, value);
    const hash = `#${said}`;
    if (hash !== location.hash) history.replaceState(null, "", hash === "#" ? location.pathname : hash);
  };
  const recordPage = name => `${root()}records/${encodeURIComponent(name)}.html`;

  const storage = { get() { try { return localStorage.getItem("theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("theme", value); } catch { /* a browser that keeps nothing */ } } };
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  if (storage.get()) document.documentElement.dataset.theme = storage.get();
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => button.setAttribute("aria-pressed", String(dark()));
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = dark() ? "light" : "dark";
      storage.set(document.documentElement.dataset.theme);
      show();
    });
    show();
    for (const copy of document.querySelectorAll("[data-copy]")) {
      copy.addEventListener("click", () => {
        const text = copy.previousElementSibling;
        const range = document.createRange();
        range.selectNodeContents(text);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        const said = () => { copy.textContent = "Copied"; };
        navigator.clipboard ? navigator.clipboard.writeText(text.textContent).then(said, () => {}) : document.execCommand("copy") && said();
      });
    }
  });
  return { put, get, load, el, svg, state, remember, recordPage };
})();
