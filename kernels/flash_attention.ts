/**
 * Flash attention by tiles (Dao et al. 2022), for prompts on a GPU in the `fast` precision: `attention.ts` in another order of
 * summation, at two to three times its speed. `flash_reference.ts` tells the algorithm in plain TypeScript.
 *
 * A workgroup takes 64 queries of one head, or 32 where there would be too few workgroups; its slices take turns at tiles of 32
 * keys and add up at the end. An invocation has 4 to 8 queries: it scores four keys for each, and sums a part of the features.
 * Keys and values lie in workgroup memory in half precision, as in the pool, one after the other in the same place. Scores are in
 * f32: those of Qwen2 reach hundreds, where half precision has steps of a quarter. Weights are at most 1 and values small: a tile
 * of them is added up in half precision, which errs by 6e-4 of the result (root mean square), a tenth of what storing the result
 * in 8 bits costs, and tiles are added up in f32. Where a product follows, the result is stored in 8-bit codes (`quantise.ts`).
 *
 * Where queries are few and contexts long, contexts are cut in parts (`flash_parts.ts`).
 *
 * A row's tiles begin at position 0 of its own context, and a key that it does not see adds exactly 0: within a program its
 * result does not depend on its batch. Against `attention.ts` it differs as any two orders of summation do, and by that rounding.
 *
 * On an H100, 512 queries: 39 us at a context of 512 and 268 at 4,096 (14 heads of 64; 101 and 895 in `attention.ts`), 91 and
 * 1,136 (28 heads of 128; 271 and 2,821), codes included. Workgroup memory decides: a processor holds 48 KiB, whatever its size.
 *
 * @module
 */
import { maxOf } from "../tensor/dim.ts";
import type { Caps, Kernel, KernelCall, RewriteContext } from "../tensor/kernel.ts";
import { type Node, output, outputTypes, rewrittenKernel } from "../tensor/node.ts";
import { pagedAttentionKernel, type PagedAttentionParams } from "./attention.ts";
import { sizesOf } from "./attention_layout.ts";
import { flashWgsl } from "./flash_attention_wgsl.ts";
import { flashBytes, type FlashForm, type FlashParams, keepRows, singleRows } from "./flash_form.ts";
import { quantise32Kernel } from "./quantise.ts";

/** Workgroups that are no more than an H100 has processors. */
export const FEW_WORKGROUPS = 132;

/**
 * Tiles beyond those that rows fill, where sequences of one query have none: each other sequence may begin one. A workgroup takes
 * several where there are more.
 */
const SPARE_TILES = 16;

/**
 * The form for a call, or none: heads that are no multiple of 32 or wider than 128, pools in f32, and devices without subgroups
 * or half precision keep to `attention.ts`.
 */
export function flashForm(
  { inputs }: Pick<KernelCall<PagedAttentionParams>, "inputs">,
  caps: Caps,
): FlashForm | undefined {
  const headDim = inputs[0]!.shape[2] as number, half = inputs[1]!.dtype === "f16" && inputs[2]!.dtype === "f16";
  if (!caps.subgroups || caps.subgroupSize < 8 || !caps.f16 || !half) return undefined;
  if (headDim % 32 !== 0 || headDim > 128) return undefined;
  const wide = headDim > 64, form = { queries: 64, across: 8, threadQueries: wide ? 4 : 8, narrow: wide } as const;
  const heads = inputs[0]!.shape[1] as number, short = { ...form, queries: 32, narrow: true, slices: 4 };
  const isShort = !wide && Math.ceil(maxOf(inputs[0]!.shape[0]!) / form.queries) * heads <= FEW_WORKGROUPS;
  if (isShort && flashBytes(short, headDim) <= caps.workgroupMemory) return short;
  for (const slices of wide ? [2, 1] : [4, 2, 1]) {
    if (flashBytes({ ...form, slices }, headDim) <= caps.workgroupMemory) return { ...form, slices };
  }
  return undefined;
}

/** The form for a call that has one. */
export function flashFormOf(call: KernelCall<PagedAttentionParams>, caps: Caps): FlashForm {
  const form = flashForm(call, caps);
  if (!form) throw new Error(`Cannot attend by tiles to heads of ${sizesOf(call).headDim}: use pagedAttention()`);
  return form;
}

/** All outputs of a kernel's node. */
export function outputsOf(node: Node): Node[] {
  return node.op === "kernel" ? outputTypes(node).map((_, i) => output(node, i)) : [node];
}

/** A kernel that stores its results in codes, and so those of single queries, which come from input `given` on where they come. */
export function inCodes<P extends { readonly quantise?: boolean }>(
  kernel: Kernel<P>,
  given: number,
  inputs: readonly Node[],
  params: P,
  context: RewriteContext,
): Node | undefined {
  if (params.quantise) return undefined;
  const quantised = { ...params, quantise: true }, singles = inputs[given];
  if (singles?.op !== "kernel") return rewrittenKernel(kernel, inputs, quantised);
  const codes = singles.kernel.withQuantise32?.(singles.src, singles.params, context);
  return codes && rewrittenKernel(kernel, [...inputs.slice(0, given), ...outputsOf(codes)], quantised);
}

/**
 * Attention by tiles as a kernel: inputs and output are those of `pagedAttentionKernel`, or the output in codes and scales. With
 * `singlesGiven`, results of the same types follow the inputs, and become the outputs in place; then parts of long contexts
 * (`single_parts.ts`), which it merges.
 */
export const flashAttentionKernel: Kernel<FlashParams> = {
  ...pagedAttentionKernel,
  name: "flash_attention",
  infer(inputs, params) {
    const types = pagedAttentionKernel.infer(inputs, params);
    return params.quantise ? quantise32Kernel.infer(types, null) : types;
  },
  wgsl: (call, caps) => flashWgsl(call, flashFormOf(call, caps), caps),
  grid(call, caps, resolve) {
    const { queries } = flashFormOf(call, caps), { rows, sequences, heads } = sizesOf(call), count = resolve(rows);
    const most = resolve(sequences), others = call.params.singlesGiven ? Math.min(most, SPARE_TILES) : most;
    const tiles = count === 0 ? 0 : Math.floor(count / queries) + others + 1, y = Math.min(tiles, 65535);
    return [heads, y, y === 0 ? 0 : Math.ceil(tiles / y)];
  },
  reference(call, inputs) {
    const { quantise, singlesGiven } = call.params, attended = pagedAttentionKernel.reference(call, inputs);
    const results = quantise ? quantise32Kernel.reference({ ...call, params: null }, attended) : attended;
    const rows = singlesGiven ? singleRows(inputs[3]!, inputs[4]!.length) : [];
    return keepRows(results, inputs.slice(6), rows, maxOf(call.inputs[0]!.shape[0]!));
  },
  updates: ({ params: { singlesGiven, quantise } }) => !singlesGiven ? [] : quantise ? [6, 7] : [6],
  withQuantise32: (inputs, params, context) => inCodes(flashAttentionKernel, 6, inputs, params, context),
};
