// What the page shows of an answer: tiles, facets, and the content of each tab.
import { html, useState } from "/page/vendor/preact.js";
import { CostBars, Sparkline } from "/page/charts.js";
import { NONE, OUTCOMES, bytes, cost, count, duration, nearTime, share, short, time } from "/page/format.js";
import { FACETS } from "/page/query.js";

export function Outcome({ of }) {
  const [mood, mark, text] = OUTCOMES[of] || ["soft", "", of];
  return html`<span class=${`pill ${mood}`}><span aria-hidden="true">${mark}</span> ${text}</span>`;
}

// ---- Tiles --------------------------------------------------------------------------------------------------------

function Change({ now, before, better }) {
  if (!(before > 0) || now == null) return null;
  const part = (now - before) / before;
  const mood = Math.abs(part) < 0.005 || !better ? "soft" : (part < 0) === (better === "less") ? "good" : "bad";
  const text = Math.abs(part) >= 10 ? `×${(now / before).toFixed(0)}` : `${part >= 0 ? "+" : "−"}${Math.abs(part * 100).toFixed(0)} %`;
  return html`<span class=${`change ${mood}`} title="than in the same time before">${text}<span class="visually-hidden"> than in the same time before</span></span>`;
}

function Tile({ name, value, title, points, mood, now, before, better }) {
  return html`<div class="card tile"><div class="head"><h2>${name}</h2><${Change} now=${now} before=${before} better=${better} /></div>
    <strong title=${title}>${value}</strong>
    <${Sparkline} points=${points} mood=${mood} /></div>`;
}

export function Tiles({ stats, before, series }) {
  const s = stats?.data, b = before?.data || {};
  // The last piece of time is not over, and would look like a fall.
  const points = (key) => (series?.data || []).slice(0, -1).map((point) => point[key] || 0);
  const tile = (name, key, write, better, mood, title) => html`<${Tile} name=${name} value=${s ? write(s[key]) : "…"}
    title=${s && title ? title(s[key]) : undefined} points=${points(key)} mood=${mood} now=${s?.[key]} before=${b[key]} better=${better} />`;
  return html`<section class="tiles" aria-label="Totals" aria-busy=${s ? "false" : "true"}>
    ${tile("Executions", "count", short, null, "", count)}${tile("Failed", "errorRate", share, "less", "bad")}
    ${tile("Time-outs", "timeouts", short, "less", "late", count)}
    ${tile("Median", "p50DurationMs", duration, "less")}${tile("p95", "p95DurationMs", duration, "less")}
    ${tile("p99", "p99DurationMs", duration, "less")}
    ${tile("Tokens", "tokensUsed", short, null, "", count)}${tile("Estimated cost", "costUsd", cost)}</section>`;
}

// ---- Facets -------------------------------------------------------------------------------------------------------

export function Facets({ facets, address, toggle }) {
  return html`<nav class="card facets" aria-label="Filters">${FACETS.map(([name, title]) => {
    const values = facets?.data?.[name] || [];
    const most = Math.max(...values.map(({ count: many }) => many), 1);
    return values.length ? html`<section class="facet" key=${name}><h2>${title}</h2>${values.map(({ value, count: many }) =>
      html`<button key=${value} disabled=${value == null} aria-pressed=${address.getAll(name).includes(value) ? "true" : "false"}
        title=${value ?? "not known"} onClick=${() => toggle(name, value)}>
        <span class=${`share ${OUTCOMES[value]?.[0] || ""}`} style=${{ width: `${(many / most) * 100}%` }}></span>
        <span class="value">${name === "outcome" ? OUTCOMES[value]?.[2] ?? value : value ?? "not known"}</span><span class="many">${short(many)}</span></button>`)}</section>` : null;
  })}</nav>`;
}

// ---- Tabs ---------------------------------------------------------------------------------------------------------

/** A table that scrolls by itself, also with the keyboard. */
function Table({ caption, head, children }) {
  return html`<div class="card scroll" role="region" aria-label=${caption} tabindex="0"><table><caption class="visually-hidden">${caption}</caption>
    <thead><tr>${head.map((name) => (name.startsWith("#") ? html`<th scope="col" class="number">${name.slice(1)}</th>` : html`<th scope="col">${name}</th>`))}</tr></thead>
    <tbody>${children}</tbody></table></div>`;
}

