/**
 * The operations of the graph: each checks what it is given, infers type and shape, and makes a node.
 *
 * @module
 */
import { type Dim, formatShape, maxOf, sameDim, sameShape, type Shape } from "./dim.ts";
import { type DType, isFloat } from "./dtype.ts";
import { intern, type Node, type ReduceKind } from "./intern.ts";
import type { Kernel } from "./kernel.ts";
import { scalarOp, type ScalarOpName } from "./scalar.ts";
import type { Storage } from "./storage.ts";

export type { Node, NodeBase, ReduceKind } from "./intern.ts";

/**
 * Reads a storage as it is after `version` writes. Throws where a later write was traced already.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { buffer, Storage, Tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const storage = new Storage("f32", [2], new Float32Array([1, 2]), "pair");
 * assertEquals([...await new Tensor(buffer(storage)).data()], [1, 2]);
 * ```
 */
export function buffer(storage: Storage, version: number = storage.version): Node {
  if (version !== storage.version) {
    throw new Error(
      `Cannot read version ${version} of "${storage.label}": a later assign made version ${storage.version}. ` +
        `Read what the assign returned.`,
    );
  }
  return intern({ op: "buffer", dtype: storage.dtype, shape: storage.shape, src: [], storage, version });
}

/** A value given at each run, by name. */
export function input(name: string, dtype: DType, shape: Shape): Node {
  return intern({ op: "input", dtype, shape, src: [], name });
}

/** One number, of shape `[]`. */
export function constant(value: number, dtype: DType): Node {
  if (!Number.isFinite(value)) throw new Error(`Cannot make a constant of ${value}: values have to be finite`);
  const exact = dtype === "f32" || dtype === "f16" ? Math.fround(value) : value;
  return intern({ op: "const", dtype, shape: [], src: [], value: exact });
}

/** Whole numbers 0, 1, 2, … along an axis. */
export function iota(shape: Shape, axis: number, dtype: "i32" | "u32" = "i32"): Node {
  if (axis < 0 || axis >= shape.length) throw new Error(`Cannot count along axis ${axis} of ${formatShape(shape)}`);
  return intern({ op: "iota", dtype, shape, src: [], axis });
}

function checkOperands(fn: ScalarOpName, src: readonly Node[]): DType {
  const row = scalarOp(fn);
  const [first, ...rest] = row.arity === 3 ? src.slice(1) : src;
  const dtype = first!.dtype;
  if (row.arity === 3 && src[0]!.dtype !== "bool") {
    throw new Error(`Cannot ${fn}: the condition is ${src[0]!.dtype}, not bool`);
  }
  const other = rest.find((s) => s.dtype !== dtype);
  if (other) throw new Error(`Cannot ${fn} ${dtype} and ${other.dtype}: cast one of them`);
  const fits = {
    any: true,
    bool: dtype === "bool",
    float: isFloat(dtype),
    integer: dtype === "i32" || dtype === "u32",
    number: dtype !== "bool",
  }[row.operands];
  if (!fits) throw new Error(`Cannot ${fn} ${dtype}: it takes ${row.operands} values`);
  return row.result === "bool" ? "bool" : dtype;
}

/** The shape two shapes broadcast to, by NumPy's rule. Throws naming both where there is none. */
export function broadcastShapes(a: Shape, b: Shape): Shape {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis): Dim => {
    const left = a[axis - rank + a.length] ?? 1, right = b[axis - rank + b.length] ?? 1;
    if (sameDim(left, right) || right === 1) return left;
    if (left === 1) return right;
    throw new Error(`Cannot broadcast ${formatShape(a)} with ${formatShape(b)}: ${left} and ${right} differ`);
  });
}

/**
 * Applies a scalar operation elementwise, broadcasting its operands.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { map, Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const sum = map("add", tensor([[1], [2]]).node, tensor([10, 20]).node);
 * assertEquals([...await new Tensor(sum).data()], [11, 21, 12, 22]);
 * ```
 */
export function map(fn: ScalarOpName, ...operands: Node[]): Node {
  const dtype = checkOperands(fn, operands);
  const shape = operands.map((n) => n.shape).reduce(broadcastShapes);
  return intern({ op: "map", fn, dtype, shape, src: operands.map((n) => expand(n, shape)) });
}

