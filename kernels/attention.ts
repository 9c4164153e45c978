/**
 * Causal attention over a paged cache, for any mix of prefill and decode rows.
 *
 * The tokens of a batch lie flat: the queries of sequence b are rows queryStart[b] to queryStart[b + 1], and they are
 * the last of its contextLens[b] positions. The key at position p of sequence b is row blockTables[b][p / blockSize] *
 * blockSize + p % blockSize of the pool (Kwon et al. 2023, "PagedAttention"). Heads share keys in groups (Ainslie et
 * al. 2023, "GQA"). The softmax is online (Milakov and Gimelshein 2018; Dao et al. 2022, "FlashAttention");
 * `flash_reference.ts` tells it in plain TypeScript.
 *
 * **One order of summation.** A row's context is cut at positions 0, 128, 256 and so on. Each tile of 128 keys is
 * computed from zero with its own maximum, key after key, and tiles are merged in order: a row's result depends on its
 * own context alone, bit for bit, whatever the batch, the number of queries that share a workgroup, or how tiles are
 * dealt to workgroups. A key that a row does not see adds exactly 0. No value is left for a compiler to contract
 * differently: products are added by `fma`, and the exponent's scale is applied after the maximum is subtracted.
 *
 * @module
 */
import { type Dim, formatShape } from "../tensor/dim.ts";
import { bytesPerElement, isFloat } from "../tensor/dtype.ts";
import type { Kernel, KernelCall, TensorType } from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import { layoutOf, type PagedAttentionParams, sizesOf } from "./attention_layout.ts";
import { attendTo, eachRow } from "./attention_reference.ts";
import { attentionWgsl } from "./attention_wgsl.ts";
import { indices } from "./unroll.ts";

export type { PagedAttentionParams } from "./attention_layout.ts";

/** Every head of every row over all the keys that it sees. */
function reference(call: KernelCall<PagedAttentionParams>, inputs: readonly ArrayLike<number>[]): Float64Array[] {
  const { heads, headDim } = sizesOf(call), attended = new Float64Array(inputs[0]!.length);
  eachRow(inputs[3]!, inputs[4]!, (row, seen, b) => {
    const positions = indices(seen);
    for (let head = 0; head < heads; head++) {
      attended.set(attendTo(call, inputs, { b, row, head }, positions).mean, (row * heads + head) * headDim);
    }
  });
  return [attended];
}

function infer(inputs: readonly TensorType[], { blockSize, scale }: PagedAttentionParams): TensorType[] {
  const [q, keys, values, queryStart, contextLens, blockTables] = inputs;
  const [rows, heads, headDim] = q?.shape as [Dim, number, number];
  if (!q || q.shape.length !== 3 || !isFloat(q.dtype)) {
    throw new Error("Cannot attend: q has to be floats [T, heads, headDim]");
  }
  for (const pool of [keys, values]) {
    if (!pool || pool.shape.length !== 3 || !isFloat(pool.dtype) || pool.shape[2] !== headDim) {
      throw new Error(
        `Cannot attend: pools have to be floats [slots, kvHeads, ${headDim}], not ${pool && formatShape(pool.shape)}`,
      );
    }
  }
  if (heads % (keys!.shape[1] as number) !== 0 || keys!.shape[1] !== values!.shape[1]) {
    throw new Error(`Cannot attend: ${heads} query heads do not share ${keys!.shape[1]} key heads evenly`);
  }
  for (
    const [name, tensor, rank] of [["queryStart", queryStart, 1], ["contextLens", contextLens, 1], [
      "blockTables",
      blockTables,
      2,
    ]] as const
  ) {
    if (tensor?.dtype !== "i32" || tensor.shape.length !== rank) {
      throw new Error(`Cannot attend: ${name} has to be i32 of rank ${rank}`);
    }
  }
  if (Math.log2(blockSize) % 1 !== 0) throw new Error(`Cannot attend: block size ${blockSize} is no power of two`);
  if (!(scale > 0)) throw new Error(`Cannot attend: scale ${scale} is not above 0`);
  return [{ dtype: "f32", shape: [rows, heads * headDim] }];
}

/** Paged attention as a kernel: q, keys, values, queryStart, contextLens, blockTables to [T, heads * headDim] f32. */
export const pagedAttentionKernel: Kernel<PagedAttentionParams> = {
  name: "paged_attention",
  infer,
  wgsl: attentionWgsl,
  grid(call, caps, resolve) {
    const { queries, parts } = layoutOf(call, caps),
      { rows, sequences, kvHeads } = sizesOf(call),
      count = resolve(rows);
    const tiles = queries === 1 ? count : count === 0 ? 0 : Math.floor(count / queries) + resolve(sequences) + 1;
    const x = Math.min(tiles, 65535);
    return [x, kvHeads * parts, x === 0 ? 0 : Math.ceil(tiles / x)];
  },
  reference,
  cost(call, caps, resolve) {
    // How long contexts are is not known here: blocks of the tables count as full, and a row sees all of them.
    const { rows, sequences, heads, kvHeads, headDim, maxBlocks } = sizesOf(call),
      context = maxBlocks * call.params.blockSize;
    const pools = kvHeads * headDim *
      (bytesPerElement(call.inputs[1]!.dtype, caps.f16) + bytesPerElement(call.inputs[2]!.dtype, caps.f16));
    return {
      flops: 4 * resolve(rows) * heads * headDim * context,
      bytes: resolve(sequences) * context * pools + 8 * resolve(rows) * heads * headDim,
    };
  },
};

/** Where each sequence's queries and keys are, all i32. */
export interface AttentionBatch {
  /** [B + 1]: first row of each sequence's queries, then the number of rows that are no padding. */
  readonly queryStart: Node;
  /** [B]: positions of each sequence, its queries among them. */
  readonly contextLens: Node;
  /** [B, maxBlocks]: the blocks of each sequence. */
  readonly blockTables: Node;
}

/**
 * Causal attention of any mix of prefill and decode rows over a paged cache. Rows behind the last sequence give zeros.
 *
 * @param q [T, heads, D] f32 or f16.
 * @param keys [numBlocks * blockSize, kvHeads, D] f16 or f32, the version that holds this step's keys.
 * @param values Of the same shape.
 * @returns [T, heads * D] f32.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { pagedAttention } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const i32 = (values: number[] | number[][]) => tensor(values, { dtype: "i32" }).node;
 * const keys = tensor([[[0, 0]], [[0, 0]], [[0, 0]], [[0, 0]]]).node; // two blocks of two tokens, all alike
 * const values = tensor([[[5, 6]], [[9, 9]], [[1, 2]], [[3, 4]]]).node;
 * const batch = { queryStart: i32([0, 1]), contextLens: i32([3]), blockTables: i32([[1, 0]]) };
 * const y = pagedAttention(tensor([[[1, 1]]]).node, keys, values, batch, { blockSize: 2, scale: 1 });
 * assertEquals([...await new Tensor(y).data()], [3, 4]); // the mean of block 1 and of the first token of block 0
 * ```
 */
export function pagedAttention(
  q: Node,
  keys: Node,
  values: Node,
  batch: AttentionBatch,
  params: PagedAttentionParams,
): Node {
  const { queryStart, contextLens, blockTables } = batch;
  return kernelNode(pagedAttentionKernel, [q, keys, values, queryStart, contextLens, blockTables], params);
}
