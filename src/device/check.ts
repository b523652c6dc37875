// Owns: what every backend checks of what it is handed: batches, pages, and weights against a plan. Every Program calls
// checkBatch before it starts a step: a bug in the engine ends as an InternalError that names the array, never as a read
// outside one.
import { check, FormatError, UserError } from "../base/errors.js";
import type { TensorInfo } from "../formats/checkpoint.js";
import type { Plan } from "../plan/plan.js";
import { type Batch, SlotInt, slotFloats, slotInts } from "./batch.js";
import type { AdapterSource, Limits, PageGroup } from "./device.js";

export function checkBatch(batch: Batch, limits: Limits, groups: readonly PageGroup[], vocabSize: number): void {
  const sequences = batch.slots.length;
  const rows = batch.rows.length;
  check(sequences <= limits.maxSequences, `a step takes ${limits.maxSequences} sequences, the batch has ${sequences}`);
  check(batch.tokens.length <= limits.maxTokens, `a step takes ${limits.maxTokens} tokens, not ${batch.tokens.length}`);
  check(rows <= limits.maxRows, `a step samples ${limits.maxRows} rows, the batch has ${rows}`);
  starts("tokenStart", batch.tokenStart, sequences, batch.tokens.length);
  const seen = new Set<number>();
  for (const slot of batch.slots) {
    check(slot >= 0 && slot < limits.slots, `there is no slot ${slot}`);
    check(!seen.has(slot), `slot ${slot} is in the batch twice`);
    seen.add(slot);
  }
  for (const id of batch.tokens) {
    check(id < vocabSize && -1 - id < limits.slots, `token ${id} is outside the vocabulary and the slots`);
  }
  checkRows(batch, rows, vocabSize);
  check(batch.kvStart.length === sequences, "kvStart has another length than slots");
  check(batch.pages.length === groups.length, `there are ${groups.length} page groups, not ${batch.pages.length}`);
  for (const [g, group] of groups.entries()) checkPages(batch, g, group, limits);
  checkUpdates(batch, limits);
}

/** What copyPages, readPages and writePages name; bytes: of all of them. */
export function checkPageIds(groups: readonly PageGroup[], group: number, ids: Int32Array, bytes?: number): void {
  const { numPages, pageBytes } = groups[group] ?? { numPages: 0, pageBytes: 0 };
  for (const id of ids) check(id >= 0 && id < numPages, `group ${group} has no page ${id}`);
  check(
    bytes === undefined || bytes === ids.length * pageBytes,
    `${ids.length} pages of group ${group} take ${pageBytes} bytes each`,
  );
}

/** n + 1 ascending offsets into a list of this length. */
function starts(name: string, start: Int32Array, n: number, length: number): void {
  check(start.length === n + 1 && start[0] === 0 && start[n] === length, `${name} does not span its ${length} entries`);
  for (let i = 0; i < n; i++) check(start[i] <= start[i + 1], `${name} falls at ${i}`);
}

function checkRows(batch: Batch, rows: number, vocabSize: number): void {
  check(batch.targets.length === rows && batch.rowPositions.length === rows, "targets or rowPositions do not fit rows");
  for (let r = 0; r < rows; r++) {
    const above = r === 0 ? -1 : batch.rows[r - 1];
    check(batch.rows[r] > above && batch.rows[r] < batch.tokens.length, `row ${r} is not an ascending token index`);
    check(
      batch.targets[r] >= -1 && batch.targets[r] < vocabSize,
      `target ${batch.targets[r]} is outside the vocabulary`,
    );
  }
  starts("bias.start", batch.bias.start, rows, batch.bias.ids.length);
  check(batch.bias.values.length === batch.bias.ids.length, "bias has as many values as ids");
  for (const id of batch.bias.ids) check(id >= 0 && id < vocabSize, `bias for id ${id} is outside the vocabulary`);
  for (let i = 0; i < batch.maskedRows.length; i++) {
    const above = i === 0 ? -1 : batch.maskedRows[i - 1];
    check(batch.maskedRows[i] > above && batch.maskedRows[i] < rows, "maskedRows are not ascending row indices");
  }
  check(batch.topLogprobs >= 0 && batch.topLogprobs <= vocabSize, `topLogprobs is ${batch.topLogprobs}`);
}

