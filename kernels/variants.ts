/**
 * Which form of a matrix product runs: one table by device and number of rows of x, read top to bottom, first match wins. The
 * figures come from timing every form on a device of each class: `deno task bench:variants` does so anew and prints the rows
 * that the table would get. Within a device class all forms
 * add the products of one output in the same order, so that a token's result does not depend on its batch.
 *
 * @module
 */
import type { Caps } from "../tensor/kernel.ts";

/** One form of the product x [tokens, columns] times weight [rows, columns]. */
export interface ProductVariant {
  /**
   * `laneRows`: an invocation computes whole outputs, its neighbours other rows (CPU devices: a load costs the same wherever
   * it points). `subgroupRows`: the lanes of a subgroup share a row's columns, then add up (GPUs: adjacent lanes read
   * adjacent weights).
   */
  readonly kind: "laneRows" | "subgroupRows";
  /** Weight rows that an invocation reads side by side: each load of x serves all of them. Even. */
  readonly rows: number;
  /** Tokens that an invocation serves with one reading of the weights. */
  readonly tokens: number;
  /** Invocations of a workgroup. */
  readonly workgroup: number;
}

/** A row of the table: a form, and what it is for. */
export interface VariantRow extends ProductVariant {
  /** Whether the row is one for CPU devices. */
  readonly cpu: boolean;
  /** Most tokens. */
  readonly maxTokens: number;
  /** Least rows x columns of the weight. */
  readonly minWeights: number;
}

// llvmpipe, 2 cores, 4-bit weights: matrix-vector reaches 1.75 GMAC/s whatever the rows (2 to 8) and workgroup (8 to 32):
// loading codes, lane by lane, is the limit. One reading for several tokens gives 2 times that (4 rows x 4 tokens), 2.5
// (4 x 8), 4.6 (8 x 8). The last takes 0.4 s to compile, which small weights never earn back.
/** The table. */
export const productVariants: readonly VariantRow[] = [
  { cpu: true, maxTokens: 1, minWeights: 0, kind: "laneRows", rows: 4, tokens: 1, workgroup: 8 },
  { cpu: true, maxTokens: 8, minWeights: 0, kind: "laneRows", rows: 4, tokens: 4, workgroup: 8 },
  { cpu: true, maxTokens: Infinity, minWeights: 1 << 17, kind: "laneRows", rows: 8, tokens: 8, workgroup: 8 },
  { cpu: true, maxTokens: Infinity, minWeights: 0, kind: "laneRows", rows: 4, tokens: 4, workgroup: 8 },
  { cpu: false, maxTokens: 1, minWeights: 0, kind: "subgroupRows", rows: 2, tokens: 1, workgroup: 128 },
  { cpu: false, maxTokens: 4, minWeights: 0, kind: "subgroupRows", rows: 2, tokens: 4, workgroup: 128 },
  { cpu: false, maxTokens: Infinity, minWeights: 0, kind: "subgroupRows", rows: 2, tokens: 8, workgroup: 128 },
];

/**
 * The row for a device, the greatest number of tokens that a run may bring, and the weight's rows x columns.
 */
export function productVariant(caps: Caps, maxTokens: number, weights: number): VariantRow {
  return productVariants.find((row) =>
    row.cpu === caps.cpu && maxTokens <= row.maxTokens && weights >= row.minWeights
  )!;
}
