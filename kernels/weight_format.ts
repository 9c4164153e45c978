/**
 * How a weight matrix [rows, columns] is stored, and how kernels read it. A format says which tensors hold the matrix, how
 * a checkpoint's bytes become them, and gives the WGSL text that turns 32 consecutive weights of a row into eight vec4f.
 * Product and embedding kernels are written against that text alone, so that formats, families and variants add up
 * instead of multiplying.
 *
 * Formats: dense f32, f16 and bf16, and MLX's affine quantisation, where weight = code * scale + bias with one scale and bias
 * for each group of columns (mlx.core.quantize). Everything here is exact: 16-bit floats stay 16-bit pairs in u32
 * words, so that no device feature is needed, and widening them to f32 loses nothing.
 *
 * @module
 */
import { float16Value } from "../tensor/dtype.ts";
import type { Port, TensorType } from "../tensor/kernel.ts";
import type { Node } from "../tensor/node.ts";
import { dequantise } from "./quantised_reference.ts";

/** A floating-point type of checkpoints. */
export type FloatType = "f32" | "f16" | "bf16";

/** Every weight as a float. */
export interface DenseFormat {
  /** Tells the formats apart. */
  readonly kind: "dense";
  /** Type of the stored weights. */
  readonly dtype: FloatType;
}

/** MLX affine quantisation: `bits`-wide codes, a scale and a bias for each `groupSize` columns of a row. */
export interface AffineFormat {
  /** Tells the formats apart. */
  readonly kind: "affine";
  /** Bits of a code. */
  readonly bits: 2 | 3 | 4 | 5 | 6 | 8;
  /** Columns that share a scale and a bias. */
  readonly groupSize: 32 | 64 | 128;
  /** Type of scales and biases in the checkpoint. */
  readonly scales: FloatType;
}

/** How a weight matrix is stored. */
export type WeightFormat = DenseFormat | AffineFormat;

/** A weight matrix in the graph. */
export interface Weight {
  /** How it is stored. */
  readonly format: WeightFormat;
  /** Outputs of the linear layer. */
  readonly rows: number;
  /** Inputs of the linear layer. */
  readonly columns: number;
  /** The tensors that hold it, of the types that {@linkcode weightTensorTypes} gives. */
  readonly tensors: readonly Node[];
}

/** `f16` or `affine 4 bits, group 64, f16`: how errors and labels name a format. */
export function formatName(format: WeightFormat): string {
  return format.kind === "dense"
    ? format.dtype
    : `affine ${format.bits} bits, group ${format.groupSize}, ${format.scales}`;
}

/**
 * Types of the tensors that hold a weight matrix.
 *
 * - dense f32: one f32 [rows, columns]
 * - dense f16, bf16: one u32 [rows, ceil(columns / 2)], pairs, the even column in the low half
 * - affine: codes u32 [rows, columns * bits / 32] as MLX packs them, and scales with biases u32: a word a group (scale in
 *   the low half) for 16-bit types, two words (bits of f32, scale first) for f32
 *
 * Throws where the format cannot hold that many columns.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { weightTensorTypes } from "./weight_format.ts";
 * assertEquals(weightTensorTypes({ kind: "affine", bits: 4, groupSize: 64, scales: "f16" }, 10, 128), [
 *   { dtype: "u32", shape: [10, 16] },
 *   { dtype: "u32", shape: [10, 2] },
 * ]);
 * ```
 */
export function weightTensorTypes(format: WeightFormat, rows: number, columns: number): TensorType[] {
  if (format.kind === "dense") {
    if (format.dtype === "f32") return [{ dtype: "f32", shape: [rows, columns] }];
    return [{ dtype: "u32", shape: [rows, Math.ceil(columns / 2)] }];
  }
  if (columns % format.groupSize !== 0) {
    throw new Error(
      `Cannot store [${rows}, ${columns}] as ${
        formatName(format)
      }: ${columns} columns are no multiple of the group size`,
    );
  }
  const groups = columns / format.groupSize;
  return [
    { dtype: "u32", shape: [rows, columns * format.bits / 32] },
    { dtype: "u32", shape: [rows, format.scales === "f32" ? 2 * groups : groups] },
  ];
}

