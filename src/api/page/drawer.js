// One execution: everything that is known of it, where each value came from, and what else is in its trace.
import { html, useEffect, useRef, useState } from "/page/vendor/preact.js";
import { NONE, count, duration, exactCost, time } from "/page/format.js";
import { Outcome } from "/page/panels.js";

const SOURCES = {
  execution: "its own span", status: "the span's status", exception: "an exception event", has_error: "code.has_error",
  derived_id: "an id on the span", router: "the router's span", inner: "the router's inner span", runtime_span: "the runtime's own span",
  node: "the workflow node around it", hook: "the hook around it", resource: "the resource", namespace: "security.namespace",
  default: "nothing says otherwise", refused: "a foreign key refused the value",
};

function Facts({ title, facts, row, choose }) {
  const known = facts.filter(([, , value]) => value !== undefined);
  return html`<section><h3>${title}</h3><dl>${known.map(([key, name, value, filter]) => {
    const source = row.sources?.[key];
    return html`<dt key=${key}>${name}</dt><dd>${value == null ? html`<span class="soft">${NONE}</span>`
      : filter ? html`<button class="link plain" title=${`Show only ${name.toLowerCase()} ${value}`} onClick=${() => choose(filter, String(row[filter === "agentId" ? "codeAgentId" : filter]))}>${value}</button>` : value}
      ${source && value != null ? html`<small class="source">from ${SOURCES[source] || source}</small>` : null}</dd>`;
  })}</dl></section>`;
}

/** The executions of a trace on a common axis of time. */
function Waterfall({ trace, current, onPick }) {
  const spans = (trace?.data?.executions || []).filter((row) => row.span);
  if (spans.length < 2) return null;
  const start = Math.min(...spans.map((row) => Date.parse(row.span.startTime)));
  const end = Math.max(...spans.map((row) => Date.parse(row.span.endTime)), start + 1);
  const shown = spans.slice(0, 50);
  return html`<section><h3>This trace: ${count(spans.length)} executions in ${duration(end - start)}</h3><ol class="waterfall">${shown.map((row) => {
    const left = ((Date.parse(row.span.startTime) - start) / (end - start)) * 100;
    const width = Math.max((row.span.durationMs / (end - start)) * 100, 0.8);
    return html`<li key=${row.id}><button aria-current=${row.id === current ? "true" : "false"} onClick=${() => onPick(row.id)}>
      <span class="what">${row.runtime} · ${row.language}</span>
      <span class="track"><span class=${`bar ${row.outcome}`} style=${{ left: `${Math.min(left, 99)}%`, width: `${Math.min(width, 100 - Math.min(left, 99))}%` }}></span></span>
      <span class="number">${duration(row.durationMs)}</span></button></li>`;
  })}</ol>${spans.length > shown.length ? html`<p class="soft small">and ${count(spans.length - shown.length)} more</p>` : null}</section>`;
}

function Copy({ text, children }) {
  const [done, setDone] = useState(false);
  return html`<button onClick=${() => navigator.clipboard?.writeText(text()).then(() => { setDone(true); setTimeout(() => setDone(false), 1500); })}>${done ? "Copied" : children}</button>`;
}

