// The command as a person meets it: help, mistakes, and the commands that need no engine.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { millrace } from "../support/millrace.js";
import { vocabularyGguf } from "./vocabulary.js";

let home: string;
let vocabulary: string;
const run = (args: readonly string[], input: string | Buffer = "", env: Record<string, string> = {}) =>
  millrace(args, { input, env: { MILLRACE_HOME: home, ...env } });

beforeAll(() => {
  home = mkdtempSync(join(tmpdir(), "millrace-cli-"));
  vocabulary = join(home, "vocabulary.gguf");
  writeFileSync(vocabulary, vocabularyGguf());
});
afterAll(() => rmSync(home, { recursive: true }));

const commands = ["run", "serve", "pull", "list", "inspect", "bench", "tokenize", "render"];

test("without arguments it shows its commands", async () => {
  const { code, stdout, stderr } = await run([]);
  expect(code).toBe(0);
  expect(stderr).toBe("");
  for (const name of commands) expect(stdout).toMatch(new RegExp(`^  ${name} `, "m"));
});

test.each([...commands, "bench latency", "bench throughput"])(
  "%s --help has a description and examples",
  async (name) => {
    const { code, stdout } = await run([...name.split(" "), "--help"]);
    expect(code).toBe(0);
    expect(stdout).toContain(`Usage: millrace ${name}`);
    expect(stdout).toContain(name === "bench" ? "latency" : "Examples:");
  },
);

test("help COMMAND is COMMAND --help", async () => {
  const [a, b] = await Promise.all([run(["help", "pull"]), run(["pull", "--help"])]);
  expect(a.stdout).toBe(b.stdout);
});

test("--version is the package's", async () => {
  expect((await run(["--version"])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
});

test.each([
  [["frobnicate"], /unknown command 'frobnicate'/],
  [["pull"], /missing required argument 'model'/],
  [["run", "smollm2", "--frobnicate", "x"], /unknown option '--frobnicate'/],
  [["run", "smollm2", "--threads", "none", "x"], /It must be a whole number from 1 to 1024/],
  [["run", "smollm2", "--top-p", "1.5", "x"], /It must be a number from/],
  [["run", "smollm2", "--device", "abacus", "x"], /It must be one of auto, cpu, cuda, reference/],
  [["render"], /give a MODEL, or a template with --template/],
  [["run", "smollm2"], /there is no prompt/],
  [["serve", "./a.gguf", "./a.gguf"], /\.\/a\.gguf was given twice.*--id/],
])("a wrong command line (%j) says what is wrong and ends with 2", async (args, message) => {
  const { code, stdout, stderr } = await run(args);
  expect(stderr).toMatch(message);
  expect(stdout).toBe("");
  expect(code).toBe(2);
});

test("a model that is not there says what a model may be, and ends with 1", async () => {
  const { code, stderr } = await run(["tokenize", "./no/such.gguf"]);
  expect(code).toBe(1);
  expect(stderr).toContain("there is no file or folder ./no/such.gguf");
  expect(stderr).toContain("hf:owner/repo");
  expect(stderr).not.toContain("    at ");
});

test("DEBUG=1 shows where an error happened", async () => {
  const { stderr } = await run(["tokenize", "./no/such.gguf"], "", { DEBUG: "1" });
  expect(stderr).toContain("    at ");
});

test("a file that is no model is named as such", async () => {
  const path = join(home, "junk.gguf");
  writeFileSync(path, "not a model");
  const { code, stderr } = await run(["inspect", path]);
  expect(code).toBe(1);
  expect(stderr).toContain("junk.gguf");
  expect(stderr).not.toContain("a fault in millrace");
});

test("list tells what is here and what could be", async () => {
  const text = await run(["list"]);
  expect(text.stdout).toMatch(/^NAME +ID +SIZE +MODIFIED\n$/);
  expect(text.stderr).toContain("millrace pull smollm2");
  expect((await run(["ls"])).stdout).toBe(text.stdout);
  const { folder, models, catalogue } = JSON.parse((await run(["list", "--json"])).stdout);
  expect(folder).toBe(home);
  expect(models).toEqual([]);
  expect(catalogue[0]).toMatchObject({ name: "smollm2", bytes: 98_362_432, license: "Apache-2.0" });
});

test("a path of yours is not pulled", async () => {
  const { code, stderr } = await run(["pull", vocabulary]);
  expect(code).toBe(1);
  expect(stderr).toContain("nothing to pull");
});

test("tokenize takes a GGUF that holds only a vocabulary, and adds BOS only when asked", async () => {
  const plain = await run(["tokenize", vocabulary], "ab<end>");
  expect(plain.stderr).toBe("");
  const withBos = await run(["tokenize", vocabulary, "--bos"], "ab<end>");
  const [ids, idsWithBos] = [plain, withBos].map(({ stdout }) => JSON.parse(stdout));
  expect(idsWithBos).toEqual([1, ...ids]);
  const special = JSON.parse((await run(["tokenize", vocabulary, "--special"], "ab<end>")).stdout);
  expect(special.at(-1)).toBe(2);
  expect(ids).not.toContain(2);
});

test("tokenize keeps every byte of its input: spaces, line ends, nothing at all", async () => {
  const ids = async (text: string) => JSON.parse((await run(["tokenize", vocabulary], text)).stdout);
  expect(await ids("")).toEqual([]);
  expect(await ids("a\n")).toHaveLength((await ids("a")).length + 1);
});

test("input that is not UTF-8 is refused", async () => {
  const { code, stderr } = await run(["tokenize", vocabulary], Buffer.from([0x61, 0xff]));
  expect(code).toBe(1);
  expect(stderr).toContain("not UTF-8");
});

const template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{{ tail }}";

test("render uses a template file, with further fields as its variables", async () => {
  const path = join(home, "t.jinja");
  writeFileSync(path, `${template}{% if add_generation_prompt %}[assistant]{% endif %}`);
  const input = { messages: [{ role: "user", content: "Hi" }], tail: "T" };
  const opened = await run(["render", "--template", path], JSON.stringify(input));
  expect(opened.stdout).toBe("[user] Hi\nT[assistant]");
  const closed = await run(["render", "--template", path], JSON.stringify({ ...input, add_generation_prompt: false }));
  expect(closed.stdout).toBe("[user] Hi\nT");
});

test.each([
  ["nothing", "", /no JSON/],
  ["a list", "[]", /an object with messages is wanted/],
  ["no messages", "{}", /messages must be a list/],
  ["tools that are none", '{"messages":[],"tools":3}', /tools must be a list/],
  ["a message without a role", '{"messages":[{}]}', /role/],
])("render refuses %s", async (_, input, message) => {
  const path = join(home, "t.jinja");
  writeFileSync(path, template);
  const { code, stderr } = await run(["render", "--template", path], input);
  expect(code).toBe(1);
  expect(stderr).toMatch(message);
});

test("render looks at its input before it looks for the template", async () => {
  const { code, stderr } = await run(["render", "--template", join(home, "none.jinja")], "{}");
  expect(code).toBe(1);
  expect(stderr).toMatch(/messages must be a list/);
});

test("a reader that closes its end early is no failure", async () => {
  const { startMillrace } = await import("../support/millrace.js");
  const running = startMillrace(["--help"], { env: { MILLRACE_HOME: home } });
  running.child.stdout?.destroy();
  expect((await running.done).code).toBe(0);
});
