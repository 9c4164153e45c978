/**
 * What all forms of the merge of split attention's tiles need: sizes, and which tiles a row sees.
 *
 * @module
 */
import type { Dim } from "../tensor/dim.ts";
import { dimWgsl, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { TILE } from "./attention_layout.ts";

/** Parameters of the merge. */
export interface MergeParams {
  /** Factor on scores. */
  readonly scale: number;
  /** Whether many tiles may be added up in the order that is fastest where dispatches are joined. */
  readonly fast?: boolean;
  /** Whether the result is stored in codes and scales (`quantise32`). Head dimensions that are a multiple of 32 only. */
  readonly quantise?: boolean;
}

/** Tiles up to which a lane reads all of a row's at once: so few are merged by the product behind, too. */
export const fewTiles = 8;

/** Sizes of a merge. */
export function mergeSizesOf(
  { inputs }: KernelCall<MergeParams>,
): { rows: Dim; sequences: Dim; tiles: number; heads: number; headDim: number } {
  const [rows, tiles, heads, headDim] = inputs[0]!.shape as [Dim, number, number, number];
  return { rows, tiles, heads, headDim, sequences: inputs[3]!.shape[0]! };
}

/** WGSL that finds the `sequence` of `row` and how many keys are `seen`; in a batch of single queries that is one look. */
export function sequenceWgsl(sequences: Dim): string {
  return `
  let sequences = ${dimWgsl(sequences)};
  var sequence = min(row, max(sequences, 1u) - 1u);
  if (u32(query_start(sequence)) > row || u32(query_start(sequence + 1u)) <= row) {
    sequence = 0u;
    var beyond = sequences + 1u;
    while (beyond - sequence > 1u) {
      let middle = (sequence + beyond) >> 1u;
      if (u32(query_start(middle)) <= row) { sequence = middle; } else { beyond = middle; }
    }
  }
  var seen = 0u;
  if (sequence < sequences) {
    seen = u32(max(context_lens(sequence) - query_start(sequence + 1u) + i32(row) + 1, 0));
  }`;
}

/** {@linkcode sequenceWgsl}, and how many tiles of keys `row` sees. */
export function seenWgsl(sequences: Dim): string {
  return `${sequenceWgsl(sequences)}
  let tiles = (seen + ${TILE - 1}u) >> 7u;`;
}

/** What {@linkcode seenWgsl} declares where `row` is the only one of sequence `row`: with nothing to search, all loads are under way at once. */
export const ownRowWgsl = `let behind = context_lens(row) - query_start(row + 1u) + i32(row) + 1;
  let is_own = query_start(row) <= i32(row) && query_start(row + 1u) > i32(row);
  let seen = select(0u, u32(max(behind, 0)), is_own);
  let tiles = (seen + ${TILE - 1}u) >> 7u;`;

/** Inputs and outputs of a merge that reads so many features of a tile's sums at a time. */
export function mergePorts(quantise: boolean, width: 1 | 4): Pick<KernelSource, "inputs" | "outputs"> {
  return {
    inputs: [
      ...[{ name: "sums", width }, { name: "stats", width: 2 }] as const,
      ...[{ name: "query_start" }, { name: "context_lens" }],
    ],
    outputs: quantise ? [{ name: "codes", width: 2 }, { name: "scales", width: 2 }] : [{ name: "attended" }],
  };
}