export function Drawer({ row, trace, problem, onClose, onPick, onStep, choose }) {
  const box = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    if (!box.current.open) box.current.showModal();
    return () => before?.focus?.();
  }, []);
  const keys = (event) => {
    if (event.target.closest("input, select, textarea")) return;
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (step) { event.preventDefault(); onStep(step); }
  };
  // The backdrop belongs to the dialog: a click on it is a click beside what is in it.
  const outside = (event) => { if (event.target === box.current) onClose(); };
  const lag = row?.span && row.receivedAt ? Date.parse(row.receivedAt) - Date.parse(row.span.endTime) : null;
  return html`<dialog class="drawer" ref=${box} aria-label="Execution" onClose=${onClose} onClick=${outside} onKeyDown=${keys}>
    <div class="inside">
    <header class="row"><div class="grow">${row ? html`<${Outcome} of=${row.outcome} />` : null}</div>
      <button onClick=${() => onStep(-1)} aria-label="Newer execution" title="Newer (k)">↑</button>
      <button onClick=${() => onStep(1)} aria-label="Older execution" title="Older (j)">↓</button>
      <button onClick=${onClose} aria-label="Close" title="Close (Esc)">✕</button></header>
    ${problem ? html`<p class="note" role="alert">${problem}</p>` : !row ? html`<p class="soft">…</p>` : html`
    <h2>${row.runtime} · ${row.language} <span class="big">${duration(row.durationMs)}</span></h2>
    <p class="soft">${time(row.createdAt)}</p>
    <p class="row">${row.signozUrl ? html`<a class="button primary" href=${row.signozUrl} target="_blank" rel="noreferrer">Open trace in SigNoz</a>` : null}
      <${Copy} text=${() => JSON.stringify(row, null, 2)}>Copy JSON<//><${Copy} text=${() => location.href}>Copy link<//></p>
    ${row.errorMessage ? html`<section><h3>Error <small class="source">from ${SOURCES[row.sources?.errorMessage] || "the row"}</small></h3><pre class=${row.outcome === "success" ? "" : "failed"} tabindex="0">${row.errorMessage}</pre></section>` : null}
    <${Facts} title="Run" row=${row} choose=${choose} facts=${[
    ["success", "Succeeded", row.success ? "yes" : "no"], ["runtime", "Runtime", row.runtime, "runtime"], ["language", "Language", row.language, "language"],
    ["durationMs", "Duration", row.durationMs == null ? null : duration(row.durationMs)], ["memoryMb", "Memory", row.memoryMb == null ? null : `${count(row.memoryMb)} MB`],
    ["exitCode", "Exit code", row.exitCode == null ? null : String(row.exitCode), "exitCode"], ["tokensUsed", "Tokens", row.tokensUsed == null ? null : count(row.tokensUsed)],
    ["validationPassed", "Validation", row.validationPassed == null ? null : row.validationPassed ? "passed" : "failed"],
    ["costUsd", "Estimated cost", row.costUsd == null ? null : exactCost(row.costUsd)]]} />
    <${Facts} title="Belongs to" row=${row} choose=${choose} facts=${[
    ["codeAgentId", "Code agent", row.codeAgentId, "agentId"], ["workflowExecutionId", "Workflow execution", row.workflowExecutionId, "workflowExecutionId"],
    ["nodeId", "Node", row.nodeId, "nodeId"], ["organizationId", "Organization", row.organizationId, "organizationId"],
    ["workspaceId", "Workspace", row.workspaceId, "workspaceId"], ["userId", "User", row.userId, "userId"]].map(([key, name, value, filter]) => [key, name, value, value && filter])} />
    <${Waterfall} trace=${trace} current=${row.id} onPick=${onPick} />
    <${Facts} title="Span" row=${row} choose=${choose} facts=${[
    ["traceId", "Trace", row.traceId, row.traceId && "traceId"], ["spanId", "Span", row.spanId], ["startTime", "Started", row.span?.startTime], ["endTime", "Ended", row.span?.endTime],
    ["receivedAt", "Received", row.receivedAt && `${row.receivedAt}${lag != null && lag >= 0 ? ` (${duration(lag)} later)` : ""}`],
    ["id", "Row", row.id]]} />
    ${row.reported?.outcome ? html`<section><h3>As its own span reported it</h3><dl>
      <dt>Outcome</dt><dd>${row.reported.outcome}</dd><dt>Runtime</dt><dd>${row.reported.runtime ?? NONE}</dd><dt>Exit code</dt><dd>${row.reported.exitCode ?? NONE}</dd></dl></section>` : null}`}
    </div></dialog>`;
}
