/**
 * Philox4x32-10, the counter-based random generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3" (SC 2011). Sampling needs a number for (seed, token index, token) without any state carried from step to
 * step and wherever in the batch the sequence sits: a pure function of a 128-bit counter and a 64-bit key is just that.
 * It is integers only, so the CPU and every GPU agree bit for bit.
 *
 * @module
 */

const multiplier0 = 0xd2511f53, multiplier1 = 0xcd9e8d57; // the paper's M0 and M1
const weyl0 = 0x9e3779b9, weyl1 = 0xbb67ae85; // golden ratio and sqrt(3) - 1, added to the key each round
const rounds = 10;

/** Four 32-bit words, unsigned. */
export type Words4 = readonly [number, number, number, number];

/** The upper 32 bits of the product of two 32-bit words. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff, aHigh = a >>> 16, bLow = b & 0xffff, bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16); // below 2^32
  const carry = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + (middle >>> 16) + (carry >>> 16)) >>> 0;
}

/**
 * Four random words for a counter of four words and a key of two.
 *
 * @example
 * ```ts
 * import { philox } from "./philox.ts";
 * import { assertEquals } from "@std/assert";
 *
 * assertEquals(philox([0, 0, 0, 0], [0, 0]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
 * ```
 */
export function philox(counter: Words4, key: readonly [number, number]): Words4 {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < rounds; round++) {
    const high0 = multiplyHigh(multiplier0, c0), low0 = Math.imul(multiplier0, c0) >>> 0;
    const high1 = multiplyHigh(multiplier1, c2), low1 = Math.imul(multiplier1, c2) >>> 0;
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + weyl0) >>> 0;
    k1 = (k1 + weyl1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** WGSL of the same: `fn philox(counter: vec4u, key: vec2u) -> vec4u`. */
export const philoxWgsl: string = `
fn philox_round(c: vec4u, key: vec2u) -> vec4u {
  let m = vec2u(${multiplier0}u, ${multiplier1}u);
  let x = c.xz;
  let low = x * m;
  let middle = (x >> vec2u(16u)) * (m & vec2u(0xffffu)) + (((x & vec2u(0xffffu)) * (m & vec2u(0xffffu))) >> vec2u(16u));
  let carry = (x & vec2u(0xffffu)) * (m >> vec2u(16u)) + (middle & vec2u(0xffffu));
  let high = (x >> vec2u(16u)) * (m >> vec2u(16u)) + (middle >> vec2u(16u)) + (carry >> vec2u(16u));
  return vec4u(high.y ^ c.y ^ key.x, low.y, high.x ^ c.w ^ key.y, low.x);
}
fn philox(counter: vec4u, key: vec2u) -> vec4u {
  let step = vec2u(${weyl0}u, ${weyl1}u);
  var c = counter;
${Array.from({ length: rounds }, (_, i) => `  c = philox_round(c, key + ${i}u * step);`).join("\n")}
  return c;
}`;
