// Owns: who runs: the waiting line, device slots, and how many tokens each sequence gets of a step. No phases: a prompt, a
// prefix hit, a preempted sequence and one that generates differ only in their gap (sequence.ts).
//
// A step's budget goes to sequences that generate (one token each, then guesses of what follows), then to prompts. The
// first in line has at least half of that; the other half goes to other prompts, the shortest rest first: a long prompt
// always gets on, and holds up no short one for long. Where the budget or the device takes fewer than generate, all take
// turns, longest waiting first, so that nobody starves.
//
// The line: better priorities first, of those the client that has had the least (fairness.ts), of its sequences the oldest.
//
// Admission: a waiting sequence starts when a slot is free and the pages for its tokens and its next `headroom` ones are
// there beside what the running ones still need for theirs; the first in line waits for that, nobody overtakes it. A
// request that could not finish even alone is refused on arrival (loop.ts). One of a better priority takes the place of
// the worst that runs.
//
// Preemption: where a page is wanted and none is left, sequences that hold pages without running give theirs back, then
// the worst (lowest priority, youngest) that is worse than the one in need; it computes again what its pages held.
import { generatedCost, promptCost, Shares } from "./fairness.js";
import type { Holdings } from "./holdings.js";
import { before, noDrafts, type Sequence } from "./sequence.js";
import type { TokenConstraint } from "./types.js";

/** One sequence's part of a step. */
export interface Entry {
  readonly sequence: Sequence;
  /** Its tokens computed … computed + tokens − 1. */
  readonly tokens: number;
  /** Prompt positions [from, to) whose tokens are scored. */
  readonly scoreFrom: number;
  readonly scoreTo: number;
  /** The last of its tokens brings the next. */
  readonly draws: boolean;
  /** Its last tokens, where they are guesses: each of them, and the token before them, draws what should follow. */
  readonly drafts: Int32Array;
}

export interface StepLimits {
  readonly maxRows: number;
  readonly maxSequences: number;
  readonly maxTokens: number;
  readonly slots: number;
}

/** Tokens beyond those it has for which a sequence finds pages free when it is admitted. */
const headroom = 32;

export class Scheduler {
  readonly running: Sequence[] = [];
  /** In the order of before(). */
  readonly waiting: Sequence[] = [];
  preemptions = 0;
  private readonly shares = new Shares();
  private readonly freeSlots: number[];

  constructor(
    readonly holdings: Holdings,
    private readonly limits: StepLimits,
    private readonly prefixCache: boolean,
    private readonly onAdmitted: (sequence: Sequence) => void,
    /** True: more of its prefix is on its way; it is `fetching` until that is in the cache. */
    private readonly fetch: (sequence: Sequence) => boolean = () => false,
    private readonly onPreempt: (sequence: Sequence) => void = () => {},
  ) {
    this.freeSlots = Array.from({ length: limits.slots }, (_, i) => limits.slots - 1 - i);
  }

  add(sequence: Sequence): void {
    this.shares.join(sequence.client);
    this.queue(sequence);
  }

  private queue(sequence: Sequence): void {
    const at = this.waiting.findIndex((other) => before(sequence, other) < 0);
    this.waiting.splice(at < 0 ? this.waiting.length : at, 0, sequence);
  }

  /** It holds nothing afterwards. Where others wait for its prompt, the next of them computes it. */
  remove(sequence: Sequence): void {
    this.shares.leave(sequence.client);
    this.holdings.release(sequence.held);
    this.freeSlot(sequence);
    for (const list of [this.running, this.waiting]) {
      const at = list.indexOf(sequence);
      if (at >= 0) list.splice(at, 1);
    }
    if (sequence.follows) return;
    const heir = sequence.record.choices.find((other) => other.follows && !other.finished);
    if (!heir) return;
    heir.follows = false;
    heir.scored = sequence.scored;
  }

  /** Chooses a step of at most `budget` tokens, its pages ready to be written. Empty where nobody can run. */
  plan(budget: number): Entry[] {
    this.admit();
    const ready = this.running.filter((s) => s.wanted > s.computed && !(s.constraint && s.inFlight > 0));
    const generating = ready.filter((s) => s.generating);
    const most = Math.min(budget, this.limits.maxSequences, this.limits.maxRows);
    const taken = new StepInMaking(budget, this.limits);
    if (generating.length > most || (generating.length === most && ready.length > most)) {
      ready.sort((a, b) => a.lastStep - b.lastStep || before(a, b));
      for (const s of ready) this.place(s, taken, 1);
      return taken.entries;
    }
    // Guesses take what is left when each has its token.
    let spare = Math.min(budget, this.limits.maxRows) - generating.length;
    for (const s of generating.sort(before)) {
      const drafts = Math.min(s.drafts.length, spare);
      spare -= drafts;
      this.place(s, taken, 1 + drafts);
    }
    this.placePrompts(
      ready.filter((s) => !s.generating),
      taken,
    );
    return taken.entries;
  }

