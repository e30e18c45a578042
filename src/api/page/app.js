// The page: what executors did, from the query API of the same address. No build step; htm and Preact are in vendor/.
//
// app.js holds the state and the frame; query.js asks; panels.js, drawer.js and charts.js show.
import { html, render, useState, useEffect, useRef, useCallback, useMemo } from "/page/vendor/preact.js";
import { Scatter, Volume } from "/page/charts.js";
import { Drawer } from "/page/drawer.js";
import { count, time } from "/page/format.js";
import { Begin, Cost, Errors, Executions, Facets, Pipeline, Tiles } from "/page/panels.js";
import { DEFAULT_RANGE, FILTERS, RANGES, Unauthorized, ask, download, filtersBefore, filtersOf, follow, readAddress, timeSpan, useAsked } from "/page/query.js";

const TABS = [["executions", "Executions"], ["errors", "Errors"], ["cost", "Cost"], ["pipeline", "Pipeline"]];
const PAGE = 500;

function TokenForm({ onToken }) {
  const field = useRef(null);
  return html`<form class="token card" onSubmit=${(event) => { event.preventDefault(); onToken(field.current.value.trim()); }}>
    <h1>Code executions</h1>
    <label for="token">Access token</label><input id="token" type="password" autocomplete="off" ref=${field} />
    <p class="soft small">One of <code>api.auth.bearer_tokens</code>. It is kept for this tab only.</p>
    <button class="primary">Open</button></form>`;
}

function Tabs({ tab, onTab, counts }) {
  const keys = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = TABS.findIndex(([name]) => name === tab);
    const [next] = TABS[(at + step + TABS.length) % TABS.length];
    onTab(next);
    document.getElementById(`tab-${next}`)?.focus();
  };
  return html`<div class="tabs" role="tablist" aria-label="Views" onKeyDown=${keys}>${TABS.map(([name, title]) => html`<button role="tab" key=${name} id=${`tab-${name}`}
    aria-controls="panel" aria-selected=${tab === name ? "true" : "false"} tabindex=${tab === name ? 0 : -1} onClick=${() => onTab(name)}>${title}${counts[name] ? html` <span class="tag">${counts[name]}</span>` : null}</button>`)}</div>`;
}

function Export({ save }) {
  const menu = useRef(null);
  const pick = (format) => { menu.current.open = false; save(format); };
  return html`<details class="menu" ref=${menu}><summary>Export</summary><div class="card">
    <button onClick=${() => pick("csv")}>CSV</button><button onClick=${() => pick("jsonl")}>JSON lines</button></div></details>`;
}

