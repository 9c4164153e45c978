/**
 * A decoder's shape, from the `config.json` of its checkpoint: one typed value for all families and for the spellings
 * of transformers 4 and 5, checked before anything is allocated by it.
 *
 * @module
 */
import { z } from "zod";
import { checkJson, UnsupportedModelError } from "./config_json.ts";
import { type MlxQuantization, parseQuantization } from "./quantization.ts";
import { parseRope, type RopeConfig } from "./rope_config.ts";
import { readJson, type Source } from "./source.ts";

export { UnsupportedModelError } from "./config_json.ts";

/** The families of decoders that share one implementation. */
export type ModelType = "qwen2" | "qwen3" | "llama";

/** A decoder's shape. */
export interface DecoderConfig {
  /** Its family. */
  readonly modelType: ModelType;
  /** Width of the residual stream. */
  readonly hiddenSize: number;
  /** Width of the feed-forward layer. */
  readonly intermediateSize: number;
  /** Decoder layers. */
  readonly numLayers: number;
  /** Query heads. */
  readonly numHeads: number;
  /** Key and value heads; divides `numHeads`. */
  readonly numKvHeads: number;
  /** Features of a head; even. */
  readonly headDim: number;
  /** Rows of the embedding. */
  readonly vocabSize: number;
  /** What RMSNorm adds to the mean of squares. */
  readonly rmsNormEps: number;
  /** Whether the head is the embedding, transposed; then `lm_head` is ignored. */
  readonly tieWordEmbeddings: boolean;
  /** The longest context, in tokens, as the config gives it. */
  readonly maxPositionEmbeddings: number;
  /** The longest context with YaRN's scaling counted in, where the config gives only the original one. */
  readonly contextLength: number;
  /** Whether the projections to queries, keys and values have biases. */
  readonly attentionBias: boolean;
  /** Whether the attention's output projection has a bias. */
  readonly attentionOutputBias: boolean;
  /** Whether the feed-forward projections have biases. */
  readonly mlpBias: boolean;
  /** Whether queries and keys are normalised per head before the rotation. */
  readonly qkNorm: boolean;
  /** Its rotary position embedding. */
  readonly rope: RopeConfig;
  /** MLX's quantisation; see `quantizationOf`. */
  readonly quantization?: MlxQuantization;
  /** Ids that end a sequence; those of `generation_config.json` replace them. */
  readonly eosTokenIds: readonly number[];
  /** The id that begins a sequence. */
  readonly bosTokenId?: number;
}

/** What differs between the families. */
interface Family {
  /** Biases of the q, k, v projections, and of the output projection, given the config's `attention_bias`. */
  biases(attentionBias: boolean): { attentionBias: boolean; attentionOutputBias: boolean };
  readonly qkNorm: boolean;
  /** transformers' default of `head_dim`, where it is not hiddenSize / numHeads. */
  readonly headDim?: number;
  /** transformers' default of `max_position_embeddings`. */
  readonly maxPositionEmbeddings: number;
}

const FAMILIES: Record<ModelType, Family> = {
  qwen2: {
    biases: () => ({ attentionBias: true, attentionOutputBias: false }),
    qkNorm: false,
    maxPositionEmbeddings: 32_768,
  },
  qwen3: {
    biases: (bias) => ({ attentionBias: bias, attentionOutputBias: bias }),
    qkNorm: true,
    headDim: 128,
    maxPositionEmbeddings: 32_768,
  },
  llama: {
    biases: (bias) => ({ attentionBias: bias, attentionOutputBias: bias }),
    qkNorm: false,
    maxPositionEmbeddings: 2048,
  },
};

/** Families whose turn comes later. */
const NOT_YET = ["qwen2_moe", "qwen3_moe"];

/** Far above any model there is, far below what would overflow a byte count. */
const width = z.int().positive().max(2 ** 20);
const tokenId = z.int().nonnegative();

const CONFIG = z.looseObject({
  hidden_size: width,
  intermediate_size: width,
  num_hidden_layers: z.int().positive().max(4096),
  num_attention_heads: z.int().positive().max(4096),
  num_key_value_heads: z.int().positive().optional(),
  head_dim: z.int().positive().max(4096).optional(),
  vocab_size: z.int().positive().max(2 ** 24),
  rms_norm_eps: z.number().positive().max(1).default(1e-6),
  tie_word_embeddings: z.boolean().optional(),
  max_position_embeddings: z.int().positive().max(2 ** 31).optional(),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  hidden_act: z.string().default("silu"),
  use_sliding_window: z.boolean().default(false),
  sliding_window: z.int().positive().optional(),
  max_window_layers: z.int().nonnegative().optional(),
  layer_types: z.array(z.string()).optional(),
  rope_theta: z.number().optional(),
  partial_rotary_factor: z.number().optional(),
  rope_scaling: z.looseObject({}).optional(),
  rope_parameters: z.looseObject({}).optional(),
  eos_token_id: z.union([tokenId, z.array(tokenId)]).optional(),
  bos_token_id: z.union([tokenId, z.array(tokenId)]).optional(),
});

type Fields = z.infer<typeof CONFIG>;

/**
 * Reads a parsed `config.json`.
 *
 * @throws {UnsupportedModelError} for model types, quantisations and attention forms that are not supported.
 * @throws {Error} for fields that are absent, of a wrong type, or contradict each other.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { parseConfig } from "./config.ts";
 *
 * const config = parseConfig({
 *   model_type: "qwen2", hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2,
 *   num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 100, rope_theta: 1e6,
 * });
 * assertEquals([config.headDim, config.rope.theta, config.attentionBias], [16, 1e6, true]);
 * ```
 */
