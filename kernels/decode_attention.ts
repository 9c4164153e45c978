/**
 * Causal attention over a paged cache with the context of a row dealt to many workgroups, for batches in which each
 * sequence has few queries: decoding leaves a GPU idle unless one row's keys are spread over it ("flash decoding").
 *
 * Two dispatches. The first takes tiles of 128 keys: one workgroup scores a tile of a row against some query heads of a
 * key head, and writes, for each head h and tile i,
 *
 *     m[i] = max of the scores,   l[i] = sum of exp(score - m[i]),   a[i] = sum of exp(score - m[i]) value
 *
 * The second merges the tiles in order: attended = sum a[i] exp(m[i] - m) / sum l[i] exp(m[i] - m), m the greatest of all.
 *
 * **Results are those of `attention.ts`, bit for bit**, for that file's order of summation is kept: key after key in a
 * tile, tile after tile. How tiles are dealt to workgroups, and how many workgroups a run launches, changes no result. In fast precision
 * programs for joining add many tiles up in another order (`attention_merge_many_wgsl.ts`).
 *
 * @module
 */
import { type Dim, formatShape, maxOf } from "../tensor/dim.ts";
import type { Caps, Kernel, KernelCall, Resolver, TensorType } from "../tensor/kernel.ts";
import { kernelNode, type Node, output } from "../tensor/node.ts";
import { type AttentionBatch, pagedAttention, pagedAttentionKernel } from "./attention.ts";
import { type PagedAttentionParams, sizesOf, TILE } from "./attention_layout.ts";
import { type MergeParams, mergeSizesOf } from "./attention_merge_layout.ts";
import { mergeWgsl } from "./attention_merge_wgsl.ts";
import { partialsWgsl } from "./decode_attention_wgsl.ts";
import { type DecodeAttentionParams, decodeLayoutOf } from "./decode_layout.ts";
import { activationBlock, quantiseActivations } from "./quantise.ts";
import { rowGrid } from "./row_grid.ts";

export type { MergeParams } from "./attention_merge_layout.ts";
export type { DecodeAttentionParams } from "./decode_layout.ts";

/** Workgroups that fill a large GPU; a run with more rows than that gives each workgroup several tiles. */
const enoughWorkgroups = 1024;

/** Most bytes of partial results; beyond, {@linkcode decodeAttention} is {@linkcode pagedAttention} query by query. */
const mostScratch = 1 << 29;

/** For each row its sequence and how many keys it sees: 0 for rows behind the last sequence. */
function rowsOf(
  rows: number,
  queryStart: ArrayLike<number>,
  contextLens: ArrayLike<number>,
): { sequence: number; seen: number }[] {
  return Array.from({ length: rows }, (_, row) => {
    for (let b = 0; b < contextLens.length; b++) {
      if (queryStart[b]! <= row && row < queryStart[b + 1]!) {
        return { sequence: b, seen: Math.max(0, contextLens[b]! - (queryStart[b + 1]! - row) + 1) };
      }
    }
    return { sequence: -1, seen: 0 };
  });
}

/** Maximum, sum and weighted values of each tile, in float64; tiles that a row does not see are zeros. */
function partialsReference(
  call: KernelCall<DecodeAttentionParams>,
  inputs: readonly ArrayLike<number>[],
): Float64Array[] {
  const [q, keys, values, queryStart, contextLens, blockTables] = inputs;
  const { rows, heads, kvHeads, headDim, maxBlocks } = sizesOf(call), { blockSize, scale } = call.params;
  const tiles = call.outputs[0]!.shape[1] as number, count = rows as number;
  const sums = new Float64Array(count * tiles * heads * headDim), stats = new Float64Array(count * tiles * heads * 2);
  rowsOf(count, queryStart!, contextLens!).forEach(({ sequence, seen }, row) => {
    for (let head = 0; head < heads; head++) {
      const kvHead = Math.floor(head / (heads / kvHeads)), query = (row * heads + head) * headDim;
      for (let t0 = 0; t0 < seen; t0 += TILE) {
        const at = (row * tiles + t0 / TILE) * heads + head;
        const tile = Array.from({ length: Math.min(TILE, seen - t0) }, (_, j) => {
          const p = t0 + j, block = blockTables![sequence * maxBlocks + Math.floor(p / blockSize)]!;
          const start = ((block * blockSize + p % blockSize) * kvHeads + kvHead) * headDim;
          let score = 0;
          for (let d = 0; d < headDim; d++) score += q![query + d]! * keys![start + d]!;
          return { start, score };
        });
        const greatest = tile.reduce((most, { score }) => Math.max(most, score), -Infinity);
        stats[2 * at] = greatest;
        for (const { start, score } of tile) {
          const weight = Math.exp((score - greatest) * scale);
          stats[2 * at + 1]! += weight;
          for (let d = 0; d < headDim; d++) sums[at * headDim + d]! += weight * values![start + d]!;
        }
      }
    }
  });
  return [sums, stats];
}

