/**
 * The shape that every kernel family has: the five parts of a {@linkcode Kernel}, and the cases that tests and benches are
 * written over once, for the table of all kernels.
 *
 * @module
 */
import type { Kernel, TensorType } from "../tensor/kernel.ts";
import type { HostArray } from "../tensor/dtype.ts";

export type { Caps, Cost, Kernel, KernelCall, KernelSource, Port, TensorType } from "../tensor/kernel.ts";

/** A deterministic source of random test data. */
export interface Random {
  /** A number in [0, 1). */
  uniform(): number;
  /** A whole number from `low` to `high`, both included. */
  integer(low: number, high: number): number;
  /** A standard normal number, rounded to f32. */
  normal(): number;
}

/** One input of a case: its type (numbers only) and its values. */
export interface CaseInput extends TensorType {
  /** Values in row-major order; f16 values are given as f32 numbers that f16 can hold. */
  readonly data: HostArray;
}

/** A concrete call with data. */
export interface CaseCall<P> {
  /** The op's parameters. */
  readonly params: P;
  /** Inputs with their values. */
  readonly inputs: readonly CaseInput[];
}

/** How a kernel is tested and benched. */
export interface KernelCase<P> {
  /** `quantised_matmul 4 bits, matrix-vector`. */
  readonly name: string;
  /** The kernel under test. */
  readonly kernel: Kernel<P>;
  /** Random shapes and data, odd sizes among them. */
  random(random: Random): CaseCall<P>;
  /**
   * Greatest allowed |gpu - reference| for each element of each output, from the number formats: e.g. a sum of K products
   * in f32 may err by about K 2^-24 sum |x w|. 0 where the result is exact.
   */
  tolerance(call: CaseCall<P>, reference: readonly Float64Array[]): readonly (Float64Array | number)[];
  /**
   * Calls in real shapes for the bench, by label. A label begins with the model that has the shape: `stories`, `0.5B`,
   * `7B`; the last is left out on CPU devices.
   */
  readonly bench?: Readonly<Record<string, (random: Random) => CaseCall<P>>>;
}