export function Executions({ rows, total, more, onMore, onPick, chosen, fresh }) {
  const longest = Math.log10(Math.max(...rows.map((row) => row.durationMs || 0), 10));
  const width = (value) => ({ width: `${value > 0 ? Math.max((Math.log10(value + 1) / longest) * 100, 2) : 0}%` });
  return html`<${Table} caption="Executions, newest first" head=${["Ended", "Outcome", "Runtime", "Language", "Agent or node", "#Duration", "#Memory", "#Exit", "#Cost", "Error"]}>
    ${rows.map((row) => html`<tr key=${row.id} class=${`${row.id === chosen ? "chosen" : ""} ${fresh.has(row.id) ? "fresh" : ""}`} onClick=${() => onPick(row.id)}>
    <td><button class="link" title=${time(row.createdAt)} onClick=${(event) => { event.stopPropagation(); onPick(row.id); }}>${nearTime(row.createdAt)}</button></td>
    <td><${Outcome} of=${row.outcome} /></td>
    <td>${row.runtime}</td><td>${row.language}</td><td class="id">${row.codeAgentId || row.nodeId || NONE}</td>
    <td class="number took">${duration(row.durationMs)}<span class=${`bar ${OUTCOMES[row.outcome]?.[0]}`} style=${width(row.durationMs)}></span></td>
    <td class="number">${row.memoryMb == null ? NONE : `${count(row.memoryMb)} MB`}</td>
    <td class=${`number ${row.exitCode ? "bad" : ""}`}>${row.exitCode ?? NONE}</td><td class="number">${cost(row.costUsd)}</td>
    <td class="text" title=${row.errorMessage || ""}>${row.errorMessage || ""}</td></tr>`)}
    <//>
    ${more ? html`<p class="more"><button onClick=${onMore}>Show more</button> <span class="soft">${count(rows.length)} of ${count(total)}</span></p>` : null}`;
}

