/** The GPU's way to compute the recorded sampling rules, `filter` and `penalties`. */
import { applyPenalties } from "../../kernels/penalties.ts";
import { filteredProbabilities } from "../../kernels/sampling.ts";
import { adjustmentWords, encodeSamplingRows, rowWords, type SamplingRow } from "../../kernels/sampling_rows.ts";
import { Tensor, tensor } from "../../tensor/tensor.ts";
import type { Results } from "./operations.ts";
import type { RecordedTensor } from "./tensors.ts";

function logitsTensor({ values, shape }: RecordedTensor): Tensor {
  return tensor(Float32Array.from(values), { shape });
}

/** Which tokens stay, and the softmax over them: a setting for each row of logits [rows, vocabulary]. */
export async function filterOnGpu(logits: RecordedTensor, settings: readonly SamplingRow[]): Promise<Results> {
  const rows = tensor(encodeSamplingRows(settings).rows, { shape: [settings.length, rowWords] });
  const probs = await new Tensor(filteredProbabilities(logitsTensor(logits).node, rows.node)).data();
  return { kept: Array.from(probs, (p) => p > 0 ? 1 : 0), probs };
}

/** Logits after penalties: a setting with its history for each row of logits [rows, vocabulary]. */
export async function penaltiesOnGpu(logits: RecordedTensor, settings: readonly SamplingRow[]): Promise<Results> {
  const encoded = encodeSamplingRows(settings);
  const rows = tensor(encoded.rows, { shape: [settings.length, rowWords] });
  const entries = encoded.adjustments.length / adjustmentWords;
  const adjustments = tensor(encoded.adjustments, { shape: [entries, adjustmentWords] });
  return { out: await new Tensor(applyPenalties(logitsTensor(logits).node, rows.node, adjustments.node)).data() };
}
