/**
 * Split attention's first dispatch for batches of one token a sequence, whose rotation and writes to the cache it does itself: a
 * decode step then has a dispatch less in each layer. No other query needs the new key, so whoever needs it makes it. A graph says
 * that each sequence has one token by giving tokens and sequences one and the same size.
 *
 * Every workgroup turns the queries of its heads. Those that have the last tile also turn the new key and put it, and the
 * new value, in their place in workgroup memory; one of them for each key head writes both to the pools. Values are rounded to
 * the pools' f16 on the way, so that results are those of `ropeAndWriteKv` before `decodeAttention`, bit for bit.
 *
 * @module
 */
import { formatShape } from "../tensor/dim.ts";
import type { Caps, Kernel, KernelCall, KernelSource, RewriteContext, TensorType } from "../tensor/kernel.ts";
import { type Node, output, rewrittenKernel } from "../tensor/node.ts";
import { sizesOf, TILE } from "./attention_layout.ts";
import { attentionPartialsKernel, partialsGrid } from "./decode_attention.ts";
import { type OwnToken, partialsWgsl } from "./decode_attention_wgsl.ts";
import { type DecodeAttentionParams, decodeLayoutOf, type StagedRow, stageWgsl } from "./decode_layout.ts";
import { ropeAndWriteKvKernel, type RopeAndWriteKvParams } from "./kv_write.ts";

/** Parameters of both kernels. */
export interface RopeAttentionParams {
  readonly attention: DecodeAttentionParams;
  /** Whole heads, halves apart, without norms. */
  readonly rope: RopeAndWriteKvParams;
}

/** Inputs: qkv, positions, slotMapping, table, keys, values, queryStart, contextLens, blockTables. */
function partsOf(call: { readonly params: RopeAttentionParams; readonly inputs: readonly TensorType[] }): {
  rope: KernelCall<RopeAndWriteKvParams>;
  attention: KernelCall<DecodeAttentionParams>;
} {
  const ropeInputs = call.inputs.slice(0, 6);
  const outputs = ropeAndWriteKvKernel.infer(ropeInputs, call.params.rope);
  const inputs = [...outputs, ...call.inputs.slice(6)];
  return {
    rope: { params: call.params.rope, inputs: ropeInputs, outputs },
    attention: {
      params: call.params.attention,
      inputs,
      outputs: attentionPartialsKernel.infer(inputs, call.params.attention),
    },
  };
}

/**
 * WGSL of `turned`, which turns the vec4f of features 4 `low` on, and their partners, of the head at vec4 `head` of qkv, and of
 * `own_key` and `own_value`, eight features of a new key or value as the pools hold them.
 */
export function turnWgsl(headDim: number, table: TensorType): string {
  const last = (table.shape[0] as number) - 1, partner = headDim / 8;
  return `
struct Turned { first: vec4f, second: vec4f }
fn turned(row: u32, head: u32, low: u32) -> Turned {
  let angles = u32(clamp(i32(positions(row)), 0, ${last})) * ${headDim / 4}u + 2u * low;
  let pair0 = table(angles);
  let pair1 = table(angles + 1u);
  let cosine = vec4f(pair0.xz, pair1.xz);
  let sine = vec4f(pair0.yw, pair1.yw);
  let a = qkv(head + low);
  let b = qkv(head + low + ${partner}u);
  return Turned(fma(a, cosine, -(b * sine)), fma(b, cosine, a * sine));
}
// Rounded as a store to f16 rounds: how packing would do it is left open.
fn halves(a: vec4f, b: vec4f) -> vec4u {
  let c = vec4f(vec4<f16>(a));
  let d = vec4f(vec4<f16>(b));
  return vec4u(pack2x16float(c.xy), pack2x16float(c.zw), pack2x16float(d.xy), pack2x16float(d.zw));
}
fn own_key(row: u32, head: u32, unit: u32) -> vec4u {
  let second = unit >= ${headDim / 16}u;
  let low = 2u * unit - select(0u, ${partner}u, second);
  let a = turned(row, head, low);
  let b = turned(row, head, low + 1u);
  return halves(select(a.first, a.second, second), select(b.first, b.second, second));
}
fn own_value(row: u32, head: u32, unit: u32) -> vec4u {
  return halves(qkv(head + 2u * unit), qkv(head + 2u * unit + 1u));
}`;
}

