/**
 * A real engine over random weights in a model's shape, in the bench's own thread.
 *
 * @module
 */
import type { Precision } from "../model/decoder.ts";
import { KvCache } from "../model/kv_cache.ts";
import type { EngineClient } from "../serving/engine_types.ts";
import { makeEngine } from "../serving/load_engine.ts";
import type { Runner } from "../serving/runner.ts";
import type { Device } from "../tensor/mod.ts";
import { randomDecoder } from "./random_model.ts";
import { checkPositions, shapeConfig, type ShapeName } from "./shapes.ts";

/** What the engine is made for. */
export interface BenchEngineOptions {
  readonly shape: ShapeName;
  readonly precision: Precision;
  /** Most tokens of a sequence. */
  readonly contextLength: number;
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  /** Tokens that the pool of keys and values holds. */
  readonly poolTokens: number;
  readonly prefixCache: boolean;
}

/** Tokens of a block. */
export const BLOCK = 16;

/** An engine, and what benches do beside it. */
export interface BenchEngine {
  readonly engine: EngineClient;
  /** Bytes of its weights. */
  readonly weightBytes: number;
  /** Compiles every program that it can need. */
  readonly warmUp: () => Promise<void>;
  /** Joins the dispatches of the programs that it has compiled. */
  readonly join: () => Promise<void>;
  /** The program that it runs for a step, and the values of the step. */
  readonly programOf: Runner["programOf"];
}

/**
 * An engine that owns its weights and pool; closing it frees them.
 *
 * @throws {UsageError} if its sequences are longer than the shape allows.
 */
export function openBenchEngine(device: Device, options: BenchEngineOptions): BenchEngine {
  const { shape, precision, contextLength, maxNumSeqs, maxNumBatchedTokens, poolTokens, prefixCache } = options;
  checkPositions(shape, contextLength);
  const config = shapeConfig(shape);
  const weights = randomDecoder(device, config, contextLength);
  const numBlocks = Math.ceil(Math.max(poolTokens, contextLength) / BLOCK);
  const cache = new KvCache(device, config, { numBlocks, blockSize: BLOCK, dtype: "f16" });
  const parts = { device, weights, config, cache, contextLength, maxNumSeqs, maxNumBatchedTokens };
  const { engine, runner } = makeEngine(parts, { precision, prefixCache }, () => {
    [runner, cache, weights].forEach((held) => "dispose" in held ? held.dispose() : held.release());
  });
  return {
    engine,
    weightBytes: weights.bytes,
    warmUp: () => runner.warmUp(["greedy"]),
    join: () => runner.join(),
    programOf: (step) => runner.programOf(step),
  };
}
