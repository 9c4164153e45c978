/**
 * How far f32 and f16 evaluation may be from the exact value. Every bound is computed from the operands' values and
 * bounds, so a test's tolerance follows from its data and none is guessed. Infinity means "anything may come out": no check.
 *
 * @module
 */
import { type DType, float16Bits, float16Value, isFloat } from "./dtype.ts";
import { scalarOp, type ScalarOpName } from "./scalar.ts";

/** Unit roundoff of f32: a correctly rounded result is off by at most this fraction of it. */
export const F32_UNIT: number = 2 ** -24;

/** f32 results below are flushed to zero on some devices. */
const F32_FLOOR = 2 ** -126;
const F16_UNIT = 2 ** -11;
const F16_FLOOR = 2 ** -14;
const F16_LARGEST = 65504;

/** Near f32's end (3.4e38) drivers disagree: a quotient may pass through the reciprocal, a sum through infinity. */
const F32_LARGEST = 2 ** 120;

/** Operations that IEEE 754 rounds correctly everywhere: exact wherever their result can be represented. */
const CORRECTLY_ROUNDED: ReadonlySet<ScalarOpName> = new Set([
  "add",
  "sub",
  "mul",
  "neg",
  "abs",
  "max",
  "min",
  "where",
]);

/** Whether the dtype has this very value, and no device flushes it. */
function representable(value: number, dtype: DType): boolean {
  if (!isFloat(dtype)) return true;
  const rounded = dtype === "f16" ? float16Value(float16Bits(value)) : Math.fround(value);
  return rounded === value && (value === 0 || Math.abs(value) >= (dtype === "f16" ? F16_FLOOR : F32_FLOOR));
}

/** The bound after a value that is off by `error` was stored as `dtype` (or, f16 inside a kernel, was not). */
export function storedError(value: number, error: number, dtype: DType): number {
  if (!isFloat(dtype)) return error === 0 ? 0 : Infinity;
  if (error === 0 && representable(value, dtype)) return 0;
  const greatest = Math.abs(value) + error;
  if (!(greatest <= (dtype === "f16" ? F16_LARGEST : F32_LARGEST))) return Infinity;
  if (dtype === "f32") return error + F32_UNIT * greatest + F32_FLOOR;
  return error + F16_UNIT * greatest + F32_FLOOR + (Math.abs(value) - error < F16_FLOOR ? F16_FLOOR : 0);
}

/** Bound on a scalar operation's result; `dtype` is that of the result, `result` its exact value. */
export function scalarError(
  fn: ScalarOpName,
  dtype: DType,
  value: readonly number[],
  error: readonly number[],
  result: number,
): number {
  if (fn === "where") return error[0] === 0 ? error[value[0] !== 0 ? 1 : 2]! : Infinity;
  if (error.some((e) => e === Infinity)) return Infinity;
  const exact = error.every((e) => e === 0);
  if (fn === "floor" || fn === "ceil") {
    const [least, greatest] = [value[0]! - error[0]!, value[0]! + error[0]!];
    return Math[fn](least) === Math[fn](greatest) ? storedError(result, 0, dtype) : Infinity;
  }
  if (!isFloat(dtype)) {
    // What is not a float is exact, but for comparisons of floats that are too near each other.
    return exact || Math.abs(value[0]! - value[1]!) > error[0]! + error[1]! ? 0 : Infinity;
  }
  if (exact && CORRECTLY_ROUNDED.has(fn) && representable(result, "f32")) return storedError(result, 0, dtype);
  // Generated code computes f16 in f32 and rounds where it stores.
  const bound = scalarOp(fn).error!(value, error, result, F32_UNIT) + F32_FLOOR;
  return Number.isNaN(bound) || Number.isNaN(result) ? Infinity : storedError(result, bound, dtype);
}

/** Bound on a conversion's result. */
export function castError(value: number, error: number, from: DType, to: DType): number {
  if (error === Infinity) return Infinity;
  if (isFloat(to)) return storedError(value, error, to);
  if (!isFloat(from)) return error;
  if (to === "bool") return error === 0 || Math.abs(value) > error ? 0 : Infinity;
  const least = Math.trunc(value - error), greatest = Math.trunc(value + error);
  const [from32, to32] = to === "i32" ? [-(2 ** 31), 2 ** 31 - 1] : [0, 2 ** 32 - 1];
  return least === greatest && least >= from32 && greatest <= to32 ? 0 : Infinity;
}

/**
 * Bound on a sum in any order: `n u sum|x|` (Higham, "Accuracy and Stability of Numerical Algorithms", 4.2) and the errors
 * of the terms. Whole numbers below 2^24 add exactly.
 */
export function sumError(values: Float64Array, errors: Float64Array, sum: number, dtype: DType): number {
  let magnitude = 0, error = 0, whole = true;
  values.forEach((value, i) => {
    magnitude += Math.abs(value) + errors[i]!;
    error += errors[i]!;
    whole &&= Number.isInteger(value);
  });
  if (!isFloat(dtype)) return error === 0 ? 0 : Infinity;
  if (!(magnitude < F32_LARGEST)) return Infinity;
  if (error === 0 && (values.length <= 1 || (whole && magnitude <= 2 ** 24))) return storedError(sum, 0, dtype);
  const count = values.length;
  return storedError(sum, error + 1.01 * count * F32_UNIT * magnitude + count * F32_FLOOR, dtype);
}

/** Bound on the position of the greatest element: 0 where no other can be taken for it. */
export function argmaxError(values: Float64Array, errors: Float64Array, best: number): number {
  const least = values[best]! - errors[best]!;
  const clear = values.every((value, i) => {
    if (i === best) return errors[i] !== Infinity;
    const exactTie = i > best && value === values[best] && errors[i] === 0 && errors[best] === 0;
    return exactTie || value + errors[i]! < least;
  });
  return clear ? 0 : Infinity;
}
