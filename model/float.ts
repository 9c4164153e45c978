/**
 * Half-precision numbers widened to float32. Both conversions are exact: every float16 and bfloat16 value, subnormals,
 * infinities and NaNs included, is a float32 value.
 *
 * @module
 */
import { float16Value } from "../tensor/dtype.ts";

export { float16Value as float16ToNumber };

/**
 * The number that bfloat16 bits stand for: the upper half of a float32.
 *
 * @param bits 0 to 0xffff.
 */
export function bfloat16ToNumber(bits: number): number {
  WORD[0] = bits << 16;
  return FLOAT_OF_WORD[0]!;
}

const WORD = new Uint32Array(1);
const FLOAT_OF_WORD = new Float32Array(WORD.buffer);

/**
 * Widens float16 bits to float32, element by element.
 *
 * @param bits [n], binary16 bit patterns.
 * @param target [n], where the numbers go; a new array where absent.
 * @returns `target`.
 */
export function float16ToFloat32(
  bits: Uint16Array,
  target: Float32Array<ArrayBuffer> = new Float32Array(bits.length),
): Float32Array<ArrayBuffer> {
  const words = new Uint32Array(target.buffer, target.byteOffset, target.length);
  for (let i = 0; i < bits.length; i++) {
    const half = bits[i]!;
    const exponent = half & 0x7c00;
    const sign = (half & 0x8000) << 16;
    if (exponent === 0) target[i] = float16Value(half); // zeros and subnormals
    else if (exponent === 0x7c00) words[i] = sign | 0x7f800000 | ((half & 0x3ff) << 13);
    else words[i] = sign | (((half & 0x7fff) << 13) + (112 << 23)); // exponent bias 127 - 15 = 112
  }
  return target;
}

/**
 * Widens bfloat16 bits to float32, element by element.
 *
 * @param bits [n], upper halves of float32 numbers.
 * @param target [n], where the numbers go; a new array where absent.
 * @returns `target`.
 */
export function bfloat16ToFloat32(
  bits: Uint16Array,
  target: Float32Array<ArrayBuffer> = new Float32Array(bits.length),
): Float32Array<ArrayBuffer> {
  const words = new Uint32Array(target.buffer, target.byteOffset, target.length);
  for (let i = 0; i < bits.length; i++) words[i] = bits[i]! << 16;
  return target;
}
