/**
 * Which block of the KV pool belongs to whom (Kwon et al. 2023, "Efficient Memory Management for Large Language Model
 * Serving with PagedAttention"). Numbers only, no tensors: it is tested without a GPU.
 *
 * @module
 */
import type { Sequence } from "./sequence.ts";

/** The pool has fewer free blocks than were asked for. */
export class OutOfBlocksError extends Error {
  override name = "OutOfBlocksError";
}

/** Hands out the blocks of a pool. A block is taken and given back in constant time: the free ones are a stack. */
export class BlockManager {
  readonly #free: Int32Array;
  #numFree: number;

  /**
   * A pool of which everything is free.
   *
   * @param numBlocks Blocks of the pool.
   * @param blockSize Tokens of a block.
   */
  constructor(readonly numBlocks: number, readonly blockSize: number) {
    this.#free = Int32Array.from({ length: numBlocks }, (_, i) => numBlocks - 1 - i);
    this.#numFree = numBlocks;
  }

  /** Blocks that nobody holds. */
  get numFreeBlocks(): number {
    return this.#numFree;
  }

  /** Blocks that `numTokens` positions take. */
  blocksFor(numTokens: number): number {
    return Math.ceil(numTokens / this.blockSize);
  }

  /**
   * Makes room for the `numTokens` tokens behind the computed ones.
   *
   * @throws {OutOfBlocksError} if the pool has too few free blocks; nothing is taken then.
   */
  append(sequence: Sequence, numTokens: number): void {
    const missing = this.blocksFor(sequence.numComputedTokens + numTokens) - sequence.blockTable.length;
    if (missing > this.#numFree) {
      throw new OutOfBlocksError(
        `Cannot compute ${numTokens} more tokens: ${missing} blocks of ${this.blockSize} tokens are needed, ` +
          `${this.#numFree} of ${this.numBlocks} are free. Wait for another request to end, or load with a longer context.`,
      );
    }
    for (let i = 0; i < missing; i++) sequence.blockTable.push(this.#free[--this.#numFree]!);
  }

  /** Drops the tokens behind the first `numTokens`, and gives back the blocks that held nothing else. */
  rewind(sequence: Sequence, numTokens: number): void {
    sequence.truncate(numTokens);
    this.#giveBack(sequence, this.blocksFor(sequence.numComputedTokens));
  }

  /** Gives back all blocks of a sequence; nothing of it is computed then. Freeing twice is harmless. */
  free(sequence: Sequence): void {
    sequence.numComputedTokens = 0;
    this.#giveBack(sequence, 0);
  }

  #giveBack(sequence: Sequence, keep: number): void {
    while (sequence.blockTable.length > keep) this.#free[this.#numFree++] = sequence.blockTable.pop()!;
  }

  /**
   * Proves that every block is either free or in one table of `sequences`, once, and that tables cover what is computed.
   *
   * @param sequences All sequences that hold blocks.
   */
  assertConsistent(sequences: Iterable<Sequence>): void {
    const holders = new Uint8Array(this.numBlocks);
    const count = (block: number, where: string): void => {
      if (!(block >= 0 && block < this.numBlocks)) throw new Error(`Block ${block} in ${where} is not in the pool`);
      if (++holders[block]! > 1) throw new Error(`Block ${block} in ${where} is held twice`);
    };
    this.#free.subarray(0, this.#numFree).forEach((block) => count(block, "the free list"));
    for (const { blockTable, numComputedTokens } of sequences) {
      blockTable.forEach((block) => count(block, "a block table"));
      if (blockTable.length * this.blockSize < numComputedTokens) {
        throw new Error(`${blockTable.length} blocks of ${this.blockSize} do not hold ${numComputedTokens} tokens`);
      }
    }
    const lost = holders.indexOf(0);
    if (lost >= 0) throw new Error(`Block ${lost} is lost: neither free nor in a table`);
  }
}
