// Owns: who guesses what comes next in which sequences: a drafter that knows the text (lookup.ts), else a draft model
// (draft.ts); and how many guesses were right.
import { hasPenalties } from "./batch.js";
import type { StepBudget } from "./budget.js";
import type { DraftModel } from "./draft.js";
import type { Drafter } from "./lookup.js";
import { noDrafts, type Sequence } from "./sequence.js";
import type { GenerateRequest } from "./types.js";

export interface Guessing {
  /** Makes a choice's drafter: its guesses are checked, several in a step. For devices whose rows do not depend on each
   *  other. Undefined: nothing is guessed. */
  readonly drafter?: (request: GenerateRequest, index: number) => Drafter;
  /** Guesses where the drafter has none; under the same condition. */
  readonly draft?: DraftModel;
}

export class Guesses {
  /** Those that were checked, and of them those that were right. */
  checked = 0;
  right = 0;

  constructor(
    private readonly from: Guessing,
    private readonly budget: StepBudget,
  ) {}

  /** For sequences whose next token can be checked at once. Penalties count what was drawn: with them, and under a
   *  constraint, nothing is guessed. */
  async make(running: readonly Sequence[]): Promise<void> {
    const { drafter, draft } = this.from;
    if (!drafter && !draft) return;
    for (const sequence of running) sequence.drafts = noDrafts;
    const open = running.filter(({ generating, inFlight, constraint, request }) => {
      return generating && inFlight === 0 && !constraint && !hasPenalties(request.sampling);
    });
    if (drafter) {
      const worth = this.budget.guessWorth(running.filter(({ generating }) => generating).length);
      for (const sequence of open) lookUp(sequence, drafter, worth);
    }
    const without = open.filter(({ drafts }) => drafts.length === 0);
    if (draft && without.length > 0) await this.ask(draft, without);
  }

  private async ask(draft: DraftModel, sequences: readonly Sequence[]): Promise<void> {
    const texts = sequences.map((sequence) => {
      const { tokens, length, modelHope: hope } = sequence;
      return { tokens, length, most: mostGuesses(sequence), hope };
    });
    const guesses = await draft.propose(texts, (tokens) => this.budget.stepMs(tokens));
    for (const [i, sequence] of sequences.entries()) {
      sequence.drafts = guesses[i];
      sequence.draftHope = sequence.modelHope;
    }
  }

  /** Of a sequence's guesses, those before the first wrong one were right. */
  learn(sequence: Sequence, guessed: number, right: number): void {
    sequence.draftHope?.learn(guessed, right);
    sequence.guessed += guessed;
    sequence.guessedRight += right;
    this.checked += guessed;
    this.right += right;
  }
}

function lookUp(sequence: Sequence, drafter: NonNullable<Guessing["drafter"]>, worth: number): void {
  const { request, index, tokens, length } = sequence;
  sequence.drafter ??= drafter(request, index);
  sequence.drafts = sequence.drafter.propose(tokens, length, mostGuesses(sequence), worth);
  sequence.draftHope = sequence.drafter.hope;
}

/** The last token of an answer is drawn, not guessed. */
const mostGuesses = ({ request, drawn }: Sequence) => request.maxTokens - drawn - 1;
