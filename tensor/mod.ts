/**
 * The lazy graph: tensors, fusion, code generation and programs on WebGPU.
 *
 * @example
 * ```ts
 * import { tensor } from "@tinyllm/tinyllm/tensor";
 *
 * console.log(await tensor([[1, 2], [3, 4]]).softmax().data());
 * ```
 *
 * @module
 */
export type { Binding } from "./assemble.ts";
export * from "./device.ts";
export * from "./dim.ts";
export * from "./dtype.ts";
export * from "./kernel.ts";
export * from "./memory.ts";
export {
  assign,
  broadcastShapes,
  buffer,
  cast,
  constant,
  expand,
  gather,
  input,
  iota,
  kernelNode,
  map,
  type Node,
  type NodeBase,
  output,
  outputTypes,
  pad,
  permute,
  type ReduceKind,
  reduceLast,
  reshape,
  slice,
} from "./node.ts";
export type { DispatchInfo } from "./compiler.ts";
export { compile, type CompileOptions, Program, type RunValues } from "./program.ts";
export { type AllocateBuffer, Readback, type ReadOptions } from "./readback.ts";
export { type Rule, RULES } from "./rules.ts";
export { type OperandType, type ResultType, SCALAR_OPS, type ScalarOp, scalarOp, type ScalarOpName } from "./scalar.ts";
export { Slabs } from "./slab.ts";
export { type Resident, Storage } from "./storage.ts";
export { Submission } from "./submission.ts";
export { Arenas } from "./arenas.ts";
export * from "./tensor.ts";
