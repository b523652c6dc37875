// Owns: a program on a GPU: its memory, its queue, its slots' and pages' traffic. Everything goes into one stream in the order
// of the calls, so run() returns as soon as the step is launched; only a step that waits for masks holds later calls back.
//
//   a step:  mr_begin (reads the batch from pinned memory) │ forward … logits, sample, mr_end │ results and a flag in pinned
//            one launch                                    │ a graph where the shape is known  │ memory; the host polls it
import { check, InternalError, UserError } from "../../base/errors.js";
import type { HostTensor } from "../../plan/op.js";
import { adapterSites } from "../../plan/passes/lora.js";
import type { Plan } from "../../plan/plan.js";
import { type Batch, SlotFloat, SlotInt, type Step, type StepResult, slotFloats, slotInts } from "../batch.js";
import type { GroupShape } from "../budget.js";
import { checkAdapter, checkBatch, checkPageIds, checkUpdatedAdapters, checkWeights } from "../check.js";
import type {
  AdapterSource,
  CompileOptions,
  Limits,
  MemoryReport,
  PageGroup,
  Program,
  WeightSource,
} from "../device.js";
import { awaitMasks } from "../masks.js";
import { Turns } from "../turns.js";
import { Adapters } from "./adapters.js";
import { bucketOf } from "./buckets.js";
import { Completion } from "./completion.js";
import type { Bucket, Launch } from "./launch.js";
import { Sequence } from "./launcher.js";
import type { LoweredPlan } from "./lower.js";
import type { Workspace } from "./memory.js";
import type { Cuda, HostMemory } from "./native.js";
import { PagePools } from "./pools.js";
import { Recorder } from "./recorder.js";
import { timed } from "./roof.js";
import { type StepMemory, sampleWaves } from "./step.js";
import type { Tail } from "./tail.js";
import type { Walk } from "./walk.js";
import type { CudaWeights } from "./weights.js";

export interface CudaParts {
  readonly cuda: Cuda;
  readonly plan: Plan;
  readonly limits: Limits;
  readonly memory: MemoryReport;
  readonly groups: readonly GroupShape[];
  readonly weights: CudaWeights;
  readonly lowered: LoweredPlan;
  readonly workspace: Workspace;
  readonly step: StepMemory;
  readonly tail: Tail;
  /** Base addresses of the page pools, which the lowered plan reads. */
  readonly pools: bigint[];
  readonly dump: boolean;
  /** false: every step's launches one by one. */
  readonly graphs: boolean;
  readonly walk: Walk;
  /** false: steps of one token launch by launch too. */
  readonly walks: boolean;
}

interface Pending {
  readonly batch: Batch;
  readonly number: number;
  readonly ring: number;
  readonly waves: number;
  /** Some row is drawn with a temperature. */
  readonly draws: boolean;
  readonly finish: (result: StepResult | undefined, error?: unknown) => void;
  masks?: Uint32Array;
}

export class CudaProgram implements Program {
  readonly memory: MemoryReport;
  readonly caches: readonly PageGroup[];
  readonly vocabSize: number;
  private readonly uploads: HostMemory[] = [];
  private readonly results: HostMemory;
  private readonly flags: HostMemory;
  private readonly completion: Completion;
  private readonly recorder: Recorder;
  private readonly pages: PagePools;
  private readonly counted = new Set<number>();
  /** Slots with a temperature. */
  private readonly drawing = new Set<number>();
  private readonly adapters: Adapters;
  /** Filled, as far as was asked for. */
  private readonly adapterSlots = new Set<number>();
  /** Slots that have parameters. */
  private readonly known = new Set<number>();
  /** Told when each step began and ended on the GPU's clock, in nanoseconds: for measuring. */
  watch?: (began: bigint, ended: bigint) => void;
  private base = 0;
  private countIds = 0;
  private state: "awake" | "asleep" | "closed" = "awake";
  private readonly turns = new Turns<Pending>();
  private inFlight = 0;
  private steps = 0;
  private lastSizes: { tokens: number; rows: number } | undefined;

  static async compile(parts: CudaParts, source: WeightSource, options: CompileOptions): Promise<CudaProgram> {
    const program = new CudaProgram(parts, source);
    try {
      await program.load(options);
    } catch (error) {
      await program.close();
      throw error;
    }
    return program;
  }