/** Converts the element type. Floats to integers truncate; anything but 0 is true. */
export function cast(node: Node, dtype: DType): Node {
  return node.dtype === dtype ? node : intern({ op: "cast", dtype, shape: node.shape, src: [node] });
}

/** The same elements in row-major order under other sizes. A leading symbol stays in front. */
export function reshape(node: Node, shape: Shape): Node {
  if (sameShape(node.shape, shape)) return node;
  const count = (s: Shape): number => s.reduce<number>((n, dim) => n * (typeof dim === "number" ? dim : 1), 1);
  const symbol = (s: Shape): string => s.filter((dim) => typeof dim !== "number").join();
  if (count(node.shape) !== count(shape) || symbol(node.shape) !== symbol(shape)) {
    throw new Error(`Cannot reshape ${formatShape(node.shape)} to ${formatShape(shape)}: element counts differ`);
  }
  return intern({ op: "reshape", dtype: node.dtype, shape, src: [node] });
}

/**
 * Reorders axes: axis `i` of the result is axis `order[i]` of the source.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { permute, Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const transposed = permute(tensor([[1, 2, 3], [4, 5, 6]]).node, [1, 0]);
 * assertEquals([...await new Tensor(transposed).data()], [1, 4, 2, 5, 3, 6]);
 * ```
 */
export function permute(node: Node, order: readonly number[]): Node {
  const sorted = [...order].sort((a, b) => a - b);
  if (order.length !== node.shape.length || sorted.some((axis, i) => axis !== i)) {
    throw new Error(`Cannot permute ${formatShape(node.shape)} by [${order.join(", ")}]: not an order of its axes`);
  }
  if (order.every((axis, i) => axis === i)) return node;
  return intern({
    op: "permute",
    dtype: node.dtype,
    shape: order.map((axis) => node.shape[axis]!),
    src: [node],
    order,
  });
}

/** Repeats axes of size 1 (and missing leading ones) to a shape. */
export function expand(node: Node, shape: Shape): Node {
  if (sameShape(node.shape, shape)) return node;
  if (!sameShape(broadcastShapes(node.shape, shape), shape)) {
    throw new Error(`Cannot expand ${formatShape(node.shape)} to ${formatShape(shape)}`);
  }
  const missing = shape.length - node.shape.length;
  const padded = missing > 0 ? reshape(node, [...Array<number>(missing).fill(1), ...node.shape]) : node;
  return sameShape(padded.shape, shape) ? padded : intern({ op: "expand", dtype: node.dtype, shape, src: [padded] });
}

/**
 * A box out of a tensor: from `start` of each axis, `end` excluded. A symbolic axis is taken whole.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { slice, Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const corner = slice(tensor([[1, 2, 3], [4, 5, 6]]).node, [0, 1], [1, 3]);
 * assertEquals([...await new Tensor(corner).data()], [2, 3]);
 * ```
 */
export function slice(node: Node, start: readonly number[], end: readonly number[]): Node {
  const shape = node.shape.map((dim, axis): Dim => {
    const from = start[axis] ?? 0, to = end[axis] ?? maxOf(dim);
    if (from < 0 || to < from || to > maxOf(dim)) {
      throw new Error(`Cannot slice ${from}..${to} of axis ${axis} of ${formatShape(node.shape)}`);
    }
    if (typeof dim !== "number") {
      if (from !== 0 || to !== dim.max) throw new Error(`Cannot slice the symbolic axis of ${formatShape(node.shape)}`);
      return dim;
    }
    return to - from;
  });
  if (sameShape(shape, node.shape)) return node;
  const full = node.shape.map((_, axis) => start[axis] ?? 0);
  return intern({ op: "slice", dtype: node.dtype, shape, src: [node], start: full });
}

/**
 * Surrounds a tensor with a value. Symbolic axes cannot be padded.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { pad, Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * assertEquals([...await new Tensor(pad(tensor([1, 2]).node, [1], [2], 9)).data()], [9, 1, 2, 9, 9]);
 * ```
 */
