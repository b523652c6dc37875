// Owns: whether a model's pages may leave its device, what else than tokens they depend on, and how much of the machine they
// may take when nobody says.
import { createHash } from "node:crypto";
import type { AdapterSource, Device, Limits, MemoryReport } from "../device/device.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import type { Plan } from "../plan/plan.js";
import type { PageTiersOptions } from "./page-tiers.js";
import { version } from "./version.js";

export interface PageCacheSpec {
  /** Where pages lie, of all models. */
  readonly folder: string;
  /** What the model is called in reports; by default its file's own name. */
  readonly name?: string;
  /** Most bytes of this process's memory; by default a sixteenth of what is free, at most 512 MiB. */
  readonly memoryBytes?: number;
  /** Most bytes of the disk, for all models together; 0: none. By default a tenth of what is free, at most 32 GiB. */
  readonly diskBytes?: number;
}

/** Of the memory that is left beside the model, what its pages may take where nobody says; and the most. */
const usualShare = 1 / 16;
const mostUsual = 512 * 2 ** 20;

interface Planned {
  readonly checkpoint: Checkpoint;
  readonly device: Device;
  readonly plan: Plan;
  readonly limits: Limits;
  readonly memory: MemoryReport;
  /** Of the machine's memory, what is granted to the model and its pages. */
  readonly grantedBytes: number;
}

/** undefined: this model's pages stay on its device. */
export function planTiers(spec: PageCacheSpec, planned: Planned): PageTiersOptions | undefined {
  const { checkpoint, device, plan, limits, memory, grantedBytes } = planned;
  const { pageFormat: format, description, pageTokens, ownMemory } = device.info;
  const hasStates = plan.caches.some(({ kind }) => kind === "state");
  if (format === undefined || checkpoint.paths === undefined || hasStates) return undefined;
  const { kvDtype, deterministic } = limits;
  const left = grantedBytes - (ownMemory ? 0 : memory.weights + memory.workspace + memory.cache);
  const memoryBytes = spec.memoryBytes ?? Math.floor(Math.min(mostUsual, Math.max(0, left) * usualShare));
  if (memoryBytes === 0 && spec.diskBytes === 0) return undefined;
  const full = plan.caches.find((cache) => cache.kind === "paged" && cache.window === undefined);
  return {
    folder: spec.folder,
    files: checkpoint.paths,
    kind: pageKind({ version: version(), plan, format, kvDtype, deterministic }),
    about: { model: spec.name ?? checkpoint.label, device: description, kvDtype, pageTokens, group: full?.group ?? 0 },
    memoryBytes,
    diskBytes: spec.diskBytes,
  };
}

interface PageKind {
  readonly version: string;
  readonly plan: Plan;
  /** DeviceInfo.pageFormat. */
  readonly format: string;
  readonly kvDtype: string;
  readonly deterministic: boolean;
}

/** All that a page's bytes depend on beside the model's content and the tokens. */
function pageKind({ version, plan, format, kvDtype, deterministic }: PageKind): string {
  const ids = (tensors: Readonly<Record<string, { id: number }>>) =>
    Object.entries(tensors).map(([name, tensor]) => [name, tensor?.id]);
  const nodes = plan.nodes.map(({ op, inputs, outputs, params }) => [op.name, ids(inputs), ids(outputs), params]);
  const all = [version, format, kvDtype, deterministic, plan.caches, plan.tensors, nodes];
  return createHash("sha256").update(JSON.stringify(all)).digest("hex");
}

/** Of what it changes, and by how much. */
export function adapterDigest({ sites, scale }: AdapterSource): string {
  const hash = createHash("sha256").update(String(scale));
  for (const [site, { a, b }] of sites) {
    hash
      .update(JSON.stringify([site, a.shape, b.shape]))
      .update(a.data)
      .update(b.data);
  }
  return hash.digest("hex");
}
