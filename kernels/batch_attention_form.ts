/**
 * How attention of single queries (`batch_attention.ts`, `mixed_attention.ts`) lays out the work of a workgroup.
 *
 * @module
 */
import type { Caps, TensorType } from "../tensor/kernel.ts";

/** Sizes of a call. */
export interface BatchShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Blocks of a table. */
  readonly maxBlocks: number;
  /** Tokens of a block. */
  readonly blockSize: number;
}

/** How a workgroup's work is laid out. */
export interface BatchAttentionForm {
  /** Invocations of a workgroup. */
  readonly lanes: number;
  /** Keys of a tile that an invocation scores. */
  readonly keysPerLane: number;
  /** Loads of 16 bytes of a key that are on their way together. Divides those of a head. */
  readonly unitsAhead: number;
  /** Values that are. Divides those of a tile that an invocation adds up. */
  readonly valuesAhead: number;
}

/** A form with what follows from it and the call. */
export interface Batch extends BatchAttentionForm, BatchShape {
  /** Query heads of the key head. */
  readonly lines: number;
  /** Keys of a tile. */
  readonly tile: number;
  /** Loads of 16 bytes, eight features, of a key or value: as many neighbouring lanes share a value. */
  readonly units: number;
  /** Invocations that take turns at the values of a tile. */
  readonly slices: number;
  readonly subgroups: number;
  /** Slices whose sums are left after those of a subgroup have met. */
  readonly leftSlices: number;
  /** Vectors of four weights of a key. */
  readonly quads: number;
  /** Vectors of workgroup memory that weights take, and later a head's sums of the slices that are left. */
  readonly weights: number;
}

/** What follows from a form. */
export function batchOf(form: BatchAttentionForm, shape: BatchShape, caps: Caps): Batch {
  const { lanes, keysPerLane } = form, { heads, kvHeads, headDim } = shape;
  const lines = heads / kvHeads, units = headDim / 8, slices = lanes / units;
  const tile = lanes * keysPerLane,
    quads = Math.ceil(lines / 4),
    leftSlices = lanes / Math.max(units, caps.subgroupSize);
  return {
    ...form,
    ...shape,
    lines,
    units,
    slices,
    tile,
    subgroups: lanes / caps.subgroupSize,
    leftSlices,
    quads,
    weights: Math.max(quads * tile, 2 * leftSlices * units),
  };
}

/** Bytes of workgroup memory. */
function bytesOf({ lines, headDim, tile, weights, subgroups, units }: Batch): number {
  return lines * headDim * 4 + weights * 16 + tile * 4 + lines * Math.ceil(subgroups / 4) * 16 + 2 * units * 16;
}

/** Most query heads of a key head: a lane has sums of eight features for each. */
const mostLines = 8;

/** Workgroups that keep a large GPU busy: with fewer, contexts are better split. */
export const leastWorkgroups = 120;

/** Workgroups up to which a large GPU runs each on a processor of its own. */
const processors = 132;

/**
 * The form for so many sequences. A workgroup that has a processor to itself is made large. Where a processor holds several, small ones
 * wait for memory independently of each other: a layer of 256 sequences of 512 positions takes 10 us less with 64 invocations each
 * than with 128, in a step on an H100.
 */
export function batchFormOf(
  { headDim, kvHeads }: Pick<BatchShape, "headDim" | "kvHeads">,
  sequences: number,
): BatchAttentionForm {
  const form = { keysPerLane: headDim > 64 ? 1 : 2, valuesAhead: 4 };
  return sequences * kvHeads <= processors
    ? { ...form, lanes: 256, unitsAhead: 2 }
    : { ...form, lanes: 64, unitsAhead: 1 };
}

/** Whether a device has what the shader needs, and the form's workgroups. */
export function batchFits(
  form: BatchAttentionForm,
  shape: BatchShape,
  pools: readonly TensorType[],
  caps: Caps,
): boolean {
  const { heads, kvHeads, headDim } = shape;
  if (!caps.subgroups || caps.subgroupSize < 8 || !caps.f16 || heads / kvHeads > mostLines) return false;
  if (![32, 64, 128].includes(headDim) || pools.some(({ dtype }) => dtype !== "f16")) return false;
  return form.lanes % caps.subgroupSize === 0 && form.lanes <= caps.maxInvocations &&
    bytesOf(batchOf(form, shape, caps)) <= caps.workgroupMemory;
}
