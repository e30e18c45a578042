// Charts: sparklines as SVG, the others with uPlot.
import { html, useEffect, useRef } from "/page/vendor/preact.js";
import { cost, count, roundDuration, timeTicks } from "/page/format.js";

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export function Sparkline({ points, mood }) {
  const top = Math.max(...points, 0) || 1;
  const at = (y, x) => `${((x / Math.max(points.length - 1, 1)) * 100).toFixed(2)},${(27 - (y / top) * 24).toFixed(2)}`;
  const line = points.map(at).join(" ");
  return html`<svg class=${`spark ${mood || ""}`} viewBox="0 0 100 28" preserveAspectRatio="none" aria-hidden="true">
    ${points.length > 1 ? html`<polygon points=${`0,28 ${line} 100,28`} /><polyline points=${line} />` : null}</svg>`;
}

/** A uPlot chart that is made anew when `keys` change, and keeps to the width of its box. */
function usePlot(make, height, keys) {
  const box = useRef(null);
  useEffect(() => {
    if (!box.current || !window.uPlot) return undefined;
    const made = make(Math.max(box.current.clientWidth, 100), height);
    if (!made) return undefined;
    const plot = new window.uPlot(made.options, made.data, box.current);
    made.ready?.(plot);
    const resize = new ResizeObserver(() => plot.setSize({ width: Math.max(box.current.clientWidth, 100), height }));
    resize.observe(box.current);
    return () => { resize.disconnect(); plot.destroy(); };
  }, keys);
  return box;
}

const axes = () => {
  const plain = { stroke: color("soft"), font: "11px system-ui, sans-serif", grid: { stroke: color("grid"), width: 1 }, ticks: { show: false } };
  const times = (u, splits) => splits.map((at) => timeTicks(at, u.scales.x.max - u.scales.x.min));
  return { time: { ...plain, values: times, space: 90, size: 28, grid: { show: false } }, plain };
};

function brush(onBrush) {
  return [(u) => {
    if (u.select.width < 4) return;
    const at = (pixels) => new Date(u.posToVal(pixels, "x") * 1000).toISOString();
    onBrush(at(u.select.left), at(u.select.left + u.select.width));
  }];
}

/** Bars over time, each of `layers` drawn over the one before. */
function bars(points, layers, write, onBrush) {
  return (width, height) => {
    if (points.length < 2 || !layers.some(({ of }) => points.some((point) => of(point)))) return null;
    const x = points.map((point) => Date.parse(point.time) / 1000);
    const step = x[1] - x[0];
    const { time, plain } = axes();
    const series = layers.map(({ label, mood }) => ({ label, stroke: color(mood), fill: color(mood), width: 0, points: { show: false },
      paths: window.uPlot.paths.bars({ size: [0.82, 28], align: 1 }) }));
    return {
      data: [x, ...layers.map(({ of }) => points.map((point) => of(point) || null))],
      options: {
        width, height, legend: { show: false }, padding: [8, 8, 0, 0],
        cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false }, y: false },
        scales: { x: { range: () => [x[0], x[x.length - 1] + step] }, y: { range: (u, min, max) => [0, max * 1.05 || 1] } },
        axes: [time, { ...plain, size: 56, space: 24, values: (u, ticks) => ticks.map(write) }],
        series: [{}, ...series],
        hooks: onBrush ? { setSelect: brush(onBrush) } : {},
      },
    };
  };
}

export function Volume({ series, theme, onBrush }) {
  const points = series?.data || [];
  const calls = useRef({});
  calls.current = { onBrush };
  const layers = [
    { label: "success", mood: "good-fill", of: (point) => point.count },
    { label: "error", mood: "bad-fill", of: (point) => point.errors },
    { label: "time-out", mood: "late-fill", of: (point) => point.timeouts },
  ];
  const whole = (value) => (Number.isInteger(value) ? count(value) : "");
  const box = usePlot(bars(points, layers, whole, (from, to) => calls.current.onBrush(from, to)), 96, [series, theme]);
  const total = points.reduce((sum, point) => sum + point.count, 0);
  return html`<div class="chart" ref=${box} role="img" data-chart="volume"
    aria-label=${`Executions over time: ${count(total)} in ${points.length} bars, failures in red. Drag to choose a time.`}></div>`;
}

