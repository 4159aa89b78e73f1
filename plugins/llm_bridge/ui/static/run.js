"use strict";
// The run page. Every text comes from users, logs or models: it is set as textContent, never as HTML.

const POLL_MS = 5000;
// Of a run that has ended only its state is asked for: it changes when the run is cleared.
const POLL_ENDED_MS = 10000;
const GROUPS = [
  ["Loss", /(^|\/)(loss|pg_loss|vf_loss|entropy(_loss)?)$/],
  ["Reward", /^(critic\/(score|rewards)|val-core|val-aux)\//],
  ["KL", /kl/],
  ["Response length", /^(response|prompt)_length\//],
  ["Throughput", /^(perf|timing_s)\/|tflops/],
  ["GPUs", /^gpu_use\//],
  ["Optimizer", /./],
];
const COLOURS = ["#2f7de1", "#e07b39", "#2f9e5b", "#b455c4", "#d64545", "#8a7a1f", "#1b9aaa", "#7a6ff0"];
const query = new URLSearchParams(location.search);
const main = document.getElementById("main");
const problem = document.getElementById("problem");

// ---- small helpers

function el(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name === "class") made.className = value;
    else if (name === "style") Object.assign(made.style, value);
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

function card(title, ...children) {
  return el("section", { class: "card" }, title && el("h2", {}, title), ...children);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60 ? `${s % 60} s` : ""}`.trim();
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.round((s % 86400) / 3600)} h`;
}

function number(value, digits = 4) {
  return typeof value === "number" && isFinite(value) ? String(Number(value.toPrecision(digits))) : "–";
}

const clock = (epoch) => (epoch ? new Date(epoch * 1000).toLocaleString() : "–");
const badge = (state) => el("span", { class: `badge ${/^[a-z_]+$/.test(state || "") ? state : ""}` }, state || "none");

function table(head, rows) {
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((text) => el("th", {}, text)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell) =>
      cell instanceof HTMLTableCellElement ? cell : el("td", {}, cell ?? "–")))))));
}
const right = (text, best) => el("td", { class: best ? "n best" : "n" }, text);

async function get(path) {
  const answer = await fetch(path, { credentials: "same-origin", headers: { Accept: "application/json" } });
  if (answer.status === 401) throw new Error("You are not logged in to Airflow: log in, then reload this page.");
  if (answer.status === 403) throw new Error("You may not read this DAG: ask Airflow's administrators for the permission.");
  if (answer.status === 404) throw new Error("Airflow has no such run.");
  if (!answer.ok) throw new Error(`Airflow answered ${answer.status} to ${path}`);
  return answer.json();
}

// Airflow shows this page in a sandboxed iframe, which may open no window itself.
function outward(href, text) {
  const safe = /^(https?:\/\/|\/)/.test(href) ? href : "#";
  const link = el("a", { href: safe, target: "_blank", rel: "noopener noreferrer" }, text);
  link.addEventListener("click", (event) => {
    if (window.parent === window) return;
    event.preventDefault();
    const owner = window.parent.document;
    const outer = owner.createElement("a");
    outer.href = safe; outer.target = "_blank"; outer.rel = "noopener noreferrer";
    owner.body.append(outer); outer.click(); outer.remove();
  });
  return link;
}
const airflow = (path) => new URL(`..${path}`, location.href.replace(/\/runs?\b.*$/, "/")).pathname;
const here = (dag, run) => `run?${new URLSearchParams({ dag_id: dag, run_id: run })}`;

