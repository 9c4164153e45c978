/**
 * Shapes of real models, for benches over random weights: time depends on sizes, not on values.
 *
 * @module
 */
import { type DecoderConfig, parseConfig } from "../model/config.ts";
import { UsageError } from "./arguments.ts";

/** A shape by name, from the published `config.json` of Qwen2.5 of that size, or of the story model. */
export type ShapeName = "stories" | "0.5b" | "1.5b" | "7b";

const sizes: Readonly<Record<ShapeName, readonly [number, number, number, number, number, number, boolean]>> = {
  // hidden, layers, heads, KV heads, feed-forward, vocabulary, tied
  "stories": [512, 8, 8, 2, 1408, 8192, true],
  "0.5b": [896, 24, 14, 2, 4864, 151936, true],
  "1.5b": [1536, 28, 12, 2, 8960, 151936, true],
  "7b": [3584, 28, 28, 4, 18944, 152064, false],
};

/** Names of all shapes. */
export const shapeNames: readonly ShapeName[] = Object.keys(sizes) as ShapeName[];

/** The config of a shape. */
export function shapeConfig(name: ShapeName): DecoderConfig {
  const [hidden, layers, heads, kvHeads, feedForward, vocabulary, tied] = sizes[name];
  return parseConfig({
    model_type: "qwen2",
    hidden_size: hidden,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    intermediate_size: feedForward,
    vocab_size: vocabulary,
    tie_word_embeddings: tied,
    rope_theta: 1e6,
    max_position_embeddings: 32768,
    rms_norm_eps: 1e-6,
  });
}

/**
 * Refuses sequences that are longer than a shape allows.
 *
 * @throws {UsageError} with what they take, and how much less would do.
 */
export function checkPositions(shape: ShapeName, positions: number): void {
  const most = shapeConfig(shape).contextLength;
  if (positions <= most) return;
  throw new UsageError(
    `A sequence takes ${positions} positions with what is timed of it, and ${shape} has ${most}: ask for ` +
      `${positions - most} tokens less`,
  );
}
