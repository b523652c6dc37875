// Owns: as much of vitest as the device tests need, for machines that have nothing but node and a GPU: scripts/gpu-tests.mjs
// puts this in vitest's place. Tests run one after another; failures are printed; the last line counts.
import { isDeepStrictEqual } from "node:util";

type Body = () => unknown;
interface Entry {
  readonly name: string;
  readonly body?: Body;
}

const entries: Entry[] = [];
const path: string[] = [];

function add(name: string, body?: Body): void {
  entries.push({ name: [...path, name].join(" > "), body });
}

const named = (name: string, value: unknown): string =>
  name.replace("%s", String(value)).replace(/\$(\w+)/g, (_, key) => String((value as Record<string, unknown>)[key]));

export const test = Object.assign((name: string, body: Body) => add(name, body), {
  skip: (name: string, _body?: Body) => add(name),
  skipIf: (skip: boolean) => (name: string, body: Body) => add(name, skip ? undefined : body),
  each:
    <T>(values: readonly T[]) =>
    (name: string, body: (value: T) => unknown) => {
      for (const value of values) add(named(name, value), () => body(value));
    },
});
export const it = test;

function group(name: string, body: Body): void {
  path.push(name);
  body();
  path.pop();
}

export const describe = Object.assign(group, {
  skipIf: (skip: boolean) => ({
    each:
      <T>(values: readonly T[]) =>
      (name: string, body: (value: T) => unknown) => {
        if (!skip) for (const value of values) group(named(name, value), () => body(value));
      },
  }),
  each:
    <T>(values: readonly T[]) =>
    (name: string, body: (value: T) => unknown) => {
      for (const value of values) group(named(name, value), () => body(value));
    },
});

const show = (value: unknown): string => {
  const text =
    JSON.stringify(value, (_, v) => (ArrayBuffer.isView(v) ? Array.from(v as Int32Array) : v)) ?? String(value);
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
};

/** Ignores undefined properties, as toEqual does. */
const plain = (value: unknown): unknown =>
  value !== null && typeof value === "object" && !ArrayBuffer.isView(value) && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).filter(([, v]) => v !== undefined))
    : value;

function matchers(actual: unknown, message: string | undefined, negate: boolean) {
  const assert = (ok: boolean, text: string) => {
    if (ok === negate) throw new Error(`${message ?? ""} ${show(actual)} is${negate ? "" : " not"} ${text}`);
  };
  const thrown = (error: unknown, wanted: unknown) => {
    if (wanted === undefined) return true;
    if (wanted instanceof RegExp) return wanted.test((error as Error).message);
    if (typeof wanted === "function") return error instanceof wanted;
    return (error as Error).message.includes(String(wanted));
  };
  return {
    toBe: (other: unknown) => assert(Object.is(actual, other), show(other)),
    toEqual: (other: unknown) => assert(isDeepStrictEqual(plain(actual), plain(other)), show(other)),
    toBeCloseTo: (other: number, digits = 2) =>
      assert(Math.abs((actual as number) - other) < 10 ** -digits / 2, `close to ${other}`),
    toBeGreaterThan: (other: number) => assert((actual as number) > other, `> ${other}`),
    toBeGreaterThanOrEqual: (other: number) => assert((actual as number) >= other, `>= ${other}`),
    toBeLessThan: (other: number) => assert((actual as number) < other, `< ${other}`),
    toBeLessThanOrEqual: (other: number) => assert((actual as number) <= other, `<= ${other}`),
    toHaveLength: (n: number) => assert((actual as { length: number }).length === n, `of length ${n}`),
    toThrow: (wanted?: unknown) => {
      try {
        (actual as Body)();
      } catch (error) {
        assert(thrown(error, wanted), `throwing ${String(wanted)} (${(error as Error).message})`);
        return;
      }
      assert(false, "throwing");
    },
    rejects: {
      toThrow: async (wanted?: unknown) => {
        try {
          await actual;
        } catch (error) {
          assert(thrown(error, wanted), `rejecting with ${String(wanted)} (${(error as Error).message})`);
          return;
        }
        assert(false, "rejecting");
      },
    },
  };
}

export function expect(actual: unknown, message?: string) {
  return { ...matchers(actual, message, false), not: matchers(actual, message, true) };
}

/** Runs what was declared. only: names that have this in them. part: "2/5", every fifth test from the second on, each told
 *  with its seconds (slow tools take them in several processes). Returns how many failed. */
export async function run(only = "", part = ""): Promise<number> {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  const [nth, of] = part ? part.split("/").map(Number) : [1, 1];
  const chosen = entries.filter(({ name, body }) => name.includes(only) && (body || !part));
  for (const { name, body } of chosen.filter((_, i) => i % of === nth - 1)) {
    if (!body) {
      counts.skipped++;
      continue;
    }
    const started = performance.now();
    try {
      await body();
      counts.passed++;
      if (part) console.log(`${((performance.now() - started) / 1000).toFixed(1)} s ${name}`);
    } catch (error) {
      counts.failed++;
      console.log(
        `FAIL ${name}\n     ${(error as Error).stack?.split("\n").slice(0, 4).join("\n     ").slice(0, 900)}`,
      );
    }
  }
  console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
  return counts.failed;
}
