/**
 * Tensors with an eager feel over the lazy graph: methods build nodes, `await t.data()` compiles what is needed and runs it.
 *
 * @module
 */
import { type Device, openDevice } from "./device.ts";
import { elementCount, formatShape, type Shape } from "./dim.ts";
import { type DType, type HostArray, isFloat } from "./dtype.ts";
import * as graph from "./node.ts";
import type { Node } from "./node.ts";
import { compile } from "./program.ts";
import { Storage } from "./storage.ts";

/** Numbers in nested arrays of one depth. */
export type Nested = number | boolean | readonly Nested[];

/** What an operation takes as its second operand. */
export type Operand = Tensor | number;

let shared: Promise<Device> | undefined;

/** The device that eager tensors run on: opened when first asked for. */
export function defaultDevice(): Promise<Device> {
  return shared ??= openDevice().catch((cause) => {
    shared = undefined;
    throw cause;
  });
}

/**
 * An n-dimensional array that is computed when it is asked for. Shapes broadcast by NumPy's rule; numbers take the
 * tensor's dtype.
 *
 * @example
 * ```ts
 * import { tensor } from "@tinyllm/tinyllm/tensor";
 * import { assertEquals } from "@std/assert";
 *
 * const t = tensor([[1, 2], [3, 4]]).mul(2).add(1).sum(1);
 * assertEquals(await t.data(), new Float32Array([8, 16]));
 * ```
 */
export class Tensor {
  /** Stands for a graph node. */
  constructor(readonly node: Node) {}

  /** Element type. */
  get dtype(): DType {
    return this.node.dtype;
  }

  /** Sizes, outermost first. */
  get shape(): Shape {
    return this.node.shape;
  }

