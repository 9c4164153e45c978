/**
 * MLX's affine quantisation in plain TypeScript: what the format means, before any speed. A row of a matrix is cut into
 * groups of 32, 64 or 128 columns; a group has a scale, a bias and a code of 2, 3, 4, 5, 6 or 8 bits for each weight:
 *
 *     weight[r, c] = code[r, c] * scale[r, g] + bias[r, g]          g = floor(c / groupSize)
 *
 * Codes of a row form one bit stream in u32 words: word 0 first, within a word the least significant bit first, code i in
 * bits i * bits to (i + 1) * bits - 1. 32 codes fill exactly `bits` words, so rows and groups start on word boundaries, but
 * codes of 3, 5 and 6 bits do cross words. Source: MLX's mlx.core.quantize and mlx.core.dequantize.
 *
 * @module
 */

/** Bits that a code may have. */
export const codeBits = [2, 3, 4, 5, 6, 8] as const;

/** Columns that a group may have. */
export const groupSizes = [32, 64, 128] as const;

function checkFormat(bits: number, groupSize: number): void {
  if (!codeBits.some((known) => known === bits)) {
    throw new Error(`Cannot read codes of ${bits} bits: MLX's formats have ${codeBits.join(", ")}`);
  }
  if (!groupSizes.some((known) => known === groupSize)) {
    throw new Error(`Cannot read groups of ${groupSize}: MLX's formats have ${groupSizes.join(", ")}`);
  }
}

/**
 * Takes codes out of their words.
 *
 * @param words Whole rows of packed codes: a multiple of `bits` words.
 * @param bits Bits of a code.
 * @returns 32 codes for each `bits` words, in order.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { unpackCodes } from "./quantised_reference.ts";
 * assertEquals([...unpackCodes([0x76543210], 4)], [0, 1, 2, 3, 4, 5, 6, 7]);
 * // Three bits: code 10 has its low two bits at the end of word 0, its high bit at the start of word 1.
 * assertEquals(unpackCodes([0xc0000000, 0x00000001, 0], 3)[10], 0b111);
 * ```
 */
export function unpackCodes(words: ArrayLike<number>, bits: number): Uint8Array {
  checkFormat(bits, 32);
  const mask = 2 ** bits - 1;
  const codes = new Uint8Array(Math.floor(words.length * 32 / bits));
  for (let i = 0; i < codes.length; i++) {
    const word = Math.floor(i * bits / 32), shift = (i * bits) % 32;
    const high = shift + bits > 32 ? words[word + 1]! << (32 - shift) : 0;
    codes[i] = ((words[word]! >>> shift) | high) & mask;
  }
  return codes;
}

/**
 * Packs codes as MLX does: the inverse of {@linkcode unpackCodes}.
 *
 * @param codes Codes below 2^bits, a multiple of 32 of them.
 * @param bits Bits of a code.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { packCodeWords, unpackCodes } from "./quantised_reference.ts";
 * const codes = Uint8Array.from({ length: 32 }, (_, i) => i % 8);
 * assertEquals(unpackCodes(packCodeWords(codes, 3), 3), codes);
 * ```
 */
export function packCodeWords(codes: ArrayLike<number>, bits: number): Uint32Array<ArrayBuffer> {
  checkFormat(bits, 32);
  if (codes.length % 32 !== 0) throw new Error(`Cannot pack ${codes.length} codes: rows have a multiple of 32`);
  const words = new Uint32Array(codes.length * bits / 32);
  for (let i = 0; i < codes.length; i++) {
    const word = Math.floor(i * bits / 32), shift = (i * bits) % 32;
    words[word]! |= codes[i]! << shift;
    if (shift + bits > 32) words[word + 1]! |= codes[i]! >>> (32 - shift);
  }
  return words;
}

/**
 * The weights that codes, scales and biases stand for. As rows hold whole groups, the matrix is one run of groups. The
 * product of a code and a 16-bit scale is exact in f32, so for f16 and bf16 checkpoints the result is what MLX gives bit for
 * bit once scales and biases are widened to f32.
 *
 * @param words Packed codes of whole rows.
 * @param scales One number a group.
 * @param biases One number a group.
 * @returns Weights in f32, row-major.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { dequantise } from "./quantised_reference.ts";
 * const words = [0x76543210, 0, 0, 0]; // 32 codes of 4 bits: 0 to 7, then zeros
 * assertEquals([...dequantise(words, [0.5], [-1], 4, 32).slice(0, 9)], [-1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, -1]);
 * ```
 */
export function dequantise(
  words: ArrayLike<number>,
  scales: ArrayLike<number>,
  biases: ArrayLike<number>,
  bits: number,
  groupSize: number,
): Float32Array<ArrayBuffer> {
  checkFormat(bits, groupSize);
  const codes = unpackCodes(words, bits);
  if (codes.length !== scales.length * groupSize || scales.length !== biases.length) {
    throw new Error(
      `Cannot dequantise ${codes.length} codes with ${scales.length} scales and ${biases.length} biases: ` +
        `groups of ${groupSize} need ${codes.length / groupSize} of each`,
    );
  }
  return Float32Array.from(codes, (code, i) => {
    const group = Math.floor(i / groupSize);
    return code * scales[group]! + biases[group]!;
  });
}

