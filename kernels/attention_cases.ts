/** Cases of paged attention: mixes of prefill and decode rows, shuffled blocks, padding rows, both layouts. */
import { float16Bits, float16Value } from "../tensor/dtype.ts";
import { attendKernel } from "./attend.ts";
import { pagedAttentionKernel, type PagedAttentionParams } from "./attention.ts";
import type { CaseCall, CaseInput, KernelCase, Random } from "./spec.ts";

/** What a case is made of. */
export interface AttentionSetting {
  /** Queries and context of each sequence. */
  readonly sequences: readonly (readonly [queries: number, context: number])[];
  /** Key and value heads. */
  readonly kvHeads: number;
  /** Query heads of a key head. */
  readonly group: number;
  /** Features of a head. */
  readonly headDim: number;
  /** Tokens of a block. */
  readonly blockSize: number;
  /** How the pools are stored. */
  readonly pool: "f16" | "f32";
  /** Rows behind the last sequence. */
  readonly padding?: number;
  /** Queries that share a workgroup. */
  readonly queries?: NonNullable<PagedAttentionParams["queries"]>;
  /** Whether keys are added up in the fastest order. */
  readonly fast?: boolean;
}

const half = (value: number): number => float16Value(float16Bits(value));

function integers(shape: number[], values: number[]): CaseInput {
  return { dtype: "i32", shape, data: Int32Array.from(values) };
}

/** Whole numbers below `count` in random order. */
function shuffled(count: number, random: Random): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const other = random.integer(0, i);
    [order[i], order[other]] = [order[other]!, order[i]!];
  }
  return order;
}

/** A batch of random queries, keys and values, its blocks shuffled. */
export function attentionCall(setting: AttentionSetting, random: Random): CaseCall<PagedAttentionParams> {
  const { sequences, kvHeads, group, headDim, blockSize, pool, padding = 0 } = setting;
  const starts = [0];
  for (const [queries] of sequences) starts.push(starts.at(-1)! + queries);
  const rows = starts.at(-1)! + padding, heads = kvHeads * group;
  const blocks = sequences.map(([, context]) => Math.ceil(context / blockSize));
  const maxBlocks = Math.max(...blocks, 1), numBlocks = blocks.reduce((a, b) => a + b, 2);
  const free = shuffled(numBlocks, random);
  const tables = blocks.flatMap((count) => Array.from({ length: maxBlocks }, (_, i) => i < count ? free.pop()! : -1));
  const values = (count: number, round: (x: number) => number) =>
    Float32Array.from({ length: count }, () => round(random.normal()));
  const shape = [numBlocks * blockSize, kvHeads, headDim], size = numBlocks * blockSize * kvHeads * headDim;
  const round = pool === "f16" ? half : Math.fround;
  return {
    params: {
      blockSize,
      scale: 1 / Math.sqrt(headDim),
      ...(setting.queries === undefined ? {} : { queries: setting.queries }),
      ...(setting.fast ? { fast: true } : {}),
    },
    inputs: [
      { dtype: "f32", shape: [rows, heads, headDim], data: values(rows * heads * headDim, Math.fround) },
      { dtype: pool, shape, data: values(size, round) },
      { dtype: pool, shape, data: values(size, round) },
      integers([sequences.length + 1], starts),
      integers([sequences.length], sequences.map(([, context]) => context)),
      integers([sequences.length, maxBlocks], tables),
    ],
  };
}

function randomSetting(random: Random, headDims: readonly number[], most: number): AttentionSetting {
  const pick = <T>(of: readonly T[]): T => of[random.integer(0, of.length - 1)]!;
  const sequences = Array.from({ length: random.integer(1, 5) }, (): [number, number] => {
    const queries = random.uniform() < 0.5 ? 1 : random.integer(0, most);
    return [queries, queries + random.integer(0, pick([0, 3, 40, 300]))];
  });
  return {
    sequences,
    kvHeads: random.integer(1, 3),
    group: pick([1, 2, 3, 4, 7, 9]),
    headDim: pick(headDims),
    blockSize: pick([1, 4, 16, 32]),
    pool: pick(["f16", "f32"]),
    padding: random.integer(0, 3),
  };
}

/**
 * Scores are sums of headDim products whose partial sums stay below 5 headDim^1/2 or so; scaled, they err by about headDim
 * units of 2^-24. Weights err by as much relatively, by the exponential's 2^-21 and by a rounding for each key of a tile;
 * so does the weighted mean of values of size 1.
 */
function tolerance(call: CaseCall<PagedAttentionParams>): number[] {
  return [(call.inputs[0]!.shape[2] as number + 8 + 128) * 2 ** -24];
}

