/**
 * How flash attention by tiles deals its work to a workgroup.
 *
 * @module
 */
import type { PagedAttentionParams, Sizes } from "./attention_layout.ts";

/** Parameters of attention by tiles. */
export interface FlashParams extends PagedAttentionParams {
  /** Whether the result is stored in 8-bit codes and scales (`quantise32`). */
  readonly quantise?: boolean;
  /** Whether sequences of one query are attended to already: their results are inputs 6 and on, which become the outputs in place. */
  readonly singlesGiven?: boolean;
}

/** Rows of sequences that have one query, of `count` sequences. */
export function singleRows(queryStart: ArrayLike<number>, count: number): number[] {
  return Array.from({ length: count }, (_, b) => b).flatMap((b) =>
    queryStart[b + 1]! - queryStart[b]! === 1 ? [queryStart[b]!] : []
  );
}

/** Results with some of their `rows` as they are given. */
export function keepRows(
  results: Float64Array[],
  given: readonly ArrayLike<number>[],
  kept: readonly number[],
  rows: number,
): Float64Array[] {
  results.forEach((result, i) => {
    const columns = result.length / rows;
    for (const row of kept) {
      for (let at = row * columns; at < (row + 1) * columns; at++) result[at] = given[i]![at]!;
    }
  });
  return results;
}

/** How a workgroup's work is laid out. */
export interface FlashForm {
  /** Queries of a workgroup. */
  readonly queries: number;
  /** Queries of an invocation: a multiple of four. */
  readonly threadQueries: number;
  /** Invocations that share a query, neighbours in a subgroup: each scores four keys of a tile. */
  readonly across: number;
  /** Parts of a workgroup that take turns at the tiles. */
  readonly slices: number;
  /** Whether queries are kept in half precision, as keys are: where heads are wide, workgroup memory is short. */
  readonly narrow: boolean;
}

/** A form with what follows from it. */
export interface Flash extends FlashForm {
  readonly sizes: Sizes;
  /** Vectors of four features of a head, and of an invocation. */
  readonly chunks: number;
  readonly ownChunks: number;
  /** Invocations along queries, and of a slice. */
  readonly down: number;
  readonly threads: number;
  /** Keys of a tile. */
  readonly keys: number;
  /** Vectors of each pool that an invocation stages. */
  readonly staged: number;
}

/** What follows from a form. */
export function flashOf(form: FlashForm, sizes: Sizes): Flash {
  const chunks = sizes.headDim / 4, down = form.queries / form.threadQueries, threads = down * form.across;
  const keys = 4 * form.across;
  return {
    ...form,
    sizes,
    chunks,
    ownChunks: chunks / form.across,
    down,
    threads,
    keys,
    staged: keys * chunks / threads,
  };
}

/** Bytes of workgroup memory. */
export function flashBytes(form: FlashForm, headDim: number): number {
  const { chunks, queries, slices, keys, threads } = flashOf(form, { headDim } as Sizes);
  const queryBytes = chunks * (queries + 1) * (form.narrow ? 8 : 16), tileBytes = 8 * chunks * (keys + 1) + 8 * keys;
  return queryBytes + slices * tileBytes + (slices - 1) * threads * 16;
}
