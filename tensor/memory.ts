/**
 * Plans the memory of intermediate results: each lives from the dispatch that makes it to the last that reads it, and two
 * that never live at once share a buffer. Sizes are rounded up to classes, so that buffers fit again.
 *
 * @module
 */

/** When a result lives and what it needs. */
export interface Lifetime {
  /** Bytes. */
  readonly bytes: number;
  /** Position of the dispatch that writes it. */
  readonly first: number;
  /** Position of the last dispatch that reads it; Infinity for what outlives the run. */
  readonly last: number;
  /** Only results of one arena share a buffer; 0 unless given. */
  readonly arena?: number;
}

/** Which buffer each result gets. */
export interface MemoryPlan {
  /** Buffer of each result, by position in the list given. */
  readonly slot: readonly number[];
  /** Bytes of each buffer. */
  readonly bytes: readonly number[];
  /** Arena of each buffer. */
  readonly arenas: readonly number[];
}

/** Rounds bytes up to a class: 4 classes for each power of two, at least 256 bytes. */
export function sizeClass(bytes: number): number {
  const step = Math.max(256, 2 ** (Math.floor(Math.log2(Math.max(bytes, 1))) - 2));
  return Math.ceil(Math.max(bytes, 1) / step) * step;
}

/**
 * First-fit over size classes.
 *
 * @example
 * ```ts
 * import { planMemory } from "@tinyllm/tinyllm/tensor";
 * import { assertEquals } from "@std/assert";
 *
 * // A chain a -> b -> c: c takes the place of a.
 * const plan = planMemory([{ bytes: 256, first: 0, last: 1 }, { bytes: 256, first: 1, last: 2 }, { bytes: 256, first: 2, last: 3 }]);
 * assertEquals(plan.slot, [0, 1, 0]);
 * ```
 */
export function planMemory(lifetimes: readonly Lifetime[]): MemoryPlan {
  const bytes: number[] = [], arenas: number[] = [], freeAt: number[] = [], slot: number[] = [];
  const order = lifetimes.map((_, i) => i).sort((a, b) => lifetimes[a]!.first - lifetimes[b]!.first);
  for (const i of order) {
    const { first, last, arena = 0 } = lifetimes[i]!, size = sizeClass(lifetimes[i]!.bytes);
    let chosen = bytes.findIndex((capacity, candidate) =>
      capacity === size && arenas[candidate] === arena && freeAt[candidate]! < first
    );
    if (chosen < 0) {
      chosen = bytes.push(size) - 1;
      arenas.push(arena);
    }
    slot[i] = chosen;
    freeAt[chosen] = last;
  }
  return { slot, bytes, arenas };
}
