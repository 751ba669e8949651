// The report is complete without this script. It adds interaction: the values of points, by pointer
// and keyboard; order, filter and CSV file of the table of trials; the selection of trials in all
// figures, by that filter or a rectangle in one figure; and the view of one trial.
"use strict";

const readings = new WeakMap(); // the points of each figure, once it needs them

function number(text) {
  return Number.parseFloat(text);
}

// The parts of a path, one for each of its trials.
function partsOf(path) {
  return path.getAttribute("d").split("M").slice(1);
}

function trialsOf(path) {
  return path.dataset.trials?.split(" ") ?? [];
}

// Where the points of a path lie. Half of each line to a neighbor, or of its bar, belongs to a point.
function pointsOf(path) {
  const kind = path.classList[0];
  const trials = trialsOf(path);
  return partsOf(path).flatMap((part, n) => {
    const places = part.split("L").map((text) => text.split(/[ hvz]/).map(number));
    return places.map(([x, y, wide, high], k) => {
      const point = { x, y, ends: [[x, y]], trial: trials[n], kind, name: path.dataset.read };
      if (kind === "rug") point.y += 16;
      if (kind === "line") {
        const beside = [places[k - 1], places[k + 1]].filter(Boolean);
        point.ends = [...point.ends, ...beside.map(([a, b]) => [(a + x) / 2, (b + y) / 2])];
      } else if (kind === "bar") {
        Object.assign(point, { x: x + wide / 2, y: y + high / 2, wide: wide / 2 });
        point.ends = [[x, point.y], [x + wide, point.y]];
      }
      return point;
    });
  });
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
  if (scale.kind === "unit") return Number((1 - 10 ** -at).toPrecision(4));
  if (scale.kind === "tens") return Number((10 ** at).toPrecision(3));
  if (scale.kind === "whole") return Math.round(at);
  if (scale.kind === "choices") return scale.choices[Math.round(at)] ?? "";
  return Number(at.toPrecision(4));
}

// The cells of a row of the table that are not empty, from its values on, with their titles.
function cellsOf(row) {
  const cells = titles().slice(2).map((title, n) => ({ title, value: row.cells[n + 2].textContent }));
  return cells.filter(({ value }) => value);
}

// Whether a column of the table has what an axis shows, as in "parameters, less is better".
function isOnAxis(title, axis) {
  return [title.textContent, nameOf(title)].some((name) => `${axis.title}, `.startsWith(`${name}, `));
}

// The description of a point: the trial, its values, and its hyperparameters from the table. What is
// on an axis and in the table is said once: by the table, which is exact, but for an epoch.
function words(point, axes) {
  const lines = [];
  const row = point.trial === undefined ? null : document.getElementById(`trial-${point.trial}`);
  if (point.trial !== undefined) lines.push(`trial ${point.trial}${row ? `: ${row.cells[1].textContent}` : ""}`);
  else if (point.name) lines.push(point.name);
  const isAtEpoch = axes.x.title === "epoch";
  let cells = row ? cellsOf(row) : [];
  for (const [scale, share] of [[axes.y, 1 - point.y / 1000], [axes.x, point.x / 1000]]) {
    const readable = scale.kind !== "none" && !(scale === axes.y && ["rug", "bar"].includes(point.kind));
    if (!readable || (scale === axes.x && scale.title === "trial")) continue;
    const isInTable = cells.some(({ title }) => isOnAxis(title, scale));
    if (isInTable && !isAtEpoch) continue;
    cells = cells.filter(({ title }) => !isOnAxis(title, scale));
    lines.push(`${scale.title.split(", ")[0] || "value"} ${String(valueOn(scale, share)).replace("-", "−")}`);
  }
  lines.push(...cells.map(({ title, value }) => `${title.textContent} ${value}`));
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

// The squared distance of a place from the line between two others.
function apart([x, y], [ax, ay], [bx, by]) {
  const [wide, high] = [bx - ax, by - ay];
  const along = ((x - ax) * wide + (y - ay) * high) / (wide ** 2 + high ** 2 || 1);
  const share = Math.max(0, Math.min(1, along));
  return (ax + share * wide - x) ** 2 + (ay + share * high - y) ** 2;
}

function nearest(plot, event) {
  const box = plot.getBoundingClientRect();
  const pixels = ([x, y]) => [(x / 1000) * box.width, (y / 1000) * box.height];
  const place = [event.clientX - box.left, event.clientY - box.top];
  let best = null;
  let least = 30 ** 2; // pixels
  for (const point of reading(plot).points) {
    const at = pixels([point.x, point.y]);
    for (const end of point.ends) {
      const distance = apart(place, at, pixels(end));
      if (distance < least) [best, least] = [point, distance];
    }
  }
  return best;
}

document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest?.(".plot");
  if (drag) draw(event);
  else if (plot) {
    const point = nearest(plot, event);
    show(plot, point);
    plot.style.cursor = point?.trial ? "pointer" : "";
  } else if (document.activeElement?.className !== "plot") hide();
});

