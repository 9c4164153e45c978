/**
 * Element types. A tensor's dtype says how its elements are stored; kernels and generated code compute floats in f32
 * whatever the storage, so that an f16 buffer costs half the bandwidth and none of the arithmetic's precision.
 *
 * @module
 */

/** The element types of tensors. `bool` is stored as u32 (0 or 1), f16 as f32 where the device has no f16. */
export type DType = "f32" | "f16" | "i32" | "u32" | "bool";

/** The host arrays that tensors are made from and read back into. */
export type HostArray = Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>;

/** Whether values of the type are floating-point numbers. */
export function isFloat(dtype: DType): boolean {
  return dtype === "f32" || dtype === "f16";
}

/** Bytes of one stored element; f16 takes two only where the device has the type. */
export function bytesPerElement(dtype: DType, f16: boolean): number {
  return dtype === "f16" && f16 ? 2 : 4;
}

/** The WGSL type that generated code computes a value of this dtype in. */
export function wgslValueType(dtype: DType): "f32" | "i32" | "u32" | "bool" {
  return dtype === "f16" ? "f32" : dtype;
}

/** The WGSL scalar that a value of this dtype is stored as. */
export function wgslStorageType(dtype: DType, f16: boolean): "f32" | "f16" | "i32" | "u32" {
  if (dtype === "f16") return f16 ? "f16" : "f32";
  return dtype === "bool" ? "u32" : dtype;
}

const exact = new DataView(new ArrayBuffer(4));

/** Rounds a number to the nearest f16 (IEEE 754 binary16, ties to even) and gives its 16 bits. */
export function float16Bits(value: number): number {
  exact.setFloat32(0, value);
  const bits = exact.getUint32(0);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x7f800000) return sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00);
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // rounds beyond 65,504
  if (magnitude < 0x38800000) { // subnormal: a multiple of 2^-24
    const scaled = Math.abs(value) * 2 ** 24;
    const floor = Math.floor(scaled);
    const rest = scaled - floor;
    return sign | (rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor);
  }
  const rounded = magnitude + 0xfff + ((magnitude >>> 13) & 1);
  return sign | ((rounded - 0x38000000) >>> 13);
}

/**
 * The number that 16 bits of IEEE 754 binary16 stand for: 1 sign bit, 5 of exponent (bias 15), 10 of fraction.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { float16Value } from "@tinyllm/tinyllm/tensor";
 *
 * assertEquals(float16Value(0x3c00), 1);
 * assertEquals(float16Value(0x0001), 2 ** -24);
 * ```
 */
export function float16Value(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}
