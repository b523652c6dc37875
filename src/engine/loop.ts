// Owns: the engine: requests in, steps on a Program, events out. Every choice of every accepted request gets exactly one
// finish event, whatever happens. Knows Program and nothing of any device; has no thread, timer or node module of its own.
import { UserError } from "../base/errors.js";
import { log } from "../base/log.js";
import type { Step, StepResult } from "../device/batch.js";
import type { AdapterSource, Limits, Program } from "../device/device.js";
import { buildBatch } from "./batch.js";
import { StepBudget } from "./budget.js";
import { Guesses, type Guessing } from "./guesses.js";
import { Holdings } from "./holdings.js";
import { bringMasks, type MaskedStep, type Void } from "./masks.js";
import { PageNames } from "./names.js";
import { Scheduler } from "./scheduler.js";
import { type RequestRecord, Sequence } from "./sequence.js";
import { type PageStore, Spill } from "./spill.js";
import { Recorder } from "./timeline.js";
import type {
  EngineStats,
  FinishReason,
  GenerateRequest,
  Timeline,
  TokenConstraint,
  TokenEvent,
  TokenLogprobs,
} from "./types.js";
import { checkRequest } from "./validate.js";

export type FinishEvent = Extract<TokenEvent, { type: "finish" }>;

/** Where events go. For one request: start, then tokens and finishes of its choices. */
export interface EngineOutput {
  start(id: string, cachedTokens: number, promptLogprobs: readonly (TokenLogprobs | null)[] | undefined): void;
  token(id: string, index: number, token: number, logprobs: TokenLogprobs | undefined): void;
  finish(id: string, event: FinishEvent): void;
  /** What came before belongs together: one step's events, or those of a call. */
  flush(): void;
}

export interface EngineOptions extends Guessing {
  readonly output: EngineOutput;
  /** Resolves when messages that have come in were handled (setImmediate, a MessageChannel). */
  readonly pause: () => Promise<void>;
  /** Milliseconds. */
  readonly now: () => number;
  /** The device is lost (Program.lost), and every request has been told: nothing can be run here any more. */
  readonly lost?: () => void;
  /** Tokens a step, exactly; by default as many as the device does in time. */
  readonly stepTokens?: number;
  /** false: no page is found again by its content. */
  readonly prefixCache?: boolean;
  /** Where pages go that the device gives up, and come back from. States stay where they are: a model that has them uses
   *  none. Undefined: nowhere. */
  readonly store?: PageStore;
}

/** Milliseconds that closing may spend on copying pages down. */
const flushMs = 2000;

interface Flight extends MaskedStep {
  readonly topLogprobs: number;
  readonly tokens: number;
  /** In the timeline. */
  readonly mark: ReturnType<Recorder["launched"]>;
}

/** Called for each choice of a request. */
export type ConstraintFactory = (index: number) => TokenConstraint;

export class Engine {
  readonly scheduler: Scheduler;
  private readonly holdings: Holdings;
  private readonly budget: StepBudget;
  private readonly guesses: Guesses;
  private readonly spill: Spill | undefined;
  private readonly recorder = new Recorder();
  private readonly output: EngineOutput;
  private readonly requests = new Map<string, RequestRecord>();
  private readonly adapters = new Map<string, { slot: number; version: number | string }>();
  /** Steps in flight, oldest first. */
  private flights: Flight[] = [];
  private arrivals = 0;
  private steps = 0;
  private adapterVersions = 0;
  private promptTokens = 0;
  private generatedTokens = 0;
  /** In tokens: those that could have been in the cache and those that were. */
  private prefixQueries = 0;
  private prefixHits = 0;
  private settledAt = 0;
  private closed = false;
  /** There has been something to do since it was last looked for. */
  private woken = false;
  private resume: () => void = () => {};
  private idleWaiters: (() => void)[] = [];

