// Follows the study: replaces what has changed, and keeps what the user has done to the report.
"use strict";

const status_ = document.getElementById("live");
let version = document.body.dataset.version;
let requests = 0; // to pause, resume or stop, that were answered

function parsed(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
}

// A row can be parsed only within a table.
function parsedRow(html) {
  const template = document.createElement("template");
  template.innerHTML = `<table><tbody>${html}</tbody></table>`;
  return template.content.querySelector("tr");
}

// What the user has opened, scrolled and focused in an element, to restore it in the new element.
function stateOf(element) {
  const focusable = [...element.querySelectorAll("a, button, input, summary, [tabindex]")];
  return {
    open: [...element.querySelectorAll("details")].map((each) => each.open),
    scrolled: [...element.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]),
    focus: focusable.indexOf(document.activeElement),
  };
}

function restore(element, state) {
  element.querySelectorAll("details").forEach((each, n) => (each.open = state.open[n] ?? false));
  element.querySelectorAll(".scroll").forEach((each, n) => {
    if (state.scrolled[n]?.some(Boolean)) [each.scrollLeft, each.scrollTop] = state.scrolled[n];
  });
  if (state.focus >= 0) {
    element.querySelectorAll("a, button, input, summary, [tabindex]")[state.focus]?.focus({ preventScroll: true });
  }
}

function replace(element, html) {
  const state = stateOf(element);
  const next = parsed(html);
  if (element.id === "trials") keepTable(element, next);
  element.replaceWith(next);
  restore(next, state);
  return next;
}

// The rows of the table are sent one by one, so that another head keeps them.
function keepTable(element, next) {
  const [old, body] = [element.querySelector("tbody"), next.querySelector("#all-trials tbody")];
  if (!old || !body) return;
  body.append(...old.rows);
  const words = element.querySelector("#filter")?.value ?? "";
  next.querySelector("#filter").value = words;
}

function placeSection(key, html, order) {
  const next = parsed(html);
  const before = order.slice(0, order.indexOf(key)).reverse();
  const above = before.map((each) => document.getElementById(each)).find(Boolean);
  if (above) above.after(next);
  else document.getElementById("content").prepend(next);
  observed(next);
}

function placeRow(key, html) {
  const row = document.getElementById(key);
  const next = parsedRow(html);
  if (row) row.replaceWith(next);
  else document.querySelector("#all-trials tbody")?.append(next);
}

// Rows go if their trials are trained again, or another server sent them.
function removeRows(message) {
  const rows = () => [...document.querySelectorAll("#all-trials tbody tr")].map((row) => row.id);
  const gone = message.gone ?? rows().filter((key) => !(key in message.rows));
  for (const key of gone) document.getElementById(key)?.remove();
  return gone.length > 0;
}

// A section far from the visible part is requested when it comes near, or before printing.
const near = new Set();
let outdated = []; // the sections that have changed, and have not been requested
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) near.add(target.id);
    else near.delete(target.id);
  }
  if (outdated.some((key) => near.has(key))) poll();
}, { rootMargin: "600px" });

// The address of what has changed, of all sections or of those that the user needs now: those near
// the visible part, the one with the focus, the table, and those that the report does not have yet.
function changesAddress(all = false) {
  const focused = document.activeElement?.closest("main > section")?.id ?? "";
  const missing = outdated.filter((key) => !document.getElementById(key));
  const query = new URLSearchParams({ since: version, outdated: outdated.join() });
  if (!all) query.set("near", [...near, "trials", focused, ...missing].join());
  return `changes?${query}`;
}

function observed(section) {
  redraw(section);
  emphasise(section);
  observer.observe(section);
}

function put(element, html) {
  const next = replace(element, html);
  if (next.matches("main > section")) observed(next);
}

function update(message) {
  const began = performance.now();
  for (const [key, html] of Object.entries(message.parts)) {
    const element = document.getElementById(key);
    if (key === "head") {
      const state = stateOf(element);
      element.innerHTML = html;
      restore(element, state);
    } else if (element) put(element, html);
    else if (message.order.includes(key)) placeSection(key, html, message.order);
  }
  for (const [key, html] of Object.entries(message.rows)) placeRow(key, html);
  const fewer = removeRows(message);
  for (const section of document.querySelectorAll("main > section")) {
    if (!message.order.includes(section.id)) section.remove();
  }
  if ("trials" in message.parts) prepareTable();
  if ("trials" in message.parts || Object.keys(message.rows).length || fewer) {
    sort();
    filter();
  }
  if (axes.time) redraw(document); // with the times of new rows
  const typing = document.getElementById("changes");
  if (view.open && location.hash.slice(1) in message.rows && !typing) visit();
  version = message.version;
  outdated = message.outdated;
  markPresent();
  performance.measure("update", { start: began, end: performance.now() });
}