function ownToken(call: KernelCall<RopeAttentionParams>, caps: Caps): OwnToken {
  const { rope, attention } = partsOf(call), { heads, kvHeads, headDim } = rope.params, vectors = headDim / 4;
  const { linesPerSplit, splits, lanes, sharesPerKvHead } = decodeLayoutOf(attention, caps);
  const padded = linesPerSplit * splits, half = vectors / 2, all = heads + 2 * kvHeads;
  return {
    inputs: [{ name: "qkv", width: 4 }, { name: "positions" }, { name: "slot_mapping" }, { name: "table", width: 4 }],
    outputs: [{ name: "next_keys", width: 4, raw: true }, { name: "next_values", width: 4, raw: true }],
    declarations: turnWgsl(headDim, call.inputs[3]!),
    queries: `if (tile == chunk) {
      for (var i = lane; i < ${padded * half}u; i += ${lanes}u) {
        let low = i / ${padded}u;
        let line = i % ${padded}u;
        let both = turned(row, (row * ${all}u + min(first_head + line, head_end - 1u)) * ${vectors}u, low);
        queries[low * ${padded}u + line] = both.first;
        queries[(low + ${half}u) * ${padded}u + line] = both.second;
      }
    }`,
    loads: `var own_of_key = vec4u();
    var own_of_value = vec4u();
    if (fresh && lane < ${headDim / 8}u) {
      own_of_key = own_key(row, (row * ${all}u + ${heads}u + kv_head) * ${vectors}u, lane);
      own_of_value = own_value(row, (row * ${all}u + ${heads + kvHeads}u + kv_head) * ${vectors}u, lane);
    }`,
    stage: (what: "key" | "value", row: StagedRow): string =>
      `if (fresh) {
        if (lane < ${row.units}u) {
          ${stageWgsl("(n - 1u)", "lane", `own_of_${what}`, row)}
          if (share % ${sharesPerKvHead}u == 0u) {
            store_next_${what}s((u32(own_slot) * ${kvHeads}u + kv_head) * ${row.units}u + lane, own_of_${what});
          }
        }
        workgroupBarrier();
      }`,
  };
}

function wgsl(call: KernelCall<RopeAttentionParams>, caps: Caps): KernelSource {
  return partialsWgsl(partsOf(call).attention, caps, ownToken(call, caps));
}

/**
 * The joint kernel: qkv [T, (heads + 2 kvHeads) D], positions [T], slotMapping [T], table, keys and values pools (f16),
 * queryStart [T + 1], contextLens [T], blockTables [T, B] to the outputs of `attentionPartialsKernel` and the pools' next versions.
 */
export const ropeAttentionPartialsKernel: Kernel<RopeAttentionParams> = {
  name: "rope_attention_partials",
  infer(inputs, params) {
    const { rope, attention } = partsOf({ inputs, params });
    return [...attention.outputs, ...rope.outputs.slice(1)];
  },
  wgsl,
  grid: (call, caps, resolve) => partialsGrid(partsOf(call).attention, caps, resolve),
  reference(call, inputs) {
    const { rope, attention } = partsOf(call);
    const [q, keys, values] = ropeAndWriteKvKernel.reference(rope, inputs.slice(0, 6));
    const partials = attentionPartialsKernel.reference(attention, [q!, keys!, values!, ...inputs.slice(6)]);
    return [...partials, keys!, values!];
  },
  cost(call, caps, resolve) {
    const { rope, attention } = partsOf(call);
    const costs = [
      ropeAndWriteKvKernel.cost(rope, caps, resolve),
      attentionPartialsKernel.cost(attention, caps, resolve),
    ];
    return { flops: costs[0]!.flops + costs[1]!.flops, bytes: costs[0]!.bytes + costs[1]!.bytes };
  },
  updates: () => [-1, -1, 4, 5],
};

/** Whether a call of the joint kernel has all that its shader is made for. */
function fits(params: RopeAttentionParams, inputs: readonly TensorType[], caps: Caps): boolean {
  const { headDim, rotaryDim, traditional, eps } = params.rope, { attention } = partsOf({ params, inputs });
  const { rows, sequences } = sizesOf(attention), layout = decodeLayoutOf(attention, caps);
  const plain = eps === undefined && !traditional && rotaryDim === headDim && headDim % 16 === 0;
  const packed = caps.f16 && layout.packedKeys && layout.packedValues && layout.staged === TILE;
  return formatShape([rows]) === formatShape([sequences]) && plain && packed;
}

/**
 * The first dispatch of split attention joined with `ropeAndWriteKv`, where `inputs` (those of attention) come from it, each
 * sequence has one token, and the pools are as the shader needs them.
 */
export function ropeAttentionPartials(
  inputs: readonly Node[],
  attention: DecodeAttentionParams,
  { caps, readers }: RewriteContext,
): Node | undefined {
  const [q, keys, values, ...batch] = inputs;
  if (q?.op !== "kernel" || q.kernel !== ropeAndWriteKvKernel as Kernel<unknown> || q.src.length !== 6) {
    return undefined;
  }
  // q is read by attention and by the nodes of the other two outputs, which attention alone reads.
  if (keys !== output(q, 1) || values !== output(q, 2)) return undefined;
  if (readers(q) !== 3 || readers(keys) !== 1 || readers(values) !== 1) return undefined;
  const joint = [...q.src, ...batch], params = { attention, rope: q.params as RopeAndWriteKvParams };
  return fits(params, joint, caps) ? rewrittenKernel(ropeAttentionPartialsKernel, joint, params) : undefined;
}
