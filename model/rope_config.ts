/**
 * How a checkpoint stretches its rotary position embedding, in the two spellings that configs have: `rope_theta` with
 * `rope_scaling`, and transformers 5's `rope_parameters`, which holds both.
 *
 * @module
 */
import { z } from "zod";

/** What every kind of rotary embedding has. */
export interface RopeBase {
  /** The base of the frequencies: theta^(-2i / rotaryDim). */
  readonly theta: number;
  /** How many features of a head turn; the rest pass through. */
  readonly rotaryDim: number;
}

/** Su et al. 2021, unscaled. */
export interface DefaultRope extends RopeBase {
  /** Tells the kinds apart. */
  readonly kind: "default";
}

/** Position interpolation (Chen et al. 2023): all frequencies divided by `factor`. */
export interface LinearRope extends RopeBase {
  /** Tells the kinds apart. */
  readonly kind: "linear";
  /** How many times longer the context becomes. */
  readonly factor: number;
}

/** YaRN (Peng et al. 2023): low frequencies interpolated, high ones kept, cosines and sines scaled. */
export interface YarnRope extends RopeBase {
  /** Tells the kinds apart. */
  readonly kind: "yarn";
  /** How many times longer the context becomes. */
  readonly factor: number;
  /** The context that the model was trained on before scaling. */
  readonly originalMaxPositionEmbeddings: number;
  /** Frequencies that turn more often than this within the original context are kept. */
  readonly betaFast: number;
  /** Frequencies that turn less often than this are interpolated in full. */
  readonly betaSlow: number;
  /** Whether the ramp between the two begins and ends at whole dimensions. */
  readonly truncate: boolean;
  /** Scale of cosines and sines, where the config gives it; else it follows from `factor`. */
  readonly attentionFactor?: number;
  /** DeepSeek's scale of the attention factor, used only with `mscaleAllDim`. */
  readonly mscale?: number;
  /** The divisor that belongs to `mscale`. */
  readonly mscaleAllDim?: number;
}

/** Llama 3.1: long wavelengths divided by `factor`, short ones kept, a smooth passage between. */
export interface Llama3Rope extends RopeBase {
  /** Tells the kinds apart. */
  readonly kind: "llama3";
  /** What long wavelengths' frequencies are divided by. */
  readonly factor: number;
  /** Frequencies that turn less often than this within the original context are divided in full. */
  readonly lowFreqFactor: number;
  /** Frequencies that turn more often than this are kept. */
  readonly highFreqFactor: number;
  /** The context that the model was trained on before scaling. */
  readonly originalMaxPositionEmbeddings: number;
}

/** A rotary embedding, by kind. */
export type RopeConfig = DefaultRope | LinearRope | YarnRope | Llama3Rope;

const positive = z.number().positive();
const factor = z.number().min(1);
const positions = z.int().positive().max(2 ** 31);

/** The object under `rope_scaling` or `rope_parameters`, its kind already told from the rest. */
const ROPE_KINDS = {
  default: z.looseObject({}),
  linear: z.looseObject({ factor }),
  yarn: z.looseObject({
    factor: factor.optional(),
    original_max_position_embeddings: positions.optional(),
    beta_fast: positive.optional(),
    beta_slow: positive.optional(),
    truncate: z.boolean().optional(),
    attention_factor: positive.optional(),
    mscale: z.number().optional(),
    mscale_all_dim: z.number().optional(),
  }),
  llama3: z.looseObject({
    factor,
    low_freq_factor: positive,
    high_freq_factor: positive,
    original_max_position_embeddings: positions,
  }),
};

/** What of the rest of the config a rotary embedding depends on. */
export interface RopeSurroundings {
  /** Features of a head. */
  readonly headDim: number;
  /** The longest context as the config gives it. */
  readonly maxPositionEmbeddings: number;
  /** The config's own `rope_theta`, where `rope_parameters` has none. */
  readonly theta: number | undefined;
  /** The config's own `partial_rotary_factor`. */
  readonly partialRotaryFactor: number | undefined;
}

