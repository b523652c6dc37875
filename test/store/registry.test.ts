// Push and pull: byte for byte through a real registry, and against one that fails as real ones do.
import { generateKeyPairSync } from "node:crypto";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { createPackage } from "../../src/store/create.js";
import { parseModelfile } from "../../src/store/modelfile.js";
import { parseOpenSshKey, signedByOllamaKey } from "../../src/store/ollama-key.js";
import { downloadParallel, hasHoles, NoRanges } from "../../src/store/parallel.js";
import { pushPackage } from "../../src/store/push.js";
import { Store } from "../../src/store/store.js";
import { millrace } from "../support/millrace.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";
import { sha256, startHub } from "./hub-server.js";
import { dockerRegistry, type FakeRegistry, startDockerRegistry, startFakeRegistry } from "./registry-server.js";

let folders: string[];
const temporary = () => {
  const folder = mkdtempSync(join(tmpdir(), "millrace-registry-test-"));
  folders.push(folder);
  return folder;
};
beforeEach(() => {
  folders = [];
});
afterEach(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

async function filled(
  name: string,
  modelfile = "FROM tiny.gguf\nSYSTEM Speak.\nPARAMETER top_k 3\nLICENSE MIT",
): Promise<Store> {
  const work = temporary();
  writeTinyLlamaGguf(join(work, "tiny.gguf"));
  const store = new Store(temporary());
  const { warnings: _, ...recipe } = parseModelfile(modelfile);
  await createPackage(store, name, { ...recipe, folder: work });
  return store;
}

function everyFile(folder: string): Record<string, string> {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return Object.fromEntries(
    files.map((entry) => [entry.name, sha256(readFileSync(join(entry.parentPath, entry.name)))]),
  );
}

const docker = dockerRegistry();

describe.skipIf(docker === undefined)("docker-registry", () => {
  test("a package that was pushed is pulled byte for byte, and pushed again without sending a blob", async () => {
    const registry = await startDockerRegistry(docker!);
    try {
      const name = `${registry.host}/team/model:v1`;
      const from = await filled(name);
      const sent: number[] = [];
      await pushPackage(from, name, { report: { progress: (_file, done) => sent.push(done) } });
      expect(sent.length).toBeGreaterThan(4);
      const to = new Store(temporary());
      const pulled = await to.pull(name);
      expect(pulled).toMatchObject({ name, digest: from.package(name)!.digest, system: "Speak.", license: ["MIT"] });
      expect(everyFile(join(to.folder, "blobs"))).toEqual(everyFile(join(from.folder, "blobs")));
      expect(everyFile(join(to.folder, "manifests"))).toEqual(everyFile(join(from.folder, "manifests")));
      await pushPackage(to, name);
      await expect(to.pull(`${registry.host}/team/model:absent`)).rejects.toThrow(
        /has no team\/model:absent \(HTTP 404/,
      );
      const env = { MILLRACE_HOME: temporary(), CI: "true" };
      const { code, stdout } = await millrace(["pull", name], { env });
      expect([code, stdout]).toEqual([0, expect.stringContaining(name)]);
    } finally {
      await registry.close();
    }
  });
});

describe("a registry that", () => {
  let registry: FakeRegistry;
  let name: string;
  let from: Store;
  let to: Store;
  const quick = { pauseMs: 5, retries: 2 };
  const pushed = () => pushPackage(from, name, quick);
  const pulled = () => to.pull(name, quick);

  beforeEach(async () => {
    registry = await startFakeRegistry();
    name = `${registry.host}/me/model`;
    from = await filled(name);
    to = new Store(temporary());
  });
  afterEach(() => registry.close());

  test("asks for a token gets one from its realm, for push and pull", async () => {
    registry.token = "t1";
    await pushed();
    registry.token = "t2";
    expect((await pulled()).digest).toBe(from.package(name)!.digest);
    expect(registry.log.filter((line) => line === "GET /token")).toHaveLength(2);
  });

  test("gives no token without a password says so, and takes the one of MILLRACE_REGISTRY_AUTH", async () => {
    registry.token = "t";
    registry.password = `Basic ${Buffer.from("me:secret").toString("base64")}`;
    await expect(pulled()).rejects.toMatchObject({
      status: 401,
      message: expect.stringContaining("MILLRACE_REGISTRY_AUTH"),
    });
    const env = { MILLRACE_HOME: from.folder, MILLRACE_REGISTRY_AUTH: `${registry.host}=me:secret`, CI: "true" };
    expect((await millrace(["push", name], { env })).code).toBe(0);
    const other = { ...env, MILLRACE_REGISTRY_AUTH: "elsewhere=me:secret" };
    expect(await millrace(["push", name], { env: other })).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("HTTP 401"),
    });
  });

  test("redirects uploads gets the parts where it wants them, with their sums", async () => {
    registry.token = "t";
    registry.redirectUploads = true;
    await pushed();
    registry.redirectUploads = false;
    expect(registry.etags.every((etag) => /^[0-9a-f]{32}-1$/.test(etag))).toBe(true);
    expect((await pulled()).digest).toBe(from.package(name)!.digest);
  });

  test("cuts the connection, or answers 500 and 429, is asked again", async () => {
    let failures = 0;
    registry.intercept = (request, response) => {
      if (++failures % 2 === 0 || failures > 20) return false;
      if (failures % 3 === 0) response.writeHead(429, { "retry-after": "0" }).end();
      else if (failures % 5 === 0) response.writeHead(500).end();
      else request.socket.destroy();
      return true;
    };
    await pushPackage(from, name, { pauseMs: 5 });
    failures = 0;
    expect((await to.pull(name, { pauseMs: 5 })).digest).toBe(from.package(name)!.digest);
  });

  test("goes on answering 429 is given up with its status", async () => {
    registry.intercept = (_request, response) => {
      response.writeHead(429, { "retry-after": "0" }).end();
      return true;
    };
    await expect(pulled()).rejects.toMatchObject({
      status: 429,
      message: expect.stringContaining("too many requests"),
    });
  });

  test("sends other bytes than it said is refused, and nothing is listed", async () => {
    await pushed();
    const [model] = from.package(name)!.files;
    const real = registry.blobs.get(model.sha256)!;
    registry.blobs.set(model.sha256, Buffer.alloc(real.length, "x"));
    await expect(pulled()).rejects.toMatchObject({ status: 502, code: "digest_mismatch" });
    expect(to.list()).toEqual([]);
    registry.blobs.set(model.sha256, real);
    expect((await pulled()).files).toEqual([model]);
  });

  test("gives no manifest of a model, or an unsafe one, is refused", async () => {
    registry.manifests.set("me/model:latest", "<html>");
    await expect(pulled()).rejects.toThrow(/is no manifest/);
    registry.manifests.set("me/model:latest", '{"layers": []}');
    await expect(pulled()).rejects.toThrow(/must have a config and layers/);
    const one = { mediaType: "application/vnd.millrace.image.file", digest: `sha256:${"0".repeat(64)}`, size: 1 };
    const bad = { ...one, annotations: { "org.opencontainers.image.title": "../../x" } };
    registry.manifests.set("me/model:latest", JSON.stringify({ config: one, layers: [bad] }));
    await expect(pulled()).rejects.toThrow(/unsafe path/);
    const other = { ...one, mediaType: "application/vnd.oci.image.layer.v1.tar" };
    registry.manifests.set("me/model:latest", JSON.stringify({ config: one, layers: [other] }));
    await expect(pulled()).rejects.toThrow(/holds no model/);
  });

  test("is not there, and a name that is nothing, say what a model may be", async () => {
    await registry.close();
    await expect(pulled()).rejects.toThrow(/cannot be reached.*A model is a name in the catalogue: smollm2/);
  });

  test("a push that was cut goes on where the registry's upload stopped", async () => {
    const work = temporary();
    writeTinyLlamaGguf(join(work, "big.gguf"), { hidden: 512, feedForward: 2048, layers: 3 });
    const { warnings: _, ...recipe } = parseModelfile("FROM big.gguf");
    const big = await createPackage(from, name, { ...recipe, folder: work });
    expect(big.bytes).toBeGreaterThan(20 << 20);
    const sizes: number[] = [];
    const leaving = new AbortController();
    registry.intercept = (request) => {
      if (request.method !== "PATCH" || Number(request.headers["content-length"]) < 1e6) return false;
      sizes.push(Number(request.headers["content-length"]));
      if (sizes.length === 2) leaving.abort();
      return false;
    };
    await expect(pushPackage(from, name, { ...quick, signal: leaving.signal })).rejects.toThrow(/abort/i);
    expect(sizes).toHaveLength(2);
    await pushed();
    const again = sizes.slice(2).reduce((a, b) => a + b, 0);
    expect(again).toBe(big.files[0].bytes - (16 << 20));
    expect((await pulled()).digest).toBe(big.digest);
  });

  test("plain HTTP to another machine needs --insecure", async () => {
    await expect(to.pull("http://registry.example.org/a/b")).rejects.toThrow(/--insecure allows it/);
  });
});

