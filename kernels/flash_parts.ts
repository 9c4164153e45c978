/**
 * Flash attention by tiles where queries are few and contexts may be long. A workgroup a tile would leave most of a GPU idle: 48
 * queries of 14 heads are 28 workgroups, and each would walk the whole context. So the context of a tile is cut into parts, which
 * workgroups attend to side by side (Dao et al. 2023, "Flash-Decoding"), and `flash_merge.ts` merges.
 *
 * Parts are to a tile what slices are to a workgroup (`flash_attention.ts`): they take turns at its keys, part p the turns p, p +
 * most, p + 2 most and so on. How many parts a row has and which keys are in them depends on the keys that it sees alone: within a
 * program its result depends neither on its batch nor on how its prompt is divided among steps.
 *
 * How long contexts are is known on the GPU only. Workgroups count for themselves how many parts of tiles there are, and share
 * them out: nothing is started for parts that contexts do not have, but for what is left of a full device.
 *
 * @module
 */
import { maxOf } from "../tensor/dim.ts";
import type { Caps, Kernel, KernelCall, TensorType } from "../tensor/kernel.ts";
import { pagedAttentionKernel } from "./attention.ts";
import { type PagedAttentionParams, type Sizes, sizesOf } from "./attention_layout.ts";
import { attendTo, eachRow } from "./attention_reference.ts";
import { FEW_WORKGROUPS, flashFormOf } from "./flash_attention.ts";
import type { FlashForm } from "./flash_form.ts";
import { flashPartsWgsl } from "./flash_parts_wgsl.ts";
import { indices } from "./unroll.ts";

/** How the contexts of a program are cut. */
export interface FlashParts {
  /** Parts that take turns. */
  readonly most: number;
  /** Keys of a turn. */
  readonly keys: number;
}

/** Parameters of attention by parts of tiles. */
export interface FlashPartsParams extends PagedAttentionParams {
  readonly parts: FlashParts;
  /** Whether sequences of one query are left out. */
  readonly othersOnly: boolean;
}

/** Contexts up to which tiles are walked in no more time than another dispatch is worth. */
const shortContext = 1024;

/** Most parts: what the merge reads of each row. */
const mostParts = 16;

/** Workgroups that fill a large GPU: two share a processor, and twice as many even out. */
const fullDevice = 4 * FEW_WORKGROUPS;

/** How contexts are cut in programs of these sizes, or nothing, where none is long or tiles alone keep a GPU busy. */
export function flashPartsOf(
  { rows, heads, maxBlocks }: Sizes,
  { queries, across, slices }: FlashForm,
  blockSize: number,
): FlashParts | undefined {
  const workgroups = heads * Math.ceil(maxOf(rows) / queries), longest = maxBlocks * blockSize;
  if (workgroups > FEW_WORKGROUPS || longest <= shortContext) return undefined;
  const keys = 4 * across * slices;
  return { keys, most: Math.min(mostParts, Math.floor(fullDevice / workgroups), Math.ceil(longest / keys)) };
}

/** Parts of a row that sees so many keys. */
export function partsOfRow(seen: number, { most, keys }: FlashParts): number {
  return Math.min(most, Math.ceil(seen / keys));
}

/** Positions of the keys in a part of a row that sees so many. */
function positionsOf(part: number, seen: number, { most, keys }: FlashParts): number[] {
  return indices(seen).filter((p) => Math.floor(p / keys) % most === part);
}

function infer(inputs: readonly TensorType[], params: FlashPartsParams): TensorType[] {
  const outputs = pagedAttentionKernel.infer(inputs, params),
    { rows, heads, headDim } = sizesOf({ inputs, params, outputs });
  return [
    { dtype: "f32", shape: [rows, params.parts.most * heads, headDim] },
    { dtype: "f32", shape: [rows, params.parts.most * heads, 2] },
  ];
}

function reference(call: KernelCall<FlashPartsParams>, inputs: readonly ArrayLike<number>[]): Float64Array[] {
  const { parts, othersOnly } = call.params, { rows, heads, headDim } = sizesOf(call), starts = inputs[3]!;
  const pairs = maxOf(rows) * parts.most * heads,
    values = new Float64Array(pairs * headDim),
    sums = new Float64Array(2 * pairs);
  eachRow(starts, inputs[4]!, (row, seen, b) => {
    if (othersOnly && starts[b + 1]! - starts[b]! === 1) return;
    for (let part = 0; part < partsOfRow(seen, parts); part++) {
      const positions = positionsOf(part, seen, parts);
      for (let head = 0; head < heads; head++) {
        const { mean, greatest, sum } = attendTo(call, inputs, { b, row, head }, positions);
        const at = (row * parts.most + part) * heads + head;
        values.set(mean, at * headDim);
        sums.set([greatest * Math.LOG2E, sum], 2 * at);
      }
    }
  });
  return [values, sums];
}

/**
 * Attention by parts of tiles: inputs are those of `pagedAttentionKernel`. Outputs are, for each row, part and head, the values that
 * its keys give [T, parts * heads, D], and the greatest score, as a power of 2, and the sum of weights against it [T, parts * heads,
 * 2]. Parts that a row does not have are left as they are; the reference has zeros there.
 */
export const flashPartsKernel: Kernel<FlashPartsParams> = {
  name: "flash_attention_parts",
  infer,
  wgsl: (call, caps) => flashPartsWgsl(call, flashFormOf(call, caps), caps),
  grid(call, caps: Caps, resolve) {
    const { rows, sequences, heads } = sizesOf(call), { queries } = flashFormOf(call, caps), count = resolve(rows);
    const tiles = count === 0 ? 0 : Math.floor(count / queries) + resolve(sequences);
    return [heads, Math.min(tiles * call.params.parts.most, Math.max(1, Math.floor(fullDevice / heads))), 1];
  },
  reference,
  cost: (call, caps, resolve) => pagedAttentionKernel.cost(call, caps, resolve),
};