document.addEventListener("focusout", hide);

document.addEventListener("keydown", (event) => {
  const plot = event.target.closest?.(".plot");
  if (event.key === "Escape") {
    hide();
    if (view.open) view.close();
    else if (within) clear();
  }
  if (event.target.closest?.("input")) return;
  if (!plot) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && view.open) go(step);
    return;
  }
  const read = reading(plot);
  const last = read.points.length - 1;
  if (event.key === "Enter" && read.points[read.at]) lead(read.points[read.at].trial);
  const steps = { ArrowRight: read.at + 1, ArrowLeft: read.at - 1, Home: 0, End: last };
  if (!(event.key in steps)) return;
  event.preventDefault();
  read.at = Math.max(0, Math.min(last, steps[event.key]));
  show(plot, read.points[read.at]);
});

// The table of trials.

const table = () => document.getElementById("all-trials");
let sorted = null; // the column's name and the direction that were chosen

// The cells of the head. One whose text is a shortened name has the whole name as its title.
function titles() {
  return [...table().tHead.rows[0].cells];
}

function nameOf(cell) {
  return cell.title || cell.textContent;
}

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
  const [name, direction] = sorted;
  const column = titles().findIndex((cell) => nameOf(cell) === name);
  if (column < 0) return;
  const body = table().tBodies[0];
  const rows = [...body.rows].map((row) => [stored(row.cells[column]), row]);
  // What has no value comes last in both directions.
  rows.sort(([a], [b]) => (a === "" || b === "" ? compare(a, b) : direction * compare(a, b)));
  let next = body.rows[0];
  for (const [, row] of rows) {
    // Only rows out of place are moved: a new trial does not lay out the whole table again.
    if (row === next) next = next.nextElementSibling;
    else body.insertBefore(row, next);
  }
  titles().forEach((cell, n) => {
    if (n === column) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    else cell.removeAttribute("aria-sort");
  });
}

// The condition of a word of the filter: a row contains it, or a cell satisfies it, as in lr<0.01.
function asked(word, names) {
  const [, name, sign, value] = /^([^<>=]+)([<>]=?|=)([^<>=]+)$/.exec(word) ?? [];
  const columns = names.flatMap((full, n) => (full === name || full.endsWith(`.${name}`) ? [n] : []));
  if (!columns.length) return (row) => [...row.cells].some((cell) => cell.textContent.toLowerCase().includes(word));
  return (row) => columns.some((n) => {
    const cell = stored(row.cells[n]).toLowerCase();
    const order = compare(cell, value);
    return cell !== "" && (sign.includes("=") && order === 0 || sign.includes("<") && order < 0 || sign.includes(">") && order > 0);
  });
}

const hiding = document.head.appendChild(document.createElement("style"));

function hideColumns(columns) {
  const places = columns.map((n) => `:nth-child(${n + 1})`);
  const style = columns.length ? `#all-trials tr > :is(${places}) { display: none }` : "";
  if (hiding.textContent !== style) hiding.textContent = style;
}

function filter() {
  if (!table()) return;
  const began = performance.now();
  const wanted = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table().tBodies[0].rows];
  const names = titles().map((cell) => nameOf(cell).toLowerCase());
  const tests = wanted.map((word) => asked(word, names));
  const numbers = new Set();
  let empty = names.map((_, n) => n);
  for (const row of rows) {
    const number = row.id.slice("trial-".length);
    const hidden = Boolean(within && !within.has(number)) || !tests.every((test) => test(row));
    if (row.hidden !== hidden) row.hidden = hidden;
    if (hidden) continue;
    numbers.add(number);
    empty = empty.filter((n) => !row.cells[n].textContent);
  }
  const some = within || wanted.length;
  hideColumns(numbers.size ? empty : []);
  const matching = some ? `${numbers.size} of ${rows.length} trials` : `${rows.length} trials`;
  document.getElementById("count").textContent = matching;
  document.getElementById("matching").textContent = matching;
  document.getElementById("chosen").hidden = !some;
  if (some || chosen) {
    chosen = some ? numbers : null;
    emphasise(document);
  }
  performance.measure("filter", { start: began, end: performance.now() });
}

