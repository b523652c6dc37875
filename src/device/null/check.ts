// Owns: what the null device asks of a Batch beyond what every device does (device/check.ts): things that no device could
// notice and that would still be wrong.
import { check } from "../../base/errors.js";
import type { Batch } from "../batch.js";
import { checkBatch } from "../check.js";
import type { Limits, PageGroup } from "../device.js";

/** sampled: whether a slot has a last token, steps in flight included. */
export function checkNullBatch(
  batch: Batch,
  limits: Limits,
  groups: readonly PageGroup[],
  vocabSize: number,
  sampled: (slot: number) => boolean,
): void {
  checkBatch(batch, limits, groups, vocabSize);
  check(batch.slots.length > 0 && batch.tokens.length > 0, "the batch is empty");
  for (const id of batch.tokens) check(id >= 0 || sampled(-1 - id), `slot ${-1 - id} has not sampled a token`);
  checkTokens(batch);
  checkRowPositions(batch);
  const updated = new Set(batch.updates.slots);
  check(updated.size === batch.updates.slots.length, "a slot is updated twice");
  for (const [g, group] of groups.entries()) {
    if (group.kind === "paged") checkPaged(batch, g, group);
    else checkWritten(batch, g, [...batch.pages[g].ids]);
  }
}

/** Every sequence brings something; only its last token may be one that is not known yet, and of its own slot. */
function checkTokens(batch: Batch): void {
  for (let s = 0; s < batch.slots.length; s++) {
    const [from, to] = [batch.tokenStart[s], batch.tokenStart[s + 1]];
    check(to > from, `sequence ${s} brings no tokens`);
    for (let t = from; t < to; t++) {
      if (batch.tokens[t] >= 0) continue;
      check(t === to - 1 && -1 - batch.tokens[t] === batch.slots[s], `token ${t} refers to another sequence's slot`);
    }
  }
}

function checkRowPositions(batch: Batch): void {
  let s = 0;
  for (let r = 0; r < batch.rows.length; r++) {
    while (batch.rows[r] >= batch.tokenStart[s + 1]) s++;
    const position = batch.kvStart[s] + batch.rows[r] - batch.tokenStart[s] + 1;
    check(batch.rowPositions[r] === position, `row ${r} draws position ${position}, not ${batch.rowPositions[r]}`);
    check(batch.targets[r] < 0 || batch.bias.start[r] === batch.bias.start[r + 1], `row ${r} is scored with a bias`);
    // Behind a row that draws, every token to the sequence's end is a guess, and draws too.
    const isLast = batch.rows[r] === batch.tokenStart[s + 1] - 1;
    const goesOn = batch.rows[r + 1] === batch.rows[r] + 1 && batch.targets[r + 1] < 0;
    check(batch.targets[r] >= 0 || isLast || goesOn, `row ${r} draws in the middle of its sequence`);
  }
}

/** No page is listed twice by one sequence; behind a window nothing is kept; nobody writes what another one has. */
function checkPaged(batch: Batch, g: number, { pageTokens, window }: PageGroup): void {
  const table = batch.pages[g];
  const written: number[] = [];
  for (let s = 0; s < batch.slots.length; s++) {
    const ids = table.ids.subarray(table.start[s], table.start[s + 1]);
    check(new Set(ids).size === ids.length, `sequence ${s} lists a page of group ${g} twice`);
    const kv = batch.kvStart[s];
    const oldest = window === undefined ? 0 : Math.max(0, kv - window + 1);
    const first = Math.floor(oldest / pageTokens);
    check(table.first[s] === first, `sequence ${s} keeps pages of group ${g} from ${table.first[s]}, not ${first}`);
    const end = kv + batch.tokenStart[s + 1] - batch.tokenStart[s];
    for (let i = Math.floor(kv / pageTokens); i < Math.ceil(end / pageTokens); i++) written.push(ids[i - first]);
  }
  checkWritten(batch, g, written);
}

function checkWritten(batch: Batch, g: number, written: readonly number[]): void {
  const writes = new Set(written);
  check(writes.size === written.length, `two sequences write one page of group ${g}`);
  const times = new Map<number, number>();
  for (const id of batch.pages[g].ids) times.set(id, (times.get(id) ?? 0) + 1);
  for (const id of writes) check(times.get(id) === 1, `page ${id} of group ${g} is written by one and read by another`);
}
