// Sorting, filtering, highlighting, theme. The page reads the same without any of it.
"use strict";
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const root = document.documentElement;

// Theme: that of the system, or ?theme=light|dark, or the button.
const asked = new URLSearchParams(location.search).get("theme");
if (asked === "light" || asked === "dark") root.dataset.theme = asked;
document.getElementById("theme").addEventListener("click", () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
});

// A click on a heading sorts by that column; missing values stay last.
function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  return isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
}
for (const head of all("table.sortable th")) {
  const button = head.querySelector("button");
  button.addEventListener("click", () => {
    const wasDown = head.getAttribute("aria-sort") === "descending";
    all("th", head.parentNode).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", wasDown ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const value = (row) => row.cells[head.cellIndex].dataset.v;
    const sorted = [...body.rows].sort((a, b) => {
      const order = compare(value(a), value(b));
      return value(a) === "" || value(b) === "" || wasDown ? order : -order;
    });
    body.append(...sorted);
  });
}

// Pointing at a trial shows it everywhere.
function highlight(trial) {
  root.classList.toggle("pointing", Boolean(trial));
  for (const part of all("[data-trial]")) part.classList.toggle("hot", part.dataset.trial === trial);
}
document.addEventListener("pointerover", (event) => highlight(event.target.closest("[data-trial]")?.dataset.trial));

// A figure as a file of its own: what the style sheet says of its parts is written into them.
const WRITTEN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "opacity",
  "paint-order", "font-family", "font-size"];
function standalone(svg) {
  const copy = svg.cloneNode(true);
  const [originals, copies] = [all("*", svg), all("*", copy)];
  originals.forEach((part, i) => {
    const style = getComputedStyle(part);
    copies[i].setAttribute("style", WRITTEN.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";"));
  });
  const { width, height } = svg.viewBox.baseVal;
  const around = 12;
  copy.setAttribute("viewBox", `${-around} ${-around} ${width + 2 * around} ${height + 2 * around}`);
  copy.setAttribute("width", width + 2 * around);
  copy.setAttribute("height", height + 2 * around);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.prepend(document.querySelector("defs").cloneNode(true));
  return new XMLSerializer().serializeToString(copy);
}
function download(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}
function save(figure, kind) {
  const url = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(figure.querySelector("svg")))}`;
  const name = figure.querySelector(".save a").download.replace(/csv$/, kind.toLowerCase());
  if (kind === "SVG") return download(url, name);
  const picture = new Image();
  picture.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [3 * picture.width, 3 * picture.height];
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(figure).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    download(canvas.toDataURL("image/png"), name);
  };
  picture.src = url;
}
for (const links of all(".save")) {
  for (const kind of ["SVG", "PNG"]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = kind;
    button.addEventListener("click", () => save(links.closest("figure"), kind));
    links.append(" ", button);
  }
}

// Gallery: one group, one set, or all.
for (const gallery of all(".gallery")) {
  const chosen = { set: "", group: "" };
  for (const button of all("button[data-filter]", gallery)) {
    button.addEventListener("click", () => {
      const { filter, value } = button.dataset;
      chosen[filter] = value;
      all(`button[data-filter="${filter}"]`, gallery).forEach((b) => b.setAttribute("aria-pressed", b === button));
      for (const card of all(".card", gallery)) {
        card.hidden = ["set", "group"].some((key) => chosen[key] && card.dataset[key] !== chosen[key]);
      }
    });
  }
}

// Digits on the cells, for whoever cannot tell the ten colours apart; made from the drawings when asked for.
function addDigits(grid) {
  const text = [];
  for (const path of all("path[class^=c]", grid)) {
    for (const [, x, y, n] of path.getAttribute("d").matchAll(/M(\d+) (\d+)\.5h(\d+)/g)) {
      for (let i = 0; i < Number(n); i++) text.push([Number(x) + i + 0.5, Number(y) + 0.5, path.classList[0].slice(1)]);
    }
  }
  for (const [x, y, digit] of text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", "text");
    node.setAttribute("class", "digit");
    node.setAttribute("x", x);
    node.setAttribute("y", y + 0.25);
    node.textContent = digit;
    grid.append(node);
  }
}
for (const button of all("button.digits")) {
  button.addEventListener("click", () => {
    const isOn = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", isOn);
    button.closest(".gallery").classList.toggle("large", isOn);
    for (const grid of all("svg.grid", button.closest(".gallery"))) {
      all(".digit", grid).forEach((node) => node.remove());
      grid.style.width = isOn ? `${13 * grid.viewBox.baseVal.width}px` : "";
      if (isOn) addDigits(grid);
    }
  });
}
