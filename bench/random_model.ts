/**
 * Random 4-bit weights in a model's shape, made on the device: nothing is downloaded or uploaded.
 *
 * @module
 */
import type { AffineFormat } from "../kernels/weight_format.ts";
import { weightTensorTypes } from "../kernels/weight_format.ts";
import type { DecoderConfig } from "../model/config.ts";
import type { DecoderWeights } from "../model/decoder_weights.ts";
import { ropeTable } from "../model/rope_frequencies.ts";
import type { StoredWeight } from "../model/weights.ts";
import { assign, buffer, compile, constant, type Device, iota, map, type Node, Slabs, Storage } from "../tensor/mod.ts";

/** 4 bits, groups of 64, f16 scales and biases: the usual MLX checkpoint. */
export const benchFormat: AffineFormat = { kind: "affine", bits: 4, groupSize: 64, scales: "f16" };

/** Words that look random: a few rounds of Wellons' `lowbias32` over the position. */
function hash(shape: readonly number[], seed: number): Node {
  const width = shape.at(-1)!, u = (value: number): Node => constant(value >>> 0, "u32");
  let x = map("add", map("mul", iota(shape, 0, "u32"), u(width)), iota(shape, shape.length - 1, "u32"));
  x = map("add", x, u(seed * 0x9e3779b9));
  for (const factor of [0x7feb352d, 0x846ca68b]) {
    x = map("mul", x, u(factor));
    x = map("add", x, map("div", x, u(1 << 15)));
  }
  return x;
}

function fill(device: Device, storage: Storage, value: Node): void {
  using program = compile(device, () => assign(buffer(storage), value), { label: "random weights" });
  program.run();
}

function randomMatrix(
  device: Device,
  rows: number,
  columns: number,
  seed: number,
  owned: Storage[],
  slabs: Slabs,
): StoredWeight {
  const [codes, affine] = weightTensorTypes(benchFormat, rows, columns).map((type) => {
    const storage = new Storage(type.dtype, type.shape, undefined, "random weight");
    slabs.place(storage);
    owned.push(storage);
    return storage;
  });
  fill(device, codes!, hash(codes!.shape as number[], seed));
  // f16 scale 2^-9 with bias -7.5 * 2^-9: weights of about 0.01, centred.
  fill(
    device,
    affine!,
    map("add", map("mul", iota(affine!.shape, 0, "u32"), constant(0, "u32")), constant(0xa3801800, "u32")),
  );
  return { format: benchFormat, rows, columns, storages: [codes!, affine!] };
}

/** A decoder with random weights. */
export function randomDecoder(device: Device, config: DecoderConfig, positions: number): DecoderWeights {
  const owned: Storage[] = [], slabs = new Slabs(device, device.caps.cpu ? 1 << 26 : 1 << 30, "random weights");
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim, vocabSize } = config;
  let seed = 1;
  const matrix = (rows: number, columns: number): StoredWeight =>
    randomMatrix(device, rows, columns, seed++, owned, slabs);
  const vector = (length: number, value: number): Storage => {
    const storage = new Storage("f32", [length], new Float32Array(length).fill(value), "random vector");
    slabs.place(storage);
    owned.push(storage);
    return storage;
  };
  const width = numHeads * headDim, qkv = (numHeads + 2 * numKvHeads) * headDim;
  const embedding = matrix(vocabSize, hiddenSize);
  const layers = Array.from({ length: config.numLayers }, () => ({
    attentionNorm: vector(hiddenSize, 1),
    qkv: { weights: [matrix(qkv, hiddenSize)], bias: vector(qkv, 0.01) },
    qNorm: undefined,
    kNorm: undefined,
    attentionOutput: { weights: [matrix(hiddenSize, width)], bias: undefined },
    mlpNorm: vector(hiddenSize, 1),
    gateUp: { weights: [matrix(2 * intermediateSize, hiddenSize)], bias: undefined },
    down: { weights: [matrix(hiddenSize, intermediateSize)], bias: undefined },
  }));
  const rope = new Storage("f32", [positions, headDim / 2, 2], ropeTable(config.rope, positions), "rotary table");
  device.resident(rope);
  owned.push(rope);
  const norm = vector(hiddenSize, 1), head = config.tieWordEmbeddings ? embedding : matrix(vocabSize, hiddenSize);
  const bytes = owned.reduce((sum, storage) => sum + storage.resident!.bytes, 0);
  return { embedding, layers, norm, head, rope, bytes, release: () => owned.forEach((storage) => storage.release()) };
}