/**
 * Queries are rounded to f16: a score, of headDim products of size 0.64 over headDim^1/2, errs by 0.64 headDim^1/2 units of 2^-11 at
 * most, and weights by twice as much relatively. A tile of 32 weights times values is added up in f16: 32 roundings of 2^-11 of
 * partial sums of size 1, which add up like their square root, and one of each weight. Twice that, since the direction is open.
 */
function fastTolerance(call: CaseCall<PagedAttentionParams>): number[] {
  const headDim = call.inputs[0]!.shape[2] as number;
  return [tolerance(call)[0]! + 1.3 * Math.sqrt(headDim) * 2 ** -11 + 2 * (Math.sqrt(32) + 1) * 2 ** -11];
}

/** A piece of a prompt behind a long context, on GPUs cut in parts, alone or beside single queries. */
function longSetting(random: Random): AttentionSetting {
  const queries = random.integer(25, 40), singles = random.uniform() < 0.5 ? 0 : random.integer(9, 12);
  return {
    sequences: [...Array.from({ length: singles }, () => [1, random.integer(1, 40)] as const), [
      queries,
      random.integer(1025, 1100),
    ]],
    kvHeads: random.integer(1, 2),
    group: random.integer(1, 4),
    headDim: 32 * random.integer(1, 3),
    blockSize: 16,
    pool: "f16",
    padding: random.integer(0, 3),
    fast: true,
  };
}

const bench = (
  sequences: AttentionSetting["sequences"],
  kvHeads: number,
  group: number,
  headDim: number,
  how: Pick<AttentionSetting, "fast"> = {},
) =>
(random: Random) => attentionCall({ sequences, kvHeads, group, headDim, blockSize: 16, pool: "f16", ...how }, random);

/** Sequences that decode a token each, in steps with prompts. */
const decoding = Array.from({ length: 16 }, () => [1, 512] as const);

/** Cases of paged attention. */
export const cases: KernelCase<PagedAttentionParams>[] = [
  {
    name: "paged_attention as the device chooses",
    kernel: pagedAttentionKernel,
    random: (random) => attentionCall(randomSetting(random, [16, 20, 32, 64, 80], 20), random),
    tolerance,
    bench: {
      "stories, decode at 200": bench([[1, 200]], 2, 4, 64),
      "0.5B, decode at 512": bench([[1, 512]], 2, 7, 64),
      "0.5B, 8 decoding at 512": bench(Array.from({ length: 8 }, () => [1, 512] as const), 2, 7, 64),
      "0.5B, prefill of 128": bench([[128, 128]], 2, 7, 64),
      "7B, decode at 4096": bench([[1, 4096]], 4, 7, 128),
      "7B, prefill of 512": bench([[512, 512]], 4, 7, 128),
    },
  },
  {
    name: "paged_attention queries sharing a workgroup",
    kernel: pagedAttentionKernel,
    random: (random) => {
      const queries = ([2, 4, 8] as const)[random.integer(0, 2)]!;
      return attentionCall({ ...randomSetting(random, [16, 24, 64, 128], 30), queries }, random);
    },
    tolerance,
  },
  {
    name: "attention in the fast precision",
    kernel: attendKernel,
    random: (random) => {
      const setting = randomSetting(random, [32, 64, 80, 96, 128], 90);
      const prompt = [random.integer(40, 90), 90 + random.integer(0, 200)] as const;
      return attentionCall({ ...setting, sequences: [prompt, ...setting.sequences], pool: "f16", fast: true }, random);
    },
    tolerance: fastTolerance,
    bench: {
      "0.5B, prefill of 512": bench([[512, 512]], 2, 7, 64, { fast: true }),
      "0.5B, 48 queries at 8192": bench([[48, 8192]], 2, 7, 64, { fast: true }),
      "0.5B, 112 queries at 8192": bench([[112, 8192]], 2, 7, 64, { fast: true }),
      "0.5B, 48 queries at 8192 beside 16 decoding": bench([...decoding, [48, 8192]], 2, 7, 64, { fast: true }),
      "0.5B, 112 queries at 8192 beside 16 decoding": bench([...decoding, [112, 8192]], 2, 7, 64, { fast: true }),
      "7B, 48 queries at 8192": bench([[48, 8192]], 4, 7, 128, { fast: true }),
    },
  },
  {
    name: "attention of few queries to long contexts",
    kernel: attendKernel,
    random: (random) => attentionCall(longSetting(random), random),
    tolerance: fastTolerance,
  },
  {
    name: "paged_attention wide and odd heads",
    kernel: pagedAttentionKernel,
    random: (random) => attentionCall(randomSetting(random, [17, 30, 33, 96, 128, 192, 256], 4), random),
    tolerance,
  },
];
