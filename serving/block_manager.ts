/**
 * Which block of the KV pool belongs to whom (Kwon et al. 2023, "Efficient Memory Management for Large Language Model
 * Serving with PagedAttention"). Numbers only, no tensors: it is tested without a GPU.
 *
 * A block counts its references: each block table that names it is one. A block without references is free, and keeps what
 * it holds until it is taken for something else: until then a sequence that begins with the same tokens finds it in the prefix
 * cache and takes it back. Blocks are given back tails first, so that of a cached prefix the end goes before the beginning.
 *
 * Steps are submitted ahead: a block is given back only once the last step that may read or write it has *retired*, which is
 * to say that its results have been read.
 *
 * @module
 */
import { FreeBlocks } from "./free_blocks.ts";
import { type BlockContent, PrefixCache } from "./prefix_cache.ts";
import type { Sequence } from "./sequence.ts";

/** The pool has fewer free blocks than were asked for. */
export class OutOfBlocksError extends Error {
  override name = "OutOfBlocksError";
}

/** How a pool is kept. */
export interface BlockManagerOptions {
  /** Whether computed blocks are found again by sequences that begin with the same tokens. On unless `false`. */
  readonly prefixCache?: boolean;
}

/** A block whose contents the device has to copy before a step, because the step changes one that is shared. */
export interface BlockCopy {
  readonly from: number;
  readonly to: number;
}

/** What the prefix cache has of a sequence. */
export interface PrefixMatch {
  /** Cached blocks, from the first position on. */
  readonly blocks: readonly number[];
  /** How many of them are free: taking the match takes so many blocks off the free ones. */
  readonly numFree: number;
  /** Whether the step that is being made writes one of them: only later steps may read it. */
  readonly fresh: boolean;
}

/** References that are dropped once a step has retired. */
interface Retiring {
  readonly step: number;
  readonly blocks: readonly number[];
}

const NOTHING: PrefixMatch = { blocks: [], numFree: 0, fresh: false };

/** Hands out the blocks of a pool. A block is taken and given back in constant time. */
export class BlockManager {
  readonly #free: FreeBlocks;
  readonly #references: Int32Array;
  readonly #cache: PrefixCache | undefined;
  /** The step during whose making each block was entered in the cache. */
  readonly #cachedIn: Float64Array;
  #retiring: Retiring[] = [];
  #retired = 0;
  #numHitTokens = 0;
  #numMissTokens = 0;

  /**
   * A pool of which everything is free.
   *
   * @param numBlocks Blocks of the pool.
   * @param blockSize Tokens of a block.
   */
  constructor(
    readonly numBlocks: number,
    readonly blockSize: number,
    { prefixCache = true }: BlockManagerOptions = {},
  ) {
    this.#free = new FreeBlocks(numBlocks);
    this.#references = new Int32Array(numBlocks);
    this.#cache = prefixCache ? new PrefixCache(numBlocks, blockSize) : undefined;
    this.#cachedIn = new Float64Array(prefixCache ? numBlocks : 0);
  }

  /** Blocks that nobody holds. What the prefix cache keeps in them goes when they are taken. */
  get numFreeBlocks(): number {
    return this.#free.size;
  }

  /** Tokens of prompts that the prefix cache had. */
  get numHitTokens(): number {
    return this.#numHitTokens;
  }

  /** Tokens of prompts that it did not have. */
  get numMissTokens(): number {
    return this.#numMissTokens;
  }

  /** Whether blocks wait for steps to retire before they are free. */
  get isRetiring(): boolean {
    return this.#retiring.length > 0;
  }

  /** Blocks that `numTokens` positions take. */
  blocksFor(numTokens: number): number {
    return Math.ceil(numTokens / this.blockSize);
  }

  /** Tokens behind the computed ones that a sequence has room for, in its blocks and the free ones. */
  room(sequence: Sequence): number {
    const free = this.#free.size - (this.#writesShared(sequence) ? 1 : 0);
    if (free < 0) return 0;
    return (sequence.blockTable.length + free) * this.blockSize - sequence.numComputedTokens;
  }

