/**
 * How much memory a model needs, and how it is divided: weights first, then the cache of one full context, then as much
 * cache for further sequences as there is room for.
 *
 * @module
 */
import { type Checkpoint, openCheckpoint } from "../model/checkpoint.ts";
import { type DecoderConfig, readConfig } from "../model/config.ts";
import { kvBytesPerToken } from "../model/kv_cache.ts";
import type { Source } from "../model/source.ts";
import { weightBytes } from "../model/weights.ts";
import { OutOfMemoryError } from "../tensor/device_errors.ts";
import type { Caps } from "../tensor/kernel.ts";
import { checkLoadOptions } from "./load_options.ts";
import type { LoadOptions } from "./model.ts";
import { openNamed } from "./model_source.ts";
import { tokenBuckets } from "./buckets.ts";

/** Bytes that a model needs on the GPU. */
export interface MemoryEstimate {
  /** Weights, and the table of rotary positions. */
  weights: number;
  /** Keys and values: as much as `kvMemory` says, else of one full context, and more for more sequences where there is room. */
  kvCache: number;
  /** What the layers hand to each other in the largest step. Within a factor of 2. */
  activations: number;
  /** All of it. */
  total: number;
}

/** What `estimateMemory` says. */
export interface LoadEstimate extends MemoryEstimate {
  /** The context that it holds for: as asked for, else the one that loading chooses where memory is plenty. */
  contextLength: number;
  /** Bytes that loading takes where nothing says how many, for a pool of many sequences; undefined where `kvMemory` says it. */
  loaded?: LoadedBytes;
}

/** Bytes by the kind of device. */
export interface LoadedBytes {
  /** On a device that computes on the CPU. */
  cpu: number;
  /** On a GPU that can bind as much. */
  gpu: number;
}

/** Tokens of a block of the KV pool. */
export const BLOCK_SIZE = 16;

/** Most sequences that are computed together, unless asked for: a CPU device gains nothing from more. */
const DEFAULT_NUM_SEQS = { cpu: 16, gpu: 256 };

/** Most tokens of a step, unless asked for: where sequences decode, and on a CPU device. */
const DEFAULT_BATCHED_TOKENS = 512;

/**
 * Most tokens of a step where only prompts are computed, unless asked for: larger products and more queries fill a GPU better. On an
 * H100 a prompt of 4,096 tokens of a 0.5B model takes 77 ms by 2,048, and 93 by 512.
 */
const PROMPT_TOKENS = [2048, 1024];

/** Bytes that the layers of such a step may hand to each other: a larger model's products are large enough as it is. */
const PROMPT_BYTES = 2 ** 28;

/** Contexts are no longer than this unless asked for: memory is taken for all of it. */
const DEFAULT_CONTEXT = 4096;

/** The shortest context that is chosen without being asked for. */
const LEAST_CONTEXT = 256;

/** Most bytes of cache beyond one full context: a CPU device shares its memory with everything else. */
const FURTHER_CACHE = { cpu: 2 ** 28, gpu: 2 ** 31 };

/**
 * Tells what a model needs on the GPU before it is loaded: only headers are read.
 *
 * @param source As for `loadModel`; a model on the hub is downloaded.
 * @throws {Error} for options that `loadModel` would refuse without asking a device, a context longer than the model's among them.
 *
 * @example
 * ```ts
 * import { estimateMemory } from "@tinyllm/tinyllm";
 *
 * const { weights, total } = await estimateMemory();
 * console.log(`${(weights / 2 ** 20).toFixed(0)} of ${(total / 2 ** 20).toFixed(0)} MiB are weights`);
 * ```
 */
export async function estimateMemory(source?: string | Source, options: LoadOptions = {}): Promise<LoadEstimate> {
  checkLoadOptions(options);
  const { source: files } = await openNamed(source, options);
  const config = await readConfig(files);
  if (options.contextLength !== undefined) checkContextLength(options.contextLength, config);
  const contextLength = options.contextLength ?? usualContext(config);
  const { kvDtype = "f16" } = options, steps = chooseStepLimits(options, true, config);
  const checkpoint = await openCheckpoint(files);
  const all = estimate(config, checkpoint, contextLength, kvDtype, true, steps);
  const kvCache = poolBytes(all, options) ?? all.kvCache;
  const asked = { ...all, kvCache, total: all.weights + kvCache + all.activations, contextLength };
  if (options.kvMemory !== undefined) return asked;
  const { memoryLimit = Infinity } = options;
  const loaded = (cpu: boolean): number => {
    const caps = { f16: true, cpu, maxBinding: Infinity }, steps = chooseStepLimits(options, cpu, config);
    const room: Room = { config, checkpoint, kvDtype, kvMemory: undefined, steps, caps, memoryLimit, inUse: 0 };
    const { weights, activations } = roomEstimate(contextLength, room);
    return weights + activations + choosePoolBlocks(contextLength, room) * blockBytes(room);
  };
  return { ...asked, loaded: { cpu: loaded(true), gpu: loaded(false) } };
}

