// Downloads against a server that fails as real ones do.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { within } from "../../src/store/abort.js";
import { download, HttpRefusal } from "../../src/store/download.js";
import { type HubServer, startHub } from "./hub-server.js";

const content = Buffer.alloc(300_000, "0123456789abcdefg");
let hub: HubServer;
let folder: string;
let path: string;
const address = () => `${hub.address}/owner/repo/resolve/main/big.bin`;
const quick = { pauseMs: 5 };

beforeEach(async () => {
  hub = await startHub({ "big.bin": content });
  folder = mkdtempSync(join(tmpdir(), "millrace-download-"));
  path = join(folder, "partial");
});
afterEach(async () => {
  await hub.close();
  rmSync(folder, { recursive: true });
});

test("a file arrives whole through a redirect", async () => {
  const seen: number[] = [];
  await download(address(), path, { onProgress: (done) => seen.push(done) });
  expect(readFileSync(path).equals(content)).toBe(true);
  expect(seen.at(-1)).toBe(content.length);
});

test("a cut connection is resumed where it broke off", async () => {
  hub.cuts.push(100_000, 50_000);
  await download(address(), path, { ...quick, bytes: content.length });
  expect(readFileSync(path).equals(content)).toBe(true);
  const ranges = hub.log.filter((line) => line.includes("/cdn/"));
  expect(ranges).toHaveLength(3);
  expect(ranges[1]).toMatch(/bytes=\d+-$/);
});

test("a partial file of an earlier run is continued, not fetched again", async () => {
  writeFileSync(path, content.subarray(0, 123_456));
  await download(address(), path, { bytes: content.length });
  expect(readFileSync(path).equals(content)).toBe(true);
  expect(hub.log.at(-1)).toBe("GET /cdn/big.bin bytes=123456-");
});

test("a server without ranges starts the file over", async () => {
  writeFileSync(path, "stale");
  hub.intercept = (request, response) => {
    if (!request.url?.startsWith("/cdn/")) return false;
    response.writeHead(200, { "content-length": String(content.length) }).end(content);
    return true;
  };
  await download(address(), path, quick);
  expect(readFileSync(path).equals(content)).toBe(true);
});

test("a partial file longer than the whole is discarded", async () => {
  writeFileSync(path, Buffer.concat([content, Buffer.from("more")]));
  await download(address(), path, { ...quick, bytes: content.length });
  expect(readFileSync(path).equals(content)).toBe(true);
});

test("a connection that never brings a byte is given up after the retries", async () => {
  hub.cuts.push(0, 0, 0);
  await expect(download(address(), path, { ...quick, retries: 2 })).rejects.toThrow(/connection/);
  expect(hub.log.filter((line) => line.includes("/cdn/"))).toHaveLength(3);
});

test.each([
  [401, /HF_TOKEN/, "model_access_denied"],
  [403, /HF_TOKEN/, "model_access_denied"],
  [404, /does not exist/, "model_not_found"],
  [429, /too many requests/, "rate_limited"],
])("HTTP %i becomes an error that says what to do", async (status, message, code) => {
  hub.intercept = (_, response) => {
    response.writeHead(status).end("no");
    return true;
  };
  const failure = download(address(), path, { ...quick, retries: 1 });
  await expect(failure).rejects.toThrow(message);
  await expect(failure).rejects.toMatchObject({ code });
  await expect(failure).rejects.toBeInstanceOf(HttpRefusal);
  // What will not change by itself is not asked again.
  expect(hub.log).toHaveLength(status === 429 ? 2 : 1);
});

test("429 and 503 are retried after the pause that the server names", async () => {
  const refusals = [429, 503];
  hub.intercept = (_, response) => {
    const status = refusals.shift();
    if (status === undefined) return false;
    response.writeHead(status, { "retry-after": "0" }).end();
    return true;
  };
  await download(address(), path, { pauseMs: 60_000 / 1000 });
  expect(readFileSync(path).equals(content)).toBe(true);
});

test("a server that never answers is given up in the time that is allowed", async () => {
  hub.intercept = () => true;
  const start = performance.now();
  await expect(download(address(), path, { firstAnswerMs: 300 })).rejects.toThrow(/did not answer within 0.3 s/);
  expect(performance.now() - start).toBeLessThan(2_000);
});

test("a body that stops coming is cut and asked for again", async () => {
  let silent = 1;
  hub.intercept = (request, response) => {
    if (!request.url?.startsWith("/cdn/") || silent-- <= 0) return false;
    response.writeHead(200, { "content-length": String(content.length) });
    response.write(content.subarray(0, 1000));
    return true;
  };
  await download(address(), path, { ...quick, silenceMs: 200, bytes: content.length });
  expect(readFileSync(path).equals(content)).toBe(true);
});

test("an abort ends it, and what came stays for the next time", async () => {
  hub.bytesPerSecond = 200_000;
  const controller = new AbortController();
  const failure = download(address(), path, {
    signal: controller.signal,
    onProgress: (done) => done > 20_000 && controller.abort(),
  });
  await expect(failure).rejects.toMatchObject({ name: "AbortError" });
  hub.bytesPerSecond = 0;
  await download(address(), path, { bytes: content.length });
  expect(readFileSync(path).equals(content)).toBe(true);
});

test("a time limit ends a request with a caller's signal beside it, and so does the signal", async () => {
  const caller = new AbortController();
  const late = within(10, caller.signal);
  await new Promise((done) => late.addEventListener("abort", done));
  expect((late.reason as Error).name).toBe("TimeoutError");
  const stopped = within(60_000, caller.signal);
  caller.abort(new Error("enough"));
  expect((stopped.reason as Error).message).toBe("enough");
});
