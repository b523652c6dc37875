// Owns: random numbers that depend on (seed, counter) alone: Philox4x32-10, a counter-based generator. No state, so the
// same request draws the same numbers whatever runs beside it.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

/** High 32 bits of the 64-bit product of two 32-bit numbers. */
function mulHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const cross = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + Math.floor(middle / 65536) + Math.floor(cross / 65536)) >>> 0;
}

/** Ten rounds over a counter of four words with a key of two. All words unsigned 32-bit. */
export function philox4x32(
  counter: readonly [number, number, number, number],
  key: readonly [number, number],
): [number, number, number, number] {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(M0, c0);
    const low0 = Math.imul(M0, c0) >>> 0;
    const high1 = mulHigh(M1, c2);
    const low1 = Math.imul(M1, c2) >>> 0;
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/**
 * The uniform number in [0, 1) with which a sequence of this seed draws the token at `position`.
 * Key (seedLow, seedHigh), counter (position, 0, 0, 0); of the output words a, b: (a · 2^21 + (b >>> 11)) / 2^53.
 */
export function drawUniform(seedLow: number, seedHigh: number, position: number): number {
  const [a, b] = philox4x32([position >>> 0, 0, 0, 0], [seedLow >>> 0, seedHigh >>> 0]);
  return (a * 2 ** 21 + (b >>> 11)) / 2 ** 53;
}