// The axes of the history: trials by number or by time, values on a linear or a logarithmic axis.

const axes = { time: false, log: null }; // log: null as the report has it
const originals = new WeakMap(); // what the report has drawn, by plot

function original(plot) {
  if (!originals.has(plot)) {
    originals.set(plot, {
      x: JSON.parse(plot.dataset.x),
      y: JSON.parse(plot.dataset.y),
      paths: [...plot.querySelectorAll("path:not(.chosen)")].map((path) => [path, path.getAttribute("d")]),
      labels: [...plot.querySelectorAll(".x-label, .y-label")],
    });
  }
  return originals.get(plot);
}

const isLog = (kind) => kind === "unit" || kind === "tens";

// The value at a coordinate of an axis, not rounded, and the coordinate of a value.
const rawValue = (kind, at) => (kind === "unit" ? 1 - 10 ** -at : kind === "tens" ? 10 ** at : at);
const coordinateOf = (kind, value) => (kind === "tens" ? Math.log10(value) : value);

// When each trial began, in seconds, by its number; and where the first and the last are drawn.
function timesOf({ x }) {
  const times = new Map();
  for (const row of table()?.tBodies[0].rows ?? []) {
    const began = Date.parse(JSON.parse(row.dataset.more).facts?.began?.replace(" ", "T"));
    if (!Number.isNaN(began)) times.set(Number(row.id.slice("trial-".length)), began / 1000);
  }
  const first = Math.min(...times.values());
  const latest = Math.max(...times.keys(), 0);
  const placeOf = (trial) => (1000 * (trial - x.low)) / (x.high - x.low);
  return { times, first, length: Math.max(...times.values()) - first, latest, left: placeOf(0), right: placeOf(latest) };
}

// Maps the place of a trial's number to that of the time at which it began.
function acrossTime({ x }, { times, first, length, latest, left, right }) {
  let at = first;
  const places = [];
  for (let trial = 0; trial <= latest; trial += 1) {
    at = times.get(trial) ?? at;
    places.push(left + ((at - first) / length) * (right - left));
  }
  return (place) => places[Math.round(x.low + (place / 1000) * (x.high - x.low))] ?? place;
}

// Another kind of vertical axis for the same values; null if they cannot be drawn on it.
function otherScale({ y, paths }) {
  if (isLog(y.kind)) return { ...y, kind: "plain", low: rawValue(y.kind, y.low), high: rawValue(y.kind, y.high) };
  const drawn = paths.filter(([path]) => path.dataset.trials && path.classList[0] !== "rug");
  const places = drawn.flatMap(([, d]) => d.split("M").slice(1).map((text) => number(text.split(/[ h]/)[1])));
  const lowest = y.high - (Math.max(...places) / 1000) * (y.high - y.low);
  if (!(lowest > 0)) return null;
  return { ...y, kind: "tens", low: Math.log10(lowest) - 0.06 * Math.log10(y.high / lowest), high: Math.log10(y.high) };
}

function downScale({ y }, scale) {
  return (place) => {
    const value = rawValue(y.kind, y.high - (place / 1000) * (y.high - y.low));
    const at = scale.kind === "tens" && value <= 0 ? scale.low : coordinateOf(scale.kind, value);
    return Math.max(0, Math.min(1000, (1000 * (scale.high - at)) / (scale.high - scale.low)));
  };
}

// The multiples of 1, 2 or 5 times a power of ten between two numbers, at most `count` of them.
function roundNumbers(low, high, count) {
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => (high - low) / each <= count);
  const numbers = [];
  for (let n = Math.ceil(low / step); n * step <= high; n += 1) numbers.push(Number((n * step).toPrecision(10)));
  return numbers;
}

function logNumbers(low, high) {
  const numbers = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const digit of [1, 2, 5]) numbers.push(digit * 10 ** power);
  }
  const inside = numbers.filter((each) => Math.log10(each) >= low && Math.log10(each) <= high);
  if (inside.length < 3) return roundNumbers(10 ** low, 10 ** high, 6);
  return inside.filter((_, n) => n % Math.ceil(inside.length / 8) === 0);
}

