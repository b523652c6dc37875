// Owns: counted repetitions as grammar. A rule for each place, which ends with the rule of the next, and blocks of so many
// places, which share their rules: a mask is then made in milliseconds whatever the bounds, where the compiler's own
// repetitions take seconds a mask and tens of seconds to compile.
import type { Rules } from "./ebnf.js";

const block = 32;
/** Up to so many the compiler's own are as good. */
const few = 4;
/** A longer part is a rule of its own. */
const longestInline = 120;

/** min to max times the part, a body that stands by itself (a name, a literal, a class, or in brackets). max may be Infinity. */
export function repeated(rules: Rules, part: string, min: number, max: number): string {
  if (max === 0) return '""';
  if (max === Number.POSITIVE_INFINITY && min <= few) return `${part}${["*", "+"][min] ?? `{${min},}`}`;
  if (max <= few) return min === 0 && max === 1 ? `${part}?` : `${part}{${min},${max}}`;
  const one = part.length > longestInline ? rules.rule("part", part) : part;
  const least = exactly(rules, one, min);
  if (max === Number.POSITIVE_INFINITY) return `${least} ${one}*`;
  return max === min ? least : `${least} ${upTo(rules, one, max - min)}`;
}

function exactly(rules: Rules, part: string, count: number): string {
  if (count === 0) return '""';
  const blocks = Math.floor(count / block);
  const whole = blocks === 0 ? [] : new Array<string>(blocks).fill(chain(rules, part, block, false));
  const rest = count % block;
  return [...whole, ...(rest === 0 ? [] : [chain(rules, part, rest, false)])].join(" ");
}

function upTo(rules: Rules, part: string, most: number): string {
  if (most <= block) return chain(rules, part, most, true);
  const more = `${chain(rules, part, block, false)} ${upTo(rules, part, most - block)}`;
  return rules.rule("most", `${chain(rules, part, block - 1, true)} | ${more}`);
}

/** From the last place to the first. mayEnd: at any of them. */
function chain(rules: Rules, part: string, count: number, mayEnd: boolean): string {
  let rest = "";
  for (let place = 0; place < count; place++) {
    const more = rest === "" ? part : `${part} ${rest}`;
    rest = rules.rule("place", mayEnd ? `"" | ${more}` : more);
  }
  return rest;
}
