"use strict";
// All data come from the API that the commands use, and are inserted into the page as text, never as markup.

const LOG_TAIL = 256 * 1024;       // bytes of a log that are shown of what was there before
const MAX_LOG = 2 * 1024 * 1024;  // characters of a log that are kept in the page
const PAGE_SIZE = 50;               // builds at a time
const FINAL_STATES = ["success", "failure", "cancelled", "lost"];

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// ---- requests

class ApiError extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

let token = null;
try { token = sessionStorage.getItem("rouse-token"); } catch { /* no storage: kept in memory */ }
let tokenDialog = null;      // the dialog, while it is open
let tokenDeclined = false;   // the user has closed the dialog: only a button opens it again
let clockSkew = 0;           // the master's clock less this one's, ms

function askToken(why) {
  tokenDialog ??= new Promise((resolve) => {
    $("ask-why").textContent = why;
    $("ask-token").value = "";
    const close = (given) => {
      $("ask-form").onsubmit = $("ask-no").onclick = $("ask").oncancel = null;
      $("ask").close();
      tokenDialog = null;
      tokenDeclined = !given;
      $("enter-token").hidden = given;
      resolve(given);
    };
    $("ask-no").onclick = () => close(false);
    $("ask").oncancel = (event) => { event.preventDefault(); close(false); };
    $("ask-form").onsubmit = (event) => {
      event.preventDefault();
      const text = $("ask-token").value.trim();
      if (!/^[\x21-\x7e]+$/.test(text)) { $("ask-why").textContent = "This is not a token: expected one word of ASCII characters."; return; }
      token = text;
      try { sessionStorage.setItem("rouse-token", text); } catch { /* in memory only */ }
      close(true);
    };
    $("ask").showModal();
  });
  return tokenDialog;
}

async function request(path, options = {}) {
  const acts = options.method === "POST";
  // A proxy may have told the master who this is: nobody is asked for a token before the master wants one.
  let why = null;
  for (;;) {
    if (why !== null) {
      if ((tokenDeclined && !acts) || !await askToken(why)) throw new ApiError("this needs the master's token", 401);
    }
    const used = token;
    const headers = { ...options.headers };
    if (used) headers.Authorization = `Bearer ${used}`;
    const response = await fetch(path, { cache: "no-store", ...options, headers });
    const date = Date.parse(response.headers.get("date") ?? "");
    // The header has whole seconds, and the response took a while to arrive.
    if (!Number.isNaN(date)) clockSkew = Math.abs(date - Date.now()) > 3000 ? date - Date.now() : 0;
    if (response.ok) return response;
    if (response.status === 401) {
      const needed = acts ? "Changing something requires the token." : "This requires the token of the master.";
      why = token !== used ? null : used ? "The master did not accept this token." : needed;
      continue;
    }
    let message = `${path}: the master answered ${response.status}`;
    try { message = (await response.json()).error ?? message; } catch { /* not ours: from a proxy */ }
    throw new ApiError(message, response.status);
  }
}

const get = async (path) => (await request(path)).json();

let messageTimer;
function showMessage(text) {
  $("message").textContent = text;
  clearTimeout(messageTimer);
  messageTimer = setTimeout(() => { $("message").textContent = ""; }, 6000);
}

async function post(path, done) {
  try {
    await request(path, { method: "POST" });
    showMessage(done);
    pollers.journal();
  } catch (error) {
    showMessage(error instanceof ApiError ? error.message : "The master cannot be reached.");
  }
}

// ---- times and sizes

// As rouse_shared::duration::rough prints it: 42s, 1h30m, 3d4h.
function formatDuration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  let rest = Math.max(0, Math.floor(seconds));
  const first = units.findIndex(([, size]) => rest >= size);
  if (first < 0) return "0s";
  let text = "";
  for (const [name, size] of units.slice(first, first + 2)) {
    if (rest >= size) text += `${Math.floor(rest / size)}${name}`;
    rest %= size;
  }
  return text;
}

function relativeText(time) {
  const past = (Date.now() + clockSkew - Date.parse(time.dateTime)) / 1000;
  switch (time.dataset.as) {
    case "ago": return past < 3 ? "now" : `${formatDuration(past)} ago`;
    case "in": return past > 0 ? "now" : `in ${formatDuration(-past)}`;
    default: return formatDuration(past);
  }
}

// A moment as "5 s ago", as "in 5 s", or as the time since then ("for"); kept up to date.
function timeElement(moment, as) {
  if (!moment) return null;
  const time = el("time", { datetime: moment, "data-as": as, title: new Date(moment).toLocaleString() });
  time.textContent = relativeText(time);
  return time;
}

const durationBetween = (from, to) => from && (to ? el("span", { class: "nowrap num" }, formatDuration((Date.parse(to) - Date.parse(from)) / 1000)) : timeElement(from, "for"));

