// Owns: what guessing tokens from the text itself is worth where an answer copies from its prompt, and where it does not: the
// same greedy requests with and without, in turns; the answers must be equal. Medians of generated tokens a second (the
// prompt's time is not in it) and every run's ratio.
//
//   node bench/lookup.mjs --model FILE.gguf [--rounds 5] [--threads 2]
import { parseArgs } from "node:util";
import { open } from "../dist/index.js";

const { values } = parseArgs({
  options: {
    model: { type: "string" },
    rounds: { type: "string", default: "5" },
    threads: { type: "string", default: "2" },
  },
});
const [rounds, threads] = [values.rounds, values.threads].map(Number);

const code = `export function parseAddress(text: string): Address {
  const [host, port] = text.split(":");
  if (host === undefined || host === "") throw new Error("an address needs a host");
  const number = port === undefined ? 80 : Number(port);
  if (!Number.isInteger(number) || number < 1 || number > 65535) throw new Error("a port is from 1 to 65535");
  return { host, port: number };
}
`;
const list = Array.from(
  { length: 14 },
  (_, i) =>
    `{"id": ${1000 + 37 * i}, "name": "part ${String.fromCharCode(65 + i)}${(i * i) % 17}", "price": ${(i * 7.35 + 2).toFixed(2)}}`,
).join("\n");
const minutes =
  "The committee met on Tuesday in the small hall of the library. Mrs. Okafor opened the meeting at nine and read the " +
  "report of the last one, which was accepted without changes. The roof over the reading room leaks in two places; the " +
  "builder asks for four thousand euros and can begin in March. Mr. Lindqvist proposed to ask a second builder. The " +
  "motion passed with five votes to two. The next meeting is on the ninth of February.";

/** Two short texts that are copied show the small models what is asked for; the long one has stood in the prompt once. */
const copied = (one, two, text) =>
  [one, two].map((short) => `Text:\n${short}\nThe same text, copied:\n${short}\n\n`).join("") +
  `Text:\n${text}\nThe same text, copied:\n`;
const tasks = {
  "copies code": copied("const total = items.length;", "if (done) return;", code),
  "copies records": copied('{"id": 1, "name": "bolt"}', '{"id": 7, "name": "nut"}', list),
  "copies prose": copied("The shop opens at eight.", "Nobody saw the red car.", minutes),
  "writes anew": "A short story about a lighthouse keeper who learns to play the violin.\n\nOnce",
};
const answers = { "copies code": code, "copies records": list, "copies prose": minutes };

async function run(model, prompt, maxTokens) {
  let first = 0;
  let [text, tokens, later] = ["", 0, 0];
  for await (const part of model.generate(prompt, { temperature: 0, maxTokens, ignoreEos: true })) {
    text += part.text;
    tokens += part.tokens.length;
    if (first === 0) first = performance.now();
    else later += part.tokens.length;
  }
  return { text, tokens, rate: (later / (performance.now() - first)) * 1000 };
}

const options = { threads, contextLength: 2048, maxSequences: 1, device: "cpu" };
const [plain, guessing] = [
  await open(values.model, { ...options, lookup: false }),
  await open(values.model, { ...options, lookup: true }),
];
/** Of the answer's lines, those that the text has. */
function shareOfLines(wanted, text) {
  const lines = text.trim().split(/\n|(?<=[.;]) /);
  return lines.filter((line) => wanted.includes(line.trim())).length / lines.length;
}
const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];
for (const [name, prompt] of Object.entries(tasks)) {
  const runs = [];
  const wanted = answers[name];
  let same = 0;
  const length = wanted === undefined ? 160 : guessing.tokenize(wanted).length;
  for (let round = -1; round < rounds; round++) {
    const without = await run(plain, prompt, length);
    const with_ = await run(guessing, prompt, length);
    if (without.text !== with_.text) throw new Error(`${name}: the answers differ`);
    // The first round reads the prompts into the caches.
    if (round < 0 && wanted !== undefined) same = shareOfLines(wanted, without.text);
    if (round >= 0) runs.push({ without: without.rate, with: with_.rate });
  }
  const [without, with_] = [median(runs.map((one) => one.without)), median(runs.map((one) => one.with))];
  const ratios = runs.map((one) => (one.with / one.without).toFixed(2)).join(" ");
  const figures = `${without.toFixed(0)} → ${with_.toFixed(0)} tokens/s, ${(with_ / without).toFixed(2)}× (${ratios})`;
  const copy = wanted === undefined ? "" : `; ${(100 * same).toFixed(0)} % of its lines are the text's`;
  console.log(`${name.padEnd(16)} ${length} tokens: ${figures}${copy}`);
}
await plain.close();
await guessing.close();
