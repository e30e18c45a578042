// The page: what executors did, from the query API of the same address. No build step; htm and Preact are in vendor/.
import { html, render, useState, useEffect, useRef, useCallback } from "/page/vendor/preact.js";

const RANGES = [["now-15m", "15 minutes"], ["now-1h", "1 hour"], ["now-6h", "6 hours"], ["now-24h", "24 hours"],
  ["now-7d", "7 days"], ["now-30d", "30 days"], ["now-90d", "90 days"]];
const FACETS = [["outcome", "Outcome"], ["runtime", "Runtime"], ["language", "Language"], ["exitCode", "Exit code"],
  ["agentId", "Code agent"], ["organizationId", "Organization"]];
const FILTERS = [...FACETS, ["workspaceId", "Workspace"], ["userId", "User"], ["nodeId", "Node"],
  ["workflowExecutionId", "Workflow execution"], ["traceId", "Trace"]];
const OUTCOMES = { success: ["good", "✓ success"], error: ["bad", "✗ error"], timeout: ["late", "◷ time-out"] };
const EXPORT_LIMIT = 50000;

// ---- The address holds everything that is chosen, so that it can be shared --------------------------------------

const readAddress = () => new URLSearchParams(location.search);

function filtersOf(address) {
  const query = new URLSearchParams();
  query.set("from", address.get("from") || "now-24h");
  for (const name of ["to", "q"]) if (address.get(name)) query.set(name, address.get(name));
  for (const [name] of FILTERS) for (const value of address.getAll(name)) query.append(name, value);
  return query;
}

// ---- Asking -------------------------------------------------------------------------------------------------------

class Unauthorized extends Error {}

async function request(path, signal, headers = {}) {
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  const response = await fetch(`/api/v1${path}`, { signal, headers });
  if (response.status === 401) throw new Unauthorized();
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message || `${response.status} ${response.statusText}`);
  }
  return response;
}

const ask = async (path, signal) => (await request(path, signal)).json();

function useAsked(path, tick, onError) {
  const [answer, setAnswer] = useState(null);
  useEffect(() => {
    if (!path) { setAnswer(null); return undefined; }
    const abort = new AbortController();
    ask(path, abort.signal).then(setAnswer).catch((error) => { if (error.name !== "AbortError") onError(error); });
    return () => abort.abort();
  }, [path, tick]);
  return answer;
}

