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
 * On an H100, 14 heads of 64 over 2 key heads, contexts of 512: 18 us for 64 sequences and 45 for 256 (1.5 TB/s of keys and
 * values), where split attention and its merge take 27 and 72.
 *
 * @module
 */
import { type Dim, formatShape, maxOf } from "../tensor/dim.ts";
import type { Caps, Kernel, KernelCall, RewriteContext, TensorType } from "../tensor/kernel.ts";
import { type Node, output, rewrittenKernel } from "../tensor/node.ts";
import { pagedAttentionKernel, type PagedAttentionParams } from "./attention.ts";
import { batchAttentionBytes, type BatchAttentionForm, batchAttentionWgsl } from "./batch_attention_wgsl.ts";
import { ropeAndWriteKvKernel, type RopeAndWriteKvParams } from "./kv_write.ts";
import { activationBlock, quantiseActivations } from "./quantise.ts";
import { rowGrid } from "./row_grid.ts";

/** Parameters of attention of a batch. */
export interface BatchAttentionParams {
  readonly attention: Pick<PagedAttentionParams, "blockSize" | "scale">;
  /** Whole heads, halves apart, without norms. */
  readonly rope: RopeAndWriteKvParams;
  /** Whether results are stored in codes and scales (`quantise32`). Head dimensions that are a multiple of 32 only. */
  readonly quantise?: boolean;
}

type Call = KernelCall<BatchAttentionParams>;

/** Most query heads of a key head: a lane has sums of eight features for each. */
const mostLines = 8;

/** Workgroups that keep a large GPU busy: with fewer, contexts are better split. */
const leastWorkgroups = 120;

/** Workgroups up to which a large GPU runs each on a processor of its own: they are made larger then. */
const processors = 132;

function formOf(
  { params: { rope: { headDim, kvHeads } }, inputs }: Pick<Call, "params" | "inputs">,
): BatchAttentionForm {
  const form = { keysPerLane: headDim > 64 ? 1 : 2, unitsAhead: 2 };
  const alone = maxOf(inputs[0]!.shape[0]!) * kvHeads <= processors;
  return alone ? { ...form, lanes: 256, valuesAhead: 4 } : { ...form, lanes: 128, valuesAhead: 8 };
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
  const { heads, kvHeads, headDim, rotaryDim, traditional, eps } = params.rope, lines = heads / kvHeads;
  if (!caps.subgroups || caps.subgroupSize < 8 || !caps.f16 || lines > mostLines) return false;
  if (eps !== undefined || traditional || rotaryDim !== headDim || ![32, 64, 128].includes(headDim)) return false;
  if (inputs[4]!.dtype !== "f16" || inputs[5]!.dtype !== "f16") return false;
  const form = formOf({ params, inputs });
  const oneEach = formatShape([inputs[0]!.shape[0]!]) === formatShape([inputs[7]!.shape[0]!]);
  return oneEach && form.lanes % caps.subgroupSize === 0 && form.lanes <= caps.maxInvocations &&
    batchAttentionBytes(form, headDim, lines, caps) <= caps.workgroupMemory;
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
