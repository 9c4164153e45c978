/**
 * The decoder in elementary tensor operations: no kernel written by hand, no cache, no batch. It is the oracle of the fast
 * path in `decoder.ts`, and the place to read what a decoder is: vectors `[T, hidden]` pass through blocks that each add
 * attention (Vaswani et al. 2017) and a gated feed-forward layer (Shazeer 2020) to them.
 *
 * @module
 */
import { dequantise } from "../kernels/quantised_reference.ts";
import { iota } from "../tensor/node.ts";
import { Tensor, tensor } from "../tensor/tensor.ts";
import { type Checkpoint, readTensor } from "./checkpoint.ts";
import type { DecoderConfig } from "./config.ts";
import { bfloat16ToFloat32, float16ToFloat32 } from "./float.ts";
import { quantizationOf } from "./quantization.ts";
import { ropeTable } from "./rope_frequencies.ts";

/**
 * Shown each activation: `embed`, `final_norm`, and of each layer `layer.N.` with `attn_norm`, `q_rope`, `k_rope`,
 * `attn_out`, `mlp_norm`, `mlp_out` and `out`.
 */
export type ActivationObserver = (name: string, activation: Tensor) => void;

/** The softmax of a score this low is 0; minus infinity would make NaN of differences. */
const HIDDEN_SCORE = -1e30;

/**
 * Logits of a sequence, all positions at once.
 *
 * @param ids T token ids.
 * @param observe Called with the activations of every layer.
 * @returns `[T, vocabulary]`, not yet computed: `await logits.data(device)` does.
 * @throws {Error} for a tensor that the checkpoint lacks, or whose type is no float.
 *
 * @example
 * ```ts
 * import { openCheckpoint } from "./checkpoint.ts";
 * import { readConfig } from "./config.ts";
 * import { plainLogits } from "./plain_decoder.ts";
 * import type { Source } from "./source.ts";
 *
 * async function likeliestNext(source: Source, ids: number[]): Promise<number> {
 *   const logits = await plainLogits(await openCheckpoint(source), await readConfig(source), ids);
 *   return (await logits.argmax(-1).data()).at(-1)!;
 * }
 * ```
 */
export async function plainLogits(
  checkpoint: Checkpoint,
  config: DecoderConfig,
  ids: readonly number[],
  observe: ActivationObserver = () => {},
): Promise<Tensor> {
  const read = (path: string): Promise<Tensor> => plainWeight(checkpoint, config, path);
  const { rmsNormEps: eps } = config;
  const rope = tensor(ropeTable(config.rope, ids.length), { shape: [ids.length, config.rope.rotaryDim / 2, 2] });
  const embedding = await read("model.embed_tokens");
  let x = embedding.gather(tensor(Int32Array.from(ids)));
  observe("embed", x);
  for (let n = 0; n < config.numLayers; n++) {
    const layer = (path: string): Promise<Tensor> => read(`model.layers.${n}.${path}`);
    const show = (name: string, activation: Tensor): Tensor => {
      observe(`layer.${n}.${name}`, activation);
      return activation;
    };
    const attentionInput = show("attn_norm", rmsNorm(x, await layer("input_layernorm"), eps));
    x = x.add(show("attn_out", await attention(attentionInput, layer, config, rope, show)));
    const mlpInput = show("mlp_norm", rmsNorm(x, await layer("post_attention_layernorm"), eps));
    x = x.add(show("mlp_out", await feedForward(mlpInput, layer, config)));
    show("out", x);
  }
  x = rmsNorm(x, await read("model.norm"), eps);
  observe("final_norm", x);
  return linear(x, config.tieWordEmbeddings ? embedding : await read("lm_head"));
}

type Reader = (path: string) => Promise<Tensor>;

/** x / sqrt(mean(x²) + eps) * weight (Zhang and Sennrich 2019). */
function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  return x.mul(x.mul(x).mean(-1, true).add(eps).rsqrt()).mul(weight);
}

/** x Wᵀ. */
function linear(x: Tensor, weight: Tensor): Tensor {
  return x.matmul(weight.transpose());
}

/** x Wᵀ + b, where the config says that there is a bias. */
async function project(x: Tensor, path: string, read: Reader, bias: boolean): Promise<Tensor> {
  const product = linear(x, await read(path));
  return bias ? product.add(await read(`${path}.bias`)) : product;
}

