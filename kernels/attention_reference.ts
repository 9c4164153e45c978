/**
 * The plain definition of paged attention, row after row and head after head: what kernels' references are made of.
 *
 * @module
 */
import type { KernelCall } from "../tensor/kernel.ts";
import { type PagedAttentionParams, sizesOf } from "./attention_layout.ts";

/** What a head of a row gives over some of its keys. */
export interface Attended {
  /** The greatest score, and the sum of exp(score - greatest). */
  readonly greatest: number;
  readonly sum: number;
  /** The weighted mean of the values. */
  readonly mean: Float64Array;
}

/** Softmax over keys at some positions of sequence `b`, then the weighted mean of their values, in float64. */
export function attendTo(
  call: KernelCall<PagedAttentionParams>,
  [q, keys, values, , , blockTables]: readonly ArrayLike<number>[],
  { b, row, head }: { readonly b: number; readonly row: number; readonly head: number },
  positions: readonly number[],
): Attended {
  const { heads, kvHeads, headDim, maxBlocks } = sizesOf(call), { blockSize, scale } = call.params;
  const kvHead = Math.floor(head / (heads / kvHeads)), at = (row * heads + head) * headDim;
  const places = positions.map((p) => {
    const slot = blockTables![b * maxBlocks + Math.floor(p / blockSize)]! * blockSize + p % blockSize;
    return (slot * kvHeads + kvHead) * headDim;
  });
  const scores = places.map((key) => {
    let score = 0;
    for (let d = 0; d < headDim; d++) score += q![at + d]! * keys![key + d]!;
    return score * scale;
  });
  const greatest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = scores.map((score) => Math.exp(score - greatest));
  const sum = weights.reduce((a, b) => a + b, 0), mean = new Float64Array(headDim);
  weights.forEach((weight, i) => {
    for (let d = 0; d < headDim; d++) mean[d]! += weight / sum * values![places[i]! + d]!;
  });
  return { greatest, sum, mean };
}

/** Calls back for each row of each sequence, with how many keys it sees. */
export function eachRow(
  queryStart: ArrayLike<number>,
  contextLens: ArrayLike<number>,
  take: (row: number, seen: number, b: number) => void,
): void {
  for (let b = 0; b < contextLens.length; b++) {
    const end = queryStart[b + 1]!;
    for (let row = queryStart[b]!; row < end; row++) take(row, Math.max(0, contextLens[b]! - (end - row) + 1), b);
  }
}