/**
 * The product of activations and a quantised matrix, y = x W^T, in float64.
 *
 * @param x Activations [tokens, columns].
 * @param words Packed codes [rows, columns * bits / 32].
 * @param scales Scales [rows, columns / groupSize].
 * @param biases Biases, as many.
 * @param bits Bits of a code.
 * @param groupSize Columns of a group.
 * @param columns Columns of x and of the matrix.
 * @returns y [tokens, rows].
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { quantisedMatmulReference } from "./quantised_reference.ts";
 * const x = new Float32Array(32).fill(1);
 * const words = new Uint32Array(8).fill(0x11111111); // two rows of 32 codes of 4 bits, all 1
 * assertEquals([...quantisedMatmulReference(x, words, [0.5, 1], [0, 1], 4, 32, 32)], [16, 64]);
 * ```
 */
export function quantisedMatmulReference(
  x: ArrayLike<number>,
  words: ArrayLike<number>,
  scales: ArrayLike<number>,
  biases: ArrayLike<number>,
  bits: number,
  groupSize: number,
  columns: number,
): Float64Array {
  return matmulReference(x, dequantise(words, scales, biases, bits, groupSize), columns);
}

/**
 * The product of activations and a dense matrix, y = x W^T, in float64.
 *
 * @param x Activations [tokens, columns].
 * @param weights Matrix [rows, columns].
 * @param columns Columns of both.
 * @returns y [tokens, rows].
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { matmulReference } from "./quantised_reference.ts";
 * assertEquals([...matmulReference([1, 2], [3, 4, 5, 6], 2)], [11, 17]);
 * ```
 */
export function matmulReference(x: ArrayLike<number>, weights: ArrayLike<number>, columns: number): Float64Array {
  const rows = columns === 0 ? 0 : weights.length / columns, tokens = columns === 0 ? 0 : x.length / columns;
  const y = new Float64Array(tokens * rows);
  for (let token = 0; token < tokens; token++) {
    for (let row = 0; row < rows; row++) {
      let sum = 0;
      for (let c = 0; c < columns; c++) sum += x[token * columns + c]! * weights[row * columns + c]!;
      y[token * rows + row] = sum;
    }
  }
  return y;
}

/** A quantised matrix. */
export interface Quantised {
  /** Packed codes, rows of columns * bits / 32 words. */
  readonly words: Uint32Array<ArrayBuffer>;
  /** A scale for each group. */
  readonly scales: Float32Array<ArrayBuffer>;
  /** A bias for each group. */
  readonly biases: Float32Array<ArrayBuffer>;
}

/**
 * Quantises whole rows in MLX's manner: the range of a group is cut into 2^bits - 1 steps, the end of larger magnitude is the
 * bias, moved so that zero becomes a code. The scale is negative where that end is the maximum.
 *
 * @param values Matrix, row-major, rows of whole groups.
 * @param bits Bits of a code.
 * @param groupSize Columns of a group.
 * @param round Rounds scales and biases to what a checkpoint's type holds; f32 unless given.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { dequantise, quantise } from "./quantised_reference.ts";
 * const values = Float32Array.from({ length: 32 }, (_, i) => (i % 16) - 5);
 * const { words, scales, biases } = quantise(values, 4, 32);
 * assertEquals(dequantise(words, scales, biases, 4, 32), values);
 * ```
 */
export function quantise(
  values: ArrayLike<number>,
  bits: number,
  groupSize: number,
  round: (value: number) => number = Math.fround,
): Quantised {
  checkFormat(bits, groupSize);
  if (values.length % groupSize !== 0) {
    throw new Error(`Cannot quantise ${values.length} values in groups of ${groupSize}: rows hold whole groups`);
  }
  const groups = values.length / groupSize;
  const codes = new Uint8Array(values.length);
  const scales = new Float32Array(groups), biases = new Float32Array(groups);
  for (let group = 0; group < groups; group++) {
    const start = group * groupSize;
    const { scale, bias } = fitGroup(values, start, groupSize, 2 ** bits - 1);
    const storedScale = scales[group] = round(scale), storedBias = biases[group] = round(bias);
    for (let i = start; i < start + groupSize; i++) {
      const code = storedScale === 0 ? 0 : Math.round((values[i]! - storedBias) / storedScale);
      codes[i] = Math.max(0, Math.min(2 ** bits - 1, code));
    }
  }
  return { words: packCodeWords(codes, bits), scales, biases };
}

/** Scale and bias of one group, with `steps` steps between the least and the greatest code. */
function fitGroup(
  values: ArrayLike<number>,
  start: number,
  count: number,
  steps: number,
): { scale: number; bias: number } {
  let least = Infinity, greatest = -Infinity;
  for (let i = start; i < start + count; i++) {
    least = Math.min(least, values[i]!);
    greatest = Math.max(greatest, values[i]!);
  }
  const smallest = 1e-7; // MLX's floor for a group of equal values
  const fromLeast = Math.abs(least) > Math.abs(greatest);
  const scale = Math.max((greatest - least) / steps, smallest) * (fromLeast ? 1 : -1);
  const edge = fromLeast ? least : greatest;
  const zeroCode = Math.round(edge / scale);
  return zeroCode === 0 ? { scale, bias: 0 } : { scale: edge / zeroCode, bias: edge };
}
