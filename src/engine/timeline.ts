// Owns: what the scheduler has lately done, step by step and choice by choice: rings of numbers of a fixed size, written
// always (a few stores an entry) and turned into records when somebody asks. Holds no token and no text.
//
//   steps     | step 7 ............ | step 8 ...         |
//   actions   | admit compute       | preempt compute compute |      what was decided since the step before
import type { Entry } from "./scheduler.js";
import type { Sequence } from "./sequence.js";
import type { FinishReason, Timeline, TimelineAction, TimelineChoice } from "./types.js";

/** What is kept; a power of two each. */
const keptSteps = 4096;
const keptActions = 16_384;
const keptChoices = 1024;

const actionNames = ["admit", "fetch", "preempt", "follow", "compute"] as const;
type ActionName = (typeof actionNames)[number];
const codes = Object.fromEntries(actionNames.map((name, code) => [name, code])) as Record<ActionName, number>;

/** An action: code, choice, first position, tokens, guesses, right ones (−1: not known yet), whether it draws and how. */
const actionFields = 7;
/** A step: number, launch, end (NaN: in flight), tokens, running, waiting, free pages, the end of its actions, failed. */
const stepFields = 9;

const draws = 1;
const isLate = 2;

/** What is known of a step when it is launched. */
export interface Launch {
  readonly step: number;
  readonly at: number;
  readonly entries: readonly Entry[];
  readonly tokens: number;
  readonly running: number;
  readonly waiting: number;
  readonly freePages: number;
}

export class Recorder {
  private readonly actions = new Int32Array(keptActions * actionFields);
  private readonly steps = new Float64Array(keptSteps * stepFields);
  private readonly ended: TimelineChoice[] = [];
  /** Ever written, of each. */
  private actionCount = 0;
  private stepCount = 0;
  private endedCount = 0;

  admitted({ arrival, computed }: Sequence): void {
    this.act(codes.admit, arrival, 0, computed);
  }

  /** More of its prefix is on its way from the tiers below the device. */
  fetches({ arrival }: Sequence): void {
    this.act(codes.fetch, arrival, 0, 0);
  }

  /** Called while it still holds what it is about to lose. */
  preempted({ arrival, computed }: Sequence): void {
    this.act(codes.preempt, arrival, 0, computed);
  }

  /** Tokens that had to follow, drawn by nobody. */
  followed({ arrival, length }: Sequence, tokens: number): void {
    this.act(codes.follow, arrival, length, tokens);
  }

  /** Before the scheduler hears that it was launched. Returns what settled() is to be given. */
  launched({ step, at, entries, tokens, running, waiting, freePages }: Launch): { step: number; action: number } {
    const mark = { step: this.stepCount, action: this.actionCount };
    for (const { sequence, tokens, draws: row, drafts } of entries) {
      this.act(codes.compute, sequence.arrival, sequence.computed, tokens, drafts.length, row ? draws : 0);
    }
    const base = (this.stepCount++ % keptSteps) * stepFields;
    this.steps.set([step, at, Number.NaN, tokens, running, waiting, freePages, this.actionCount, 0], base);
    return mark;
  }

  settled(mark: { step: number }, now: number, failed = false): void {
    const base = (mark.step % keptSteps) * stepFields;
    this.steps[base + 2] = now;
    this.steps[base + 8] = failed ? 1 : 0;
  }

  /** Of the launch's entry, how many guesses were right. */
  guessed(mark: { action: number }, entry: number, right: number): void {
    this.actions[((mark.action + entry) % keptActions) * actionFields + 5] = right;
  }

  /** The entry drew for nothing: its mask was not there in time. */
  late(mark: { action: number }, entry: number): void {
    this.actions[((mark.action + entry) % keptActions) * actionFields + 6] |= isLate;
  }

  finished(sequence: Sequence, reason: FinishReason, now: number): void {
    this.ended[this.endedCount++ % keptChoices] = { ...choiceOf(sequence), finished: now, reason };
  }

  /** @param mostSteps the newest so many */
  read(now: number, live: readonly Sequence[], mostSteps: number): Timeline {
    const steps: Timeline["steps"][number][] = [];
    const from = Math.max(0, this.stepCount - Math.min(mostSteps, keptSteps - 1));
    for (let i = from; i < this.stepCount; i++) {
      const first = i === 0 ? 0 : this.field(i - 1, 7);
      const actions: TimelineAction[] = [];
      // The oldest ones' actions may have been written over.
      for (let a = Math.max(first, this.actionCount - keptActions); a < this.field(i, 7); a++)
        actions.push(this.action(a));
      const ended = this.field(i, 2);
      steps.push({
        step: this.field(i, 0),
        launched: this.field(i, 1),
        ...(Number.isNaN(ended) ? {} : { ended }),
        ...(this.field(i, 8) ? { failed: true } : {}),
        tokens: this.field(i, 3),
        running: this.field(i, 4),
        waiting: this.field(i, 5),
        freePages: this.field(i, 6),
        actions,
      });
    }
    const oldest = Math.max(0, this.endedCount - keptChoices);
    const ended = Array.from({ length: this.endedCount - oldest }, (_, i) => this.ended[(oldest + i) % keptChoices]);
    const since = steps[0]?.launched ?? 0;
    const shown = ended.filter(({ finished }) => finished! >= since);
    return { now, choices: [...shown, ...live.map(choiceOf)], steps };
  }

  private act(code: number, choice: number, from: number, tokens: number, guesses = 0, flags = 0): void {
    const { actions } = this;
    const base = (this.actionCount++ % keptActions) * actionFields;
    actions[base] = code;
    actions[base + 1] = choice;
    actions[base + 2] = from;
    actions[base + 3] = tokens;
    actions[base + 4] = guesses;
    actions[base + 5] = -1;
    actions[base + 6] = flags;
  }

  private field(step: number, field: number): number {
    return this.steps[(step % keptSteps) * stepFields + field];
  }

  private action(index: number): TimelineAction {
    const base = (index % keptActions) * actionFields;
    const [code, choice, from, tokens, guesses, right, flags] = this.actions.subarray(base, base + actionFields);
    const action = actionNames[code];
    if (action !== "compute") return { action, choice, tokens };
    return {
      action,
      choice,
      tokens,
      from,
      draws: (flags & draws) !== 0,
      ...(guesses === 0 ? {} : { guesses }),
      ...(right < 0 ? {} : { right }),
      ...(flags & isLate ? { late: true } : {}),
    };
  }
}

function choiceOf(sequence: Sequence): TimelineChoice {
  const { arrival, index, request, promptLength, length, cachedTokens } = sequence;
  const { arrivedAt: arrived, admittedAt: admitted, firstTokenAt: firstToken } = sequence;
  return {
    choice: arrival,
    request: request.label ?? request.id,
    index,
    client: request.client,
    priority: request.priority,
    promptTokens: promptLength,
    maxTokens: request.maxTokens,
    cachedTokens,
    generatedTokens: length - promptLength,
    arrived,
    admitted,
    firstToken,
  };
}