function formatBytes(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  const power = Math.min(4, Math.floor(Math.log2(bytes) / 10));
  return `${(bytes / 1024 ** power).toFixed(bytes / 1024 ** power < 10 ? 1 : 0)} ${["", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

const humanize = (name) => name.replaceAll("_", " ");
const stateBadge = (name) => el("span", { class: `state ${name}` }, humanize(name));
const buildPath = (id) => `/api/builds/${encodeURIComponent(id)}`;
const buildLink = (id, ...children) => el("a", { href: `#build/${encodeURIComponent(id)}` }, ...children);
const secondary = (...children) => el("div", { class: "soft small" }, ...children);

// ---- tables

// Updates a table to the rows of `items`. Unchanged rows stay, and so do the focus and a selection.
function renderTable(id, heads, items, key, cells, nothing) {
  const table = $(id);
  if (!table.tHead) {
    table.append(el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads.map((head) => el("th", { scope: "col", role: "columnheader" }, head)))));
    table.append(el("tbody", { role: "rowgroup" }));
    table.after(el("p", { class: "soft" }));
  }
  table.nextElementSibling.textContent = nothing;
  table.hidden = items.length === 0;
  table.nextElementSibling.hidden = items.length > 0;
  const body = table.tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  items.forEach((item, index) => {
    const name = key(item);
    const row = old.get(name) ?? el("tr", { role: "row", "data-key": name });
    old.delete(name);
    cells(item, row).forEach((content, at) => {
      const cell = at === 0
        ? el("th", { scope: "row", role: "rowheader" }, content)
        : el("td", { role: "cell", "data-label": heads[at] }, el("div", { class: heads[at] === "Actions" || heads[at] === "Log" ? "tight" : null }, content));
      if (at > 0 && !cell.firstChild.hasChildNodes()) cell.className = "none";
      if (!row.cells[at]) row.append(cell);
      else if (!row.cells[at].isEqualNode(cell)) row.cells[at].replaceWith(cell);
    });
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
  });
  for (const row of old.values()) row.remove();
}

const WORKER_COLUMNS = ["Worker", "State", "Builds", "Host", "Load", "Last heard", "Problem", "Actions"];
const BUILD_COLUMNS = ["Build", "State", "Worker", "Age", "Took", "Reason"];
const QUEUE_COLUMNS = ["Build", "Waits", "Priority", "Reason"];
const HOST_COLUMNS = ["Host", "State", "Worker", "Provider", "Age", "Cost", "Reason", "Actions"];
const AUDIT_COLUMNS = ["Difference", "Provider", "Machine", "Host", "Reason"];
const ATTEMPT_COLUMNS = ["Attempt", "State", "Worker", "Host", "Assigned", "Took", "Reason"];
const STEP_COLUMNS = ["Step", "State", "Started", "Took", "Log"];

const model = { workers: [], queue: [], builds: [], hosts: [], audit: null, health: null, mails: [], places: [], uploads: {}, operations: new Map() };

function describeLoad(worker) {
  const { vitals, facts } = worker;
  if (!vitals) return null;
  const usage = [];
  if (vitals.memory_total) usage.push(`${Math.round(100 * vitals.memory_used / vitals.memory_total)} % of memory`);
  if (vitals.disk_total) usage.push(`${formatBytes(vitals.disk_free)} of disk free`);
  const text = Number(vitals.load).toFixed(2) + (facts?.cpus ? ` on ${facts.cpus} CPU${facts.cpus > 1 ? "s" : ""}` : "");
  return [el("span", { class: "num" }, text), usage.length ? secondary(usage.join(", ")) : null];
}

// The newest operation on a worker or a host.
function lastOperation(target) {
  const entry = model.operations.get(target);
  return entry ? secondary(`${humanize(entry.action)} by ${entry.who} `, timeElement(entry.at, "ago"), entry.note ? `: ${entry.note}` : "") : null;
}

function describeProblems(worker) {
  const parts = [];
  if (worker.state === "missing") parts.push(el("div", { class: "bad" }, "no agent has been attached for missing_timeout"));
  if (worker.last_failure) parts.push(el("div", {}, worker.last_failure));
  if (worker.unfit) parts.push(el("div", { class: "bad" }, worker.unfit));
  if (worker.refused) parts.push(el("div", { class: "bad" }, `an agent on ${worker.refused.identity || "an unknown machine"} was refused `, timeElement(worker.refused.at, "ago"), `: ${worker.refused.reason}`));
  if (worker.next_try && Date.parse(worker.next_try) > Date.now() + clockSkew) parts.push(secondary("next try ", timeElement(worker.next_try, "in")));
  return parts;
}

function describeUsage(step) {
  const parts = [];
  if (typeof step.cpu_seconds === "number") parts.push(`${step.cpu_seconds.toFixed(1)}s of CPU`);
  if (typeof step.peak_memory === "number") parts.push(`${formatBytes(step.peak_memory)} of memory`);
  return parts.length ? secondary(parts.join(", ")) : null;
}

function actionButtons(worker) {
  const canResume = ["paused", "draining", "backoff"].includes(worker.state);
  const wanted = canResume ? ["resume"] : ["pause", "drain"];
  return wanted.map((name) => el("button", { type: "button", "data-do": name, "data-worker": worker.name, "aria-label": `${name} ${worker.name}` }, name));
}

function countByState(items) {
  const by = new Map();
  for (const { state } of items) by.set(state, (by.get(state) ?? 0) + 1);
  return [...by].map(([name, n]) => `${n} ${humanize(name)}`).join(", ");
}

const FEW = 24;                   // workers that are all shown; with more, only their templates are, until one is opened
const toggled = new Map();        // whether the user has opened or closed a template

// The workers that the search selects, and the templates that have several of them.
function groupWorkers(words) {
  const text = (w) => [w.name, w.template, w.state, w.kind, w.provider, w.host, ...Object.entries(w.properties).map(([k, v]) => `${k}=${v}`)].join(" ").toLowerCase();
  const shown = words.length ? model.workers.filter((w) => { const all = text(w); return words.every((word) => all.includes(word)); }) : model.workers;
  const templates = new Map();
  for (const worker of shown) {
    const name = worker.template ?? "";
    if (!templates.has(name)) templates.set(name, []);
    templates.get(name).push(worker);
  }
  const items = [];
  for (const [name, members] of templates) {
    if (members.length === 1) { items.push(members[0]); continue; }
    const open = toggled.get(name) ?? shown.length <= FEW;
    items.push({ group: name, members, open });
    if (open) items.push(...members);
  }
  return { items, shown };
}