function checkPages(batch: Batch, g: number, group: PageGroup, limits: Limits): void {
  const table = batch.pages[g];
  starts(`pages[${g}].start`, table.start, batch.slots.length, table.ids.length);
  check(table.first.length === batch.slots.length, `pages[${g}].first has another length than slots`);
  for (const id of table.ids) check(id >= 0 && id < group.numPages, `group ${g} has no page ${id}`);
  for (let s = 0; s < batch.slots.length; s++) {
    const count = table.start[s + 1] - table.start[s];
    const kv = batch.kvStart[s];
    const end = kv + batch.tokenStart[s + 1] - batch.tokenStart[s];
    check(kv >= 0 && end <= limits.contextLength, `sequence ${s} reaches position ${end} of ${limits.contextLength}`);
    if (group.kind === "state") {
      check(count === 1, `sequence ${s} has ${count} pages of state group ${g}`);
      continue;
    }
    const oldest = group.window === undefined ? 0 : Math.max(0, kv - group.window + 1);
    const [from, to] = [table.first[s] * group.pageTokens, (table.first[s] + count) * group.pageTokens];
    check(
      end === kv || (from <= oldest && end <= to),
      `pages of sequence ${s} in group ${g} hold ${from} to ${to}, not ${oldest} to ${end}`,
    );
  }
}

function checkUpdates({ updates }: Batch, limits: Limits): void {
  const n = updates.slots.length;
  for (const slot of updates.slots) check(slot >= 0 && slot < limits.slots, `an update names slot ${slot}`);
  check(updates.floats.length === n * slotFloats && updates.ints.length === n * slotInts, "updates have other lengths");
  starts("updates.promptStart", updates.promptStart, n, updates.promptIds.length);
  starts("updates.outputStart", updates.outputStart, n, updates.outputIds.length);
}

/** Throws UserError for an adapter that changes what this model has not, or in another size. sites: [out, in] of each. */
export function checkAdapter({ sites }: AdapterSource, known: ReadonlyMap<string, readonly [number, number]>): void {
  for (const [site, { a, b }] of sites) {
    const shape = known.get(site);
    if (!shape) throw new UserError(`the adapter changes ${site}, which is not a linear layer of this model`);
    const [rank, into] = a.shape;
    const fits = into === shape[1] && b.shape[0] === shape[0] && b.shape[1] === rank;
    if (fits) continue;
    const [want, have] = [shape, [b.shape[0], into]].map((size) => `[${size.join(", ")}]`);
    throw new UserError(`the adapter was made for another model: ${site} is ${want} here, the adapter's is ${have}`);
  }
}

/** Throws FormatError for pieces that the checkpoint has not, or has in another type or size: before a device reads any
 *  byte, and before swapWeights takes a second checkpoint for the first one's plan. */
export function checkWeights(plan: Plan, tensors: ReadonlyMap<string, TensorInfo>): void {
  for (const piece of plan.tensors.flatMap(({ from }) => from ?? [])) {
    const info = tensors.get(piece.name);
    if (!info) throw new FormatError(`the file has no tensor ${piece.name}`);
    const values = info.shape.reduce((product, dim) => product * dim, 1);
    if (info.type !== piece.type || values !== piece.shape[0] * piece.shape[1]) {
      const want = `${piece.type} [${piece.shape.join(", ")}]`;
      throw new FormatError(`tensor ${piece.name} is ${info.type} [${info.shape.join(", ")}], the plan wants ${want}`);
    }
  }
}

/** filled: the slots that hold an adapter. */
export function checkUpdatedAdapters({ updates }: Batch, filled: ReadonlySet<number>): void {
  for (let u = 0; u < updates.slots.length; u++) {
    const adapter = updates.ints[u * slotInts + SlotInt.adapter];
    check(adapter < 0 || filled.has(adapter), `adapter slot ${adapter} is empty`);
  }
}