test("a token's address is signed with Ollama's key", () => {
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  const seed = privateKey.export({ format: "der", type: "pkcs8" }).subarray(-32);
  const point = publicKey.export({ format: "der", type: "spki" }).subarray(-32);
  const field = (bytes: Buffer) => Buffer.concat([Buffer.from([0, 0, 0, bytes.length]), bytes]);
  const word = (text: string) => field(Buffer.from(text));
  const blob = Buffer.concat([word("ssh-ed25519"), field(point)]);
  const inner = Buffer.concat([
    Buffer.alloc(8),
    blob,
    field(Buffer.concat([seed, point])),
    word(""),
    Buffer.from([1, 2, 3]),
  ]);
  const file = Buffer.concat([
    Buffer.from("openssh-key-v1\0"),
    word("none"),
    word("none"),
    word(""),
    Buffer.from([0, 0, 0, 1]),
    field(blob),
    field(inner),
  ]);
  const text = `-----BEGIN OPENSSH PRIVATE KEY-----\n${file.toString("base64")}\n-----END OPENSSH PRIVATE KEY-----\n`;
  expect(parseOpenSshKey(text).publicText).toBe(blob.toString("base64"));
  const home = temporary();
  mkdirSync(join(home, ".ollama"));
  writeFileSync(join(home, ".ollama", "id_ed25519"), text);
  const url = new URL("https://example.org/token?service=x");
  expect(signedByOllamaKey(url, home)).toMatch(
    new RegExp(`^${blob.toString("base64").replace(/[+]/g, "\\+")}:[\\w+/=]{88}$`),
  );
  expect(url.searchParams.get("ts")).toMatch(/^\d{10}$/);
  expect(signedByOllamaKey(new URL("https://example.org"), temporary())).toBeUndefined();
});

