/**
 * Which blocks hold which tokens behind which prefix. A hash table over typed arrays, with an entry a block: nothing is
 * allocated as blocks come and go.
 *
 * Each content, a prefix up to the end of a block, has an identity: a number never given to another content. An entry holds
 * the identity of the prefix in front and the block's own tokens, and a look-up compares both. By induction from the first
 * block what is found is what was looked for, whatever the hashes do. Two blocks may hold one content, where two sequences
 * computed it side by side: both are entered, with one identity.
 *
 * @module
 */
import { hashBlock } from "./block_hash.ts";

/** The tokens of a block, and what makes them its own: the prefix in front and the salt. */
export interface BlockContent {
  /** Identity of the prefix in front, 0 for the first block. */
  readonly parent: number;
  /** Tokens of the sequence. */
  readonly tokens: ArrayLike<number>;
  /** Index of the block's first token. */
  readonly start: number;
  /** Of the sequence. */
  readonly salt: string | undefined;
}

/** A table from contents to blocks. */
export class PrefixCache {
  readonly #blockSize: number;
  readonly #identities: Float64Array;
  readonly #parents: Float64Array;
  readonly #hashes: Int32Array;
  readonly #tokens: Int32Array;
  /** Salts of first blocks. */
  readonly #salts = new Map<number, string>();
  /** First block of each bucket, and the one behind each block in its bucket; -1: none. */
  readonly #buckets: Int32Array;
  readonly #next: Int32Array;
  #lastIdentity = 0;

  /** A table without entries, for blocks below `numBlocks`. */
  constructor(numBlocks: number, blockSize: number) {
    this.#blockSize = blockSize;
    this.#identities = new Float64Array(numBlocks);
    this.#parents = new Float64Array(numBlocks);
    this.#hashes = new Int32Array(numBlocks);
    this.#tokens = new Int32Array(numBlocks * blockSize);
    this.#buckets = new Int32Array(2 ** Math.ceil(Math.log2(2 * numBlocks + 1))).fill(-1);
    this.#next = new Int32Array(numBlocks);
  }

  /** Identity of what a block holds, with the prefix in front; 0 where it is not entered. */
  identityOf(block: number): number {
    return this.#identities[block]!;
  }

  /** A block of that content, or -1. */
  find(content: BlockContent): number {
    return this.#find(content, this.#hash(content));
  }

  /** Enters a block that is not entered yet. */
  insert(block: number, content: BlockContent): void {
    const hash = this.#hash(content), same = this.#find(content, hash);
    this.#identities[block] = same < 0 ? ++this.#lastIdentity : this.#identities[same]!;
    this.#parents[block] = content.parent;
    this.#hashes[block] = hash;
    const at = block * this.#blockSize;
    for (let i = 0; i < this.#blockSize; i++) this.#tokens[at + i] = content.tokens[content.start + i]!;
    if (content.parent === 0 && content.salt !== undefined) this.#salts.set(block, content.salt);
    const bucket = this.#bucket(hash);
    this.#next[block] = this.#buckets[bucket]!;
    this.#buckets[bucket] = block;
  }

  /** Forgets what a block holds. Harmless where it is not entered. */
  remove(block: number): void {
    if (this.#identities[block] === 0) return;
    const bucket = this.#bucket(this.#hashes[block]!);
    let before = -1;
    for (let at = this.#buckets[bucket]!; at !== block; at = this.#next[at]!) before = at;
    if (before < 0) this.#buckets[bucket] = this.#next[block]!;
    else this.#next[before] = this.#next[block]!;
    this.#identities[block] = 0;
    if (this.#parents[block] === 0) this.#salts.delete(block);
  }

  /** Whether a block is entered with just that content, and found where its hash says. For tests. */
  holds(block: number, content: BlockContent): boolean {
    const hash = this.#hash(content);
    let at = this.#buckets[this.#bucket(hash)]!;
    while (at >= 0 && at !== block) at = this.#next[at]!;
    return at === block && this.#matches(block, content, hash);
  }

  #find(content: BlockContent, hash: number): number {
    let block = this.#buckets[this.#bucket(hash)]!;
    while (block >= 0 && !this.#matches(block, content, hash)) block = this.#next[block]!;
    return block;
  }

  #matches(block: number, { parent, tokens, start, salt }: BlockContent, hash: number): boolean {
    if (this.#hashes[block] !== hash || this.#parents[block] !== parent) return false;
    if (parent === 0 && this.#salts.get(block) !== salt) return false;
    const at = block * this.#blockSize;
    for (let i = 0; i < this.#blockSize; i++) if (this.#tokens[at + i] !== tokens[start + i]) return false;
    return true;
  }

  #hash({ parent, tokens, start, salt }: BlockContent): number {
    return hashBlock(parent, tokens, start, this.#blockSize, salt);
  }

  #bucket(hash: number): number {
    return hash & (this.#buckets.length - 1);
  }
}