function said(words, away = false) {
  status_.textContent = words;
  status_.classList.toggle("away", away);
}

async function poll() {
  const before = requests;
  try {
    const response = await fetch(changesAddress());
    const message = await response.json();
    if (message.version !== version || Object.keys(message.parts).length) update(message);
    if (message.trouble) said(message.trouble, true);
    else if (requests === before) said(`live, ${new Date().toTimeString().slice(0, 8)}`);
  } catch {
    said("the server does not answer; trying again", true);
  }
}

// A hidden tab sends no requests, and catches up when it is visible again.
async function follow() {
  if (!document.hidden) await poll();
  setTimeout(follow, Number(document.body.dataset.interval));
}

// Sends a request of a button: the token shows that the server sent this report.
async function request(button, path, body) {
  button.disabled = true;
  const answer = view.contains(button) ? document.getElementById("answer") : status_;
  try {
    const headers = { "X-Report-Token": document.body.dataset.token };
    const response = await fetch(path, { method: "POST", headers, body });
    answer.textContent = await response.text();
    answer.classList.toggle("away", !response.ok);
    requests += 1;
    button.disabled = response.ok;
    return response.ok;
  } catch {
    button.disabled = false;
    answer.textContent = "the server does not answer";
    answer.classList.add("away");
    return false;
  }
}

document.addEventListener("click", (event) => {
  const { request: path, sure } = event.target.dataset ?? {};
  if (path && (!sure || confirm(sure))) request(event.target, path);
});

// The buttons of the view of a trial: it can be stopped, and tried with changes.
function action(text, data = {}) {
  const button = make("button", text);
  button.type = "button";
  Object.assign(button.dataset, data);
  return button;
}

view.addEventListener("filled", () => {
  const { token, proposes } = document.body.dataset;
  if (!token) return;
  const row = addressed();
  const trial = row.id.slice("trial-".length);
  const buttons = [];
  if (/^(running|paused|waiting|interrupted)/.test(row.cells[1].textContent)) {
    const sure = `Stop trial ${trial}? It ends as pruned, and counts toward the budget.`;
    buttons.push(action("stop this trial", { request: `stop_trial?trial=${trial}`, sure }));
  }
  const configuration = document.getElementById("configuration");
  if (proposes === "true" && configuration) {
    const button = action("try this with changes");
    button.addEventListener("click", () => {
      edit(configuration, row, trial);
      button.remove();
    });
    buttons.push(button);
  }
  const answer = make("p.quiet", "");
  answer.id = "answer";
  answer.setAttribute("role", "status");
  document.getElementById("trial-body").firstElementChild.after(make("p.actions", "", ...buttons), answer);
});

// The value of a cell with few digits: the server keeps those that the user does not change.
function briefly(cell) {
  const text = stored(cell);
  return /[.e]/.test(text) && !Number.isNaN(Number(text)) ? String(Number(Number(text).toPrecision(4))) : text;
}

// Makes the values of a trial inputs; those that the user changes are proposed.
function edit(configuration, row, trial) {
  const columns = new Map(titles().map((title, n) => [nameOf(title), n]));
  const inputs = [...configuration.tBodies[0].rows].map((each) => {
    const name = each.cells[0].textContent;
    const cell = row.cells[columns.get(name)];
    const input = Object.assign(make("input", ""), { name, defaultValue: briefly(cell), autocomplete: "off" });
    input.setAttribute("aria-label", name);
    each.cells[1].replaceChildren(input);
    return input;
  });
  const form = make("form", "", make("p.actions", ""));
  form.id = "changes";
  const send = make("button", "propose this configuration");
  form.firstElementChild.append(send);
  configuration.parentNode.before(form);
  form.append(configuration.parentNode);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const changed = inputs.filter((input) => input.value.trim() && input.value !== input.defaultValue);
    const changes = Object.fromEntries(changed.map((input) => [input.name, input.value.trim()]));
    const proposed = await request(send, "propose", JSON.stringify({ trial, changes }));
    if (proposed) form.removeAttribute("id");
  });
  inputs[0].focus();
}

// Printing does not wait for a promise.
window.addEventListener("beforeprint", () => {
  if (!outdated.length) return;
  const all = new XMLHttpRequest();
  all.open("GET", changesAddress(true), false);
  try {
    all.send();
    update(JSON.parse(all.responseText));
  } catch {
    said("the server does not answer; some figures are not up to date", true);
  }
});

document.querySelectorAll("main > section").forEach(observed);
visit(); // adds its buttons to the view of a trial that is open already
follow();