function groupCells({ group, members, open }, row) {
  row.className = "group";
  const limit = members.every((w) => w.max_builds !== null) ? ` of ${members.reduce((sum, w) => sum + w.max_builds, 0)}` : "";
  const troubled = members.filter((w) => ["missing", "backoff"].includes(w.state) || w.unfit).length;
  return [
    el("button", { type: "button", "aria-expanded": String(open), "data-group": group }, group || "no longer in the configuration"),
    `${members.length} workers: ${countByState(members)}`,
    el("span", { class: "nowrap num" }, `${members.reduce((sum, w) => sum + w.running, 0)}${limit}`),
    null, null, null, troubled ? el("span", { class: "bad" }, `${troubled} with a problem`) : null, null,
  ];
}

function renderWorkers() {
  const words = $("find-worker").value.toLowerCase().split(/\s+/).filter(Boolean);
  const { items, shown } = groupWorkers(words);
  $("workers-count").textContent = words.length ? `${shown.length} of ${model.workers.length}` : countByState(model.workers);
  renderTable("workers", WORKER_COLUMNS, items, (w) => (w.group === undefined ? w.name : `template ${w.group}`), (w, row) => w.group !== undefined ? groupCells(w, row) : [
    [w.name, secondary([w.provider ?? w.kind, ...Object.entries(w.properties).map(([k, v]) => `${k}=${v}`)].join(" · "))],
    [stateBadge(w.state), secondary("for ", timeElement(w.since, "for"))],
    el("span", { class: "nowrap num" }, `${w.running}${w.max_builds === null ? "" : ` of ${w.max_builds}`}`),
    [w.host ? el("code", {}, w.host) : w.facts?.hostname, w.agent_version ? secondary(`agent ${w.agent_version}`) : null],
    describeLoad(w),
    timeElement(w.last_heard, "ago"),
    [...describeProblems(w), lastOperation(w.name)],
    actionButtons(w),
  ], words.length ? "No worker matches the search." : "The configuration has no workers.");
}

const QUEUE_SHOWN = 20; // queued builds with their reason

function renderQueue() {
  $("queue-section").hidden = model.queue.length === 0;
  $("queue-count").textContent = model.queue.length > QUEUE_SHOWN ? `the newest ${QUEUE_SHOWN} of the builds that wait` : `${model.queue.length} waiting`;
  renderTable("queue", QUEUE_COLUMNS, model.queue.slice(0, QUEUE_SHOWN), (b) => b.id, (b) => [
    buildLink(b.id, `${b.id} ${b.name}`), timeElement(b.created, "for"), String(b.priority),
    [b.why?.sentence, b.why?.next_try ? secondary("next try ", timeElement(b.why.next_try, "in")) : null],
  ], "");
}

function renderBuilds() {
  renderTable("builds", BUILD_COLUMNS, model.builds, (b) => b.id, (b) => [
    buildLink(b.id, `${b.id} ${b.name}`),
    stateBadge(b.state),
    [b.worker, b.attempts > 1 ? secondary(`attempt ${b.attempts}`) : null],
    timeElement(b.created, "ago"),
    durationBetween(b.started, b.finished),
    b.reason,
  ], "No builds in this state.");
  document.title = `rouse ${model.health?.master ?? ""}`.trim();
  $("more").hidden = model.builds.length < wantedBuilds;
}

function renderHosts() {
  const costs = model.hosts.filter((h) => h.cost !== null).reduce((sum, h) => sum + h.cost, 0);
  $("hosts-count").textContent = countByState(model.hosts) + (costs > 0 ? `; $ ${costs.toFixed(2)} so far` : "");
  renderTable("hosts", HOST_COLUMNS, model.hosts, (h) => h.id, (h) => [
    [el("code", {}, h.id), h.handle && h.handle !== h.id ? secondary(h.handle) : null],
    [stateBadge(h.state), h.suspended_since ? secondary("for ", timeElement(h.suspended_since, "for")) : null],
    h.worker,
    h.provider,
    timeElement(h.created, "for"),
    h.cost === null ? null : el("span", { class: "num" }, `$ ${h.cost.toFixed(3)}`),
    [h.why, h.build ? secondary("started for build ", buildLink(h.build, h.build)) : null, lastOperation(h.id)],
    el("button", { type: "button", "data-host": h.id, "aria-label": `terminate ${h.id}` }, "terminate"),
  ], "No hosts.");
}

function terminationText(host) {
  const [first, ...others] = host.builds;
  let builds = "No build runs on it.";
  if (first) {
    builds = others.length
      ? `Builds ${host.builds.join(", ")} run on it and are retried elsewhere. This does not count as one of their retries.`
      : `Build ${first} runs on it and is retried elsewhere. This does not count as one of its retries.`;
  }
  return `Terminate host ${host.id} of worker ${host.worker} now?\n\n${builds} The worker stays in use.`;
}

function renderAudit() {
  const { audit } = model;
  renderTable("audit", AUDIT_COLUMNS, audit?.differences ?? [], (d) => [d.kind, d.provider, d.handle, d.host].join(" "), (d) => [
    stateBadge(d.kind), d.provider, d.handle, d.host ? el("code", {}, d.host) : null, [d.why, d.owner ? secondary(`belongs to ${d.owner}`) : null],
  ], "");
  if (!audit) return;
  const differ = audit.differences.length;
  const verdict = differ
    ? `${differ} ${differ > 1 ? "differences" : "difference"} between the ledger and the providers. Run “rouse audit --fix” to correct them. Checked `
    : `The ledger (${audit.hosts} hosts) and the providers' lists (${audit.listed} machines) agree. Checked `;
  $("audit-summary").replaceChildren(verdict, timeElement(audit.at, "ago"));
}

