// The page is whole without this script. It adds what a hand asks for: the values of points, by
// pointer and by keyboard, and the order, the filter and the CSV file of the table of trials.
"use strict";

const readings = new WeakMap(); // of each figure, its points as they are needed

function number(text) {
  return Number.parseFloat(text);
}

// Reads where the points of a path lie; the first of each M belongs to the next trial.
function pointsOf(path) {
  const points = [];
  const kind = path.classList[0];
  const trials = path.dataset.trials ? path.dataset.trials.split(" ") : [];
  let part = -1;
  let x = 0;
  let y = 0;
  for (const [, command, first, second] of path.getAttribute("d").matchAll(/([MLHVhv])(-?[\d.]+)(?: (-?[\d.]+))?/g)) {
    if (command === "M" || command === "L") {
      x = number(first);
      y = number(second);
      part += command === "M" ? 1 : 0;
    } else if (kind === "bar" && command === "h" && number(first) > 0) {
      x += number(first) / 2;
      continue;
    } else {
      continue;
    }
    points.push({ x, y: kind === "rug" ? y + 16 : y, trial: trials[part], kind, name: path.dataset.read });
  }
  if (kind === "bar") points.forEach((point, n) => (point.x = barMiddle(path, n)));
  return points;
}

function barMiddle(path, position) {
  const [left, wide] = [...path.getAttribute("d").matchAll(/M([\d.]+) [\d.]+h([\d.]+)/g)][position].slice(1).map(number);
  return left + wide / 2;
}

function reading(plot) {
  if (!readings.has(plot)) {
    const points = [...plot.querySelectorAll("path[data-read]")].flatMap(pointsOf);
    points.sort((a, b) => a.x - b.x || b.y - a.y);
    readings.set(plot, { points, x: JSON.parse(plot.dataset.x), y: JSON.parse(plot.dataset.y), at: -1 });
  }
  return readings.get(plot);
}

function valueOn(scale, share) {
  const at = scale.low + share * (scale.high - scale.low);
  if (scale.reads === "unit") return Number((1 - 10 ** -at).toPrecision(4));
  if (scale.reads === "tens") return Number((10 ** at).toPrecision(3));
  if (scale.reads === "whole") return Math.round(at);
  if (scale.reads === "words") return scale.words[Math.round(at)] ?? "";
  return Number(at.toPrecision(4));
}

// What is said of a point: which trial, its values, and the trial's parameters from the table.
function words(point, axes) {
  const lines = [];
  const row = point.trial === undefined ? null : document.getElementById(`trial-${point.trial}`);
  if (point.trial !== undefined) lines.push(`trial ${point.trial}${row ? `: ${row.cells[1].textContent}` : ""}`);
  else if (point.name) lines.push(point.name);
  for (const [scale, share] of [[axes.y, 1 - point.y / 1000], [axes.x, point.x / 1000]]) {
    const readable = scale.reads !== "none" && !(scale === axes.y && ["rug", "bar"].includes(point.kind));
    if (readable && !(scale === axes.x && scale.title === "trial")) {
      lines.push(`${scale.title || "value"} ${valueOn(scale, share)}`);
    }
  }
  if (row) {
    const titles = [...row.closest("table").tHead.rows[0].cells].map((cell) => cell.textContent);
    const cells = [...row.cells].slice(2).map((cell, n) => [titles[n + 2], cell.textContent]);
    lines.push(...cells.filter(([, value]) => value).map(([title, value]) => `${title}: ${value}`));
  }
  return lines.join("\n");
}

function show(plot, point) {
  hide();
  if (!point) return;
  const spot = document.createElement("i");
  spot.className = "spot";
  spot.style.left = `${point.x / 10}%`;
  spot.style.top = `${point.y / 10}%`;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.textContent = words(point, reading(plot));
  plot.append(spot, tip);
  const box = plot.getBoundingClientRect();
  const x = (point.x / 1000) * box.width;
  const room = document.documentElement.clientWidth - box.left;
  tip.style.left = `${Math.max(8 - box.left, Math.min(x + 14, room - tip.offsetWidth - 8))}px`;
  tip.style.top = `${(point.y / 1000) * box.height + 14}px`;
}