/** Little-endian words of a byte range that may start anywhere: checkpoints do not align their tensors. */
function words(bytes: Uint8Array): Uint32Array<ArrayBuffer> {
  if (bytes.byteLength % 4 !== 0) {
    throw new Error(`Cannot read ${bytes.byteLength} bytes as 32-bit words: no multiple of 4`);
  }
  const copy = new Uint8Array(bytes.byteLength);
  copy.set(bytes);
  return new Uint32Array(copy.buffer);
}

/**
 * Turns rows of a dense checkpoint tensor into rows of its storage. Works on any number of whole rows, so that a large tensor is
 * converted piece by piece.
 *
 * @param bytes Little-endian elements, row-major, at any alignment.
 * @param dtype Their type.
 * @param columns Elements of a row: an odd row of 16-bit elements is padded by one.
 * @returns f32 values, or u32 words of 16-bit pairs.
 */
export function packDense(
  bytes: Uint8Array,
  dtype: FloatType,
  columns: number,
): Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer> {
  if (dtype === "f32") return new Float32Array(words(bytes).buffer);
  const rowBytes = 2 * columns;
  if (rowBytes % 4 === 0 || bytes.byteLength === 0) return words(bytes);
  if (bytes.byteLength % rowBytes !== 0) {
    throw new Error(
      `Cannot pack ${bytes.byteLength} bytes: rows of ${columns} ${dtype} elements take ${rowBytes} each`,
    );
  }
  const rows = bytes.byteLength / rowBytes;
  const padded = new Uint8Array(rows * (rowBytes + 2));
  for (let row = 0; row < rows; row++) {
    padded.set(bytes.subarray(row * rowBytes, (row + 1) * rowBytes), row * (rowBytes + 2));
  }
  return new Uint32Array(padded.buffer);
}

/**
 * Packs the codes of an affine tensor: they are stored as MLX writes them, so this only aligns the bytes.
 *
 * @param bytes Little-endian u32 words at any alignment.
 */
export function packCodes(bytes: Uint8Array): Uint32Array<ArrayBuffer> {
  return words(bytes);
}

/**
 * Interleaves scales and biases, so that a group costs one load. Works on any run of groups, as long as both cover the same.
 *
 * @param scales Little-endian elements at any alignment.
 * @param biases As many.
 * @param dtype Type of both.
 * @returns A word a group (16-bit types: scale low, bias high), or two (f32 bits).
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { packAffine } from "./weight_format.ts";
 * const scales = new Uint8Array([0x00, 0x3c]), biases = new Uint8Array([0x00, 0xc0]); // f16 1 and -2
 * assertEquals(packAffine(scales, biases, "f16"), new Uint32Array([0xc0003c00]));
 * ```
 */
export function packAffine(scales: Uint8Array, biases: Uint8Array, dtype: FloatType): Uint32Array<ArrayBuffer> {
  const size = dtype === "f32" ? 4 : 2;
  if (scales.byteLength !== biases.byteLength || scales.byteLength % size !== 0) {
    throw new Error(
      `Cannot pack ${scales.byteLength} bytes of ${dtype} scales with ${biases.byteLength} of biases: as many of each, please`,
    );
  }
  const packed = new Uint8Array(2 * scales.byteLength);
  for (let from = 0, to = 0; from < scales.byteLength; from += size, to += 2 * size) {
    for (let byte = 0; byte < size; byte++) {
      packed[to + byte] = scales[from + byte]!;
      packed[to + size + byte] = biases[from + byte]!;
    }
  }
  return new Uint32Array(packed.buffer);
}

const float32 = new DataView(new ArrayBuffer(4));

function float32Value(bits: number): number {
  float32.setUint32(0, bits);
  return float32.getFloat32(0);
}

/** Numbers that a run of stored values stands for: u32 words hold two 16-bit floats, low half first, or the bits of one f32. */
function floatsOf(stored: ArrayLike<number>, dtype: FloatType): Float64Array {
  if (dtype === "f32") return Float64Array.from(stored, float32Value);
  const value = dtype === "f16" ? float16Value : (bits: number): number => float32Value((bits << 16) >>> 0);
  const floats = new Float64Array(2 * stored.length);
  for (let i = 0; i < stored.length; i++) {
    floats[2 * i] = value(stored[i]! & 0xffff);
    floats[2 * i + 1] = value(stored[i]! >>> 16);
  }
  return floats;
}