  #operand(value: Operand): Node {
    return value instanceof Tensor ? value.node : graph.constant(value, this.dtype);
  }

  #map(fn: Parameters<typeof graph.map>[0], ...others: Operand[]): Tensor {
    return new Tensor(graph.map(fn, this.node, ...others.map((other) => this.#operand(other))));
  }

  /** Sum. */
  add(other: Operand): Tensor {
    return this.#map("add", other);
  }

  /** Difference. */
  sub(other: Operand): Tensor {
    return this.#map("sub", other);
  }

  /** Product. */
  mul(other: Operand): Tensor {
    return this.#map("mul", other);
  }

  /**
   * Quotient. Integers truncate, and divided by 0 stay as they are. A float divided by 0 is what the device makes of it, since WGSL
   * does not say: infinity or NaN as a rule, and by a constant 0 any number.
   */
  div(other: Operand): Tensor {
    return this.#map("div", other);
  }

  /** Elementwise greater value. */
  maximum(other: Operand): Tensor {
    return this.#map("max", other);
  }

  /** Elementwise smaller value. */
  minimum(other: Operand): Tensor {
    return this.#map("min", other);
  }

  /** Negation. */
  neg(): Tensor {
    return this.#map("neg");
  }

  /** Absolute value. */
  abs(): Tensor {
    return this.#map("abs");
  }

  /** e to the power of each element. */
  exp(): Tensor {
    return this.#map("exp");
  }

  /** Natural logarithm. */
  log(): Tensor {
    return this.#map("log");
  }

  /** Square root. */
  sqrt(): Tensor {
    return this.#map("sqrt");
  }

  /** 1 / sqrt(x). */
  rsqrt(): Tensor {
    return this.#map("rsqrt");
  }

  /** Sine. */
  sin(): Tensor {
    return this.#map("sin");
  }

  /** Cosine. */
  cos(): Tensor {
    return this.#map("cos");
  }

  /** Hyperbolic tangent. */
  tanh(): Tensor {
    return this.#map("tanh");
  }

  /** 1 / (1 + exp(-x)). */
  sigmoid(): Tensor {
    return this.#map("sigmoid");
  }

  /** x / (1 + exp(-x)) (Elfwing et al. 2017). */
  silu(): Tensor {
    return this.#map("silu");
  }

  /** Greatest whole number not above x. */
  floor(): Tensor {
    return this.#map("floor");
  }

  /** x < y, as bool. */
  lt(other: Operand): Tensor {
    return this.#map("lt", other);
  }

  /** x <= y, as bool. */
  le(other: Operand): Tensor {
    return this.#map("le", other);
  }

  /** x > y, as bool. */
  gt(other: Operand): Tensor {
    return this.#map("gt", other);
  }

  /** x >= y, as bool. */
  ge(other: Operand): Tensor {
    return this.#map("ge", other);
  }

  /** x == y, as bool. */
  eq(other: Operand): Tensor {
    return this.#map("eq", other);
  }

  /** Both; bools only. */
  and(other: Tensor): Tensor {
    return this.#map("and", other);
  }

  /** Either; bools only. */
  or(other: Tensor): Tensor {
    return this.#map("or", other);
  }

  /** Opposite; bools only. */
  not(): Tensor {
    return this.#map("not");
  }

  /** Elements of `yes` where this bool tensor is true, of `no` elsewhere. */
  where(yes: Operand, no: Operand): Tensor {
    const dtype = yes instanceof Tensor ? yes.dtype : no instanceof Tensor ? no.dtype : "f32";
    const node = (value: Operand): Node => value instanceof Tensor ? value.node : graph.constant(value, dtype);
    return new Tensor(graph.map("where", this.node, node(yes), node(no)));
  }

  /** Converts the element type. */
  cast(dtype: DType): Tensor {
    return new Tensor(graph.cast(this.node, dtype));
  }

  /** The same elements under other sizes; one size may be -1. */
  reshape(shape: Shape): Tensor {
    const known = shape.reduce<number>((n, dim) => typeof dim === "number" && dim >= 0 ? n * dim : n, 1);
    const full = shape.map((dim) => dim === -1 ? elementCount(this.shape) / Math.max(known, 1) : dim);
    return new Tensor(graph.reshape(this.node, full));
  }

  /** Reorders axes. */
  permute(order: readonly number[]): Tensor {
    return new Tensor(graph.permute(this.node, order));
  }

  /** Swaps the last two axes. */
  transpose(): Tensor {
    const order = this.shape.map((_, axis) => axis), rank = order.length;
    if (rank < 2) throw new Error(`Cannot transpose ${formatShape(this.shape)}: it has fewer than two axes`);
    return this.permute([...order.slice(0, -2), rank - 1, rank - 2]);
  }

  /** Repeats axes of size 1 to a shape. */
  expand(shape: Shape): Tensor {
    return new Tensor(graph.expand(this.node, shape));
  }

  /** A box: from `start` of each axis to before `end`. */
  slice(start: readonly number[], end: readonly number[]): Tensor {
    return new Tensor(graph.slice(this.node, start, end));
  }

  /** Surrounds with a value. */
  pad(before: readonly number[], after: readonly number[], value = 0): Tensor {
    return new Tensor(graph.pad(this.node, before, after, value));
  }

  #reduce(kind: graph.ReduceKind, axes: number | readonly number[] | undefined, keepDims: boolean): Tensor {
    const rank = this.shape.length;
    const list = axes === undefined ? this.shape.map((_, axis) => axis) : typeof axes === "number" ? [axes] : axes;
    const reduced = [...new Set(list.map((axis) => axis < 0 ? axis + rank : axis))].sort((a, b) => a - b);
    const wrong = reduced.find((axis) => !(axis >= 0 && axis < rank));
    if (wrong !== undefined) throw new Error(`Cannot ${kind} over axis ${wrong} of ${formatShape(this.shape)}`);
    if (reduced.length === 0) return kind === "argmax" ? this.cast("i32").mul(0) : this;
    const kept = this.shape.map((_, axis) => axis).filter((axis) => !reduced.includes(axis));
    const moved = graph.permute(this.node, [...kept, ...reduced]);
    const count = reduced.reduce((n, axis) => n * (this.shape[axis] as number), 1);
    const rows = kept.map((axis) => this.shape[axis]!);
    const result = graph.reduceLast(graph.reshape(moved, [...rows, count]), kind);
    return new Tensor(
      graph.reshape(result, keepDims ? this.shape.map((dim, axis) => reduced.includes(axis) ? 1 : dim) : rows),
    );
  }

  /** Sums over axes, all unless given. Negative axes count from the end. */
  sum(axes?: number | readonly number[], keepDims = false): Tensor {
    return this.#reduce("sum", axes, keepDims);
  }

  /** Greatest element over axes, all unless given. */
  max(axes?: number | readonly number[], keepDims = false): Tensor {
    return this.#reduce("max", axes, keepDims);
  }

  /** Position (i32) of the first greatest element along one axis, or in the flat tensor. */
  argmax(axis?: number, keepDims = false): Tensor {
    return this.#reduce("argmax", axis, keepDims);
  }

  /** Mean over axes, all unless given. */
  mean(axes?: number | readonly number[], keepDims = false): Tensor {
    if (!isFloat(this.dtype)) throw new Error(`Cannot take the mean of ${this.dtype}: cast it to f32`);
    const sum = this.sum(axes, keepDims);
    return sum.mul(elementCount(sum.shape) / Math.max(elementCount(this.shape), 1));
  }

  /** exp(x - max) / sum, along the last axis; a row of nothing but minus infinity gives zeros. One dispatch. */
  softmax(): Tensor {
    // Infinity less itself is NaN, so the maximum is held finite; the sum is at least 1 wherever the maximum was.
    const least = this.dtype === "f16" ? -65504 : -3e38;
    const exponentials = this.sub(this.max(-1, true).maximum(least)).exp();
    return exponentials.div(exponentials.sum(-1, true).maximum(0.5));
  }

  /** Rows of this tensor at `indices` (i32 or u32, clamped). */
  gather(indices: Tensor): Tensor {
    return new Tensor(graph.gather(this.node, indices.node));
  }

  /** Matrix product of `[..., M, K]` and `[..., K, N]`, in elementary operations. */
  matmul(other: Tensor): Tensor {
    const [left, right] = [this.shape, other.shape];
    if (left.length < 2 || right.length < 2 || left.at(-1) !== right.at(-2)) {
      throw new Error(`Cannot multiply ${formatShape(left)} by ${formatShape(right)}: inner sizes differ`);
    }
    const rows = this.reshape([...left.slice(0, -1), 1, left.at(-1)!]);
    const columns = other.transpose();
    return rows.mul(columns.reshape([...columns.shape.slice(0, -2), 1, ...columns.shape.slice(-2)])).sum(-1);
  }

  /**
   * Computes the tensor and reads it back: f32 for f16, u32 for bool.
   *
   * @param device Where; the default device unless given.
   */
  async data(device?: Device): Promise<HostArray> {
    if (elementCount(this.shape) === 0) {
      return this.dtype === "i32" ? new Int32Array(0) : isFloat(this.dtype) ? new Float32Array(0) : new Uint32Array(0);
    }
    using program = compile(device ?? await defaultDevice(), () => this.node, { label: "a tensor" });
    program.run();
    return await program.read(0);
  }

  /** One line: dtype and shape. */
  toString(): string {
    return `Tensor ${this.dtype} ${formatShape(this.shape)}`;
  }
}

