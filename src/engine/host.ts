// Owns: the engine's side of the protocol: loads one model, runs its Engine, and sends what each step brought as one
// message. Lives in a worker thread or a process of its own (src/host); knows neither.
import { UserError } from "../base/errors.js";
import type { AdapterSource, Limits, Program } from "../device/device.js";
import { errorRecord, failure } from "./client.js";
import { DraftModel } from "./draft.js";
import { Encoder, type Pooling } from "./encoder.js";
import { PromptLookup } from "./lookup.js";
import { Engine, type EngineOutput } from "./loop.js";
import type { ClientMessage, HandledEvent, HostMessage, Port } from "./protocol.js";
import type { PageStore } from "./spill.js";
import type { GenerateRequest, ModelLimits, TokenConstraint, TokenGrammar } from "./types.js";

/** Where constraints come from. Absent: the model has no text, so there is none. */
export interface ConstraintSource {
  /** Throws UserError for a grammar that cannot be read. */
  compile(grammar: TokenGrammar): Promise<void>;
  open(grammar: TokenGrammar): TokenConstraint;
  /** Called when a constraint may have become ready. */
  onWritten: () => void;
  close(): Promise<void>;
}

export interface LoadedModel {
  readonly constraints?: ConstraintSource;
  readonly program: Program;
  readonly limits: Limits;
  readonly modelLimits: ModelLimits;
  /** The program is an encoder's: it gives embeddings. */
  readonly pooling?: Pooling;
  /** EngineOptions.store. */
  readonly store?: PageStore;
  /** EngineOptions.stepTokens. */
  readonly stepTokens?: number;
  /** Whether tokens are guessed from the text (lookup.ts). */
  readonly lookup?: boolean;
  /** A smaller model that guesses (draft.ts); it is closed with the model. */
  readonly draft?: { readonly program: Program; readonly limits: Limits };
  /** What requests may name. */
  readonly adapters?: readonly { readonly name: string; readonly source: AdapterSource }[];
  close(): Promise<void>;
}

export interface HostRuntime {
  /** spec: what the client was given. Throws UserErrors. */
  load(spec: unknown, onProgress: (done: number, total: number) => void): Promise<LoadedModel>;
  /** Milliseconds. */
  now(): number;
  /** Lets messages in between two steps. */
  pause(): Promise<void>;
}

/** Runs until the client says close or is gone; then the port is closed. */
export function runHost(port: Port, runtime: HostRuntime): Promise<void> {
  return new Promise((resolve) => {
    let ended = false;
    const end = () => {
      if (ended) return;
      ended = true;
      void host.close().finally(() => {
        port.close();
        resolve();
      });
    };
    // A lost device ends its host, and whoever asks next starts another.
    const host = new Host(port, runtime, end);
    port.onMessage((message) => {
      if ((message as ClientMessage).type === "close") end();
      else host.receive(message as ClientMessage);
    });
    port.onClose(end);
  });
}

class Host {
  private model: LoadedModel | undefined;
  private engine: Engine | undefined;
  private encoder: Encoder | undefined;
  private loading: Promise<void> | undefined;
  private running: Promise<void> | undefined;
  private readonly outbox: Outbox;
  private readonly embedding = new Map<number, AbortController>();
  /** Requests whose grammar is being compiled. */
  private readonly compiling = new Map<number, GenerateRequest>();

  constructor(
    private readonly port: Port,
    private readonly runtime: HostRuntime,
    private readonly lost: () => void,
  ) {
    this.outbox = new Outbox((message) => this.post(message));
  }

  receive(message: ClientMessage): void {
    switch (message.type) {
      case "load":
        this.loading = this.load(message.spec);
        return;
      case "submit":
        this.submit(message.handle, message.request);
        return;
      case "abort":
        this.abort(message.handle, message.index);
        return;
      case "stats":
        if (this.engine) this.post({ type: "stats", ticket: message.ticket, stats: this.engine.stats() });
        return;
      case "timeline":
        this.post({ type: "timeline", ticket: message.ticket, timeline: this.engine?.timeline(message.steps) });
        return;
      case "embed":
        void this.embed(message.ticket, message.texts);
        return;
      case "abandon":
        this.embedding.get(message.ticket)?.abort();
        return;
      case "grant":
        for (const one of [this.model, this.model?.draft]) one?.program.setThreads?.(message.threads);
        return;
      case "close":
        return;
    }
  }

  async close(): Promise<void> {
    await this.loading;
    this.engine?.close();
    await this.running;
    await this.model?.constraints?.close();
    await this.model?.close();
  }