function label(plot, kind, text, side, percent) {
  const span = make(`span.${kind}`, text);
  span.setAttribute("aria-hidden", "true");
  span.style[side] = `${percent}%`;
  plot.append(span);
}

function labelTime(plot, { length, left, right }) {
  const units = [["s", 1], ["min", 60], ["h", 3600], ["days", 86400]];
  const [unit, seconds] = units.findLast(([, each]) => length >= 2 * each) ?? units[0];
  for (const at of roundNumbers(0, length / seconds, plot.clientWidth < 500 ? 3 : 6)) {
    label(plot, "x-label", `${at} ${unit}`, "left", (left + ((at * seconds) / length) * (right - left)) / 10);
  }
}

function labelValues(plot, scale, grid) {
  const numbers = isLog(scale.kind) ? logNumbers(scale.low, scale.high) : roundNumbers(scale.low, scale.high, 7);
  const lines = numbers.map((each) => {
    const share = (coordinateOf(scale.kind, each) - scale.low) / (scale.high - scale.low);
    label(plot, "y-label", String(Number(each.toPrecision(4))), "bottom", 100 * share);
    return `M0 ${(1000 * (1 - share)).toFixed(1)}h1000`;
  });
  grid.setAttribute("d", lines.join(""));
}

// Moves the places of a path; a stroke at the edge stays at its edge.
function moved(path, d, across, down) {
  const x = (text) => across(number(text)).toFixed(1);
  const y = (text) => (path.classList[0] === "rug" ? text : down(number(text)).toFixed(1));
  return d.replace(/([MLHV])([\d.-]+)(?: ([\d.-]+))?/g, (_, command, first, second) => {
    if (command === "H") return `H${x(first)}`;
    if (command === "V") return `V${y(first)}`;
    return `${command}${x(first)} ${y(second)}`;
  });
}

// Draws the history on the chosen axes; what is as the report has it stays untouched.
function redraw(root) {
  for (const plot of root.querySelectorAll("main .history .plot")) {
    const drawn = original(plot);
    const figure = plot.closest("figure");
    const times = axes.time && timesOf(drawn);
    const other = otherScale(drawn);
    const byTime = axes.time && times.length > 0;
    const scale = axes.log !== null && axes.log !== isLog(drawn.y.kind) && other ? other : drawn.y;
    const [time, log] = figure.querySelectorAll(".switches button");
    time.parentNode.hidden = false;
    time.hidden = !table();
    log.hidden = !other;
    time.setAttribute("aria-pressed", byTime);
    log.setAttribute("aria-pressed", isLog(scale.kind));
    const isChanged = byTime || scale === other;
    if (!isChanged && !drawn.wasChanged) continue;
    drawn.wasChanged = isChanged;
    const across = byTime ? acrossTime(drawn, times) : (place) => place;
    const down = scale === other ? downScale(drawn, other) : (place) => place;
    for (const old of plot.querySelectorAll(".x-label, .y-label, .chosen, .brush")) old.remove();
    for (const each of drawn.labels) {
      const replaced = each.classList.contains("x-label") ? byTime : scale === other;
      if (!replaced) plot.append(each);
    }
    for (const [path, d] of drawn.paths) {
      path.setAttribute("d", path.classList.contains("grid") ? d : moved(path, d, across, down));
    }
    if (byTime) labelTime(plot, times);
    if (scale === other) labelValues(plot, scale, drawn.paths[0][0]);
    plot.dataset.x = JSON.stringify(byTime ? { ...drawn.x, kind: "none" } : drawn.x);
    plot.dataset.y = JSON.stringify(scale);
    readings.delete(plot);
    const [title] = figure.querySelectorAll(".axis");
    title.textContent = `${drawn.y.title.replace(/, log$/, "")}${isLog(scale.kind) ? ", log" : ""}`;
    figure.querySelector(".under").textContent = byTime ? "time since the first trial began" : drawn.x.title;
  }
}

document.addEventListener("click", (event) => {
  const axis = event.target.dataset?.axis;
  if (!axis) return;
  axes[axis] = event.target.getAttribute("aria-pressed") !== "true";
  redraw(document);
  emphasise(document);
});

// Selected trials: by the filter and by a rectangle that the user has drawn in a figure.

