// Owns: how a device divides what memory is left for caches among its page groups.
import { UserError } from "../base/errors.js";
import type { Plan } from "../plan/plan.js";
import type { Limits } from "./device.js";

/** A page group before its pages are counted. */
export interface GroupShape {
  readonly kind: "paged" | "state";
  readonly window?: number;
  /** 0 for states. */
  readonly pageTokens: number;
  readonly pageBytes: number;
}

/** The plan's page groups: sizes of a page over all its layers. rowBytes: of a token's row of so many keys or values. */
export function groupShapes(
  plan: Plan,
  pageTokens: number,
  rowBytes: (width: number) => number,
  stateBytes = 4,
): GroupShape[] {
  const groups: GroupShape[] = [];
  for (const cache of plan.caches) {
    const before = groups[cache.group]?.pageBytes ?? 0;
    groups[cache.group] =
      cache.kind === "state"
        ? { kind: "state", pageTokens: 0, pageBytes: before + stateBytes * cache.shape.reduce((a, b) => a * b, 1) }
        : {
            kind: "paged",
            window: cache.window,
            pageTokens,
            pageBytes: before + pageTokens * cache.numKvHeads * (rowBytes(cache.headDim) + rowBytes(cache.vHeadDim)),
          };
  }
  return groups;
}

/** Pages that one sequence of the longest kind can hold at once: behind a window only what a step's chunk may still see. */
function pagesPerSequence(group: GroupShape, limits: Limits): number {
  if (group.kind === "state") return 1;
  const all = Math.ceil(limits.contextLength / group.pageTokens);
  if (group.window === undefined) return all;
  return Math.min(all, Math.ceil((group.window + limits.maxTokens) / group.pageTokens) + 1);
}

/**
 * Pages of each group, in proportion to what sequences need of each: window and state groups at least enough for one
 * sequence, every group at most maxPages, window groups at most what all slots hold, states four a slot (for snapshots).
 * Throws UserError where not even a page of each fits. `bytes`: limits.memoryBytes less what weights and workspace take.
 */
export function dividePages(groups: readonly GroupShape[], bytes: number, limits: Limits): number[] {
  const wants = groups.map((group) => pagesPerSequence(group, limits));
  const most = groups.map((group, g) => {
    if (group.kind === "state") return 4 * limits.slots;
    const most = limits.maxPages > 0 ? limits.maxPages : Number.MAX_SAFE_INTEGER;
    return group.window === undefined ? most : Math.min(most, wants[g] * limits.slots);
  });
  /** Pages when memory is shared out for `sequences` of the longest kind, a fraction being fine. */
  const pagesFor = (sequences: number) =>
    groups.map((group, g) => {
      const least = group.kind === "paged" && group.window === undefined ? 1 : wants[g];
      return Math.min(most[g], Math.max(least, Math.floor(sequences * wants[g])));
    });
  const total = (pages: readonly number[]) => pages.reduce((sum, count, g) => sum + count * groups[g].pageBytes, 0);
  const least = total(pagesFor(0));
  if (least > bytes) {
    const have = Math.max(0, Math.floor(bytes));
    throw new UserError(
      `the cache needs at least ${least} bytes for one short sequence, ${have} are left after weights and workspace: ` +
        "give more memory or a smaller context",
      { code: "out_of_memory" },
    );
  }
  let low = 0;
  let high = Math.max(1, bytes);
  for (let i = 0; i < 100; i++) {
    const middle = (low + high) / 2;
    if (total(pagesFor(middle)) <= bytes) low = middle;
    else high = middle;
  }
  return pagesFor(low);
}

/** The longest single sequence that these pages hold, in tokens. */
export function longestContext(groups: readonly GroupShape[], pages: readonly number[], limits: Limits): number {
  return groups.reduce((longest, group, g) => {
    const bounded = group.kind === "state" || pages[g] >= pagesPerSequence(group, limits);
    return bounded ? longest : Math.min(longest, pages[g] * group.pageTokens);
  }, limits.contextLength);
}
