/**
 * The names of all options, for callers whose types nobody checks: a misspelt one would go unnoticed.
 *
 * @module
 */
import type { LoadOptions } from "./model.ts";
import { nearest } from "./nearest.ts";
import type { GenerateOptions } from "./request.ts";

/** Every option of a request. */
const GENERATE: { readonly [Name in keyof GenerateOptions]-?: true } = {
  prompt: true,
  messages: true,
  tokens: true,
  signal: true,
  maxTokens: true,
  temperature: true,
  topK: true,
  topP: true,
  minP: true,
  repetitionPenalty: true,
  presencePenalty: true,
  frequencyPenalty: true,
  seed: true,
  stop: true,
  stopTokenIds: true,
  logitBias: true,
  ignoreEos: true,
  logprobs: true,
  n: true,
  priority: true,
  cacheSalt: true,
};

/** Every option of loading. */
const LOAD: { readonly [Name in keyof LoadOptions]-?: true } = {
  precision: true,
  kvDtype: true,
  device: true,
  contextLength: true,
  maxNumSeqs: true,
  maxNumBatchedTokens: true,
  kvMemory: true,
  prefixCache: true,
  policy: true,
  warmUp: true,
  revision: true,
  memoryLimit: true,
  debug: true,
  onProgress: true,
  signal: true,
};

const NAMES = { generate: Object.keys(GENERATE), load: Object.keys(LOAD) };

/**
 * What is wrong with the names of options, as half a sentence; undefined where there is nothing.
 *
 * @param options Options that are `undefined` count as not given.
 */
export function unknownOption(options: object, what: "generate" | "load"): string | undefined {
  const names = NAMES[what];
  const unknown = Object.entries(options).find(([name, value]) => value !== undefined && !names.includes(name))?.[0];
  if (unknown === undefined) return undefined;
  const meant = nearest(unknown, names);
  return `there is no option "${unknown}", ${
    meant === undefined ? `give ${names.join(", ")}` : `did you mean ${meant}?`
  }`;
}
