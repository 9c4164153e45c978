/**
 * The sequences that wait, the next one in front: a binary heap. One that comes back takes its old place, since the order is
 * that of arrival (within a priority).
 *
 * @module
 */
import type { Sequence } from "./sequence.ts";

/** Whether `a` goes before `b`: the lower priority number, then who came first. A total order of the sequences of a scheduler. */
export function goesBefore(a: Sequence, b: Sequence, byPriority: boolean): boolean {
  if (byPriority) {
    const difference = (a.options.priority ?? 0) - (b.options.priority ?? 0);
    if (difference !== 0) return difference < 0;
  }
  return a.arrival !== b.arrival ? a.arrival < b.arrival : a.serial < b.serial;
}

/** A queue. */
export class WaitingQueue {
  readonly #heap: Sequence[] = [];
  readonly #byPriority: boolean;

  /** A queue of nobody. */
  constructor(byPriority: boolean) {
    this.#byPriority = byPriority;
  }

  /** Who waits. */
  get size(): number {
    return this.#heap.length;
  }

  /** The next one. */
  peek(): Sequence | undefined {
    return this.#heap[0];
  }

  /** Adds one. */
  push(sequence: Sequence): void {
    this.#heap.push(sequence);
    this.#rise(this.#heap.length - 1);
  }

  /** Takes one out, wherever it is: at once in front, by a search elsewhere. */
  remove(sequence: Sequence): void {
    const at = this.#heap.indexOf(sequence);
    if (at < 0) return;
    const last = this.#heap.pop()!;
    if (at === this.#heap.length) return;
    this.#heap[at] = last;
    this.#sink(at);
    this.#rise(at);
  }

  /** All that wait, in no order. */
  [Symbol.iterator](): IterableIterator<Sequence> {
    return this.#heap.values();
  }

  #rise(at: number): void {
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#swapUnlessOrdered(parent, at)) return;
      at = parent;
    }
  }

  #sink(at: number): void {
    while (true) {
      const left = 2 * at + 1, right = left + 1;
      if (left >= this.#heap.length) return;
      const rightFirst = right < this.#heap.length &&
        goesBefore(this.#heap[right]!, this.#heap[left]!, this.#byPriority);
      const child = rightFirst ? right : left;
      if (!this.#swapUnlessOrdered(at, child)) return;
      at = child;
    }
  }

  #swapUnlessOrdered(parent: number, child: number): boolean {
    const above = this.#heap[parent]!, below = this.#heap[child]!;
    if (!goesBefore(below, above, this.#byPriority)) return false;
    this.#heap[parent] = below;
    this.#heap[child] = above;
    return true;
  }
}