  constructor(
    private readonly program: Program,
    private readonly limits: Limits,
    private readonly options: EngineOptions,
  ) {
    this.output = options.output;
    this.holdings = new Holdings(program);
    this.budget = new StepBudget(limits.maxTokens, options.stepTokens);
    this.guesses = new Guesses(options, this.budget);
    const { store, now } = options;
    if (store && !this.holdings.hasStates) {
      const promptMs = (tokens: number) => this.budget.promptMs(tokens);
      const inFlight = () => this.flights.map(({ step }) => step.result);
      this.spill = new Spill(program, this.holdings, store, { now, inFlight, wake: () => this.wake(), promptMs });
    }
    this.scheduler = new Scheduler(
      this.holdings,
      limits,
      options.prefixCache ?? true,
      (sequence) => this.admitted(sequence),
      (sequence) => this.fetches(sequence),
      (sequence) => this.recorder.preempted(sequence),
    );
  }

  /** Throws UserError for a request that cannot be served; nothing of it is kept then. */
  submit(request: GenerateRequest, constraint?: ConstraintFactory): void {
    if (this.closed) throw new UserError("the model is being unloaded", { status: 503, code: "engine_closed" });
    if (this.requests.has(request.id)) throw new UserError(`a request called ${request.id} is running already`);
    const longest = Math.min(
      this.limits.contextLength,
      ...this.holdings.groups.map((_, g) => this.holdings.capacity(g)),
    );
    checkRequest(request, { vocabSize: this.program.vocabSize, longest, adapters: [...this.adapters.keys()] });
    const adapter = request.adapter === undefined ? undefined : this.adapters.get(request.adapter);
    const scored = request.promptLogprobs !== undefined;
    const record: RequestRecord = {
      request,
      stopIds: new Set(request.stopIds),
      choices: [],
      adapter: adapter?.slot ?? -1,
      promptLogprobs: scored ? new Array(request.promptIds.length).fill(null) : undefined,
      unscored: scored ? request.promptIds.length - 1 : 0,
      started: false,
      open: request.n,
    };
    const salt = JSON.stringify([request.cacheSalt ?? "", adapter?.version ?? 0]);
    const lasting = typeof adapter?.version !== "number";
    const now = this.options.now();
    for (let index = 0; index < request.n; index++) {
      const names = new PageNames(this.holdings.pageTokens, salt, lasting);
      const held = this.holdings.none();
      const arrival = this.arrivals++;
      const limit = constraint?.(index);
      const sequence = new Sequence({ record, index, arrival, now, names, held, constraint: limit });
      sequence.follows = index > 0;
      record.choices.push(sequence);
    }
    this.requests.set(request.id, record);
    for (const sequence of record.choices) this.scheduler.add(sequence);
    if (request.maxTokens === 0 && record.unscored === 0) this.finishScored(record);
    this.wake();
  }

  /** Ends a choice, or all of them. Unknown ids are ignored: the request may have ended by itself. */
  abort(id: string, index?: number): void {
    const record = this.requests.get(id);
    if (!record) return;
    for (const sequence of record.choices) {
      if (index === undefined || index === sequence.index) this.finish(sequence, "abort");
    }
    this.output.flush();
    this.wake();
  }

  /** Something that a sequence waits for has come: a mask. */
  nudge(): void {
    this.wake();
  }

  /** The name is what requests call the adapter; null takes it away. No request may be using it. */
  async loadAdapter(name: string, source: AdapterSource | null): Promise<void> {
    const used = new Set([...this.adapters.values()].map(({ slot }) => slot));
    let slot = this.adapters.get(name)?.slot ?? 0;
    if (!this.adapters.has(name)) while (used.has(slot)) slot++;
    if (slot >= this.limits.adapterSlots) {
      throw new UserError(`${this.limits.adapterSlots} adapters can be loaded at once, and they are`, { status: 409 });
    }
    this.adapters.delete(name);
    await this.program.loadAdapter(slot, source);
    if (source) this.adapters.set(name, { slot, version: source.digest ?? ++this.adapterVersions });
  }

