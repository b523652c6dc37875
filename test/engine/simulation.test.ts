// Random lives on the null device: whatever happens beside it, a request gets the tokens that it gets alone.
import { describe, expect, it } from "vitest";
import { Hope } from "../../src/engine/hope.js";
import type { GenerateRequest, TokenConstraint } from "../../src/engine/types.js";
import { greedy, ids, request, TestStore, vocabSize, World, type WorldOptions } from "./harness.js";

class Dice {
  constructor(private state: number) {}
  below(n: number): number {
    this.state = (Math.imul(this.state ^ (this.state >>> 16), 0x45d9f3b) + 0x9e3779b9) | 0;
    return ((this.state ^ (this.state >>> 13)) >>> 0) % n;
  }
  chance(percent: number): boolean {
    return this.below(100) < percent;
  }
  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)];
  }
}

function randomRequest(dice: Dice, id: string): GenerateRequest {
  const shared = ids(60, 7 + dice.below(2));
  const prompt = [...shared.slice(0, dice.below(60)), ...ids(1 + dice.below(20), dice.below(50))];
  const maxTokens = 1 + dice.below(dice.pick([25, 25, 70]));
  const scores = dice.chance(12);
  return request(id, prompt, {
    n: dice.chance(25) ? 2 + dice.below(3) : 1,
    maxTokens: scores && dice.chance(40) ? 0 : maxTokens,
    minTokens: dice.chance(30) ? dice.below(maxTokens) : 0,
    stopIds: dice.chance(60) ? ids(8, dice.below(1000)) : [],
    priority: dice.chance(20) ? dice.below(3) - 1 : 0,
    client: dice.chance(50) ? `client${dice.below(3)}` : undefined,
    weight: dice.chance(20) ? 1 + dice.below(4) : undefined,
    sampling: { ...greedy, seed: BigInt(dice.below(1000)) * 0x123456789n, repetitionPenalty: dice.pick([1, 1, 1.1]) },
    logprobs: dice.chance(30) ? dice.below(4) : undefined,
    promptLogprobs: scores ? dice.below(3) : undefined,
    cacheSalt: dice.chance(10) ? "salt" : undefined,
  });
}

/** Allows what leaves another rest by seven than the token before did; what leaves two is followed by three tokens that
 *  leave none. Late as often as the dice say. */
function constraint(late: () => boolean): TokenConstraint {
  let rest = 0;
  let known = false;
  let jumped = true;
  return {
    ready() {
      known ||= !late();
      return known;
    },
    mask(out) {
      for (let id = 0; id < vocabSize; id++) if (id % 7 !== rest) out[id >>> 5] |= 1 << (id & 31);
      return true;
    },
    accept(id) {
      rest = id % 7;
      known = false;
      jumped = false;
    },
    rollback() {},
    jump() {
      if (jumped || rest !== 2) return [];
      jumped = true;
      rest = 0;
      return [7, 14, 21];
    },
    close() {},
  };
}

/** What each choice gives with nothing beside it, no cache and no hurry. */
async function alone(r: GenerateRequest, states: number, constrained: boolean) {
  const world = new World({ prefixCache: false, states, contextLength: 200 });
  world.submit(r, constrained ? () => constraint(() => false) : undefined);
  await world.finish();
  return world.of(r.id);
}

/** Knows the future, and is wrong now and then. */
function oracle(dice: Dice, truth: Map<string, Awaited<ReturnType<typeof alone>>>): WorldOptions["drafter"] {
  return (request, index) => ({
    propose(_tokens, length, most) {
      const { tokens } = truth.get(request.id)!.choices[index];
      const from = length - request.promptIds.length;
      const drafts = Int32Array.from(tokens.slice(from, from + Math.min(most, dice.below(6))));
      if (drafts.length > 0 && dice.chance(50)) drafts[dice.below(drafts.length)] = dice.below(vocabSize);
      return drafts;
    },
    hope: new Hope(),
  });
}

/** What every engine so far has computed; late, behind or forgetful as the dice say. */
class MoodyStore extends TestStore {
  constructor(
    pages: Map<string, Uint8Array>,
    private readonly dice: Dice,
  ) {
    super(pages);
  }

  override async get(keys: readonly string[]) {
    this.takes = this.dice.chance(80);
    if (this.dice.chance(30)) for (const key of keys) if (this.dice.chance(20)) this.pages.delete(key);
    if (this.dice.chance(70)) await new Promise((resolve) => setImmediate(resolve));
    return super.get(keys);
  }
}

/** Of worlds whose pages mean the same. */
const kept = new Map<string, Uint8Array>();

type Sums = { preemptions: number; hits: number; fetched: number; compared: number; guessed: number; right: number };

