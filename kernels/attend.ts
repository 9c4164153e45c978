/**
 * Attention as models ask for it: `attention.ts` in one dispatch, or `decode_attention.ts` in two where a batch has so few
 * queries, and a context may be so long, that a GPU would idle. Both give the same bits, so the choice is the device's alone. In
 * the `fast` precision GPUs attend to prompts by `flash_attention.ts`, or in two dispatches by `flash_merge.ts`, to a token each of
 * many sequences by `batch_attention.ts`, and to both in a step by `mixed_attention.ts`, which add in another order, as the merge
 * of many tiles may.
 *
 * @module
 */
import { maxOf } from "../tensor/dim.ts";
import type { Kernel } from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import { type AttentionBatch, pagedAttentionKernel, type PagedAttentionParams } from "./attention.ts";
import { TILE } from "./attention_layout.ts";
import { batchAttention } from "./batch_attention.ts";
import { flashAttentionKernel, flashForm } from "./flash_attention.ts";
import { flashInParts } from "./flash_merge.ts";
import { decodeAttention, isSplit, mergePartials } from "./decode_attention.ts";
import { mixedAttention } from "./mixed_attention.ts";
import { ropeAttentionPartials } from "./rope_attention.ts";

/** Rows that cannot fill a GPU, one workgroup a row and key head. */
const FEW_ROWS = 16;

/** Paged attention that chooses its form when it is compiled. */
export const attendKernel: Kernel<PagedAttentionParams> = {
  ...pagedAttentionKernel,
  expand(inputs, params, context) {
    const [q, keys, values, queryStart, contextLens, blockTables] = inputs;
    const rows = maxOf(q!.shape[0]!), sequences = maxOf(contextLens!.shape[0]!);
    const capacity = (blockTables!.shape[1] as number) * params.blockSize;
    if (context.caps.cpu) return undefined;
    const mixed = params.fast && mixedAttention(inputs, params, context.caps);
    if (mixed) return mixed;
    if (rows > Math.max(FEW_ROWS, 2 * sequences)) {
      if (!params.fast || !flashForm({ inputs }, context.caps)) return undefined;
      return flashInParts(inputs, params, context.caps) ?? kernelNode(flashAttentionKernel, inputs, params);
    }
    if (capacity <= TILE) return undefined;
    const batch = { queryStart: queryStart!, contextLens: contextLens!, blockTables: blockTables! };
    const whole = params.fast && batchAttention(inputs, params, context);
    if (whole) return whole;
    const joint = isSplit(q!, batch, params.blockSize) && ropeAttentionPartials(inputs, params, context);
    if (joint) return mergePartials(joint, batch, params);
    return decodeAttention(q!, keys!, values!, batch, params);
  },
};

/**
 * Causal attention of any mix of prefill and decode rows over a paged cache; see `pagedAttention` for the shapes.
 *
 * @returns [T, heads * D] f32.
 */
export function attend(q: Node, keys: Node, values: Node, batch: AttentionBatch, params: PagedAttentionParams): Node {
  const { queryStart, contextLens, blockTables } = batch;
  return kernelNode(attendKernel, [q, keys, values, queryStart, contextLens, blockTables], params);
}