let chosen = null; // their numbers; null if all are
let within = null; // those in the rectangle
let drag = null; // the rectangle that is being drawn
let drawn = false; // whether the click that follows ends one

function emphasise(root) {
  document.body.classList.toggle("choosing", Boolean(chosen));
  for (const old of root.querySelectorAll(".chosen")) old.remove();
  if (!chosen) return;
  for (const path of root.querySelectorAll("main .plot path[data-trials]")) {
    const parts = pick(path, chosen);
    if (!parts) continue;
    const copy = path.cloneNode();
    copy.removeAttribute("data-read");
    copy.removeAttribute("data-trials");
    copy.setAttribute("d", parts);
    copy.classList.add("chosen");
    path.after(copy);
  }
}

function clear() {
  within = null;
  for (const old of document.querySelectorAll(".brush")) old.remove();
  document.getElementById("filter").value = "";
  filter();
}

document.addEventListener("pointerdown", (event) => {
  drawn = false;
  const plot = event.target.closest?.("main .plot");
  if (!plot || event.button || !reading(plot).points.some((point) => point.trial)) return;
  drag = { plot, from: event, box: plot.getBoundingClientRect(), rectangle: null };
});

function draw(event) {
  const { plot, from, box } = drag;
  if (!drag.rectangle) {
    if (Math.hypot(event.clientX - from.clientX, event.clientY - from.clientY) < 6) return;
    hide();
    for (const old of document.querySelectorAll(".brush")) old.remove();
    drag.rectangle = make("i.brush", "");
    plot.append(drag.rectangle);
    plot.setPointerCapture(event.pointerId);
  }
  const share = (at, low, size) => Math.max(0, Math.min(1, (at - low) / size));
  const [left, right] = [from.clientX, event.clientX].map((x) => share(x, box.left, box.width)).sort((a, b) => a - b);
  const [top, bottom] = [from.clientY, event.clientY].map((y) => share(y, box.top, box.height)).sort((a, b) => a - b);
  drag.ends = [left, right, top, bottom].map((at) => 1000 * at);
  const style = { left, top, width: right - left, height: bottom - top };
  for (const [key, at] of Object.entries(style)) drag.rectangle.style[key] = `${100 * at}%`;
}

document.addEventListener("pointerup", () => {
  if (drag?.rectangle) {
    const [left, right, top, bottom] = drag.ends;
    const inside = ({ x, y, wide = 0 }) => left <= x + wide && x - wide <= right && top <= y && y <= bottom;
    within = new Set(reading(drag.plot).points.filter((point) => point.trial && inside(point)).map((point) => point.trial));
    filter();
    drawn = true;
  }
  drag = null;
});

document.addEventListener("pointercancel", () => {
  drag?.rectangle?.remove();
  drag = null;
});

// An apostrophe keeps spreadsheets from reading a text as a formula, as in `studyloom trials`.
function field(text) {
  const formula = /(^|[;\t\r\n])([=+\-@]|(?<![^])[\t\r])/g;
  const safe = Number.isNaN(Number(text)) ? text.replace(formula, "$1'$2") : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function csv() {
  const rows = [...table().tBodies[0].rows].filter((row) => !row.hidden);
  const lines = [titles().map(nameOf), ...rows.map((row) => [...row.cells].map(stored))];
  return lines.map((line) => `${line.map(field).join(",")}\n`).join("");
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

// The image to share is in the report as SVG.
async function saveImage() {
  const svg = new XMLSerializer().serializeToString(document.getElementById("shared").content.firstElementChild);
  const image = new Image(1200, 630);
  image.src = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: 1200, height: 630 });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => save(blob, "report.png"));
}

// A button next to a command copies it.
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("button.copy");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = "selected";
  }
});

