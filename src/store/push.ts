// Owns: a package into a registry: blobs that it lacks, in chunks, gone on with where a try broke off (this process's or
// an earlier one's), then the manifest byte for byte. Speaks OCI's chunked uploads, and the redirected ones of Ollama's
// registry (PATCH → 307 → PUT to a content server, whose parts' MD5 the last request names).
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { dirname } from "node:path";
import { UserError } from "../base/errors.js";
import { blobPath, partialPath } from "./blobs.js";
import { Hold, namesOf } from "./keep.js";
import { type Descriptor, descriptorsOf, hexOf, readManifest } from "./manifest.js";
import { displayName, type PackageId } from "./names.js";
import { Registry } from "./registry.js";
import type { PullOptions } from "./report.js";
import { newName, type Store } from "./store.js";

const atOnce = 3;
const chunkBytes = 16 << 20;

/** Throws UserError where the package is not here, or the registry refuses it. What has arrived there stays. */
export async function pushPackage(store: Store, name: string, options: PullOptions = {}): Promise<void> {
  const id = newName(name);
  const insecure = options.insecure || name.startsWith("http://");
  const hold = new Hold(store.folder);
  try {
    options.report?.status?.("retrieving manifest");
    const before = store.manifest(name);
    if (before !== null) await hold.add(...namesOf(before));
    const read = store.package(name) === null ? null : readManifest(store.folder, id);
    if (read === null) {
      throw new UserError(`there is no package ${JSON.stringify(name)} here to push`, {
        status: 404,
        code: "model_not_found",
      });
    }
    await hold.add(...namesOf(read.manifest));
    const registry = new Registry(id, { ...options, insecure });
    options.report?.note?.(`Pushing ${displayName(id)} to ${new URL(registry.address).host}`);
    await pushBlobs(store.folder, registry, id, descriptorsOf(read.manifest), options);
    options.report?.status?.("pushing manifest");
    await registry.putManifest(read.text, read.manifest.mediaType);
  } finally {
    hold.release();
  }
}

async function pushBlobs(
  folder: string,
  registry: Registry,
  id: PackageId,
  blobs: readonly Descriptor[],
  options: PullOptions,
): Promise<void> {
  const queue = [...new Map(blobs.map((one) => [one.digest, one])).values()];
  let failure: unknown;
  const work = async () => {
    for (let blob = queue.shift(); blob !== undefined && failure === undefined; blob = queue.shift()) {
      await new Upload(folder, registry, id, blob, options).run();
    }
  };
  const workers = Array.from({ length: atOnce }, () =>
    work().catch((error: unknown) => {
      failure ??= error;
    }),
  );
  await Promise.all(workers);
  options.signal?.throwIfAborted();
  if (failure !== undefined) throw failure;
}

/** Of one blob. */
class Upload {
  private readonly hex: string;
  /** Where an earlier process's upload goes on. */
  private readonly note: string;
  private readonly md5s: Buffer[] = [];

  constructor(
    private readonly folder: string,
    private readonly registry: Registry,
    id: PackageId,
    private readonly blob: Descriptor,
    private readonly options: PullOptions,
  ) {
    this.hex = hexOf(blob.digest);
    const where = createHash("sha256").update(`${registry.address} ${id.namespace}/${id.model}`).digest("hex");
    this.note = partialPath(folder, `push-${where.slice(0, 12)}-${this.hex}`);
  }

  async run(): Promise<void> {
    this.tell(0);
    const there = await this.registry.request("HEAD", this.registry.url(`blobs/${this.blob.digest}`));
    if (there.ok) {
      this.tell(this.blob.size);
      return;
    }
    if (there.status !== 404) await this.registry.expect(there, this.what);
    const file = await open(blobPath(this.folder, this.hex), "r");
    try {
      await this.send(file);
    } finally {
      await file.close();
    }
    rmSync(this.note, { force: true });
  }

  private get what(): string {
    return `${this.registry.repository} to push to`;
  }

  private tell(done: number): void {
    this.options.report?.progress?.(this.hex.slice(0, 12), done, this.blob.size, this.hex);
  }

