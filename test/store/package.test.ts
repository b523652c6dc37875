// Packages: made from Modelfiles, shown as the Modelfile that makes them again, copied, removed.
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openCheckpoint } from "../../src/formats/open.js";
import { encoderConfig } from "../../src/model/encoder-config.js";
import { settingsOf, withPackageMessages } from "../../src/store/apply.js";
import { type CreateRequest, createPackage } from "../../src/store/create.js";
import { modelfileOf, parseModelfile } from "../../src/store/modelfile.js";
import { type Package, Store, steps } from "../../src/store/store.js";
import { millrace } from "../support/millrace.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";
import { sha256 } from "./hub-server.js";

const tinyFolder = fileURLToPath(new URL("../golden/tiny/llama-mha", import.meta.url));
const bertFolder = fileURLToPath(new URL("../golden/encoders/bert", import.meta.url));
let home: string;
let work: string;
let store: Store;

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "millrace-packages-"));
  work = mkdtempSync(join(tmpdir(), "millrace-work-"));
  store = new Store(home);
  writeTinyLlamaGguf(join(work, "tiny.gguf"));
});
afterEach(() => {
  rmSync(home, { recursive: true, force: true });
  rmSync(work, { recursive: true, force: true });
});

const create = (name: string, modelfile: string, more: Partial<CreateRequest> = {}) => {
  const { warnings: _, ...recipe } = parseModelfile(modelfile);
  return createPackage(store, name, { ...recipe, folder: work, ...more });
};
const blobs = () => readdirSync(join(home, "blobs")).sort();
const modelfile = (one: Package) => modelfileOf([one.path, ...(one.projectors ?? [])], one);

const adapterFolder = () => {
  mkdirSync(join(work, "adapter"), { recursive: true });
  writeFileSync(join(work, "adapter", "adapter_config.json"), '{"peft_type": "LORA"}');
  writeFileSync(join(work, "adapter", "adapter_model.safetensors"), "weights of an adapter");
};

const everything = `
# Every instruction there is
FROM ./tiny.gguf
TEMPLATE """{{ if .System }}[{{ .System }}]
{{ end }}{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}"""
SYSTEM """
You are "quoted",
over several lines.
"""
parameter temperature 0.25
PARAMETER top_k 7
PARAMETER num_ctx 64
PARAMETER use_mmap true
PARAMETER stop <|end|>
PARAMETER stop "two words "
MESSAGE user Hello there
MESSAGE assistant """Hi.
How are you?"""
ADAPTER ./adapter
DRAFT ./draft.gguf
RENDERER some-renderer
PARSER some-parser
REQUIRES 0.14.0
LICENSE """MIT
with a second line"""
LICENSE Another one
`;

test("every instruction is in the package, and its Modelfile makes the same package again", async () => {
  adapterFolder();
  writeTinyLlamaGguf(join(work, "draft.gguf"));
  const one = await create("team/all:v1", everything);
  expect(one).toMatchObject({
    name: "team/all:v1",
    system: '\nYou are "quoted",\nover several lines.\n',
    template: { kind: "go" },
    parameters: { temperature: 0.25, top_k: 7, num_ctx: 64, use_mmap: true, stop: ["<|end|>", "two words "] },
    messages: [
      { role: "user", content: "Hello there" },
      { role: "assistant", content: "Hi.\nHow are you?" },
    ],
    license: ["MIT\nwith a second line", "Another one"],
    config: { format: "gguf", family: "llama", renderer: "some-renderer", parser: "some-parser", requires: "0.14.0" },
  });
  expect(readFileSync(one.path).equals(readFileSync(join(work, "tiny.gguf")))).toBe(true);
  expect(readdirSync(one.adapters![0]).sort()).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
  expect(existsSync(one.draft!)).toBe(true);
  const again = await create("again", modelfile(one));
  expect(again.digest).toBe(one.digest);
  expect(modelfile(again)).toBe(modelfile(one));
});

test("a package of a base with a licence and parameters makes the same package again", async () => {
  await create("licensed", "FROM ./tiny.gguf\nPARAMETER temperature 0.5\nLICENSE theirs\n");
  const one = await create("upon", 'FROM licensed\nSYSTEM """Two\nlines."""\nTEMPLATE {{ .Prompt }}\nLICENSE mine\n');
  expect(one.license).toEqual(["theirs", "mine"]);
  const again = await create("upon-again", modelfile(one));
  expect(again.digest).toBe(one.digest);
});