  stats(): EngineStats {
    const { pools } = this.holdings;
    return {
      running: this.scheduler.running.length,
      waiting: this.scheduler.waiting.length,
      pages: pools.map(({ numPages: total, available, cached }) => {
        return { total, free: available - cached, cached, used: total - available };
      }),
      steps: this.steps,
      preemptions: this.scheduler.preemptions,
      promptTokens: this.promptTokens,
      generatedTokens: this.generatedTokens,
      prefixQueries: this.prefixQueries,
      prefixHits: this.prefixHits,
      tiers: this.spill?.stats(),
      draftTokens: this.guesses.checked,
      acceptedTokens: this.guesses.right,
    };
  }

  /** @param steps the newest so many */
  timeline(steps: number): Timeline {
    const live = [...this.requests.values()].flatMap(({ choices }) => choices.filter(({ finished }) => !finished));
    return this.recorder.read(this.options.now(), live, steps);
  }

  /** Launches what can be launched and sees the oldest step through. False where there was nothing to do. */
  async step(): Promise<boolean> {
    if (this.spill?.work(this.scheduler.running.length === 0)) this.woken = true;
    while (this.flights.length < this.limits.depth) {
      // A state cannot be taken back.
      if (!this.holdings.hasStates) await this.guesses.make(this.scheduler.running);
      if (!this.launch()) break;
      await bringMasks(this.flights.at(-1)!, this.program.vocabSize, this.options);
    }
    const flight = this.flights.shift();
    if (!flight) {
      this.output.flush(); // what had to follow may have ended a sequence
      return false;
    }
    try {
      const result = await flight.step.result;
      this.settle(flight, result);
    } catch (error) {
      this.recorder.settled(flight.mark, this.options.now(), true);
      await this.fail(error);
    }
    this.output.flush();
    if (this.program.lost) this.options.lost?.();
    return true;
  }

  /** Works until close(). */
  async run(): Promise<void> {
    while (!this.closed) {
      if (this.requests.size === 0 && this.flights.length === 0) {
        for (const resolve of this.idleWaiters.splice(0)) resolve();
        if (this.spill?.work(true)) await this.options.pause();
        else await this.rest();
        continue;
      }
      if (await this.step()) await this.options.pause();
      // Every sequence waits, for its mask or for pages.
      else if (this.requests.size > 0 && !this.closed) await this.rest();
    }
    while (this.flights.length > 0) await this.flights.shift()!.step.result.catch(() => {});
    for (const resolve of this.idleWaiters.splice(0)) resolve();
    await this.flush();
  }

  /** Copies pages down that are in no tier yet. No step may be in flight, and none may follow. */
  async flush(): Promise<void> {
    if (!this.program.lost) await this.spill?.flush(flushMs, this.options.pause);
  }

  /** Until there is something to do; messages are let in at least once. */
  private async rest(): Promise<void> {
    if (this.woken) {
      this.woken = false;
      await this.options.pause();
      return;
    }
    await new Promise<void>((resolve) => {
      this.resume = resolve;
    });
    this.woken = false;
  }

  private wake(): void {
    this.woken = true;
    this.resume();
  }

  /** Resolves when no request is left; new ones are still taken. Only while run() works. */
  drain(): Promise<void> {
    if (this.requests.size === 0 && this.flights.length === 0) return Promise.resolve();
    return new Promise((resolve) => this.idleWaiters.push(resolve));
  }

  /** Ends every request with an abort and takes no more. The program is the caller's to close, once run() has returned. */
  close(): void {
    this.closed = true;
    for (const id of [...this.requests.keys()]) this.abort(id);
    this.wake();
  }

  /** Throws InternalError where a page, slot or record is in two states or in none. */
  check(): void {
    const sequences = [...this.requests.values()].flatMap(({ choices }) => choices);
    this.holdings.check(sequences.map(({ held }) => held));
  }

  private fetches(sequence: Sequence): boolean {
    const fetching = this.spill?.seek(sequence) ?? false;
    if (fetching) this.recorder.fetches(sequence);
    return fetching;
  }

  private admitted(sequence: Sequence): void {
    const { record } = sequence;
    this.recorder.admitted(sequence);
    sequence.admitted(this.options.now());
    if (record.started) return;
    if (record.promptLogprobs) return;
    sequence.cachedTokens = sequence.computed;
    this.prefixQueries += sequence.promptLength;
    this.prefixHits += sequence.cachedTokens;
    this.start(sequence);
  }

