// How long a GPU does nothing between decode steps: an engine in this process, requests at once on random weights, and the
// GPU's own clock at the first and last kernel of each step. After `npm run build`, on a machine with a GPU:
//
//   node bench/gpu-idle.mjs [--shape llama-3.1-8b] [--quant bf16] [--batch 64] [--steps 500] [--prompt 128] [--depth 2] [--temperature 0]
import { parseArgs } from "node:util";
import { randomModel } from "../dist/cli/shape.js";
import { CudaDevice } from "../dist/device/cuda/device.js";
import { Engine } from "../dist/engine/loop.js";
import { planModel } from "../dist/host/load.js";
import { randomCheckpoint } from "../dist/model/random.js";
import { plainSampling } from "../dist/session/sampling.js";

const { values } = parseArgs({
  options: {
    ...{ shape: { type: "string", default: "llama-3.1-8b" }, quant: { type: "string", default: "bf16" } },
    ...{ batch: { type: "string", default: "64" }, steps: { type: "string", default: "500" } },
    ...{ prompt: { type: "string", default: "128" }, depth: { type: "string", default: "2" } },
    temperature: { type: "string", default: "0" },
  },
});
const [batch, steps, prompt, depth] = [values.batch, values.steps, values.prompt, values.depth].map(Number);

const device = new CudaDevice();
const checkpoint = randomCheckpoint(randomModel({ ...values, weightSeed: 1 }));
const spec = { contextLength: prompt + steps + 64, maxSequences: batch, depth };
const { plan, limits } = planModel(checkpoint, device, spec);
const program = await device.compile(plan, checkpoint, limits);

const times = [];
program.watch = (began, ended) => times.push([Number(began), Number(ended)]);
let open = batch;
const engine = new Engine(program, limits, {
  ...{ stepTokens: limits.maxTokens, prefixCache: false },
  pause: () => new Promise((resolve) => setImmediate(resolve)),
  now: () => performance.now(),
  output: { start() {}, token() {}, flush() {}, finish: () => open-- },
});
for (let i = 0; i < batch; i++) {
  engine.submit({
    ...{ id: `r${i}`, n: 1, minTokens: 0, stopIds: [], priority: 0, maxTokens: steps + 32 },
    promptIds: Int32Array.from({ length: prompt }, (_, t) => (i * 977 + t * 31) % plan.vocabSize),
    sampling: { ...plainSampling, temperature: Number(values.temperature), seed: BigInt(i) },
  });
}
while (open > 0) {
  await engine.step();
  await new Promise((resolve) => setImmediate(resolve));
}
// All prompts are read by then, and all answers go on.
const own = times.slice(-steps - 16, -16);
const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
const gaps = own.slice(1).map(([began], i) => began - own[i][1]);
const idle = gaps.reduce((a, b) => a + b, 0) / (own.at(-1)[1] - own[0][0]);
console.log(
  JSON.stringify({
    ...values,
    steps: own.length,
    stepUs: median(own.map(([began, ended]) => (ended - began) / 1000)),
    gapUs: { median: median(gaps) / 1000, most: Math.max(...gaps) / 1000 },
    idlePercent: 100 * idle,
  }),
);
await program.close();
await device.close();
process.exit(0);