function prepareTable() {
  if (!table()) return;
  document.querySelector(".tools").hidden = false;
  const given = titles().find((cell) => cell.hasAttribute("aria-sort"));
  if (!sorted && given) sorted = [nameOf(given), given.getAttribute("aria-sort") === "ascending" ? 1 : -1];
  for (const cell of titles()) {
    if (cell.querySelector("button")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    button.addEventListener("click", () => {
      sorted = [nameOf(cell), sorted?.[0] === nameOf(cell) ? -sorted[1] : 1];
      sort();
    });
    cell.replaceChildren(button);
  }
  document.getElementById("filter").addEventListener("input", filter);
  document.getElementById("csv").addEventListener("click", () => save(new Blob([csv()], { type: "text/csv" }), "trials.csv"));
  filter();
}

// The link of the present section, which is the last one that begins above the middle of the window,
// and that of its group are marked.

function markPresent() {
  const begun = [...document.querySelectorAll("main > section")]
    .filter((section) => section.getBoundingClientRect().top < innerHeight / 2);
  const atEnd = scrollY > 0 && innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
  const sections = atEnd ? [...document.querySelectorAll("main > section")] : begun;
  const present = sections.at(-1) ?? document.querySelector("main > section");
  for (const link of document.querySelectorAll("nav a")) {
    const group = link.parentElement.querySelector(`ul a[href="#${present?.id}"]`);
    const marked = link.hash === `#${present?.id}` || group;
    if (marked) link.setAttribute("aria-current", group ? "true" : "location");
    else link.removeAttribute("aria-current");
  }
}

let marking = false;
function markSoon() {
  if (marking) return;
  marking = true;
  requestAnimationFrame(() => {
    marking = false;
    markPresent();
  });
}

addEventListener("scroll", markSoon, { passive: true });
addEventListener("resize", markSoon);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.closest?.("nav")) event.target.blur();
});

// The view of one trial, at its address: #trial-17.

const view = document.getElementById("trial");

function make(tag, text, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  element.className = classes.join(" ");
  element.append(text, ...children.filter(Boolean));
  return element;
}

function addressed() {
  const row = /^#trial-\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
  return row || null;
}

// The report does not scroll, and its last address is one step back.
function lead(trial) {
  if (!document.getElementById(`trial-${trial}`)) return;
  history.pushState({ led: true }, "", `#trial-${trial}`);
  visit();
}

function visit() {
  const row = addressed();
  if (!row) return view.close();
  fillView(row);
  if (!view.open) {
    view.show(); // as a modal, it would lay out all of a long report again
    document.getElementById("trial-title").focus();
  }
  for (const log of view.querySelectorAll("pre")) log.scrollTop = log.scrollHeight;
}

// The table's order and filter determine the next trial.
function neighbour(step) {
  const rows = [...table().tBodies[0].rows].filter((row) => !row.hidden);
  return rows[rows.indexOf(addressed()) + step];
}

function go(step) {
  const next = neighbour(step);
  if (!next) return;
  history.replaceState(history.state, "", `#${next.id}`);
  visit();
  view.scrollTop = 0;
}

function tableOf(head, rows) {
  const titles = make("tr", "", ...head.map((title) => make("th", title)));
  const broken = (name) => name.split(/(?<=\.)/).flatMap((part) => [part, make("wbr", "")]);
  const body = rows.map(([name, ...cells]) => make("tr", "", make("th", ...broken(name)), ...cells.map((cell) => (cell.nodeType ? cell : make("td", cell)))));
  return make("table", "", head.length ? make("thead", "", titles) : null, make("tbody", "", ...body));
}

function fillView(row) {
  const trial = row.id.slice("trial-".length);
  const more = JSON.parse(row.dataset.more);
  const cells = titles().map((title, n) => [nameOf(title), row.cells[n].textContent, Boolean(title.title), n]);
  const facts = cells.slice(2).filter(([title, text, parameter]) => text && !parameter && title !== "why");
  document.getElementById("trial-title").textContent = `Trial ${trial}: ${row.cells[1].textContent}`;
  for (const button of view.querySelectorAll("[data-step]")) {
    button.disabled = button.dataset.step !== "0" && !neighbour(Number(button.dataset.step));
  }
  const shown = [
    make("p", more.end),
    tableOf([], [...facts.map(([title, text]) => [title, text]), ...Object.entries(more.facts).filter(([, text]) => text)]),
    ...configuration(row, cells),
    ...curveOf(trial),
    ...spent(more.times),
  ];
  for (const [title, text] of [["Traceback", more.traceback], ["The last lines of its log", more.log]]) {
    if (text) shown.push(make("h3", title), make("pre", text));
  }
  const again = more.replayable ? view.dataset.replay && `${view.dataset.replay} ${trial}` : "";
  if (again) shown.push(make("h3", "To train it again, and compare"), make("pre", again));
  if (!more.replayable) shown.push(make("p.quiet", "It cannot be replayed: it has not stored how it was made."));
  shown[1].className = "facts";
  document.getElementById("trial-body").replaceChildren(...shown);
  view.dispatchEvent(new Event("filled")); // a live report adds its buttons
}