  private start(sequence: Sequence): void {
    const { record } = sequence;
    record.started = true;
    this.promptTokens += sequence.promptLength;
    this.output.start(record.request.id, sequence.cachedTokens, record.promptLogprobs);
  }

  private launch(): boolean {
    const { running, waiting } = this.scheduler;
    this.jumpForward(running);
    const othersGenerate = running.length > 1 && running.some((sequence) => sequence.generating);
    const entries = this.scheduler.plan(this.budget.tokens(othersGenerate));
    if (entries.length === 0) return false;
    const batch = buildBatch(entries, this.holdings.groups.length);
    const launchedAt = this.options.now();
    let step: Step;
    try {
      step = this.program.run(batch);
    } catch (error) {
      // reaches the requests in the place where results do
      step = { result: Promise.reject(error), setMasks: () => {} };
    }
    step.result.catch(() => {}); // seen to when its turn comes
    const { topLogprobs, tokens } = batch;
    const mark = this.recorder.launched({
      step: ++this.steps,
      at: launchedAt,
      entries,
      tokens: tokens.length,
      running: running.length,
      waiting: waiting.length,
      freePages: Math.min(...this.holdings.pools.map(({ available }) => available)),
    });
    this.scheduler.launched(entries, this.steps);
    this.flights.push({ entries, voids: new Map(), step, topLogprobs, tokens: tokens.length, launchedAt, mark });
    return true;
  }

  /** What must follow is appended where it is known before the step. */
  private jumpForward(running: readonly Sequence[]): void {
    const now = this.options.now();
    for (const sequence of [...running]) {
      const { constraint } = sequence;
      if (!constraint || sequence.inFlight > 0 || !constraint.ready() || constraint.failure) continue;
      this.follow(sequence, constraint.jump(), now);
    }
  }

  private settle(flight: Flight, result: StepResult): void {
    const now = this.options.now();
    this.budget.observe(flight.tokens, now - Math.max(flight.launchedAt, this.settledAt));
    this.settledAt = now;
    this.recorder.settled(flight.mark, now);
    let row = 0;
    for (const [at, { sequence, scoreFrom, scoreTo, draws, drafts }] of flight.entries.entries()) {
      const { record } = sequence;
      for (let position = scoreFrom; position < scoreTo; position++) {
        const most = record.request.promptLogprobs!;
        record.promptLogprobs![position] = logprobsOf(result, row++, flight.topLogprobs, most);
        record.unscored--;
      }
      if (scoreTo > scoreFrom && record.unscored === 0) this.scoredAll(sequence);
      if (!draws) continue;
      sequence.inFlight--;
      const nothing = flight.voids.get(sequence);
      if (nothing === "late") this.recorder.late(flight.mark, at);
      if (nothing !== undefined) this.drewNothing(sequence, nothing, now);
      else if (drafts.length === 0) this.drawn(sequence, result, row, flight.topLogprobs, now);
      else {
        const right = this.checkGuesses(sequence, drafts, result, row, flight.topLogprobs, now);
        this.recorder.guessed(flight.mark, at, right);
      }
      row += 1 + drafts.length;
    }
  }

  private scoredAll(sequence: Sequence): void {
    const { record } = sequence;
    if (record.open === 0) return;
    if (record.request.maxTokens === 0) this.finishScored(record);
    else if (!record.started) this.start(sequence);
  }

  /** A request that generates nothing ends with its last score. */
  private finishScored(record: RequestRecord): void {
    if (!record.started) this.start(record.choices[0]);
    for (const sequence of record.choices) this.finish(sequence, "length");
    this.output.flush();
  }

  /** A token for the sequence, dropped where it has ended meanwhile: the row after an end token. */
  private drawn(sequence: Sequence, result: StepResult, row: number, top: number, now: number): void {
    if (sequence.finished) return;
    const { request, stopIds } = sequence.record;
    const token = result.tokens[row];
    sequence.append(token, now);
    sequence.late = false;
    this.generatedTokens++;
    sequence.constraint?.accept(token);
    const logprobs = request.logprobs === undefined ? undefined : logprobsOf(result, row, top, request.logprobs);
    this.output.token(request.id, sequence.index, token, logprobs);
    if (stopIds.has(token)) this.finish(sequence, "stop", { stopId: token });
    else if (sequence.length - sequence.promptLength >= request.maxTokens) this.finish(sequence, "length");
  }

