// Owns: finding special tokens (control, unknown, user-defined) in text: a trie over UTF-16 units, the leftmost match first
// and the longest of those. What a match becomes is the tokenizer's business.

export interface SpecialToken {
  readonly id: number;
  readonly text: string;
  /** Matched only where special tokens are asked for; others are matched always. */
  readonly control: boolean;
  /** Takes the white space before or after it into itself. */
  readonly stripLeft: boolean;
  readonly stripRight: boolean;
  /** Matched only where no letter, digit or underscore stands beside it. */
  readonly singleWord: boolean;
}

const wordBefore = /[\p{L}\p{N}_]$/u;
const wordAfter = /^[\p{L}\p{N}_]/u;

export class SpecialMatcher {
  /** Of node n: its character, first child, next sibling (0: none) and the token that ends there (-1: none). */
  private readonly units: number[] = [0];
  private readonly children: number[] = [0];
  private readonly siblings: number[] = [0];
  private readonly tokens: number[] = [-1];
  /** First nodes by UTF-16 unit. */
  private readonly roots = new Map<number, number>();

  constructor(readonly specials: readonly SpecialToken[]) {
    specials.forEach((special, index) => {
      if (special.text.length > 0) this.insert(special.text, index);
    });
  }

  private insert(text: string, index: number): void {
    const first = text.charCodeAt(0);
    let node = this.roots.get(first) ?? this.make(first);
    this.roots.set(first, node);
    for (let i = 1; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      let child = this.children[node];
      while (child !== 0 && this.units[child] !== unit) child = this.siblings[child];
      if (child === 0) {
        child = this.make(unit);
        this.siblings[child] = this.children[node];
        this.children[node] = child;
      }
      node = child;
    }
    if (this.tokens[node] < 0) this.tokens[node] = index;
  }

  private make(unit: number): number {
    this.units.push(unit);
    this.children.push(0);
    this.siblings.push(0);
    return this.tokens.push(-1) - 1;
  }

  /** The longest token that begins at `at` and may be taken there. `literal`: control tokens are not looked for that end
   *  after this place (a caller's own text begins there). */
  private matchAt(text: string, at: number, control: boolean, literal: number): SpecialToken | undefined {
    let node = this.roots.get(text.charCodeAt(at));
    let found: SpecialToken | undefined;
    for (let i = at + 1; node !== undefined && node !== 0; i++) {
      const index = this.tokens[node];
      if (index >= 0) {
        const special = this.specials[index];
        const allowed = !special.control || (control && i <= literal);
        if (allowed && (!special.singleWord || aloneAt(text, at, i))) found = special;
      }
      if (i >= text.length) break;
      const unit = text.charCodeAt(i);
      let child = this.children[node];
      while (child !== 0 && this.units[child] !== unit) child = this.siblings[child];
      node = child;
    }
    return found;
  }

  /** Ranges, ascending and apart, that hold a token's spelling, or its beginning at the end of the text, or so much of its
   *  beginning (three characters or more) that cutting the text could complete it. */
  fragments(text: string): [start: number, end: number][] {
    const ranges: [number, number][] = [];
    const end = text.trimEnd().length;
    for (let at = 0; at < text.length; ) {
      let node = this.roots.get(text.charCodeAt(at));
      let length = 0;
      let whole = 0;
      while (node !== undefined && node !== 0) {
        length++;
        if (this.tokens[node] >= 0) whole = length;
        const unit = text.charCodeAt(at + length);
        let child = this.children[node];
        while (child !== 0 && this.units[child] !== unit) child = this.siblings[child];
        node = child;
      }
      if (whole > 0 || length >= 3 || (length > 0 && at + length === end)) {
        ranges.push([at, at + (whole > 0 ? whole : length)]);
        at += whole > 0 ? whole : length;
      } else at++;
    }
    return ranges;
  }

  /** Calls onText for every stretch between special tokens and onSpecial for every token, in order. `literals` are
   *  ranges of text, ascending, in which no control token is seen. */
  partition(
    text: string,
    control: boolean,
    literals: readonly (readonly [start: number, end: number])[],
    onText: (start: number, end: number) => void,
    onSpecial: (special: SpecialToken) => void,
  ): void {
    let from = 0;
    let range = 0;
    for (let at = 0; at < text.length; ) {
      if (!this.roots.has(text.charCodeAt(at))) {
        at++;
        continue;
      }
      while (range < literals.length && literals[range][1] <= at) range++;
      const next = range < literals.length ? literals[range][0] : text.length;
      const special = this.matchAt(text, at, control && next > at, next);
      if (special === undefined) {
        at++;
        continue;
      }
      let end = at;
      if (special.stripLeft) while (end > from && /\s/.test(text[end - 1])) end--;
      if (end > from) onText(from, end);
      onSpecial(special);
      at += special.text.length;
      if (special.stripRight) while (at < text.length && /\s/.test(text[at])) at++;
      from = at;
    }
    if (from < text.length) onText(from, text.length);
  }
}

function aloneAt(text: string, start: number, end: number): boolean {
  const before = text.slice(Math.max(0, start - 2), start);
  const after = text.slice(end, end + 2);
  return !wordBefore.test(before) && !wordAfter.test(after);
}
