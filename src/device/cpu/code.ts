// Owns: the instructions of a native program, as data before offsets are known: which buffers they touch and their
// numbers in the native side's order. kernels/cpu/program.h has the same list of codes in the same order.
import { storageTypes } from "../../base/dtype.js";

export const codes = [
  "embed",
  "prepare",
  "add",
  "activation",
  "gated",
  "gather",
  "rmsNorm",
  "layerNorm",
  "ropeTable",
  "rope",
  "cacheWrite",
  "linear",
  "attention",
  "attentionJoin",
  "logits",
  "lora",
  "route",
  "moe",
  "moeSum",
] as const;

export type CodeName = (typeof codes)[number];

/** Storage types are numbered alike on both sides. */
export const storageCode = (type: (typeof storageTypes)[number]): number => storageTypes.indexOf(type);

/** A block of the workspace. bytes: for the most tokens or rows that a step may have. */
export interface Area {
  readonly bytes: number;
  /** Floats from one token's row to the next; 0 where it has no rows. */
  readonly stride: number;
  offset: number;
}

/** `floats` into the area. */
export interface At {
  readonly area: Area;
  readonly floats: number;
}

export type Argument = number | Area | At;

export interface Instruction {
  readonly code: CodeName;
  /** Works on rows of the step rather than on tokens. */
  readonly rows: boolean;
  readonly args: Argument[];
  /** linear and logits: their products, which stand after the arguments. */
  readonly segments?: Segment[];
  /** Areas that it reads or writes without naming them. */
  readonly touches?: readonly Area[];
}

/** One product of a linear instruction: y[:, column…] (+)= act · weightᵀ + bias. */
export interface Segment {
  readonly weight: number;
  readonly act: Area;
  readonly y: At;
  readonly stride: number;
  /** Offset in the program's vectors, −1: none. */
  readonly bias: number;
  readonly accumulate: boolean;
}

export const isArea = (argument: Argument): argument is Area => typeof argument !== "number" && "bytes" in argument;

export function areasOf(instruction: Instruction): Area[] {
  const areas: Area[] = [...(instruction.touches ?? [])];
  for (const argument of instruction.args) {
    if (typeof argument !== "number") areas.push(isArea(argument) ? argument : argument.area);
  }
  for (const segment of instruction.segments ?? []) areas.push(segment.act, segment.y.area);
  return areas;
}

/** Token operations run side by side in one region; the others have a stage of their own. */
export const isWide = (instruction: Instruction): boolean =>
  ["linear", "attention", "logits", "moe"].includes(instruction.code);

/** [code, rows, count, numbers…] */
export function encode(instruction: Instruction, out: number[]): void {
  const numbers = instruction.args.map(resolve);
  if (instruction.segments) {
    numbers.push(instruction.segments.length);
    for (const s of instruction.segments) {
      numbers.push(s.weight, s.act.offset, resolve(s.y), s.stride, s.bias, s.accumulate ? 1 : 0);
    }
  }
  out.push(codes.indexOf(instruction.code), instruction.rows ? 1 : 0, numbers.length, ...numbers);
}

function resolve(argument: Argument): number {
  if (typeof argument === "number") return argument;
  return isArea(argument) ? argument.offset : argument.area.offset + 4 * argument.floats;
}

/**
 * Gives every area its place. Areas whose lives (first to last stage that touches them) do not meet may share bytes;
 * inside a stage nothing is shared, since threads run its parts in no order. reuse false: nothing is shared at all.
 * Returns the workspace's bytes.
 */
export function placeAreas(instructions: readonly Instruction[], reuse: boolean): number {
  const lives = new Map<Area, { first: number; last: number }>();
  let stage = 0;
  instructions.forEach((instruction, i) => {
    const before = instructions[i - 1];
    if (!before || isWide(instruction) || isWide(before) || before.rows !== instruction.rows) stage++;
    for (const area of areasOf(instruction)) {
      const life = lives.get(area);
      if (life) life.last = stage;
      else lives.set(area, { first: stage, last: stage });
    }
  });
  /** Areas placed so far, by the stages they live in. */
  const atStage: Area[][] = Array.from({ length: stage + 1 }, () => []);
  let total = 0;
  // The largest first: small ones fill the gaps.
  for (const [area, { first, last }] of [...lives].sort((a, b) => b[0].bytes - a[0].bytes)) {
    const [from, to] = reuse ? [first, last] : [0, stage];
    const inTheWay = new Set<Area>();
    for (let s = from; s <= to; s++) for (const other of atStage[s]) inTheWay.add(other);
    let offset = 0;
    for (const other of [...inTheWay].sort((a, b) => a.offset - b.offset)) {
      if (offset + area.bytes <= other.offset) break;
      offset = Math.max(offset, align(other.offset + other.bytes));
    }
    area.offset = offset;
    for (let s = first; s <= last; s++) atStage[s].push(area);
    total = Math.max(total, offset + align(area.bytes));
  }
  return total;
}

const align = (bytes: number): number => Math.ceil(bytes / 64) * 64;
