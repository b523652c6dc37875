// The queue limit by itself, on a clock of the test's.
import { describe, expect, it } from "vitest";
import { UserError } from "../../src/base/errors.js";
import { QueueLimit } from "../../src/server/limits.js";

function refusal(action: () => unknown): UserError {
  try {
    action();
  } catch (error) {
    if (error instanceof UserError) return error;
    throw error;
  }
  throw new Error("it was not refused");
}

describe("the queue limit", () => {
  it("counts choices, and gives places back once", () => {
    const queue = new QueueLimit(2, 1);
    const leave = queue.enter(2);
    queue.enter(1);
    expect([queue.running, queue.waiting]).toEqual([2, 1]);
    expect(refusal(() => queue.enter(1)).status).toBe(429);
    leave();
    leave();
    expect([queue.running, queue.waiting]).toEqual([1, 0]);
    queue.enter(2);
  });

  it("refuses for good what could never fit", () => {
    expect(refusal(() => new QueueLimit(2, 1).enter(4))).toMatchObject({ status: 400, param: "n" });
  });

  it("says when a place can be expected, from how long requests take", () => {
    let now = 0;
    const queue = new QueueLimit(1, 1, () => now);
    const first = queue.enter(1);
    const second = queue.enter(1);
    expect(refusal(() => queue.enter(1)).retryAfter).toBe(1);
    now = 20_000;
    // Nothing has ended yet: two open for 20 s, so one in 10 s at best.
    expect(refusal(() => queue.enter(1)).retryAfter).toBe(10);
    now = 30_000;
    first();
    queue.enter(1);
    expect(refusal(() => queue.enter(1)).retryAfter).toBe(15);
    now = 31_000;
    second();
    queue.enter(1);
    // The average follows slowly: 30 + 0.2 × (31 − 30).
    expect(refusal(() => queue.enter(1)).retryAfter).toBe(16);
  });
});
