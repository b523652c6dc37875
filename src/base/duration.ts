// Owns: durations as people and Ollama's clients write them: "5m", "1h30m", "1.5s", or seconds as a number.

const units: Record<string, number> = { ns: 1e-6, us: 1e-3, µs: 1e-3, ms: 1, s: 1e3, m: 60e3, h: 3600e3 };

/** Milliseconds; a negative duration is Infinity (for ever). undefined: not a duration. */
export function parseDuration(value: string | number): number | undefined {
  const ms = typeof value === "number" ? value * 1000 : fromText(value.trim());
  if (ms === undefined || Number.isNaN(ms)) return undefined;
  return ms < 0 ? Number.POSITIVE_INFINITY : ms;
}

function fromText(text: string): number | undefined {
  if (/^[+-]?\d+(\.\d+)?$/.test(text)) return Number(text) * 1000;
  const parts = /^([+-]?)((?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+)$/.exec(text);
  if (parts === null) return undefined;
  let ms = 0;
  for (const [, count, unit] of parts[2].matchAll(/(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)/g))
    ms += Number(count) * units[unit];
  return parts[1] === "-" ? -ms : ms;
}