function renderAttention() {
  const items = [];
  if (model.health?.error) items.push([model.health.error]);
  for (const place of model.places) {
    if (place.state !== "pausing") continue;
    items.push([el("strong", {}, place.name), ` (${place.provider}) `, stateBadge(place.state), " for ", timeElement(place.since, "for"), ": no hosts are started there; builds wait. ", place.reason ?? "", " Next probe ", timeElement(place.next_probe, "in")]);
  }
  for (const w of model.workers) {
    if (["missing", "backoff"].includes(w.state)) {
      items.push([el("strong", {}, w.name), " ", stateBadge(w.state), " for ", timeElement(w.since, "for"), w.last_failure ? `: ${w.last_failure}` : ""]);
    }
  }
  for (const d of model.audit?.differences ?? []) items.push([stateBadge(d.kind), ` ${d.provider} ${d.handle ?? d.host ?? ""}: ${d.why}`]);
  if (model.uploads.trouble) items.push([`the logs of ${model.uploads.waiting} ended builds are still on the master's disk: ${model.uploads.trouble}`]);
  if (model.mails.length) {
    const error = model.mails.find((m) => m.error)?.error;
    items.push([`${model.mails.length} mail${model.mails.length > 1 ? "s are" : " is"} waiting for the relay${error ? `: ${error}` : ""}`]);
  }
  $("attention").hidden = items.length === 0;
  $("attention-list").replaceChildren(...items.map((item) => el("li", {}, item)));
}

// ---- polling

let wantedBuilds = PAGE_SIZE;

// Only one request at a time, and none sooner than 400 ms after the last one, however many changes come.
function throttled(work) {
  let busy = false;
  let again = false;
  return async function run() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      await work();
      onPollOk();
    } catch (error) {
      onPollError(error);
    }
    await sleep(400);
    busy = false;
    if (again) { again = false; run(); }
  };
}

let journalRefusedTo = null; // a token that may not read the journal

const pollers = {
  journal: throttled(async () => {
    // Nobody is asked for a token because of it.
    if (!token || token === journalRefusedTo) return;
    const used = token;
    try {
      const entries = await get("/api/journal?limit=200");
      model.operations = new Map(entries.reverse().filter((entry) => entry.target).map((entry) => [entry.target, entry]));
      if (model.workers.length) renderWorkers();
      if (model.hosts.length) renderHosts();
    } catch (error) {
      if (error.status !== 403) throw error;
      journalRefusedTo = used;
    }
  }),
  workers: throttled(async () => { model.workers = await get("/api/workers"); renderWorkers(); renderAttention(); }),
  hosts: throttled(async () => { model.hosts = await get("/api/hosts"); renderHosts(); }),
  builds: throttled(async () => {
    const filter = $("filter").value;
    model.builds = await get(`/api/builds?limit=${wantedBuilds}${filter ? `&state=${filter}` : ""}`);
    renderBuilds();
  }),
  queue: throttled(async () => {
    const queue = await get(`/api/builds?limit=${QUEUE_SHOWN + 1}&state=queued`);
    for (const build of queue.slice(0, QUEUE_SHOWN)) {
      try {
        build.why = await get(`${buildPath(build.id)}/why`);
      } catch (error) {
        if (!(error instanceof ApiError) || error.status === 401) throw error;
      }
    }
    model.queue = queue;
    renderQueue();
    // Each reason is a request.
    await sleep(2000);
  }),
  health: throttled(async () => {
    try {
      model.health = await get("/healthz");
      $("master").textContent = `· ${model.health.master}`;
      $("master").title = `version ${model.health.version}`;
    } catch (error) {
      if (error.status !== 503) throw error;
      model.health = { ...model.health, error: error.message };
    }
    model.mails = await get("/api/mails");
    model.uploads = await get("/api/log-uploads");
    model.places = await get("/api/places");
    renderAttention();
  }),
  build: throttled(async () => { if (route.id) await loadBuild(route.id); }),
};

async function audit() {
  $("check").disabled = true;
  $("audit-summary").textContent = "Querying the providers …";
  try {
    model.audit = await get("/api/audit");
    model.audit.at = new Date(Date.now() + clockSkew).toISOString();
    renderAudit();
    renderAttention();
  } catch (error) {
    $("audit-summary").textContent = error instanceof ApiError ? error.message : "The master cannot be reached.";
  }
  $("check").disabled = false;
}

function refresh() {
  pollers.health();
  if (route.id) { pollers.build(); return; }
  pollers.journal();
  pollers.workers();
  pollers.hosts();
  pollers.builds();
  pollers.queue();
}

// ---- the event stream, and polling without it

let streaming = false;
let unreachable = false;

function renderConnection() {
  $("connection").textContent = unreachable ? "the master does not answer; retrying" : streaming ? "live" : "updated every 5 s";
  $("connection").className = unreachable ? "bad" : "";
}

function onPollOk() { unreachable = false; renderConnection(); }

function onPollError(error) {
  if (error.name === "AbortError") return;
  if (error instanceof ApiError) {
    if (error.status === 401) $("enter-token").hidden = false;
    $("connection").textContent = error.message;
    $("connection").className = "bad";
    return;
  }
  unreachable = true;
  renderConnection();
}

// A browser opens at most six connections to a master for all of its tabs. Therefore a hidden tab closes its streams.
const streams = new Set();
let hiding;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(() => { for (const stream of streams) stream.abort(); }, 20_000);
  else refresh();
});
const whenVisible = () => new Promise((resolve) => {
  if (!document.hidden) { resolve(); return; }
  const look = () => { if (!document.hidden) { document.removeEventListener("visibilitychange", look); resolve(); } };
  document.addEventListener("visibilitychange", look);
});

