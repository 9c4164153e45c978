/** Each recorded operation by name, and how it is computed here: a new one is a new row. */
import type { RecordedTensor } from "./tensors.ts";

/** Computes a case: its inputs and parameters as recorded, its outputs by name, in row-major order. */
export type Operation = (
  inputs: Record<string, RecordedTensor>,
  params: Record<string, unknown>,
) => Promise<Record<string, ArrayLike<number>>>;

/** The operations. */
export const operations: Record<string, Operation> = {};
