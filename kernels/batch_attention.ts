/**
 * Attention of many sequences that decode a token each, on a GPU in the `fast` precision: `decode_attention.ts` in another order
 * of summation. Rotation and the writes to the cache are its own, as in `rope_attention.ts`, and its results can be stored in
 * codes: no dispatch stands between the products before and behind it.
 *
 * A workgroup takes a key head of a sequence, all of its query heads, and all of the context. Two stages take turns at tiles of
 * keys. For scores a lane reads keys of its own, and the queries from workgroup memory. For values neighbouring lanes read
 * one value together, eight features each, and every slice of the workgroup adds up its share of the keys. Loads run ahead: of
 * values while scores are computed, of the next tile's keys while values are added up. Softmax is online
 * (`flash_reference.ts`).
 *
 * A row's tiles depend on its own context alone: within a program its result does not depend on its batch.
 *
 * On an H100, 14 heads of 64 over 2 key heads, contexts of 512, in a step: some 17 us a layer for 64 sequences and 45 for 256 (1.5 TB/s of
 * keys and values).
 *
 * @module
 */
import { type Dim, formatShape, maxOf } from "../tensor/dim.ts";
import {
  type Caps,
  dimWgsl,
  type Kernel,
  type KernelCall,
  type KernelSource,
  type RewriteContext,
  type TensorType,
} from "../tensor/kernel.ts";
import { type Node, output, rewrittenKernel } from "../tensor/node.ts";
import { pagedAttentionKernel, type PagedAttentionParams } from "./attention.ts";
import { ownRowWgsl } from "./attention_merge_layout.ts";
import {
  type Batch,
  type BatchAttentionForm,
  batchFits,
  batchFormOf,
  batchOf,
  type BatchShape,
  leastWorkgroups,
} from "./batch_attention_form.ts";
import { batchWgsl } from "./batch_attention_wgsl.ts";
import { ropeAndWriteKvKernel, type RopeAndWriteKvParams } from "./kv_write.ts";
import { activationBlock, quantiseActivations } from "./quantise.ts";
import { turnWgsl } from "./rope_attention.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";

/** Parameters of attention of a batch. */
export interface BatchAttentionParams {
  readonly attention: Pick<PagedAttentionParams, "blockSize" | "scale">;
  /** Whole heads, halves apart, without norms. */
  readonly rope: RopeAndWriteKvParams;
  /** Whether results are stored in codes and scales (`quantise32`). Head dimensions that are a multiple of 32 only. */
  readonly quantise?: boolean;
}

type Call = KernelCall<BatchAttentionParams>;

function shapeOf({ params: { rope, attention }, inputs }: Pick<Call, "params" | "inputs">): BatchShape {
  const { heads, kvHeads, headDim } = rope, maxBlocks = inputs[8]!.shape[1] as number;
  return { heads, kvHeads, headDim, maxBlocks, blockSize: attention.blockSize };
}

/** WGSL that turns the queries, and makes the sequence's new key and value, which the pools get as well. */
function ownTokenText(slots: number, { heads, kvHeads, headDim, units, lines, lanes }: Batch): string {
  const vectors = headDim / 4, all = heads + 2 * kvHeads;
  const at = (head: string): string => `(row * ${all}u + ${head}) * ${vectors}u`;
  return `let own_slot = slot_mapping(row);
  let fresh = seen > 0u && own_slot >= 0 && own_slot < ${slots};
  for (var i = lane; i < ${lines * vectors / 2}u; i += ${lanes}u) {
    let low = i / ${lines}u;
    let line = i % ${lines}u;
    let both = turned(row, ${at(`kv_head * ${lines}u + line`)}, low);
    queries[low * ${lines}u + line] = both.first;
    queries[(low + ${vectors / 2}u) * ${lines}u + line] = both.second;
  }
  if (fresh && lane < ${units}u) {
    let key = own_key(row, ${at(`${heads}u + kv_head`)}, lane);
    let value = own_value(row, ${at(`${heads + kvHeads}u + kv_head`)}, lane);
    new_key[lane] = key;
    new_value[lane] = value;
    let to = (u32(own_slot) * ${kvHeads}u + kv_head) * ${units}u + lane;
    store_next_keys(to, key);
    store_next_values(to, value);
  }`;
}

/** The shader of a call in a form. */
export function batchAttentionWgsl(call: Call, form: BatchAttentionForm, caps: Caps): KernelSource {
  const { params: { attention: { scale }, quantise = false }, inputs } = call;
  const batch = batchOf(form, shapeOf(call), caps);
  const source = batchWgsl(batch, {
    row: `let kv_head = workgroup.x; ${rowWgsl(dimWgsl(inputs[0]!.shape[0]!))} let sequence = row; ${ownRowWgsl}`,
    begin: "0u",
    queries: ownTokenText(inputs[4]!.shape[0] as number, batch),
    ownToken: true,
    scale,
    quantise,
    divert: "",
  }, caps);
  const pool = { width: 4, raw: true } as const;
  return {
    ...source,
    inputs: [
      ...[{ name: "qkv", width: 4 }, { name: "positions" }, { name: "slot_mapping" }] as const,
      ...[{ name: "table", width: 4 }, { name: "keys", ...pool }, { name: "values", ...pool }] as const,
      ...[{ name: "query_start" }, { name: "context_lens" }, { name: "block_tables" }],
    ],
    outputs: [...source.outputs, { name: "next_keys", ...pool }, { name: "next_values", ...pool }],
    declarations: source.declarations + turnWgsl(batch.headDim, inputs[3]!),
  };
}

