/**
 * How many a second, over the last second with work.
 *
 * @module
 */

/** Milliseconds that a rate is taken over. */
const WINDOW_MS = 1000;

/** Counts what happens, and remembers the last second of it. */
export class RateMeter {
  readonly #events: { readonly at: number; readonly count: number }[] = [];
  #total = 0;
  #recent = 0;

  /** All that was counted. */
  get total(): number {
    return this.#total;
  }

  /** Counts what was done at a time, in milliseconds, not before the last one. */
  add(count: number, at: number): void {
    this.#total += count;
    this.#recent += count;
    this.#events.push({ at, count });
    let old = 0;
    while (this.#events[old]!.at < at - WINDOW_MS) this.#recent -= this.#events[old++]!.count;
    if (old > 0) this.#events.splice(0, old);
  }

  /** How many a second, up to the last event. */
  get perSecond(): number {
    const first = this.#events[0], last = this.#events.at(-1);
    if (!first || !last || last.at === first.at) return 0;
    // What came at the first moment was done before it.
    return 1000 * (this.#recent - first.count) / (last.at - first.at);
  }
}
