// Owns: from what a client asks for (a LoadSpec) to a program ready for the engine: opens the checkpoint, builds the plan,
// opens the device, and decides how much memory and context the model gets. Runs in the engine's thread or process.

import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { UserError } from "../base/errors.js";
import type { Device, KvDType, Limits, MemoryReport } from "../device/device.js";
import { openDevice } from "../device/open.js";
import type { LoadedModel } from "../engine/host.js";
import type { Checkpoint } from "../formats/checkpoint.js";
import { openAdapter } from "../formats/open.js";
import { loraAdapter } from "../model/adapter.js";
import { modelConfig } from "../model/config.js";
import { decoderPlan } from "../model/decoder.js";
import { encoderConfig } from "../model/encoder-config.js";
import { fuse } from "../plan/passes/fuse.js";
import { withAdapters } from "../plan/passes/lora.js";
import type { Plan } from "../plan/plan.js";
import { type CheckpointSpec, openSpec } from "./checkpoint.js";
import { loadDraft } from "./draft.js";
import { GrammarHost } from "./grammar.js";
import { loadEncoder } from "./load-encoder.js";
import { adapterDigest, type PageCacheSpec, planTiers } from "./page-kind.js";
import { WorkerPageStore } from "./page-store.js";

export interface LoadSpec extends CheckpointSpec {
  /** Default "auto". */
  readonly device?: string;
  /** Default: one a physical core. */
  readonly threads?: number;
  /** Default: the smaller of the model's own and what fits. */
  readonly contextLength?: number;
  /** A contextLength beyond what the model was made for means just that; otherwise it is refused. */
  readonly clampContext?: boolean;
  /** Default "f16". */
  readonly kvDtype?: KvDType;
  /** Most sequences that run at once; default 16. */
  readonly maxSequences?: number;
  /** Steps in flight; default the device's: 1 on a CPU, where a step is a call that returns when it is done. */
  readonly depth?: number;
  readonly deterministic?: boolean;
  /** Tokens a step, exactly. Default: as many as the device does in time, 512 at most. */
  readonly stepTokens?: number;
  /** Of the memory that is free after weights and workspace, what the KV pool may take; default a quarter, and up to three
   *  quarters where a contextLength that was asked for needs them. */
  readonly cacheShare?: number;
  /** Of the machine's memory, the most that it may take; for a device with its own it means nothing. */
  readonly memoryBytes?: number;
  /** Tokens are guessed from the text and checked, several in a step; the answer is the same. Default: where the device
   *  computes each row alike whatever stands beside it. */
  readonly lookup?: boolean;
  /** A GGUF file or folder of a smaller model with the same vocabulary: it guesses, and several guesses are checked in a step;
   *  the answer is the same. For devices that compute each row alike whatever stands beside it; elsewhere it is not used. */
  readonly draft?: string;
  /** LoRA adapters, by the names that requests call them: GGUF files or PEFT folders. Default: none. */
  readonly adapters?: readonly { readonly name: string; readonly path: string }[];
  /** Tiers below the device's pages, which outlive this process. Default: none. */
  readonly pageCache?: PageCacheSpec;
}

// The pool has pages for one sequence of the whole context, or for maxSequences of `usualTokens`, whichever is more: a
// small model does not take memory that it has no use for. Shares bound it on machines where that is much.
const usualTokens = 2048;
const usualShare = 0.25;
const largestShare = 0.75;

/** Tokens of one step at most, where the device says nothing else: long prompts are read in chunks of this. */
const usualStepTokens = 512;

export interface ModelPlan {
  readonly plan: Plan;
  readonly limits: Limits;
  readonly memory: MemoryReport;
  readonly trainedContextLength: number;
}