// Reads the body of a response piece by piece. Aborts if the master is silent for longer than `patience`, if given.
async function readStream(path, headers, abort, patience, onResponse, onBytes) {
  streams.add(abort);
  let timer;
  const resetTimer = () => {
    clearTimeout(timer);
    if (patience) timer = setTimeout(() => abort.abort(), patience);
  };
  try {
    const response = await request(path, { headers, signal: abort.signal });
    onResponse(response);
    const reader = response.body.getReader();
    for (resetTimer(); ; resetTimer()) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes(value);
    }
  } finally {
    clearTimeout(timer);
    streams.delete(abort);
  }
}

function onChange(kind, data) {
  if (kind === "build") {
    if (route.id) { if (data.id === route.id) pollers.build(); return; }
    pollers.builds();
    pollers.workers();
    pollers.queue();
  } else if (kind === "worker" || kind === "host") {
    if (route.id) { pollers.build(); return; }
    pollers.workers();
    if (kind === "host") pollers.hosts();
  } else {
    refresh();
  }
}

async function followEvents() {
  let pause = 1000;
  for (;;) {
    await whenVisible();
    const decoder = new TextDecoder();
    let rest = "";
    try {
      // The master sends something at least every 15 s.
      await readStream("/api/events", {}, new AbortController(), 40_000, () => {
        streaming = true;
        pause = 1000;
        onPollOk();
        refresh();
      }, (bytes) => {
        rest += decoder.decode(bytes, { stream: true });
        const whole = rest.split("\n\n");
        rest = whole.pop();
        for (const event of whole) {
          const kind = /^event: ?(.*)$/m.exec(event)?.[1];
          const data = /^data: ?(.*)$/m.exec(event)?.[1];
          if (kind && data) onChange(kind, JSON.parse(data));
        }
      });
    } catch (error) {
      if (!document.hidden) onPollError(error);
    }
    streaming = false;
    await sleep(pause);
    pause = Math.min(pause * 2, 15_000);
  }
}

// No event reports loads, heartbeats or the end of a step.
let ticks = 0;
setInterval(() => {
  ticks += 1;
  if (document.hidden || tokenDialog || (tokenDeclined && !token)) return;
  for (const time of document.querySelectorAll("time[data-as]")) {
    const text = relativeText(time);
    if (time.textContent !== text) time.textContent = text;
  }
  if (route.id && ticks % 2 === 0 && currentBuild && !FINAL_STATES.includes(currentBuild.state)) pollers.build();
  if (ticks % (streaming ? 15 : 5) === 0) refresh();
}, 1000);

// ---- one build

let route = {};       // what the address asks for: id, attempt, step
let currentBuild = null; // the build on display
let currentLog = null;       // its log

