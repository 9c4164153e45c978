/** Cases of argmax, penalties and sampling: odd vocabularies, ties, minus infinity as the least f32, rows that all differ. */
import { argmaxKernel, argmaxMergeKernel, type ArgmaxParams, argmaxSlicesKernel } from "./argmax.ts";
import { penaltiesKernel, type PenaltiesParams } from "./penalties.ts";
import { sampleKernel, type SampleParams } from "./sampling.ts";
import { filterReference, logSumExpReference, sampleReference } from "./sampling_reference.ts";
import { decodeSamplingRow, encodeSamplingRows, mostInFlight, type SamplingRow } from "./sampling_rows.ts";
import type { CaseCall, CaseInput, KernelCase, Random } from "./spec.ts";

/** Decisions nearer to their threshold than this may fall either way in f32. */
const CLOSE = 2e-5;

const pickOne = <T>(random: Random, values: readonly T[]): T => values[random.integer(0, values.length - 1)]!;

/** Logits [rows, vocabulary], some rows on a coarse grid so that values tie, some tokens masked. */
export function randomLogits(random: Random, rows: number, vocabulary: number): CaseInput {
  const data = new Float32Array(rows * vocabulary);
  for (let row = 0; row < rows; row++) {
    const coarse = random.uniform() < 0.4, masked = random.uniform() < 0.3, scale = pickOne(random, [1, 3, 8]);
    for (let token = 0; token < vocabulary; token++) {
      const logit = random.normal() * scale;
      const hidden = masked && token > 0 && random.uniform() < 0.2;
      data[row * vocabulary + token] = hidden ? -3.4028234e38 : coarse ? Math.round(logit * 2) / 2 : logit;
    }
  }
  return { dtype: "f32", shape: [rows, vocabulary], data };
}

/** Settings with each filter on or off at random. */
export function randomSamplingRow(random: Random, vocabulary: number): SamplingRow {
  const token = (): number => random.integer(0, vocabulary - 1);
  const entries = (value: () => number): Map<number, number> =>
    new Map(Array.from({ length: random.integer(0, Math.min(20, vocabulary)) }, () => [token(), value()]));
  return {
    temperature: pickOne(random, [0, 0.3, 0.7, 1, 1, 1.7]),
    topK: pickOne(random, [0, 0, 1, 3, 20, vocabulary]),
    topP: pickOne(random, [1, 1, 0, 0.5, 0.9, 0.99]),
    minP: pickOne(random, [0, 0, 0.05, 0.2, 1]),
    repetitionPenalty: pickOne(random, [1, 1.1, 0.8, 1.5]),
    presencePenalty: pickOne(random, [0, 0.5, -0.5]),
    frequencyPenalty: pickOne(random, [0, 0.3, -0.2]),
    seed: BigInt(random.integer(0, 2 ** 32 - 1)) << BigInt(random.integer(0, 32)),
    index: random.integer(0, 4000),
    history: entries(() => random.integer(0, 3)),
    logitBias: random.uniform() < 0.3 ? entries(() => random.normal() * 5) : new Map(),
  };
}

const vocabularies = [1, 2, 7, 50, 64, 257, 1003, 4096];

function rowsInput(rows: Uint32Array<ArrayBuffer>): CaseInput {
  return { dtype: "u32", shape: [rows.length / 12, 12], data: rows };
}

/** With slots some rows have tokens that only these know: new ones, ones of their history or bias, ones twice. */
function penaltiesCall(random: Random, rows: number, vocabulary: number, slots = 0): CaseCall<PenaltiesParams> {
  const settings = Array.from({ length: rows }, () => ({
    ...randomSamplingRow(random, vocabulary),
    ...(slots > 0 && {
      inFlight: Array.from({ length: random.integer(0, mostInFlight) }, () => random.integer(0, slots - 1)),
    }),
  }));
  const encoded = encodeSamplingRows(settings), entries = encoded.adjustments.length / 4;
  return {
    params: {},
    inputs: [
      randomLogits(random, rows, vocabulary),
      rowsInput(encoded.rows),
      { dtype: "i32", shape: [entries, 4], data: encoded.adjustments },
      ...(slots > 0 ? [slotsInput(random, slots, vocabulary)] : []),
    ],
  };
}

function slotsInput(random: Random, slots: number, vocabulary: number): CaseInput {
  const data = Int32Array.from({ length: slots }, () => random.integer(0, Math.min(vocabulary, 30) - 1));
  return { dtype: "i32", shape: [slots], data };
}

function sampleCall(random: Random, params: SampleParams, rows: number, vocabulary: number): CaseCall<SampleParams> {
  const settings = Array.from({ length: rows }, () => randomSamplingRow(random, vocabulary));
  const values = randomLogits(random, rows, vocabulary),
    inputs = [values, rowsInput(encodeSamplingRows(settings).rows)];
  if (!params.adjusted) return { params, inputs };
  const raw = randomLogits(random, rows, vocabulary);
  const logSumExp = Float32Array.from({ length: rows }, (_, r) => logSumExpReference(rowOf(raw, r)));
  return { params, inputs: [...inputs, raw, { dtype: "f32", shape: [rows], data: logSumExp }] };
}

const rowOf = ({ shape, data }: CaseInput, row: number): ArrayLike<number> =>
  data.subarray(row * (shape[1] as number), (row + 1) * (shape[1] as number));

