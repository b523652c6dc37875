// Owns: models on the Hugging Face hub or a mirror of it: what a repository holds, which of its files make the model, and
// their download addresses. Digests come from the repository's listing; blobs.ts verifies them.
import { env } from "../base/env.js";
import { FormatError, UserError } from "../base/errors.js";
import { within } from "./abort.js";
import type { Digest } from "./blobs.js";
import { networkReason, refusal } from "./download.js";

export interface HubName {
  /** "owner/repo" */
  readonly repo: string;
  /** Branch, tag or commit. */
  readonly revision: string;
  /** Path within the repository. */
  readonly file?: string;
  /** Which of several GGUF files: "Q4_K_M". */
  readonly quant?: string;
}

export interface HubFile {
  readonly path: string;
  readonly bytes: number;
  readonly digest: Digest;
}

/** "owner/repo[@revision][/file]", the part of hf:… after the colon. */
export function parseHubName(text: string): HubName {
  const match = /^([\w.-]+\/[\w.-]+)(?:@([\w.-]+))?(?:\/(.+))?$/.exec(text);
  if (!match || text.split("/").some((part) => part === "" || part === "." || part === "..")) {
    throw new UserError(
      `hf:${text} is no model on the hub: write hf:owner/repo, hf:owner/repo/file.gguf or hf:owner/repo@revision`,
      {
        code: "bad_model_name",
      },
    );
  }
  return { repo: match[1], revision: match[2] ?? "main", ...(match[3] === undefined ? {} : { file: match[3] }) };
}

export function endpoint(): string {
  const text = env("HF_ENDPOINT")!.replace(/\/+$/, "");
  if (!/^https?:\/\/[^/]/.test(text)) {
    throw new UserError(`HF_ENDPOINT is ${text}: it must be an address such as https://hub.example.org`);
  }
  return text;
}

export function hubHeaders(): Record<string, string> {
  const token = env("HF_TOKEN");
  return token === undefined ? {} : { authorization: `Bearer ${token}` };
}

export function fileAddress(repo: string, revision: string, path: string): string {
  const encode = (text: string) => text.split("/").map(encodeURIComponent).join("/");
  return `${endpoint()}/${repo}/resolve/${encodeURIComponent(revision)}/${encode(path)}`;
}

/** Every file of the repository. */
export async function listRepository(name: HubName, signal?: AbortSignal): Promise<HubFile[]> {
  const { listFiles, HubApiError } = await import("@huggingface/hub");
  const token = env("HF_TOKEN");
  const address = fileAddress(name.repo, name.revision, "");
  const files: HubFile[] = [];
  try {
    const listing = listFiles({
      repo: { type: "model", name: name.repo },
      revision: name.revision,
      recursive: true,
      hubUrl: endpoint(),
      ...(token === undefined ? {} : { accessToken: token }),
      fetch: (input, init) => fetch(input, { ...init, signal: within(30_000, signal) }),
    });
    for await (const entry of listing) {
      if (entry.type !== "file") continue;
      const digest: Digest | undefined = entry.lfs
        ? { kind: "sha256", hex: entry.lfs.oid }
        : entry.oid === undefined
          ? undefined
          : { kind: "git-blob", hex: entry.oid };
      if (digest !== undefined) files.push({ path: entry.path, bytes: entry.lfs?.size ?? entry.size, digest });
    }
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof HubApiError) throw refusal(error.statusCode, address, token !== undefined);
    if (error instanceof UserError) throw error;
    throw new UserError(`${new URL(address).host} cannot be reached: ${networkReason(error)}. ${whatHelps}`, {
      status: 502,
      code: "download_failed",
    });
  }
  for (const { path } of files) checkPath(path);
  return files;
}

/** A listing's paths become paths in the store: none may lead out of it. */
function checkPath(path: string): void {
  const bad = path.split("/").some((part) => part === "" || part === "." || part === "..");
  if (bad || /[\\\0:]/.test(path)) {
    throw new FormatError(`the repository lists a file with an unsafe path: ${JSON.stringify(path)}`);
  }
}

/** What a person can do where nothing can be downloaded. */
export const whatHelps =
  "What helps: the path of a .gguf file or of a model folder that you have; a mirror of the hub (HF_ENDPOINT=https://…); " +
  "behind a proxy, HTTPS_PROXY (with NODE_USE_ENV_PROXY=1 on Node 24).";

const folderFiles =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json$|^(chat_template\.jinja|merges\.txt|vocab\.txt|tokenizer\.model)$|^additional_chat_templates\/[^/]+\.jinja$|^1_Pooling\/config\.json$/;

/** A file of a Hugging Face folder that is no weights and yet belongs to the model. */
export const isFolderFile = (path: string) => folderFiles.test(path);

const splitPattern = /-(\d{5})-of-(\d{5})\.gguf$/;

/** All parts of the split GGUF that `path` is one of; `path` alone where it is not split. */
function withParts(files: readonly HubFile[], path: string): HubFile[] {
  const stem = path.replace(splitPattern, "");
  return files.filter((file) =>
    splitPattern.test(path)
      ? splitPattern.test(file.path) && file.path.replace(splitPattern, "") === stem
      : file.path === path,
  );
}

/** The files that make the model: a named one, else safetensors with their configuration, else the GGUF. */
export function chooseFiles(name: HubName, files: readonly HubFile[]): HubFile[] {
  const paths = files.map((file) => file.path);
  const ggufs = paths.filter((path) => path.endsWith(".gguf") && (splitPattern.exec(path)?.[1] ?? "00001") === "00001");
  const fail = (message: string) =>
    new UserError(`hf:${name.repo}: ${message}`, { status: 404, code: "model_not_found" });
  const shown = (list: readonly string[]) => list.slice(0, 12).join(", ") + (list.length > 12 ? ", …" : "");
  if (name.file !== undefined) {
    if (!paths.includes(name.file))
      throw fail(`there is no ${name.file}; it holds ${shown(ggufs.length > 0 ? ggufs : paths)}`);
    return withParts(files, name.file);
  }
  const weights = paths.filter((path) => /^[^/]+\.safetensors(\.index\.json)?$/.test(path));
  const isFolder = paths.includes("config.json") && weights.some((path) => path.endsWith(".safetensors"));
  if (isFolder && name.quant === undefined) {
    // Some repositories hold the weights twice, once under the maker's own names.
    const standard = weights.filter((path) => path.startsWith("model"));
    const taken = new Set(standard.length > 0 ? standard : weights);
    return files.filter((file) => taken.has(file.path) || folderFiles.test(file.path));
  }
  if (name.quant !== undefined) {
    const wanted = name.quant.toLowerCase();
    const of = ggufs.filter((path) => path.toLowerCase().split(/[./-]/).includes(wanted));
    if (of.length !== 1) throw fail(`there is no GGUF of ${name.quant}; it holds ${shown(ggufs)}`);
    return withParts(files, of[0]);
  }
  if (ggufs.length === 1) return withParts(files, ggufs[0]);
  const usual = ggufs.filter((path) => /q4_k_m/i.test(path));
  if (usual.length === 1) return withParts(files, usual[0]);
  if (ggufs.length > 1)
    throw fail(`it holds several GGUF files: name one, as in hf:${name.repo}/${ggufs[0]} (${shown(ggufs)})`);
  throw fail(`it holds neither safetensors with a config.json nor a GGUF: ${shown(paths)}`);
}
