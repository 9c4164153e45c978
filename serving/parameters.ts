/**
 * From what a caller asks for to what the engine does: defaults of the checkpoint filled in, every value checked.
 *
 * @module
 */
import type { GenerationConfig } from "../model/generation_config.ts";
import { MAX_TOP_LOGPROBS } from "./engine_types.ts";
import { unknownOption } from "./option_names.ts";
import type { SamplingOptions } from "./request.ts";
import { RequestError } from "./request_error.ts";
import type { SequenceSampling } from "./sequence.ts";

/** What a model brings into the resolution of a request's options. */
export interface ParameterDefaults {
  /** The checkpoint's wishes. */
  readonly generation: GenerationConfig;
  /** Ids that end a sequence. */
  readonly eosTokenIds: readonly number[];
  /** Number of token ids. */
  readonly vocabSize: number;
}

/** Everything decided. */
export interface GenerationParameters {
  /** How tokens are drawn. */
  readonly sampling: SequenceSampling;
  /** Most tokens to generate; `Infinity`: to the context's end. */
  readonly maxTokens: number;
  /** Strings that end the text, none empty. */
  readonly stop: readonly string[];
  /** Ids that end generation and are no part of the answer. */
  readonly stopTokenIds: ReadonlySet<number>;
  /** How many alternatives of each token are reported; undefined: no log-probabilities. */
  readonly logprobs: number | undefined;
  /** Samples of the prompt. */
  readonly n: number;
  /** Smaller goes first. */
  readonly priority: number;
  /** Who may share its cached prefix. */
  readonly cacheSalt: string | undefined;
}

interface Range {
  readonly good: (value: number) => boolean;
  readonly remedy: string;
}

const atLeast0: Range = { good: (value) => value >= 0 && value < Infinity, remedy: "give a number from 0" };
const finite: Range = { good: Number.isFinite, remedy: "give a finite number" };
const whole: Range = { good: (value) => Number.isInteger(value) && value >= 0, remedy: "give a whole number from 0" };

/** Least and greatest values of what changes logits: products with them and sums stay finite in f32. */
export const BOUNDS = {
  repetitionPenalty: [1e-3, 1e3],
  penalty: [-1e3, 1e3],
  bias: [-1e30, 1e30],
} as const;

function between([least, most]: readonly [number, number], none: string): Range {
  return {
    good: (value) => value >= least && value <= most,
    remedy: `give a number from ${least} to ${most} (${none})`,
  };
}

/** Most samples of a prompt. */
const MAX_SAMPLES = 128;

/** What each numeric option may be. */
const RANGES: { readonly [Name in keyof SamplingOptions]?: Range } = {
  maxTokens: { good: (n) => Number.isInteger(n) && n >= 1, remedy: "give a whole number from 1, or leave it out" },
  temperature: { ...atLeast0, remedy: "give a number from 0 (greedy)" },
  topK: { ...whole, remedy: "give a whole number from 0 (0 keeps all tokens)" },
  topP: { good: (p) => p > 0 && p <= 1, remedy: "give a number above 0, up to 1 (1 keeps all tokens)" },
  minP: { good: (p) => p >= 0 && p <= 1, remedy: "give a number from 0 to 1 (0 drops no token)" },
  repetitionPenalty: between(BOUNDS.repetitionPenalty, "1 is none"),
  presencePenalty: between(BOUNDS.penalty, "0 is none"),
  frequencyPenalty: between(BOUNDS.penalty, "0 is none"),
  seed: { good: Number.isSafeInteger, remedy: "give a whole number" },
  n: {
    good: (n) => Number.isInteger(n) && n >= 1 && n <= MAX_SAMPLES,
    remedy: `give a whole number from 1 to ${MAX_SAMPLES}`,
  },
  priority: finite,
};

/** Draws uniformly for any practical purpose; infinity does not travel to the GPU. */
const HOTTEST = 1e6;

/**
 * Fills in the defaults of the checkpoint and checks every option. A checkpoint that says `do_sample: false` is greedy
 * unless a temperature is asked for; one that says nothing has temperature 1.
 *
 * @throws {RequestError} naming the option, its value and what would be right.
 */
