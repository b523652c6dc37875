// Owns: finding rules that begin with themselves (left recursion), with which a matcher that reads from left to right never
// gets anywhere. Reads a rule's body as the scanned pieces of text/grammar/foreign.ts, without calling itself.

export interface Piece {
  /** A rule's name, what repeats the piece before it, or anything else in its written form. */
  readonly kind: "name" | "postfix" | "text";
  readonly text: string;
}

interface Part {
  /** It may be empty. */
  empty: boolean;
  /** Rules that it may begin with. */
  readonly firsts: Set<string>;
}

/** The first rule found that may begin with itself. */
export function leftRecursive(bodies: ReadonlyMap<string, readonly Piece[]>): string | undefined {
  const usedBy = new Map<string, string[]>();
  for (const [name, body] of bodies) {
    for (const { kind, text } of body) if (kind === "name") usedBy.set(text, [...(usedBy.get(text) ?? []), name]);
  }
  const empty = new Set<string>();
  const firsts = new Map<string, ReadonlySet<string>>();
  const waiting = new Set(bodies.keys());
  for (const name of waiting) {
    waiting.delete(name);
    const part = read(bodies.get(name)!, empty);
    firsts.set(name, part.firsts);
    if (!part.empty || empty.has(name)) continue;
    empty.add(name);
    for (const user of usedBy.get(name) ?? []) waiting.add(user);
  }
  return cycle(firsts);
}

function read(body: readonly Piece[], emptyRules: ReadonlySet<string>): Part {
  const nothing = (): Part => ({ empty: true, firsts: new Set() });
  // A group: its ways so far, the one that is being read, and that one's last part.
  const open = () => ({ ways: { empty: false, firsts: new Set<string>() }, way: nothing(), last: nothing() });
  const groups = [open()];
  const take = (group: ReturnType<typeof open>) => {
    if (group.way.empty) for (const name of group.last.firsts) group.way.firsts.add(name);
    group.way.empty &&= group.last.empty;
    group.last = nothing();
  };
  const endWay = (group: ReturnType<typeof open>) => {
    take(group);
    for (const name of group.way.firsts) group.ways.firsts.add(name);
    group.ways.empty ||= group.way.empty;
    group.way = nothing();
  };
  for (const { kind, text } of body) {
    const group = groups.at(-1)!;
    if (kind === "postfix") group.last.empty ||= /^(\*|\?|\{0*[,}])/.test(text);
    else if (text === "|") endWay(group);
    else if (text === ")" && groups.length > 1) {
      endWay(group);
      groups.pop();
      groups.at(-1)!.last = group.ways;
    } else {
      take(group);
      if (text === "(") groups.push(open());
      else if (kind === "name") group.last = { empty: emptyRules.has(text), firsts: new Set([text]) };
      else group.last = { empty: text === '""', firsts: new Set() };
    }
  }
  for (const group of groups) endWay(group);
  return groups[0].ways;
}

function cycle(edges: ReadonlyMap<string, ReadonlySet<string>>): string | undefined {
  const done = new Set<string>();
  for (const start of edges.keys()) {
    const path = new Set<string>();
    const stack: string[] = [start];
    while (stack.length > 0) {
      const name = stack.at(-1)!;
      if (path.has(name) || done.has(name)) {
        stack.pop();
        path.delete(name);
        done.add(name);
        continue;
      }
      path.add(name);
      for (const next of edges.get(name) ?? []) {
        if (path.has(next)) return next;
        if (!done.has(next)) stack.push(next);
      }
    }
  }
  return undefined;
}