  private constructor(
    private readonly parts: CudaParts,
    private source: WeightSource,
  ) {
    const { cuda, plan, groups, memory, limits, step, tail } = parts;
    this.memory = memory;
    this.vocabSize = plan.vocabSize;
    this.caches = groups.map((group, g) => ({ ...group, numPages: memory.pagesPerGroup[g] }));
    const ring = limits.depth + 1;
    for (let i = 0; i < ring; i++) this.uploads.push(cuda.allocHost(step.uploadBytes));
    this.results = cuda.allocHost(4 * tail.resultWords * ring);
    this.flags = cuda.allocHost(64 * ring);
    this.flags.bytes.fill(0);
    this.completion = new Completion(cuda, this.flags);
    this.recorder = new Recorder(cuda, parts.graphs);
    this.pages = new PagePools(cuda, parts.pools, this.caches);
    this.adapters = new Adapters(cuda, parts.lowered.lowering.adapterTable);
  }

  /** Workspace (once: it holds what slots were told), weights, and last the pages: what loading takes for a while is free
   *  again by then. */
  private async load(options: CompileOptions): Promise<void> {
    const { cuda, weights } = this.parts;
    checkWeights(this.parts.plan, this.source.tensors);
    if (!this.base) this.layOut();
    await weights.load(cuda, this.source, options);
    this.pages.allocate();
    cuda.synchronize();
  }

  private layOut(): void {
    const { cuda, workspace, memory, lowered } = this.parts;
    this.base = cuda.alloc(memory.workspace);
    workspace.base = BigInt(this.base);
    cuda.fill(this.base, 0, memory.workspace);
    for (const { area, bytes } of lowered.lowering.constants) {
      cuda.toDevice(Number(area.address), cuda.addressOf(bytes), bytes.length);
    }
  }

  get lost(): boolean {
    return this.parts.cuda.failed;
  }

  // ---- steps

  run(batch: Batch): Step {
    const { limits, tail } = this.parts;
    check(this.state === "awake", `the program is ${this.state}`);
    check(this.inFlight < limits.depth, `${this.inFlight} steps are in flight, the limit is ${limits.depth}`);
    checkBatch(batch, limits, this.caches, this.vocabSize);
    check(
      batch.topLogprobs <= tail.mostTop,
      `${batch.topLogprobs} top logprobs are wanted, ${tail.mostTop} at most are there`,
    );
    checkUpdatedAdapters(batch, this.adapterSlots);
    for (const slot of batch.updates.slots) this.known.add(slot);
    for (const slot of batch.slots)
      check(this.known.has(slot), `slot ${slot} was used before an update gave it parameters`);
    this.inFlight++;
    const number = ++this.steps;
    let pending: Pending | undefined;
    const result = new Promise<StepResult>((resolve, reject) => {
      const finish = (value: StepResult | undefined, error?: unknown) => {
        queueMicrotask(() => {
          this.inFlight--;
        });
        if (value) resolve(value);
        else reject(error);
      };
      const waves = this.follow(batch);
      const draws = batch.slots.some((slot) => this.drawing.has(slot));
      pending = { batch, number, ring: number % (limits.depth + 1), waves, draws, finish };
    });
    const step = pending!;
    this.turns.take(() => this.execute(step));
    const masks = awaitMasks(batch, this.vocabSize, (bits) => {
      step.masks = bits;
      this.turns.resume(step, () => this.released(step));
    });
    return { result, setMasks: masks.set };
  }

  /** Which slots count their tokens, and in how many waves this batch's rows are drawn. */
  private follow({ updates, ...batch }: Batch): number {
    for (const [u, slot] of updates.slots.entries()) {
      if (updates.ints[u * slotInts + SlotInt.counts] === 1) this.counted.add(slot);
      else this.counted.delete(slot);
      if (updates.floats[u * slotFloats + SlotFloat.temperature] > 0) this.drawing.add(slot);
      else this.drawing.delete(slot);
    }
    return sampleWaves({ updates, ...batch }, this.counted, new Int32Array(batch.rows.length));
  }

  private execute(step: Pending): void {
    try {
      check(this.state === "awake", `the program is ${this.state}`);
      this.begin(step);
      const bucket = bucketOf(step.batch, this.parts.limits);
      if (step.batch.maskedRows.length === 0 && step.waves === 1) {
        this.recorder.play(`step ${key(bucket)} ${step.draws}`, bucket.decode, () => [
          ...this.forward(bucket),
          ...this.tail(bucket, step.draws),
        ]);
        this.launched(step);
        return;
      }
      this.recorder.play(`forward ${key(bucket)}`, bucket.decode, () => this.forward(bucket));
      if (step.batch.maskedRows.length === 0 || step.masks) this.sample(step);
      else this.turns.hold(step);
    } catch (error) {
      step.finish(undefined, error);
    }
  }

  /** Its masks are there. */
  private released(step: Pending): void {
    try {
      this.sample(step);
    } catch (error) {
      step.finish(undefined, error);
    }
  }