export function resolveParameters(options: SamplingOptions, defaults: ParameterDefaults): GenerationParameters {
  const { generation, eosTokenIds, vocabSize } = defaults;
  checkOptions(options, vocabSize);
  const temperature = options.temperature ?? (generation.doSample === false ? 0 : generation.temperature ?? 1);
  return {
    sampling: {
      temperature: Math.min(temperature, HOTTEST),
      topK: options.topK ?? generation.topK ?? 0,
      topP: options.topP ?? generation.topP ?? 1,
      minP: options.minP ?? generation.minP ?? 0,
      repetitionPenalty: options.repetitionPenalty ?? generation.repetitionPenalty ?? 1,
      presencePenalty: options.presencePenalty ?? 0,
      frequencyPenalty: options.frequencyPenalty ?? 0,
      seed: options.seed ?? randomSeed(),
      ...biasOf(options),
    },
    maxTokens: options.maxTokens ?? generation.maxNewTokens ?? Infinity,
    stop: stopsOf(options),
    stopTokenIds: new Set([...(options.ignoreEos ? [] : eosTokenIds), ...(options.stopTokenIds ?? [])]),
    logprobs: alternativesOf(options),
    n: options.n ?? 1,
    priority: options.priority ?? 0,
    cacheSalt: options.cacheSalt,
  };
}

function checkOptions(options: SamplingOptions, vocabSize: number): void {
  if (typeof options !== "object" || options === null) {
    throw new RequestError(
      `Cannot generate: options is ${Deno.inspect(options)}, give an object such as { prompt: "Once" }`,
    );
  }
  const unknown = unknownOption(options, "generate");
  if (unknown !== undefined) throw new RequestError(`Cannot generate: ${unknown}`);
  for (const [name, range] of Object.entries(RANGES) as [keyof SamplingOptions, Range][]) {
    const value = options[name];
    if (value !== undefined && !(typeof value === "number" && range.good(value))) {
      throw new RequestError(`Cannot generate: ${name} is ${value}, ${range.remedy}`);
    }
  }
  if (stopsOf(options).some((stop) => typeof stop !== "string" || stop === "")) {
    throw new RequestError("Cannot generate: a stop string is empty or no text, give at least one character");
  }
  checkLogprobs(options);
  checkTokenIds(options.stopTokenIds ?? [], vocabSize, "stopTokenIds");
  checkLogitBias(options, vocabSize);
  const { ignoreEos = false } = options;
  if (typeof ignoreEos !== "boolean") {
    throw new RequestError(`Cannot generate: ignoreEos is ${ignoreEos}, give true or false`);
  }
}

function checkLogitBias({ logitBias = {} }: SamplingOptions, vocabSize: number): void {
  if (typeof logitBias !== "object" || logitBias === null) {
    throw new RequestError(`Cannot use logitBias: it is ${logitBias}, give numbers by token id, such as { 42: -100 }`);
  }
  const bias = Object.entries(logitBias), good = between(BOUNDS.bias, "-100 bans it");
  for (const [id] of bias) {
    if (String(Number(id)) !== id || id === "NaN") {
      throw new RequestError(`Cannot use logitBias: its key "${id}" is no token id, give a whole number`);
    }
  }
  checkTokenIds(bias.map(([id]) => Number(id)), vocabSize, "logitBias");
  for (const [id, value] of bias) {
    if (!(typeof value === "number" && good.good(value))) {
      throw new RequestError(`Cannot generate: logitBias of token ${id} is ${value}, ${good.remedy}`);
    }
  }
}

function checkLogprobs({ logprobs = false, cacheSalt = "" }: SamplingOptions): void {
  const good = typeof logprobs === "boolean" ||
    (Number.isInteger(logprobs) && logprobs >= 0 && logprobs <= MAX_TOP_LOGPROBS);
  if (!good) {
    throw new RequestError(
      `Cannot generate: logprobs is ${logprobs}, give true, false or a number of alternatives up to ${MAX_TOP_LOGPROBS}`,
    );
  }
  if (typeof cacheSalt !== "string") throw new RequestError(`Cannot generate: cacheSalt is ${cacheSalt}, give text`);
}

function alternativesOf({ logprobs = false }: SamplingOptions): number | undefined {
  return logprobs === false ? undefined : logprobs === true ? 0 : logprobs;
}

/**
 * Refuses ids that the model does not have.
 *
 * @param what Where the ids come from, for the message.
 * @throws {RequestError} naming the first such id.
 */
export function checkTokenIds(ids: readonly number[], vocabSize: number, what: string): void {
  if (!Array.isArray(ids)) throw new RequestError(`Cannot use ${what}: it is ${ids}, give a list of token ids`);
  const unknown = ids.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
  if (unknown < 0) return;
  throw new RequestError(
    `Cannot use ${what}: the model has no token ${ids[unknown]}, its ids are 0 to ${vocabSize - 1}`,
  );
}

function biasOf({ logitBias }: SamplingOptions): Pick<SequenceSampling, "logitBias"> {
  const entries = Object.entries(logitBias ?? {}).map(([id, bias]): [number, number] => [Number(id), bias]);
  return entries.length > 0 ? { logitBias: new Map(entries) } : {};
}

function stopsOf({ stop = [] }: SamplingOptions): readonly string[] {
  return Array.isArray(stop) ? stop : [stop as string];
}

function randomSeed(): number {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high! & 0xfffff) * 2 ** 32 + low!;
}