/** Bytes of the pool, where they were asked for. */
function poolBytes(
  { weights, activations }: MemoryEstimate,
  { kvMemory, memoryLimit }: LoadOptions,
): number | undefined {
  if (kvMemory === undefined || kvMemory > 1) return kvMemory;
  return Math.max(0, Math.floor(kvMemory * (memoryLimit! - weights - activations)));
}

/** The greatest steps. */
export interface StepLimits {
  /** Most sequences that are computed together. */
  readonly maxNumSeqs: number;
  /** Most tokens of a step. */
  readonly maxNumBatchedTokens: number;
  /** Most tokens of a step while sequences decode, whose next tokens wait for its end. */
  readonly maxNumMixedTokens: number;
}

/** The greatest steps, as asked for or as a device can make use of. */
export function chooseStepLimits(
  { maxNumSeqs, maxNumBatchedTokens }: LoadOptions,
  cpu: boolean,
  config: DecoderConfig,
): StepLimits {
  const usual = DEFAULT_NUM_SEQS[cpu ? "cpu" : "gpu"];
  const sequences = maxNumSeqs ?? Math.min(usual, maxNumBatchedTokens ?? usual);
  const mixed = maxNumBatchedTokens ?? Math.max(DEFAULT_BATCHED_TOKENS, sequences);
  const alone = PROMPT_TOKENS.find((tokens) => 4 * tokens * floatsPerToken(config) <= PROMPT_BYTES) ?? 0;
  return {
    maxNumSeqs: sequences,
    maxNumBatchedTokens: maxNumBatchedTokens ?? Math.max(mixed, cpu ? 0 : alone),
    maxNumMixedTokens: mixed,
  };
}

/** The estimate for a checkpoint that is open. */
export function estimate(
  config: DecoderConfig,
  checkpoint: Checkpoint,
  contextLength: number,
  kvDtype: "f16" | "f32",
  f16: boolean,
  steps: StepLimits,
): MemoryEstimate {
  const weights = weightBytes(checkpoint, config) + contextLength * config.rope.rotaryDim * 4;
  const blocks = Math.ceil(contextLength / BLOCK_SIZE);
  const kvCache = blocks * BLOCK_SIZE * kvBytesPerToken(config, kvDtype, f16);
  const activations = activationBytes(config, steps);
  return { weights, kvCache, activations, total: weights + kvCache + activations };
}

/** What the layers hand to each other for a token: residual stream twice, q with k and v, attention's result, gate with up, their product. */
function floatsPerToken({ hiddenSize, intermediateSize, numHeads, numKvHeads, headDim }: DecoderConfig): number {
  const width = numHeads * headDim, kvWidth = numKvHeads * headDim;
  return 3 * hiddenSize + 2 * width + 2 * kvWidth + 3 * intermediateSize;
}

/** Bytes of what there is in any case: buffers for reading back, slots of drawn tokens, the device's own. */
const FIXED_BYTES = 2 ** 18;

/**
 * What the layers hand to each other, logits of each sequence, and what there is in any case. Penalties and the likeliest tokens need
 * the logits of the largest step once more.
 */
function activationBytes(config: DecoderConfig, { maxNumSeqs, maxNumBatchedTokens }: StepLimits): number {
  const buckets = tokenBuckets(maxNumBatchedTokens, true), sum = (a: number, b: number): number => a + b;
  const rows = buckets.map((bucket) => Math.min(bucket, maxNumSeqs)), logits = rows.reduce(sum) + rows.at(-1)!;
  return FIXED_BYTES + 4 * (buckets.reduce(sum) * floatsPerToken(config) + logits * config.vocabSize);
}

/**
 * Tokens of a step whose logits are all computed and read back, within so many bytes: besides what the layers hand to each other there
 * are the logits, and memory of up to twice as much to read them through.
 */
