// Owns: registries to test with: Debian's docker-registry as a process (scripts/test-registry.mjs fetches it), and a small
// one of our own that asks for tokens, redirects uploads and fails in the ways real ones do.
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");

/** Path of the docker-registry program; undefined, said aloud, where there is none. */
export function dockerRegistry(): string | undefined {
  const given = process.env.MILLRACE_TEST_REGISTRY;
  if (given !== undefined && existsSync(given)) return given;
  const found = spawnSync("docker-registry", ["--version"], { stdio: "ignore" });
  if (found.status === 0) return "docker-registry";
  console.warn("SKIPPED: tests against a real registry, because there is no docker-registry (MILLRACE_TEST_REGISTRY)");
  return undefined;
}

export interface RealRegistry {
  /** "127.0.0.1:5000" */
  readonly host: string;
  readonly folder: string;
  close(): Promise<void>;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}

export async function startDockerRegistry(program: string): Promise<RealRegistry> {
  const folder = mkdtempSync(join(tmpdir(), "millrace-registry-"));
  const host = `127.0.0.1:${await freePort()}`;
  const config = join(folder, "config.yml");
  const storage = `storage: {filesystem: {rootdirectory: ${JSON.stringify(folder)}}}`;
  writeFileSync(config, `version: 0.1\nlog: {level: error}\n${storage}\nhttp: {addr: ${JSON.stringify(host)}}\n`);
  const child: ChildProcess = spawn(program, ["serve", config], { stdio: "ignore" });
  for (let tries = 0; ; tries++) {
    const up = await fetch(`http://${host}/v2/`).then(
      ({ ok }) => ok,
      () => false,
    );
    if (up) break;
    if (tries > 200 || child.exitCode !== null) throw new Error("docker-registry does not come up");
    await new Promise((next) => setTimeout(next, 50));
  }
  const close = async () => {
    const gone = new Promise((done) => child.on("close", done));
    child.kill();
    await gone;
    rmSync(folder, { recursive: true, force: true });
  };
  return { host, folder, close };
}

export interface FakeRegistry {
  readonly host: string;
  readonly blobs: Map<string, Buffer>;
  /** "repository:tag" → the manifest's text */
  readonly manifests: Map<string, string>;
  readonly log: string[];
  /** Called before the default answer; true: it has answered. */
  intercept: ((request: IncomingMessage, response: ServerResponse) => boolean) | null;
  /** The token that is asked for; null: none. */
  token: string | null;
  /** What the realm wants as Authorization; null: gives its token to anyone. */
  password: string | null;
  /** Parts go to another address, as at Ollama's registry. */
  redirectUploads: boolean;
  /** MD5 sums that the last request of a redirected upload named. */
  readonly etags: string[];
  close(): Promise<void>;
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

export async function startFakeRegistry(): Promise<FakeRegistry> {
  const uploads = new Map<string, Buffer>();
  let count = 0;
  const send = (
    response: ServerResponse,
    status: number,
    headers: Record<string, string> = {},
    body?: string | Buffer,
  ) => {
    response.writeHead(status, headers).end(body);
  };
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const url = new URL(request.url ?? "/", `http://${registry.host}`);
    registry.log.push(`${request.method} ${url.pathname}`);
    if (registry.intercept?.(request, response)) return;
    if (url.pathname === "/token") {
      if (registry.password !== null && request.headers.authorization !== registry.password) return send(response, 401);
      return send(response, 200, {}, JSON.stringify({ token: registry.token }));
    }
    const part = /^\/parts\/(\w+)$/.exec(url.pathname)?.[1];
    if (part !== undefined) {
      if (request.headers.authorization !== undefined) return send(response, 400, {}, "a token went astray");
      uploads.set(part, Buffer.concat([uploads.get(part)!, await bodyOf(request)]));
      return send(response, 200);
    }
    if (registry.token !== null && request.headers.authorization !== `Bearer ${registry.token}`) {
      const realm = `http://${registry.host}/token`;
      const challenge = `Bearer realm="${realm}",service="reg",scope="repository:me/model:pull"`;
      return send(
        response,
        401,
        { "www-authenticate": challenge },
        '{"errors":[{"message":"authentication required"}]}',
      );
    }
    const [, repository, kind, name] = /^\/v2\/(.+?)\/(manifests|blobs)\/(.+)$/.exec(url.pathname) ?? [];
    if (kind === "manifests") {
      if (request.method === "PUT") {
        registry.manifests.set(`${repository}:${name}`, (await bodyOf(request)).toString());
        return send(response, 201);
      }
      const text = registry.manifests.get(`${repository}:${name}`);
      return text === undefined
        ? send(response, 404, {}, '{"errors":[{"message":"manifest unknown"}]}')
        : send(response, 200, {}, text);
    }
    if (kind !== "blobs") return send(response, 404);
    const upload = /^uploads\/(\w+)$/.exec(name)?.[1];
    if (request.method === "POST") {
      const id = `u${++count}`;
      uploads.set(id, Buffer.alloc(0));
      return send(response, 202, { location: `/v2/${repository}/blobs/uploads/${id}` });
    }
    if (upload !== undefined) {
      const held = uploads.get(upload);
      if (held === undefined) return send(response, 404);
      const location = `/v2/${repository}/blobs/uploads/${upload}`;
      if (request.method === "GET")
        return send(response, 204, { location, range: `0-${Math.max(0, held.length - 1)}` });
      if (request.method === "PATCH") {
        if (registry.redirectUploads && request.headers["x-redirect-uploads"]) {
          await bodyOf(request);
          return send(response, 307, { location: `/parts/${upload}`, "docker-upload-location": location });
        }
        uploads.set(upload, Buffer.concat([held, await bodyOf(request)]));
        return send(response, 202, { location });
      }
      const hex = url.searchParams.get("digest")?.slice(7) ?? "";
      registry.etags.push(url.searchParams.get("etag") ?? "");
      if (sha256(held) !== hex) return send(response, 400, {}, '{"errors":[{"message":"digest did not match"}]}');
      registry.blobs.set(hex, held);
      return send(response, 201);
    }
    const blob = registry.blobs.get(name.slice(7));
    if (blob === undefined) return send(response, 404);
    const start = Number(/^bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0);
    const rest = blob.subarray(start);
    send(
      response,
      start > 0 ? 206 : 200,
      { "content-length": String(rest.length) },
      request.method === "HEAD" ? undefined : rest,
    );
  };
  const server = createServer((request, response) => void answer(request, response).catch(() => response.destroy()));
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  const registry: FakeRegistry = {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    blobs: new Map(),
    manifests: new Map(),
    log: [],
    intercept: null,
    token: null,
    password: null,
    redirectUploads: false,
    etags: [],
    close: () =>
      new Promise((done) => {
        server.closeAllConnections();
        server.close(() => done());
      }),
  };
  return registry;
}
