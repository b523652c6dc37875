// Owns: numbers between two bounds as grammar, by their decimal digits.
import { UserError } from "../../base/errors.js";
import type { Rules } from "./ebnf.js";

export interface Bounds {
  /** Inclusive; ±Infinity where there is none. */
  readonly min: number;
  readonly max: number;
}

/** Fifteen digits: every integer of so many is exact in double precision. */
const mostDigits = 15;

/** Integers from min to max. */
export function integerRange(rules: Rules, bounds: Bounds, param: string): string {
  const { low, high } = scaled(bounds, 0, param);
  return rules.rule("integer", ways(low, high, 0).join(" | "));
}

/** Numbers from min to max: with a fraction where whole bounds leave room for one, else with as many decimals as they have. */
export function numberRange(rules: Rules, { min, max }: Bounds, param: string): string {
  const decimals = Math.max(decimalsOf(min), decimalsOf(max));
  if (decimals > 6) throw new UserError(`Bounds of numbers have at most 6 decimals (${param}).`, { param });
  if (decimals > 0) {
    const { low, high } = scaled({ min, max }, decimals, param);
    return rules.rule("number", ways(low, high, decimals).join(" | "));
  }
  const { low, high } = scaled({ min, max }, 0, param);
  const fraction = `("." [0-9]{1,${mostDigits}})?`;
  // Without the last one of each sign, any fraction stays within.
  const parts: string[] = [];
  if (high >= 0n && (high > 0n || low <= 0n)) {
    const from = low > 0n ? low : 0n;
    if (high - 1n >= from) parts.push(`(${spans(from, high - 1n, 0).join(" | ")}) ${fraction}`);
  }
  if (low < 0n) {
    const from = high < 0n ? -high : 0n;
    if (-low - 1n >= from) parts.push(`"-" (${spans(from, -low - 1n, 0).join(" | ")}) ${fraction}`);
  }
  return rules.rule("number", [...parts, ...ways(low, high, 0)].join(" | "));
}

function decimalsOf(value: number): number {
  if (!Number.isFinite(value)) return 0;
  for (let decimals = 0; decimals < 20; decimals++) {
    if (Number(value.toFixed(decimals)) === value) return decimals;
  }
  return 20;
}

/** Bounds in units of 10^-decimals, within what digits can be written. */
function scaled({ min, max }: Bounds, decimals: number, param: string): { low: bigint; high: bigint } {
  const edge = 10n ** BigInt(mostDigits) - 1n;
  const unit = (value: number, round: (x: number) => number): bigint => {
    if (value === Number.NEGATIVE_INFINITY) return -edge;
    if (value === Number.POSITIVE_INFINITY) return edge;
    const rounded = decimals === 0 ? BigInt(round(value)) : BigInt(value.toFixed(decimals).replace(".", ""));
    return rounded > edge ? edge : rounded < -edge ? -edge : rounded;
  };
  const low = unit(min, Math.ceil);
  const high = unit(max, Math.floor);
  if (low > high) {
    throw new UserError(`No number is at least ${min} and at most ${max} (${param}).`, {
      code: "unsatisfiable_schema",
      param,
    });
  }
  return { low, high };
}

function ways(low: bigint, high: bigint, decimals: number): string[] {
  const out: string[] = [];
  if (low < 0n) {
    const from = high < 0n ? -high : 1n;
    const negative = spans(from, -low, decimals);
    if (negative.length > 0) out.push(`"-" (${negative.join(" | ")})`);
  }
  if (high >= 0n) out.push(...spans(low > 0n ? low : 0n, high, decimals));
  return out;
}

/** Whole numbers from low to high, without a sign or leading zeros beyond the one before the point. */
function spans(low: bigint, high: bigint, decimals: number): string[] {
  if (low > high) return [];
  const out: string[] = [];
  const shortest = decimals + 1;
  for (let length = shortest; length <= String(high).length || length === shortest; length++) {
    const least = length === shortest ? 0n : 10n ** BigInt(length - 1);
    const most = 10n ** BigInt(length) - 1n;
    const from = low > least ? low : least;
    const to = high < most ? high : most;
    if (from > to) continue;
    const pad = (n: bigint) => String(n).padStart(length, "0");
    out.push(digits(pad(from), pad(to), length - decimals));
  }
  return out;
}

/** Texts of digits between two of the same length; a point goes before the digit at `point`. */
function digits(low: string, high: string, point: number): string {
  if (low === "") return '""';
  const dot = point === 0 ? '"." ' : "";
  const rest = (from: string, to: string) => digits(from, to, point - 1);
  const tail = low.slice(1);
  const nines = "9".repeat(tail.length);
  const zeros = "0".repeat(tail.length);
  const span = (a: number, b: number) => (a === b ? `"${a}"` : `[${a}-${b}]`);
  const a = Number(low[0]);
  const b = Number(high[0]);
  if (a === b) return `${dot}${span(a, a)} ${rest(tail, high.slice(1))}`;
  const out: string[] = [];
  const lowWhole = tail === zeros;
  const highWhole = high.slice(1) === nines;
  if (!lowWhole) out.push(`${span(a, a)} ${rest(tail, nines)}`);
  const from = lowWhole ? a : a + 1;
  const to = highWhole ? b : b - 1;
  if (from <= to) out.push(`${span(from, to)} ${rest(zeros, nines)}`);
  if (!highWhole) out.push(`${span(b, b)} ${rest(zeros, high.slice(1))}`);
  return `${dot}(${out.join(" | ")})`;
}
