/**
 * The memory of attention: for each layer a pool of keys and one of values, cut into blocks. Kernels write through
 * `slotMapping` and read through `blockTables`; which block belongs to whom is bookkeeping above this floor.
 *
 * @module
 */
import type { Device } from "../tensor/device.ts";
import { bytesPerElement } from "../tensor/dtype.ts";
import type { Storage } from "../tensor/storage.ts";
import type { DecoderConfig } from "./config.ts";

/** How the cache is laid out. */
export interface KvCacheOptions {
  /** Blocks in each pool. */
  readonly numBlocks: number;
  /** Tokens of a block: a power of two. */
  readonly blockSize: number;
  /** How keys and values are stored. */
  readonly dtype: "f16" | "f32";
}

/** Bytes of one token's keys and values over all layers. */
export function kvBytesPerToken(config: DecoderConfig, dtype: "f16" | "f32", f16: boolean): number {
  return 2 * config.numLayers * config.numKvHeads * config.headDim * bytesPerElement(dtype, f16);
}

/**
 * The pools of all layers.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { KvCache, parseConfig } from "@tinyllm/tinyllm/model";
 * import { openDevice } from "@tinyllm/tinyllm/tensor";
 *
 * const config = parseConfig({
 *   model_type: "qwen2", hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2,
 *   num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 100, rope_theta: 1e6,
 * });
 * const device = await openDevice();
 * const cache = new KvCache(device, config, { numBlocks: 4, blockSize: 16, dtype: "f32" });
 * assertEquals(cache.keys[1]!.shape, [64, 2, 16]); // of layer 1: 4 blocks of 16 tokens, 2 heads of 16 features
 * assertEquals(cache.bytes, 2 * 2 * 64 * 2 * 16 * 4);
 * cache.release();
 * device.close();
 * ```
 */
export class KvCache {
  /** `[numBlocks * blockSize, kvHeads, headDim]` for each layer. */
  readonly keys: readonly Storage[];
  /** Of the same shape. */
  readonly values: readonly Storage[];

  /** Allocates the pools. Throws where the device's memory does not suffice; nothing stays allocated then. */
  constructor(device: Device, readonly config: DecoderConfig, readonly options: KvCacheOptions) {
    const shape = [options.numBlocks * options.blockSize, config.numKvHeads, config.headDim];
    const made: Storage[] = [];
    const pool = (label: string): Storage => {
      const storage = device.storage(options.dtype, shape, label);
      made.push(storage);
      return storage;
    };
    try {
      this.keys = Array.from({ length: config.numLayers }, (_, layer) => pool(`keys of layer ${layer}`));
      this.values = Array.from({ length: config.numLayers }, (_, layer) => pool(`values of layer ${layer}`));
    } catch (cause) {
      made.forEach((storage) => storage.release());
      throw cause;
    }
  }

  /** Bytes on the device. */
  get bytes(): number {
    return [...this.keys, ...this.values].reduce((sum, storage) => sum + (storage.resident?.bytes ?? 0), 0);
  }

  /** Frees the pools. */
  release(): void {
    [...this.keys, ...this.values].forEach((storage) => storage.release());
  }
}