function shellQuote(argument) {
  return /^[\w@%+=:,./-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", "'\\''")}'`;
}

function describeOutcome(step) {
  const parts = [];
  if (step.exit_code) parts.push(`exit code ${step.exit_code}`);
  if (step.signal !== null && step.signal !== undefined) parts.push(`signal ${step.signal}`);
  if (step.reason) parts.push(step.reason);
  return parts.length ? secondary(parts.join(", ")) : null;
}

// The step whose log is shown by default: the running one, otherwise the one that failed, otherwise the last that ran.
function stepToShow(steps) {
  const by = (...states) => steps.find((step) => states.includes(step.state));
  const ran = steps.filter((step) => step.log_length !== null && step.state !== "skipped");
  return by("running") ?? by("failure", "timed_out", "silent", "stopped", "not_started", "lost") ?? ran.at(-1) ?? steps[0];
}

async function loadBuild(id) {
  let build;
  let why = null;
  try {
    build = await get(buildPath(id));
    if (!FINAL_STATES.includes(build.state)) why = await get(`${buildPath(id)}/why`);
  } catch (error) {
    if (error.status !== 404 || route.id !== id) throw error;
    $("build-title").textContent = error.message;
    return;
  }
  if (route.id !== id) return;
  currentBuild = build;
  const ended = FINAL_STATES.includes(build.state);
  $("build-title").textContent = `Build ${build.id}: ${build.name}`;
  document.title = `${build.state}: build ${build.id}, rouse`;
  $("build-state").replaceChildren(stateBadge(build.state));
  $("cancel").hidden = ended || build.cancel_requested;
  $("build-why").hidden = !why;
  if (why) $("build-why").replaceChildren(why.sentence, ...(why.next_try ? [" Next try ", timeElement(why.next_try, "in"), "."] : []));
  $("build-reason").hidden = !build.reason;
  $("build-reason").textContent = build.reason ?? "";
  const wanted = build.wanted_worker ?? Object.entries(build.where ?? {}).map(([k, v]) => `${k}=${v}`).join(", ");
  const facts = [
    ["Worker", build.worker], ["Requires", wanted || "any worker"], ["Submitted", timeElement(build.created, "ago")], ["Submitter", build.submitter],
    ["Waited", durationBetween(build.created, build.started ?? build.finished)], ["Took", durationBetween(build.started, build.finished)],
    ["Priority", String(build.priority)], ["Attempts", `${build.attempts} (up to ${build.retries} retries)`],
    ["Timeout", build.timeout === null ? null : formatDuration(build.timeout)],
    ["Cancellation", build.cancel_requested && !ended ? "requested" : null],
    ["Logs", build.logs_deleted ? ["deleted by retention ", timeElement(build.logs_deleted, "ago")] : build.upload_trouble ?? (build.logs_store ? `in ${build.logs_store}` : null)],
    ["Kept", build.keep ? "never deleted" : null],
  ];
  $("build-facts").replaceChildren(...facts.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

  drawBuildLine(build);
  $("build-evidence").hidden = build.evidence.length === 0;
  if ($("evidence").childElementCount !== build.evidence.length) {
    $("evidence").replaceChildren(...build.evidence.map((e) => el("details", {},
      el("summary", {}, el("code", {}, e.host), ` of ${e.worker}, `, timeElement(e.at, "ago"), `: ${e.why}`),
      e.console ? el("pre", { tabindex: "0" }, e.console) : el("p", { class: "soft" }, "No console output was kept."))));
  }

  const attempt = build.tries.find((t) => t.number === route.attempt) ?? build.tries.at(-1);
  const at = (t, step) => `#build/${encodeURIComponent(id)}/${t}${step ? `/${step}` : ""}`;
  $("build-tries").hidden = build.tries.length === 0;
  renderTable("tries", ATTEMPT_COLUMNS, build.tries, (t) => String(t.number), (t, row) => {
    row.className = build.tries.length > 1 && t === attempt ? "chosen" : "";
    return [
      el("a", { href: at(t.number), "aria-current": t === attempt ? "true" : null }, `Attempt ${t.number}`), stateBadge(t.state), t.worker,
      t.host ? el("code", {}, t.host) : null, timeElement(t.ordered, "ago"), durationBetween(t.started, t.ended),
      [t.reason, t.limits_not_enforced ? secondary(t.limits_not_enforced) : null],
    ];
  }, "");
  const steps = attempt?.steps ?? build.steps.map((s) => ({ number: s.number, name: s.name, state: ended ? "skipped" : "pending", log_length: null }));
  const step = attempt && (steps.find((s) => s.number === route.step) ?? stepToShow(steps));
  $("steps-title").textContent = build.tries.length > 1 ? `Steps of attempt ${attempt.number}` : "Steps";
  renderTable("steps", STEP_COLUMNS, steps, (s) => String(s.number), (s, row) => {
    row.className = s === step ? "chosen" : "";
    const run = build.steps[s.number - 1]?.run ?? [];
    const command = run.map(shellQuote).join(" ");
    const begun = attempt && !["pending", "skipped"].includes(s.state);
    return [
      [`${s.number}. ${s.name}`, s.name === command ? null : el("div", { class: "small" }, el("code", { class: "command", title: command }, command))],
      [stateBadge(s.state), describeOutcome(s)],
      timeElement(s.started, "ago"),
      s.duration === null || s.duration === undefined ? (s.state === "running" ? timeElement(s.started, "for") : null) : [el("span", { class: "nowrap num" }, s.duration < 10 ? `${s.duration.toFixed(1)}s` : formatDuration(s.duration)), describeUsage(s)],
      begun ? [el("a", { href: at(attempt.number, s.number), "aria-current": s === step ? "true" : null }, s.log_length === null ? "follow" : formatBytes(s.log_length)),
        s.log_thrown_away ? secondary(`${formatBytes(s.log_thrown_away)} more were dropped, because the log exceeded max_log_size`) : null, s.log_lacks_end ? secondary("the end of the log is lost") : null] : null,
    ];
  }, "");
  $("log").hidden = !step;
  if (step) showLog(id, attempt.number, step);
}

// ---- its timeline

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const formatShort = (ms) => (ms < 10_000 ? `${(ms / 1000).toFixed(1)}s` : formatDuration(ms / 1000));

// What a build did when: waiting, assigned to a worker, and each step, as pieces with their class, begin and end.
function buildPieces(build, now) {
  const pieces = [];
  const add = (row, kind, from, to, text) => { if (from < to) pieces.push({ row, kind, from, to, text: `${text} ${formatShort(to - from)}` }); };
  let since = Date.parse(build.created);
  build.tries.forEach((attempt, row) => {
    const ordered = Date.parse(attempt.ordered);
    const ended = attempt.ended ? Date.parse(attempt.ended) : now;
    const started = attempt.started ? Date.parse(attempt.started) : ended;
    add(row, "waits", since, ordered, "queued");
    add(row, "assigned", ordered, started, `assigned to ${attempt.worker}`);
    for (const step of attempt.steps) {
      if (!step.started) continue;
      const begun = Date.parse(step.started);
      const kind = ["success", "running"].includes(step.state) ? step.state : "failure";
      add(row, kind, begun, typeof step.duration === "number" ? begun + 1000 * step.duration : ended, `step ${step.number} ${step.name}`);
    }
    since = ended;
  });
  if (!build.finished && !build.tries.some((attempt) => !attempt.ended)) add(build.tries.length, "waits", since, now, "queued");
  return pieces;
}

function drawBuildLine(build) {
  const pieces = buildPieces(build, Date.now() + clockSkew);
  const [from, to] = [Math.min(...pieces.map((p) => p.from)), Math.max(...pieces.map((p) => p.to))];
  $("build-line").hidden = pieces.length === 0;
  if (!pieces.length) { $("build-line").replaceChildren(); return; }
  const rows = Math.max(...pieces.map((p) => p.row)) + 1;
  const at = (time) => 1000 * (time - from) / (to - from);
  const shown = `Timeline of the build, ${formatShort(to - from)}: ${pieces.slice(0, 40).map((p) => p.text).join(", ")}`;
  $("build-line").replaceChildren(svg("svg", { viewBox: `0 0 1000 ${rows * 20 + 18}`, role: "img", "aria-label": shown },
    ...pieces.map((p) => svg("rect", { class: p.kind, x: at(p.from), y: p.row * 20, width: Math.max(2, at(p.to) - at(p.from)), height: 16 }, svg("title", {}, p.text))),
    svg("text", { x: 0, y: rows * 20 + 12 }, new Date(from).toLocaleTimeString()),
    svg("text", { x: 1000, y: rows * 20 + 12, "text-anchor": "end" }, formatShort(to - from))));
}

// ---- its log

function stopLog() {
  if (currentLog) { currentLog.over = true; currentLog.abort.abort(); }
  currentLog = null;
}

function showLog(id, attempt, step) {
  const key = `${id}/${attempt}/${step.number}`;
  if (currentLog?.key === key) return;
  stopLog();
  $("log-title").textContent = `Log of step ${step.number}: ${step.name}`;
  $("output").replaceChildren();
  findSoon();
  $("log-cut").hidden = true;
  currentLog = {
    key, path: `${buildPath(id)}/steps/${step.number}/log`, attempt, file: `build-${id}-${attempt}-${step.number}.log`,
    offset: null, length: 0, pending: "", skipsPartialLine: false, style: {}, over: false, abort: null, decoder: new TextDecoder(),
  };
  followLog(currentLog);
}

async function followLog(log) {
  let pause = 1000;
  while (!log.over) {
    log.abort = new AbortController();
    await whenVisible();
    if (log.over) return;
    $("log-state").textContent = "following";
    const from = log.offset === null ? `bytes=-${LOG_TAIL}` : `bytes=${log.offset}-`;
    try {
      await readStream(`${log.path}?follow=1&attempt=${log.attempt}`, { Range: from }, log.abort, 0, (response) => {
        if (log.offset !== null) return;
        log.offset = Number(/^bytes (\d+)-/.exec(response.headers.get("content-range") ?? "")?.[1] ?? 0);
        log.skipsPartialLine = log.offset > 0;
      }, (bytes) => {
        if (log.over) return;
        pause = 1000;
        log.offset += bytes.length;
        appendToLog(log, log.decoder.decode(bytes, { stream: true }));
      });
      if (log.over) return;
      appendToLog(log, log.decoder.decode(), true);
      $("log-state").textContent = log.length ? "complete" : "empty";
      pollers.build();
      return;
    } catch (error) {
      if (log.over) return;
      if (error instanceof ApiError) { $("log-state").textContent = error.message; if (error.status !== 503) return; }
      else $("log-state").textContent = "interrupted; retrying";
    }
    await sleep(pause);
    pause = Math.min(pause * 2, 15_000);
  }
}

// What the sequence for colours with these numbers makes of a style: colours of the basic sixteen, as classes.
function styleAfter(style, numbers) {
  const codes = numbers === "" ? [0] : numbers.split(/[;:]/).map(Number);
  let next = { ...style };
  for (let i = 0; i < codes.length; i += 1) {
    const code = codes[i];
    if (code === 0) next = {};
    else if (code === 1) next.bold = "bold";
    else if (code === 3) next.italic = "italic";
    else if (code === 4) next.underline = "underline";
    else if (code === 22) next.bold = undefined;
    else if (code === 23) next.italic = undefined;
    else if (code === 24) next.underline = undefined;
    else if (code === 39) next.colour = undefined;
    else if (code === 49) next.back = undefined;
    else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) next.colour = `c${code % 10}`;
    else if ((code >= 40 && code <= 47) || (code >= 100 && code <= 107)) next.back = `b${code % 10}`;
    else if (code === 38 || code === 48) i += codes[i + 1] === 5 ? 2 : 4; // of 256 or more: not shown
  }
  return next;
}