  private async send(file: FileHandle): Promise<void> {
    let { location, offset } = (await this.earlier()) ?? (await this.begin());
    let fresh = 0;
    while (offset < this.blob.size) {
      this.options.signal?.throwIfAborted();
      if (this.md5s.length === 0) this.keep(location);
      const bytes = Buffer.alloc(Math.min(chunkBytes, this.blob.size - offset));
      await file.read(bytes, 0, bytes.length, offset);
      const response = await this.patch(location, bytes, offset);
      if (response.status === 404 || response.status === 416) {
        // The registry has lost the upload, or has more or less of it than was thought.
        await response.body?.cancel();
        if (++fresh > 3) throw this.registry.refusal(response.status, this.what);
        ({ location, offset } = (await this.where(location)) ?? (await this.begin()));
        continue;
      }
      if (response.status !== 307) await this.registry.expect(response, this.what);
      else await this.redirected(response, bytes);
      location = this.next(response, location);
      offset += bytes.length;
      this.tell(offset);
    }
    const url = new URL(location);
    url.searchParams.set("digest", this.blob.digest);
    if (this.md5s.length > 0) {
      const all = createHash("md5").update(Buffer.concat(this.md5s)).digest("hex");
      url.searchParams.set("etag", `${all}-${this.md5s.length}`);
    }
    const headers = { "content-type": "application/octet-stream", "content-length": "0" };
    await this.registry.expect(await this.registry.request("PUT", url.href, { headers }), this.what);
    this.tell(this.blob.size);
  }

  private patch(location: string, body: Uint8Array, offset: number): Promise<Response> {
    return this.registry.request("PATCH", location, {
      body,
      redirect: "manual",
      headers: {
        "content-type": "application/octet-stream",
        "content-range": `${offset}-${offset + body.length - 1}`,
        "x-redirect-uploads": "1",
      },
    });
  }

  private async redirected(response: Response, body: Uint8Array): Promise<void> {
    const to = response.headers.get("location");
    await response.body?.cancel();
    if (to === null) throw this.registry.refusal(502, this.what, "a redirect without a location");
    const headers = { "content-type": "application/octet-stream" };
    const url = new URL(to, this.registry.address).href;
    await this.registry.expect(await this.registry.request("PUT", url, { headers, body, foreign: true }), this.what);
    this.md5s.push(createHash("md5").update(body).digest());
    rmSync(this.note, { force: true });
  }

  /** Where the next chunk goes. */
  private next(response: Response, before: string): string {
    const given = response.headers.get("docker-upload-location");
    const own = response.status === 307 ? null : response.headers.get("location");
    return new URL(given ?? own ?? before, this.registry.address).href;
  }

  private async begin(): Promise<{ location: string; offset: number }> {
    this.md5s.length = 0;
    const headers = { "content-length": "0" };
    const response = await this.registry.request("POST", this.registry.url("blobs/uploads/"), { headers });
    await this.registry.expect(response, this.what);
    return { location: this.next(response, this.registry.url("blobs/uploads/")), offset: 0 };
  }

  private keep(location: string): void {
    mkdirSync(dirname(this.note), { recursive: true });
    writeFileSync(this.note, location);
  }

  /** An upload of an earlier process, where the registry still knows it. */
  private async earlier(): Promise<{ location: string; offset: number } | null> {
    let location: string;
    try {
      location = readFileSync(this.note, "utf8");
      if (new URL(location).host !== new URL(this.registry.address).host) return null;
    } catch {
      return null;
    }
    return this.where(location);
  }

  private async where(location: string): Promise<{ location: string; offset: number } | null> {
    const response = await this.registry.request("GET", location);
    await response.body?.cancel();
    const end = Number(/^(?:bytes=)?0-(\d+)$/.exec(response.headers.get("range") ?? "")?.[1] ?? Number.NaN);
    // Parts behind a redirect have their sums here, not there: such an upload begins anew.
    if (response.status !== 204 || !Number.isInteger(end) || this.md5s.length > 0) return null;
    return { location: this.next(response, location), offset: end === 0 ? 0 : end + 1 };
  }
}
