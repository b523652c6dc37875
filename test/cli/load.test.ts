// The load tool: its arrivals and figures, and a run against a server.
import { afterEach, describe, expect, it } from "vitest";
import { gap, generator, type LoadOptions, runLoad, spread } from "../../src/cli/load.js";
import { loadPlot } from "../../src/cli/load-plot.js";
import { type Rig, rig } from "../server/support.js";
import { letters } from "../session/fakes.js";

const open: Rig[] = [];
afterEach(async () => {
  for (const { server } of open.splice(0)) await server.close();
});

describe("arrivals", () => {
  it.each([0.25, 1, 4])("come at the rate, burstiness %d spreading them", (burstiness) => {
    const random = generator(1);
    const gaps = Array.from({ length: 20_000 }, () => gap({ rate: 5, burstiness }, random));
    const mean = gaps.reduce((a, b) => a + b, 0) / gaps.length;
    const variance = gaps.reduce((a, b) => a + (b - mean) ** 2, 0) / gaps.length;
    expect(mean).toBeCloseTo(0.2, 1);
    // Of a gamma distribution: mean² / shape.
    expect(variance / (mean * mean)).toBeGreaterThan(0.85 / burstiness);
    expect(variance / (mean * mean)).toBeLessThan(1.15 / burstiness);
  });
});

it("gives nearest-rank percentiles", () => {
  expect(spread(Array.from({ length: 100 }, (_, i) => i + 1))).toEqual({ mean: 50.5, median: 50, p90: 90, p99: 99 });
  expect(spread([])).toBeNull();
});

describe("a run", () => {
  const options: LoadOptions = {
    ...{ url: "", model: "tiny", requests: 12, rate: Number.POSITIVE_INFINITY, burstiness: 1, concurrency: 4 },
    ...{ workload: "prefix", input: 16, output: 8, prefixes: 2, ignoreEos: true, seed: 1 },
    ...{ goodTtft: Number.POSITIVE_INFINITY, goodTpot: Number.POSITIVE_INFINITY },
  };

  it("counts what came back", async () => {
    const one = await rig({ script: letters, contextLength: 4096 });
    open.push(one);
    const { report } = await runLoad({ ...options, url: `${one.server.url}/v1` });
    expect(report).toMatchObject({ requests: 12, failed: 0, generatedTokens: 96, errors: [] });
    expect(report.promptTokens).toBeGreaterThan(12 * 16);
    expect(report.goodput).toBeCloseTo(report.requestsPerSecond);
    expect(report.ttft!.median).toBeLessThanOrEqual(report.e2e!.median);
    const strict = await runLoad({ ...options, url: one.server.url, goodTtft: 0 });
    expect(strict.report.goodput).toBe(0);
  });

  it("counts what failed, in the server's words", async () => {
    const one = await rig();
    open.push(one);
    const { report } = await runLoad({ ...options, url: one.server.url, model: "none" });
    expect(report).toMatchObject({ requests: 0, failed: 12, ttft: null });
    expect(report.errors[0]).toContain('There is no model \\"none\\"');
  });
});

describe("the plot", () => {
  it("draws each figure's distribution, up to 1", () => {
    const values = Array.from({ length: 1000 }, (_, i) => i + 1);
    const svg = loadPlot("tiny <&>", { ttft: values, tpot: [], itl: [3], e2e: values });
    expect(svg).toContain("tiny &lt;&amp;&gt;");
    for (const name of ["TTFT", "ITL", "E2E"]) expect(svg).toContain(`>${name}`);
    expect(svg).not.toContain(">TPOT");
    expect(svg).toContain("p99 990 ms");
    const lines = [...svg.matchAll(/<polyline points="([^"]+)"/g)].map(([, points]) => points.split(" "));
    expect(lines.length).toBe(3);
    for (const points of lines) {
      expect(points.length).toBeLessThan(300);
      const heights = points.map((point) => Number(point.split(",")[1]));
      expect(heights).toEqual([...heights].sort((a, b) => b - a));
    }
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
  });
});
