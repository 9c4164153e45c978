/**
 * The WGSL by which int8 products read an affine weight of 4 or 8 bits: codes in words of four signed bytes, in the order
 * of the activations' codes (`quantise.ts`), and scale and bias of a block of 32 columns.
 *
 * Four bits: the low halves of a word's bytes are columns 0, 2, 4, 6, the high halves 1, 3, 5, 7. One mask and one shift
 * give both words. Eight bits: codes are 0 to 255, and what multiplies is signed: code - 128, which is the code with its
 * top bit flipped. The missing 128 x sum of the activations' codes is added to the integer sum, exactly.
 *
 * @module
 */
import { float16Value } from "../tensor/dtype.ts";
import type { Caps, Port, TensorType } from "../tensor/kernel.ts";
import type { Int8Source } from "./int8_activations.ts";
import type { AffineFormat } from "./weight_format.ts";

/** How a product reads a weight. Names of WGSL variables are given without their component. */
export interface Int8Weight {
  /** Ports of codes and of scales with biases. */
  readonly ports: readonly Port[];
  /** vec4u loads of a block of 32 codes. */
  readonly loads: 1 | 2;
  /** Words of scales and biases in a row. */
  readonly groups: number;
  /** Blocks of 32 columns that share a scale. */
  readonly groupBlocks: number;
  /** Whether 128 times the sum of the activations' codes is missing. */
  readonly offset: boolean;
  /** Functions that the texts below call. */
  readonly declarations: string;
  /** vec2f of scale and bias, from index `at` of the second port. */
  affine(at: string): string;
  /** The two vec4u of words of a block, from its loads. */
  words(loads: readonly string[]): readonly [string, string];
}

const dotPacked = "fn dot_codes(a: u32, b: u32) -> i32 {\n  return dot4I8Packed(a, b);\n}\n";

/** What `dot4I8Packed` does, in plain integers: bytes are shifted to the top and back for their sign. */
const dotPlain = `fn signed_bytes(word: u32) -> vec4i {
  return vec4i(vec4u(word) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u);
}
fn dot_codes(a: u32, b: u32) -> i32 {
  let products = signed_bytes(a) * signed_bytes(b);
  return (products.x + products.y) + (products.z + products.w);
}
`;

const splitFour = `fn low_codes(word: vec4u) -> vec4u {
  return word & vec4u(0x0f0f0f0fu);
}
fn high_codes(word: vec4u) -> vec4u {
  return (word >> vec4u(4u)) & vec4u(0x0f0f0f0fu);
}
`;

/** Sixteen 8-bit codes, made signed: bytes 0 and 2 of two neighbouring words, then bytes 1 and 3. */
const orderEight = `fn two_bytes(word: vec4u) -> vec4u {
  let apart = word & vec4u(0x00ff00ffu);
  return (apart | (apart >> vec4u(8u))) & vec4u(0xffffu);
}
fn ordered_codes(codes: vec4u) -> vec4u {
  let flipped = codes ^ vec4u(0x80808080u);
  let even = two_bytes(flipped);
  let odd = two_bytes(flipped >> vec4u(8u));
  return vec4u(even.xz | (even.yw << vec2u(16u)), odd.xz | (odd.yw << vec2u(16u))).xzyw;
}
`;

function affineText(scales: AffineFormat["scales"]): (at: string) => string {
  if (scales === "f32") return (at) => `bitcast<vec2f>(affine(${at}))`;
  if (scales === "f16") return (at) => `unpack2x16float(affine(${at}))`;
  return (at) => `widen_pair(affine(${at}))`;
}

/** `vec2f` of two bf16 numbers. */
const widenPair =
  "fn widen_pair(pair: u32) -> vec2f {\n  return bitcast<vec2f>(vec2u(pair << 16u, pair & 0xffff0000u));\n}\n";

/** Scales and biases, taking turns, of a stored weight's second tensor (`weight_format.ts` has its layout). */
export function affinePairs(stored: ArrayLike<number>, scales: AffineFormat["scales"]): Float64Array {
  const words = Uint32Array.from(stored);
  if (scales === "f32") return Float64Array.from(new Float32Array(words.buffer));
  const halves = new Uint16Array(words.buffer);
  if (scales === "f16") return Float64Array.from(halves, float16Value);
  return Float64Array.from(new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer));
}

/** Whether int8 products take this format. */
export function hasInt8Form(format: { readonly kind: string; readonly bits?: number }): boolean {
  return format.kind === "affine" && (format.bits === 4 || format.bits === 8);
}

/** The reader of a format that {@linkcode hasInt8Form} holds for. */
export function int8Weight({ bits, groupSize, scales }: AffineFormat, columns: number, caps: Caps): Int8Weight {
  const four = bits === 4;
  return {
    ports: [{ name: "weights", width: 4 }, { name: "affine", width: scales === "f32" ? 2 : 1 }],
    loads: four ? 1 : 2,
    groups: columns / groupSize,
    groupBlocks: groupSize / 32,
    offset: !four,
    declarations: (caps.packedDot ? dotPacked : dotPlain) + (four ? splitFour : orderEight) +
      (scales === "bf16" ? widenPair : ""),
    affine: affineText(scales),
    words([first, second]) {
      if (!four) return [`ordered_codes(${first})`, `ordered_codes(${second})`];
      const pair = (a: string, b: string): string =>
        `vec4u(low_codes(${first}).${a}, high_codes(${first}).${a}, low_codes(${first}).${b}, high_codes(${first}).${b})`;
      return [pair("x", "y"), pair("z", "w")];
    },
  };
}

/**
 * Bits of the float 1.5 x 2^23. An integer below 2^22 that is added to these bits is added to the float: what takes the place of
 * converting each integer sum, which runs at a quarter of the rate. Sums of a block stay below 255 x 127 x 32 < 2^20.
 */
export const floatBits = "0x4b400000";

/** The float of an integer sum that began at {@linkcode floatBits}. */
export function sumValue(sum: string): string {
  return `(bitcast<f32>(${sum}) - 12582912.0)`;
}

/** `sum` with the dot product of two vec4u added. */
export function addDots(sum: string, a: string, b: string): string {
  return [..."xyzw"].map((part) => `${sum} += dot_codes(${a}.${part}, ${b}.${part});`).join(" ");
}

/** A product, taken apart. */
export interface Int8Product {
  /** How the weight is stored. */
  readonly format: AffineFormat;
  /** WGSL of the number of tokens. */
  readonly tokens: string;
  /** Weight rows. */
  readonly rows: number;
  /** Columns of both sides. */
  readonly columns: number;
  /** Outputs a token: `rows`, or half of it when gated. */
  readonly outputs: number;
  /** Whether the rows' halves are joined. */
  readonly gate: boolean;
  /** What makes the codes of the activations, in every workgroup, or what they lack; else they come in codes. */
  readonly source: Int8Source | undefined;
  /** Types of the inputs. */
  readonly types: readonly TensorType[];
  /** Whether outputs are stored in codes and scales. */
  readonly quantise: boolean;
  /** Whether a sum with another input is stored, and what a late norm needs of it. */
  readonly sums: boolean;
  /** Whether only the greatest output of each tile of rows is stored, and its place. */
  readonly argmax: boolean;
}