function copyButton(text) {
  const button = el("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = el("textarea", { value: text });
      document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return button;
}

// ---- light and dark: as Airflow's UI around this page, else as the system

function isDark() {
  try {
    if (window.parent !== window) {
      const outer = window.parent.document.documentElement;
      return outer.classList.contains("dark") || outer.dataset.theme === "dark";
    }
  } catch { /* another origin */ }
  const chosen = localStorage.getItem("theme");
  return chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
}
function applyTheme() {
  const dark = isDark();
  if (document.documentElement.classList.contains("dark") === dark) return;
  document.documentElement.classList.toggle("dark", dark);
  charts.rebuild();
}

// ---- charts

// A flat line gets a scale around its value.
function yRange(plot, low, high) {
  if (low === null || high === null) return [0, 1];
  const room = high > low ? (high - low) * 0.08 : Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

// As many digits as tell neighbouring ticks apart.
function tickTexts(plot, ticks, axis, space, each) {
  const largest = Math.max(...ticks.map(Math.abs));
  return ticks.map((tick) => number(tick, largest ? Math.max(3, Math.min(9, Math.ceil(Math.log10(largest / each)) + 1)) : 3));
}
const tickWidth = (plot, texts) => 22 + 6.5 * Math.max(4, ...(texts || []).map((text) => text.length));
// Steps are whole numbers.
const STEPS = Array.from({ length: 10 }, (_, power) => [1, 2, 5].map((first) => first * 10 ** power)).flat();

const charts = {
  shown: new Map(), // title -> {plot, box, key, definition}
  colours() {
    const style = getComputedStyle(document.documentElement);
    return { text: style.getPropertyValue("--quiet").trim(), line: style.getPropertyValue("--line").trim() };
  },
  // series: [{label, x, y}]; box: where a new chart goes
  show(container, title, series, time) {
    const key = JSON.stringify(series.map((one) => one.label));
    const data = uPlot.join(series.map((one) => [one.x, one.y]));
    const points = series.reduce((sum, one) => sum + one.x.length, 0);
    const describe = (box) => {
      box.dataset.points = points;
      box.setAttribute("aria-label", `${title}: ${points} points of ${series.map(({ label }) => label).join(", ")}`);
    };
    const known = this.shown.get(title);
    if (known && known.key === key && known.box.isConnected) {
      known.definition = { title, series, time };
      known.plot.setData(data);
      describe(known.box);
      return;
    }
    if (known) { known.plot.destroy(); known.box.remove(); }
    const box = el("div", { class: "chart", role: "figure" }, el("div", { class: "title" }, title));
    describe(box);
    container.append(box);
    const { text, line } = this.colours();
    const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px system-ui" };
    const plot = new uPlot({
      width: Math.max(200, box.clientWidth), height: 180,
      scales: { x: { time: Boolean(time) }, y: { range: yRange } },
      axes: [{ ...axis, size: 28, space: 60, ...(time ? {} : { incrs: STEPS }) }, { ...axis, size: tickWidth, values: tickTexts }],
      series: [{ label: time ? "time" : "step" }, ...series.map((one, n) => ({
        label: one.label, stroke: COLOURS[(one.colour ?? n) % COLOURS.length], width: 1.5, spanGaps: true,
        points: { show: one.x.length < 40 }, value: (u, v) => number(v),
      }))],
      legend: { show: true }, cursor: { drag: { x: true, y: false } },
    }, data, box);
    this.shown.set(title, { plot, box, key, definition: { title, series, time } });
    observer.observe(box);
  },
  rebuild() {
    for (const [title, { plot, box, definition }] of [...this.shown]) {
      const next = box.nextSibling, parent = box.parentElement;
      plot.destroy(); box.remove(); this.shown.delete(title);
      if (!parent) continue;
      this.show(parent, title, definition.series, definition.time);
      parent.insertBefore(this.shown.get(title).box, next);
    }
  },
};
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    for (const { plot, box } of charts.shown.values()) {
      if (box === target && Math.abs(plot.width - box.clientWidth) > 4) plot.setSize({ width: Math.max(200, box.clientWidth), height: 180 });
    }
  }
});

