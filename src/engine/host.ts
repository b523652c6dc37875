// Owns: the engine's side of the protocol: one model, loaded once, until the port closes. Runs wherever its carrier put
// it; what it loads and how it waits is given to it.
import { UserError } from "../base/errors.js";
import type { Limits, Program } from "../device/device.js";
import { Engine, type EngineOutput, type FinishEvent } from "./loop.js";
import type { FinishRecord, FromHost, Port, StartRecord, ToHost, WireError } from "./protocol.js";
import type { GenerateRequest, ModelLimits, TokenLogprobs } from "./types.js";

export interface Loaded {
  readonly program: Program;
  readonly limits: Limits;
  readonly model: ModelLimits;
  /** The program is closed already. */
  close(): Promise<void>;
}

export interface HostEnvironment {
  /** options: what the client asked to load. */
  load(options: unknown, hooks: { onProgress(done: number, total: number): void }): Promise<Loaded>;
  /** Resolves when messages that have come in were handled. */
  pause(): Promise<void>;
  /** Milliseconds. */
  now(): number;
  /** Everything has been closed, or there is nobody left to work for. */
  onEnd(): void;
}

/** Serves one client until it says close or is gone. */
export function serveEngine(port: Port, environment: HostEnvironment): void {
  const host = new Host(port, environment);
  port.onMessage((message) => host.receive(message as ToHost));
  port.onClose(() => environment.onEnd());
}

class Host {
  private readonly output: FlatOutput;
  private engine: Engine | undefined;
  private loaded: Loaded | undefined;
  private running: Promise<void> = Promise.resolve();

  constructor(
    private readonly port: Port,
    private readonly environment: HostEnvironment,
  ) {
    this.output = new FlatOutput((message) => this.post(message));
  }

  receive(message: ToHost): void {
    switch (message.type) {
      case "load":
        void this.load(message.options);
        break;
      case "submit":
        this.submit(message.key, message.request);
        break;
      case "abort": {
        const id = this.output.idOf(message.key);
        if (id !== undefined) this.engine?.abort(id, message.index);
        break;
      }
      case "stats":
        if (this.engine) this.post({ type: "stats", query: message.query, stats: this.engine.stats() });
        break;
      case "close":
        void this.close();
    }
  }

  private post(message: FromHost): void {
    this.port.post(message);
  }

  private async load(options: unknown): Promise<void> {
    try {
      const onProgress = (done: number, total: number) => this.post({ type: "progress", done, total });
      this.loaded = await this.environment.load(options, { onProgress });
      const { program, limits, model } = this.loaded;
      const { pause, now } = this.environment;
      this.engine = new Engine(program, limits, { output: this.output, pause, now });
      this.running = this.engine.run();
      this.post({ type: "loaded", limits: model });
    } catch (error) {
      this.post({ type: "failed", error: wireError(error) });
    }
  }

  private submit(key: number, request: GenerateRequest): void {
    this.output.open(key, request);
    try {
      if (!this.engine) throw new UserError("the model is not loaded", { status: 503, code: "not_loaded" });
      this.engine.submit(request);
    } catch (error) {
      this.output.refuse(key, request, wireError(error));
    }
  }

  private async close(): Promise<void> {
    this.engine?.close();
    await this.running;
    await this.loaded?.program.close();
    await this.loaded?.close();
    this.port.close();
    this.environment.onEnd();
  }
}

/** Gathers a step's events into one message. */
class FlatOutput implements EngineOutput {
  private readonly keys = new Map<string, { key: number; open: number }>();
  private readonly ids = new Map<number, string>();
  private starts: StartRecord[] = [];
  private tokens: number[] = [];
  private values: number[] = [];
  private finishes: FinishRecord[] = [];

  constructor(private readonly post: (message: FromHost) => void) {}

  open(key: number, { id, n }: GenerateRequest): void {
    // an id that is running already keeps its key: the engine refuses the second request
    if (this.keys.has(id)) return;
    this.keys.set(id, { key, open: n });
    this.ids.set(key, id);
  }

  idOf(key: number): string | undefined {
    return this.ids.get(key);
  }

  refuse(key: number, request: GenerateRequest, error: WireError): void {
    if (this.ids.delete(key)) this.keys.delete(request.id);
    for (let index = 0; index < Math.max(1, request.n); index++) {
      this.finishes.push({ key, event: failure(request, index, error) });
    }
    this.flush();
  }

  start(id: string, cachedTokens: number, promptLogprobs: readonly (TokenLogprobs | null)[] | undefined): void {
    this.starts.push({ key: this.keys.get(id)!.key, cachedTokens, promptLogprobs });
  }

  token(id: string, index: number, token: number, logprobs: TokenLogprobs | undefined): void {
    this.tokens.push(this.keys.get(id)!.key, index, token, logprobs ? logprobs.top.length : -1);
    if (!logprobs) return;
    this.values.push(logprobs.logprob, logprobs.rank);
    for (const [best, logprob] of logprobs.top) this.values.push(best, logprob);
  }

  finish(id: string, event: FinishEvent): void {
    const entry = this.keys.get(id)!;
    this.finishes.push({ key: entry.key, event });
    if (--entry.open > 0) return;
    this.keys.delete(id);
    this.ids.delete(entry.key);
  }

  flush(): void {
    if (this.starts.length + this.tokens.length + this.finishes.length === 0) return;
    this.post({
      type: "events",
      starts: this.starts,
      tokens: Int32Array.from(this.tokens),
      values: Float64Array.from(this.values),
      finishes: this.finishes,
    });
    this.starts = [];
    this.tokens = [];
    this.values = [];
    this.finishes = [];
  }
}

export function wireError(error: unknown): WireError {
  if (error instanceof UserError) return { message: error.message, status: error.status, code: error.code };
  const message = error instanceof Error ? error.message : String(error);
  return { message, status: 500, code: "internal_error" };
}

/** The end of a choice that the engine never ran, or can no longer tell about. */
export function failure(request: GenerateRequest, index: number, error: WireError): FinishEvent {
  return { type: "finish", index, reason: "error", error, timings: noTimings(request) };
}

export function noTimings(request: GenerateRequest) {
  const promptTokens = request.promptIds.length;
  return { queueMs: 0, promptMs: 0, generationMs: 0, promptTokens, cachedTokens: 0, generatedTokens: 0 };
}