export function scoredTokens(bytes: number, config: DecoderConfig): number {
  return Math.floor(bytes / (4 * (floatsPerToken(config) + 3 * config.vocabSize)));
}

/** What the choice of context and pool depends on. */
export interface Room {
  readonly config: DecoderConfig;
  readonly checkpoint: Checkpoint;
  readonly kvDtype: "f16" | "f32";
  /** Memory of the pool as it was asked for: bytes, or a fraction of what is left. */
  readonly kvMemory: number | undefined;
  readonly steps: StepLimits;
  readonly caps: Pick<Caps, "f16" | "cpu" | "maxBinding">;
  /** Most bytes on the device. */
  readonly memoryLimit: number;
  /** Bytes in use before the model came. */
  readonly inUse: number;
}

/**
 * The context's length: as asked for, else the model's own, {@linkcode DEFAULT_CONTEXT} at most and no more than memory allows.
 *
 * @throws {RangeError} if it is no whole number, or longer than the model or the device can.
 */
export function chooseContextLength(asked: number | undefined, room: Room): number {
  const { config, kvDtype, caps } = room;
  if (asked === undefined) {
    const most = usualContext(config), bytes = askedPoolBytes(most, room);
    const fits = Math.floor((bytes ?? freeBytes(most, room)) / blockBytes(room)) * BLOCK_SIZE;
    const least = bytes === undefined ? LEAST_CONTEXT : BLOCK_SIZE;
    return Math.min(most, Math.max(fits, least), boundBlocks(room) * BLOCK_SIZE);
  }
  checkContextLength(asked, config);
  const most = boundBlocks(room) * BLOCK_SIZE;
  if (asked > most) {
    const smaller = kvDtype === "f32" && caps.f16 ? ', or use kvDtype "f16"' : "";
    throw new RangeError(
      `Cannot load the model: contextLength is ${asked}, and this device binds a cache of ${most} tokens: give that or ` +
        `less${smaller}`,
    );
  }
  return asked;
}

/** The context where nobody asks for one and memory is plenty. */
function usualContext(config: DecoderConfig): number {
  return Math.min(config.contextLength, DEFAULT_CONTEXT);
}

/**
 * Which option made a context shorter than it would be with more memory, and what that one would have to be; undefined where none did.
 *
 * @param contextLength As chosen where none was asked for.
 */
export function contextShortage(contextLength: number, room: Room): string | undefined {
  const { config, kvMemory, memoryLimit } = room, usual = usualContext(config);
  const most = Math.min(usual, boundBlocks(room) * BLOCK_SIZE);
  if (contextLength >= most) return undefined;
  const cache = Math.ceil(most / BLOCK_SIZE) * blockBytes(room);
  const takes = (bytes: number): string => `and a context of ${most} takes ${Math.ceil(bytes)}`;
  if (kvMemory !== undefined && kvMemory > 1) return `kvMemory is ${kvMemory} bytes, ${takes(cache)}`;
  const needed = memoryLimit - freeBytes(most, room) + cache / (kvMemory ?? 1);
  const part = kvMemory === undefined ? "" : `, of whose rest keys and values get ${kvMemory} (kvMemory)`;
  return `memoryLimit is ${memoryLimit} bytes${part}, ${takes(needed)}`;
}

/**
 * Refuses a limit that would be met in the middle of an answer: programs take their memory when they first run. It goes by the
 * estimate, so a limit close above it may be met all the same.
 *
 * @throws {OutOfMemoryError} with what is needed in the largest steps, and with the smallest pool that was asked for.
 */
export function checkMemoryLimit(contextLength: number, room: Room): void {
  const { kvMemory, memoryLimit } = room, block = blockBytes(room);
  const perContext = Math.ceil(contextLength / BLOCK_SIZE);
  const blocks = kvMemory === undefined ? perContext : kvMemory <= 1 ? 1 : choosePoolBlocks(contextLength, room);
  const free = freeBytes(contextLength, room), cache = blocks * block;
  if (cache <= free) return;
  const { weights, activations } = roomEstimate(contextLength, room), needed = memoryLimit - free + cache;
  const least = leastBytes(room);
  if (least > memoryLimit) {
    throw new OutOfMemoryError(
      `Cannot load the model: memoryLimit is ${memoryLimit} bytes, and at least ${least} are needed, ${weights} for weights ` +
        `alone. Raise memoryLimit to ${needed}, or use a smaller model.`,
    );
  }
  throw new OutOfMemoryError(
    `Cannot load the model: memoryLimit is ${memoryLimit} bytes, and ${needed} are ` +
      `needed: ${weights} for weights, ${activations} for activations, ${cache} for keys and values. Raise memoryLimit, or ` +
      `lower maxNumBatchedTokens, maxNumSeqs${kvMemory === undefined ? " or contextLength" : " or kvMemory"}` +
      `${smallerSteps(cache, contextLength, room)}.`,
  );
}