  /** Blocks to take before a sequence, with its match claimed, can compute up to `numTokens` positions. */
  missingBlocks(sequence: Sequence, match: PrefixMatch, numTokens: number): number {
    const held = sequence.blockTable.length + match.blocks.length;
    return this.blocksFor(numTokens) - held + match.numFree + (this.#writesShared(sequence) ? 1 : 0);
  }

  /**
   * Makes room for the `numTokens` tokens behind the computed ones. Where the first of them falls into a block that others
   * hold too, the sequence gets a copy of its own.
   *
   * @param step Number of the step that computes them.
   * @param copies Takes the copies that the device has to make before the step, all at once: none reads what another writes.
   * @throws {OutOfBlocksError} if the pool has too few free blocks; nothing is taken then.
   */
  append(sequence: Sequence, numTokens: number, step = 0, copies: BlockCopy[] = []): void {
    const { blockTable, numComputedTokens } = sequence, shared = this.#writesShared(sequence);
    const missing = this.blocksFor(numComputedTokens + numTokens) - blockTable.length;
    if (missing + (shared ? 1 : 0) > this.#free.size) throw this.#outOfBlocks(numTokens, missing + (shared ? 1 : 0));
    const first = Math.floor(numComputedTokens / this.blockSize);
    if (shared) {
      const from = blockTable[first]!, to = this.#take();
      copies.push({ from, to });
      blockTable[first] = to;
      this.#dropAfter([from], step);
    } else if (first < blockTable.length) this.#cache?.remove(blockTable[first]!);
    for (let i = 0; i < missing; i++) blockTable.push(this.#take());
  }

  /**
   * Enters in the prefix cache what of a sequence is computed and known, block by block.
   *
   * @param step The step that is being made, or the last one made.
   */
  cacheFullBlocks(sequence: Sequence, step = 0): void {
    if (!this.#cache) return;
    const { tokens, numComputedTokens, blockTable } = sequence;
    const full = Math.floor(Math.min(numComputedTokens, tokens.length) / this.blockSize);
    while (sequence.numCachedBlocks < full) {
      const block = blockTable[sequence.numCachedBlocks]!;
      if (this.#cache.identityOf(block) === 0) { // else who shares it has entered it
        this.#cache.insert(block, this.#contentOf(sequence, sequence.numCachedBlocks));
        this.#cachedIn[block] = step;
      }
      sequence.numCachedBlocks++;
    }
  }

  /**
   * Looks a sequence that holds no blocks up in the prefix cache. The last token is never found, since its logits are wanted;
   * nor is anything of a sequence whose logits are wanted everywhere.
   *
   * @param step The step that is being made.
   */
  match(sequence: Sequence, step = 0): PrefixMatch {
    if (!this.#cache || sequence.blockTable.length > 0 || sequence.task === "score") return NOTHING;
    const most = Math.floor((sequence.tokens.length - 1) / this.blockSize);
    const { tokens, options: { salt } } = sequence, blocks: number[] = [];
    let parent = 0, numFree = 0, fresh = false;
    while (blocks.length < most) {
      const block = this.#cache.find({ parent, tokens, start: blocks.length * this.blockSize, salt });
      if (block < 0) break;
      blocks.push(block);
      parent = this.#cache.identityOf(block);
      if (this.#references[block] === 0) numFree++;
      if (this.#cachedIn[block] === step) fresh = true;
    }
    return { blocks, numFree, fresh };
  }

  /**
   * Gives a sequence that holds no blocks those of its match: their tokens count as computed. Hits and misses are counted the first
   * time alone: what a preempted sequence finds again is mostly its own.
   */
  claim(sequence: Sequence, { blocks }: PrefixMatch): void {
    for (const block of blocks) {
      if (this.#references[block]!++ === 0) this.#free.remove(block);
      sequence.blockTable.push(block);
    }
    sequence.numCachedBlocks = blocks.length;
    sequence.numComputedTokens = blocks.length * this.blockSize;
    if (sequence.numPreemptions > 0) return;
    sequence.numHitTokens = sequence.numComputedTokens;
    this.#numHitTokens += sequence.numHitTokens;
    this.#numMissTokens += sequence.tokens.length - sequence.numHitTokens;
  }

  /**
   * Shares the blocks of a sequence with one that holds none, up to the last token that both have; that one it has to compute,
   * so that it is drawn after.
   *
   * @param child Its tokens are the first ones of `parent`, or all of them.
   */
  fork(parent: Sequence, child: Sequence): void {
    child.numComputedTokens = Math.min(parent.numComputedTokens, child.tokens.length - 1);
    const held = this.blocksFor(child.numComputedTokens);
    for (let i = 0; i < held; i++) {
      const block = parent.blockTable[i]!;
      this.#references[block]!++;
      child.blockTable.push(block);
    }
    child.numCachedBlocks = Math.min(parent.numCachedBlocks, Math.floor(child.numComputedTokens / this.blockSize));
  }

  /**
   * Gives back all blocks of a sequence; nothing of it is computed then. Freeing twice is harmless.
   *
   * @param step The last step that may read or write them: they are free once it has retired.
   */
  free(sequence: Sequence, step = 0): void {
    this.cacheFullBlocks(sequence, step);
    sequence.numComputedTokens = sequence.numCachedBlocks = 0;
    if (sequence.blockTable.length > 0) this.#dropAfter(sequence.blockTable.splice(0), step);
  }

  /** Says that all steps up to `step` have retired: blocks that waited for them are free. */
  retire(step: number): void {
    this.#retired = Math.max(this.#retired, step);
    let done = 0;
    while (done < this.#retiring.length && this.#retiring[done]!.step <= this.#retired) {
      this.#drop(this.#retiring[done++]!.blocks);
    }
    if (done > 0) this.#retiring.splice(0, done);
  }

  /** Makes everything free and forgets every prefix, whatever steps are under way. Block tables are the caller's to empty. */
  reset(): void {
    for (let block = 0; block < this.numBlocks; block++) this.#cache?.remove(block);
    this.#references.fill(0);
    this.#free.reset();
    this.#retiring = [];
  }

  /**
   * Proves that the bookkeeping holds: references are counted right, what has none is free and nothing else, tables cover
   * what is computed, and the prefix cache says of each block what the sequences that hold it do.
   *
   * @param sequences All sequences that hold blocks.
   */
  assertConsistent(sequences: Iterable<Sequence>): void {
    const references = new Int32Array(this.numBlocks);
    const count = (block: number): void => {
      if (!(block >= 0 && block < this.numBlocks)) throw new Error(`Block ${block} is not in the pool`);
      references[block]!++;
    };
    for (const { blocks } of this.#retiring) blocks.forEach(count);
    for (const sequence of sequences) {
      sequence.blockTable.forEach(count);
      this.#assertHeld(sequence);
    }
    this.#assertFree(references);
  }

  #assertHeld(sequence: Sequence): void {
    const { blockTable, numComputedTokens, numCachedBlocks } = sequence;
    if (blockTable.length * this.blockSize < numComputedTokens) {
      throw new Error(`${blockTable.length} blocks of ${this.blockSize} do not hold ${numComputedTokens} tokens`);
    }
    if (new Set(blockTable).size < blockTable.length) throw new Error(`A table holds a block twice: ${blockTable}`);
    for (let i = 0; i < numCachedBlocks; i++) {
      if (!this.#cache?.holds(blockTable[i]!, this.#contentOf(sequence, i))) {
        throw new Error(`Block ${blockTable[i]} is not cached as block ${i} of the sequence that holds it`);
      }
    }
  }

  #assertFree(references: Int32Array): void {
    const free = new Uint8Array(this.numBlocks);
    for (const block of this.#free) free[block]!++;
    for (let block = 0; block < this.numBlocks; block++) {
      const counted = this.#references[block]!, held = references[block]!;
      if (counted !== held) throw new Error(`Block ${block} counts ${counted} references, and ${held} hold it`);
      if (free[block] !== (held === 0 ? 1 : 0)) {
        throw new Error(`Block ${block} is held by ${held}, and ${free[block]} times in the list of free blocks`);
      }
    }
  }

  /** Whether the next token of a sequence falls into a block that others hold too. */
  #writesShared({ blockTable, numComputedTokens }: Sequence): boolean {
    const first = Math.floor(numComputedTokens / this.blockSize);
    return first < blockTable.length && this.#references[blockTable[first]!]! > 1;
  }

  #contentOf({ tokens, blockTable, options: { salt } }: Sequence, index: number): BlockContent {
    const parent = index === 0 ? 0 : this.#cache!.identityOf(blockTable[index - 1]!);
    if (index > 0 && parent === 0) throw new Error(`Block ${index} of a sequence has no cached prefix in front`);
    return { parent, tokens, start: index * this.blockSize, salt };
  }

  #take(): number {
    const block = this.#free.shift();
    this.#cache?.remove(block);
    this.#references[block] = 1;
    return block;
  }

  /** Drops a reference to each block, once a step has retired. */
  #dropAfter(blocks: readonly number[], step: number): void {
    if (step > this.#retired) this.#retiring.push({ step, blocks });
    else this.#drop(blocks);
  }

  /** Drops a reference to each block, the last first. What is cached is taken anew last. */
  #drop(blocks: readonly number[]): void {
    for (let i = blocks.length - 1; i >= 0; i--) {
      const block = blocks[i]!;
      if (--this.#references[block]! > 0) continue;
      if (this.#cache && this.#cache.identityOf(block) > 0) this.#free.push(block);
      else this.#free.unshift(block);
    }
  }

  #outOfBlocks(numTokens: number, missing: number): OutOfBlocksError {
    return new OutOfBlocksError(
      `Cannot compute ${numTokens} more tokens: ${missing} blocks of ${this.blockSize} tokens are needed, ` +
        `${this.#free.size} of ${this.numBlocks} are free. Wait for another request to end, or load with more memory for keys and values`,
    );
  }
}
