/**
 * The hash of a full block of tokens behind a prefix. It only says where to look: whoever finds something there compares the
 * tokens, so that two contents of one hash cost time and never a wrong answer. Hence 32 bits, in integer arithmetic alone.
 *
 * @module
 */

/**
 * Hash of a block (MurmurHash3's 32-bit mixing, Appleby 2011).
 *
 * @param parent Identity of the prefix in front: a whole number below 2^53, 0 where the block is the first.
 * @param tokens Tokens of the sequence.
 * @param start Index of the block's first token.
 * @param blockSize Tokens of the block.
 * @param salt Keeps apart what may not be shared: it counts in the first block, and so in the identity of all behind it.
 * @returns 32 bits, as a signed integer.
 *
 * @example
 * ```ts
 * import { assertEquals, assertNotEquals } from "@std/assert";
 * import { hashBlock } from "./block_hash.ts";
 *
 * assertEquals(hashBlock(0, [1, 2, 3, 4], 0, 2), hashBlock(0, [9, 1, 2, 9], 1, 2));
 * assertNotEquals(hashBlock(0, [1, 2], 0, 2), hashBlock(1, [1, 2], 0, 2));
 * ```
 */
export function hashBlock(
  parent: number,
  tokens: ArrayLike<number>,
  start: number,
  blockSize: number,
  salt?: string,
): number {
  let hash = mix(mix(0x9747b28c, parent | 0), Math.floor(parent / 2 ** 32));
  if (salt !== undefined && parent === 0) {
    for (let i = 0; i < salt.length; i++) hash = mix(hash, salt.charCodeAt(i));
    hash = mix(hash, salt.length + 1); // a salt of no characters is not the lack of one
  }
  for (let i = start; i < start + blockSize; i++) hash = mix(hash, tokens[i]!);
  hash = Math.imul(hash ^ hash >>> 16, 0x85ebca6b);
  hash = Math.imul(hash ^ hash >>> 13, 0xc2b2ae35);
  return hash ^ hash >>> 16;
}

function mix(hash: number, word: number): number {
  word = Math.imul(word, 0xcc9e2d51);
  word = Math.imul(word << 15 | word >>> 17, 0x1b873593);
  hash ^= word;
  return (Math.imul(hash << 13 | hash >>> 19, 5) + 0xe6546b64) | 0;
}