  private placePrompts(prompts: Sequence[], taken: StepInMaking): void {
    if (prompts.length === 0) return;
    const [first, ...others] = prompts.sort((a, b) => this.inLine(a, b));
    const gap = (s: Sequence) => s.wanted - s.computed;
    const theirs = others.reduce((sum, s) => sum + gap(s), 0);
    this.place(first, taken, taken.left - Math.min(theirs, Math.floor(taken.left / 2)));
    for (const s of others.sort((a, b) => gap(a) - gap(b) || this.inLine(a, b))) this.place(s, taken, taken.left);
  }

  /** Negative: a goes before b. */
  private inLine(a: Sequence, b: Sequence): number {
    const { shares } = this;
    return (
      a.request.priority - b.request.priority ||
      shares.served(a.client) - shares.served(b.client) ||
      a.arrival - b.arrival
    );
  }

  /** The entries' step has been launched. */
  launched(entries: readonly Entry[], step: number): void {
    for (const { sequence, tokens, scoreTo, draws, drafts } of entries) {
      sequence.computed += tokens;
      this.charge(sequence, sequence.computed - drafts.length);
      sequence.lastStep = step;
      sequence.slotIsNew = false;
      sequence.scored = Math.max(sequence.scored, scoreTo);
      if (draws) sequence.inFlight++;
      this.nameFullPages(sequence);
      if (this.prefixCache && this.holdings.hasStates) this.keepState(sequence);
      // A row whose mask comes late is computed once more: its last token sees what it sees now. So are wrong guesses.
      this.holdings.trim(sequence.held, sequence.computed - drafts.length - (draws && sequence.constraint ? 1 : 0));
      this.shareWithFollowers(sequence);
    }
  }

  /** What is computed and known can be found by others from now on. */
  nameFullPages(sequence: Sequence): void {
    if (!this.prefixCache) return;
    const full = Math.floor(Math.min(sequence.computed, sequence.length) / this.holdings.pageTokens);
    if (full <= sequence.named) return;
    this.holdings.name(sequence.held, sequence.names, sequence.tokens, sequence.named, full);
    sequence.named = full;
  }

  /** Up to where its tokens have been computed; of a prompt, on admission: its client's next request waits its turn. */
  private charge(s: Sequence, to: number): void {
    const from = Math.max(s.charged, s.promptLength);
    const prompt = s.charged < s.promptLength ? Math.min(to, s.promptLength) - s.charged : 0;
    const cost = promptCost * Math.max(0, prompt) + generatedCost * Math.max(0, to - from);
    s.charged = Math.max(s.charged, to);
    if (cost > 0) this.shares.charge(s.client, cost, s.request.weight ?? 1);
  }

  /** The first in line that can be thought of. */
  private next(): Sequence | undefined {
    let first: Sequence | undefined;
    for (const s of this.waiting) {
      // The waiting are in order of priority: whoever comes now is behind.
      if (first && s.request.priority > first.request.priority) break;
      if (s.follows || s.fetching || s.inFlight > 0) continue;
      if (!first || this.inLine(s, first) < 0) first = s;
    }
    return first;
  }

  private admit(): void {
    for (;;) {
      const sequence = this.next();
      if (!sequence) return;
      if (this.fetches(sequence)) continue;
      this.findPrefix(sequence);
      while (!this.fits(sequence)) {
        const worst = this.worst(this.running);
        if (!worst || worst.request.priority <= sequence.request.priority) {
          if (this.running.length === 0 && this.freeSlots.length > 0) break; // alone it fits, once idle holders give way
          this.forgetPrefix(sequence);
          return;
        }
        this.preempt(worst);
      }
      this.start(sequence);
    }
  }

  private start(sequence: Sequence): void {
    this.waiting.splice(this.waiting.indexOf(sequence), 1);
    sequence.slot = this.freeSlots.pop()!;
    sequence.slotIsNew = true;
    sequence.sharesPrompt = false;
    this.running.push(sequence);
    // What was found in the cache costs nothing.
    sequence.charged = Math.max(sequence.charged, Math.min(sequence.computed, sequence.promptLength));
    this.charge(sequence, sequence.promptLength);
    this.onAdmitted(sequence);
    this.shareWithFollowers(sequence);
  }