function App() {
  const [address, setAddress] = useState(readAddress());
  const [tick, setTick] = useState(0);
  const [rows, setRows] = useState([]);
  const [fresh, setFresh] = useState(new Set());
  const [cursor, setCursor] = useState(null);
  const [live, setLive] = useState(false);
  const [problem, setProblem] = useState(null);
  const [locked, setLocked] = useState(false);
  const [by, setBy] = useState("runtime");
  const search = useRef(null);
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const [theme, setTheme] = useState(localStorage.getItem("theme") || preferred);

  // Before the charts are drawn, which take their colours from the style sheet.
  useMemo(() => { document.documentElement.dataset.theme = theme; }, [theme]);
  useEffect(() => {
    const back = () => setAddress(readAddress());
    const slash = (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, dialog")) return;
      event.preventDefault();
      search.current?.focus();
    };
    addEventListener("popstate", back);
    addEventListener("keydown", slash);
    return () => { removeEventListener("popstate", back); removeEventListener("keydown", slash); };
  }, []);

  const go = useCallback((change) => {
    const next = readAddress();
    change(next);
    history.pushState(null, "", `?${next}`);
    setAddress(next);
  }, []);
  const toggle = useCallback((name, value) => go((next) => {
    const values = next.getAll(name);
    next.delete(name);
    for (const other of values) if (other !== value) next.append(name, other);
    if (!values.includes(value)) next.append(name, value);
  }), []);
  const choose = (name, value) => go((next) => { next.delete("row"); next.set(name, value); });
  const pick = useCallback((id) => go((next) => next.set("row", id)), []);
  const brush = useCallback((start, end) => go((next) => { next.set("from", start); next.set("to", end); }), []);
  const find = (text) => go((next) => (text ? next.set("q", text) : next.delete("q")));
  const clear = () => go((next) => { for (const name of ["q", "to", ...FILTERS.map(([filter]) => filter)]) next.delete(name); });
  const onError = useCallback((error) => (error instanceof Unauthorized ? setLocked(true) : setProblem(error.message)), []);

  const query = filtersOf(address).toString();
  const tab = TABS.some(([name]) => name === address.get("tab")) ? address.get("tab") : "executions";
  const row = address.get("row");
  const before = filtersBefore(address);
  const path = (name) => `/code-exec-logs/${name}?${query}`;
  const [start, end] = timeSpan(address);
  const perDay = end - start > 2 * 86400 && end - start < 366 * 86400 ? "&step=86400" : "";

  const stats = useAsked(path("stats"), tick, onError);
  const earlier = useAsked(before && `/code-exec-logs/stats?${before}`, tick, onError);
  const series = useAsked(path("timeseries"), tick, onError);
  const facets = useAsked(path("facets"), tick, onError);
  const page = useAsked(`/code-exec-logs?${query}&limit=${PAGE}`, tick, onError);
  const errors = useAsked(tab === "errors" ? path("errors") : null, tick, onError);
  const costs = useAsked(tab === "cost" ? `${path("stats")}&groupBy=${by}` : null, tick, onError);
  const costSeries = useAsked(tab === "cost" ? path("timeseries") + perDay : null, tick, onError);
  const [refused, setRefused] = useState(null);
  const pipeline = useAsked("/pipeline", tick, (error) => (error instanceof Unauthorized ? onError(error) : setRefused(error.message)));
  const [missing, setMissing] = useState(null);
  const detail = useAsked(row ? `/code-exec-logs/${encodeURIComponent(row)}` : null, 0, (error) => (error instanceof Unauthorized ? onError(error) : setMissing(error.message)));
  const traceId = detail?.data?.id === row ? detail?.data?.traceId : null;
  const trace = useAsked(traceId ? `/traces/${traceId}` : null, 0, () => {});

  useEffect(() => { setMissing(null); }, [row]);
  useEffect(() => { if (page) { setRows(page.data); setCursor(page.nextCursor); setProblem(null); } }, [page]);
  useEffect(() => {
    if (!live) return undefined;
    const abort = new AbortController();
    const clock = setInterval(() => setTick((value) => value + 1), 10000);
    let waiting = [];
    const flush = setInterval(() => {
      if (!waiting.length) return;
      const news = waiting.reverse();
      waiting = [];
      const known = new Set(news.map(({ id }) => id));
      setFresh(known);
      setRows((old) => [...news, ...old.filter(({ id }) => !known.has(id))].slice(0, 2 * PAGE));
    }, 500);
    const wanted = filtersOf(readAddress());
    wanted.delete("from");
    follow(wanted, abort.signal, (one) => waiting.push(one));
    return () => { abort.abort(); clearInterval(clock); clearInterval(flush); setFresh(new Set()); };
  }, [live, query]);

  const more = () => ask(`/code-exec-logs?${query}&limit=${PAGE}&cursor=${cursor}`)
    .then((next) => { setRows((old) => [...old, ...next.data]); setCursor(next.nextCursor); }).catch(onError);
  const save = (format) => download(query, format)
    .then((cut) => cut && setProblem(`The export holds the newest ${count(cut)} executions; choose a shorter time for the rest.`)).catch(onError);
  const step = (by) => {
    const next = rows[rows.findIndex(({ id }) => id === row) + by];
    if (next) pick(next.id);
  };

  if (locked) {
    return html`<main><${TokenForm} onToken=${(token) => {
      sessionStorage.setItem("token", token); setLocked(false); setTick((value) => value + 1); }} /></main>`;
  }
  const from = address.get("from") || DEFAULT_RANGE;
  const healthy = pipeline?.data?.healthy;
  const chips = FILTERS.flatMap(([name, title]) => address.getAll(name).map((value) => [name, title, value]));
  const total = stats?.data?.count;
  const nothing = page && !rows.length;
  const isFiltered = chips.length > 0 || Boolean(address.get("q")) || Boolean(address.get("to"));
  const state = pipeline ? (healthy ? "The pipeline is well" : "The pipeline is not well") : "The state of the pipeline is not known";
  return html`<header class="top"><a class="brand" href="/"><img src="/page/icon.svg" alt="" width="22" height="22" /><h1>Code executions</h1></a>
    <button class="state" title=${state} aria-label=${state} onClick=${() => go((next) => next.set("tab", "pipeline"))}><span class=${`dot ${pipeline ? (healthy ? "good" : "bad") : ""}`}></span></button>
    <input type="search" ref=${search} placeholder="Search errors and ids   /" aria-label="Search errors and ids" value=${address.get("q") || ""}
      onChange=${(event) => find(event.target.value)} />
    <label><span class="visually-hidden">Time</span><select value=${from} onChange=${(event) => go((next) => { next.set("from", event.target.value); next.delete("to"); })}>
      ${RANGES.map(([value, text]) => html`<option value=${value} selected=${value === from}>${text}</option>`)}
      ${RANGES.some(([value]) => value === from) ? null : html`<option value=${from} selected>Chosen time</option>`}</select></label>
    <button class="live" aria-pressed=${live ? "true" : "false"} onClick=${() => setLive(!live)}><span class="dot"></span>Live</button>
    <button onClick=${() => setTick(tick + 1)} title="Ask again" aria-label="Refresh">⟳</button>
    <${Export} save=${save} />
    <button aria-label=${theme === "dark" ? "Light colours" : "Dark colours"} title=${theme === "dark" ? "Light colours" : "Dark colours"}
      onClick=${() => { const next = theme === "dark" ? "light" : "dark"; localStorage.setItem("theme", next); setTheme(next); }}>${theme === "dark" ? "☀" : "☾"}</button></header>
  <main class="layout"><${Facets} facets=${facets} address=${address} toggle=${toggle} /><div class="content">
    ${problem ? html`<p class="note" role="alert">${problem}</p>` : null}
    ${isFiltered ? html`<div class="chips">${chips.map(([name, title, value]) => html`<button key=${name + value}
      aria-label=${`Remove filter ${title} ${value}`} onClick=${() => toggle(name, value)}><span class="soft">${title}</span> ${value} ✕</button>`)}
      ${address.get("q") ? html`<button aria-label="Remove search" onClick=${() => find("")}><span class="soft">Search</span> ${address.get("q")} ✕</button>` : null}
      ${address.get("to") ? html`<button aria-label="Remove chosen time" onClick=${() => go((next) => { next.delete("to"); next.delete("from"); })}><span class="soft">Time</span> ${time(address.get("from"))} – ${time(address.get("to"))} ✕</button>` : null}
      <button class="link" onClick=${clear}>Clear all</button></div>` : null}
    <${Tiles} stats=${stats} before=${earlier} series=${series} />
    ${total > 0 ? html`<section class="card charts"><div class="legend"><h2>Executions</h2><span class="soft">drag to choose a time</span></div>
      <${Volume} series=${series} theme=${theme} onBrush=${brush} />
      <div class="legend"><h2>Duration${cursor ? html` <span class="soft">of the newest ${count(rows.length)}</span>` : null}</h2><span class="good">● success</span><span class="bad">● error</span><span class="late">● time-out</span><span class="soft">click a point to open it</span></div>
      <${Scatter} rows=${rows} theme=${theme} onPick=${pick} onBrush=${brush} /></section>` : null}
    <${Tabs} tab=${tab} onTab=${(name) => go((next) => next.set("tab", name))} counts=${{ executions: total == null ? "" : count(total), errors: stats?.data?.errors ? count(stats.data.errors) : "" }} />
    <div role="tabpanel" id="panel" aria-labelledby=${`tab-${tab}`}>
      ${tab === "pipeline" ? html`<${Pipeline} pipeline=${pipeline} refused=${refused} />`
    : nothing ? html`<${Begin} filtered=${isFiltered} clear=${clear} />`
      : tab === "errors" ? html`<${Errors} errors=${errors} onPick=${pick} search=${(text) => go((next) => { next.set("q", text); next.set("tab", "executions"); })} />`
        : tab === "cost" ? html`<${Cost} groups=${costs} series=${costSeries} by=${by} setBy=${setBy} theme=${theme} toggle=${toggle} />`
          : html`<${Executions} rows=${rows} total=${total} more=${cursor} onMore=${more} onPick=${pick} chosen=${row} fresh=${fresh} />`}</div></div></main>
  ${row ? html`<${Drawer} row=${detail?.data?.id === row ? detail.data : null} trace=${trace?.data?.traceId === traceId ? trace : null} problem=${missing}
    choose=${choose} onPick=${pick} onStep=${step} onClose=${() => go((next) => next.delete("row"))} />` : null}`;
}

// uPlot comes as a plain script, which a module does not wait for.
addEventListener("load", () => render(html`<${App} />`, document.getElementById("app")));
