/**
 * How a checkpoint wishes to be sampled, from its `generation_config.json`.
 *
 * @module
 */
import { z } from "zod";
import { checkJson } from "./config_json.ts";
import { readJson, type Source } from "./source.ts";

/** A checkpoint's sampling defaults; what its file does not say is absent. */
export interface GenerationConfig {
  /** Above 0; `Infinity` draws uniformly. */
  readonly temperature?: number;
  /** The number of likeliest tokens to draw from; 0: all. */
  readonly topK?: number;
  /** The least probability mass to draw from, 0 to 1. */
  readonly topP?: number;
  /** The least probability, relative to the likeliest token's, 0 to 1. */
  readonly minP?: number;
  /** Divides positive and multiplies negative logits of tokens already present; 1: none. */
  readonly repetitionPenalty?: number;
  /** Ids that end a sequence; empty where the file names none, and then config.json's count. */
  readonly eosTokenIds: readonly number[];
  /** The most tokens to generate. */
  readonly maxNewTokens?: number;
  /** Whether to sample at all; greedy where false. */
  readonly doSample?: boolean;
}

/** Any number but NaN: Zod's own refuses Infinity. */
const number = (least: number, most: number) =>
  z.custom<number>((value) => typeof value === "number" && value >= least && value <= most, {
    error: `expected a number from ${least} to ${most}`,
  });
const tokenId = z.int().nonnegative();

const GENERATION_CONFIG = z.looseObject({
  temperature: number(0, Infinity).optional(),
  top_k: z.int().nonnegative().optional(),
  top_p: number(0, 1).optional(),
  min_p: number(0, 1).optional(),
  repetition_penalty: number(0, Infinity).optional(),
  eos_token_id: z.union([tokenId, z.array(tokenId)]).optional(),
  max_new_tokens: z.int().positive().optional(),
  do_sample: z.boolean().optional(),
});

/**
 * Reads a parsed `generation_config.json`.
 *
 * @throws {Error} for a field of a wrong type or outside its range.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { parseGenerationConfig } from "./generation_config.ts";
 *
 * const config = parseGenerationConfig({ temperature: 0.7, eos_token_id: 2, top_k: null });
 * assertEquals(config, { temperature: 0.7, eosTokenIds: [2] });
 * ```
 */
export function parseGenerationConfig(json: unknown): GenerationConfig {
  const fields = checkJson(GENERATION_CONFIG, "generation_config.json", json);
  const config = {
    temperature: fields.temperature,
    topK: fields.top_k,
    topP: fields.top_p,
    minP: fields.min_p,
    repetitionPenalty: fields.repetition_penalty,
    eosTokenIds: [fields.eos_token_id ?? []].flat(),
    maxNewTokens: fields.max_new_tokens,
    doSample: fields.do_sample,
  };
  return Object.fromEntries(
    Object.entries(config).filter(([, value]) => value !== undefined),
  ) as unknown as GenerationConfig;
}

/** Reads the `generation_config.json` of a source; a source without one has no wishes. */
export async function readGenerationConfig(source: Source): Promise<GenerationConfig> {
  return parseGenerationConfig(await readJson(source, "generation_config.json") ?? {});
}