  /** The step's sampling by itself, wave after wave. */
  private sample(step: Pending): void {
    const { cuda, tail, limits } = this.parts;
    if (step.masks) cuda.toDevice(Number(tail.masks.address), cuda.addressOf(step.masks), step.masks.byteLength);
    const bucket = bucketOf(step.batch, limits);
    for (let wave = 0; wave < step.waves; wave++) {
      const last = wave === step.waves - 1;
      const own = step.waves > 1 ? wave : -1;
      this.recorder.play(`sample ${bucket.rows} ${own} ${last} ${step.draws}`, false, () => {
        const launches = this.tail(bucket, step.draws, own);
        return last ? launches : launches.slice(0, -1);
      });
    }
    this.launched(step);
  }

  private launched(step: Pending): void {
    const { batch, ring, number } = step;
    this.lastSizes = { tokens: batch.tokens.length, rows: batch.rows.length };
    this.completion.add(ring, number, (error) => {
      if (error === undefined && this.watch) {
        const { buffer, byteOffset } = this.flags.bytes;
        const [began, ended] = new BigUint64Array(buffer, byteOffset + 64 * ring + 8, 2);
        this.watch(began, ended);
      }
      if (error === undefined) step.finish(this.parts.tail.read(batch, this.results, ring));
      else step.finish(undefined, error);
    });
  }

  /** The batch to the device. */
  private begin({ batch, ring, number }: Pending): void {
    const { step } = this.parts;
    const upload = this.uploads[ring];
    const waves = new Int32Array(batch.rows.length);
    sampleWaves(batch, this.counted, waves);
    step.write(batch, upload.bytes, ring, number, waves);
    const words = batch.tokens.length + batch.rows.length + batch.pages.reduce((sum, { ids }) => sum + ids.length, 0);
    const blocks = Math.min(32, Math.max(1, Math.ceil(words / 512)));
    this.recorder.play(`begin ${ring} ${blocks}`, false, () => [
      {
        kernel: "mr_begin",
        grid: [blocks, 1, 1],
        block: 256,
        sharedBytes: 0,
        args: [
          ...[{ ptr: BigInt(upload.address) }, { ptr: step.info.address }, { ptr: step.tokenIds.address }],
          ...[step.lastToken, step.slotFloats, step.slotInts].map(({ address }) => ({ ptr: address })),
        ],
      },
    ]);
    this.count(batch);
  }

  /** Counts of slots that begin anew. */
  private count({ updates }: Batch): void {
    const { cuda, tail, limits } = this.parts;
    for (const [u, slot] of updates.slots.entries()) {
      if (updates.ints[u * slotInts + SlotInt.counts] !== 1) continue;
      const prompt = updates.promptIds.subarray(updates.promptStart[u], updates.promptStart[u + 1]);
      const output = updates.outputIds.subarray(updates.outputStart[u], updates.outputStart[u + 1]);
      const ids = Int32Array.of(...prompt, ...output);
      const room = Math.max(limits.contextLength + 1, ids.length);
      this.countIds ||= cuda.alloc(4 * room);
      check(ids.length <= limits.contextLength + 1, `${ids.length} tokens to count`);
      cuda.toDevice(this.countIds, cuda.addressOf(ids), ids.byteLength);
      const counts = tail.counts.address + BigInt(4 * slot * this.vocabSize);
      const args = [{ ptr: counts }, { i32: this.vocabSize }, { ptr: BigInt(this.countIds) }];
      const lengths = [{ i32: prompt.length }, { i32: output.length }];
      const launch = {
        kernel: "mr_counts",
        grid: [1, 1, 1] as const,
        block: 1024,
        sharedBytes: 0,
        args: [...args, ...lengths],
      };
      new Sequence(cuda, [launch], false).play();
    }
  }

  private forward(bucket: Bucket): readonly Launch[] {
    const { cuda, lowered, walk, walks } = this.parts;
    const { first, forward } = lowered.lowering;
    const launches = [...first, ...forward].flatMap((one) => one(bucket));
    if (!walks || !bucket.decode || bucket.tokens !== 1) return launches;
    const write = (to: bigint, bytes: Uint8Array) => cuda.toDevice(Number(to), cuda.addressOf(bytes), bytes.length);
    return walk.of(launches, cuda.properties, write, (map) => cuda.tensorMap(map));
  }

  private tail({ rows }: Bucket, draws: boolean, wave = -1): Launch[] {
    return this.parts.tail.launches(this.parts.step, this.results, this.flags, { rows, wave, draws });
  }

  /** Runs the batch, then times those of its launches that `wanted` takes, played as a graph: GPU milliseconds. */
  async measure(batch: Batch, wanted: (kernel: string) => boolean, repeats: number): Promise<number[]> {
    await this.run(batch).result;
    const { cuda, limits } = this.parts;
    const bucket = bucketOf(batch, limits);
    const all = [...this.forward(bucket), ...this.tail(bucket, true)];
    const sequence = new Sequence(
      cuda,
      all.filter(({ kernel, grid }) => wanted(kernel) && grid.every((n) => n > 0)),
      true,
    );
    sequence.play();
    const graph = cuda.capture(() => sequence.play());
    const times = timed(cuda, () => cuda.launchGraph(graph), repeats);
    cuda.destroyGraph(graph);
    return times;
  }