  private usesCache(sequence: Sequence): boolean {
    return this.prefixCache && sequence.computed === 0 && !sequence.record.promptLogprobs;
  }

  /** Once each time that it waits with nothing computed. */
  private fetches(sequence: Sequence): boolean {
    if (sequence.sought || !this.usesCache(sequence)) return false;
    sequence.sought = true;
    return this.fetch(sequence);
  }

  private findPrefix(sequence: Sequence): void {
    if (!this.usesCache(sequence)) return;
    const { pageTokens } = this.holdings;
    const most = Math.floor((sequence.length - 1) / pageTokens);
    const pages = this.holdings.adopt(sequence.held, sequence.names, sequence.tokens, most);
    sequence.computed = pages * pageTokens;
    sequence.named = pages;
  }

  private forgetPrefix(sequence: Sequence): void {
    // a follower that has been given its prompt's pages keeps them: others take them if they must
    if (sequence.sharesPrompt) return;
    this.holdings.release(sequence.held);
    sequence.computed = 0;
    sequence.named = 0;
  }

  private fits(sequence: Sequence): boolean {
    if (this.freeSlots.length === 0) return false;
    return this.holdings.pools.every((pool, g) => {
      let need = this.outstanding(sequence, g);
      for (const other of this.running) need += this.outstanding(other, g);
      return need <= pool.available;
    });
  }

  /** Pages of the group that it needs besides those it holds. */
  private outstanding({ request, promptLength, length, held }: Sequence, g: number): number {
    const end = Math.min(length + headroom, promptLength + request.maxTokens);
    return Math.max(0, this.holdings.need(g, end, this.limits.maxTokens) - held[g].ids.length);
  }

  /** Gives the sequence a part of the step, where there is room and there are pages. */
  private place(s: Sequence, taken: StepInMaking, most: number): void {
    if (!s.running) return;
    let tokens = taken.room(s, this.cut(s, Math.min(most, s.wanted + s.drafts.length - s.computed)));
    if (tokens === 0) return;
    this.holdings.trim(s.held, s.computed); // what launched() kept for a row that was late, or for guesses
    tokens = this.makeRoom(s, tokens, taken);
    if (tokens === 0) return;
    let draws = drawsAfter(s, tokens);
    if (draws && s.constraint && !this.mayDraw(s, s.constraint)) {
      // everything but the row
      draws = false;
      tokens--;
      if (tokens === 0) return;
    }
    const [scoreFrom, scoreTo] = scoresOf(s, tokens);
    taken.add({ sequence: s, tokens, scoreFrom, scoreTo, draws, drafts: s.drafts.subarray(0, draftsOf(s, tokens)) });
  }

  /** A mask that is not there yet is expected while the forward runs; one that was late already is waited for, and where a
   *  step cannot be undone, as states cannot, every one is. */
  private mayDraw(s: Sequence, constraint: TokenConstraint): boolean {
    return constraint.ready() || !(s.late || this.holdings.hasStates);
  }

  /** Steps end where a state is to be kept, and where the prompt is to be shared. */
  private cut(s: Sequence, tokens: number): number {
    const last = s.promptLength - 1;
    if (s.computed < last && s.computed + tokens > last && hasFollowers(s)) tokens = last - s.computed;
    if (this.prefixCache && this.holdings.hasStates) {
      const { pageTokens } = this.holdings;
      // the same prompt again begins from its last page boundary but one token
      const again = last - (last % pageTokens);
      const end = s.computed < again ? Math.min(again, s.computed + tokens) : s.computed + tokens;
      const boundary = end - (end % pageTokens);
      if (boundary > s.computed) tokens = boundary - s.computed;
    }
    return tokens;
  }

  /** Pages for as many of the tokens as can be had, 0 where there are none to be had even by preemption. */
  private makeRoom(s: Sequence, tokens: number, taken: StepInMaking): number {
    const { pageTokens } = this.holdings;
    for (;;) {
      for (let end = s.computed + tokens; end > s.computed; end = (Math.ceil(end / pageTokens) - 1) * pageTokens) {
        if (this.holdings.grow(s.held, s.computed, end)) return end - s.computed;
      }
      const idle = this.worst(this.waiting.filter((other) => other.held.some(({ ids }) => ids.length > 0)));
      const victim = idle ?? this.worst(this.running);
      if (!victim || victim === s || (victim.running && before(victim, s) < 0)) return 0;
      taken.drop(victim);
      this.preempt(victim);
    }
  }

