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

  it("says when a place can be expected, from the rate at which requests have ended", () => {
    let now = 0;
    const queue = new QueueLimit(1, 1, undefined, () => now);
    const first = queue.enter(1);
    const second = queue.enter(1);
    expect(refusal(() => queue.enter(1)).retryAfter).toBe(1);
    now = 20_000;
    // Nothing has ended yet: two open for 20 s, so one in 10 s at best.
    expect(refusal(() => queue.enter(1)).retryAfter).toBe(10);
    now = 30_000;
    first();
    const third = queue.enter(1);
    // One in 30 s.
    expect(refusal(() => queue.enter(1)).retryAfter).toBe(30);
    now = 40_000;
    second();
    third();
    // Nobody was there: that says nothing of the rate, which was three in 40 s.
    now = 400_000;
    queue.enter(2);
    expect(refusal(() => queue.enter(2)).retryAfter).toBe(27);
  });

  it("counts the tokens that open requests may come to, and lets one in that is alone", () => {
    let now = 0;
    const queue = new QueueLimit(4, 4, 1000, () => now);
    const large = queue.enter(1, 5000);
    expect(queue.isFull).toBe(true);
    now = 10_000;
    expect(refusal(() => queue.enter(1, 10))).toMatchObject({ status: 429, code: "queue_full" });
    large();
    const leave = queue.enter(1, 800);
    // 5000 in 10 s: the 100 too many in a fraction of a second.
    expect(refusal(() => queue.enter(1, 300)).retryAfter).toBe(1);
    queue.enter(1, 200);
    leave();
    queue.enter(1, 800);
  });

  it("keeps some places for those that have none, where several share it", () => {
    const queue = new QueueLimit(2, 8);
    for (let i = 0; i < 9; i++) queue.enter(1, 0, "greedy");
    expect(refusal(() => queue.enter(1, 0, "greedy")).status).toBe(429);
    queue.enter(1, 0, "modest");
    expect(refusal(() => queue.enter(1, 0, "third")).status).toBe(429);
  });
});