  // ---- pages

  copyPages(group: number, from: Int32Array, to: Int32Array): void {
    check(from.length === to.length, "as many pages are copied from as to");
    this.checkPages(group, from);
    this.checkPages(group, to);
    this.turns.take(() => {
      if (this.state === "awake") this.pages.copy(group, from, to);
    });
  }

  /** As the kernels lay them out: only for writePages of a program compiled alike. */
  readPages(group: number, ids: Int32Array): Promise<Uint8Array> {
    this.checkPages(group, ids);
    return this.turns.reach(() => this.pages.read(group, ids));
  }

  writePages(group: number, ids: Int32Array, bytes: Uint8Array): void {
    this.checkPages(group, ids, bytes.length);
    const own = bytes.slice();
    this.turns.take(() => {
      if (this.state === "awake") this.pages.write(group, ids, own);
    });
  }

  private checkPages(group: number, ids: Int32Array, bytes?: number): void {
    check(this.state === "awake", `the program is ${this.state}`);
    checkPageIds(this.caches, group, ids, bytes);
  }

  // ---- weights and life

  loadAdapter(slot: number, source: AdapterSource | null): Promise<void> {
    const { plan, limits } = this.parts;
    check(slot >= 0 && slot < limits.adapterSlots, `there are ${limits.adapterSlots} adapter slots, ${slot} is none`);
    if (source) checkAdapter(source, adapterSites(plan));
    if (source) this.adapterSlots.add(slot);
    else this.adapterSlots.delete(slot);
    return this.turns.reach(() => this.adapters.set(slot, source));
  }

  swapWeights(source: WeightSource): Promise<void> {
    return this.turns.reach(async () => {
      checkWeights(this.parts.plan, source.tensors);
      this.source = source;
      if (this.state === "awake") await this.parts.weights.load(this.parts.cuda, source);
    });
  }

  sleep(): Promise<void> {
    return this.turns.reach(() => {
      check(this.state === "awake", `the program is ${this.state}`);
      this.parts.cuda.synchronize();
      this.forget();
      this.state = "asleep";
    });
  }

  async wake(): Promise<void> {
    check(this.state === "asleep", `the program is ${this.state}`);
    await this.load({});
    this.state = "awake";
  }

  dump(tensor: string): Promise<HostTensor> {
    return this.turns.reach(() => {
      const { cuda, plan, dump, lowered, weights } = this.parts;
      const found = plan.tensors.find(({ name }) => name === tensor);
      if (!found) throw new UserError(`the plan has no tensor called ${tensor}`);
      if (found.role === "weight") return weights.dump(cuda, found);
      const place = lowered.lowering.activations.get(tensor);
      if (!dump) throw new UserError(`${tensor} cannot be shown: the program was compiled without dump`);
      if (!place || !this.lastSizes) throw new UserError(`${tensor} cannot be shown: no step has computed it`);
      const count = place.rows ? this.lastSizes.rows : this.lastSizes.tokens;
      const length = count * place.width;
      const raw = new Uint8Array(length * (place.dtype === "f32" ? 4 : 2));
      cuda.toHost(cuda.addressOf(raw), Number(place.address), raw.length);
      cuda.synchronize();
      const shape = [count, place.width];
      if (found.dtype === "i32") return { shape, data: new Int32Array(raw.buffer) };
      if (place.dtype === "f32") return { shape, data: new Float32Array(raw.buffer) };
      const words = Uint32Array.from(new Uint16Array(raw.buffer), (half) => half << 16);
      return { shape, data: new Float32Array(words.buffer) };
    });
  }

  async close(): Promise<void> {
    if (this.state === "closed") return;
    this.state = "closed";
    this.turns.close((step) => step.finish(undefined, new InternalError("the program was closed")));
    const { cuda } = this.parts;
    this.completion.close();
    if (cuda.failed) return;
    cuda.synchronize();
    this.forget();
    this.adapters.close();
    for (const address of [this.base, this.countIds]) if (address) cuda.free(address);
    for (const memory of [...this.uploads, this.results, this.flags]) cuda.freeHost(memory);
  }

  /** Weights, pages, and all launches that name their addresses. */
  private forget(): void {
    this.recorder.forget();
    this.parts.weights.unload(this.parts.cuda);
    this.pages.free();
  }
}

const key = ({ tokens, rows, sequences, decode }: Bucket) => `${tokens} ${rows} ${sequences} ${decode}`;