function formOf(call: Pick<Call, "params" | "inputs">): BatchAttentionForm {
  return batchFormOf(shapeOf(call), maxOf(call.inputs[0]!.shape[0]!));
}

/** The calls that this one joins. Inputs: qkv, positions, slotMapping, table, keys, values, queryStart, contextLens, blockTables. */
function callsOf({ params: { rope, attention }, inputs }: Pick<Call, "params" | "inputs">): {
  rope: KernelCall<RopeAndWriteKvParams>;
  attention: KernelCall<PagedAttentionParams>;
} {
  const ropeInputs = inputs.slice(0, 6), outputs = ropeAndWriteKvKernel.infer(ropeInputs, rope);
  const own = [...outputs, ...inputs.slice(6)], attended = pagedAttentionKernel.infer(own, attention);
  return {
    rope: { params: rope, inputs: ropeInputs, outputs },
    attention: { params: attention, inputs: own, outputs: attended },
  };
}

function codeTypes(rows: Dim, columns: number): TensorType[] {
  return [
    { dtype: "u32", shape: [rows, columns / 4] },
    { dtype: "f32", shape: [rows, columns / activationBlock, 2] },
  ];
}

/**
 * The kernel: qkv [T, (heads + 2 kvHeads) D], positions [T], slotMapping [T], table, keys and values pools (f16), queryStart
 * [T + 1], contextLens [T], blockTables [T, B] to attended values f32 [T, heads * D] or their codes and scales, and the pools' next
 * versions.
 */
export const batchAttentionKernel: Kernel<BatchAttentionParams> = {
  name: "batch_attention",
  infer(inputs, params) {
    const { rope, attention } = callsOf({ inputs, params }), { heads, headDim } = params.rope;
    const results = params.quantise ? codeTypes(inputs[0]!.shape[0]!, heads * headDim) : attention.outputs;
    return [...results, ...rope.outputs.slice(1)];
  },
  wgsl: (call, caps) => batchAttentionWgsl(call, formOf(call), caps),
  grid: ({ params: { rope }, inputs }, _caps, resolve) => rowGrid(rope.kvHeads, resolve(inputs[0]!.shape[0]!)),
  reference(call, inputs) {
    const { rope, attention } = callsOf(call);
    const [q, keys, values] = ropeAndWriteKvKernel.reference(rope, inputs.slice(0, 6));
    const [attended] = pagedAttentionKernel.reference(attention, [q!, keys!, values!, ...inputs.slice(6)]);
    if (!call.params.quantise) return [attended!, keys!, values!];
    const { codes, scales } = quantiseActivations(attended!);
    return [Float64Array.from(codes), scales, keys!, values!];
  },
  cost(call, caps, resolve) {
    const { rope, attention } = callsOf(call);
    const costs = [ropeAndWriteKvKernel.cost(rope, caps, resolve), pagedAttentionKernel.cost(attention, caps, resolve)];
    return { flops: costs[0]!.flops + costs[1]!.flops, bytes: costs[0]!.bytes + costs[1]!.bytes };
  },
  updates: ({ params: { quantise } }) => quantise ? [-1, -1, 4, 5] : [-1, 4, 5],
  withQuantise32(inputs, params) {
    if (params.quantise || params.rope.headDim % activationBlock !== 0) return undefined;
    return rewrittenKernel(batchAttentionKernel, inputs, { ...params, quantise: true });
  },
};

/** Whether the shader is made for such a call on a device. */
function fits(params: BatchAttentionParams, inputs: readonly TensorType[], caps: Caps): boolean {
  const { headDim, rotaryDim, traditional, eps } = params.rope, call = { params, inputs };
  if (eps !== undefined || traditional || rotaryDim !== headDim) return false;
  const oneEach = formatShape([inputs[0]!.shape[0]!]) === formatShape([inputs[7]!.shape[0]!]);
  return oneEach && batchFits(formOf(call), shapeOf(call), inputs.slice(4, 6), caps);
}

/**
 * Attention of a batch whose `inputs` (those of attention) come from `ropeAndWriteKv`, where each sequence has one token and there
 * are enough of them; else nothing. Programs whose dispatches are to be joined keep the forms that can be.
 */
export function batchAttention(
  inputs: readonly Node[],
  { blockSize, scale }: PagedAttentionParams,
  { caps, readers }: RewriteContext,
): Node | undefined {
  const [q, keys, values, ...batch] = inputs;
  if (caps.joinedLanes !== undefined || q?.op !== "kernel" || q.kernel !== ropeAndWriteKvKernel as Kernel<unknown>) {
    return undefined;
  }
  // q is read by attention and by the nodes of the other two outputs, which attention alone reads.
  if (q.src.length !== 6 || keys !== output(q, 1) || values !== output(q, 2)) return undefined;
  if (readers(q) !== 3 || readers(keys) !== 1 || readers(values) !== 1) return undefined;
  const rope = q.params as RopeAndWriteKvParams, params = { attention: { blockSize, scale }, rope };
  if (maxOf(q.shape[0]!) * rope.kvHeads < leastWorkgroups) return undefined;
  const joint = [...q.src, ...batch];
  return fits(params, joint, caps) ? rewrittenKernel(batchAttentionKernel, joint, params) : undefined;
}
