/**
 * The frequencies of rotary position embeddings, and their cosines and sines as a table. All in float64: angles
 * computed in float32 are off by 6e-4 near position 32,767, and the error goes straight into the attention scores.
 *
 * Formulas: Su et al. 2021 (RoPE), Chen et al. 2023 (linear), Peng et al. 2023 (YaRN), Llama 3.1; with the defaults of
 * transformers' `modeling_rope_utils.py`.
 *
 * @module
 */
import type { Llama3Rope, RopeConfig, YarnRope } from "./rope_config.ts";

/** What turns positions into angles. */
export interface RopeFrequencies {
  /** [rotaryDim / 2], radians a position. */
  readonly inverseFrequencies: Float64Array;
  /** Factor on cosines and sines; 1 but for YaRN. */
  readonly attentionFactor: number;
}

/**
 * The frequencies of a rotary embedding: theta^(-2i / rotaryDim), scaled as its kind says.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { ropeFrequencies } from "./rope_frequencies.ts";
 *
 * const { inverseFrequencies } = ropeFrequencies({ kind: "linear", theta: 10000, rotaryDim: 4, factor: 2 });
 * assertEquals([...inverseFrequencies], [0.5, 0.005]);
 * ```
 */
export function ropeFrequencies(rope: RopeConfig): RopeFrequencies {
  const plain = Float64Array.from(
    { length: rope.rotaryDim / 2 },
    (_, i) => 1 / rope.theta ** (2 * i / rope.rotaryDim),
  );
  switch (rope.kind) {
    case "default":
      return { inverseFrequencies: plain, attentionFactor: 1 };
    case "linear":
      return { inverseFrequencies: plain.map((frequency) => frequency / rope.factor), attentionFactor: 1 };
    case "yarn":
      return { inverseFrequencies: yarnFrequencies(plain, rope), attentionFactor: yarnAttentionFactor(rope) };
    case "llama3":
      return { inverseFrequencies: plain.map((frequency) => llama3Frequency(frequency, rope)), attentionFactor: 1 };
  }
}

/** A ramp over the dimensions: frequencies before `low` stay, from `high` on they are divided by the factor. */
function yarnFrequencies(plain: Float64Array, rope: YarnRope): Float64Array {
  // The (fractional) dimension whose frequency turns so many times within the original context.
  const dimensionOf = (turns: number) =>
    rope.rotaryDim * Math.log(rope.originalMaxPositionEmbeddings / (turns * 2 * Math.PI)) / (2 * Math.log(rope.theta));
  let low = dimensionOf(rope.betaFast);
  let high = dimensionOf(rope.betaSlow);
  if (rope.truncate) [low, high] = [Math.floor(low), Math.ceil(high)];
  low = Math.max(low, 0);
  high = Math.min(high, rope.rotaryDim - 1);
  if (low === high) high += 0.001; // a step instead of a division by zero, as the reference has it
  return plain.map((frequency, i) => {
    const interpolated = Math.min(1, Math.max(0, (i - low) / (high - low)));
    return frequency / rope.factor * interpolated + frequency * (1 - interpolated);
  });
}

function yarnAttentionFactor(rope: YarnRope): number {
  if (rope.attentionFactor !== undefined) return rope.attentionFactor;
  const scale = (mscale: number) => rope.factor <= 1 ? 1 : 0.1 * mscale * Math.log(rope.factor) + 1;
  if (rope.mscale && rope.mscaleAllDim) return scale(rope.mscale) / scale(rope.mscaleAllDim);
  return scale(1);
}

function llama3Frequency(frequency: number, rope: Llama3Rope): number {
  const turns = rope.originalMaxPositionEmbeddings * frequency / (2 * Math.PI);
  if (turns < rope.lowFreqFactor) return frequency / rope.factor;
  if (turns > rope.highFreqFactor) return frequency;
  const kept = (turns - rope.lowFreqFactor) / (rope.highFreqFactor - rope.lowFreqFactor);
  return (1 - kept) * frequency / rope.factor + kept * frequency;
}

/**
 * The table that the rotation reads: for each position and pair of features the cosine and the sine of the angle, with
 * the attention factor applied.
 *
 * @param positions how many positions, from 0 on.
 * @returns [positions, rotaryDim / 2, 2]: cosine, then sine.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { ropeTable } from "./rope_frequencies.ts";
 *
 * const table = ropeTable({ kind: "default", theta: 10000, rotaryDim: 2 }, 2);
 * assertEquals([...table], [1, 0, Math.fround(Math.cos(1)), Math.fround(Math.sin(1))]);
 * ```
 */
export function ropeTable(rope: RopeConfig, positions: number): Float32Array<ArrayBuffer> {
  const { inverseFrequencies, attentionFactor } = ropeFrequencies(rope);
  const pairs = inverseFrequencies.length;
  const table = new Float32Array(positions * pairs * 2);
  for (let position = 0, at = 0; position < positions; position++) {
    for (let pair = 0; pair < pairs; pair++) {
      const angle = position * inverseFrequencies[pair]!;
      table[at++] = Math.cos(angle) * attentionFactor;
      table[at++] = Math.sin(angle) * attentionFactor;
    }
  }
  return table;
}
