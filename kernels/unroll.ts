/**
 * Text of unrolled WGSL: naga bounds every loop with a counter of its own, so short inner loops are written out.
 *
 * @module
 */

/** 0 to count - 1. */
export function indices(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

/** The texts of 0 to count - 1, one after the other. */
export function repeat(count: number, text: (i: number) => string): string {
  return indices(count).map(text).join("");
}