// The text with colours, as nodes. Whatever it says, it becomes text within elements with a class of ours.
function colouredNodes(log, text) {
  const nodes = [];
  text.split(/\x1b\[([\d;:]*)m/).forEach((part, index) => {
    if (index % 2) { log.style = styleAfter(log.style, part); return; }
    if (!part) return;
    const classes = Object.values(log.style).filter(Boolean).join(" ");
    nodes.push(classes ? el("span", { class: classes }, part) : document.createTextNode(part));
  });
  return nodes;
}

// Appends to the log as text with colours, without other control sequences.
function appendToLog(log, text, last = false) {
  let all = log.pending + text;
  log.pending = "";
  const open = last ? null : /(?:\r|\x1b(?:\[[0-9;:?]{0,64}|\][^\x07\x1b]{0,200})?)$/.exec(all);
  if (open) {
    log.pending = open[0];
    all = all.slice(0, open.index);
  }
  all = all.replace(/\x1b(?:\[(?![\d;:]*m)[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][0-9A-B]|[=>])/g, "").replace(/\r+\n?/g, "\n");
  if (log.skipsPartialLine) {
    // It begins within a line.
    all = all.slice(all.indexOf("\n") + 1);
    log.skipsPartialLine = false;
    $("log-cut").hidden = false;
  }
  if (!all) return;
  const pre = $("output");
  const atEnd = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
  pre.append(...colouredNodes(log, all));
  log.length += all.length;
  while (log.length > MAX_LOG && pre.childNodes.length > 1) {
    log.length -= pre.firstChild.textContent.length;
    pre.firstChild.remove();
    $("log-cut").hidden = false;
  }
  if (atEnd) pre.scrollTop = pre.scrollHeight;
  if ($("log-find").value) findSoon();
}

// ---- search in the log

const MAX_FOUND = 10_000;
const search = { ranges: [], at: -1 };
let searchTimer;
function findSoon() { clearTimeout(searchTimer); searchTimer = setTimeout(findInLog, 200); }

// Finds the text in what is shown of the log, across colours, without regard to case.
function findInLog() {
  const wanted = $("log-find").value.toLowerCase();
  const before = search.at;
  Object.assign(search, { ranges: [], at: -1 });
  if (wanted) {
    const walker = document.createTreeWalker($("output"), NodeFilter.SHOW_TEXT);
    const starts = [];
    const nodes = [];
    let text = "";
    for (let node = walker.nextNode(); node; node = walker.nextNode()) { starts.push(text.length); nodes.push(node); text += node.data; }
    // Letters whose lower case has another length would shift what follows.
    const lower = text.toLowerCase().length === text.length ? text.toLowerCase() : text;
    let index = 0;
    const place = (offset) => {
      while (index + 1 < starts.length && starts[index + 1] <= offset) index += 1;
      return [nodes[index], offset - starts[index]];
    };
    for (let at = lower.indexOf(wanted); at >= 0 && search.ranges.length < MAX_FOUND; at = lower.indexOf(wanted, at + wanted.length)) {
      const range = new Range();
      range.setStart(...place(at));
      const [node, offset] = place(at + wanted.length - 1);
      range.setEnd(node, offset + 1);
      search.ranges.push(range);
    }
    search.at = Math.min(Math.max(before, 0), search.ranges.length - 1);
  }
  showFound(false);
}

function showFound(scrolls) {
  const { ranges, at } = search;
  const here = ranges[at];
  $("log-found").textContent = $("log-find").value ? (here ? `${at + 1} of ${ranges.length}${ranges.length === MAX_FOUND ? " or more" : ""}` : "not found") : "";
  globalThis.CSS.highlights?.set("found", new globalThis.Highlight(...ranges));
  globalThis.CSS.highlights?.set("here", new globalThis.Highlight(...(here ? [here] : [])));
  if (!here || !scrolls) return;
  const pre = $("output");
  const [box, frame] = [here.getBoundingClientRect(), pre.getBoundingClientRect()];
  pre.scrollTop += box.top - frame.top - frame.height / 2;
}

function stepFound(by) {
  if (!search.ranges.length) return;
  search.at = (search.at + by + search.ranges.length) % search.ranges.length;
  showFound(true);
}

async function downloadLog() {
  if (!currentLog) return;
  const { path, attempt, file } = currentLog;
  try {
    const blob = await (await request(`${path}?attempt=${attempt}`)).blob();
    const address = URL.createObjectURL(blob);
    el("a", { href: address, download: file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (error) {
    showMessage(error instanceof ApiError ? error.message : "The master cannot be reached.");
  }
}

// ---- navigation and buttons

function navigate() {
  const [, id, attempt, step] = /^#build\/([^/]+)(?:\/(\d+))?(?:\/(\d+))?$/.exec(location.hash) ?? [];
  const before = route.id;
  route = id ? { id: decodeURIComponent(id), attempt: attempt && Number(attempt), step: step && Number(step) } : {};
  $("overview").hidden = !!route.id;
  $("build").hidden = !route.id;
  if (route.id !== before) {
    stopLog();
    currentBuild = null;
    $("log").hidden = true;
    for (const part of ["build-why", "build-reason", "build-tries", "build-evidence", "build-line", "cancel"]) $(part).hidden = true;
    for (const part of ["build-state", "build-facts", "evidence", "steps", "tries"]) $(part).replaceChildren();
    for (const rest of document.querySelectorAll("#steps + p, #tries + p")) rest.remove();
    $("build-title").textContent = route.id ? `Build ${route.id}` : "";
    scrollTo(0, 0);
  }
  document.title = "rouse";
  // An audit requires the token, which nobody is asked for unless they want something.
  if (!route.id && !model.audit && token) audit();
  refresh();
}

$("filter").onchange = () => { wantedBuilds = PAGE_SIZE; pollers.builds(); };
$("more").onclick = () => { wantedBuilds = Math.min(1000, wantedBuilds + 4 * PAGE_SIZE); pollers.builds(); };
$("check").onclick = audit;
$("find-worker").oninput = renderWorkers;
$("log-find").oninput = findSoon;
$("log-search").onsubmit = (event) => { event.preventDefault(); stepFound(1); };
$("log-back").onclick = () => stepFound(-1);
$("save").onclick = downloadLog;
$("enter-token").onclick = async () => { tokenDeclined = false; if (await askToken("")) { refresh(); if (!model.audit) audit(); } };
$("cancel").onclick = async () => {
  const id = route.id;
  if (confirm(`Cancel build ${id}?`)) { await post(`${buildPath(id)}/cancel`, `Build ${id} is being cancelled.`); pollers.build(); }
};
$("workers").onclick = async (event) => {
  const { do: operation, worker } = event.target.dataset;
  const { group } = event.target.dataset;
  if (group !== undefined) {
    toggled.set(group, event.target.getAttribute("aria-expanded") !== "true");
    renderWorkers();
    return;
  }
  if (!operation) return;
  if (operation === "drain" && !confirm(`Drain ${worker}? It takes no new builds, and its host ends when nothing runs on it.`)) return;
  if (operation === "pause" && !confirm(`Pause ${worker}? It takes no new builds until it is resumed.`)) return;
  await post(`/api/workers/${encodeURIComponent(worker)}/${operation}`, `${worker}: ${operation} requested.`);
  pollers.workers();
};
$("hosts").onclick = async (event) => {
  const host = model.hosts.find((h) => h.id === event.target.dataset.host);
  if (!host || !confirm(terminationText(host))) return;
  await post(`/api/hosts/${encodeURIComponent(host.id)}/terminate`, `Host ${host.id} is being terminated.`);
  pollers.hosts();
};
addEventListener("hashchange", navigate);

navigate();
followEvents();
