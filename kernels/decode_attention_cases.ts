/** Cases of split attention: the partial results of tiles, and their merge. `decode_attention_test.ts` has both together. */
import type { PagedAttentionParams } from "./attention.ts";
import { attentionCall, type AttentionSetting } from "./attention_cases.ts";
import {
  attentionMergeKernel,
  attentionPartialsKernel,
  type DecodeAttentionParams,
  type MergeParams,
} from "./decode_attention.ts";
import type { CaseCall, KernelCase, Random } from "./spec.ts";

function randomCall(random: Random): CaseCall<PagedAttentionParams> {
  const pick = <T>(of: readonly T[]): T => of[random.integer(0, of.length - 1)]!;
  const sequences = Array.from({ length: random.integer(1, 4) }, (): [number, number] => {
    const queries = random.uniform() < 0.7 ? 1 : random.integer(0, 4);
    return [queries, queries + random.integer(0, pick([0, 3, 40, 300]))];
  });
  return attentionCall({
    sequences,
    kvHeads: random.integer(1, 3),
    group: pick([1, 2, 3, 4, 7, 9]),
    headDim: pick([16, 20, 32, 64, 80, 128]),
    blockSize: pick([1, 4, 16, 32]),
    pool: pick(["f16", "f32"]),
    padding: random.integer(0, 3),
  }, random);
}

function layouts(random: Random): Partial<DecodeAttentionParams> {
  if (random.uniform() < 0.5) return {};
  return {
    headsPerShare: random.integer(1, 8),
    lanes: 128 * random.integer(1, 2),
    width: random.integer(1, 2) === 1 ? 2 : 4,
  };
}

/** Partial results of a batch in float64, rounded to f32: what a merge gets. */
function mergeCall(random: Random): CaseCall<MergeParams> {
  const { params, inputs } = randomCall(random), outputs = attentionPartialsKernel.infer(inputs, params);
  const [sums, stats] = attentionPartialsKernel.reference({ params, inputs, outputs }, inputs.map(({ data }) => data));
  return {
    params: { scale: params.scale },
    inputs: [
      { ...outputs[0]!, data: Float32Array.from(sums!) },
      { ...outputs[1]!, data: Float32Array.from(stats!) },
      inputs[3]!,
      inputs[4]!,
    ],
  };
}

/**
 * A score is a sum of headDim products of standard normal numbers: rounding adds up to headDim units of 2^-24 of its size,
 * below 6 headDim^1/2. Scaled by headDim^-1/2 that is the relative error of a weight; a sum takes as much of its size,
 * which the sum of weights times the greatest value, below 6, bounds, and a rounding for each key.
 */
function partialsTolerance(
  { inputs }: CaseCall<DecodeAttentionParams>,
  reference: readonly Float64Array[],
): Float64Array[] {
  const headDim = inputs[0]!.shape[2] as number, [sums, stats] = reference;
  const relative = (6 * headDim + 8 + 128) * 2 ** -24;
  const weights = (at: number) => stats![2 * at + 1]!;
  return [
    sums!.map((_, i) => 6 * relative * weights(Math.floor(i / headDim))),
    stats!.map((_, i) => i % 2 === 0 ? 6 * Math.sqrt(headDim) * headDim * 2 ** -24 : relative * weights(i >> 1)),
  ];
}

const bench = (sequences: AttentionSetting["sequences"], kvHeads: number, headDim: number) => (random: Random) =>
  attentionCall({ sequences, kvHeads, group: 7, headDim, blockSize: 16, pool: "f16" }, random);

/** Cases of partial results. */
export const partialsCases: KernelCase<DecodeAttentionParams>[] = [{
  name: "attention_partials",
  kernel: attentionPartialsKernel,
  random: (random) => {
    const call = randomCall(random);
    return { ...call, params: { ...call.params, ...layouts(random) } };
  },
  tolerance: partialsTolerance,
  bench: {
    "0.5B, decode at 512": bench([[1, 512]], 2, 64),
    "0.5B, 8 decoding at 512": bench(Array.from({ length: 8 }, () => [1, 512] as const), 2, 64),
    "7B, decode at 4096": bench([[1, 4096]], 4, 128),
  },
}];

/** Cases of the merge. */
export const mergeCases: KernelCase<MergeParams>[] = [{
  name: "attention_merge",
  kernel: attentionMergeKernel,
  random: mergeCall,
  // Factors err by the exponential's 2^-21 and their argument's rounding; the result is a mean of values below 6.
  tolerance: () => [6 * (8 + 32) * 2 ** -24],
}];