export function pad(node: Node, before: readonly number[], after: readonly number[], value: number): Node {
  const shape = node.shape.map((dim, axis): Dim => {
    const front = before[axis] ?? 0, back = after[axis] ?? 0;
    if (front === 0 && back === 0) return dim;
    if (typeof dim !== "number") throw new Error(`Cannot pad the symbolic axis of ${formatShape(node.shape)}`);
    if (front < 0 || back < 0) throw new Error(`Cannot pad axis ${axis} by ${front} and ${back}: negative`);
    return front + dim + back;
  });
  if (sameShape(shape, node.shape)) return node;
  const full = node.shape.map((_, axis) => before[axis] ?? 0);
  return intern({ op: "pad", dtype: node.dtype, shape, src: [node], before: full, value });
}

/**
 * Reduces the last axis to size 1. `max` and `argmax` of nothing are errors; `sum` of nothing is 0.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { reduceLast, Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const largest = reduceLast(tensor([[1, 5, 2], [7, 3, 3]]).node, "max");
 * assertEquals([...await new Tensor(largest).data()], [5, 7]);
 * ```
 */
export function reduceLast(node: Node, kind: ReduceKind): Node {
  const last = node.shape.at(-1);
  if (last === undefined) throw new Error(`Cannot ${kind} a scalar: it has no axis`);
  if (typeof last !== "number") throw new Error(`Cannot ${kind} ${formatShape(node.shape)} over its symbolic axis`);
  if (node.dtype === "bool") throw new Error(`Cannot ${kind} bool: cast it first`);
  if (last === 0 && kind !== "sum") {
    throw new Error(`Cannot take ${kind} of ${formatShape(node.shape)}: nothing to choose from`);
  }
  const shape = [...node.shape.slice(0, -1), 1];
  return intern({ op: "reduce", kind, dtype: kind === "argmax" ? "i32" : node.dtype, shape, src: [node] });
}

/**
 * Rows of `table` (its first axis) at `indices`: shape `[...indices.shape, ...table.shape[1..]]`. Indices are clamped.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { gather, Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const rows = gather(tensor([[1, 2], [3, 4]]).node, tensor([1, 0, 1], { dtype: "i32" }).node);
 * assertEquals([...await new Tensor(rows).data()], [3, 4, 1, 2, 3, 4]);
 * ```
 */
export function gather(table: Node, indices: Node): Node {
  if (indices.dtype !== "i32" && indices.dtype !== "u32") {
    throw new Error(`Cannot gather at ${indices.dtype} indices: cast to i32`);
  }
  if (table.shape.length === 0) throw new Error("Cannot gather from a scalar: it has no rows");
  if (maxOf(table.shape[0]!) === 0) throw new Error(`Cannot gather from ${formatShape(table.shape)}: it has no rows`);
  return intern({
    op: "gather",
    dtype: table.dtype,
    shape: [...indices.shape, ...table.shape.slice(1)],
    src: [table, indices],
  });
}

/**
 * Writes a whole buffer: the next version of it. Reading the old one afterwards is an error.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { assign, buffer, compile, constant, map, openDevice } from "@tinyllm/tinyllm/tensor";
 *
 * const device = await openDevice();
 * const counter = device.storage("f32", [1], "counter");
 * using program = compile(device, () => {
 *   const before = buffer(counter);
 *   return assign(before, map("add", before, constant(1, "f32")));
 * });
 * program.run();
 * program.run();
 * assertEquals([...await device.readStorage(counter)], [2]);
 * device.close();
 * ```
 */
export function assign(target: Node, value: Node): Node {
  if (target.op !== "buffer") throw new Error(`Cannot assign to ${target.op}: only buffers hold state`);
  if (target.dtype !== value.dtype || !sameShape(target.shape, value.shape)) {
    throw new Error(
      `Cannot assign ${value.dtype} ${formatShape(value.shape)} to "${target.storage.label}" of ` +
        `${target.dtype} ${formatShape(target.shape)}`,
    );
  }
  advance(target);
  return intern({ op: "assign", dtype: target.dtype, shape: target.shape, src: [target, value] });
}

/** Marks a state's next version as traced. A kernel's result has none: whether it is read later, the compiler sees. */
function advance(target: Node): void {
  const root = stateOf(target);
  if (!root && (target.op === "kernel" || target.op === "output")) return;
  if (!root) throw new Error(`Cannot update ${target.op} in place: only buffers and kernels' results can be`);
  if (root.version !== root.storage.version) {
    throw new Error(`Cannot write version ${root.version} of "${root.storage.label}": it has been overwritten already`);
  }
  root.storage.version++;
}

