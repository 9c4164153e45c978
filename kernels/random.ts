/**
 * Reproducible random numbers for tests and benches: PCG-XSH-RR 64/32 would need 64-bit arithmetic, so this is
 * `sfc32` of PractRand (Chris Doty-Humphrey), three words of state and a counter, all in 32 bits.
 *
 * @module
 */
import type { Random } from "./spec.ts";

/** A generator for one seed: equal seeds give equal sequences. */
export function seededRandom(seed: number): Random {
  let a = seed | 0, b = (seed / 2 ** 32) | 0, c = 0x9e3779b9 | 0, counter = 1;
  const next = (): number => {
    const t = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (c << 21) | (c >>> 11);
    c = (c + t) | 0;
    return t >>> 0;
  };
  for (let i = 0; i < 12; i++) next();
  const uniform = (): number => next() / 2 ** 32;
  return {
    uniform,
    integer: (low, high) => low + Math.floor(uniform() * (high - low + 1)),
    normal: () => Math.fround(Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform())),
  };
}