// One line per name and task: from its first step on, a later attempt replaces the earlier ones.
function joined(curves) {
  const lines = new Map();
  for (const { task, name, x, y } of curves) {
    const key = `${name}\n${task}`;
    const earlier = lines.get(key);
    if (!earlier || !x.length) { lines.set(key, { task, name, x, y }); continue; }
    const keep = earlier.x.findIndex((step) => step >= x[0]);
    const end = keep < 0 ? earlier.x.length : keep;
    lines.set(key, { task, name, x: [...earlier.x.slice(0, end), ...x], y: [...earlier.y.slice(0, end), ...y] });
  }
  return [...lines.values()];
}

function drawCurves(container, lines) {
  for (const [title, pattern] of GROUPS) {
    const own = lines.filter(({ name }) => GROUPS.find(([, first]) => first.test(name))[0] === title);
    if (!own.length) continue;
    let group = container.querySelector(`[data-group="${title}"]`);
    if (!group) {
      const open = title !== "Optimizer" && (title !== "Throughput" || innerWidth > 700);
      group = el("details", { class: "card", open }, el("summary", {}, el("h2", {}, title)), el("div", { class: "charts" }));
      group.dataset.group = title;
      container.append(group);
    }
    const charted = new Map();
    for (const line of own) {
      const node = /^gpu_use\/(.+)\/(\w+)$/.exec(line.name);
      const name = node ? { gpu_percent: "GPU utilisation, %", memory_gib: "GPU memory, GiB (fullest GPU)" }[node[2]] || line.name : line.name;
      const label = node ? node[1] : line.label || line.task;
      if (!charted.has(name)) charted.set(name, []);
      charted.get(name).push({ label: node && line.label ? `${line.label} ${label}` : label, x: line.x, y: line.y, colour: node ? undefined : line.colour });
    }
    for (const [name, series] of charted) charts.show(group.querySelector(".charts"), name, series, title === "GPUs");
  }
}

// ---- the sections of a run

function head(run) {
  const end = run.ended || run.now;
  const facts = [
    ["Recipe", run.recipe], ["Base model", run.base_model], ["Algorithm", run.algorithm], ["Cluster", run.cluster],
    ["Started", run.started ? new Date(run.started * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" }) : "–"], ["Duration", run.started ? duration(end - run.started) : "–"],
    ["GPU-hours", number(run.gpu_hours, 3)], ["… of them lost", number(run.lost_gpu_hours, 3)],
  ];
  return card(null,
    el("div", { class: "row" }, el("h1", {}, run.run_name || run.run_id), badge(run.state),
      outward(airflow(`/dags/${encodeURIComponent(run.dag_id)}/runs/${encodeURIComponent(run.run_id)}`), "Run in Airflow"),
      el("a", { href: "runs" }, "All runs, compare")),
    el("div", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("span", {}, name), value || "–"))),
    run.cluster_choice && el("p", { class: "quiet" }, run.cluster_choice),
    run.started_from && el("p", {}, `Started from ${run.started_from}`),
    run.changes.length > 0 && el("details", {}, el("summary", {}, `${run.changes.length} change(s) against the recipe`),
      run.changes.map((change) => el("pre", {}, change))));
}

function activity(run) {
  const active = run.attempts.filter(({ state }) => state === "queued" || state === "running");
  const lines = active.map((attempt) => {
    const { step, total, left_seconds: left, step_seconds: each } = attempt.progress;
    if (attempt.state === "queued") {
      const start = attempt.expected_start;
      return el("div", {}, badge("queued"), ` ${attempt.task}: ${attempt.name} has been in the queue for `,
        duration(run.now - attempt.submitted), attempt.reason ? `, Slurm's reason: ${attempt.reason}` : "",
        start ? `, expected to start ${start > run.now ? `in about ${duration(start - run.now)} (${clock(start)})` : "now"}` : ", Slurm has no estimate of its start");
    }
    const parts = [` ${attempt.task}: ${attempt.name} has run for ${duration(run.now - attempt.started)}`];
    if (attempt.nodes) parts.push(`on ${place(attempt)}`);
    if (step !== undefined) parts.push(total ? `step ${step} of ${total}` : `step ${step}`);
    if (each !== undefined) parts.push(`${each} s a step`);
    if (left !== undefined) parts.push(`about ${duration(left)} left`);
    return el("div", {}, badge("running"), parts.join(", "),
      total && el("div", { class: "bar" }, el("i", { style: { width: `${Math.min(100, (100 * step) / total)}%` } })));
  });
  const waiting = run.tasks.filter(({ state, task_id: id }) => ["running", "deferred", "up_for_retry", "awaiting_input"].includes(state) && !active.some(({ task }) => task === id));
  lines.push(...waiting.map((task) => el("div", {}, badge(task.state), ` ${task.task_id}, try ${task.try_number} of ${task.max_tries}`)));
  return lines.length ? card("Now", ...lines) : null;
}

