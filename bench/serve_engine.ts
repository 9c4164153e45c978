/**
 * A real engine over random weights in a model's shape, in the bench's own thread.
 *
 * @module
 */
import type { Precision } from "../model/decoder.ts";
import { KvCache } from "../model/kv_cache.ts";
import type { EngineClient } from "../serving/engine_types.ts";
import { LoadedModel } from "../serving/loaded_model.ts";
import type { Device } from "../tensor/mod.ts";
import { randomDecoder } from "./random_model.ts";
import { shapeConfig, type ShapeName } from "./shapes.ts";

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

/** An engine that owns its weights and pool; closing it frees them. */
export function openBenchEngine(device: Device, options: BenchEngineOptions): EngineClient {
  const { shape, precision, contextLength, poolTokens } = options;
  const config = shapeConfig(shape);
  const weights = randomDecoder(device, config, contextLength);
  const numBlocks = Math.ceil(Math.max(poolTokens, contextLength) / BLOCK);
  const cache = new KvCache(device, config, { numBlocks, blockSize: BLOCK, dtype: "f16" });
  const model = new LoadedModel(
    {
      ...{
        name: shape,
        config,
        generation: { eosTokenIds: [] },
        tokenizer: undefined,
        chatTemplate: undefined,
        contextLength,
      },
      ...{ device, ownsDevice: false, weights, cache, precision },
    } as unknown as ConstructorParameters<typeof LoadedModel>[0],
  );
  return {
    async addRequest({ id, prompt, maxTokens }, sink) {
      try {
        const all = model.generate({ tokens: prompt, maxTokens, temperature: 0, ignoreEos: true });
        for await (const { index, tokens, finishReason } of all) {
          sink.output({ id, index, tokens, ...(finishReason && { finishReason }) });
        }
      } catch (cause) {
        sink.fail(cause as Error);
      }
    },
    abort() {},
    logits: () => Promise.resolve(),
    stats: () => model.stats(),
    explain: () => model.explain(),
    close: () => model.dispose(),
  };
}