test.each([
  ["SYSTEM x", /line 1: there is no FROM/],
  ["FROM a\nFORM b", /line 2: there is no instruction "FORM"/],
  ["FROM a\n\nPARAMETER temprature 1", /line 3: there is no parameter "temprature"; there are num_ctx/],
  ["FROM a\nPARAMETER top_k many", /line 2: top_k is "many"; it must be a number/],
  ["FROM a\nPARAMETER top_k 1.5", /line 2: top_k is 1.5; it must be a whole number/],
  ["FROM a\nPARAMETER temperature", /line 2: PARAMETER needs a value/],
  ["FROM a\nMESSAGE robot hi", /line 2: a MESSAGE is of system, user, assistant/],
  ['FROM a\nSYSTEM """x\ny', /line 2: the quotes that begin here do not end/],
  ["FROM a\nSYSTEM x\nSYSTEM y", /line 3: SYSTEM is given twice/],
  ["FROM", /line 1: FROM needs a value/],
  ["FROM a\nREQUIRES soon", /line 2: REQUIRES is a version such as 0\.14\.0; not "soon"/],
])("%j is refused with its line", (text, message) => {
  expect(() => parseModelfile(text)).toThrow(message);
});

test.each([
  ["# nothing\nFROM ./none.gguf", /^Modelfile, line 2: there is no file or folder .*none\.gguf/],
  ["FROM ./tiny.gguf\n\nADAPTER ./none", /^Modelfile, line 3: there is no adapter .*none/],
  ["FROM ./tiny.gguf\nADAPTER .", /^Modelfile, line 2: .* is no adapter/],
  ["FROM ./tiny.gguf\nDRAFT ./none.gguf", /^Modelfile, line 2: there is no file or folder/],
  ['FROM ./tiny.gguf\nTEMPLATE {{ block "a" . }}{{ end }}', /^Modelfile, line 2: the template's line 1: /],
  ["FROM ./tiny.gguf\nFROM ./text.gguf", /^Modelfile, line 2: /],
  ["FROM ./tiny.gguf\nFROM ./second.gguf", /^Modelfile, line 1: a package has one model; .*tiny\.gguf, second\.gguf/],
])("what %j asks for and cannot be had is told with its line", async (text, message) => {
  writeFileSync(join(work, "text.gguf"), "no model");
  writeTinyLlamaGguf(join(work, "second.gguf"), { seed: 2 });
  await expect(create("one", text)).rejects.toThrow(message);
  expect(store.list()).toEqual([]);
});

test("a folder's pooling belongs to the package: an embedding model is pooled as its folder says", async () => {
  cpSync(bertFolder, join(work, "encoder"), { recursive: true });
  writeFileSync(join(work, "encoder", "1_Pooling", "config.json"), '{"pooling_mode_cls_token": true}');
  const one = await create("encoder", "FROM ./encoder");
  const checkpoint = await openCheckpoint(one.path);
  try {
    expect(encoderConfig(checkpoint)).toMatchObject({ kind: "bert", pooling: "cls" });
  } finally {
    checkpoint.close();
  }
});

test("the draft model is quantised on its own", async () => {
  writeTinyLlamaGguf(join(work, "draft.gguf"));
  const quantizer = async (path: string, quantisation: string, output: string) => {
    writeFileSync(output, `${readFileSync(path).length} bytes as ${quantisation}`);
  };
  const { warnings: _, ...recipe } = parseModelfile("FROM ./tiny.gguf\nDRAFT ./draft.gguf");
  const request = { ...recipe, folder: work, draftQuantize: "q8_0" };
  const one = await createPackage(store, "one", request, { quantizer });
  expect(readFileSync(one.draft!, "utf8")).toMatch(/^\d+ bytes as q8_0$/);
  expect(readFileSync(one.path).equals(readFileSync(join(work, "tiny.gguf")))).toBe(true);
  await expect(create("two", "FROM ./tiny.gguf", { draftQuantize: "q8_0" })).rejects.toThrow("no DRAFT to quantise");
});

test("a retired parameter is read, said and left out", () => {
  const { parameters, warnings } = parseModelfile("FROM a\nPARAMETER mirostat 2\nPARAMETER seed 3");
  expect(parameters).toEqual({ seed: 3 });
  expect(warnings).toEqual(["PARAMETER mirostat does nothing any more"]);
  const kept = parseModelfile("FROM a\nRENDERER qwen3\nPARSER qwen3\nREQUIRES 0.14.0").warnings;
  expect(kept.join("\n")).toMatch(/RENDERER qwen3 .*the template is used\nPARSER qwen3 .*\nREQUIRES 0\.14\.0 .*Ollama/);
});

test("a package from a package has the same weights, what is new over what was, and shares every blob", async () => {
  await create("base", "FROM tiny.gguf\nSYSTEM old\nPARAMETER top_k 3\nPARAMETER seed 1\nMESSAGE user a\nLICENSE L");
  const before = blobs().length;
  const one = await create("child", "FROM base\nSYSTEM new\nPARAMETER top_k 4");
  expect(one).toMatchObject({ system: "new", parameters: { top_k: 4, seed: 1 }, license: ["L"] });
  expect(one.messages).toEqual([{ role: "user", content: "a" }]);
  expect(one.path).toBe(store.package("base")?.path);
  // A system message, parameters and a config.
  expect(blobs().length).toBe(before + 3);
});

test("rm frees what nothing else names, and only that", async () => {
  await create("one", "FROM tiny.gguf\nSYSTEM one");
  await create("two", "FROM one\nSYSTEM two");
  await store.copy("two", "three");
  expect(store.list().map(({ name }) => name)).toEqual(["one:latest", "three:latest", "two:latest"]);
  const { path } = store.package("two")!;
  await store.remove("one");
  expect(blobs()).not.toContain(`sha256-${sha256(Buffer.from("one"))}`);
  await store.remove("two");
  expect(readFileSync(path).equals(readFileSync(join(work, "tiny.gguf")))).toBe(true);
  await store.remove("three");
  expect(blobs()).toEqual([]);
  expect(readdirSync(join(home, "models"))).toEqual([]);
  expect(readdirSync(join(home, "manifests"))).toEqual([]);
  await expect(store.remove("three")).rejects.toMatchObject({ status: 404 });
  await expect(store.copy("three", "four")).rejects.toMatchObject({ status: 404 });
});

test("a safetensors folder becomes a package, file by file", async () => {
  cpSync(tinyFolder, join(work, "folder"), { recursive: true });
  const one = await create("folder", "FROM ./folder");
  expect(one.config).toMatchObject({ format: "safetensors", family: "llama" });
  expect(readdirSync(one.path).sort()).toEqual(["config.json", "model.safetensors"]);
});

test("blobs that were sent before become a package; paths in a request are refused", async () => {
  const bytes = readFileSync(join(work, "tiny.gguf"));
  const digest = `sha256:${sha256(bytes)}`;
  const files = { "m.gguf": digest };
  await expect(createPackage(store, "sent", { files })).rejects.toThrow(/there is no blob sha256:/);
  await store.addBlob(
    digest,
    (async function* () {
      yield bytes;
    })(),
  );
  expect(store.hasBlob(digest)).toBe(true);
  const one = await createPackage(store, "sent", { files, system: "S", parameters: { stop: ["x"] } });
  expect(one).toMatchObject({ system: "S", config: { family: "llama" } });
  await expect(createPackage(store, "x", { from: ["/etc/passwd"] })).rejects.toThrow(/is a path: send the file/);
  const wrong = `sha256:${"0".repeat(64)}`;
  await expect(
    store.addBlob(
      wrong,
      (async function* () {
        yield bytes;
      })(),
    ),
  ).rejects.toThrow(/discarded/);
  expect(store.hasBlob(wrong)).toBe(false);
});

test("what cannot be made leaves the package of that name as it was", async () => {
  const { digest } = await create("kept", "FROM tiny.gguf");
  writeFileSync(join(work, "junk.gguf"), "not a model");
  await expect(create("kept", "FROM junk.gguf")).rejects.toThrow(/junk.gguf/);
  await expect(create("kept", "FROM ./absent.gguf")).rejects.toThrow(/there is no file or folder/);
  await expect(create("kept", "FROM tiny.gguf\nTEMPLATE {{ if }}")).rejects.toThrow(/line 1/);
  await expect(create("a b", "FROM tiny.gguf")).rejects.toThrow(/cannot be a package's name/);
  const aborted = AbortSignal.abort();
  await expect(
    createPackage(store, "kept", { from: ["tiny.gguf"], folder: work, system: "s" }, { signal: aborted }),
  ).rejects.toThrow(/abort/i);
  expect(store.package("kept")?.digest).toBe(digest);
});

test("progress comes as Ollama's lines, and leaving them aborts", async () => {
  const seen: string[] = [];
  const work1 = steps("pulling", (report, signal) =>
    createPackage(store, "p", { from: ["tiny.gguf"], folder: work }, { report, signal }),
  );
  for await (const { status } of work1) seen.push(status);
  expect(seen).toEqual(expect.arrayContaining(["parsing GGUF", "writing manifest", "success"]));
  expect(seen.some((status) => status.startsWith("creating new layer sha256:"))).toBe(true);
  let aborted = false;
  const endless = steps("pulling", (report, signal) => {
    report.status?.("waiting");
    return new Promise((_, reject) =>
      signal.addEventListener("abort", () => {
        aborted = true;
        reject(signal.reason);
      }),
    );
  });
  for await (const _ of endless) break;
  expect(aborted).toBe(true);
});

test("parameters become settings, and a package's messages come before the conversation", () => {
  expect(settingsOf({ top_k: -1, top_p: 2, repeat_penalty: 1.1, num_predict: -1, num_ctx: 128, stop: [""] })).toEqual({
    sampling: { topK: 0, topP: 1, repetitionPenalty: 1.1 },
    stop: [],
    contextLength: 128,
  });
  const one = { system: "S", messages: [{ role: "user", content: "a" }] };
  const user = { role: "user", content: "q" } as const;
  const roles = (messages: readonly { role: string; content: unknown }[]) =>
    messages.map((m) => `${m.role}:${m.content}`);
  expect(roles(withPackageMessages(one, [user]))).toEqual(["system:S", "user:a", "user:q"]);
  const own = { role: "system", content: "mine" } as const;
  expect(roles(withPackageMessages(one, [own, user]))).toEqual(["system:mine", "user:a", "user:q"]);
  expect(withPackageMessages(undefined, [user])).toEqual([user]);
});

test("the commands: create, show, run, ls, cp, rm", async () => {
  const env = { MILLRACE_HOME: home, CI: "true" };
  const run = (...args: string[]) => millrace(args, { env, cwd: work });
  writeFileSync(join(work, "Modelfile"), "FROM tiny.gguf\nSYSTEM S\nPARAMETER num_predict 3\nPARAMETER seed 5\n");
  expect(await run("create", "mine")).toMatchObject({ code: 0, stdout: "created mine:latest\n" });
  const shown = await run("show", "mine");
  expect(shown.stdout).toMatch(/architecture +llama[\s\S]*num_predict +3[\s\S]*System\n +S/);
  expect((await run("show", "mine", "--system")).stdout).toBe("S\n");
  expect(JSON.parse((await run("show", "mine", "--json")).stdout)).toMatchObject({ system: "S" });
  const said = JSON.parse((await run("run", "mine", "--raw", "--json", "--device", "reference", "abc")).stdout);
  expect(said).toMatchObject({ generatedTokens: 3, seed: "5", model: "mine" });
  expect((await run("cp", "mine", "other/name:x")).code).toBe(0);
  expect((await run("ls", "other")).stdout).toContain("other/name:x");
  expect((await run("rm", "mine", "other/name:x")).stdout).toBe("deleted mine\ndeleted other/name:x\n");
  expect(await run("show", "mine")).toMatchObject({ code: 1, stderr: expect.stringContaining("there is no package") });
});

test("create -q quantises, and ps and stop say where there is no server", async () => {
  const env = { MILLRACE_HOME: home, CI: "true", OLLAMA_HOST: "127.0.0.1:9" };
  writeTinyLlamaGguf(join(work, "tiny.gguf"), { type: "F32" });
  const made = await millrace(["create", "q", "-f", "-", "-q", "q8_0"], { env, cwd: work, input: "FROM tiny.gguf\n" });
  expect(made.stderr).toContain("quantizing F32 model to Q8_0");
  expect(store.package("q")?.config.quantization).toBe("Q8_0");
  for (const args of [["ps"], ["stop", "q"]]) {
    const { code, stderr } = await millrace(args, { env });
    expect(code).toBe(1);
    expect(stderr).toContain("there is no server on http://127.0.0.1:9: start one with millrace serve");
  }
});