// Differences from the baseline comes first.
function configuration(row, cells) {
  const first = [...table().tBodies[0].rows].find((each) => each.cells[1].querySelector("b")?.textContent.includes("baseline"));
  const other = first === row ? null : first;
  const all = cells.filter(([, text, parameter, n]) => parameter && (text || other?.cells[n].textContent));
  const rows = all.map(([title, text, , n]) => [title, text || "–", ...(other ? [other.cells[n].textContent || "–"] : [])]);
  const differs = ([, own, theirs]) => theirs !== undefined && own !== theirs;
  const sorted = [...rows.filter(differs), ...rows.filter((each) => !differs(each))];
  if (!sorted.length) return [];
  const made = tableOf(["hyperparameter", "this trial", ...(other ? ["baseline"] : [])], sorted);
  [...made.tBodies[0].rows].forEach((each, n) => each.classList.toggle("differs", differs(sorted[n])));
  made.id = "configuration";
  return [make("h3", "Configuration"), make("div.scroll", "", made)];
}

// The parts of a path that belong to some trials.
function pick(path, trials) {
  const own = trialsOf(path);
  const parts = partsOf(path).filter((_, n) => trials.has(own[n]));
  return parts.length ? `M${parts.join("M")}` : "";
}

// The figure of all curves, in which one stands out.
function curveOf(trial) {
  const frame = document.querySelector("#curves .frame")?.cloneNode(true);
  if (!frame) return [];
  const svg = frame.querySelector("svg");
  for (const each of frame.querySelectorAll(".spot, .tip, .brush, .chosen")) each.remove();
  const found = [...svg.querySelectorAll("[data-trials]")].map((path) => [path, pick(path, new Set([trial]))]);
  const own = found.filter(([, d]) => d).map(([path, d]) => Object.assign(path.cloneNode(), { drawn: d }));
  for (const path of own) {
    path.setAttribute("d", path.drawn);
    path.classList.add("own");
    svg.append(path);
  }
  if (!own.length) return [];
  return [make("h3", "Its learning curve, among the others"), make("figure.chart", "", frame)];
}

function spent(times = {}) {
  const kinds = Object.entries(times).sort(([, a], [, b]) => b - a);
  const all = kinds.reduce((sum, [, seconds]) => sum + seconds, 0);
  const rows = kinds.map(([kind, seconds]) => {
    const share = make("i", "");
    share.style.width = `${(100 * seconds) / all}%`;
    const numbers = [`${seconds} s`, `${Math.round((100 * seconds) / all)}%`].map((text) => make("td.number", text));
    return [kind, make("td", make("div.bar", share)), ...numbers];
  });
  const made = tableOf([], rows);
  made.className = "bars";
  return rows.length ? [make("h3", "Where its time went"), made] : [];
}

window.addEventListener("hashchange", visit);

document.addEventListener("focusin", (event) => {
  if (view.open && !view.contains(event.target)) document.getElementById("trial-title").focus();
});

view.addEventListener("close", () => {
  if (!addressed()) return;
  if (history.state?.led) history.back();
  else history.replaceState(null, "", location.pathname + location.search);
});

document.addEventListener("click", (event) => {
  const step = event.target.closest("[data-step]")?.dataset.step;
  if (step) return step === "0" ? view.close() : go(Number(step));
  if (event.target.id === "shade") return view.close();
  const link = event.target.closest("a");
  const plot = event.target.closest(".plot");
  const row = event.target.closest("button, input, summary, a:not([href^='#trial-'])") ? null : event.target.closest("tr");
  const to = link ?? row?.querySelector("a[href^='#trial-']");
  if (event.ctrlKey || event.metaKey || event.shiftKey || !getSelection().isCollapsed) return;
  if (to?.hash?.startsWith("#trial-") && to.host === location.host) {
    event.preventDefault();
    lead(to.hash.slice("#trial-".length));
  } else if (plot && !drawn) lead(nearest(plot, event)?.trial);
});

document.getElementById("clear").addEventListener("click", clear);
document.getElementById("image").addEventListener("click", saveImage);
document.getElementById("image").hidden = !document.getElementById("shared");
redraw(document);
prepareTable();
markPresent();
visit();
