/**
 * Recorded tensors: a whole `.safetensors` file read at once, since those of the fixtures are small, and the measure by
 * which results are held against them.
 */
import { bfloat16ToFloat32, float16ToFloat32 } from "../../model/float.ts";
import { openSafetensors, type SafetensorsDtype } from "../../model/safetensors.ts";
import { memorySource } from "../../model/source.ts";

/** The values of a tensor. F16 and BF16 are widened to float32, which is exact. */
export type Values = Float32Array | Float64Array | Int32Array | Uint32Array | Uint8Array;

/** A tensor as it stands in the file. */
export interface RecordedTensor {
  dtype: SafetensorsDtype;
  shape: readonly number[];
  /** Row-major. */
  values: Values;
  /** The same, as stored. */
  bytes: Uint8Array<ArrayBuffer>;
}

/** How the bytes of a type are read. They may start anywhere, so they come in a buffer of their own. */
const READERS: Partial<Record<SafetensorsDtype, (bytes: Uint8Array<ArrayBuffer>) => Values>> = {
  F64: (bytes) => new Float64Array(bytes.buffer),
  F32: (bytes) => new Float32Array(bytes.buffer),
  F16: (bytes) => float16ToFloat32(new Uint16Array(bytes.buffer)),
  BF16: (bytes) => bfloat16ToFloat32(new Uint16Array(bytes.buffer)),
  I32: (bytes) => new Int32Array(bytes.buffer),
  U32: (bytes) => new Uint32Array(bytes.buffer),
  U8: (bytes) => bytes,
};

/** All tensors of a `.safetensors` file, by name. */
export async function readTensors(path: string): Promise<Map<string, RecordedTensor>> {
  const source = memorySource({ file: await Deno.readFile(path) });
  const file = await openSafetensors(source, "file");
  const tensors = new Map<string, RecordedTensor>();
  for (const { name, dtype, shape, offset, length } of file.tensors.values()) {
    const read = READERS[dtype];
    if (read === undefined) throw new Error(`Cannot read "${name}" of "${path}": no reader for ${dtype}`);
    const bytes = await source.read("file", offset, length);
    tensors.set(name, { dtype, shape, values: read(bytes), bytes });
  }
  return tensors;
}

/**
 * What is wrong with a result, or undefined where each element is within `absolute` + `relative` |expected|. Infinities
 * must be the same; NaN is never right.
 */
export function differValues(
  got: ArrayLike<number>,
  expected: ArrayLike<number>,
  absolute: number,
  relative = 0,
): string | undefined {
  if (got.length !== expected.length) return `got ${got.length} values, expected ${expected.length}`;
  let worst: string | undefined;
  let worstExcess = 0;
  for (let index = 0; index < expected.length; index++) {
    const [left, right] = [got[index]!, expected[index]!];
    if (left === right) continue;
    const excess = Math.abs(left - right) - absolute - relative * Math.abs(right);
    // Not "excess > 0": a NaN must not pass.
    if (excess <= 0 && Number.isFinite(excess)) continue;
    const size = Number.isFinite(excess) ? excess : Infinity;
    if (size <= worstExcess) continue;
    worstExcess = size;
    worst = `element ${index}: got ${left}, expected ${right} (allowed ${absolute} + ${relative} |expected|)`;
  }
  return worst;
}
