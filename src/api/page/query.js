// What the page asks, and the address, which holds everything that is chosen so that it can be shared.
import { useState, useEffect } from "/page/vendor/preact.js";

export const RANGES = [["now-15m", "Last 15 minutes"], ["now-1h", "Last hour"], ["now-6h", "Last 6 hours"],
  ["now-24h", "Last 24 hours"], ["now-7d", "Last 7 days"], ["now-30d", "Last 30 days"], ["now-90d", "Last 90 days"]];
export const FACETS = [["outcome", "Outcome"], ["runtime", "Runtime"], ["language", "Language"], ["exitCode", "Exit code"],
  ["agentId", "Code agent"], ["organizationId", "Organization"]];
export const FILTERS = [...FACETS, ["workspaceId", "Workspace"], ["userId", "User"], ["nodeId", "Node"],
  ["workflowExecutionId", "Workflow execution"], ["traceId", "Trace"]];
export const DEFAULT_RANGE = "now-24h";
const EXPORT_LIMIT = 50000;

export const readAddress = () => new URLSearchParams(location.search);

/** The part of the address that the API understands. */
export function filtersOf(address) {
  const query = new URLSearchParams();
  query.set("from", address.get("from") || DEFAULT_RANGE);
  for (const name of ["to", "q"]) if (address.get(name)) query.set(name, address.get(name));
  for (const [name] of FILTERS) for (const value of address.getAll(name)) query.append(name, value);
  return query;
}

/** The same length of time before, to compare with: only for times that end now. */
export function filtersBefore(address) {
  const before = filtersOf(address);
  const past = /^now-(\d+)([mhd])$/.exec(before.get("from"));
  if (!past || address.get("to")) return null;
  before.set("from", `now-${past[1] * 2}${past[2]}`);
  before.set("to", `now-${past[1]}${past[2]}`);
  return before;
}

/** First and last second of the time that is asked for. */
export function timeSpan(address) {
  const from = address.get("from") || DEFAULT_RANGE;
  const past = /^now-(\d+)([mhd])$/.exec(from);
  const now = Date.now() / 1000;
  const start = past ? now - past[1] * { m: 60, h: 3600, d: 86400 }[past[2]] : Date.parse(from) / 1000;
  const end = address.get("to") ? Date.parse(address.get("to")) / 1000 : now;
  return [start, end];
}

export class Unauthorized extends Error {}

export async function request(path, signal, headers = {}) {
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

export const ask = async (path, signal) => (await request(path, signal)).json();

/** The answer to a question, asked again when `path` or `tick` changes; the old answer stays until the new one is there. */
export function useAsked(path, tick, onError) {
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
export async function follow(query, signal, take) {
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

/** Saves the rows as a file; how many they were if there were more than fit. */
export async function download(query, format) {
  const rows = [];
  let cursor = "";
  do {
    const page = await ask(`/code-exec-logs?${query}&limit=1000${cursor && `&cursor=${cursor}`}`);
    rows.push(...page.data);
    cursor = page.nextCursor;
  } while (cursor && rows.length < EXPORT_LIMIT);
  let text;
  if (format === "jsonl") {
    text = rows.map((row) => `${JSON.stringify(row)}\n`).join("");
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
  return cursor ? rows.length : null;
}
