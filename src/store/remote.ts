// Owns: where the files of a model are that is not here: addresses and sizes, nothing of their content.
import { UserError } from "../base/errors.js";
import { chooseFiles, fileAddress, type HubName, hubHeaders, listRepository } from "./hub.js";
import { layerType, parseManifest, titleOf } from "./manifest.js";
import { displayName, type PackageId, type PackageName } from "./names.js";
import type { RemoteFile } from "./outline.js";
import { nameOfFile, sizeOf } from "./pull-url.js";
import { Registry } from "./registry.js";
import type { PullOptions } from "./report.js";

/** Throws UserError where the model is not there, or no source of it gives parts of files. */
export function remoteFiles(name: PackageName, options: PullOptions): Promise<RemoteFile[]> {
  if (name.kind === "registry") return ofRegistry(name.id, { ...options, insecure: options.insecure || name.insecure });
  if (name.kind === "url") return ofUrl(name.url, options);
  if (name.kind === "hub") return ofHub(name.hub, options);
  const { signal } = options;
  const found = name.entry.files.flatMap(({ name, bytes, sources }) =>
    sources.flatMap((source) => {
      if (source.kind !== "hub") return [];
      const how = { headers: hubHeaders(), firstAnswerMs: options.giveUpMs ?? 3_000, signal };
      return [{ name, bytes, url: fileAddress(source.repo, source.revision, source.path), how }];
    }),
  );
  if (found.length === name.entry.files.length) return Promise.resolve(found);
  throw new UserError(`${name.name} can only be fetched whole: pull it to see what it takes.`, { code: "no_ranges" });
}

async function ofHub(hub: HubName, { signal }: PullOptions): Promise<RemoteFile[]> {
  const files = chooseFiles(hub, await listRepository(hub, signal));
  return files.map(({ path, bytes }) => {
    return {
      name: path,
      bytes,
      url: fileAddress(hub.repo, hub.revision, path),
      how: { headers: hubHeaders(), signal },
    };
  });
}

async function ofUrl(url: string, { signal }: PullOptions): Promise<RemoteFile[]> {
  return [{ name: nameOfFile(url), bytes: await sizeOf(url, signal), url, how: { signal } }];
}

async function ofRegistry(id: PackageId, options: PullOptions): Promise<RemoteFile[]> {
  const registry = new Registry(id, options);
  const manifest = parseManifest(await registry.manifest(), `${registry.address}/${registry.repository}:${id.tag}`);
  const layers = manifest.layers.filter(
    ({ mediaType }) => mediaType === layerType.model || mediaType === layerType.file,
  );
  if (layers.length === 0) throw new UserError(`${displayName(id)} holds no model.`, { code: "unsupported_package" });
  // Some registries ask for a token only for content.
  await registry.expect(await registry.request("HEAD", registry.url(`blobs/${layers[0].digest}`)), displayName(id));
  return layers.map((layer, at) => ({
    name: titleOf(layer) ?? `model-${at}.gguf`,
    bytes: layer.size,
    url: registry.url(`blobs/${layer.digest}`),
    how: {
      headers: registry.headers,
      signal: options.signal,
      refuse: (status) => registry.refusal(status, displayName(id)),
    },
  }));
}