function partialsInfer(inputs: readonly TensorType[], params: DecodeAttentionParams): TensorType[] {
  pagedAttentionKernel.infer(inputs, { blockSize: params.blockSize, scale: params.scale });
  const [rows, heads, headDim] = inputs[0]!.shape as [Dim, number, number];
  if (headDim % 4 !== 0) {
    throw new Error(`Cannot split attention: head dimension ${headDim} is no multiple of 4; use pagedAttention`);
  }
  const tiles = Math.max(1, Math.ceil((inputs[5]!.shape[1] as number) * params.blockSize / TILE));
  return [
    { dtype: "f32", shape: [rows, tiles, heads, headDim] },
    { dtype: "f32", shape: [rows, tiles, heads, 2] },
  ];
}

/** One workgroup a tile would leave most of them without work where tables could hold far more than they do. */
export function partialsGrid(
  call: KernelCall<DecodeAttentionParams>,
  caps: Caps,
  resolve: Resolver,
): readonly [number, number, number] {
  const { shares } = decodeLayoutOf(call, caps), rows = resolve(call.inputs[0]!.shape[0]!);
  const tiles = call.outputs[0]!.shape[1] as number;
  const perRow = Math.max(1, Math.min(tiles, Math.ceil(enoughWorkgroups / Math.max(1, rows * shares))));
  return rowGrid(perRow * shares, rows);
}

/**
 * First dispatch: the inputs of `pagedAttentionKernel` to weighted values f32 [T, tiles, heads, D], and maxima (of scores
 * before scaling) and sums f32 [T, tiles, heads, 2]. Tiles beyond a row's context are left as they are.
 */
export const attentionPartialsKernel: Kernel<DecodeAttentionParams> = {
  name: "attention_partials",
  infer: partialsInfer,
  wgsl: (call, caps) => partialsWgsl(call, caps),
  grid: partialsGrid,
  reference: partialsReference,
  cost: (call, caps, resolve) =>
    pagedAttentionKernel.cost({ ...call, params: call.params as PagedAttentionParams }, caps, resolve),
};

function mergeReference(call: KernelCall<MergeParams>, inputs: readonly ArrayLike<number>[]): Float64Array[] {
  const [sums, stats, queryStart, contextLens] = inputs, { rows, tiles, heads, headDim } = mergeSizesOf(call);
  const attended = new Float64Array((rows as number) * heads * headDim);
  rowsOf(rows as number, queryStart!, contextLens!).forEach(({ seen }, row) => {
    for (let head = 0; head < heads; head++) {
      const places = Array.from({ length: Math.ceil(seen / TILE) }, (_, tile) => (row * tiles + tile) * heads + head);
      const greatest = places.reduce((most, at) => Math.max(most, stats![2 * at]!), -Infinity);
      const factors = places.map((at) => Math.exp((stats![2 * at]! - greatest) * call.params.scale));
      const total = places.reduce((sum, at, i) => sum + stats![2 * at + 1]! * factors[i]!, 0);
      places.forEach((at, i) => {
        for (let d = 0; d < headDim; d++) {
          attended[(row * heads + head) * headDim + d]! += sums![at * headDim + d]! * factors[i]! / total;
        }
      });
    }
  });
  if (!call.params.quantise) return [attended];
  const { codes, scales } = quantiseActivations(attended);
  return [Float64Array.from(codes), scales];
}