/**
 * Reads `rope_scaling` or `rope_parameters`.
 *
 * @param scaling the object, nulls removed; undefined where the config has neither.
 * @throws {Error} for an unknown kind, or numbers that make no sense.
 */
export function parseRope(scaling: Record<string, unknown> | undefined, surroundings: RopeSurroundings): RopeConfig {
  const kind = scaling?.rope_type ?? scaling?.type ?? "default";
  if (typeof kind !== "string" || !Object.hasOwn(ROPE_KINDS, kind)) {
    const known = Object.keys(ROPE_KINDS).join(", ");
    throw new Error(
      `Cannot load config.json: rotary embedding of kind ${JSON.stringify(kind)}; supported are ${known}`,
    );
  }
  const partial = checked(positive.max(1), scaling?.partial_rotary_factor ?? surroundings.partialRotaryFactor ?? 1);
  const rotaryDim = Math.trunc(surroundings.headDim * partial);
  if (rotaryDim < 2 || rotaryDim % 2 !== 0) {
    throw new Error(
      `Cannot load config.json: ${rotaryDim} of ${surroundings.headDim} features turn, expected an even number`,
    );
  }
  const theta = checked(z.number().gt(1), scaling?.rope_theta ?? surroundings.theta ?? 10_000);
  return scaledRope(
    kind as RopeConfig["kind"],
    { theta, rotaryDim },
    scaling ?? {},
    surroundings.maxPositionEmbeddings,
  );
}

function scaledRope(
  kind: RopeConfig["kind"],
  base: RopeBase,
  scaling: Record<string, unknown>,
  maxPositionEmbeddings: number,
): RopeConfig {
  switch (kind) {
    case "default":
      return { kind, ...base };
    case "linear":
      return { kind, ...base, factor: checked(ROPE_KINDS.linear, scaling).factor };
    case "yarn":
      return yarnRope(base, checked(ROPE_KINDS.yarn, scaling), maxPositionEmbeddings);
    case "llama3": {
      const fields = checked(ROPE_KINDS.llama3, scaling);
      if (fields.high_freq_factor <= fields.low_freq_factor) {
        throw new Error(
          `Cannot load config.json: high_freq_factor ${fields.high_freq_factor} is not above low_freq_factor ` +
            `${fields.low_freq_factor}`,
        );
      }
      return {
        kind,
        ...base,
        factor: fields.factor,
        lowFreqFactor: fields.low_freq_factor,
        highFreqFactor: fields.high_freq_factor,
        originalMaxPositionEmbeddings: fields.original_max_position_embeddings,
      };
    }
  }
}

/** Defaults as transformers' `_compute_yarn_parameters` has them; a factor left out is the contexts' ratio. */
function yarnRope(base: RopeBase, fields: z.infer<typeof ROPE_KINDS.yarn>, maxPositionEmbeddings: number): YarnRope {
  const original = fields.original_max_position_embeddings ?? maxPositionEmbeddings;
  return {
    kind: "yarn",
    ...base,
    factor: fields.factor ?? Math.max(1, maxPositionEmbeddings / original),
    originalMaxPositionEmbeddings: original,
    betaFast: fields.beta_fast ?? 32,
    betaSlow: fields.beta_slow ?? 1,
    truncate: fields.truncate ?? true,
    ...(fields.attention_factor !== undefined && { attentionFactor: fields.attention_factor }),
    ...(fields.mscale !== undefined && { mscale: fields.mscale }),
    ...(fields.mscale_all_dim !== undefined && { mscaleAllDim: fields.mscale_all_dim }),
  };
}

function checked<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0]!;
  throw new Error(`Cannot load config.json: rotary embedding: ${issue.path.map(String).join(".")} ${issue.message}`);
}
