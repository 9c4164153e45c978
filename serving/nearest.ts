/**
 * What a misspelt word was meant to be.
 *
 * @module
 */

/**
 * The candidate nearest to `word` in single-character insertions, deletions and substitutions (Levenshtein's distance);
 * undefined where none is near.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { nearest } from "./nearest.ts";
 *
 * assertEquals(nearest("--tmep", ["--temp", "--top-k"]), "--temp");
 * assertEquals(nearest("--colour", ["--temp", "--top-k"]), undefined);
 * ```
 */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const letters = word.replace(/^-+/, "").length;
  let best: string | undefined;
  let least = Math.max(1, Math.floor(letters / 3)) + 1;
  for (const candidate of candidates) {
    const distance = candidate.startsWith(word) && letters > 2 ? 0.5 : editDistance(word, candidate);
    if (distance < least) [best, least] = [candidate, distance];
  }
  return best;
}

/** Counts a swap of neighbours as one, since that is how fingers err (Damerau's extension). */
function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = last[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(last[j]! + 1, row[j - 1]! + 1, substitution);
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (swapped) row[j] = Math.min(row[j]!, beforeLast[j - 2]! + 1);
    }
    [beforeLast, last] = [last, row];
  }
  return last[b.length]!;
}
