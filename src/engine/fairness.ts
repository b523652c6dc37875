// Owns: who has had how much: a counter of tokens for each client that waits or runs, and so whose turn it is. The client
// with the smallest counter goes first; what is computed for it raises its counter, the less the greater its weight.
//
//   "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024): virtual token counters. A client that comes back
//   starts where the least of the others stands, so that nobody saves up by being away; two clients that always have work
//   get service in the ratio of their weights, whatever the lengths of their requests.
//
// Refuses to know requests: the scheduler says who comes and goes, and what was computed.

/** Tokens of a prompt count once, generated ones twice: a step of one token costs more than its part of a prompt. */
export const promptCost = 1;
export const generatedCost = 2;

interface Client {
  served: number;
  /** Choices of it that wait or run. */
  live: number;
}

export class Shares {
  private readonly clients = new Map<string, Client>();
  private live = 0;
  /** Where the client stood that left last. */
  private lastLeft = 0;

  join(name: string): void {
    let client = this.clients.get(name);
    if (!client) {
      client = { served: 0, live: 0 };
      this.clients.set(name, client);
    }
    if (client.live === 0) client.served = Math.max(client.served, this.least());
    client.live++;
    this.live++;
  }

  leave(name: string): void {
    const client = this.clients.get(name)!;
    client.live--;
    this.live--;
    if (client.live === 0) this.lastLeft = client.served;
    // When nobody is left there is nothing to be unfair about: all begin anew.
    if (this.live > 0) return;
    this.clients.clear();
    this.lastLeft = 0;
  }

  charge(name: string, cost: number, weight: number): void {
    this.clients.get(name)!.served += cost / weight;
  }

  /** Tokens, by weight; the smaller, the sooner its turn. */
  served(name: string): number {
    return this.clients.get(name)?.served ?? 0;
  }

  private least(): number {
    let least = Number.POSITIVE_INFINITY;
    for (const { served, live } of this.clients.values()) if (live > 0) least = Math.min(least, served);
    return least === Number.POSITIVE_INFINITY ? this.lastLeft : least;
  }
}