  private worst(sequences: readonly Sequence[]): Sequence | undefined {
    return sequences.reduce<Sequence | undefined>((a, b) => (a && before(a, b) > 0 ? a : b), undefined);
  }

  private preempt(s: Sequence): void {
    this.preemptions++;
    this.onPreempt(s);
    this.holdings.release(s.held);
    s.computed = 0;
    s.named = 0;
    s.sought = false;
    s.sharesPrompt = false;
    s.drafts = noDrafts;
    if (!s.running) return;
    this.freeSlot(s);
    this.running.splice(this.running.indexOf(s), 1);
    this.queue(s);
  }

  private freeSlot(s: Sequence): void {
    if (s.running) this.freeSlots.push(s.slot);
    s.slot = -1;
  }

  private shareWithFollowers(s: Sequence): void {
    if (s.computed !== s.promptLength - 1 || !hasFollowers(s)) return;
    for (const other of s.record.choices) {
      if (!other.follows || other.finished) continue;
      other.follows = false;
      other.held = this.holdings.share(s.held);
      other.computed = s.computed;
      other.named = s.named;
      other.scored = s.promptLength;
      other.sharesPrompt = s.computed > 0;
      other.cachedTokens = s.cachedTokens;
    }
  }

  /** After every step of the prompt, and every few pages of the answer. */
  private keepState(s: Sequence): void {
    const { pageTokens } = this.holdings;
    const every = s.computed <= s.promptLength ? pageTokens : 16 * pageTokens;
    if (s.computed % every !== 0 || s.computed > s.length) return;
    this.holdings.snapshot(s.held, s.names, s.tokens, s.computed / pageTokens);
  }
}

/** The entries chosen so far, and what is left of the step. */
class StepInMaking {
  entries: Entry[] = [];
  private rows: number;

  constructor(
    private budget: number,
    private readonly limits: StepLimits,
  ) {
    this.rows = limits.maxRows;
  }

  /** Tokens that the step still takes. */
  get left(): number {
    return this.budget;
  }

  /** How many of the tokens there is room for. */
  room(s: Sequence, tokens: number): number {
    if (this.entries.length === this.limits.maxSequences) return 0;
    tokens = Math.min(tokens, this.budget);
    while (tokens > 0 && rowsOf(s, tokens) > this.rows) {
      // every row over the limit is a token less, the drawn one or a scored one
      tokens -= rowsOf(s, tokens) - this.rows;
    }
    return Math.max(0, tokens);
  }

  add(entry: Entry): void {
    this.entries.push(entry);
    this.budget -= entry.tokens;
    this.rows -= rowsOfEntry(entry);
  }

  drop(sequence: Sequence): void {
    const at = this.entries.findIndex((entry) => entry.sequence === sequence);
    if (at < 0) return;
    const [entry] = this.entries.splice(at, 1);
    this.budget += entry.tokens;
    this.rows += rowsOfEntry(entry);
  }
}

function hasFollowers(s: Sequence): boolean {
  return s.record.choices.some((other) => other.follows && !other.finished);
}

function drawsAfter(s: Sequence, tokens: number): boolean {
  return s.computed + tokens >= s.total && s.request.maxTokens > 0;
}

/** How many of so many tokens are guesses. */
function draftsOf(s: Sequence, tokens: number): number {
  return Math.max(0, s.computed + tokens - s.total);
}

/** Rows of the result that are an entry's: scored ones, then drawn ones. */
export function rowsOfEntry({ scoreFrom, scoreTo, draws, drafts }: Entry): number {
  return scoreTo - scoreFrom + (draws ? 1 + drafts.length : 0);
}

/** Positions of the prompt that become known by computing these tokens: each scores the one after it. */
function scoresOf(s: Sequence, tokens: number): [from: number, to: number] {
  if (!s.record.promptLogprobs) return [0, 0];
  const from = Math.max(s.scored, s.computed + 1);
  return [from, Math.max(from, Math.min(s.computed + tokens + 1, s.promptLength))];
}

function rowsOf(s: Sequence, tokens: number): number {
  const [from, to] = scoresOf(s, tokens);
  return to - from + (drawsAfter(s, tokens) ? 1 + draftsOf(s, tokens) : 0);
}
