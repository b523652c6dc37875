// Owns: carrying over stores of version 0.1: manifests/<name>.json, which named the files of one model, become OCI
// manifests over the same blobs. Idempotent, and safe to be cut: the old manifest goes last.
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { log } from "../base/log.js";
import { addBytes, hasBlob } from "./blobs.js";
import { configType, encodeManifest, layerType, manifestType, named, writeManifest } from "./manifest.js";
import { displayName, parsePackageName } from "./names.js";
import { configBlob, fileLayer, type PackageFile } from "./package.js";

interface OldManifest {
  readonly name: string;
  readonly folder: string;
  readonly files: readonly PackageFile[];
  readonly license?: string;
}

export function migrate(folder: string): void {
  const manifests = join(folder, "manifests");
  if (!existsSync(manifests)) return;
  for (const file of readdirSync(manifests)) {
    if (!file.endsWith(".json")) continue;
    const path = join(manifests, file);
    try {
      carryOver(folder, JSON.parse(readFileSync(path, "utf8")) as OldManifest);
      rmSync(path, { force: true });
    } catch (error) {
      log.warn(`${path} cannot be carried over: ${(error as Error).message}`);
    }
  }
}

function carryOver(folder: string, { name, folder: oldLinks, files, license }: OldManifest): void {
  const parsed = parsePackageName(name);
  const whole = files.every(({ sha256, bytes }) => hasBlob(folder, sha256, bytes));
  if (parsed !== null && whole) {
    const layers = files.map(fileLayer);
    if (license !== undefined) layers.push(addText(folder, layerType.license, license));
    const format = files.some((file) => file.name.endsWith(".gguf")) ? "gguf" : "safetensors";
    const about = { format, family: "", families: [], parameterSize: "", quantization: "" } as const;
    const config = addText(folder, configType, JSON.stringify(configBlob(about, layers)));
    const stated = displayName(parsed.id) === parsed.name ? {} : named(parsed.name);
    const manifest = { schemaVersion: 2, mediaType: manifestType, config, layers, ...stated } as const;
    writeManifest(folder, parsed.id, encodeManifest(manifest));
  }
  rmSync(join(folder, "models", ...oldLinks.split(/[\\/]/)), { recursive: true, force: true });
}

function addText(folder: string, mediaType: string, text: string) {
  const bytes = Buffer.from(text, "utf8");
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  if (!hasBlob(folder, sha256, bytes.length)) addBytes(folder, sha256, bytes);
  return { mediaType, digest: `sha256:${sha256}`, size: bytes.length };
}
