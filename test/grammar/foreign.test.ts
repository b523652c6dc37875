// Callers' grammars: GBNF as llama.cpp's users write it (our own examples, one for each thing that the language has) and
// EBNF: what they take and refuse; and what is refused before a compiler sees it.
import { describe, expect, it } from "vitest";
import { formatGrammar, taken as takenBy, world } from "./walk.js";

const w = world();

const taken = (grammar: string, text: string) => takenBy(w, { kind: "grammar", grammar }, text);

/** A data language with nesting, comments, escapes and white space. */
const records = String.raw`
# Records of named values, one a line.
root   ::= (record "\n")+
record ::= name ws "=" ws value
name   ::= [a-z_] [a-z0-9_-]*   # no capitals
value  ::= number | text | list |
           "nil"
list   ::= "[" ws ( value ("," ws value)* )? "]"
number ::= "-"? ([0-9] | [1-9] [0-9]+) ("." [0-9]{1,3})?
text   ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\/bn] | "u" hex{4}) )* "\""
hex    ::= [0-9a-fA-F]
ws     ::= [ \t]*
`;
/** Operators by precedence, each a loop, with rules that refer to each other. */
const sums = `root ::= (expr "=" " "? term "\\n")+
expr ::= term ([-+*/] term)*
term ::= ident | num | "(" " "? expr ")"
ident ::= [a-z] [a-z0-9_]*
num ::= [0-9]+`;
/** Counted repetitions in every form. */
const counted = `root ::= day{3} ("-" day){0,2} | "x"{2,} | (pair){1,2}
day ::= "Mo" | "Tu"
pair ::= "<" [ab]{2} ">"`;
/** Moves of a board game: optional parts, alternatives across lines. */
const moves = `root ::= "1. " move " " move "\\n" ([1-9] [0-9]? ". " move " " move "\\n")*
move ::= (pawn | piece | castle) [+#]?
piece ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBQR])?
castle ::= "O-O" "-O"?`;
/** Escapes of characters by number, any character, characters beyond ASCII. */
const characters = String.raw`root ::= "\x41\u00e9\U0001F600" . [äöé\u00df] [^\n]{2} "\t\r\[\]"`;
const dashed = `root ::= my-list
my-list ::= ("- " one-item "\\n")+
one-item ::= [^\\n]+`;

const cases: [name: string, grammar: string, whole: string[], begun: string[], refused: string[]][] = [
  [
    "a data language",
    records,
    ['a = [1, "x\\n", nil]\nb_2 = -0.125\n', 'q = "\\u00e9"\n'],
    ["a = 1"],
    ["A", "a = 01", 'a = "\n'],
  ],
  ["sums", sums, ["a+(b*2)= 5\n"], ["a"], ["+", "a+*"]],
  [
    "counted repetitions",
    counted,
    ["MoTuMo", "MoTuMo-Mo-Tu", "xx", "xxxx", "<ab><bb>"],
    ["MoTu", "x"],
    ["MoTuMo-Mo-Tu-Mo", "<a>"],
  ],
  ["moves", moves, ["1. e4 e5\n2. Nf3 Nxc6+\n", "1. O-O O-O-O#\n"], ["1. e4 "], ["1. z4", "1. O-O-O-O"]],
  ["characters", characters, ["Aé😀?éab\t\r[]"], ["Aé"], ["Ae", "Aé😀?x"]],
  ["names with dashes", dashed, ["- a\n- b c\n"], ["- a"], ["-a"]],
];

describe("a caller's grammar", () => {
  it.each(cases)("%s", async (_name, grammar, whole, begun, refused) => {
    for (const text of whole) expect([text, await taken(grammar, text)]).toEqual([text, "whole"]);
    for (const text of begun) expect([text, await taken(grammar, text)]).toEqual([text, "begun"]);
    for (const text of refused) expect([text, await taken(grammar, text)]).toEqual([text, "refused"]);
  });

  it.each([
    ["a rule that begins with itself", 'root ::= root "a" | "b"', /line 1: the rule root may begin with itself/],
    [
      "rules that begin with each other",
      'root ::= "x" a\na ::= b "."\nb ::= "y" | a',
      /rule [ab] may begin with itself/,
    ],
    [
      "a rule behind what may be empty",
      'root ::= e* [a]? ("b"{0,2} | "") root "c"\ne ::= "e"?',
      /root may begin with itself/,
    ],
    ["no root", 'start ::= "a"', /no rule called "root"/],
    ["a name that is nowhere", 'root ::= "a" b', /rule b is not defined/],
    ["a rule twice", 'root ::= "a"\nroot ::= "b"', /line 2: the rule root is there twice/],
    ["another language (Lark)", 'start: "a" | "b"', /must begin with name ::=|cannot stand here/],
    ["tokens by their number", "root ::= <[100]>", /"<" cannot stand here/],
    ["a text without end", 'root ::= "a', /has no end/],
    ["too large bounds", 'root ::= "a"{5} "b"{2,5000}', /bounds go up to 1000/],
    ["bounds out of order", 'root ::= "b"{7,5}', /out of order/],
    ["too long a grammar", `root ::= "${"a".repeat(100_000)}"`, /at most 100000/],
  ])("is refused: %s", (_what, grammar, message) => {
    expect(() => formatGrammar({ kind: "grammar", grammar })).toThrow(message);
  });

  it.each([
    [70, 101],
    [0, 64],
    [33, 33],
    [0, 40],
    [5, 6],
    [600, 1000],
  ])("counts %i to %i exactly, in a grammar and in a pattern", async (min, max) => {
    const grammar = { kind: "grammar", grammar: `root ::= "<" ("a" | "b"){${min},${max}} ">"` } as const;
    const pattern = { kind: "regex", pattern: `<[ab]{${min},${max}}>` } as const;
    for (const format of [grammar, pattern]) {
      const of = (count: number) => takenBy(w, format, `<${"a".repeat(count)}>`);
      expect([await of(min), await of(max), await of(Math.floor((min + max) / 2))]).toEqual([
        "whole",
        "whole",
        "whole",
      ]);
      expect(await of(max + 1)).toBe("refused");
      if (min > 0) expect(await of(min - 1)).toBe("refused");
    }
    const atLeast = { kind: "regex", pattern: `<a{${min},}>` } as const;
    expect(await takenBy(w, atLeast, `<${"a".repeat(max + 50)}>`)).toBe("whole");
    if (min > 0) expect(await takenBy(w, atLeast, `<${"a".repeat(min - 1)}>`)).toBe("refused");
  });

  it("rules that repeat behind something are no left recursion", async () => {
    expect(await taken('root ::= "(" root ")" | "x" root | ""', "(x(x))")).toBe("whole");
  });

  it("large grammars are looked through quickly", () => {
    const many = Array.from({ length: 4000 }, (_, i) => `r${i} ::= r${i + 1}?`).join("\n");
    const grammar = `root ::= "a" r0\n${many}\nr4000 ::= "z"`;
    expect(() => formatGrammar({ kind: "grammar", grammar })).not.toThrow();
    expect(() => formatGrammar({ kind: "grammar", grammar: grammar.replace('"z"', '"z"? r0') })).toThrow(
      /begin with itself/,
    );
    expect(() => formatGrammar({ kind: "grammar", grammar: `root ::= ${"(".repeat(50_000)}` })).not.toThrow();
  });
});