async function simulate(seed: number): Promise<Sums> {
  const dice = new Dice(seed);
  const tight = dice.chance(60);
  const options: WorldOptions = {
    stepTokens: dice.pick([1, 3, 17, 512]),
    depth: dice.pick([1, 2, 3]),
    pages: tight ? 38 + dice.below(8) : 256,
    windowPages: tight ? 12 + dice.below(20) : 256,
    states: dice.chance(35) ? dice.pick([9, 12, 40]) : 0,
    maxSequences: dice.pick([2, 4, 8]),
    maxRows: dice.pick([4, 16]),
    contextLength: 160,
  };
  options.slots = options.maxSequences! + (dice.chance(30) ? 2 : 0);
  if (dice.chance(50)) options.beforeResult = () => new Promise((resolve) => setImmediate(resolve));
  const truth = new Map<string, Awaited<ReturnType<typeof alone>>>();
  if (seed % 2 === 0) {
    options.drafter = oracle(dice, truth);
    options.depth = 1;
  }
  if (seed % 4 === 1) options.draftPages = 41 + dice.below(30);
  if (seed % 3 > 0) options.store = new MoodyStore(kept, new Dice(seed * 31));
  const world = new World(options);
  const requests: GenerateRequest[] = [];
  const aborted = new Set<string>();
  const constrained = new Set<string>();
  for (let i = 0; i < 12 + dice.below(10); i++) {
    const r = randomRequest(dice, `r${i}`);
    requests.push(r);
    if (dice.chance(15)) constrained.add(r.id);
    truth.set(r.id, await alone(r, options.states ?? 0, constrained.has(r.id)));
    world.submit(r, constrained.has(r.id) ? () => constraint(() => dice.chance(30)) : undefined);
    for (let steps = dice.below(12); steps > 0; steps--) {
      await world.engine.step();
      world.engine.check();
      if (dice.chance(4)) {
        const victim = dice.pick(requests);
        const index = dice.chance(50) ? dice.below(victim.n) : undefined;
        world.engine.abort(victim.id, index);
        for (let c = 0; c < victim.n; c++) if (index === undefined || index === c) aborted.add(`${victim.id}.${c}`);
        world.engine.check();
      }
    }
  }
  await world.finish();
  const stats = world.engine.stats();
  for (const { used, total, free, cached } of stats.pages) {
    expect(used).toBe(0);
    expect(free + cached).toBe(total);
  }
  let compared = 0;
  for (const r of requests) {
    const expected = truth.get(r.id)!;
    const outcome = world.of(r.id);
    outcome.choices.forEach((choice, c) => {
      const wanted = expected.choices[c];
      const where = `seed ${seed}, ${r.id}.${c}`;
      expect(choice.finishes.length, where).toBe(1);
      if (aborted.has(`${r.id}.${c}`) && choice.finishes[0].reason === "abort") {
        expect(choice.tokens, where).toEqual(wanted.tokens.slice(0, choice.tokens.length));
        return;
      }
      expect(choice.tokens, where).toEqual(wanted.tokens);
      expect(choice.logprobs, where).toEqual(wanted.logprobs);
      expect(choice.finishes[0].reason, where).toBe(wanted.finishes[0].reason);
      expect(choice.finishes[0].stopId, where).toBe(wanted.finishes[0].stopId);
      expect(choice.finishes[0].timings.generatedTokens, where).toBe(choice.tokens.length);
      expect(outcome.starts.length, where).toBe(1);
      expect(outcome.starts[0].promptLogprobs, where).toEqual(expected.starts[0].promptLogprobs);
      compared += choice.tokens.length;
    });
  }
  const { draftTokens: guessed, acceptedTokens: right } = stats;
  return {
    preemptions: stats.preemptions,
    hits: stats.prefixHits,
    fetched: stats.tiers?.disk.hits ?? 0,
    compared,
    guessed,
    right,
  };
}

describe("the engine, simulated", () => {
  for (let part = 0; part < 3; part++) {
    it(`gives every request what it gets alone (seeds ${part * 30} to ${part * 30 + 29})`, async () => {
      const sums: Sums = { preemptions: 0, hits: 0, fetched: 0, compared: 0, guessed: 0, right: 0 };
      for (let seed = part * 30; seed < part * 30 + 30; seed++) {
        const one = await simulate(seed + 1);
        for (const key of Object.keys(sums) as (keyof Sums)[]) sums[key] += one[key];
      }
      // the seeds do meet what they are for
      expect(sums.preemptions).toBeGreaterThan(20);
      expect(sums.hits).toBeGreaterThan(500);
      expect(sums.fetched).toBeGreaterThan(100);
      expect(sums.compared).toBeGreaterThan(3000);
      expect(sums.right).toBeGreaterThan(100);
      expect(sums.guessed).toBeGreaterThan(sums.right + 20);
    });
  }
});