/** What loading would take, before anything is allocated. Throws UserError where it cannot fit, with the numbers. */
export function planModel(
  checkpoint: Checkpoint,
  device: Device,
  spec: Omit<LoadSpec, keyof CheckpointSpec | "device">,
): ModelPlan {
  const config = modelConfig(checkpoint);
  const adapterSlots = spec.adapters?.length ?? 0;
  const plain = decoderPlan(config, checkpoint.tensors);
  const plan = fuse(adapterSlots > 0 ? withAdapters(plain) : plain, device.info.ops);
  const { contextLength: given, clampContext } = spec;
  const asked = clampContext && given !== undefined ? Math.min(given, config.contextLength) : given;
  if (asked !== undefined && asked > config.contextLength) {
    throw new UserError(`a context of ${asked} tokens was asked for, the model was made for ${config.contextLength}`, {
      code: "context_too_long",
      param: "contextLength",
    });
  }
  const contextLength = asked ?? config.contextLength;
  const maxSequences = spec.maxSequences ?? 16;
  const { memoryBytes, ownMemory } = device.info;
  const free = ownMemory ? memoryBytes : Math.min(memoryBytes, Math.max(0, spec.memoryBytes ?? memoryBytes));
  const limits: Limits = {
    maxTokens: spec.stepTokens ?? device.info.stepTokens ?? usualStepTokens,
    maxRows: Math.max(64, maxSequences),
    maxSequences,
    slots: maxSequences,
    contextLength,
    memoryBytes: free,
    kvDtype: spec.kvDtype ?? "f16",
    threads: spec.threads ?? physicalCores(),
    depth: spec.depth ?? device.info.depth ?? 1,
    deterministic: spec.deterministic ?? false,
    adapterSlots,
    maxPages: Math.ceil(Math.max(contextLength, usualTokens * maxSequences) / device.info.pageTokens),
  };
  const whole = device.estimate(plan, limits);
  const fixed = whole.weights + whole.workspace;
  const within = (share: number) => {
    const fitted = { ...limits, memoryBytes: fixed + Math.floor((free - fixed) * share) };
    return { fitted, memory: device.estimate(plan, fitted) };
  };
  let { fitted, memory } = within(spec.cacheShare ?? usualShare);
  if (asked !== undefined && spec.cacheShare === undefined && memory.maxContext < asked) {
    ({ fitted, memory } = within(largestShare));
  }
  if (asked !== undefined && memory.maxContext < asked) {
    const pool = fitted.memoryBytes - fixed;
    throw new UserError(
      `a context of ${asked} tokens does not fit: ${pool} bytes are there for the cache, which hold ${memory.maxContext} tokens`,
      { code: "out_of_memory", param: "contextLength" },
    );
  }
  const context = Math.min(contextLength, memory.maxContext);
  return { plan, limits: { ...fitted, contextLength: context }, memory, trainedContextLength: config.contextLength };
}

export async function loadModel(
  spec: LoadSpec,
  onProgress: (done: number, total: number) => void,
): Promise<LoadedModel> {
  const checkpoint = await openSpec(spec);
  let store: WorkerPageStore | undefined;
  try {
    const encoder = encoderConfig(checkpoint);
    if (encoder !== undefined) return await loadEncoder(encoder, checkpoint, spec, onProgress);
    const device = await openDevice(spec.device);
    const { plan, limits, memory, trainedContextLength } = planModel(checkpoint, device, spec);
    // Read first: a bad one is known before the weights are.
    const adapters = await Promise.all((spec.adapters ?? []).map((one) => readAdapter(one, checkpoint)));
    const grantedBytes = Math.min(device.info.memoryBytes, spec.memoryBytes ?? device.info.memoryBytes);
    const tiers =
      spec.pageCache && planTiers(spec.pageCache, { checkpoint, device, plan, limits, memory, grantedBytes });
    // Finds what is on disk while the weights are read.
    store = tiers && new WorkerPageStore(tiers);
    const program = await device.compile(plan, checkpoint, limits, { onProgress });
    const draft =
      spec.draft === undefined
        ? undefined
        : await loadDraft({ ...spec, draft: spec.draft }, { checkpoint, limits, vocabSize: program.vocabSize }, device);
    const taken = (part: "weights" | "workspace" | "cache") => program.memory[part] + (draft?.memory[part] ?? 0);
    await store?.known();
    return {
      program,
      limits,
      store,
      constraints: new GrammarHost({ path: spec.path, vocabSize: program.vocabSize }),
      modelLimits: {
        contextLength: limits.contextLength,
        trainedContextLength,
        vocabSize: program.vocabSize,
        maxSequences: limits.maxSequences,
        device: device.info.description,
        ownMemory: device.info.ownMemory ?? false,
        memory: {
          weights: taken("weights"),
          workspace: taken("workspace"),
          cache: taken("cache"),
          tier: tiers?.memoryBytes ?? 0,
        },
        adapters: adapters.map(({ name }) => name),
      },
      adapters,
      stepTokens: spec.stepTokens,
      lookup: (spec.lookup ?? true) && device.info.rowInvariant,
      draft,
      close: async () => {
        await store?.close();
        await draft?.close();
        await program.close();
        await device.close();
        checkpoint.close();
      },
    };
  } catch (error) {
    await store?.close();
    checkpoint.close();
    throw error;
  }
}

async function readAdapter({ name, path }: { name: string; path: string }, model: Checkpoint) {
  const adapter = await openAdapter(path);
  try {
    const source = loraAdapter(adapter, modelConfig(model));
    return { name, source: { ...source, digest: adapterDigest(source) } };
  } finally {
    adapter.close();
  }
}

/** Two hardware threads of a core share its arithmetic units: one thread a core computes as much. */
export function physicalCores(): number {
  const logical = availableParallelism();
  const siblings = new Set<string>();
  try {
    for (let cpu = 0; cpu < logical; cpu++) {
      siblings.add(readFileSync(`/sys/devices/system/cpu/cpu${cpu}/topology/thread_siblings_list`, "utf8"));
    }
  } catch {
    return logical;
  }
  return Math.max(1, siblings.size);
}