describe("a large file over several connections", () => {
  const content = Buffer.from(Array.from({ length: 300_000 }, (_, at) => (at * 7 + (at >> 8)) & 255));
  test("arrives whole, goes on with what it lacks, and mends cut connections", async () => {
    const hub = await startHub({ "big.bin": content });
    try {
      const url = `${hub.address}/cdn/big.bin`;
      const path = join(temporary(), "big");
      const options = { connections: 3, chunkBytes: 40_000, pauseMs: 5 };
      hub.cuts.push(1000, 20_000);
      await downloadParallel(url, path, content.length, options);
      expect(readFileSync(path).equals(content)).toBe(true);
      expect(hasHoles(path)).toBe(false);
      const again = join(temporary(), "again");
      const leaving = new AbortController();
      const stop = {
        ...options,
        signal: leaving.signal,
        onProgress: (done: number) => done > 150_000 && leaving.abort(),
      };
      await expect(downloadParallel(url, again, content.length, stop as never)).rejects.toThrow(/abort/i);
      expect(hasHoles(again)).toBe(true);
      hub.log.length = 0;
      await downloadParallel(url, again, content.length, options);
      expect(readFileSync(again).equals(content)).toBe(true);
      expect(hub.log.length).toBeLessThan(8);
    } finally {
      await hub.close();
    }
  });

  test("of a server that knows no ranges is left to one connection", async () => {
    const hub = await startHub({ "big.bin": content });
    hub.intercept = (_request, response) => {
      response.writeHead(200, { "content-length": String(content.length) }).end(content);
      return true;
    };
    const path = join(temporary(), "big");
    await expect(downloadParallel(`${hub.address}/x`, path, content.length, { chunkBytes: 40_000 })).rejects.toThrow(
      NoRanges,
    );
    expect(readdirSync(join(path, ".."))).toEqual([]);
    await hub.close();
  });
});