/**
 * Second dispatch: weighted values, maxima and sums of `attentionPartialsKernel`, queryStart and contextLens to f32
 * [T, heads * D], or to its codes and scales.
 */
export const attentionMergeKernel: Kernel<MergeParams> = {
  name: "attention_merge",
  infer([sums, stats], { quantise = false }) {
    if (sums?.shape.length !== 4 || stats?.shape.length !== 4 || stats.shape[3] !== 2) {
      throw new Error(`Cannot merge ${sums && formatShape(sums.shape)}: weighted values are [T, tiles, heads, D]`);
    }
    const [rows, , heads, headDim] = sums.shape as [Dim, number, number, number], columns = heads * headDim;
    if (!quantise) return [{ dtype: "f32", shape: [rows, columns] }];
    if (headDim % activationBlock !== 0) {
      throw new Error(`Cannot merge into codes: head dimension ${headDim} is no multiple of ${activationBlock}`);
    }
    return [
      { dtype: "u32", shape: [rows, columns / 4] },
      { dtype: "f32", shape: [rows, columns / activationBlock, 2] },
    ];
  },
  wgsl: mergeWgsl,
  grid: (call, _caps, resolve) => {
    const { rows, heads } = mergeSizesOf(call);
    return rowGrid(heads, resolve(rows));
  },
  reference: mergeReference,
  cost(call, _caps, resolve) {
    const { rows, tiles, heads, headDim } = mergeSizesOf(call), count = resolve(rows) * heads * headDim;
    return { flops: 3 * count * tiles, bytes: 4 * count * (tiles + 1) };
  },
  slots: ["elementwise"],
  withQuantise32(inputs, params) {
    if ((inputs[0]!.shape[3] as number) % activationBlock !== 0 || params.quantise) return undefined;
    return kernelNode(attentionMergeKernel, inputs, { ...params, quantise: true });
  },
};

/** Whether partial results of such a call are small enough, and its shape one that tiles can be read by. */
export function isSplit(q: Node, { blockTables }: AttentionBatch, blockSize: number): boolean {
  const [rows, heads, headDim] = q.shape as [Dim, number, number];
  const tiles = Math.max(1, Math.ceil((blockTables.shape[1] as number) * blockSize / TILE));
  return headDim % 4 === 0 && 4 * maxOf(rows) * tiles * heads * headDim <= mostScratch;
}

/**
 * Causal attention over a paged cache, as {@linkcode pagedAttention}, fast on GPUs where each sequence has few queries: any
 * mix of rows is right, and results are equal bit for bit unless `fast`. Two dispatches. Head dimensions that are no multiple of 4, and
 * batches whose partial results would take more than half a GiB, go to {@linkcode pagedAttention}.
 *
 * @param q [T, heads, D] f32 or f16.
 * @param keys [numBlocks * blockSize, kvHeads, D] f16 or f32, the version that holds this step's keys.
 * @param values Of the same shape.
 * @returns [T, heads * D] f32.
 */
export function decodeAttention(
  q: Node,
  keys: Node,
  values: Node,
  batch: AttentionBatch,
  params: DecodeAttentionParams,
): Node {
  const { queryStart, contextLens, blockTables } = batch, { blockSize, scale } = params;
  if (!isSplit(q, batch, blockSize)) {
    return pagedAttention(q, keys, values, batch, { blockSize, scale, queries: 1 });
  }
  const partials = kernelNode(
    attentionPartialsKernel,
    [q, keys, values, queryStart, contextLens, blockTables],
    params,
  );
  return mergePartials(partials, batch, params);
}

/** Second dispatch, on what the first one made. */
export function mergePartials(
  partials: Node,
  { queryStart, contextLens }: AttentionBatch,
  { scale, fast = false }: DecodeAttentionParams,
): Node {
  return kernelNode(attentionMergeKernel, [partials, output(partials, 1), queryStart, contextLens], { scale, fast });
}
