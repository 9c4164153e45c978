/**
 * Random weights in every format, for the tests and benches of the kernels that read them, and the calls and tolerances
 * of a product.
 *
 * @module
 */
import { float16Bits, float16Value, type HostArray } from "../tensor/dtype.ts";
import type { ProductParams } from "./product.ts";
import { matmulReference, quantise } from "./quantised_reference.ts";
import type { CaseCall, CaseInput, KernelCase, Random } from "./spec.ts";
import { matmul } from "./matmul.ts";
import { quantisedMatmul } from "./quantised_matmul.ts";
import { decodeWeight, type FloatType, formatName, type WeightFormat, weightTensorTypes } from "./weight_format.ts";

const float32 = new DataView(new ArrayBuffer(4));

function float32Bits(value: number): number {
  float32.setFloat32(0, value);
  return float32.getUint32(0);
}

/** The bits of a number in a 16-bit type; bf16 is the upper half of f32, cut off. */
function bits16(value: number, dtype: FloatType): number {
  return dtype === "f16" ? float16Bits(value) : float32Bits(value) >>> 16;
}

function rounded(value: number, dtype: FloatType): number {
  if (dtype === "f32") return Math.fround(value);
  if (dtype === "f16") return float16Value(float16Bits(value));
  float32.setUint32(0, float32Bits(value) & 0xffff0000);
  return float32.getFloat32(0);
}

/** Words of 16-bit pairs, or of f32 bits. */
function storedFloats(values: ArrayLike<number>, dtype: FloatType): Uint32Array<ArrayBuffer> {
  if (dtype === "f32") return Uint32Array.from(values, float32Bits);
  const words = new Uint32Array(Math.ceil(values.length / 2));
  for (let i = 0; i < values.length; i++) words[i >> 1]! |= bits16(values[i]!, dtype) << (i % 2 === 0 ? 0 : 16);
  return words;
}

/** The tensors of a random weight. Some of its scales are f16 subnormals, and some of its rows are zero. */
export function randomWeight(format: WeightFormat, rows: number, columns: number, random: Random): CaseInput[] {
  const values = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const spread = row % 7 === 3 ? 2e-5 : row % 11 === 5 ? 0 : 1;
    for (let c = 0; c < columns; c++) values[row * columns + c] = spread * random.normal();
  }
  const types = weightTensorTypes(format, rows, columns);
  const data = storedWeight(format, values, rows, columns);
  return types.map((type, i) => ({ ...type, data: data[i]! }));
}

function storedWeight(
  format: WeightFormat,
  values: Float32Array<ArrayBuffer>,
  rows: number,
  columns: number,
): HostArray[] {
  if (format.kind === "dense") {
    if (format.dtype === "f32") return [values];
    const rowWords = Math.ceil(columns / 2), words = new Uint32Array(rows * rowWords);
    for (let row = 0; row < rows; row++) {
      words.set(storedFloats(values.subarray(row * columns, (row + 1) * columns), format.dtype), row * rowWords);
    }
    return [words];
  }
  const { words, scales, biases } = quantise(
    values,
    format.bits,
    format.groupSize,
    (value) => rounded(value, format.scales),
  );
  const pairs = Array.from({ length: 2 * scales.length }, (_, i) => (i % 2 === 0 ? scales : biases)[i >> 1]!);
  return [words, storedFloats(pairs, format.scales)];
}

/** A weight of a bench: time depends on its sizes alone, so that 64 random rows are repeated. */
export function repeatedWeight(format: WeightFormat, rows: number, columns: number, random: Random): CaseInput[] {
  const few = randomWeight(format, Math.min(rows, 64), columns, random);
  return weightTensorTypes(format, rows, columns).map((type, i) => {
    const piece = few[i]!.data, size = type.shape.reduce<number>((n, dim) => n * (dim as number), 1);
    const data = piece instanceof Float32Array ? new Float32Array(size) : new Uint32Array(size);
    for (let at = 0; at < size; at += piece.length) data.set(piece.subarray(0, size - at), at);
    return { ...type, data };
  });
}

/** A product of random activations and a random weight, or one that `weight` makes. */
export function productCall(
  params: ProductParams,
  tokens: number,
  rows: number,
  columns: number,
  random: Random,
  dtype: "f32" | "f16" = "f32",
  weight: typeof randomWeight = randomWeight,
): CaseCall<ProductParams> {
  const x = Float32Array.from({ length: tokens * columns }, () => rounded(random.normal(), dtype));
  return {
    params,
    inputs: [{ dtype, shape: [tokens, columns], data: x }, ...weight(params.format, rows, columns, random)],
  };
}

/** Rounding of f32 sums: columns / 4 additions in a row, each within 2^-24 of what has been added up so far. */
function productTolerance({ params, inputs }: CaseCall<ProductParams>): Float64Array {
  const [x, ...tensors] = inputs;
  const columns = x!.shape[1] as number;
  const weights = decodeWeight(params.format, tensors.map((tensor) => tensor.data), columns);
  const magnitudes = matmulReference(
    Float64Array.from(x!.data, Math.abs),
    Float64Array.from(weights, Math.abs),
    columns,
  );
  const errors = magnitudes.map((magnitude) => (columns / 4 + 8) * 2 ** -24 * magnitude + 1e-30);
  if (!params.gate) return errors;
  // |silu'| is at most 1.1 and |silu(v)| at most |v|; exp is good to 4e-6.
  const rows = inputs[1]!.shape[0] as number, outputs = rows / 2;
  return Float64Array.from({ length: errors.length / 2 }, (_, i) => {
    const a = Math.floor(i / outputs) * rows + i % outputs, b = a + outputs;
    return 1.1 * errors[a]! * (magnitudes[b]! + errors[b]!) + magnitudes[a]! * (errors[b]! + 1e-5 * magnitudes[b]!);
  });
}

/** Shapes of a case: tokens, rows and columns. */
export type ProductShape = readonly [tokens: number, rows: number, columns: number];

/** A kernel case of one format in random shapes. */
export function productCase(
  label: string,
  params: ProductParams,
  shape: (random: Random) => ProductShape,
  options: { readonly x?: "f32" | "f16"; readonly bench?: Readonly<Record<string, ProductShape>> } = {},
): KernelCase<ProductParams> {
  const kernel = params.format.kind === "dense" ? matmul : quantisedMatmul;
  const bench = Object.entries(options.bench ?? {}).map(([name, sizes]) => {
    return [name, (random: Random) => productCall(params, ...sizes, random, options.x, repeatedWeight)] as const;
  });
  return {
    name: `${kernel.name} ${formatName(params.format)}, ${label}`,
    kernel,
    random: (random) => productCall(params, ...shape(random), random, options.x),
    tolerance: (call) => [productTolerance(call)],
    bench: Object.fromEntries(bench),
  };
}