export function parseConfig(json: unknown): DecoderConfig {
  const raw = checkJson(z.looseObject({ model_type: z.string() }), "config.json", json);
  const modelType = checkModelType(raw.model_type);
  const quantization = parseQuantization(raw, modelType);
  const fields = checkJson(CONFIG, "config.json", raw);
  checkSupported(fields, modelType);
  const family = FAMILIES[modelType];
  const headDim = checkHeads(fields, family);
  const maxPositionEmbeddings = fields.max_position_embeddings ?? family.maxPositionEmbeddings;
  const rope = parseRope(fields.rope_parameters ?? fields.rope_scaling, {
    headDim,
    maxPositionEmbeddings,
    theta: fields.rope_theta,
    partialRotaryFactor: fields.partial_rotary_factor,
  });
  const bosTokenId = [fields.bos_token_id ?? []].flat()[0];
  return {
    modelType,
    hiddenSize: fields.hidden_size,
    intermediateSize: fields.intermediate_size,
    numLayers: fields.num_hidden_layers,
    numHeads: fields.num_attention_heads,
    numKvHeads: fields.num_key_value_heads ?? fields.num_attention_heads,
    headDim,
    vocabSize: fields.vocab_size,
    rmsNormEps: fields.rms_norm_eps,
    // mlx-lm writes no key where it takes its own default, and that is tied for Qwen2; transformers' is untied.
    tieWordEmbeddings: fields.tie_word_embeddings ?? (modelType === "qwen2" && quantization !== undefined),
    maxPositionEmbeddings,
    contextLength: contextLength(rope, maxPositionEmbeddings),
    ...family.biases(fields.attention_bias),
    mlpBias: modelType === "llama" && fields.mlp_bias,
    qkNorm: family.qkNorm,
    rope,
    ...(quantization && { quantization }),
    eosTokenIds: [fields.eos_token_id ?? []].flat(),
    ...(bosTokenId !== undefined && { bosTokenId }),
  };
}

/**
 * Reads the `config.json` of a source.
 *
 * @throws as {@link parseConfig}, and for a source without one.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { memorySource, readConfig } from "@tinyllm/tinyllm/model";
 *
 * const source = memorySource({
 *   "config.json": JSON.stringify({
 *     model_type: "qwen2", hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2,
 *     num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 100, rope_theta: 1e6,
 *   }),
 * });
 * assertEquals((await readConfig(source)).numLayers, 2);
 * ```
 */
export async function readConfig(source: Source): Promise<DecoderConfig> {
  const json = await readJson(source, "config.json");
  if (json === undefined) throw new Error(`Cannot load a model from "${source.name}": it has no config.json`);
  return parseConfig(json);
}

function checkModelType(modelType: string): ModelType {
  if (Object.hasOwn(FAMILIES, modelType)) return modelType as ModelType;
  const known = Object.keys(FAMILIES).join(", ");
  throw new UnsupportedModelError(
    modelType,
    NOT_YET.includes(modelType)
      ? `mixture-of-experts models are not supported yet; supported are ${known}`
      : `supported are ${known}`,
  );
}

function checkSupported(fields: Fields, modelType: ModelType): void {
  if (fields.hidden_act !== "silu" && fields.hidden_act !== "swish") {
    throw new UnsupportedModelError(modelType, `its activation is "${fields.hidden_act}"; supported is silu`);
  }
  const layers = slidingLayers(fields, modelType);
  if (layers > 0) {
    throw new UnsupportedModelError(
      modelType,
      `${layers} of its layers attend in a sliding window of ${fields.sliding_window}, which is not supported yet`,
    );
  }
}

/** How many layers attend in a window shorter than the context, by transformers' rules. */
function slidingLayers(fields: Fields, modelType: ModelType): number {
  const { sliding_window: window, num_hidden_layers: layers, max_position_embeddings: context } = fields;
  if (modelType === "llama" || !fields.use_sliding_window || window === undefined) return 0;
  if (context !== undefined && window >= context) return 0;
  if (fields.layer_types) return fields.layer_types.filter((type) => type === "sliding_attention").length;
  return Math.max(0, layers - (fields.max_window_layers ?? 28));
}

/** The size of a head, once heads, key and value heads and width are known to fit each other. */
function checkHeads(fields: Fields, family: Family): number {
  const { hidden_size: hidden, num_attention_heads: heads } = fields;
  const kvHeads = fields.num_key_value_heads ?? heads;
  if (heads % kvHeads !== 0) {
    throw new Error(`Cannot load config.json: ${heads} attention heads cannot share ${kvHeads} key and value heads`);
  }
  const headDim = fields.head_dim ?? family.headDim ?? hidden / heads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0) {
    throw new Error(
      `Cannot load config.json: head_dim is ${headDim} (hidden_size ${hidden}, ${heads} heads), expected even`,
    );
  }
  return headDim;
}

/** Qwen's model cards add YaRN to the config and leave max_position_embeddings at the original context. */
function contextLength(rope: RopeConfig, maxPositionEmbeddings: number): number {
  if (rope.kind !== "yarn") return maxPositionEmbeddings;
  return Math.max(maxPositionEmbeddings, Math.floor(rope.originalMaxPositionEmbeddings * rope.factor));
}
