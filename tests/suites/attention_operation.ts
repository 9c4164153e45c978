/** Recorded attention in three ways: the references, elementary operations, and the paged kernel where it can say it. */
import { pagedAttention } from "../../kernels/attention.ts";
import { attentionReference, flashAttentionReference } from "../../kernels/flash_reference.ts";
import type { HostArray } from "../../tensor/dtype.ts";
import { Tensor, tensor } from "../../tensor/tensor.ts";
import type { Operation, Results } from "./operations.ts";
import type { RecordedTensor } from "./tensors.ts";

interface Inputs {
  q: RecordedTensor;
  k: RecordedTensor;
  v: RecordedTensor;
  mask?: RecordedTensor;
}

const BLOCK_SIZE = 4;

/** Sizes, with all leading axes made one. */
interface Sizes {
  batch: number;
  heads: number;
  queries: number;
  headDim: number;
  kvHeads: number;
  keys: number;
}

function sizesOf({ q, k }: Inputs): Sizes {
  const [heads, queries, headDim] = q.shape.slice(-3) as [number, number, number];
  const [kvHeads, keys] = k.shape.slice(-3) as [number, number];
  return { batch: q.shape.slice(0, -3).reduce((a, b) => a * b, 1), heads, queries, headDim, kvHeads, keys };
}

const load = ({ values }: RecordedTensor, shape: readonly number[]): Tensor => tensor(values as HostArray, { shape });

/** The kernel: each sequence's keys lie in blocks of their own. */
function paged(inputs: Inputs, scale: number): Tensor {
  const { batch, heads, queries, headDim, kvHeads, keys } = sizesOf(inputs);
  const blocks = Math.ceil(keys / BLOCK_SIZE), padded = blocks * BLOCK_SIZE;
  const pool = (recorded: RecordedTensor): Tensor =>
    load(recorded, [batch, kvHeads, keys, headDim])
      .permute([0, 2, 1, 3])
      .pad([0, 0, 0, 0], [0, padded - keys, 0, 0])
      .reshape([batch * padded, kvHeads, headDim]);
  const whole = (values: number[], shape: number[]): Tensor => tensor(Int32Array.from(values), { shape });
  const sequences = Array.from({ length: batch }, (_, b) => b);
  const tables = sequences.flatMap((b) => Array.from({ length: blocks }, (_, i) => b * blocks + i));
  const rows = new Tensor(pagedAttention(
    load(inputs.q, [batch, heads, queries, headDim]).permute([0, 2, 1, 3]).reshape([batch * queries, heads, headDim])
      .node,
    pool(inputs.k).node,
    pool(inputs.v).node,
    {
      queryStart: whole([...sequences, batch].map((b) => b * queries), [batch + 1]).node,
      contextLens: whole(sequences.map(() => keys), [batch]).node,
      blockTables: whole(tables, [batch, blocks]).node,
    },
    { blockSize: BLOCK_SIZE, scale },
  ));
  return rows.reshape([batch, queries, heads, headDim]).permute([0, 2, 1, 3]);
}

/** Elementary operations. Minus infinity is the least f32 here, and a query that sees nothing is set to 0 by hand. */
function plain(inputs: Inputs, scale: number, causal: boolean): Tensor {
  const { batch, heads, queries, headDim, kvHeads, keys } = sizesOf(inputs), group = heads / kvHeads;
  const q = load(inputs.q, [batch, kvHeads, group, queries, headDim]);
  const [k, v] = [inputs.k, inputs.v].map((recorded) => load(recorded, [batch, kvHeads, 1, keys, headDim])) as [
    Tensor,
    Tensor,
  ];
  let scores = q.matmul(k.transpose()).mul(scale);
  const { mask } = inputs;
  if (mask) {
    const finite = Float32Array.from(mask.values, (value) => Math.max(value, -1e30));
    const [maskQueries, maskKeys] = mask.shape.slice(-2) as [number, number];
    const maskHeads = mask.shape.at(-3) ?? 1;
    const maskBatch = mask.shape.slice(0, -3).reduce((a, b) => a * b, 1);
    const heads = maskHeads === 1 ? [1, 1] : [kvHeads, group];
    scores = scores.add(tensor(finite, { shape: [maskBatch, ...heads, maskQueries, maskKeys] }));
  }
  if (causal) {
    const visible = Float32Array.from({ length: queries * keys }, (_, at) => {
      return at % keys <= Math.floor(at / keys) + keys - queries ? 0 : -1e30;
    });
    scores = scores.add(tensor(visible, { shape: [queries, keys] }));
  }
  const seen = scores.max(-1, true).gt(-1e29);
  return seen.where(scores.softmax().matmul(v), 0);
}

/** softmax(scale q kᵀ + mask) v: the README of the recorded cases says what the shapes mean. */
export const attention: Operation = async (inputs, params) => {
  const { q, k, v, mask } = inputs as unknown as Inputs;
  const causal = params.causal as boolean, scale = params.scale as number | null ?? 1 / Math.sqrt(q.shape.at(-1)!);
  const asReference = ({ values, shape }: RecordedTensor) => ({ data: values, shape });
  const options = { causal, scale, ...(mask ? { mask: asReference(mask) } : {}) };
  const results: Results[] = [attentionReference, flashAttentionReference].map((reference) => {
    return { out: reference(asReference(q), asReference(k), asReference(v), options) };
  });
  results.push({ out: await plain(inputs as unknown as Inputs, scale, causal).data() });
  if (causal && !mask) results.push({ out: await paged(inputs as unknown as Inputs, scale).data() });
  return results;
};