/** f32 rounding of log-probabilities: of the logits and of a sum of exponentials. */
const logprobTolerance = (logprobs: Float64Array): Float64Array => logprobs.map((x) => 1e-5 * (1 + Math.abs(x)));

function argmaxCase(
  name: string,
  kernel: KernelCase<ArgmaxParams>["kernel"],
  logprob: boolean,
): KernelCase<ArgmaxParams> {
  return {
    name,
    kernel,
    random(random) {
      const vocabulary = kernel === argmaxKernel ? pickOne(random, vocabularies) : random.integer(8000, 20000);
      return { params: { logprob }, inputs: [randomLogits(random, random.integer(1, 5), vocabulary)] };
    },
    tolerance: (_, reference) => {
      if (kernel === argmaxKernel) return logprob ? [0, logprobTolerance(reference[1]!)] : [0];
      return logprob ? [0, 0, reference[2]!.map((sum) => 1e-5 * sum)] : [0, 0];
    },
    bench: {
      "stories": (random) => ({ params: { logprob }, inputs: [randomLogits(random, 1, 8192)] }),
      "0.5B": (random) => ({ params: { logprob }, inputs: [randomLogits(random, 1, 151936)] }),
    },
  };
}

const mergeCase: KernelCase<ArgmaxParams> = {
  name: "argmax_merge",
  kernel: argmaxMergeKernel,
  random(random) {
    const rows = random.integer(1, 5), slices = random.integer(2, 20), shape = [rows, slices], count = rows * slices;
    return {
      params: { logprob: true },
      inputs: [
        { dtype: "f32", shape, data: Float32Array.from({ length: count }, () => Math.round(random.normal() * 3)) },
        {
          dtype: "i32",
          shape,
          data: Int32Array.from({ length: count }, (_, i) => (i % slices) * 8192 + random.integer(0, 8191)),
        },
        { dtype: "f32", shape, data: Float32Array.from({ length: count }, () => 1 + random.uniform() * 100) },
      ],
    };
  },
  tolerance: (_, reference) => [0, logprobTolerance(reference[1]!)],
};

const penaltiesCase = (name: string, slots: number): KernelCase<PenaltiesParams> => ({
  name,
  kernel: penaltiesKernel,
  random: (random) => penaltiesCall(random, random.integer(1, 5), pickOne(random, vocabularies), slots),
  // A division (2.5 ulp), three subtractions and an addition; the terms are below 10 where they are added.
  tolerance: (_, [adjusted, logSumExp]) => [
    adjusted!.map((x) => 1e-6 * Math.abs(x) + 4e-6),
    logprobTolerance(logSumExp!),
  ],
  bench: { "0.5B, 8 rows": (random) => penaltiesCall(random, 8, 151936, slots) },
});

function sampleCase(name: string, params: SampleParams): KernelCase<SampleParams> {
  return {
    name,
    kernel: sampleKernel,
    random: (random) => sampleCall(random, params, random.integer(1, 5), pickOne(random, vocabularies)),
    tolerance: (call, reference) =>
      params.result === "token" ? drawTolerance(call, reference) : probabilityTolerance(call, reference),
    bench: {
      "0.5B, one row": (random) => sampleCall(random, params, 1, 151936),
      "7B, 32 rows": (random) => sampleCall(random, params, 32, 152064),
    },
  };
}

/** Tokens are exact unless the reference says that a decision was close. */
function drawTolerance(
  { inputs }: CaseCall<SampleParams>,
  [tokens, logprobs]: readonly Float64Array[],
): Float64Array[] {
  const [values, rows] = inputs;
  const close = Array.from(
    tokens!,
    (_, r) => sampleReference(rowOf(values!, r), decodeSamplingRow(rows!.data, r)).margin < CLOSE,
  );
  const tolerance = logprobTolerance(logprobs!);
  return [tokens!.map((_, r) => close[r] ? 1e9 : 0), tolerance.map((t, r) => close[r] ? 1e9 : t)];
}

function probabilityTolerance(
  { inputs }: CaseCall<SampleParams>,
  [reference]: readonly Float64Array[],
): Float64Array[] {
  const [values, rows] = inputs, vocabulary = values!.shape[1] as number;
  const close = Array.from(
    { length: reference!.length / vocabulary },
    (_, r) => filterReference(rowOf(values!, r), decodeSamplingRow(rows!.data, r)).margin < CLOSE,
  );
  return [reference!.map((p, i) => close[Math.floor(i / vocabulary)] ? 1 : 2e-5 * p)];
}

/** Every kernel of sampling. */
export const cases: readonly KernelCase<unknown>[] = [
  argmaxCase("argmax", argmaxKernel, false),
  argmaxCase("argmax with log-probability", argmaxKernel, true),
  argmaxCase("argmax_slices", argmaxSlicesKernel, false),
  argmaxCase("argmax_slices with sums", argmaxSlicesKernel, true),
  mergeCase,
  penaltiesCase("penalties", 0),
  penaltiesCase("penalties, tokens in slots too", 40),
  sampleCase("sample", { result: "token", adjusted: false }),
  sampleCase("sample after penalties", { result: "token", adjusted: true }),
  sampleCase("filtered probabilities", { result: "probabilities", adjusted: false }),
] as readonly KernelCase<unknown>[];