  /** Each row's token is right as long as the guesses before it are what was drawn. What lies behind is computed again.
   *  Returns how many guesses were right. */
  private checkGuesses(
    sequence: Sequence,
    guesses: Int32Array,
    result: StepResult,
    row: number,
    top: number,
    now: number,
  ): number {
    if (sequence.finished) return 0;
    let right = 0;
    while (right < guesses.length && guesses[right] === result.tokens[row + right]) right++;
    sequence.computed = Math.min(sequence.computed, sequence.length + right);
    // Before a drawn token can end the choice: its last event tells them.
    this.guesses.learn(sequence, guesses.length, right);
    for (let i = 0; i <= right && !sequence.finished; i++) this.drawn(sequence, result, row + i, top, now);
    return right;
  }

  private drewNothing(sequence: Sequence, nothing: Void, now: number): void {
    if (sequence.finished) return;
    // The device has counted a token that there is not.
    sequence.slotIsNew = sequence.running;
    sequence.late = nothing === "late";
    if (nothing === "ended") this.finish(sequence, "stop");
    else if (nothing === "failed") this.finish(sequence, "error", { error: sequence.constraint?.failure });
    else if (nothing !== "late") this.follow(sequence, nothing, now);
    // Its last token is computed again with the row; a preempted one begins anew anyway.
    else if (sequence.computed > 0) sequence.computed--;
  }

  /** Tokens that nobody drew: they are in the gap from now on. */
  private follow(sequence: Sequence, ids: readonly number[], now: number): void {
    const { request } = sequence.record;
    // The device counts what it draws: these it has to be told.
    if (ids.length > 0) {
      sequence.slotIsNew = sequence.running;
      this.recorder.followed(sequence, ids.length);
    }
    for (const token of ids) {
      sequence.append(token, now);
      this.generatedTokens++;
      this.output.token(request.id, sequence.index, token, undefined);
      if (sequence.length - sequence.promptLength < request.maxTokens) continue;
      this.finish(sequence, "length");
      return;
    }
  }

  /** Once for each choice: later calls do nothing. */
  private finish(
    sequence: Sequence,
    reason: FinishReason,
    extra: { stopId?: number; error?: FinishEvent["error"] } = {},
  ): void {
    if (sequence.finished) return;
    sequence.finished = reason;
    const { record, index } = sequence;
    if (reason !== "error") this.scheduler.nameFullPages(sequence);
    this.scheduler.remove(sequence);
    sequence.constraint?.close();
    const now = this.options.now();
    this.recorder.finished(sequence, reason, now);
    const timings = sequence.timings(now);
    this.output.finish(record.request.id, { type: "finish", index, reason, ...extra, timings });
    if (--record.open === 0) this.requests.delete(record.request.id);
  }

  /** The device has failed: nothing of what it holds can be trusted, so every request ends and the cache is forgotten. */
  private async fail(error: unknown): Promise<void> {
    const message = error instanceof Error ? error.message : String(error);
    log.error("the device failed", { message });
    const later = this.flights;
    this.flights = [];
    await Promise.all(later.map(({ step }) => step.result.catch(() => {})));
    for (const { choices } of [...this.requests.values()]) {
      for (const sequence of choices) {
        this.finish(sequence, "error", { error: { message, status: 500, code: "device_error" } });
      }
    }
    this.holdings.forgetAll();
    this.spill?.forget();
  }
}

function logprobsOf(result: StepResult, row: number, stride: number, most: number): TokenLogprobs {
  const top: [id: number, logprob: number][] = [];
  for (let i = row * stride; i < row * stride + most; i++) {
    if (result.topIds[i] >= 0) top.push([result.topIds[i], result.topLogprobs[i]]);
  }
  return { logprob: result.logprobs[row], rank: result.ranks[row], top };
}