/**
 * The plain definition of every format: the weights that the storage's values stand for.
 *
 * @param format How the matrix is stored.
 * @param tensors Values of the tensors, flat, in the order of {@linkcode weightTensorTypes}.
 * @param columns Columns of the matrix.
 * @returns Weights, row-major.
 */
export function decodeWeight(
  format: WeightFormat,
  tensors: readonly ArrayLike<number>[],
  columns: number,
): ArrayLike<number> {
  const [stored, affine] = tensors;
  if (!stored) throw new Error(`Cannot decode a weight of ${formatName(format)}: no tensors given`);
  if (format.kind === "affine") {
    const pairs = floatsOf(affine ?? [], format.scales);
    const scales = pairs.filter((_, i) => i % 2 === 0), biases = pairs.filter((_, i) => i % 2 === 1);
    return dequantise(stored, scales, biases, format.bits, format.groupSize);
  }
  if (format.dtype === "f32") return stored;
  const padded = floatsOf(stored, format.dtype);
  return columns % 2 === 0 ? padded : padded.filter((_, i) => i % (columns + 1) < columns);
}

/** The WGSL through which every kernel reads a weight matrix. */
export interface WeightReader {
  /** Ports of the weight's tensors, in the order of {@linkcode weightTensorTypes}. */
  readonly ports: readonly Port[];
  /** Parts of 32 columns in a step: loads that a step's parts share are made once. */
  readonly parts: 1 | 2;
  /** Steps that cover a row. Columns beyond the last read as zero. */
  readonly steps: number;
  /** Statements that load what the parts of step `step` of row `row` share, under names that start with `name`. */
  begin(name: string, row: string, step: string): string;
  /** Statements that declare vec4f `${name}0` to `${name}7`: the 32 weights of a part, after `begin` with the same name. */
  part(name: string, row: string, step: string, part: number): string;
}

/** Columns of a part. */
export const partColumns = 32;

const components = ["x", "y", "z", "w"] as const;

/** vec2f of a word's low and high 16-bit floats. llvmpipe and NVIDIA keep f16 subnormals in `unpack2x16float`. */
function widenPair(word: string, dtype: FloatType): string {
  if (dtype === "f16") return `unpack2x16float(${word})`;
  return `vec2f(bitcast<f32>(${word} << 16u), bitcast<f32>(${word} & 0xffff0000u))`;
}

function denseF32Reader(columns: number): WeightReader {
  const width = columns % 4 === 0 ? 4 : 1;
  const whole = columns % partColumns === 0;
  const load = (row: string, step: string, vector: number): string => {
    const at = (offset: number): string => `${step} * ${partColumns / width}u + ${offset}u`;
    const guarded = (offset: number, zero: string): string => {
      const value = `weights(${row} * ${columns / width}u + ${at(offset)})`;
      return whole ? value : `select(${zero}, ${value}, ${at(offset)} < ${columns / width}u)`;
    };
    if (width === 4) return guarded(vector, "vec4f()");
    return `vec4f(${[0, 1, 2, 3].map((i) => guarded(4 * vector + i, "0.0")).join(", ")})`;
  };
  return {
    ports: [{ name: "weights", width }],
    parts: 1,
    steps: Math.ceil(columns / partColumns),
    begin: () => "",
    part: (name, row, step) =>
      Array.from({ length: 8 }, (_, vector) => `let ${name}${vector} = ${load(row, step, vector)};\n`).join(""),
  };
}