/** The storage and version that a node reads in place: a buffer leaf, or what an update of one returned. */
export function stateOf(node: Node): { storage: Storage; version: number } | undefined {
  if (node.op === "buffer") return { storage: node.storage, version: node.version };
  if (node.op === "assign") {
    const before = stateOf(node.src[0]!)!;
    return { storage: before.storage, version: before.version + 1 };
  }
  const anchor = node.op === "output" ? node.src[0]! : node;
  if (anchor.op !== "kernel") return undefined;
  const index = node.op === "output" ? node.index : 0;
  const source = updatesOf(anchor)[index] ?? -1;
  const before = source < 0 ? undefined : stateOf(anchor.src[source]!);
  return before && { storage: before.storage, version: before.version + 1 };
}

/** For each output of a kernel node, the input it updates in place, or -1. */
export function updatesOf(node: Node & { op: "kernel" }): readonly number[] {
  const inputs = node.src.map(({ dtype, shape }) => ({ dtype, shape }));
  return node.kernel.updates?.({ params: node.params, inputs, outputs: outputTypes(node) }) ?? [];
}

/** Types of all outputs of a kernel node. */
export function outputTypes(node: Node & { op: "kernel" }): ReturnType<Kernel<unknown>["infer"]> {
  return node.kernel.infer(node.src.map(({ dtype, shape }) => ({ dtype, shape })), node.params);
}

/**
 * A hand-written kernel on these inputs. The node is its first output.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { type Kernel, kernelNode, Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const negate: Kernel<null> = {
 *   name: "negate",
 *   infer: ([x]) => [x!],
 *   wgsl: ({ inputs }) => ({
 *     inputs: [{ name: "x" }],
 *     outputs: [{ name: "y" }],
 *     workgroupSize: [32, 1, 1],
 *     main: `if (global.x < ${inputs[0]!.shape[0]}u) { store_y(global.x, -x(global.x)); }`,
 *   }),
 *   grid: ({ inputs }) => [Math.ceil((inputs[0]!.shape[0] as number) / 32), 1, 1],
 *   reference: (_call, [x]) => [Float64Array.from(x!, (value) => -value)],
 *   cost: ({ inputs }) => ({ flops: inputs[0]!.shape[0] as number, bytes: 8 * (inputs[0]!.shape[0] as number) }),
 * };
 * const y = kernelNode(negate, [tensor([1, -2, 3]).node], null);
 * assertEquals([...await new Tensor(y).data()], [-1, 2, -3]);
 * ```
 */
export function kernelNode<P>(kernel: Kernel<P>, inputs: readonly Node[], params: P): Node {
  const anchor = rewrittenKernel(kernel, inputs, params) as Node & { op: "kernel" };
  for (const source of updatesOf(anchor)) if (source >= 0) advance(inputs[source]!);
  return anchor;
}

/**
 * As {@linkcode kernelNode}, where a rewrite puts a kernel in another's place: the writes that it makes to buffers were
 * counted when the graph was traced.
 */
export function rewrittenKernel<P>(kernel: Kernel<P>, inputs: readonly Node[], params: P): Node {
  const [first] = kernel.infer(inputs.map(({ dtype, shape }) => ({ dtype, shape })), params);
  if (!first) throw new Error(`Cannot use kernel "${kernel.name}": it has no output`);
  const { dtype, shape } = first;
  return intern({ op: "kernel", kernel: kernel as Kernel<unknown>, params, dtype, shape, src: inputs });
}

/**
 * Output `index` of a kernel with several; output 0 is the kernel's node itself.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { greedy } from "@tinyllm/tinyllm/kernels";
 * import { output, Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const { token } = greedy(tensor([[0, 5, 1]]).node); // a kernel of two outputs: ids, and their log-probabilities
 * assertEquals([...await new Tensor(output(token, 0)).data()], [1]);
 * assertEquals(output(token, 1).dtype, "f32");
 * ```
 */
export function output(node: Node, index: number): Node {
  if (node.op !== "kernel") throw new Error(`Cannot take output ${index} of ${node.op}: it is no kernel`);
  const type = outputTypes(node)[index];
  if (!type) throw new Error(`Cannot take output ${index} of kernel "${node.kernel.name}"`);
  return index === 0 ? node : intern({ op: "output", dtype: type.dtype, shape: type.shape, src: [node], index });
}
