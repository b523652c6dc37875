// Owns: a run's latencies as a picture: one SVG with the cumulative share of requests (or tokens) that took at most so
// long, a panel a figure. Text and lines only: it opens in any browser and needs no library.
import type { LoadSamples } from "./load.js";
import { spread } from "./load.js";

const names = { ttft: "TTFT", tpot: "TPOT", itl: "ITL", e2e: "E2E" } as const;
const meanings = {
  ttft: "time to first token",
  tpot: "time per output token",
  itl: "between two events",
  e2e: "whole answer",
} as const;

const panel = { width: 420, height: 260, left: 50, right: 20, top: 50, bottom: 40 };
/** Of a curve: more could not be seen. */
const points = 200;

/** Figures without values are left out. */
export function loadPlot(title: string, samples: LoadSamples): string {
  const shown = (Object.keys(names) as (keyof typeof names)[]).filter((name) => samples[name].length > 0);
  const rows = Math.max(1, Math.ceil(shown.length / 2));
  const width = 2 * panel.width;
  const height = 40 + rows * panel.height;
  const panels = shown.map((name, i) => {
    const at = `translate(${(i % 2) * panel.width} ${40 + Math.floor(i / 2) * panel.height})`;
    return `<g transform="${at}">${curve(`${names[name]}: ${meanings[name]}`, samples[name])}</g>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="white"/>
<text x="${panel.left}" y="26" font-size="16">${escaped(title)}</text>
${panels.join("\n")}
</svg>
`;
}

function curve(name: string, values: readonly number[]): string {
  const sorted = [...values].sort((a, b) => a - b);
  const { left, top } = panel;
  const width = panel.width - left - panel.right;
  const height = panel.height - top - panel.bottom;
  const most = niceAbove(sorted[sorted.length - 1]);
  const x = (ms: number) => (left + (ms / most) * width).toFixed(1);
  const y = (share: number) => (top + (1 - share) * height).toFixed(1);
  const count = Math.min(points, sorted.length);
  const steps = Array.from({ length: count }, (_, i) => Math.ceil(((i + 1) / count) * sorted.length));
  const line = [`${x(0)},${y(0)}`, ...steps.map((rank) => `${x(sorted[rank - 1])},${y(rank / sorted.length)}`)];
  const { median, p90, p99 } = spread(sorted)!;
  const summary = `median ${figure(median)} ms, p90 ${figure(p90)} ms, p99 ${figure(p99)} ms`;
  const grid = [0, 0.25, 0.5, 0.75, 1].map(
    (share) =>
      `<path d="M${left} ${y(share)}h${width}" stroke="#ddd"/>` +
      `<text x="${left - 6}" y="${y(share)}" dy="4" text-anchor="end">${share * 100} %</text>` +
      `<text x="${x(share * most)}" y="${top + height + 16}" text-anchor="middle">${figure(share * most)}</text>`,
  );
  return `<text x="${left}" y="18" font-size="13">${name}</text><text x="${left}" y="34" fill="#555">${summary}</text>
${grid.join("\n")}
<polyline points="${line.join(" ")}" fill="none" stroke="#1565c0" stroke-width="1.5"/>
<text x="${left + width / 2}" y="${top + height + 32}" text-anchor="middle">ms</text>`;
}

/** 1, 2 or 5 times a power of ten. */
function niceAbove(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 5].find((factor) => factor * power >= value) ?? 10);
}

const figure = (value: number) => String(Number(value.toPrecision(3)));

const escaped = (text: string) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