// Tasks that failed and have no diagnosed attempt below: those before the first job, and those without a job.
function failures(run) {
  const failed = run.tasks.filter(({ state, task_id: id }) => state === "failed" && id !== "summary"
    && !run.attempts.some(({ task, diagnosis }) => task === id && diagnosis));
  if (failed.length) {
    return card("Failed without a job's diagnosis", ...failed.map((task) => el("div", {}, badge(task.state), " ",
      outward(airflow(task.link), task.task_id), ": its log says why. Fix the cause, then clear the task in Airflow.")));
  }
  return run.attempts.length ? null : card(null, el("div", { class: "quiet" }, "No job has been submitted yet."));
}

// Nodes and partition: which one it became, where the cluster file names several.
function place({ nodes, partition }) {
  return nodes && partition ? `${nodes} (partition ${partition})` : nodes;
}

function gantt(run) {
  const shown = run.attempts.filter(({ submitted, started }) => submitted || started);
  if (!shown.length) return null;
  const first = Math.min(run.started || Infinity, ...shown.map((a) => a.submitted || a.started));
  const last = Math.max(first + 1, ...shown.map((a) => a.until), run.ended || 0);
  const part = (from, to, state) => el("b", { class: state, style: {
    left: `${(100 * (from - first)) / (last - first)}%`, width: `${(100 * Math.max(0, to - from)) / (last - first)}%` } });
  const rows = shown.flatMap((a) => {
    const begin = a.submitted || a.started, start = a.started ? Math.max(begin, a.started) : null;
    const queue = start ? start - begin : a.until - begin;
    const text = `${a.task}, attempt ${a.number}: ${a.state}; queue ${duration(queue)}${start ? `, run ${duration(a.until - start)}` : ""}`;
    const colour = a.state === "queued" ? "queued" : a.state;
    return [
      el("div", { class: "name" }, `${a.task}${a.number > 1 ? ` #${a.number}` : ""}`),
      el("div", { class: "track", title: text }, part(begin, start || a.until, "queued"), start && part(start, a.until, colour)),
    ];
  });
  const legend = ["queued", "running", "success", "failed", "ended"].map((s) => el("span", {}, el("i", { class: s }), s));
  return card("Queue and run time of all attempts", el("div", { class: "gantt" }, rows),
    el("div", { class: "row legend quiet" }, legend, el("span", {}, `${clock(first)} to ${clock(last)}`)));
}

function attemptsCard(run) {
  if (!run.attempts.length) return null;
  const link = (a) => outward(airflow(run.tasks.find(({ task_id: id }) => id === a.task).link), `${a.task} #${a.number}`);
  const rows = run.attempts.map((a) => [link(a), badge(a.state), a.name, place(a) || "–",
    right(a.submitted && (a.started || a.state === "queued") ? duration(Math.max(0, (a.started || a.until) - a.submitted)) : "–"),
    right(a.started ? duration(a.until - a.started) : "–"), right(a.gpus ? String(a.gpus) : "–"),
    right(a.progress.step === undefined ? "–" : `${a.progress.step}${a.progress.total ? ` of ${a.progress.total}` : ""}`)]);
  const diagnoses = run.attempts.filter(({ diagnosis }) => diagnosis).map((a) => {
    const d = a.diagnosis;
    return el("div", { class: "diagnosis" },
      el("strong", {}, `${a.task} #${a.number}: ${d.title} (${d.kind})`), d.node ? ` on ${d.node}` : "",
      el("pre", {}, d.evidence || ""), d.source && el("div", { class: "quiet" }, d.source),
      d.advice && el("div", {}, `What to do: ${d.advice}`), d.next_action && el("div", {}, `Next: ${d.next_action}`),
      d.lost_gpu_hours != null && el("div", { class: "quiet" }, `GPU-hours ${number(d.gpu_hours, 3)}, lost ${number(d.lost_gpu_hours, 3)}`));
  });
  const used = run.attempts.filter(({ efficiency }) => Object.keys(efficiency).length);
  const efficiency = used.length > 0 && [el("h3", {}, "Use of what the jobs requested, by Slurm's accounting"),
    table(["Task", "CPUs", "Memory of a node", "Time", "GPUs of a node", "GPU memory of a node"], used.map((a) => [link(a), ...usage(a.efficiency).map((text) => right(text))]))];
  return card("Attempts", table(["Task", "State", "Job", "Nodes", "Queue", "Run", "GPUs", "Step"], rows), ...diagnoses, ...(efficiency || []));
}

// What a job used of its request: each text is "–" where the site does not record it.
function usage(e) {
  const of = (used, limit, show) => (used == null ? "–" : `${show(used)}${limit == null ? "" : ` of ${show(limit)}`}`);
  return [
    e.cpu_percent == null ? "–" : `${number(e.cpu_percent, 3)} %`,
    of(e.memory_gib, e.memory_limit_gib, (v) => `${number(v, 3)} GiB`),
    of(e.run_s, e.limit_s, duration),
    e.gpu_percent == null ? "–" : `${number(e.gpu_percent, 3)} of ${number(100 * (e.gpus_per_node || 1), 4)} %`,
    e.gpu_memory_gib == null ? "–" : `${number(e.gpu_memory_gib, 3)} GiB`,
  ];
}

function dataCard(run) {
  const stages = Object.entries(run.data).filter(([, d]) => d && d.rows);
  if (!stages.length) return null;
  return card("Data", ...stages.map(([stage, d]) => el("div", {}, el("h3", {}, stage),
    table(["Train", "Test", "Tokens p50", "p95", "max", "Limit", "Over the limit", "Too long", "Duplicates", "In test as well", "Hash"], [[
      d.rows.train, d.rows.test, d.tokens?.p50, d.tokens?.p95, d.tokens?.max, d.limit,
      d.over_limit == null ? null : `${number(100 * d.over_limit, 2)} %`, d.too_long, d.duplicates, d.leaked, (d.hash || "").slice(0, 12)].map((v) => right(String(v ?? "–")))]),
    el("details", {}, el("summary", {}, `${(d.sample || []).length} rows as the model sees them`), (d.sample || []).map((text) => el("pre", {}, text))))));
}

// lm_eval's metrics of a task and a model: "acc,none" -> value; a task or a model without a result has its error.
function harnessRows(e) {
  return Object.entries(e?.harness || {}).flatMap(([task, found]) => {
    if (found.error) return [{ task, metric: found.error, values: {} }];
    const models = Object.entries(found);
    const metrics = [...new Set(models.flatMap(([, m]) => Object.keys(m).filter((key) => typeof m[key] === "number" && !/_stderr(,|$)/.test(key))))];
    const errors = models.filter(([, m]) => m.error).map(([name, m]) => ({ task, metric: `${name}: ${m.error}`, values: {} }));
    return [...metrics.map((metric) => ({ task, metric: metric.replace(/,none$/, ""), values: Object.fromEntries(models.filter(([, m]) => typeof m[metric] === "number").map(([name, m]) => [name, m[metric]])) })), ...errors];
  });
}

function harnessTable(e) {
  const rows = harnessRows(e), models = Object.keys(e.models);
  return rows.length > 0 && [el("h3", {}, "lm-evaluation-harness"), table(["Task", "Metric", ...models],
    rows.map(({ task, metric, values }) => [task, metric, ...models.map((name) => right(number(values[name])))]))];
}

// What SFT's tuner measured: the recipe's settings, the fastest ones, and what to write into the recipe for them.
function tuningCard(run) {
  const t = run.tuning;
  if (!t) return null;
  const speed = (value) => right(value == null ? "–" : Math.round(value).toLocaleString("en"));
  const proposal = Object.entries(t.settings).map(([key, value]) => `${key}: ${value}`).join("\n");
  return card(t.applied ? "SFT's tuner: trained with the fastest settings" : "SFT's tuner",
    table(["", "Tokens/s", "Settings below sft.verl"], [
      ["The recipe's", speed(t.now), "as in the recipe"],
      ["Fastest that fit", speed(t.best), proposal ? el("div", {}, el("pre", {}, proposal), !t.applied && copyButton(proposal)) : "as in the recipe"]]),
    el("p", { class: "quiet" }, t.text),
    t.measured.length > 0 && el("details", {}, el("summary", {}, `${t.measured.length} measurement(s)`), t.measured.map((line) => el("pre", {}, line))));
}

function evaluationCard(run) {
  const e = run.evaluation;
  if (!e) return null;
  const scores = Object.values(e.models).map(({ score }) => score);
  const best = new Set(scores).size > 1 ? Math.max(...scores) : null;
  const interval = ([low, high]) => `${number(low)} to ${number(high)}`;
  return card(`Evaluation: ${e.metric} on ${e.rows} rows`,
    table(["Model", "Score", "95 % interval", "Tokens an answer", "Cut"], Object.entries(e.models).map(([name, m]) =>
      [name, right(number(m.score), m.score === best), right(interval(m.interval)), right(number(m.length_mean, 3)), right(`${number(100 * m.cut_share, 2)} %`)])),
    Object.keys(e.differences).length > 0 && table(["Difference", "Mean", "95 % interval"], Object.entries(e.differences).map(([name, d]) =>
      [name, right(number(d.mean)), right(interval(d.interval))])),
    harnessTable(e),
    run.gate.reason && el("p", {}, run.gate.reason),
    el("details", {}, el("summary", {}, `${e.samples.length} samples of what the models say`), e.samples.map((sample) =>
      el("div", { class: "card" }, el("pre", {}, sample.prompt), el("div", { class: "quiet" }, `Truth: ${sample.truth}`),
        el("div", { class: "sides" }, Object.entries(sample.answers).map(([name, answer]) =>
          el("div", {}, el("strong", {}, `${name}: ${number(answer.score)}`), el("pre", {}, answer.text))))))));
}

function moreCard(run) {
  const parts = [];
  if (run.checkpoints.length) parts.push(el("h3", {}, "Checkpoints and models"), table(["Stage", "Step", "Path"], run.checkpoints.map((c) => [c.stage, right(c.step == null ? "–" : String(c.step)), c.path])));
  if (run.links.length) parts.push(el("h3", {}, "Links"), el("div", { class: "row" }, run.links.map(({ name, url }) => outward(url, name))));
  parts.push(el("h3", {}, "Logs"), el("div", { class: "row" }, run.tasks.filter(({ state }) => state && !["skipped", "upstream_failed"].includes(state)).map((t) => outward(airflow(t.link), t.task_id))));
  if (run.commands.length) parts.push(el("h3", {}, "Commands for the login node"), ...run.commands.map(({ name, command }) =>
    el("div", {}, el("div", { class: "quiet" }, name), el("div", { class: "command" }, el("pre", {}, command), copyButton(command)))));
  return card("Files, logs and links", ...parts);
}

// ---- views

function slots(...names) {
  main.replaceChildren(...names.map((name) => { const slot = el("div"); slot.dataset.slot = name; return slot; }));
  const texts = new Map();
  return (name, value, build) => {
    const text = JSON.stringify(value);
    if (texts.get(name) === text) return;
    texts.set(name, text);
    const slot = main.querySelector(`[data-slot="${name}"]`);
    const open = [...slot.querySelectorAll("details")].map((d) => d.open);
    slot.replaceChildren(...[build()].filter(Boolean));
    slot.querySelectorAll("details").forEach((d, n) => { d.open = open[n] || false; });
  };
}

// Ends early when the page becomes visible again.
function pause(milliseconds) {
  return new Promise((resolve) => {
    const end = () => { clearTimeout(timer); document.removeEventListener("visibilitychange", seen); resolve(); };
    const seen = () => { if (document.visibilityState === "visible") end(); };
    const timer = setTimeout(end, milliseconds);
    document.addEventListener("visibilitychange", seen);
  });
}

// Returns when the state of a run that has ended is another one, or cannot be read.
async function changed(path, { state, queued, ended }) {
  const known = JSON.stringify([state, queued, ended]);
  for (;;) {
    await pause(POLL_ENDED_MS);
    if (document.visibilityState !== "visible") continue;
    try {
      const now = await get(`${path}/state`);
      if (JSON.stringify([now.state, now.queued, now.ended]) !== known) return;
    } catch { return; }
  }
}

async function showRun(dag, run) {
  const path = `api/runs/${encodeURIComponent(dag)}/${encodeURIComponent(run)}`;
  const put = slots("head", "now", "failures", "gantt", "attempts", "curves", "tuning", "evaluation", "data", "more");
  const area = main.querySelector('[data-slot="curves"]');
  let seen = null;
  for (;;) {
    let wait = POLL_MS;
    if (document.visibilityState === "visible") {
      try {
        const found = await get(path);
        const { data, evaluation, gate, tuning, tasks, attempts, ...rest } = found;
        put("head", rest, () => head(found));
        put("now", [attempts, tasks, found.now], () => activity(found));
        put("failures", [attempts, tasks], () => failures(found));
        put("gantt", [attempts, found.now], () => gantt(found));
        put("tuning", tuning, () => tuningCard(found));
        put("evaluation", [evaluation, gate], () => evaluationCard(found));
        put("attempts", attempts, () => attemptsCard(found));
        put("data", data, () => dataCard(found));
        put("more", [found.checkpoints, found.links, found.commands, tasks.map((t) => t.state)], () => moreCard(found));
        const stamp = JSON.stringify(attempts.map((a) => [a.updated, a.state, a.directory]));
        if (stamp !== seen) {
          const { curves } = await get(`${path}/curves?points=600`);
          drawCurves(area, joined(curves));
          seen = stamp;
        }
        problem.hidden = true;
        if (["success", "failed"].includes(found.state)) { await changed(path, found); continue; }
      } catch (error) {
        problem.textContent = error.message;
        problem.hidden = false;
        wait = 15000;
      }
    }
    await pause(wait);
  }
}

async function showList() {
  const { runs } = await get("api/runs");
  const boxes = runs.map((r) => el("input", { type: "checkbox", value: JSON.stringify([r.dag_id, r.run_id]), ariaLabel: `compare ${r.run_id}` }));
  const button = el("button", { type: "button", disabled: true }, "Compare the selected runs");
  for (const box of boxes) box.addEventListener("change", () => { button.disabled = boxes.filter((b) => b.checked).length < 2; });
  button.addEventListener("click", () => {
    const chosen = boxes.filter((b) => b.checked).map((b) => ["compare", b.value]);
    location.search = new URLSearchParams(chosen).toString();
  });
  main.replaceChildren(card("Training runs", el("p", {}, button), runs.length
    ? table(["", "Run", "State", "Recipe", "DAG", "Started", "Duration"], runs.map((r, n) => [boxes[n],
      el("a", { href: here(r.dag_id, r.run_id) }, r.run_name || r.run_id), badge(r.state), r.recipe, r.dag_id,
      clock(r.started), right(r.started ? duration((r.ended || Date.now() / 1000) - r.started) : "–")]))
    : el("p", { class: "quiet" }, "No run of a DAG that you may read has submitted a job yet.")));
}

async function showComparison(chosen) {
  const paths = chosen.map(([dag, run]) => `api/runs/${encodeURIComponent(dag)}/${encodeURIComponent(run)}`);
  const [found, curves] = await Promise.all([
    Promise.all(paths.map((path) => get(path))), Promise.all(paths.map((path) => get(`${path}/curves?points=400`)))]);
  const labels = found.map((r, n) => `${n + 1}: ${r.run_name || r.run_id}`);
  const scores = [...new Set(found.flatMap((r) => Object.keys(r.evaluation?.models || {})))];
  const row = (name, values, better) => {
    const numbers = values.filter((v) => typeof v === "number");
    const best = better && new Set(numbers).size > 1 ? better(...numbers) : null;
    return [name, ...values.map((v) => right(typeof v === "number" ? number(v) : v ?? "–", v === best && best !== null))];
  };
  const harness = [...new Set(found.flatMap((r) => harnessRows(r.evaluation).flatMap(({ task, metric, values }) => Object.keys(values).map((name) => JSON.stringify([task, metric, name])))))];
  const tested = (r, key) => harnessRows(r.evaluation).find(({ task, metric, values }) => Object.keys(values).some((name) => JSON.stringify([task, metric, name]) === key))?.values[JSON.parse(key)[2]];
  const conditions = new Set(found.filter((r) => r.evaluation).map((r) => `${r.evaluation.metric} ${r.evaluation.conditions} ${r.evaluation.data?.hash}`));
  const rows = [
    ["State", ...found.map((r) => badge(r.state))],
    ["Recipe", ...found.map((r) => r.recipe)],
    ["Cluster", ...found.map((r) => r.cluster)],
    row("Duration", found.map((r) => (r.started ? duration((r.ended || r.now) - r.started) : null))),
    row("GPU-hours", found.map((r) => r.gpu_hours), Math.min),
    row("… of them lost", found.map((r) => r.lost_gpu_hours)),
    ...scores.map((name) => row(`Score, ${name}`, found.map((r) => r.evaluation?.models[name]?.score), conditions.size < 2 ? Math.max : null)),
    ...harness.map((key) => row(JSON.parse(key).join(", "), found.map((r) => tested(r, key)))),
  ];
  const keys = [...new Set(found.flatMap((r) => Object.keys(r.settings)))].sort();
  const text = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const differing = keys.filter((key) => new Set(found.map((r) => text(r.settings[key]))).size > 1);
  const area = el("div");
  main.replaceChildren(
    card("Comparison", el("p", {}, el("a", { href: "runs" }, "All runs")),
      table(["", ...labels], [["Run", ...found.map((r) => el("a", { href: here(r.dag_id, r.run_id) }, r.run_id))], ...rows]),
      conditions.size > 1 && el("p", { class: "quiet" }, "The scores are of different metrics, data or conditions and cannot be compared.")),
    card("Settings that differ", differing.length ? table(["Setting", ...labels], differing.map((key) => [key, ...found.map((r) => text(r.settings[key]))]))
      : el("p", { class: "quiet" }, "The recipes have the same settings.")), area);
  const lines = curves.flatMap(({ curves: own }, n) => joined(own).map((line) => ({ ...line, label: labels[n], colour: n })));
  drawCurves(area, lines);
}

async function start() {
  applyTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  try {
    if (window.parent !== window) new MutationObserver(applyTheme).observe(window.parent.document.documentElement, { attributes: true });
  } catch { /* another origin */ }
  try {
    const chosen = query.getAll("compare").map((value) => JSON.parse(value));
    if (query.get("dag_id") && query.get("run_id")) await showRun(query.get("dag_id"), query.get("run_id"));
    else if (chosen.length) await showComparison(chosen);
    else await showList();
  } catch (error) {
    main.replaceChildren();
    problem.textContent = error.message;
    problem.hidden = false;
  }
}
start();