  private async load(spec: unknown): Promise<void> {
    try {
      const { runtime } = this;
      const model = await runtime.load(spec, (done, total) => this.post({ type: "progress", done, total }));
      const { now, pause } = runtime;
      this.model = model;
      if (model.pooling !== undefined) {
        this.encoder = new Encoder(model.program, model.limits, model.pooling, pause);
        this.post({ type: "ready", limits: model.modelLimits });
        return;
      }
      const engine = new Engine(model.program, model.limits, {
        now,
        pause,
        output: this.outbox,
        stepTokens: model.stepTokens,
        store: model.store,
        drafter: model.lookup ? () => new PromptLookup() : undefined,
        draft: model.draft && new DraftModel(model.draft.program, model.draft.limits, { now, pause }),
        lost: this.lost,
      });
      this.engine = engine;
      for (const { name, source } of model.adapters ?? []) await engine.loadAdapter(name, source);
      if (model.constraints) model.constraints.onWritten = () => engine.nudge();
      this.running = engine.run();
      this.post({ type: "ready", limits: model.modelLimits });
    } catch (error) {
      this.post({ type: "failed", error: errorRecord(error) });
    }
  }

  private submit(handle: number, request: GenerateRequest): void {
    if (request.grammar && !this.encoder) {
      void this.submitConstrained(handle, request, request.grammar);
      return;
    }
    try {
      if (this.encoder) throw new UserError("This model gives embeddings and no text.", { code: "no_generation" });
      this.engine!.submit(known(handle, request));
    } catch (error) {
      this.refuse(handle, request, error);
    }
  }

  private async embed(ticket: number, texts: readonly Int32Array[]): Promise<void> {
    const abandoned = new AbortController();
    this.embedding.set(ticket, abandoned);
    try {
      if (!this.encoder) throw new UserError("This model gives no embeddings.", { code: "no_embeddings" });
      this.post({ type: "embedded", ticket, vectors: await this.encoder.embed(texts, abandoned.signal) });
    } catch (error) {
      if (!abandoned.signal.aborted) this.post({ type: "notEmbedded", ticket, error: errorRecord(error) });
    } finally {
      this.embedding.delete(ticket);
    }
  }

  /** Nothing of it runs before its grammar is known to be good: a bad one is an answer of its own. */
  private async submitConstrained(handle: number, request: GenerateRequest, grammar: TokenGrammar): Promise<void> {
    this.compiling.set(handle, request);
    try {
      const constraints = this.model?.constraints;
      if (!constraints)
        throw new UserError("this model has no text to constrain", { code: "no_tokenizer", param: "format" });
      await constraints.compile(grammar);
      if (this.compiling.has(handle)) {
        this.engine!.submit(known(handle, request), () => constraints.open(grammar));
      }
    } catch (error) {
      if (this.compiling.has(handle)) this.refuse(handle, request, error);
    } finally {
      this.compiling.delete(handle);
    }
  }

  private abort(handle: number, index?: number): void {
    const request = this.compiling.get(handle);
    if (request === undefined) {
      this.engine?.abort(String(handle), index);
      return;
    }
    // A choice is ended by what it says: none has said anything yet.
    if (index !== undefined) return;
    this.compiling.delete(handle);
    for (let i = 0; i < request.n; i++) {
      const { error: _, ...event } = failure(i, request, { message: "", status: 0, code: "" });
      this.outbox.finish(String(handle), { ...event, reason: "abort" });
    }
    this.outbox.flush();
  }

  private refuse(handle: number, request: GenerateRequest, error: unknown): void {
    for (let index = 0; index < request.n; index++) {
      this.outbox.finish(String(handle), failure(index, request, errorRecord(error)));
    }
    this.outbox.flush();
  }

  private post(message: HostMessage): void {
    this.port.post(message);
  }
}

/** The engine knows requests by their handles: two users of one client may choose the same id. */
const known = (handle: number, request: GenerateRequest): GenerateRequest => {
  return { ...request, id: String(handle), label: request.label ?? request.id };
};

/** What was said since the last flush: a request's start goes before its tokens, its finish after them. */
class Outbox implements EngineOutput {
  private starts: HandledEvent[] = [];
  private tokens: number[] = [];
  private others: HandledEvent[] = [];

  constructor(private readonly post: (message: HostMessage) => void) {}

  readonly start: EngineOutput["start"] = (id, cachedTokens, promptLogprobs) => {
    this.starts.push([Number(id), { type: "start", cachedTokens, promptLogprobs }]);
  };

  readonly token: EngineOutput["token"] = (id, index, token, logprobs) => {
    if (logprobs === undefined) this.tokens.push(Number(id), index, token);
    else this.others.push([Number(id), { type: "token", index, id: token, logprobs }]);
  };

  readonly finish: EngineOutput["finish"] = (id, event) => {
    this.others.push([Number(id), event]);
  };

  flush(): void {
    const { starts, tokens, others } = this;
    if (starts.length + tokens.length + others.length === 0) return;
    this.starts = [];
    this.tokens = [];
    this.others = [];
    this.post({ type: "events", starts, tokens: Int32Array.from(tokens), others });
  }
}
