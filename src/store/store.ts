// Owns: which models are here, and how one comes to be: MODEL as a person writes it → blobs and a manifest → a Package.
// Manifests are written last, so a package is there only when it is whole. A kill at any moment leaves a valid store.
import { createHash } from "node:crypto";
import { createWriteStream, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { dirname } from "node:path";
import { pipeline } from "node:stream/promises";
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";
import { addBytes, adopt, blobPath, diskFailure, hasBlob, partialPath } from "./blobs.js";
import type { CatalogueEntry } from "./catalogue.js";
import { describeOrUnknown } from "./describe.js";
import { fetchFile, type WantedFile } from "./fetch.js";
import { dataFolder } from "./folder.js";
import { chooseFiles, type HubName, listRepository } from "./hub.js";
import { Hold, namesOf, sweep, withStoreLock } from "./keep.js";
import {
  configType,
  type Descriptor,
  encodeManifest,
  hexOf,
  layerType,
  listIds,
  manifestPath,
  manifestType,
  named,
  type OciManifest,
  type ReadManifest,
  readManifest,
  removeEmptyFolders,
  statedName,
  writeManifest,
} from "./manifest.js";
import { migrate } from "./migrate.js";
import {
  displayName,
  isOnThisMachine,
  isPathSpelling,
  type ModelName,
  type PackageId,
  type PackageName,
  parseModelName,
  parsePackageName,
  whatAModelIs,
} from "./names.js";
import { drawOutline, type Outline } from "./outline.js";
import { configBlob, fileLayer, linkModel, modelKey, openPackage, type Package } from "./package.js";
import { pullFromRegistry } from "./pull-registry.js";
import { pullFromUrl } from "./pull-url.js";
import { remoteFiles } from "./remote.js";
import type { PullOptions } from "./report.js";

export type { Package, PackageConfig, PackageFile, PackageMessage } from "./package.js";
export { type Progress, type PullOptions, type PullReport, steps } from "./report.js";

export interface ResolvedModel {
  /** What the model is called: its package's name less ":latest", or the path's last part. */
  readonly name: string;
  readonly path: string;
  /** undefined: a path. */
  readonly package?: Package;
}

/** "smollm2:latest" is smollm2. */
export const shortName = (name: string) => name.replace(/:latest$/, "");

/** How a package that is no catalogue's and no plain hub name says what it is called. */
function statedNameOf({ id, name }: PackageName): { annotations?: Record<string, string> } {
  return name === displayName(id) ? {} : named(name);
}

let uploads = 0;

export class Store {
  constructor(readonly folder: string = dataFolder()) {}

  /** Whole packages, by name. One that cannot be read is left out, with a line in the log. */
  list(): Package[] {
    migrate(this.folder);
    return listIds(this.folder)
      .map((id) => this.read(id))
      .filter((one) => one !== null)
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** The package of this name when all of it is here; a name only, never a path. */
  package(name: string): Package | null {
    migrate(this.folder);
    const parsed = isPathSpelling(name) ? null : nameOrNull(name);
    return parsed === null ? null : this.read(parsed.id);
  }

  /** MODEL → a path that can be opened; what is not here yet is pulled. */
  async resolve(model: string, options: PullOptions = {}): Promise<ResolvedModel> {
    const here = this.package(model);
    if (here !== null) return resolved(here);
    const name = parseModelName(model);
    if (name.kind === "path") return { name: name.label, path: name.path };
    return resolved(await this.fetch(name, options));
  }

  /** What can be opened to plan with: the model itself where it is here, else its headers alone, read by byte ranges. */
  async outline(model: string, options: PullOptions = {}): Promise<Outline & { readonly name: string }> {
    const here = this.package(model);
    const name = here === null ? parseModelName(model) : null;
    if (name !== null && name.kind !== "path") {
      return { ...(await drawOutline(await remoteFiles(name, options))), name: shortName(name.name) };
    }
    const { path, label } =
      here === null ? (name as ModelName & { kind: "path" }) : { path: here.path, label: shortName(here.name) };
    return { name: label, path, fetchedBytes: 0, remove: () => {} };
  }

  /** Makes sure that the model is here and current. */
  async pull(model: string, options: PullOptions = {}): Promise<Package> {
    const name = isPathSpelling(model) ? parseModelName(model) : (parsePackageName(model) ?? parseModelName(model));
    if (name.kind === "path") {
      throw new UserError(
        `${model} is a file or folder of yours: there is nothing to pull. Use it as it is: millrace run ${model}`,
      );
    }
    return this.fetch(name, options);
  }

  /** Another name for the same package. Throws UserError (404) where there is no such package. */
  async copy(source: string, destination: string): Promise<void> {
    const { id } = this.existing(source);
    const to = newName(destination);
    await withStoreLock(this.folder, () => {
      const read = readManifest(this.folder, id);
      if (read === null) throw notHere(source);
      this.replace(to, withoutName(read));
    });
  }

  /** Frees every blob that nothing else names. Throws UserError (404) where there is no such package. */
  async remove(name: string): Promise<void> {
    const { id } = this.existing(name);
    await withStoreLock(this.folder, () => {
      const path = manifestPath(this.folder, id);
      if (!existsSync(path)) throw notHere(name);
      const freed = this.namesOf(id);
      rmSync(path);
      removeEmptyFolders(this.folder, id);
      sweep(this.folder, freed);
    });
  }

  /** null: not here. */
  manifest(name: string): OciManifest | null {
    const parsed = nameOrNull(name);
    return parsed === null ? null : (readManifest(this.folder, parsed.id)?.manifest ?? null);
  }

  blobText({ digest }: Descriptor): string {
    return readFileSync(blobPath(this.folder, hexOf(digest)), "utf8");
  }

  /** Whether the blob of this digest ("sha256:…") is here. */
  hasBlob(digest: string): boolean {
    return /^sha256:[0-9a-f]{64}$/.test(digest) && existsSync(blobPath(this.folder, hexOf(digest)));
  }

  /** Keeps what a client sends, for a package that it then creates. Throws DigestMismatch where it is something else. */
  async addBlob(digest: string, content: AsyncIterable<Uint8Array>): Promise<void> {
    if (!/^sha256:[0-9a-f]{64}$/.test(digest)) {
      throw new UserError(`${JSON.stringify(digest)} is no digest: write sha256: and 64 hexadecimal digits`);
    }
    if (this.hasBlob(digest)) return;
    const partial = partialPath(this.folder, `${hexOf(digest)}.${process.pid}.${++uploads}`);
    mkdirSync(dirname(partial), { recursive: true });
    try {
      await pipeline(content, createWriteStream(partial));
      await adopt(this.folder, partial, digest, { kind: "sha256", hex: hexOf(digest) });
    } catch (error) {
      rmSync(partial, { force: true });
      throw diskFailure(error, this.folder);
    }
  }

  /** Writes a manifest whose blobs are held, and frees what only the one before it named. */
  async commit(id: PackageId, text: string): Promise<Package> {
    await withStoreLock(this.folder, () => this.replace(id, text));
    const written = this.read(id);
    if (written === null) throw new UserError(`${displayName(id)} was removed while it was written`, { status: 409 });
    return written;
  }

  private replace(id: PackageId, text: string): void {
    const before = this.namesOf(id);
    writeManifest(this.folder, id, text);
    sweep(this.folder, before);
  }

  private existing(name: string): PackageName {
    migrate(this.folder);
    const parsed = nameOrNull(name);
    if (parsed === null || !existsSync(manifestPath(this.folder, parsed.id))) throw notHere(name);
    return parsed;
  }

  /** What the package's manifest names; nothing where there is none, or none that can be read. */
  private namesOf(id: PackageId): string[] {
    try {
      const read = readManifest(this.folder, id);
      return read === null ? [] : namesOf(read.manifest);
    } catch {
      return [];
    }
  }

  private read(id: PackageId): Package | null {
    try {
      const read = readManifest(this.folder, id);
      return read === null ? null : openPackage(this.folder, read);
    } catch (error) {
      log.warn(`${displayName(id)} cannot be read: ${(error as Error).message}`);
      return null;
    }
  }

  private async fetch(name: PackageName, options: PullOptions): Promise<Package> {
    migrate(this.folder);
    const hold = new Hold(this.folder);
    try {
      const text =
        name.kind === "registry" ? await this.fromRegistry(name, hold, options) : await this.build(name, hold, options);
      options.signal?.throwIfAborted();
      options.report?.status?.("writing manifest");
      return await this.commit(name.id, text);
    } catch (error) {
      throw diskFailure(error, this.folder);
    } finally {
      hold.release();
    }
  }

  private async fromRegistry(
    name: PackageName & { kind: "registry" },
    hold: Hold,
    options: PullOptions,
  ): Promise<string> {
    const insecure = options.insecure || name.insecure;
    if (name.insecure && !options.insecure && !isOnThisMachine(name.id.registry)) {
      throw new UserError(`${name.name} over plain HTTP can be read and changed on its way: --insecure allows it`);
    }
    try {
      return await pullFromRegistry(this.folder, name.id, hold, { ...options, insecure });
    } catch (error) {
      if (!(error instanceof UserError) || ![404, 502].includes(error.status)) throw error;
      // Most likely a name that was meant for something else.
      throw new UserError(`${name.name} could not be pulled: ${error.message} ${whatAModelIs()}`, {
        status: error.status,
        code: error.code,
        cause: error,
      });
    }
  }

  /** The manifest's text of what is no package where it comes from. */
  private async build(name: Exclude<PackageName, { kind: "registry" }>, hold: Hold, options: PullOptions) {
    const layers: Descriptor[] = [];
    let license: string | undefined;
    if (name.kind === "url") {
      const file = await pullFromUrl(this.folder, name.url, options);
      await hold.add(file.sha256);
      layers.push(fileLayer(file));
    } else {
      const wanted = name.kind === "catalogue" ? fromCatalogue(name.entry) : await fromHub(name.hub, options.signal);
      license = wanted.license;
      await hold.add(...wanted.files.flatMap(({ digest }) => (digest.kind === "sha256" ? [digest.hex] : [])));
      for (const file of wanted.files) {
        const { sha256 } = await fetchFile(this.folder, file, options);
        await hold.add(sha256);
        layers.push(fileLayer({ name: file.name, sha256, bytes: file.bytes }));
      }
    }
    if (license !== undefined) layers.push(await this.addText(hold, layerType.license, license));
    return encodeManifest(await this.describe(hold, layers, statedNameOf(name)));
  }

  /** A manifest around these layers, with the config that the model's header gives. */
  private async describe(hold: Hold, layers: readonly Descriptor[], stated: object): Promise<OciManifest> {
    await hold.add(modelKey(layers));
    const path = linkModel(this.folder, layers);
    const config = JSON.stringify(configBlob(await describeOrUnknown(path), layers));
    const descriptor = await this.addText(hold, configType, config);
    return { schemaVersion: 2, mediaType: manifestType, config: descriptor, layers, ...stated };
  }

  /** A small layer of its own. */
  async addText(hold: Hold, mediaType: string, text: string): Promise<Descriptor> {
    const bytes = Buffer.from(text, "utf8");
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    await hold.add(sha256);
    if (!hasBlob(this.folder, sha256, bytes.length)) addBytes(this.folder, sha256, bytes);
    return { mediaType, digest: `sha256:${sha256}`, size: bytes.length };
  }
}

const resolved = (one: Package): ResolvedModel => ({ name: shortName(one.name), path: one.path, package: one });

/** A name in a request is not to be an error where another reading of it may do. */
function nameOrNull(text: string): PackageName | null {
  try {
    return parsePackageName(text);
  } catch {
    return null;
  }
}

function notHere(name: string): UserError {
  return new UserError(`there is no package ${JSON.stringify(name)} here; millrace list shows what there is`, {
    status: 404,
    code: "model_not_found",
  });
}

/** A name for a package of one's own. Throws UserError for what cannot be one. */
export function newName(text: string): PackageId {
  const parsed = isPathSpelling(text) ? null : nameOrNull(text);
  if (parsed !== null && parsed.kind !== "url") return parsed.id;
  throw new UserError(
    `${JSON.stringify(text)} cannot be a package's name: write [registry/][namespace/]model[:tag] with letters, digits, "-", "_" and "."`,
    { code: "bad_model_name" },
  );
}

/** A copy is called after its place. The bytes stay as they are where they say no name. */
function withoutName({ manifest, text }: ReadManifest): string {
  if (statedName(manifest) === undefined) return text;
  const { annotations: _, ...rest } = manifest;
  return encodeManifest(rest);
}

interface Wanted {
  readonly files: readonly WantedFile[];
  readonly license?: string;
}

function fromCatalogue({ files, license }: CatalogueEntry): Wanted {
  return { license, files: files.map((file) => ({ ...file, digest: { kind: "sha256", hex: file.sha256 } })) };
}

async function fromHub(hub: HubName, signal?: AbortSignal): Promise<Wanted> {
  const files = chooseFiles(hub, await listRepository(hub, signal));
  return {
    files: files.map(({ path, bytes, digest }) => ({
      name: path,
      bytes,
      digest,
      sources: [{ kind: "hub", repo: hub.repo, revision: hub.revision, path }],
    })),
  };
}