/** Bytes without which nothing fits, however small steps, context and pool are. */
function leastBytes(room: Room): number {
  const steps = { maxNumSeqs: 1, maxNumBatchedTokens: 1, maxNumMixedTokens: 1 }, smallest = { ...room, steps };
  return room.memoryLimit - freeBytes(BLOCK_SIZE, smallest) + blockBytes(room);
}

/** The largest steps, by halving, that fit beside so many bytes of cache, for an error. */
function smallerSteps(cache: number, contextLength: number, room: Room): string {
  for (let tokens = room.steps.maxNumBatchedTokens >> 1; tokens > 0; tokens >>= 1) {
    const maxNumSeqs = Math.min(room.steps.maxNumSeqs, tokens);
    const steps = { maxNumSeqs, maxNumBatchedTokens: tokens, maxNumMixedTokens: tokens };
    if (cache > freeBytes(contextLength, { ...room, steps })) continue;
    return `: at a context of ${contextLength}, maxNumBatchedTokens ${tokens} with maxNumSeqs ${maxNumSeqs} fits`;
  }
  return "";
}

/** Refuses a context that the model cannot have on any device. */
function checkContextLength(contextLength: number, config: DecoderConfig): void {
  if (!(Number.isInteger(contextLength) && contextLength >= 1)) {
    throw new RangeError(`Cannot load the model: contextLength is ${contextLength}, give a whole number from 1`);
  }
  if (contextLength > config.contextLength) {
    throw new RangeError(
      `Cannot load the model: contextLength is ${contextLength}, and it was made for ${config.contextLength}: give that or less`,
    );
  }
}

/** Bytes of a block in all layers. */
function blockBytes({ config, kvDtype, caps }: Room): number {
  return BLOCK_SIZE * kvBytesPerToken(config, kvDtype, caps.f16);
}

/** The estimate for a device. */
function roomEstimate(contextLength: number, { config, checkpoint, kvDtype, caps, steps }: Room): MemoryEstimate {
  return estimate(config, checkpoint, contextLength, kvDtype, caps.f16, steps);
}

/** Bytes that the limit leaves for keys and values. */
function freeBytes(contextLength: number, room: Room): number {
  const { weights, activations } = roomEstimate(contextLength, room);
  return room.memoryLimit - room.inUse - weights - activations;
}

/** Bytes of the pool, where they were asked for. */
function askedPoolBytes(contextLength: number, room: Room): number | undefined {
  const { kvMemory } = room;
  return kvMemory !== undefined && kvMemory <= 1 ? kvMemory * freeBytes(contextLength, room) : kvMemory;
}

/** Blocks of the largest pool: a layer's keys are written through one binding. */
function boundBlocks(room: Room): number {
  return Math.floor(room.caps.maxBinding / (blockBytes(room) / (2 * room.config.numLayers)));
}

/**
 * Blocks of the pool: as many as `kvMemory` holds where it is given, else full contexts of all sequences where there is room, one
 * at least.
 *
 * @throws {RangeError} if what was asked for does not hold a block.
 */
export function choosePoolBlocks(contextLength: number, room: Room): number {
  const { caps, steps } = room, asked = askedPoolBytes(contextLength, room), block = blockBytes(room);
  if (asked !== undefined) {
    if (asked < block) {
      throw new RangeError(
        `Cannot load the model: kvMemory is ${room.kvMemory! > 1 ? "" : `${room.kvMemory}, or `}${
          Math.floor(asked)
        } bytes, and ${BLOCK_SIZE} tokens take ${block}: give that or more`,
      );
    }
    return Math.min(Math.floor(asked / block), boundBlocks(room));
  }
  const perContext = Math.ceil(contextLength / BLOCK_SIZE);
  const further = Math.min(
    freeBytes(contextLength, room) - perContext * block,
    caps.cpu ? FURTHER_CACHE.cpu : FURTHER_CACHE.gpu,
  );
  const blocks = Math.min(steps.maxNumSeqs * perContext, perContext + Math.floor(further / block), boundBlocks(room));
  return Math.max(perContext, blocks);
}
