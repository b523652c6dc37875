// Owns: how the machine's threads are divided among the models that answer at once.

/** As even as can be, the first ones getting what is over; each at least one. */
export function shareThreads(threads: number, models: number): number[] {
  return Array.from({ length: models }, (_, i) =>
    Math.max(1, Math.floor(threads / models) + (i < threads % models ? 1 : 0)),
  );
}
