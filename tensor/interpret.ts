/**
 * The oracle: evaluates a graph in float64, node by node, with a bound on what f32 or f16 evaluation may differ by. It shares
 * the scalar table with code generation and nothing else, so that a mistake in lowering, fusion or scheduling shows.
 *
 * @module
 */
import { type Dim, elementCount, formatShape, resolveDim, type Sizes } from "./dim.ts";
import { type DType, float16Bits, float16Value } from "./dtype.ts";
import { argmaxError, castError, scalarError, storedError, sumError } from "./error_bound.ts";
import { type Node, outputTypes, stateOf, updatesOf } from "./node.ts";
import { evaluateScalar, wrap } from "./scalar.ts";
import type { Storage } from "./storage.ts";

/** A node's elements in row-major order. */
export interface Evaluated {
  /** Values in float64; bools are 0 or 1. */
  readonly values: Float64Array;
  /** For each value, how far a device may be from it; Infinity where nothing is promised. */
  readonly error: Float64Array;
  /** Sizes. */
  readonly shape: readonly number[];
}

/** What a run gives. */
export interface Bindings {
  /** Values of the inputs by name. */
  readonly inputs?: Readonly<Record<string, ArrayLike<number>>>;
  /** Values of the symbols by name. */
  readonly sizes?: Sizes;
  /** What buffers hold now, if not their host data. {@linkcode Interpreter.commit} writes what was assigned. */
  readonly state?: Map<Storage, Evaluated>;
}

function blank(shape: readonly number[]): Evaluated {
  const count = elementCount(shape);
  return { values: new Float64Array(count), error: new Float64Array(count), shape };
}

/** Host numbers as the device stores them. `what` names them in errors. */
export function storedValues(
  data: ArrayLike<number>,
  dtype: DType,
  shape: readonly number[],
  what: string,
): Evaluated {
  const result = blank(shape), { values, error } = result;
  if (data.length !== values.length) {
    throw new Error(`Cannot interpret ${what} of ${formatShape(shape)}: ${data.length} values given`);
  }
  for (let i = 0; i < values.length; i++) {
    const value = data[i]!;
    if (dtype === "bool") values[i] = value !== 0 ? 1 : 0;
    else if (dtype === "i32" || dtype === "u32") values[i] = wrap(value, dtype);
    else values[i] = dtype === "f16" ? float16Value(float16Bits(value)) : Math.fround(value);
    // Without f16 the device keeps what f16 would round away.
    error[i] = storedError(values[i]!, dtype === "f16" ? Math.abs(Math.fround(value) - values[i]!) : 0, dtype);
  }
  return result;
}

/** Strides of a row-major layout. */
function stridesOf(shape: readonly number[]): number[] {
  const strides: number[] = [];
  for (let axis = shape.length - 1, stride = 1; axis >= 0; axis--) {
    strides[axis] = stride;
    stride *= shape[axis]!;
  }
  return strides;
}

/** Calls back with every index tuple of a shape, in row-major order. The tuple is reused. */
function forEachIndex(shape: readonly number[], visit: (index: readonly number[], flat: number) => void): void {
  const index = shape.map(() => 0), count = elementCount(shape);
  for (let flat = 0; flat < count; flat++) {
    visit(index, flat);
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis]! === shape[axis]; axis--) index[axis] = 0;
  }
}

/** Elements of `source` picked by position; undefined leaves `otherwise`. */
function pick(
  source: Evaluated,
  shape: readonly number[],
  position: (index: readonly number[]) => number | undefined,
  otherwise: { value: number; error: number } = { value: 0, error: 0 },
): Evaluated {
  const result = blank(shape);
  forEachIndex(shape, (index, flat) => {
    const from = position(index);
    result.values[flat] = from === undefined ? otherwise.value : source.values[from]!;
    result.error[flat] = from === undefined ? otherwise.error : source.error[from]!;
  });
  return result;
}

const dot = (index: readonly number[], strides: readonly number[]): number =>
  index.reduce((sum, i, axis) => sum + i * strides[axis]!, 0);

/** Evaluates nodes against one set of bindings, each node once. */
export class Interpreter {
  #memo = new Map<Node, Evaluated>();
  #kernels = new Map<Node, Evaluated[]>();
  #written = new Map<Storage, Evaluated>();

  /** @param bindings What the run gives. */
  constructor(readonly bindings: Bindings = {}) {}