/** Calls `take` with each row that is written, until aborted. */
async function follow(query, signal, take) {
  let last = null;
  while (!signal.aborted) {
    try {
      const response = await request(`/code-exec-logs/live?${query}`, signal, last ? { "last-event-id": last } : {});
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const field = (name) => event.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
          last = field("id") || last;
          if (field("event") === "row") take(JSON.parse(field("data")));
        }
      }
    } catch (error) {
      if (signal.aborted || error instanceof Unauthorized) return;
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

// ---- Writing numbers ----------------------------------------------------------------------------------------------

const none = "–";
const count = (value) => (value == null ? none : value.toLocaleString());
const share = (value) => (value == null ? none : `${(value * 100).toFixed(1)} %`);
const cost = (value) => (value == null ? none : `$${value.toFixed(value < 1 ? 4 : 2)}`);
function duration(value) {
  if (value == null) return none;
  if (value < 1000) return `${Math.round(value)} ms`;
  return value < 60000 ? `${(value / 1000).toFixed(2)} s` : `${(value / 60000).toFixed(1)} min`;
}
const time = (text) => (text ? new Date(text).toLocaleString(undefined, { hour12: false }) : none);

// ---- Parts --------------------------------------------------------------------------------------------------------

function Tile({ name, value, points, now, before, better }) {
  const top = Math.max(...points, 0) || 1;
  const line = points.map((y, x) => `${(x / Math.max(points.length - 1, 1)) * 100},${23 - (y / top) * 21}`).join(" ");
  let change = null;
  if (before > 0 && now != null) {
    const part = (now - before) / before;
    const mood = Math.abs(part) < 0.005 || !better ? "soft" : (part < 0) === (better === "less") ? "good" : "bad";
    change = html`<span class=${mood}>${part >= 0 ? "+" : ""}${(part * 100).toFixed(0)} %<span class="visually-hidden"> than the same time before</span></span>`;
  }
  return html`<div class="card tile"><h2>${name}</h2><strong>${value}</strong>
    <svg viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true"><polyline points=${line} /></svg>
    <small>${change || html`<span class="soft">${"\u00a0"}</span>`}</small></div>`;
}

function Tiles({ stats, before, series }) {
  const s = stats?.data || {}, b = before?.data || {};
  const points = (key) => (series?.data || []).map((point) => point[key] || 0);
  const tile = (name, key, write, better) => html`<${Tile} name=${name} value=${write(s[key])} points=${points(key)}
    now=${s[key]} before=${b[key]} better=${better} />`;
  return html`<section class="tiles" aria-label="Totals">
    ${tile("Executions", "count", count)}${tile("Failed", "errorRate", share, "less")}
    ${tile("Median", "p50DurationMs", duration, "less")}${tile("p95", "p95DurationMs", duration, "less")}
    ${tile("p99", "p99DurationMs", duration, "less")}${tile("Time-outs", "timeouts", count, "less")}
    ${tile("Tokens", "tokensUsed", count)}${tile("Estimated cost", "costUsd", cost)}</section>`;
}

function Scatter({ rows, theme, onBrush, onPick }) {
  const box = useRef(null);
  const calls = useRef({});
  calls.current = { rows, onBrush, onPick };
  useEffect(() => {
    if (!box.current || !rows.length || !window.uPlot) return undefined;
    const sorted = [...rows].sort((a, b) => (a.createdAt < b.createdAt ? -1 : 1));
    const x = sorted.map((row) => Date.parse(row.createdAt) / 1000);
    const of = (outcome) => sorted.map((row) => (row.outcome === outcome ? Math.max(row.durationMs ?? 0, 1) : null));
    const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const points = (label, name) => ({ label, paths: () => null, stroke: color(name), width: 0,
      points: { show: true, size: 5, fill: color(name), stroke: color(name), width: 0 } });
    // Of a logarithmic axis only the powers of ten.
    const tens = (u, splits) => splits.map((value) => (Number.isInteger(Math.log10(value)) ? value : null));
    const axis = { stroke: color("soft"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line") } };
    const plot = new uPlot({
      width: box.current.clientWidth, height: 200, legend: { show: false },
      cursor: { drag: { x: true, y: false, setScale: false }, points: { show: true } },
      scales: { y: { distr: 3, range: (u, min, max) => [Math.max(1, min * 0.7), Math.max(10, max * 1.5)] } },
      axes: [axis, { ...axis, size: 70, filter: tens, grid: { ...axis.grid, filter: tens }, ticks: { ...axis.ticks, filter: tens }, values: (u, ticks) => ticks.map((tick) => (tick == null ? "" : duration(tick))) }],
      series: [{}, points("success", "good"), points("error", "bad"), points("time-out", "late")],
      hooks: { setSelect: [(u) => {
        if (u.select.width < 4) return;
        const at = (pixels) => new Date(u.posToVal(pixels, "x") * 1000).toISOString();
        calls.current.onBrush(at(u.select.left), at(u.select.left + u.select.width));
      }] },
    }, [x, of("success"), of("error"), of("timeout")], box.current);
    plot.over.addEventListener("click", () => {
      const row = sorted[plot.cursor.idx];
      if (row && plot.select.width < 4) calls.current.onPick(row.id);
    });
    const resize = new ResizeObserver(() => plot.setSize({ width: box.current.clientWidth, height: 200 }));
    resize.observe(box.current);
    return () => { resize.disconnect(); plot.destroy(); };
  }, [rows, theme]);
  return html`<section class="card"><h2>Latest executions by time and duration${" "}
    <span class="good">● success</span>${" "}<span class="bad">● error</span>${" "}<span class="late">● time-out</span>${" "}· drag to choose a time, click for one</h2>
    <div ref=${box} role="img" aria-label="Scatter chart of the executions in the table below"></div>
    ${rows.length ? null : html`<p class="soft">Nothing in this time.</p>`}</section>`;
}

function Facets({ facets, address, toggle }) {
  return html`<nav class="card" aria-label="Filters">${FACETS.map(([name, title]) => {
    const values = facets?.data?.[name] || [];
    return values.length ? html`<div class="facet" key=${name}><h2>${title}</h2>${values.map(({ value, count: many }) =>
      html`<button key=${value} disabled=${value == null} aria-pressed=${address.getAll(name).includes(value) ? "true" : "false"}
        title=${value ?? ""} onClick=${() => toggle(name, value)}><span>${value ?? "none"}</span><span class="soft">${count(many)}</span></button>`)}</div>` : null;
  })}</nav>`;
}

function Outcome({ of }) {
  const [mood, text] = OUTCOMES[of] || ["soft", of];
  return html`<span class=${mood}>${text}</span>`;
}

function Executions({ rows, more, onMore, onPick }) {
  return html`<div class="card scroll"><table><thead><tr><th>Ended</th><th>Outcome</th><th>Runtime</th><th>Language</th>
    <th>Agent or node</th><th class="number">Duration</th><th class="number">Memory</th><th class="number">Exit</th>
    <th class="number">Tokens</th><th>Error</th></tr></thead><tbody>${rows.map((row) => html`<tr key=${row.id}>
    <td><button class="link" onClick=${() => onPick(row.id)}>${time(row.createdAt)}</button></td><td><${Outcome} of=${row.outcome} /></td>
    <td>${row.runtime}</td><td>${row.language}</td><td>${row.codeAgentId || row.nodeId || none}</td>
    <td class="number">${duration(row.durationMs)}</td><td class="number">${row.memoryMb == null ? none : `${row.memoryMb} MB`}</td>
    <td class="number">${row.exitCode ?? none}</td><td class="number">${count(row.tokensUsed)}</td>
    <td class="text" title=${row.errorMessage || ""}>${row.errorMessage || ""}</td></tr>`)}</tbody></table>
    ${rows.length ? null : html`<p class="soft">Nothing matches.</p>`}
    ${more ? html`<p><button onClick=${onMore}>Show more</button></p>` : null}</div>`;
}

function Errors({ errors, onPick }) {
  const groups = errors?.data || [];
  return html`<div class="card scroll"><table><thead><tr><th class="number">Count</th><th>What they have in common</th><th>Runtimes</th>
    <th>First</th><th>Last</th><th>Example</th></tr></thead><tbody>${groups.map((group) => html`<tr key=${group.message}>
    <td class="number">${count(group.count)}</td><td class="text" title=${group.sampleMessage || ""}>${group.message ?? "no message"}</td>
    <td>${Object.entries(group.byRuntime).map(([name, many]) => `${name} ${many}`).join(", ")}</td><td>${time(group.firstSeen)}</td>
    <td>${time(group.lastSeen)}</td><td><button class="link" onClick=${() => onPick(group.sampleId)}>open</button></td></tr>`)}</tbody></table>
    ${groups.length ? null : html`<p class="soft">No failures.</p>`}</div>`;
}

function Pipeline({ pipeline }) {
  if (!pipeline) return html`<p class="soft">…</p>`;
  const { stages, journal } = pipeline.data;
  const bytes = (value) => `${(value / 1048576).toFixed(1)} MiB`;
  return html`<div class="card scroll"><table><thead><tr><th>Stage</th><th>State</th><th class="number">Last progress</th></tr></thead>
    <tbody>${stages.map((stage) => html`<tr key=${stage.name}><td>${stage.name}</td><td class=${!stage.alive ? "bad" : stage.degraded ? "late" : "good"}>
      ${!stage.alive ? "✗ stalled" : stage.degraded ? `! ${stage.degraded}` : "✓ well"}</td><td class="number">${stage.secondsSinceProgress.toFixed(1)} s ago</td></tr>`)}</tbody></table>
    ${journal ? html`<h2>Journal: ${bytes(journal.bytes)} of ${bytes(journal.maxBytes)}${journal.secondsUntilFull == null ? "" : `, full in ${duration(journal.secondsUntilFull * 1000)}`}</h2>
    <table><thead><tr><th>Reader</th><th class="number">Behind, records</th><th class="number">bytes</th><th class="number">seconds</th></tr></thead>
    <tbody>${journal.readers.map((reader) => html`<tr key=${reader.name}><td>${reader.name}</td><td class="number">${count(reader.lagRecords)}</td>
      <td class="number">${count(reader.lagBytes)}</td><td class="number">${reader.lagSeconds.toFixed(1)}</td></tr>`)}</tbody></table>` : null}</div>`;
}

function Drawer({ row, onClose, choose }) {
  const box = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    box.current?.focus();
    return () => before?.focus?.();
  }, []);
  const sources = row?.sources || {};
  const shown = row ? Object.entries(row).filter(([key]) => !["span", "reported", "sources", "signozUrl"].includes(key)) : [];
  const keep = FILTERS.map(([name]) => name);
  return html`<div class="drawer" role="dialog" aria-modal="true" aria-label="Execution" tabindex="-1" ref=${box}
    onKeyDown=${(event) => event.key === "Escape" && onClose()}>
    <p><button onClick=${onClose}>Close</button>${" "}
      ${row?.signozUrl ? html`<a href=${row.signozUrl} target="_blank" rel="noreferrer">Open in SigNoz</a>` : null}${" "}
      ${row ? html`<button onClick=${() => navigator.clipboard?.writeText(JSON.stringify(row, null, 2))}>Copy as JSON</button>` : null}</p>
    ${row ? html`<dl>${shown.map(([key, value]) => html`<dt key=${key}>${key}</dt><dd>${value == null ? none
      : keep.includes(key) ? html`<button class="link" onClick=${() => choose(key, String(value))}>${String(value)}</button>` : String(value)}
      ${sources[key] ? html`<small class="soft"> from ${sources[key]}</small>` : null}</dd>`)}
      ${row.span ? html`<dt>span</dt><dd>${row.span.startTime} to ${row.span.endTime} (${duration(row.span.durationMs)})</dd>` : null}
      ${row.reported?.outcome ? html`<dt>reported</dt><dd>runtime ${row.reported.runtime ?? none}, exit code ${row.reported.exitCode ?? none}, ${row.reported.outcome}</dd>` : null}
      </dl>` : html`<p class="soft">…</p>`}</div>`;
}

function TokenForm({ onToken }) {
  const field = useRef(null);
  return html`<form class="layout" onSubmit=${(event) => { event.preventDefault(); onToken(field.current.value.trim()); }}>
    <label class="card">Access token (api.auth.bearer_tokens)${" "}<input type="password" autocomplete="off" ref=${field} /></label>
    <p><button>Open</button></p></form>`;
}

// ---- Export -------------------------------------------------------------------------------------------------------

async function download(query, format) {
  const rows = [];
  let cursor = "";
  do {
    const page = await ask(`/code-exec-logs?${query}&limit=1000${cursor && `&cursor=${cursor}`}`);
    rows.push(...page.data);
    cursor = page.nextCursor;
  } while (cursor && rows.length < EXPORT_LIMIT);
  let text;
  if (format === "jsonl") {
    text = rows.map((row) => JSON.stringify(row)).join("\n") + "\n";
  } else {
    const columns = Object.keys(rows[0] || { id: "" });
    // A text that begins like a formula is not to be one in a spreadsheet.
    const cell = (value) => {
      if (value == null) return "";
      const plain = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
      return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
    };
    text = [columns.join(","), ...rows.map((row) => columns.map((column) => cell(row[column])).join(","))].join("\r\n") + "\r\n";
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: format === "csv" ? "text/csv" : "application/x-ndjson" }));
  link.download = `executions.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return rows.length >= EXPORT_LIMIT;
}

// ---- The page -----------------------------------------------------------------------------------------------------

function App() {
  const [address, setAddress] = useState(readAddress());
  const [tick, setTick] = useState(0);
  const [rows, setRows] = useState([]);
  const [cursor, setCursor] = useState(null);
  const [live, setLive] = useState(false);
  const [problem, setProblem] = useState(null);
  const [locked, setLocked] = useState(false);
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const [theme, setTheme] = useState(localStorage.getItem("theme") || preferred);

  useEffect(() => { document.documentElement.dataset.theme = theme; }, [theme]);
  useEffect(() => {
    const back = () => setAddress(readAddress());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);

  const go = useCallback((change) => {
    const next = readAddress();
    change(next);
    history.pushState(null, "", `?${next}`);
    setAddress(next);
  }, []);
  const toggle = (name, value) => go((next) => {
    const values = next.getAll(name);
    next.delete(name);
    for (const other of values) if (other !== value) next.append(name, other);
    if (!values.includes(value)) next.append(name, value);
  });
  const choose = (name, value) => go((next) => { next.delete("row"); next.set(name, value); });
  const pick = (id) => go((next) => next.set("row", id));
  const onError = useCallback((error) => (error instanceof Unauthorized ? setLocked(true) : setProblem(error.message)), []);

  const query = filtersOf(address).toString();
  const tab = address.get("tab") || "executions";
  const row = address.get("row");

  // The same length of time before, to compare with: only for times that end now.
  let earlier = null;
  const past = /^now-(\d+)([mhd])$/.exec(filtersOf(address).get("from"));
  if (past && !address.get("to")) {
    const before = filtersOf(address);
    before.set("from", `now-${past[1] * 2}${past[2]}`);
    before.set("to", `now-${past[1]}${past[2]}`);
    earlier = `/code-exec-logs/stats?${before}`;
  }
  const stats = useAsked(`/code-exec-logs/stats?${query}`, tick, onError);
  const before = useAsked(earlier, tick, onError);
  const series = useAsked(`/code-exec-logs/timeseries?${query}`, tick, onError);
  const facets = useAsked(`/code-exec-logs/facets?${query}`, tick, onError);
  const page = useAsked(`/code-exec-logs?${query}&limit=500`, tick, onError);
  const errors = useAsked(tab === "errors" ? `/code-exec-logs/errors?${query}` : null, tick, onError);
  const pipeline = useAsked("/pipeline", tick, (error) => (error instanceof Unauthorized ? onError(error) : null));
  const detail = useAsked(row ? `/code-exec-logs/${encodeURIComponent(row)}` : null, 0, onError);

  useEffect(() => { if (page) { setRows(page.data); setCursor(page.nextCursor); setProblem(null); } }, [page]);
  useEffect(() => {
    if (!live) return undefined;
    const abort = new AbortController();
    const clock = setInterval(() => setTick((value) => value + 1), 10000);
    let fresh = [];
    const flush = setInterval(() => {
      if (!fresh.length) return;
      const news = fresh.reverse();
      fresh = [];
      setRows((old) => {
        const known = new Set(news.map(({ id }) => id));
        return [...news, ...old.filter(({ id }) => !known.has(id))].slice(0, 1000);
      });
    }, 500);
    const wanted = filtersOf(readAddress());
    wanted.delete("from");
    follow(wanted, abort.signal, (one) => fresh.push(one));
    return () => { abort.abort(); clearInterval(clock); clearInterval(flush); };
  }, [live, query]);

  const more = () => ask(`/code-exec-logs?${query}&limit=500&cursor=${cursor}`)
    .then((next) => { setRows((old) => [...old, ...next.data]); setCursor(next.nextCursor); }).catch(onError);
  const save = (format) => download(query, format)
    .then((cut) => cut && setProblem(`The export holds the newest ${count(EXPORT_LIMIT)} executions.`)).catch(onError);

  if (locked) {
    return html`<header><h1>Code executions</h1></header><main><${TokenForm} onToken=${(token) => {
      sessionStorage.setItem("token", token); setLocked(false); setTick((value) => value + 1); }} /></main>`;
  }
  const from = address.get("from") || "now-24h";
  const healthy = pipeline?.data?.healthy;
  const chips = FILTERS.flatMap(([name, title]) => address.getAll(name).map((value) => [name, title, value]));
  const tabs = [["executions", "Executions"], ["errors", "Errors"], ["pipeline", "Pipeline"]];
  return html`<header><h1>Code executions</h1>
    <span class=${`dot ${pipeline ? (healthy ? "good" : "bad") : ""}`} role="img"
      aria-label=${pipeline ? (healthy ? "Pipeline is well" : "Pipeline is not well") : "Pipeline is unknown"}></span>
    <label><span class="visually-hidden">Time</span><select value=${from} onChange=${(event) => go((next) => { next.set("from", event.target.value); next.delete("to"); })}>
      ${RANGES.map(([value, text]) => html`<option value=${value} selected=${value === from}>last ${text}</option>`)}
      ${RANGES.some(([value]) => value === from) ? null : html`<option value=${from} selected>chosen time</option>`}</select></label>
    <input type="search" placeholder="Search errors and ids" aria-label="Search errors and ids" value=${address.get("q") || ""}
      onChange=${(event) => go((next) => (event.target.value ? next.set("q", event.target.value) : next.delete("q")))} />
    <button aria-pressed=${live ? "true" : "false"} onClick=${() => setLive(!live)}>Live</button>
    <button onClick=${() => setTick(tick + 1)}>Refresh</button>
    <button onClick=${() => save("csv")}>CSV</button><button onClick=${() => save("jsonl")}>JSON lines</button>
    <button onClick=${() => { const next = theme === "dark" ? "light" : "dark"; localStorage.setItem("theme", next); setTheme(next); }}>
      ${theme === "dark" ? "Light" : "Dark"}</button></header>
  <main class="layout"><${Facets} facets=${facets} address=${address} toggle=${toggle} /><div>
    ${problem ? html`<p class="note" role="alert">${problem}</p>` : null}
    ${chips.length || address.get("to") ? html`<div class="chips">${chips.map(([name, title, value]) => html`<button key=${name + value}
      aria-label=${`Remove filter ${title} ${value}`} onClick=${() => toggle(name, value)}>${title}: ${value} ✕</button>`)}
      ${address.get("to") ? html`<button onClick=${() => go((next) => { next.delete("to"); next.delete("from"); })}>${time(address.get("from"))} to ${time(address.get("to"))} ✕</button>` : null}</div>` : null}
    <${Tiles} stats=${stats} before=${before} series=${series} />
    <${Scatter} rows=${rows} theme=${theme} onPick=${pick}
      onBrush=${(start, end) => go((next) => { next.set("from", start); next.set("to", end); })} />
    <div class="tabs" role="tablist">${tabs.map(([name, title]) => html`<button role="tab" key=${name} id=${`tab-${name}`} aria-controls="panel"
      aria-selected=${tab === name ? "true" : "false"} onClick=${() => go((next) => next.set("tab", name))}>${title}</button>`)}</div>
    <div role="tabpanel" id="panel" aria-labelledby=${`tab-${tab}`}>
      ${tab === "errors" ? html`<${Errors} errors=${errors} onPick=${pick} />`
    : tab === "pipeline" ? html`<${Pipeline} pipeline=${pipeline} />`
      : html`<${Executions} rows=${rows} more=${cursor} onMore=${more} onPick=${pick} />`}</div></div></main>
  ${row ? html`<${Drawer} row=${detail?.data?.id === row ? detail.data : null} choose=${choose} onClose=${() => go((next) => next.delete("row"))} />` : null}`;
}

// uPlot comes as a plain script, which a module does not wait for.
addEventListener("load", () => render(html`<${App} />`, document.getElementById("app")));
