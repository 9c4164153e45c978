/**
 * The decoder that Qwen2 (Yang et al. 2024), Qwen3 and Llama 3 share: pre-norm blocks of grouped-query attention with rotary
 * positions and a SwiGLU feed-forward layer. Where the papers differ, a config field says so: biases on q, k and v
 * (Qwen2), norms on each query and key head (Qwen3).
 *
 * @module
 */
import { attend } from "../kernels/attend.ts";
import { embedding } from "../kernels/embedding.ts";
import { fastLinear } from "../kernels/int8_matmul.ts";
import { ropeAndWriteKv } from "../kernels/kv_write.ts";
import { linear } from "../kernels/quantised_matmul.ts";
import { rmsNorm } from "../kernels/norm.ts";
import { maxOf } from "../tensor/dim.ts";
import { buffer, gather, map, type Node, pad, slice } from "../tensor/node.ts";
import type { Batch } from "./batch.ts";
import type { DecoderConfig } from "./config.ts";
import type { KvCache } from "./kv_cache.ts";
import type { DecoderWeights, Layer, Projection } from "./decoder_weights.ts";
import { type StoredWeight, weightNode } from "./weights.ts";

/** How products are computed: in f32, or with activations in 8 bits (weights are 4 or 8 bits wide then, others stay exact). */
export type Precision = "exact" | "fast";

/** `x W^T + b`; matrices of different formats fill their columns of the result side by side. */
function project(x: Node, { weights, bias }: Projection, precision: Precision): Node {
  const rows = weights.reduce((sum, weight) => sum + weight.rows, 0);
  let at = 0;
  const columns = weights.map((weight) => {
    const part = product(x, weight, precision);
    const placed = pad(part, [0, at], [0, rows - at - weight.rows], 0);
    at += weight.rows;
    return placed;
  });
  const whole = columns.reduce((a, b) => map("add", a, b));
  return bias ? map("add", whole, buffer(bias)) : whole;
}

function product(x: Node, weight: StoredWeight, precision: Precision): Node {
  return precision === "fast" ? fastLinear(x, weightNode(weight)) : linear(x, weightNode(weight));
}

/** The pools after a layer has written to them. */
interface Pools {
  readonly keys: Node;
  readonly values: Node;
}

function attention(
  x: Node,
  layer: Layer,
  config: DecoderConfig,
  batch: Batch,
  rope: Node,
  pools: Pools,
  blockSize: number,
  precision: Precision,
): Node {
  const { numHeads: heads, numKvHeads: kvHeads, headDim, rmsNormEps: eps } = config;
  const norms = layer.qNorm && layer.kNorm ? { qNorm: buffer(layer.qNorm), kNorm: buffer(layer.kNorm) } : {};
  const { positions, slotMapping } = batch;
  const { q, keys, values } = ropeAndWriteKv(
    { qkv: project(x, layer.qkv, precision), positions, slotMapping, table: rope, ...pools, ...norms },
    {
      heads,
      kvHeads,
      headDim,
      rotaryDim: config.rope.rotaryDim,
      traditional: false,
      ...(config.qkNorm ? { eps } : {}),
    },
  );
  return attend(q, keys, values, batch, {
    blockSize,
    scale: 1 / Math.sqrt(headDim),
    ...(precision === "fast" ? { fast: true } : {}),
  });
}

/** silu(gate) * up, where gate and up are the halves of `gateUp`. */
function swiglu(gateUp: Node, size: number): Node {
  const tokens = maxOf(gateUp.shape[0]!);
  const half = (start: number): Node => slice(gateUp, [0, start], [tokens, start + size]);
  return map("mul", map("silu", half(0)), half(size));
}

/**
 * One forward pass.
 *
 * @param precision `exact` unless given.
 * @param cache Its pools are written: a program made of this updates them at each run.
 * @returns Logits `[rows, vocabulary]` f32 of the batch's `logitRows`, or of all tokens.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { openSource } from "@tinyllm/tinyllm";
 * import { argmax } from "@tinyllm/tinyllm/kernels";
 * import { batchInputs, forward, KvCache, loadDecoder, openCheckpoint, readConfig } from "@tinyllm/tinyllm/model";
 * import { compile, openDevice } from "@tinyllm/tinyllm/tensor";
 *
 * const source = await openSource(); // the story model
 * const config = await readConfig(source);
 * const device = await openDevice();
 * const weights = await loadDecoder(device, await openCheckpoint(source), config, { positions: 16 });
 * const cache = new KvCache(device, config, { numBlocks: 1, blockSize: 16, dtype: "f32" });
 * const batch = batchInputs({ maxTokens: 8, maxSequences: 1, maxBlocks: 1, maxLogitRows: 1 });
 * using program = compile(device, () => argmax(forward(weights, config, batch, cache)));
 * const inputs = {
 *   tokens: [1, 2, 3], // one sequence of three tokens, in rows 0 to 2 of block 0
 *   positions: [0, 1, 2],
 *   slotMapping: [0, 1, 2],
 *   queryStart: [0, 3],
 *   contextLens: [3],
 *   blockTables: [0],
 *   logitRows: [2], // the last token says what comes next
 * };
 * program.run({ inputs, sizes: { tokens: 3 } });
 * assertEquals((await program.read(0)).length, 1);
 * device.close();
 * ```
 */
export function forward(
  weights: DecoderWeights,
  config: DecoderConfig,
  batch: Batch,
  cache: KvCache,
  precision: Precision = "exact",
): Node {
  const { rmsNormEps: eps } = config, rope = buffer(weights.rope);
  let x = embedding(weightNode(weights.embedding), batch.tokens);
  weights.layers.forEach((layer, n) => {
    const pools = { keys: buffer(cache.keys[n]!), values: buffer(cache.values[n]!) };
    const attended = attention(
      rmsNorm(x, buffer(layer.attentionNorm), eps),
      layer,
      config,
      batch,
      rope,
      pools,
      cache.options.blockSize,
      precision,
    );
    x = map("add", x, project(attended, layer.attentionOutput, precision));
    const gateUp = project(rmsNorm(x, buffer(layer.mlpNorm), eps), layer.gateUp, precision);
    x = map("add", x, project(swiglu(gateUp, config.intermediateSize), layer.down, precision));
  });
  const rows = batch.logitRows ? gather(x, batch.logitRows) : x;
  return product(rmsNorm(rows, buffer(weights.norm), eps), weights.head, precision);
}