/** softmax(q kᵀ / sqrt(headDim), keys up to the query) v, where each key head serves a group of query heads. */
async function attention(
  x: Tensor,
  read: Reader,
  config: DecoderConfig,
  rope: Tensor,
  show: (name: string, activation: Tensor) => Tensor,
): Promise<Tensor> {
  const { numHeads, numKvHeads, headDim, attentionBias, attentionOutputBias, rmsNormEps: eps } = config;
  const length = x.shape[0] as number, group = numHeads / numKvHeads;
  /** `[heads, T, headDim]`. */
  const heads = async (name: string, count: number): Promise<Tensor> => {
    const rows = (await project(x, `self_attn.${name}_proj`, read, attentionBias)).reshape([length, count, headDim]);
    const normed = config.qkNorm && name !== "v" ? rmsNorm(rows, await read(`self_attn.${name}_norm`), eps) : rows;
    return normed.permute([1, 0, 2]);
  };
  const q = show("q_rope", rotate(await heads("q", numHeads), rope));
  const k = show("k_rope", rotate(await heads("k", numKvHeads), rope));
  const v = await heads("v", numKvHeads);
  const [keys, values] = [k, v].map((part) => part.reshape([numKvHeads, 1, length, headDim])) as [Tensor, Tensor];
  const scores = q.reshape([numKvHeads, group, length, headDim]).matmul(keys.transpose()).mul(headDim ** -0.5);
  const position = (axis: number): Tensor => new Tensor(iota([length, length], axis));
  const visible = position(1).le(position(0)).expand(scores.shape);
  const attended = visible.where(scores, HIDDEN_SCORE).softmax().matmul(values);
  const joined = attended.reshape([numHeads, length, headDim]).permute([1, 0, 2]).reshape([length, numHeads * headDim]);
  return await project(joined, "self_attn.o_proj", read, attentionOutputBias);
}

/** Turns the pairs (i, i + rotaryDim / 2) of x `[heads, T, headDim]` by the angles of their position (Su et al. 2021). */
function rotate(x: Tensor, rope: Tensor): Tensor {
  const [heads, length, headDim] = x.shape as [number, number, number];
  const pairs = rope.shape[1] as number;
  const features = (from: number, to: number): Tensor => x.slice([0, 0, from], [heads, length, to]);
  const place = (part: Tensor, from: number, to: number): Tensor => part.pad([0, 0, from], [0, 0, headDim - to]);
  const [cos, sin] = [0, 1].map((i) => rope.slice([0, 0, i], [length, pairs, i + 1]).reshape([length, pairs])) as [
    Tensor,
    Tensor,
  ];
  const a = features(0, pairs), b = features(pairs, 2 * pairs);
  const turned = place(a.mul(cos).sub(b.mul(sin)), 0, pairs).add(place(b.mul(cos).add(a.mul(sin)), pairs, 2 * pairs));
  return 2 * pairs === headDim ? turned : turned.add(place(features(2 * pairs, headDim), 2 * pairs, headDim));
}

/** W_down (silu(W_gate x) * W_up x). */
async function feedForward(x: Tensor, read: Reader, { mlpBias }: DecoderConfig): Promise<Tensor> {
  const gate = await project(x, "mlp.gate_proj", read, mlpBias);
  const up = await project(x, "mlp.up_proj", read, mlpBias);
  return await project(gate.silu().mul(up), "mlp.down_proj", read, mlpBias);
}

/** A weight, or the bias where the path ends so, as f32: quantised ones are widened here, on the CPU. */
async function plainWeight(checkpoint: Checkpoint, config: DecoderConfig, path: string): Promise<Tensor> {
  const name = path.endsWith(".bias") ? path : `${path}.weight`;
  const info = checkpoint.tensors.get(name), scales = checkpoint.tensors.get(`${path}.scales`);
  if (!info) throw new Error(`Cannot load the model: its checkpoint has no tensor "${name}"`);
  if (!scales) return tensor(await readFloats(checkpoint, name), { shape: info.shape });
  const codes = await readTensor(checkpoint.source, info), words = new Uint32Array(codes.buffer);
  // Codes and scales alone leave bits and group size open by a factor; the number of inputs settles it.
  const inFeatures = inFeaturesOf(config, path), [rows, weightColumns] = info.shape as [number, number];
  const stored = { inFeatures, weightColumns, scaleColumns: scales.shape[1]! };
  const { bits, groupSize } = quantizationOf(config.quantization, path, stored)!;
  const [scale, bias] = [await readFloats(checkpoint, scales.name), await readFloats(checkpoint, `${path}.biases`)];
  return tensor(dequantise(words, scale, bias, bits, groupSize), { shape: [rows, inFeatures] });
}

function inFeaturesOf({ hiddenSize, intermediateSize, numHeads, headDim }: DecoderConfig, path: string): number {
  if (path.endsWith("down_proj")) return intermediateSize;
  return path.endsWith("o_proj") ? numHeads * headDim : hiddenSize;
}

async function readFloats(checkpoint: Checkpoint, name: string): Promise<Float32Array<ArrayBuffer>> {
  const info = checkpoint.tensors.get(name);
  if (!info) throw new Error(`Cannot load the model: its checkpoint has no tensor "${name}"`);
  const { buffer } = await readTensor(checkpoint.source, info);
  switch (info.dtype) {
    case "F32":
      return new Float32Array(buffer);
    case "F16":
      return float16ToFloat32(new Uint16Array(buffer));
    case "BF16":
      return bfloat16ToFloat32(new Uint16Array(buffer));
    default:
      throw new Error(`Cannot load "${name}": its type is ${info.dtype}, not F32, F16 or BF16`);
  }
}
