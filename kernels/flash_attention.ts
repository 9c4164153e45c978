/**
 * Flash attention by tiles (Dao et al. 2022), for prompts on a GPU in the `fast` precision: `attention.ts` in another order of
 * summation, at two to three times its speed. `flash_reference.ts` tells the algorithm in plain TypeScript.
 *
 * A workgroup takes 64 queries of one head; its slices take turns at tiles of 32 keys and add up at the end. An invocation has
 * 4 to 8 queries: it scores four keys for each, and sums a part of the features. Keys and values lie in workgroup memory in half
 * precision, as in the pool, one after the other in the same place. Products and sums are in f32: scores of Qwen2 reach hundreds,
 * where half precision has steps of a quarter.
 *
 * A row's tiles begin at position 0 of its own context, and a key that it does not see adds exactly 0: within a program its
 * result does not depend on its batch. Against `attention.ts` it differs as any two orders of summation do.
 *
 * On an H100, 512 queries: 46 us at a context of 512 and 287 at 4,096 (14 heads of 64; 101 and 895 in `attention.ts`), 95 and
 * 1,214 (28 heads of 128; 271 and 2,821). Workgroup memory decides: a processor holds 48 KiB, whatever its size.
 *
 * @module
 */
import type { Caps, Kernel, KernelCall } from "../tensor/kernel.ts";
import { pagedAttentionKernel, type PagedAttentionParams } from "./attention.ts";
import { sizesOf } from "./attention_layout.ts";
import { flashBytes, type FlashForm, flashWgsl } from "./flash_attention_wgsl.ts";

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
  for (const slices of wide ? [2, 1] : [4, 2, 1]) {
    if (flashBytes({ ...form, slices }, headDim) <= caps.workgroupMemory) return { ...form, slices };
  }
  return undefined;
}

function formOf(call: KernelCall<PagedAttentionParams>, caps: Caps): FlashForm {
  const form = flashForm(call, caps);
  if (!form) throw new Error(`Cannot attend by tiles to heads of ${sizesOf(call).headDim}: use pagedAttention()`);
  return form;
}

/** Attention by tiles as a kernel: inputs and output are those of `pagedAttentionKernel`. */
export const flashAttentionKernel: Kernel<PagedAttentionParams> = {
  ...pagedAttentionKernel,
  name: "flash_attention",
  wgsl: (call, caps) => flashWgsl(call, formOf(call, caps)),
  grid(call, caps, resolve) {
    const { queries } = formOf(call, caps), { rows, sequences, heads } = sizesOf(call), count = resolve(rows);
    const tiles = count === 0 ? 0 : Math.floor(count / queries) + resolve(sequences) + 1, y = Math.min(tiles, 65535);
    return [heads, y, y === 0 ? 0 : Math.ceil(tiles / y)];
  },
};