/** Of a normalised message, the longest part that all messages of its group have: something to search for. */
const common = (message) => (message || "").split(/["'`]?…["'`]?|#\w{0,3}/).map((part) => part.trim()).sort((a, b) => b.length - a.length)[0];

export function Errors({ errors, onPick, search }) {
  const groups = errors?.data || [];
  const most = Math.max(...groups.map((group) => group.count), 1);
  if (errors && !groups.length) return html`<p class="card nothing">No failures in this time.</p>`;
  return html`<${Table} caption="Failures by what their messages have in common" head=${["#Count", "Message", "Runtimes", "First seen", "Last seen", ""]}>
    ${groups.map((group) => html`<tr key=${group.message}>
    <td class="number took">${count(group.count)}<span class="bar bad" style=${{ width: `${(group.count / most) * 100}%` }}></span></td>
    <td class="text wide" title=${group.sampleMessage || ""}>${common(group.message)?.length > 5
    ? html`<button class="link plain" onClick=${() => search(common(group.message))}>${group.message}</button>` : group.message ?? html`<em class="soft">no message</em>`}</td>
    <td>${Object.entries(group.byRuntime).map(([name, many]) => html`<span class="tag">${name} ${count(many)}</span>`)}</td>
    <td title=${time(group.firstSeen)}>${nearTime(group.firstSeen)}</td><td title=${time(group.lastSeen)}>${nearTime(group.lastSeen)}</td>
    <td><button class="link" onClick=${() => onPick(group.sampleId)}>Latest<span class="visually-hidden"> of ${group.message ?? "no message"}</span></button></td></tr>`)}<//>`;
}

const GROUPS = [["runtime", "Runtime"], ["agent", "Code agent"], ["organization", "Organization"], ["language", "Language"], ["workspace", "Workspace"], ["user", "User"]];
const PARAMETERS = { agent: "agentId", organization: "organizationId", workspace: "workspaceId", user: "userId" };

export function Cost({ groups, series, by, setBy, theme, toggle }) {
  const total = groups?.total?.costUsd;
  const rows = [...(groups?.data || [])].sort((a, b) => (b.costUsd ?? 0) - (a.costUsd ?? 0));
  const most = Math.max(...rows.map((row) => row.costUsd || 0), 1e-12);
  if (groups && total == null) {
    return html`<div class="card nothing"><p><strong>No costs are known for these executions.</strong></p>
      <p>Set prices per runtime under <code>prices.runtimes</code> in the configuration, or send <code>code.cost_usd</code> on the spans.
      <code>prices.example.yaml</code> has public list prices to begin with.</p></div>`;
  }
  const parameter = PARAMETERS[by] || by;
  return html`<div class="split"><div class="card"><h2>Estimated cost ${series?.stepSeconds === 86400 ? "per day (UTC)" : "over time"}</h2><${CostBars} series=${series} theme=${theme} />
      <p class="soft small">An estimate: from spans, else time × price (<code>prices</code> in the configuration). Not a bill.</p></div>
    <div><div class="by" role="group" aria-label="Group by">${GROUPS.map(([name, title]) => html`<button key=${name} aria-pressed=${by === name ? "true" : "false"} onClick=${() => setBy(name)}>${title}</button>`)}</div>
    <${Table} caption=${`Estimated cost by ${by}`} head=${[GROUPS.find(([name]) => name === by)[1], "#Estimated cost", "#Share", "#Executions", "#Per 1,000", "#Failed"]}>
      ${rows.map((row) => html`<tr key=${row.key}><td class="id">${row.key == null ? html`<em class="soft">not known</em>`
      : html`<button class="link plain" onClick=${() => toggle(parameter, row.key)}>${row.key}</button>`}</td>
      <td class="number took">${cost(row.costUsd)}<span class="bar" style=${{ width: `${((row.costUsd || 0) / most) * 100}%` }}></span></td>
      <td class="number">${total ? share((row.costUsd || 0) / total) : NONE}</td><td class="number">${count(row.count)}</td>
      <td class="number">${row.costUsd == null ? NONE : cost((row.costUsd / row.count) * 1000)}</td><td class="number">${share(row.errorRate)}</td></tr>`)}
      ${groups ? html`<tr class="total"><td>Total</td><td class="number">${cost(total)}</td><td></td><td class="number">${count(groups.total.count)}</td>
      <td class="number">${total == null ? NONE : cost((total / groups.total.count) * 1000)}</td><td class="number">${share(groups.total.errorRate)}</td></tr>` : null}<//></div></div>`;
}

function seconds(value) {
  return value == null ? NONE : duration(value * 1000);
}

export function Pipeline({ pipeline, refused }) {
  if (refused) return html`<p class="card nothing">${refused}</p>`;
  if (!pipeline) return html`<p class="card nothing">…</p>`;
  const { stages, journal, exporters } = pipeline.data;
  const used = journal ? journal.bytes / journal.maxBytes : 0;
  return html`<div class="split even"><${Table} caption="Stages" head=${["Stage", "State", "#Last progress"]}>
    ${stages.map((stage) => html`<tr key=${stage.name}><td>${stage.name}</td><td><span class=${`pill ${!stage.alive ? "bad" : stage.degraded ? "late" : "good"}`}>
      ${!stage.alive ? "✗ stalled" : stage.degraded ? "! degraded" : "✓ well"}</span> ${stage.degraded ? html`<span class="reason">${stage.degraded}</span>` : null}</td>
      <td class="number">${seconds(stage.secondsSinceProgress)} ago</td></tr>`)}<//>
    ${journal ? html`<div><div class="card journal"><h2>Journal</h2>
      <p><strong>${bytes(journal.bytes)}</strong> of ${bytes(journal.maxBytes)} <span class="soft">· ${count(journal.records)} records, ${count(journal.segments)} segments · ${journal.secondsUntilFull == null ? "not filling up" : `full in ${seconds(journal.secondsUntilFull)}`}</span></p>
      <div class="gauge"><span class=${used > 0.9 ? "bad" : used > 0.7 ? "late" : ""} style=${{ width: `${Math.min(used * 100, 100)}%` }}></span></div>
      ${journal.problem ? html`<p class="bad">${journal.problem}</p>` : null}</div>
    <${Table} caption="Readers of the journal" head=${["Reader", "#Records behind", "#Bytes behind", "#Time behind"]}>
    ${journal.readers.map((reader) => html`<tr key=${reader.name}><td>${reader.name}</td><td class="number">${count(reader.lagRecords)}</td>
      <td class="number">${bytes(reader.lagBytes)}</td><td class="number">${seconds(reader.lagSeconds)}</td></tr>`)}<//></div>` : null}
    </div>
    ${(exporters ?? []).map((exporter) => html`<section key=${exporter.name} class="leaving"><h2>What leaves by ${exporter.name}</h2>
    <${Table} caption=${`What leaves by ${exporter.name}`} head=${["Rule", "#Since the start"]}>
    ${exporter.rules.map((rule) => html`<tr key=${rule.rule}><td class="wrap">${rule.rule}<br /><code class="soft small">${rule.says}</code></td>
      <td class="number">${count(rule.count)} <span class="soft">${rule.counts}</span></td></tr>`)}<//></section>`)}`;
}

/** Shown when there is nothing at all, which is how everybody begins. */
export function Begin({ filtered, clear }) {
  const [copied, setCopied] = useState(false);
  const line = `export OTEL_EXPORTER_OTLP_ENDPOINT=${location.protocol}//${location.hostname}:4318`;
  if (filtered) {
    return html`<div class="card nothing"><p><strong>No execution matches.</strong></p><p><button onClick=${clear}>Clear all filters</button></p></div>`;
  }
  return html`<div class="card nothing"><p><strong>No executions in this time.</strong></p>
    <p>Point an executor's OpenTelemetry exporter here, and its executions appear as they end:</p>
    <p><code>${line}</code> <button onClick=${() => navigator.clipboard?.writeText(line).then(() => setCopied(true))}>${copied ? "Copied" : "Copy"}</button></p>
    <p class="soft">Or choose a longer time above. The Pipeline tab tells whether requests arrive.</p></div>`;
}