function shapeOf(values: Nested): number[] {
  if (!Array.isArray(values)) return [];
  const inner = values.length > 0 ? shapeOf(values[0] as Nested) : [];
  return [values.length, ...inner];
}

function fill(values: Nested, shape: readonly number[], into: number[]): void {
  const [size, ...rest] = shape;
  const fits = Array.isArray(values) ? values.length === size : size === undefined;
  if (!fits) throw new Error("Cannot make a tensor of ragged arrays: every row needs the same length");
  if (Array.isArray(values)) values.forEach((value) => fill(value as Nested, rest, into));
  else if (typeof values === "number" || typeof values === "boolean") into.push(Number(values));
  else throw new TypeError(`Cannot make a tensor of ${describe(values)}: give numbers or booleans`);
}

function describe(value: unknown): string {
  return typeof value === "string" ? JSON.stringify(value) : String(value);
}

/**
 * Makes a tensor from numbers in nested arrays, or from a flat array and a shape. Booleans make a bool tensor, typed arrays
 * keep their type, other numbers are f32.
 *
 * @param values The numbers.
 * @param options `dtype`, and `shape` for flat arrays.
 * @throws {Error} for ragged arrays, what is no number, and a shape that the values do not fill.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const table = tensor([1, 2, 3, 4, 5, 6], { shape: [3, 2] });
 * assertEquals([...await table.gather(tensor([2, 0], { dtype: "i32" })).data()], [5, 6, 1, 2]);
 * assertEquals([...await table.add(tensor([10, 20])).max(0).data()], [15, 26]);
 * ```
 */
export function tensor(values: Nested | HostArray, options: { dtype?: DType; shape?: readonly number[] } = {}): Tensor {
  if (ArrayBuffer.isView(values)) {
    const own = values instanceof Float32Array ? "f32" : values instanceof Int32Array ? "i32" : "u32";
    return fromArray(values, options.dtype ?? own, options.shape ?? [values.length]);
  }
  const shape = shapeOf(values), flat: number[] = [];
  fill(values, shape, flat);
  let first: Nested | undefined = values;
  while (Array.isArray(first)) first = (first as readonly Nested[])[0];
  return fromArray(flat, options.dtype ?? (typeof first === "boolean" ? "bool" : "f32"), options.shape ?? shape);
}

function fromArray(values: ArrayLike<number>, dtype: DType, shape: readonly number[]): Tensor {
  const host = isFloat(dtype)
    ? Float32Array.from(values)
    : dtype === "i32"
    ? Int32Array.from(values)
    : Uint32Array.from(values);
  if (dtype === "bool") host.forEach((value, i) => host[i] = value ? 1 : 0);
  return new Tensor(graph.buffer(new Storage(dtype, shape, host, "tensor")));
}
