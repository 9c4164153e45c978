/** The recorded sampling rules, `filter` and `penalties`: on the GPU, and held against the reference on the way. */
import { penaltiesKernel } from "../../kernels/penalties.ts";
import { sampleKernel } from "../../kernels/sampling.ts";
import { filterReference, penaltiesReference } from "../../kernels/sampling_reference.ts";
import { encodeSamplingRows, rowWords, type SamplingRow } from "../../kernels/sampling_rows.ts";
import { type Device, openDevice } from "../../tensor/device.ts";
import { runKernel } from "../../tensor/run_kernel.ts";
import type { Operation } from "./operations.ts";
import { differValues, type RecordedTensor } from "./tensors.ts";

let device: Promise<Device> | undefined;
const gpu = (): Promise<Device> => device ??= openDevice();

/** Float32 rounding, of penalties or of probabilities, between the reference and the GPU. */
const ABSOLUTE_ERROR = 2e-6;
const RELATIVE_ERROR = 1e-5;

interface FilterParams {
  temperature: number[];
  top_k: number[];
  top_p: number[];
  min_p: number[];
}

interface PenaltiesParams {
  prompt_ids: number[][];
  output_ids: number[][];
  repetition_penalty: number[];
  presence_penalty: number[];
  frequency_penalty: number[];
}

/** A row's tokens, each with its count in the output. */
function history(prompt: readonly number[], output: readonly number[]): Map<number, number> {
  const counts = new Map(prompt.map((token) => [token, 0]));
  for (const token of output) counts.set(token, (counts.get(token) ?? 0) + 1);
  return counts;
}

function logitsInput({ shape, values }: RecordedTensor) {
  return { dtype: "f32" as const, shape: [...shape], data: Float32Array.from(values) };
}

/** Computes rows by the reference, and throws where the GPU gave something else. */
function holdAgainst(
  gpuValues: ArrayLike<number>,
  { shape, values }: RecordedTensor,
  row: (logits: ArrayLike<number>, index: number) => ArrayLike<number>,
): void {
  const vocabulary = shape[1]!;
  const expected = Array.from(
    { length: shape[0]! },
    (_, r) => Array.from(row(values.subarray(r * vocabulary, (r + 1) * vocabulary), r)),
  ).flat();
  const difference = differValues(gpuValues, expected, ABSOLUTE_ERROR, RELATIVE_ERROR);
  if (difference !== undefined) throw new Error(`GPU and reference differ: ${difference}`);
}

const filter: Operation = async ({ logits }, params) => {
  const { temperature, top_k, top_p, min_p } = params as unknown as FilterParams;
  const rows = temperature.map((t, r): SamplingRow => ({
    temperature: t,
    topK: top_k[r]!,
    topP: top_p[r]!,
    minP: min_p[r]!,
  }));
  const { rows: words } = encodeSamplingRows(rows);
  const [probs] = await runKernel(await gpu(), sampleKernel, {
    params: { result: "probabilities", adjusted: false },
    inputs: [logitsInput(logits!), { dtype: "u32", shape: [rows.length, rowWords], data: words }],
  });
  holdAgainst(probs!, logits!, (row, r) => filterReference(row, rows[r]!).probs);
  const kept = holdKept(probs!, logits!, rows);
  return { probs: probs!, kept };
};

/** The reference's kept tokens; throws where one that stays has no probability on the GPU, or the other way round. */
function holdKept(probs: ArrayLike<number>, { shape, values }: RecordedTensor, rows: readonly SamplingRow[]): number[] {
  const vocabulary = shape[1]!;
  const kept = rows.flatMap((
    row,
    r,
  ) => [...filterReference(values.subarray(r * vocabulary, (r + 1) * vocabulary), row).kept]);
  const other = kept.findIndex((stays, i) => (stays === 1) !== (probs[i]! > 0));
  if (other >= 0) {
    throw new Error(`GPU and reference differ: token ${other % vocabulary} of row ${Math.floor(other / vocabulary)}`);
  }
  return kept;
}

const penalties: Operation = async ({ logits }, params) => {
  const recorded = params as unknown as PenaltiesParams;
  const rows = recorded.prompt_ids.map((prompt, r): SamplingRow => ({
    repetitionPenalty: recorded.repetition_penalty[r]!,
    presencePenalty: recorded.presence_penalty[r]!,
    frequencyPenalty: recorded.frequency_penalty[r]!,
    history: history(prompt, recorded.output_ids[r]!),
  }));
  const { rows: words, adjustments } = encodeSamplingRows(rows);
  const [out] = await runKernel(await gpu(), penaltiesKernel, {
    params: {},
    inputs: [
      logitsInput(logits!),
      { dtype: "u32", shape: [rows.length, rowWords], data: words },
      { dtype: "i32", shape: [adjustments.length / 4, 4], data: adjustments },
    ],
  });
  holdAgainst(out!, logits!, (row, r) => penaltiesReference(row, rows[r]!));
  return { out: out! };
};

/** Rows for the table of operations. */
export const samplingOperations: Record<string, Operation> = { filter, penalties };
