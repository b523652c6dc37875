// Owns: outlines: a model that is not here as files of the true names and sizes that hold its headers alone, read by byte
// ranges; the rest are holes. What opens a checkpoint opens them; the weights read as zeros.
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { UserError } from "../base/errors.js";
import { parseGguf } from "../formats/gguf.js";
import { HeaderIncomplete } from "../formats/header.js";
import { parseSafetensors } from "../formats/safetensors.js";
import { diskFailure } from "./blobs.js";
import type { DownloadOptions } from "./download.js";
import { fetchRange, NoRanges } from "./parallel.js";

/** A file elsewhere. */
export interface RemoteFile {
  readonly name: string;
  readonly bytes: number;
  readonly url: string;
  readonly how: DownloadOptions;
}

export interface Outline {
  /** Of a .gguf file, or of a folder. */
  readonly path: string;
  /** 0: the model is here. */
  readonly fetchedBytes: number;
  /** The files go; what opened them is closed before. */
  remove(): void;
}

/** What most headers fit in; where one does not, twice as much, and so on. */
const firstRead = 256 << 10;
/** A folder's small files that say how a model is made. Tokenizers are large and say nothing of sizes. */
const wholeFiles = /^(1_Pooling\/)?config\.json$|^(generation_config|model\.safetensors\.index)\.json$/;

/** Throws FormatError where what comes is no model's header. */
export async function drawOutline(files: readonly RemoteFile[]): Promise<Outline> {
  const folder = mkdtempSync(join(tmpdir(), "millrace-outline-"));
  const remove = () => rmSync(folder, { recursive: true, force: true });
  let fetchedBytes = 0;
  try {
    for (const file of files) {
      const parse = headerOf(file.name);
      if (parse === undefined && !wholeFiles.test(file.name)) continue;
      fetchedBytes += await drawFile(join(folder, file.name), file, parse);
    }
  } catch (error) {
    remove();
    throw diskFailure(error, folder);
  }
  const ggufs = files.map(({ name }) => name).filter((name) => name.endsWith(".gguf"));
  return {
    path: ggufs.length > 0 ? join(folder, ggufs.sort()[0]) : folder,
    fetchedBytes,
    remove,
  };
}

type Parse = (bytes: Uint8Array, fileBytes: number) => unknown;

function headerOf(name: string): Parse | undefined {
  if (name.endsWith(".gguf")) return parseGguf;
  return name.endsWith(".safetensors") ? parseSafetensors : undefined;
}

/** Bytes that were fetched: the whole file where there is no header to parse. */
async function drawFile(path: string, file: RemoteFile, parse: Parse | undefined): Promise<number> {
  mkdirSync(dirname(path), { recursive: true });
  const target = await open(path, "w+");
  try {
    await target.truncate(file.bytes);
    return parse === undefined ? await copy(target, file, 0, file.bytes) : await drawHeader(target, file, parse);
  } finally {
    await target.close();
  }
}

async function drawHeader(target: FileHandle, file: RemoteFile, parse: Parse): Promise<number> {
  let there = await copy(target, file, 0, Math.min(file.bytes, firstRead));
  for (;;) {
    const bytes = Buffer.alloc(there);
    await target.read(bytes, 0, there, 0);
    try {
      parse(bytes, file.bytes);
      return there;
    } catch (error) {
      if (!(error instanceof HeaderIncomplete) || there === file.bytes) throw error;
      there += await copy(target, file, there, Math.min(file.bytes, Math.max(error.needed, 2 * there)));
    }
  }
}

async function copy(target: FileHandle, { url, how }: RemoteFile, start: number, end: number): Promise<number> {
  try {
    await fetchRange(url, target, [start, end], how);
  } catch (error) {
    if (!(error instanceof NoRanges)) throw error;
    throw new UserError(`${new URL(url).host} gives files as a whole only: pull the model to see what it takes.`, {
      status: 502,
      code: "no_ranges",
    });
  }
  return end - start;
}
