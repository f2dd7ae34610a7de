"use strict";

// Keeps the page up to date. Without this script its forms and the link "Refresh" do the same.

const SOON = 400;
const LATER = 2000;

const main = document.querySelector("main");
const list = document.getElementById("lines");
const blank = document.getElementById("line").content.firstElementChild;
const errors = document.getElementById("errors");
const said = document.getElementById("said");
const headers = { Accept: "application/json" };
let timer = 0;
let asked = 0;

function show(board) {
  for (const [name, value] of Object.entries(board.counts)) {
    const place = document.querySelector(`[data-count="${name}"]`);
    if (place) set(place, value.toLocaleString("en"));
  }
  document.getElementById("no-runner").hidden = board.counts.runners > 0;
  document.getElementById("empty").hidden = board.lines.length > 0;
  const before = new Map([...list.children].map((item) => [item.dataset.id, item]));
  board.lines.forEach((line, place) => {
    const item = before.get(line.id) || make(line);
    before.delete(line.id);
    fill(item, line);
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] || null);
  });
  before.forEach((item) => item.remove());
  const { waiting, running, done, failed } = board.counts;
  set(said, waiting + running ? "" : `All is done: ${done} well, ${failed} failed.`);
  return waiting + running > 0;
}

function make(line) {
  const item = blank.cloneNode(true);
  item.dataset.id = line.id;
  for (const form of item.querySelectorAll("form")) {
    form.action = form.getAttribute("action").replace(blank.dataset.id, line.id);
    form.querySelector(".aside").textContent = ` ${line.kind} ${line.text}`;
  }
  return item;
}

// Everything that comes from tasks is set as text, never as HTML.
function fill(item, line) {
  item.dataset.state = line.state;
  for (const name of ["kind", "text", "label", "detail", "timing"]) {
    set(item.querySelector(`[data-field="${name}"]`), line[name]);
  }
  const progress = item.querySelector("progress");
  progress.hidden = line.progress === null;
  if (line.progress !== null) progress.value = line.progress;
  item.querySelector('[data-action="cancel"]').hidden = !line.can_cancel;
  item.querySelector('[data-action="retry"]').hidden = !line.can_retry;
}

function set(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

async function refresh() {
  clearTimeout(timer);
  const mine = ++asked;
  let busy = false;
  try {
    const response = await fetch(main.dataset.stateUrl, { headers });
    // An answer that was overtaken by a later one is old.
    if (response.ok && mine === asked) busy = show(await response.json());
  } catch {
    // The server is away: the next look may find it.
  }
  if (mine === asked && !document.hidden) timer = setTimeout(refresh, busy ? SOON : LATER);
}

async function send(form) {
  const body = new FormData(form);
  let response;
  try {
    response = await fetch(form.action, { method: "POST", body, headers });
  } catch {
    complain(["The server does not answer. Try again."]);
    return;
  }
  if (!response.headers.get("Content-Type").includes("json")) {
    // The server has a page of its own to show.
    form.submit();
    return;
  }
  const answer = await response.json();
  complain(answer.errors || []);
  asked += 1;
  if (response.ok) show(answer);
  refresh();
}

function complain(texts) {
  errors.replaceChildren(
    ...texts.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }),
  );
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.target);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
document.getElementById("refresh").hidden = true;
refresh();
