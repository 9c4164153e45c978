/**
 * The blocks that nobody holds, in the order in which they will be taken: those without contents worth keeping first, then
 * cached ones, the least recently used in front. A doubly linked list over typed arrays: a block is added, taken, and picked
 * out of the middle in constant time.
 *
 * @module
 */

/** A list of free blocks. */
export class FreeBlocks {
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  #size = 0;

  /** A list that holds all blocks below `numBlocks`, in ascending order. */
  constructor(numBlocks: number) {
    // The entry behind the last block stands for both ends of the list.
    this.#next = new Int32Array(numBlocks + 1);
    this.#previous = new Int32Array(numBlocks + 1);
    this.reset();
  }

  /** Blocks in the list. */
  get size(): number {
    return this.#size;
  }

  /** Puts all blocks in the list. */
  reset(): void {
    const end = this.#next.length - 1;
    for (let block = 0; block <= end; block++) {
      this.#next[block] = block === end ? 0 : block + 1;
      this.#previous[block] = block === 0 ? end : block - 1;
    }
    this.#size = end;
  }

  /** Takes the first block. The list may not be empty. */
  shift(): number {
    const block = this.#next[this.#next.length - 1]!;
    this.remove(block);
    return block;
  }

  /** Adds a block that will be taken next. */
  unshift(block: number): void {
    this.#insert(block, this.#next[this.#next.length - 1]!);
  }

  /** Adds a block that will be taken last. */
  push(block: number): void {
    this.#insert(block, this.#next.length - 1);
  }

  /** Picks out a block that is in the list. */
  remove(block: number): void {
    const next = this.#next[block]!, previous = this.#previous[block]!;
    this.#next[previous] = next;
    this.#previous[next] = previous;
    this.#size--;
  }

  /** The blocks in order. */
  *[Symbol.iterator](): IterableIterator<number> {
    const end = this.#next.length - 1;
    for (let block = this.#next[end]!; block !== end; block = this.#next[block]!) yield block;
  }

  #insert(block: number, before: number): void {
    const previous = this.#previous[before]!;
    this.#next[previous] = block;
    this.#previous[block] = previous;
    this.#next[block] = before;
    this.#previous[before] = block;
    this.#size++;
  }
}