export function CostBars({ series, theme }) {
  const points = series?.data || [];
  const box = usePlot(bars(points, [{ label: "cost", mood: "mark", of: (point) => point.costUsd }], (value) => cost(value), null), 150, [series, theme]);
  return html`<div class="chart" ref=${box} role="img" aria-label="Estimated cost over time"></div>`;
}

export function Scatter({ rows, theme, onBrush, onPick }) {
  const calls = useRef({});
  calls.current = { onBrush, onPick };
  const box = usePlot((width, height) => {
    if (!rows.length) return null;
    const sorted = [...rows].sort((a, b) => (a.createdAt < b.createdAt ? -1 : 1));
    const x = sorted.map((row) => Date.parse(row.createdAt) / 1000);
    const of = (outcome) => sorted.map((row) => (row.outcome === outcome ? Math.max(row.durationMs ?? 0, 1) : null));
    const series = (label, mood) => ({ label, paths: () => null, stroke: color(mood), width: 0,
      points: { show: true, size: 6, fill: color(mood), stroke: color("card"), width: 0.75 } });
    // Of a logarithmic axis only the powers of ten.
    const tens = (u, splits) => splits.map((value) => (Number.isInteger(Math.log10(value)) ? value : null));
    const { time, plain } = axes();
    const first = x[0], last = x[x.length - 1], pad = Math.max((last - first) * 0.02, 0.5);
    return {
      data: [x, of("success"), of("error"), of("timeout")],
      options: {
        width, height, legend: { show: false }, padding: [8, 8, 0, 0],
        cursor: { drag: { x: true, y: false, setScale: false }, points: { show: true, size: 10 }, dataIdx: nearest },
        scales: { x: { range: () => [first - pad, last + pad] }, y: { distr: 3, range: (u, min, max) => [1, Math.max(10, max * 1.6)] } },
        axes: [time, { ...plain, size: 56, filter: tens, grid: { ...plain.grid, filter: tens }, values: (u, ticks) => ticks.map((tick) => (tick == null ? "" : roundDuration(tick))) }],
        series: [{}, series("success", "good"), series("error", "bad"), series("time-out", "late")],
        hooks: { setSelect: brush((from, to) => calls.current.onBrush(from, to)) },
      },
      ready: (plot) => plot.over.addEventListener("click", () => {
        if (plot.select.width >= 4) return;
        const found = closest(plot, sorted);
        if (found) calls.current.onPick(found.id);
      }),
    };
  }, 210, [rows, theme]);
  return html`<div class="chart" ref=${box} role="img" data-chart="scatter"
    aria-label="Durations of the executions in the table below, by the time at which they ended. Drag to choose a time."></div>`;
}

/** Points of other outcomes lie between: the nearest of a series itself, not of all. */
function nearest(u, series, index) {
  const values = u.data[series];
  if (values[index] != null) return index;
  for (let off = 1; off < 12; off += 1) {
    if (values[index - off] != null) return index - off;
    if (values[index + off] != null) return index + off;
  }
  return index;
}

/** The row whose point is nearest to the pointer, if one is near. */
function closest(plot, sorted) {
  const { left, top } = plot.cursor;
  let best = null, least = 20 ** 2;
  sorted.forEach((row) => {
    const dx = plot.valToPos(Date.parse(row.createdAt) / 1000, "x") - left;
    const dy = plot.valToPos(Math.max(row.durationMs ?? 0, 1), "y") - top;
    if (dx * dx + dy * dy < least) { least = dx * dx + dy * dy; best = row; }
  });
  return best;
}