function dense16Reader(dtype: FloatType, columns: number): WeightReader {
  const whole = columns % partColumns === 0;
  const rowWords = Math.ceil(columns / 2);
  const width = rowWords % 4 === 0 ? 4 : 1;
  const wordAt = (name: string, row: string, step: string, word: number): string => {
    const column = `${step} * ${partColumns / 2}u + ${word}u`;
    const value = `weights(${row} * ${rowWords}u + ${column})`;
    return `let ${name}_${word} = ${whole ? value : `select(0u, ${value}, ${column} < ${rowWords}u)`};\n`;
  };
  const vectorAt = (name: string, row: string, step: string, vector: number): string => {
    const column = `${step} * ${partColumns / 8}u + ${vector}u`;
    const value = `weights(${row} * ${rowWords / 4}u + ${column})`;
    return `let ${name}_v${vector} = ${whole ? value : `select(vec4u(), ${value}, ${column} < ${rowWords / 4}u)`};\n`;
  };
  return {
    ports: [{ name: "weights", width }],
    parts: 1,
    steps: Math.ceil(columns / partColumns),
    begin: () => "",
    part: (name, row, step) => {
      let text = "";
      for (let i = 0; i < (width === 4 ? 4 : 16); i++) text += (width === 4 ? vectorAt : wordAt)(name, row, step, i);
      const word = (i: number): string => width === 4 ? `${name}_v${i >> 2}.${components[i & 3]}` : `${name}_${i}`;
      for (let i = 0; i < 8; i++) {
        text += `let ${name}${i} = vec4f(${widenPair(word(2 * i), dtype)}, ${widenPair(word(2 * i + 1), dtype)});\n`;
      }
      return text;
    },
  };
}

/** vec4u of codes `first` to `first + 3` of 32 codes in `bits` words: MLX's bit stream, least significant bit first. */
function fourCodes(word: (index: number) => string, first: number, bits: number): string {
  const mask = 2 ** bits - 1;
  const places = [0, 1, 2, 3].map((i) => ({ word: ((first + i) * bits) >> 5, shift: ((first + i) * bits) & 31 }));
  if (places.every((place) => place.word === places[0]!.word && place.shift + bits <= 32)) {
    const shifts = places.map((place) => `${place.shift}u`).join(", ");
    return `(vec4u(${word(places[0]!.word)}) >> vec4u(${shifts})) & vec4u(${mask}u)`;
  }
  const codes = places.map(({ word: index, shift }) => {
    const low = `${word(index)} >> ${shift}u`;
    return shift + bits <= 32 ? low : `(${low}) | (${word(index + 1)} << ${32 - shift}u)`;
  });
  return `vec4u(${codes.join(", ")}) & vec4u(${mask}u)`;
}

function affineReader({ bits, groupSize, scales }: AffineFormat, columns: number, maxParts: 1 | 2): WeightReader {
  const parts = groupSize >= 64 ? maxParts : 1;
  const steps = columns / (parts * partColumns);
  const width = bits % 4 === 0 ? 4 : bits % 2 === 0 ? 2 : 1;
  const groupShift = Math.log2(groupSize / (parts * partColumns));
  return {
    ports: [{ name: "codes", width }, { name: "affine", width: scales === "f32" ? 2 : 1 }],
    parts,
    steps,
    begin(name, row, step) {
      const group = groupShift === 0 ? step : `(${step} >> ${groupShift}u)`;
      const stored = `affine(${row} * ${columns / groupSize}u + ${group})`;
      if (scales === "f32") return `let ${name}_affine = bitcast<vec2f>(${stored});\n`;
      return `let ${name}_pair = ${stored};\nlet ${name}_affine = ${widenPair(`${name}_pair`, scales)};\n`;
    },
    part(name, row, step, part) {
      const loads = bits / width;
      let text = `let ${name}_at = ${row} * ${columns / 32 * loads}u + ${step} * ${parts * loads}u + ${
        part * loads
      }u;\n`;
      for (let i = 0; i < loads; i++) text += `let ${name}_c${i} = codes(${name}_at + ${i}u);\n`;
      const word = (i: number): string =>
        width === 1 ? `${name}_c${i}` : `${name}_c${Math.floor(i / width)}.${components[i % width]}`;
      for (let i = 0; i < 8; i++) {
        // Codes are small: converting them as i32 is one instruction on CPUs, as u32 it is six.
        const codes = `vec4f(vec4i(${fourCodes(word, 4 * i, bits)}))`;
        text += `let ${name}${i} = fma(${codes}, vec4f(${name}_affine.x), vec4f(${name}_affine.y));\n`;
      }
      return text;
    },
  };
}

/**
 * The WGSL that reads a weight matrix of this format with this many columns.
 *
 * @param maxParts Parts that a step may have: 2 saves loads of scales, 1 halves the text (and the time to compile it).
 */
export function weightReader(format: WeightFormat, columns: number, maxParts: 1 | 2): WeightReader {
  if (format.kind === "affine") return affineReader(format, columns, maxParts);
  return format.dtype === "f32" ? denseF32Reader(columns) : dense16Reader(format.dtype, columns);
}
