// A local server that speaks the hub's protocol: listings of a repository, resolve addresses that redirect to a content
// server, ETags, byte ranges; and that fails in the ways real ones do.
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface HubServer {
  readonly address: string;
  /** path in the repository → content */
  readonly files: Map<string, Buffer>;
  /** Every request as "METHOD path", with the range where there was one. */
  readonly log: string[];
  /** Called before the default answer; true: it has answered. */
  intercept: ((request: IncomingMessage, response: ServerResponse) => boolean) | null;
  /** Bytes of each content answer after which the connection is cut; shifted once an answer; empty: not cut. */
  readonly cuts: number[];
  /** Bytes a second of content; 0: as fast as can be. */
  bytesPerSecond: number;
  /** The token that is asked for; null: none. */
  token: string | null;
  close(): Promise<void>;
}

export const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");
const gitBlob = (bytes: Buffer) => createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");

/** Large files are LFS on the hub; here everything from 1000 bytes on is. */
const isLfs = (bytes: Buffer) => bytes.length >= 1000;

function entry(path: string, bytes: Buffer) {
  const lfs = isLfs(bytes) ? { lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 130 } } : {};
  return { type: "file", path, size: bytes.length, oid: gitBlob(bytes), ...lfs };
}

async function sendContent(hub: HubServer, bytes: Buffer, request: IncomingMessage, response: ServerResponse) {
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
  const start = range ? Number(range[1]) : 0;
  if (range && start >= bytes.length) {
    response.writeHead(416, { "content-range": `bytes */${bytes.length}` }).end();
    return;
  }
  const rest = range?.[2] ? bytes.subarray(start, Number(range[2]) + 1) : bytes.subarray(start);
  const headers: Record<string, string> = { "content-length": String(rest.length), "accept-ranges": "bytes" };
  if (range) headers["content-range"] = `bytes ${start}-${start + rest.length - 1}/${bytes.length}`;
  response.writeHead(range ? 206 : 200, headers);
  response.flushHeaders();
  const cut = hub.cuts.shift();
  const part = cut === undefined ? rest : rest.subarray(0, cut);
  const step = hub.bytesPerSecond > 0 ? Math.max(1, Math.ceil(hub.bytesPerSecond / 50)) : 1 << 16;
  for (let at = 0; at < part.length && !response.destroyed; at += step) {
    response.write(part.subarray(at, at + step));
    if (hub.bytesPerSecond > 0) await new Promise((done) => setTimeout(done, 20));
  }
  if (cut === undefined) response.end();
  else setTimeout(() => response.destroy(), 20);
}

export async function startHub(files: Record<string, Buffer>): Promise<HubServer> {
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? "/", "http://hub");
    hub.log.push(`${request.method} ${url.pathname}${request.headers.range ? ` ${request.headers.range}` : ""}`);
    if (hub.intercept?.(request, response)) return;
    const path = decodeURIComponent(url.pathname);
    if (path.startsWith("/cdn/")) {
      // The content server is another origin: the token must not reach it.
      void sendContent(hub, hub.files.get(path.slice(5))!, request, response);
      return;
    }
    if (hub.token !== null && request.headers.authorization !== `Bearer ${hub.token}`) {
      response.writeHead(401, { "content-type": "application/json" }).end('{"error":"Invalid credentials"}');
      return;
    }
    if (path.startsWith("/api/models/owner/repo/tree/main")) {
      const listing = [...hub.files].map(([name, bytes]) => entry(name, bytes));
      const half = Math.ceil(listing.length / 2);
      const page = url.searchParams.get("cursor") === "2" ? listing.slice(half) : listing.slice(0, half);
      const headers: Record<string, string> = { "content-type": "application/json" };
      if (page.length === half && listing.length > half && url.searchParams.get("cursor") === null) {
        headers.link = `<${hub.address}${url.pathname}?recursive=true&cursor=2>; rel="next"`;
      }
      response.writeHead(200, headers).end(JSON.stringify(page));
      return;
    }
    const file = /^\/owner\/repo\/resolve\/main\/(.+)$/.exec(path)?.[1];
    const bytes = file === undefined ? undefined : hub.files.get(file);
    if (file === undefined || bytes === undefined) {
      response.writeHead(404, { "content-type": "application/json" }).end('{"error":"Entry not found"}');
      return;
    }
    const etag = { "x-linked-etag": `"${sha256(bytes)}"`, "x-linked-size": String(bytes.length) };
    response.writeHead(302, { location: `/cdn/${file}`, ...etag }).end();
  });
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  const hub: HubServer = {
    address: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    files: new Map(Object.entries(files)),
    log: [],
    intercept: null,
    cuts: [],
    bytesPerSecond: 0,
    token: null,
    close: () =>
      new Promise((done) => {
        server.closeAllConnections();
        server.close(() => done());
      }),
  };
  return hub;
}
