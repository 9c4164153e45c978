/**
 * Loading the engine: a device, weights onto the device, a pool for keys and values. Whatever fails, nothing stays behind.
 *
 * @module
 */
import { openCheckpoint } from "../model/checkpoint.ts";
import { type DecoderConfig, readConfig } from "../model/config.ts";
import { type DecoderWeights, loadDecoder } from "../model/decoder_weights.ts";
import { KvCache } from "../model/kv_cache.ts";
import { readGenerationConfig } from "../model/generation_config.ts";
import type { Source } from "../model/source.ts";
import { type Device, openDevice, wrapDevice } from "../tensor/device.ts";
import { Engine } from "./engine.ts";
import {
  BLOCK_SIZE,
  checkMemoryLimit,
  chooseContextLength,
  choosePoolBlocks,
  chooseStepLimits,
  contextShortage,
  type Room,
} from "./memory.ts";
import type { LoadOptions, ModelMemory } from "./model.ts";
import { Runner } from "./runner.ts";

/** What is known of a model once its engine is loaded. */
export interface EngineInfo {
  readonly config: DecoderConfig;
  readonly contextLength: number;
  /** Why the context is shorter than with more memory, where it is. */
  readonly contextShortage?: string;
  /** Bytes on the device. */
  readonly memory: Omit<ModelMemory, "peak">;
}

/** An engine and its model. */
export interface LoadedEngine extends EngineInfo {
  readonly engine: Engine;
}

/** Most steps that a GPU is given before the first of them is read: 20 ms of one sequence of a 0.5B model on an H100. */
export const GPU_STEPS = 32;

/** What an engine can be loaded with besides {@linkcode LoadOptions}. */
export interface EngineLoadOptions extends LoadOptions {
  /** Most steps that are submitted before the first is read: some on a GPU, 1 on a CPU device. */
  readonly maxSteps?: number;
}

/** Loads weights and makes the engine that runs on them, in this thread. */
export async function loadEngine(source: Source, options: EngineLoadOptions): Promise<LoadedEngine> {
  const { device: wanted, memoryLimit, signal } = options;
  const ownsDevice = typeof wanted !== "object";
  const device = ownsDevice
    ? await openDevice({ ...(wanted && { preference: wanted }), ...(memoryLimit !== undefined && { memoryLimit }) })
    : await wrapDevice(wanted, memoryLimit);
  device.debug = options.debug;
  const release: (() => void)[] = [ownsDevice ? (): void => device.close() : (): void => device.readback.destroy()];
  const releaseAll = (): void => release.reverse().forEach((free) => free());
  try {
    signal?.throwIfAborted();
    const { room, ...context } = await plan(source, device, options);
    const { config, checkpoint, kvDtype } = room, { contextLength } = context;
    const weights = await loadDecoder(device, checkpoint, config, {
      positions: contextLength,
      onBytes: loadProgress(checkpoint.totalBytes, options),
      signal,
    });
    release.push(() => weights.release());
    const numBlocks = choosePoolBlocks(contextLength, room);
    const cache = new KvCache(device, config, { numBlocks, blockSize: BLOCK_SIZE, dtype: kvDtype });
    release.push(() => cache.release());
    const parts = { device, weights, config, cache, contextLength, ...room.steps };
    const { engine, runner } = makeEngine(parts, options, releaseAll);
    release.push(() => runner.dispose());
    if (options.warmUp) await warmUp(runner, source, options);
    return { engine, config, ...context, memory: { weights: weights.bytes, kvCache: cache.bytes } };
  } catch (cause) {
    releaseAll();
    throw cause;
  }
}

/** What an engine is made of. */
export interface EngineParts {
  readonly device: Device;
  readonly weights: DecoderWeights;
  readonly config: DecoderConfig;
  readonly cache: KvCache;
  readonly contextLength: number;
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  /** Most tokens of a step while sequences decode; `maxNumBatchedTokens` unless given. */
  readonly maxNumMixedTokens?: number;
}

/**
 * An engine on weights and a pool that are there already.
 *
 * @param release Called once the engine is closed; the runner is the caller's to dispose of too.
 */
export function makeEngine(
  parts: EngineParts,
  options: Pick<EngineLoadOptions, "precision" | "policy" | "prefixCache" | "maxSteps"> = {},
  release?: () => void,
): { engine: Engine; runner: Runner } {
  const { device, cache, contextLength, maxNumSeqs, maxNumBatchedTokens, maxNumMixedTokens = maxNumBatchedTokens } =
    parts;
  const {
    precision = device.caps.cpu ? "exact" : "fast",
    maxSteps = device.caps.cpu ? 1 : GPU_STEPS,
    policy = "fcfs",
    prefixCache = true,
  } = options;
  const runner = new Runner({ ...parts, precision, maxSteps });
  const { numBlocks, blockSize } = cache.options;
  const engine = new Engine({
    ...{ runner, numBlocks, blockSize, maxNumSeqs, maxNumBatchedTokens, maxNumMixedTokens, contextLength },
    ...{ policy, prefixCache, maxSteps, blockBytes: cache.bytes / numBlocks },
    explain: () => runner.explain(),
    peakBytes: () => device.peak,
    ...(release && { release }),
  });
  return { engine, runner };
}

/** Compiles what requests that ask for nothing special need. */
async function warmUp(runner: Runner, source: Source, { onProgress, signal }: LoadOptions): Promise<void> {
  const { repetitionPenalty = 1 } = await readGenerationConfig(source);
  await runner.warmUp(repetitionPenalty === 1 ? ["greedy", "sample"] : ["penalised"], (received, total) => {
    signal?.throwIfAborted();
    onProgress?.({ phase: "compile", received, total });
  });
}

async function plan(
  source: Source,
  device: Device,
  options: LoadOptions,
): Promise<{ room: Room } & Pick<EngineInfo, "contextLength" | "contextShortage">> {
  const [config, checkpoint] = await Promise.all([readConfig(source), openCheckpoint(source)]);
  checkBindings(device, config);
  const { caps, memoryLimit, allocated: inUse } = device, { kvDtype = "f16", kvMemory } = options;
  const steps = chooseStepLimits(options, caps.cpu, config);
  const room: Room = { config, checkpoint, caps, memoryLimit, inUse, kvDtype, kvMemory, steps };
  const contextLength = chooseContextLength(options.contextLength, room);
  checkMemoryLimit(contextLength, room);
  const shortage = options.contextLength === undefined ? contextShortage(contextLength, room) : undefined;
  return { room, contextLength, ...(shortage !== undefined && { contextShortage: shortage }) };
}

/** What a caller's device must allow: norms of queries and keys (Qwen3) are inputs of the kernel that writes the cache. */
function checkBindings({ gpu }: Device, { qkNorm }: DecoderConfig): void {
  const needed = qkNorm ? 9 : 8, allowed = gpu.limits.maxStorageBuffersPerShaderStage;
  if (allowed >= needed) return;
  throw new Error(
    `Cannot use this GPUDevice: it allows ${allowed} storage buffers a shader, and ${needed} are needed. Request it with ` +
      `requiredLimits: { maxStorageBuffersPerShaderStage: ${needed} }, or name a device instead.`,
  );
}

function loadProgress(total: number, { onProgress }: LoadOptions): (loaded: number) => void {
  const start = performance.now();
  return (received) => {
    const bytesPerSecond = 1000 * received / Math.max(1, performance.now() - start);
    const etaSeconds = Math.max(0, total - received) / bytesPerSecond;
    onProgress?.({ phase: "load", received: Math.min(received, total), total, bytesPerSecond, etaSeconds });
  };
}