  /** Elements of a node. */
  evaluate(root: Node): Evaluated {
    // Sources have smaller ids, so order of ids is an order of evaluation, and deep graphs need no deep stack.
    const pending = new Set<Node>([root]);
    for (const node of pending) if (!this.#memo.has(node)) node.src.forEach((source) => pending.add(source));
    for (const node of [...pending].sort((a, b) => a.id - b.id)) {
      if (!this.#memo.has(node)) this.#memo.set(node, this.#evaluate(node));
    }
    return this.#memo.get(root)!;
  }

  /** Ends the run: the state now holds what evaluated nodes wrote. */
  commit(): void {
    this.#written.forEach((value, storage) => this.bindings.state?.set(storage, value));
  }

  #resolve = (dim: Dim): number => resolveDim(dim, this.bindings.sizes ?? {});

  #evaluate(node: Node): Evaluated {
    const shape = node.shape.map(this.#resolve);
    const source = node.src.map((s) => this.#memo.get(s)!), first = source[0]!;
    switch (node.op) {
      case "buffer":
        return this.#read(node.storage, shape);
      case "input": {
        const data = this.bindings.inputs?.[node.name];
        if (!data) throw new Error(`Cannot interpret input "${node.name}": no values given`);
        return storedValues(data, node.dtype, shape, `input "${node.name}"`);
      }
      case "const":
        return storedValues([node.value], node.dtype, shape, "a constant");
      case "iota": {
        const result = blank(shape);
        forEachIndex(shape, (index, flat) => result.values[flat] = index[node.axis]!);
        return result;
      }
      case "map":
        return evaluateMap(node, source, shape);
      case "cast":
        return evaluateCast(first, node.src[0]!.dtype, node.dtype);
      case "reshape":
        return { ...first, shape };
      case "permute": {
        const strides = stridesOf(first.shape);
        return pick(first, shape, (index) => dot(index, node.order.map((axis) => strides[axis]!)));
      }
      case "expand": {
        const strides = stridesOf(first.shape).map((stride, axis) => first.shape[axis] === 1 ? 0 : stride);
        return pick(first, shape, (index) => dot(index, strides));
      }
      case "slice": {
        const strides = stridesOf(first.shape), start = dot(node.start, strides);
        return pick(first, shape, (index) => start + dot(index, strides));
      }
      case "pad":
        return evaluatePad(node, first, shape);
      case "reduce":
        return evaluateReduce(node, first, shape);
      case "gather":
        return evaluateGather(first, source[1]!, shape);
      case "assign":
        this.#written.set(storageOf(node), source[1]!);
        return source[1]!;
      case "kernel":
        return this.#kernel(node, source)[0]!;
      case "output":
        return this.#kernels.get(node.src[0]!)![node.index]!;
    }
  }

  #read(storage: Storage, shape: readonly number[]): Evaluated {
    const current = this.bindings.state?.get(storage);
    if (current) return current;
    const data = storage.host ?? new Float32Array(elementCount(shape));
    return storedValues(data, storage.dtype, shape, `buffer "${storage.label}"`);
  }

  /** A kernel's reference says nothing about rounding: float outputs carry no promise, integers are as sure as the inputs. */
  #kernel(node: Node & { op: "kernel" }, source: readonly Evaluated[]): Evaluated[] {
    const types = outputTypes(node).map(({ dtype, shape }) => ({ dtype, shape: shape.map(this.#resolve) }));
    const inputs = node.src.map(({ dtype }, i) => ({ dtype, shape: source[i]!.shape }));
    const call = { params: node.params, inputs, outputs: types };
    const exact = source.every(({ error }) => error.every((e) => e === 0));
    const results = node.kernel.reference(call, source.map(({ values }) => values)).map((values, i): Evaluated => {
      const { dtype, shape } = types[i]!;
      const known = exact && dtype !== "f32" && dtype !== "f16";
      return { values, error: new Float64Array(values.length).fill(known ? 0 : Infinity), shape };
    });
    updatesOf(node).forEach((input, i) => {
      const source = node.src[input];
      if (source && stateOf(source)) this.#written.set(storageOf(source), results[i]!);
    });
    this.#kernels.set(node, results);
    return results;
  }
}

/** The buffer that a chain of updates writes. */
function storageOf(node: Node): Storage {
  if (node.op === "buffer") return node.storage;
  if (node.op === "assign") return storageOf(node.src[0]!);
  const kernel = node.op === "output" ? node.src[0]! : node;
  const input = kernel.op === "kernel" ? updatesOf(kernel)[node.op === "output" ? node.index : 0] ?? -1 : -1;
  if (input < 0) throw new Error(`Cannot interpret a write to ${node.op}: only buffers hold state`);
  return storageOf(kernel.src[input]!);
}

function evaluateMap(node: Node & { op: "map" }, source: readonly Evaluated[], shape: readonly number[]): Evaluated {
  const result = blank(shape), operand = node.src.at(-1)!.dtype;
  for (let i = 0; i < result.values.length; i++) {
    const value = source.map(({ values }) => values[i]!);
    const computed = evaluateScalar(node.fn, operand, ...value as [number, number?, number?]);
    result.values[i] = computed;
    result.error[i] = scalarError(node.fn, node.dtype, value, source.map(({ error }) => error[i]!), computed);
  }
  return result;
}

function evaluateCast(source: Evaluated, from: DType, to: DType): Evaluated {
  const convert = (value: number): number => {
    if (to === "bool") return value !== 0 ? 1 : 0;
    return to === "i32" || to === "u32" ? wrap(Math.trunc(value), to) : value;
  };
  return {
    values: source.values.map(convert),
    error: source.error.map((error, i) => castError(source.values[i]!, error, from, to)),
    shape: source.shape,
  };
}

function evaluatePad(node: Node & { op: "pad" }, source: Evaluated, shape: readonly number[]): Evaluated {
  const strides = stridesOf(source.shape), start = dot(node.before, strides);
  const outside = storedValues([node.value], node.dtype, [], "padding");
  const inside = (index: readonly number[]): boolean =>
    index.every((i, axis) => i >= node.before[axis]! && i < node.before[axis]! + source.shape[axis]!);
  const filler = { value: outside.values[0]!, error: outside.error[0]! };
  return pick(source, shape, (index) => inside(index) ? dot(index, strides) - start : undefined, filler);
}

function evaluateReduce(node: Node & { op: "reduce" }, source: Evaluated, shape: readonly number[]): Evaluated {
  const result = blank(shape), dtype = node.src[0]!.dtype, count = source.shape.at(-1)!;
  for (let row = 0; row < result.values.length; row++) {
    const values = source.values.subarray(row * count, (row + 1) * count);
    const errors = source.error.subarray(row * count, (row + 1) * count);
    if (node.kind === "sum") {
      const sum = values.reduce((total, value) => wrap(total + value, dtype), 0);
      result.values[row] = sum;
      result.error[row] = sumError(values, errors, sum, dtype);
      continue;
    }
    const best = values.reduce((at, value, i) => value > values[at]! ? i : at, 0);
    result.values[row] = node.kind === "max" ? values[best]! : best;
    result.error[row] = node.kind === "max"
      ? errors.reduce((greatest, error) => Math.max(greatest, error), 0)
      : argmaxError(values, errors, best);
  }
  return result;
}

function evaluateGather(table: Evaluated, indices: Evaluated, shape: readonly number[]): Evaluated {
  const rows = table.shape[0]!, width = elementCount(table.shape.slice(1)), result = blank(shape);
  for (let i = 0; i < indices.values.length; i++) {
    const index = indices.values[i]!, row = Math.min(Math.max(index, 0), rows - 1);
    // A symbolic table is clamped to its bound: beyond its size anything may lie.
    const sure = indices.error[i] === 0 && rows > 0;
    for (let j = 0; j < width; j++) {
      result.values[i * width + j] = sure ? table.values[row * width + j]! : 0;
      result.error[i * width + j] = sure ? table.error[row * width + j]! : Infinity;
    }
  }
  return result;
}

/**
 * Elements of a node in float64, with a bound on a device's error for each.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { constant, map } from "./node.ts";
 * import { interpret } from "./interpret.ts";
 *
 * const sum = map("add", constant(1, "f32"), constant(2, "f32"));
 * assertEquals(interpret(sum), { values: Float64Array.of(3), error: Float64Array.of(0), shape: [] });
 * ```
 */
export function interpret(node: Node, bindings: Bindings = {}): Evaluated {
  const interpreter = new Interpreter(bindings);
  const result = interpreter.evaluate(node);
  interpreter.commit();
  return result;
}
