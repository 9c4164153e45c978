/**
 * Attention of steps in which many sequences decode a token each beside prompts, on a GPU in the `fast` precision. In tiles of 64
 * queries (`flash_attention.ts`) each of those tokens would cost a whole tile, so there are dispatches of their own: the algorithm of
 * `batch_attention.ts` for sequences of one query, then tiles for all others. Rotation and the writes to the cache come before
 * both, since prompts need them.
 *
 * The second dispatch writes into the first one's results (`Kernel.updates`): had it copied them instead, 200 tokens of 14 heads
 * would be 2,800 workgroups more, of which a processor runs one at a time.
 *
 * Long contexts of single queries are attended to in parts, which the second dispatch merges (`single_parts.ts`). Where queries are few
 * the others' contexts come in parts as well, and a third dispatch writes into the first one's results and merges all parts
 * (`flash_merge.ts`).
 *
 * Which kernel attends to a row depends on its own sequence alone, as what it adds up does: within a program its result does not depend
 * on its batch.
 *
 * @module
 */
import { elementCount, formatShape, maxOf } from "../tensor/dim.ts";
import { type Caps, dimWgsl, type Kernel, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { type Node, rewrittenKernel } from "../tensor/node.ts";
import { pagedAttentionKernel } from "./attention.ts";
import { type PagedAttentionParams, sizesOf } from "./attention_layout.ts";
import {
  type Batch,
  type BatchAttentionForm,
  batchFits,
  batchFormOf,
  batchOf,
  leastWorkgroups,
} from "./batch_attention_form.ts";
import { batchWgsl } from "./batch_attention_wgsl.ts";
import { flashAttentionKernel, flashForm, outputsOf } from "./flash_attention.ts";
import { attentionPorts } from "./flash_attention_wgsl.ts";
import { flashInParts } from "./flash_merge.ts";
import { type FlashParams, singleRows } from "./flash_form.ts";
import { rowGrid } from "./row_grid.ts";
import { mostPartsOf, partPorts, partRangeWgsl, partTypes, singlePorts } from "./single_parts.ts";
import { repeat } from "./unroll.ts";

type Call = KernelCall<FlashParams>;

/** Rows of a step that is short in any form. */
const fewRows = 16;

/** Sequences whose tiles cost no more than a dispatch of their own. */
const fewSequences = 8;

function formOf(call: Pick<Call, "inputs" | "params">): BatchAttentionForm {
  const { sequences, kvHeads, headDim } = sizesOf(call as Call);
  return batchFormOf({ kvHeads, headDim }, maxOf(sequences));
}

/** WGSL that keeps what a part of a context gives, for the dispatch that merges. */
function divertText({ heads, headDim, lines, lanes }: Batch, most: number): string {
  const vectors = headDim / 4,
    sums = repeat(lines, (h) => `store_part_sums(to + ${h}u, vec2f(greatest_${h}, total_${h}));\n`);
  return `if (parts > 1u) {
    let to = (sequence * ${most}u + part) * ${heads}u + kv_head * ${lines}u;
    for (var i = lane; i < ${lines * vectors}u; i += ${lanes}u) { store_part_values(to * ${vectors}u + i, queries[i]); }
    if (lane == 0u) { ${sums} }
    return;
  }`;
}

function wgsl(call: Call, caps: Caps): KernelSource {
  const { params: { blockSize, scale, quantise = false } } = call, sizes = sizesOf(call);
  const batch = batchOf(formOf(call), { ...sizes, blockSize }, caps), { heads, kvHeads, lines, lanes } = batch;
  const vectors = batch.headDim / 4, most = mostPartsOf(sizes, blockSize);
  const source = batchWgsl(batch, {
    row: `let sequence = workgroup.z * groups.y + workgroup.y;
  if (sequence >= ${dimWgsl(sizes.sequences)}) { return; }
  let row = u32(query_start(sequence));
  let all_keys = u32(max(context_lens(sequence), 0));
  if (u32(query_start(sequence + 1u)) != row + 1u) { return; }
  let kv_head = workgroup.x % ${kvHeads}u;
  ${most > 1 ? partRangeWgsl("all_keys", most, batch.tile, kvHeads) : "let seen = all_keys;"}`,
    begin: most > 1 ? "begin" : "0u",
    queries: `for (var i = lane; i < ${lines * vectors}u; i += ${lanes}u) {
    let line = i / ${vectors}u;
    let vector = i % ${vectors}u;
    queries[vector * ${lines}u + line] = q((row * ${heads}u + kv_head * ${lines}u + line) * ${vectors}u + vector);
  }`,
    ownToken: false,
    scale,
    quantise,
    divert: most > 1 ? divertText(batch, most) : "",
  }, caps);
  const pool = { width: 4, raw: true } as const;
  return {
    ...source,
    outputs: [...source.outputs, ...partPorts(most)],
    inputs: [
      ...[{ name: "q", width: 4 }, { name: "keys", ...pool }, { name: "values", ...pool }] as const,
      ...[{ name: "query_start" }, { name: "context_lens" }, { name: "block_tables" }],
    ],
  };
}

/**
 * Attention of the sequences that have one query: inputs and outputs are those of `flashAttentionKernel`. Rows of other sequences are
 * left as they are, and so are those of contexts in parts, which are outputs of their own (`single_parts.ts`). The reference has
 * no parts.
 */
export const singleAttentionKernel: Kernel<FlashParams> = {
  name: "single_attention",
  infer(inputs, params) {
    const outputs = flashAttentionKernel.infer(inputs, params);
    return [...outputs, ...partTypes(sizesOf({ inputs, params, outputs }), params.blockSize)];
  },
  wgsl,
  grid(call, _caps, resolve) {
    const sizes = sizesOf(call), perSequence = sizes.kvHeads * mostPartsOf(sizes, call.params.blockSize);
    return rowGrid(perSequence, resolve(sizes.sequences));
  },
  reference(call, inputs) {
    const rows = singleRows(inputs[3]!, inputs[4]!.length);
    const results = flashAttentionKernel.reference(call, inputs).map((values) => {
      const columns = values.length / maxOf(call.inputs[0]!.shape[0]!), own = new Float64Array(values.length);
      for (const row of rows) own.set(values.subarray(row * columns, (row + 1) * columns), row * columns);
      return own;
    });
    const parts = partTypes(sizesOf(call), call.params.blockSize);
    return [...results, ...parts.map(({ shape }) => new Float64Array(elementCount(shape)))];
  },
  cost: (call, caps, resolve) => pagedAttentionKernel.cost(call, caps, resolve),
  withQuantise32: (inputs, params) =>
    params.quantise ? undefined : rewrittenKernel(singleAttentionKernel, inputs, { ...params, quantise: true }),
};

/** Most storage buffers of a dispatch: inputs, results in codes and scales, and parts. */
function mostBuffers(call: Call): number {
  return attentionPorts.length + singlePorts(true, mostPartsOf(sizesOf(call), call.params.blockSize)).length;
}

/**
 * Attention in these dispatches, where a device has what they need, a step may hold prompts as well as tokens of many sequences, and
 * there is enough of either; else nothing.
 *
 * @param inputs Those of attention: q, keys, values, queryStart, contextLens, blockTables.
 */
export function mixedAttention(inputs: readonly Node[], params: PagedAttentionParams, caps: Caps): Node | undefined {
  const call = { inputs, params, outputs: [] }, shape = { ...sizesOf(call), blockSize: params.blockSize };
  const rows = maxOf(shape.rows), sequences = maxOf(shape.sequences);
  if (formatShape([shape.rows]) === formatShape([shape.sequences]) || caps.joinedLanes !== undefined) return undefined;
  if (rows <= fewRows || sequences <= fewSequences) return undefined;
  // Few sequences of few tokens: contexts are better split.
  if (rows <= 2 * sequences && sequences * shape.kvHeads < leastWorkgroups) return undefined;
  if (!flashForm(call, caps) || !batchFits(formOf(call), shape, inputs.slice(1, 3), caps)) return undefined;
  if (mostBuffers(call) > caps.maxStorageBuffers) return undefined;
  const singles = rewrittenKernel(singleAttentionKernel, inputs, params);
  return flashInParts(inputs, params, caps, singles) ??
    rewrittenKernel(flashAttentionKernel, [...inputs, ...outputsOf(singles)], { ...params, singlesGiven: true });
}
