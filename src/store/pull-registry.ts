// Owns: a package out of a registry: its manifest, then its blobs, each verified by its digest. The manifest is kept byte
// for byte.

import { join } from "node:path";
import { UserError } from "../base/errors.js";
import { followed } from "./abort.js";
import { hasBlob } from "./blobs.js";
import { fetchVerified } from "./fetch.js";
import type { Hold } from "./keep.js";
import { withLock } from "./lock.js";
import { type Descriptor, descriptorsOf, hexOf, layerType, parseManifest } from "./manifest.js";
import { displayName, type PackageId } from "./names.js";
import { Registry } from "./registry.js";
import type { PullOptions } from "./report.js";

/** Blobs at once: a model is one large one and a few small. */
const atOnce = 3;

/** What a blob is called in progress and errors. */
function labelOf({ digest, mediaType }: Descriptor): string {
  const kind = Object.entries(layerType).find(([, type]) => type === mediaType)?.[0] ?? "layer";
  return `${kind} ${hexOf(digest).slice(0, 12)}`;
}

/** The manifest's text; its blobs are here and held. Throws UserError and leaves what has come for the next try. */
export async function pullFromRegistry(
  folder: string,
  id: PackageId,
  hold: Hold,
  options: PullOptions,
): Promise<string> {
  const { report, signal } = options;
  const registry = new Registry(id, options);
  report?.status?.("pulling manifest");
  report?.note?.(`Pulling ${displayName(id)} from ${new URL(registry.address).host}`);
  const text = await registry.manifest();
  const manifest = parseManifest(text, `${registry.address}/${registry.repository}:${id.tag}`);
  const wanted = [...new Map(descriptorsOf(manifest).map((one) => [one.digest, one])).values()];
  if (!wanted.some(({ mediaType }) => mediaType === layerType.model || mediaType === layerType.file)) {
    throw new UserError(`${displayName(id)} holds no model: its layers are ${types(wanted)}`, {
      code: "unsupported_package",
    });
  }
  await hold.add(...wanted.map(({ digest }) => hexOf(digest)));
  const failing = followed(signal);
  // Large ones first: they take longest.
  const queue = wanted.sort((a, b) => b.size - a.size);
  const work = async () => {
    for (let blob = queue.shift(); blob !== undefined; blob = queue.shift()) {
      await fetchBlob(folder, registry, blob, { ...options, signal: failing.signal });
    }
  };
  const workers = Array.from({ length: atOnce }, () =>
    work().catch((error: unknown) => {
      failing.abort(error);
      throw error;
    }),
  );
  await Promise.allSettled(workers);
  signal?.throwIfAborted();
  if (failing.signal.aborted) throw failing.signal.reason;
  report?.status?.("verifying sha256 digest");
  return text;
}

const types = (layers: readonly Descriptor[]) => layers.map(({ mediaType }) => mediaType).join(", ");

async function fetchBlob(folder: string, registry: Registry, blob: Descriptor, options: PullOptions): Promise<void> {
  const hex = hexOf(blob.digest);
  const { report, signal } = options;
  const name = labelOf(blob);
  const tellHere = () => report?.progress?.(name, blob.size, blob.size, hex);
  if (hasBlob(folder, hex, blob.size)) return tellHere();
  const onWait = () => report?.note?.(`Waiting: another millrace is fetching ${name}.`);
  await withLock(
    join(folder, "locks", hex),
    async () => {
      if (hasBlob(folder, hex, blob.size)) return tellHere();
      const file = { name, bytes: blob.size, digest: { kind: "sha256", hex } as const };
      const url = registry.url(`blobs/${blob.digest}`);
      const fetchIt = () =>
        fetchVerified(folder, url, file, options, {
          headers: registry.headers,
          ...options,
          refuse: (status) => registry.refusal(status, name),
        });
      try {
        await fetchIt();
      } catch (error) {
        // The token has run out, or this registry asks for one only now.
        if (!(error instanceof UserError) || error.status !== 401) throw error;
        await registry.expect(await registry.request("HEAD", url), name);
        await fetchIt();
      }
    },
    { onWait, ...(signal === undefined ? {} : { signal }) },
  );
}