function hide() {
  for (const element of document.querySelectorAll(".spot, .tip")) element.remove();
}

function nearest(plot, event) {
  const box = plot.getBoundingClientRect();
  let best = null;
  let least = 30 ** 2; // pixels
  for (const point of reading(plot).points) {
    const distance =
      (box.left + (point.x / 1000) * box.width - event.clientX) ** 2 +
      (box.top + (point.y / 1000) * box.height - event.clientY) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}

document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest?.(".plot");
  if (plot) show(plot, nearest(plot, event));
  else if (document.activeElement?.className !== "plot") hide();
});

document.addEventListener("focusout", hide);

document.addEventListener("keydown", (event) => {
  const plot = event.target.closest?.(".plot");
  if (event.key === "Escape") hide();
  if (!plot) return;
  const read = reading(plot);
  const last = read.points.length - 1;
  const steps = { ArrowRight: read.at + 1, ArrowLeft: read.at - 1, Home: 0, End: last };
  if (!(event.key in steps)) return;
  event.preventDefault();
  read.at = Math.max(0, Math.min(last, steps[event.key]));
  show(plot, read.points[read.at]);
});

// The table of trials.

const table = () => document.getElementById("all-trials");
let sorted = null; // the column and direction that were chosen

function stored(cell) {
  return cell.dataset.v ?? cell.textContent;
}

function compare(a, b) {
  const [left, right] = [number(a), number(b)];
  const empty = (a === "") - (b === "");
  if (empty) return empty;
  const numbers = !Number.isNaN(left) && !Number.isNaN(right);
  return numbers ? left - right : a.localeCompare(b);
}

function sort() {
  if (!sorted || !table()) return;
  const [column, direction] = sorted;
  const body = table().tBodies[0];
  const rows = [...body.rows].map((row) => [stored(row.cells[column]), row]);
  // What has no value comes last in both directions.
  rows.sort(([a], [b]) => (a === "" || b === "" ? compare(a, b) : direction * compare(a, b)));
  body.append(...rows.map(([, row]) => row));
  [...table().tHead.rows[0].cells].forEach((cell, n) => {
    if (n === column) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    else cell.removeAttribute("aria-sort");
  });
}

function filter() {
  if (!table()) return;
  const wanted = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table().tBodies[0].rows];
  let left = 0;
  for (const row of rows) {
    const text = wanted.length ? [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase() : "";
    const hidden = !wanted.every((word) => text.includes(word));
    if (row.hidden !== hidden) row.hidden = hidden;
    left += hidden ? 0 : 1;
  }
  document.getElementById("count").textContent = wanted.length ? `${left} of ${rows.length} trials` : `${rows.length} trials`;
}

// What a spreadsheet would take for a formula begins with an apostrophe, as in `studyloom trials`.
function field(text) {
  const formula = /(^|[;\t\r\n])([=+\-@]|(?<![^])[\t\r])/g;
  const safe = Number.isNaN(Number(text)) ? text.replace(formula, "$1'$2") : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function csv() {
  const rows = [table().tHead.rows[0], ...[...table().tBodies[0].rows].filter((row) => !row.hidden)];
  return rows.map((row) => `${[...row.cells].map((cell) => field(stored(cell))).join(",")}\n`).join("");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "trials.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

function prepareTable() {
  if (!table()) return;
  document.querySelector(".tools").hidden = false;
  for (const [column, cell] of [...table().tHead.rows[0].cells].entries()) {
    if (cell.querySelector("button")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    button.addEventListener("click", () => {
      sorted = [column, sorted?.[0] === column ? -sorted[1] : 1];
      sort();
    });
    cell.replaceChildren(button);
  }
  document.getElementById("filter").addEventListener("input", filter);
  document.getElementById("csv").addEventListener("click", save);
  filter();
}

prepareTable();
