// Owns: constrained output measured: many tool calls and schema answers, drawn hot so that a model left alone would fail, each
// checked by another validator; and what constraining costs in throughput. Prints one JSON object.
//
//   node bench/constrained.mjs --model MODEL [--answers 10000] [--seconds S] [--parallel 16] [--max-tokens 400] [--seed 1]
//   node bench/constrained.mjs --model MODEL --cost [--rounds 5]
import { cpus, loadavg } from "node:os";
import { parseArgs } from "node:util";
import { Ajv2020 } from "ajv/dist/2020.js";
import { open } from "../dist/index.js";
import { answerKinds } from "./constrained-schemas.mjs";

const { values: flags } = parseArgs({
  options: {
    model: { type: "string" },
    answers: { type: "string", default: "10000" },
    seconds: { type: "string", default: "Infinity" },
    parallel: { type: "string", default: "16" },
    "max-tokens": { type: "string", default: "400" },
    seed: { type: "string", default: "1" },
    rounds: { type: "string", default: "5" },
    cost: { type: "boolean", default: false },
  },
});
if (flags.model === undefined) {
  console.error("node bench/constrained.mjs --model MODEL [--answers 10000] [--cost]");
  process.exit(2);
}
const parallel = Number(flags.parallel);
const ajv = new Ajv2020({ strict: false, validateFormats: false });
const model = await open(flags.model, { maxSequences: parallel });

/** Runs `parallel` of them at once until all are done, or until the time is up: what has begun is finished. */
async function all(count, one) {
  const end = performance.now() + Number(flags.seconds) * 1000;
  let next = 0;
  await Promise.all(
    Array.from({ length: parallel }, async () => {
      while (next < count && performance.now() < end) await one(next++);
    }),
  );
}

async function validity() {
  const found = { answers: 0, valid: 0, cut: 0, invalid: 0, tokens: 0 };
  const byKind = {};
  const wrong = [];
  const start = performance.now();
  await all(Number(flags.answers), async (i) => {
    const kind = answerKinds[i % answerKinds.length];
    const options = {
      ...kind.options,
      temperature: 0.9,
      maxTokens: Number(flags["max-tokens"]),
      seed: Number(flags.seed) * 1e6 + i,
    };
    const result = await model.chat(kind.prompt(i), options).result();
    const own = (byKind[kind.name] ??= { answers: 0, cut: 0, invalid: 0 });
    found.answers++;
    own.answers++;
    found.tokens += result.tokens.length;
    if (result.finishReason === "length") {
      found.cut++;
      own.cut++;
      return;
    }
    const problem = kind.problem(result, (schema, value) => ajv.validate(schema, value) || ajv.errorsText());
    if (problem === undefined) {
      found.valid++;
      return;
    }
    found.invalid++;
    own.invalid++;
    if (wrong.length < 10)
      wrong.push({ kind: kind.name, seed: options.seed, problem, text: result.text.slice(0, 300) });
  });
  const seconds = (performance.now() - start) / 1000;
  return { ...found, cutShare: found.cut / found.answers, seconds, byKind, wrong };
}

/** The same number of tokens with and without a grammar, in turn; the grammar forces nothing that a model would not draw. */
async function cost() {
  const tokens = 96;
  const rate = async (options) => {
    const start = performance.now();
    let count = 0;
    await Promise.all(
      Array.from({ length: parallel }, async (_, i) => {
        const answer = await model.chat("Tell me about the sea.", { maxTokens: tokens, seed: i, ...options }).result();
        count += answer.tokens.length;
      }),
    );
    return (count * 1000) / (performance.now() - start);
  };
  const kinds = {
    free: { ignoreEos: true },
    text: { format: { kind: "regex", pattern: "[^{}]+" } },
    array: {
      format: { kind: "schema", schema: { type: "array", minItems: 20, items: { type: "string", minLength: 20 } } },
    },
    autoTools: {
      tools: [{ name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } }],
    },
  };
  for (const [name, options] of Object.entries(kinds)) {
    const start = performance.now();
    await rate(options);
    console.error(`${name}: first run ${((performance.now() - start) / 1000).toFixed(1)} s`);
  }
  const rates = Object.fromEntries(Object.keys(kinds).map((name) => [name, []]));
  for (let round = 0; round < Number(flags.rounds); round++) {
    for (const [name, options] of Object.entries(kinds)) rates[name].push(await rate(options));
  }
  const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
  const medians = Object.fromEntries(Object.entries(rates).map(([name, list]) => [name, median(list)]));
  const ratio = Object.fromEntries(Object.entries(medians).map(([name, value]) => [name, value / medians.free]));
  return { parallel, tokensPerSecond: medians, ofFree: ratio, rates };
}

const result = flags.cost ? await cost() : await validity();
await model.close();
const machine = { cpu: cpus()[0].model, logical: cpus().length, load: loadavg()[0] };
console.log(JSON.stringify({ machine, model: flags.model, ...result }, null, 1));
