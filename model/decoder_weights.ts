/**
 * A decoder's weights: which tensors of a checkpoint it has, under which names, and how they come onto a device.
 *
 * @module
 */
import type { Device } from "../tensor/device.ts";
import { Storage } from "../tensor/storage.ts";
import type { Checkpoint } from "./checkpoint.ts";
import type { DecoderConfig } from "./config.ts";
import { ropeTable } from "./rope_frequencies.ts";
import { sameFormat, type StoredWeight, WeightLoader } from "./weights.ts";

/** Matrices applied to one input: one where formats agree, else one each, side by side. */
export interface Projection {
  /** Rows end to end. */
  readonly weights: readonly StoredWeight[];
  /** `[rows]`, or none. */
  readonly bias: Storage | undefined;
}

/** Weights of one block. */
export interface Layer {
  /** `[hidden]`: RMSNorm before attention. */
  readonly attentionNorm: Storage;
  /** Queries, keys and values. */
  readonly qkv: Projection;
  /** `[headDim]`: RMSNorm of each query head (Qwen3). */
  readonly qNorm: Storage | undefined;
  /** `[headDim]`: RMSNorm of each key head (Qwen3). */
  readonly kNorm: Storage | undefined;
  /** From the heads back to the residual stream. */
  readonly attentionOutput: Projection;
  /** `[hidden]`: RMSNorm before the feed-forward layer. */
  readonly mlpNorm: Storage;
  /** Gate, then up. */
  readonly gateUp: Projection;
  /** Back to the residual stream. */
  readonly down: Projection;
}

/** All weights of a decoder, on a device. */
export interface DecoderWeights {
  /** `[vocabulary, hidden]`. */
  readonly embedding: StoredWeight;
  /** Block by block. */
  readonly layers: readonly Layer[];
  /** `[hidden]`: RMSNorm before the head. */
  readonly norm: Storage;
  /** `[vocabulary, hidden]`; the embedding itself where it is tied. */
  readonly head: StoredWeight;
  /** `[positions, rotaryDim / 2, 2]`: cosines and sines, computed in float64. */
  readonly rope: Storage;
  /** Bytes on the device. */
  readonly bytes: number;
  /** Frees them. */
  release(): void;
}

/** How weights are loaded. */
export interface LoadWeightsOptions {
  /** Positions that the rotary table covers. */
  readonly positions: number;
  /** Called with the bytes loaded so far. */
  readonly onBytes?: (loaded: number) => void;
  /** Stops loading. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Loads a decoder's weights. On any error everything loaded is freed.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { openSource } from "@tinyllm/tinyllm";
 * import { loadDecoder, openCheckpoint, readConfig } from "@tinyllm/tinyllm/model";
 * import { openDevice } from "@tinyllm/tinyllm/tensor";
 *
 * const source = await openSource(); // the story model
 * const device = await openDevice();
 * const config = await readConfig(source);
 * const weights = await loadDecoder(device, await openCheckpoint(source), config, { positions: 16 });
 * assertEquals(weights.layers.length, config.numLayers);
 * weights.release();
 * device.close();
 * ```
 */
export async function loadDecoder(
  device: Device,
  checkpoint: Checkpoint,
  config: DecoderConfig,
  options: LoadWeightsOptions,
): Promise<DecoderWeights> {
  const loader = new WeightLoader(device, checkpoint, config, options.onBytes, options.signal);
  try {
    const { hiddenSize, vocabSize, numLayers } = config;
    const matrix = (path: string): Promise<StoredWeight> => loader.matrix([loader.locate(path, vocabSize, hiddenSize)]);
    const embedding = await matrix("model.embed_tokens");
    const layers: Layer[] = [];
    for (let n = 0; n < numLayers; n++) layers.push(await loadLayer(loader, config, `model.layers.${n}`));
    const norm = await loader.vector(["model.norm.weight"], [hiddenSize]);
    const head = config.tieWordEmbeddings ? embedding : await matrix("lm_head");
    const rope = new Storage(
      "f32",
      [options.positions, config.rope.rotaryDim / 2, 2],
      ropeTable(config.rope, options.positions),
      "rotary table",
    );
    device.resident(rope);
    const storages = [...loader.storages, rope];
    const bytes = storages.reduce((sum, storage) => sum + storage.resident!.bytes, 0);
    return {
      embedding,
      layers,
      norm,
      head,
      rope,
      bytes,
      release: () => storages.forEach((storage) => storage.release()),
    };
  } catch (cause) {
    loader.release();
    throw cause;
  }
}

async function loadLayer(loader: WeightLoader, config: DecoderConfig, path: string): Promise<Layer> {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim } = config;
  const width = numHeads * headDim, kvWidth = numKvHeads * headDim, attention = `${path}.self_attn`;
  const norm = (name: string, size: number): Promise<Storage> => loader.vector([`${path}.${name}.weight`], [size]);
  const project = async (names: string[], rows: number[], columns: number, bias: boolean): Promise<Projection> => {
    const located = names.map((name, i) => loader.locate(`${path}.${name}`, rows[i]!, columns));
    const joined = located.every((part) => sameFormat(part.format, located[0]!.format))
      ? [located]
      : located.map((part) => [part]);
    const weights: StoredWeight[] = [];
    for (const parts of joined) weights.push(await loader.matrix(parts));
    return { weights, bias: bias ? await loader.vector(names.map((name) => `${path}.${name}.bias`), rows) : undefined };
  };
  return {
    attentionNorm: await norm("input_layernorm", hiddenSize),
    qkv: await project(
      ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
      [width, kvWidth, kvWidth],
      hiddenSize,
      config.attentionBias,
    ),
    qNorm: config.qkNorm ? await loader.vector([`${attention}.q_norm.weight`], [headDim]) : undefined,
    kNorm: config.qkNorm ? await loader.vector([`${attention}.k_norm.weight`], [headDim]) : undefined,
    attentionOutput: await project(["self_attn.o_proj"], [hiddenSize], width, config.attentionOutputBias),
    mlpNorm: await norm("post_attention_layernorm", hiddenSize),
    gateUp: await project(
      ["mlp.gate_proj", "mlp.up_proj"],
      [intermediateSize, intermediateSize],
      hiddenSize,
      config.mlpBias,
    ),
    down: await project(["mlp.down_proj"], [hiddenSize], intermediateSize, config.mlpBias),
  };
}
