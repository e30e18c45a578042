// How values are written: the same everywhere on the page.

export const NONE = "–";

export const count = (value) => (value == null ? NONE : value.toLocaleString("en-US"));

/** A large number in few characters: 12.3 K. */
export const short = (value) => (value == null ? NONE
  : new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: value < 1000 ? 0 : 1 }).format(value));

export const share = (value) => (value == null ? NONE : `${(value * 100).toFixed(value > 0 && value < 0.1 ? 2 : 1)} %`);

export function cost(value) {
  if (value == null) return NONE;
  if (value === 0) return "$0";
  if (value < 0.0001) return "< $0.0001";
  return `$${value < 0.01 ? value.toPrecision(2) : value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: value < 1 ? 4 : 2 })}`;
}

/** However small it is. */
export const exactCost = (value) => (value > 0 && value < 0.01 ? `$${value.toFixed(10).replace(/0+$/, "")}` : cost(value));

export function duration(value) {
  if (value == null) return NONE;
  if (value < 1000) return `${Math.round(value)} ms`;
  if (value < 60000) return `${(value / 1000).toFixed(value < 10000 ? 2 : 1)} s`;
  return value < 3600000 ? `${(value / 60000).toFixed(1)} min` : `${(value / 3600000).toFixed(1)} h`;
}

/** Of an axis: without needless zeros. */
export const roundDuration = (value) => (value < 1000 ? `${value} ms` : value < 60000 ? `${value / 1000} s` : `${+(value / 60000).toFixed(1)} min`);

export function bytes(value) {
  if (value == null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${units[unit]}`;
}

const two = (number) => String(number).padStart(2, "0");
const day = (date) => `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
const clock = (date) => `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;

/** A moment in the reader's time zone. */
export function time(text) {
  if (!text) return NONE;
  const date = new Date(text);
  return `${day(date)} ${clock(date)}`;
}

/** Today without the date. */
export function nearTime(text) {
  const date = new Date(text), now = new Date();
  return day(date) === day(now) ? clock(date) : `${day(date).slice(5)} ${clock(date)}`;
}

/** Ticks of a time axis, by how much time it shows. */
export function timeTicks(seconds, span) {
  const date = new Date(seconds * 1000);
  if (span > 2 * 86400) return day(date).slice(5);
  return span > 600 ? clock(date).slice(0, 5) : clock(date);
}

export const OUTCOMES = { success: ["good", "✓", "success"], error: ["bad", "✗", "error"], timeout: ["late", "◷", "time-out"] };
