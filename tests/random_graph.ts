/**
 * Random graphs for property tests. A recipe is plain data that fast-check draws and shrinks; building it always gives a valid
 * graph, because each step picks among the operations' legal operands and a step that has none is left out. Steps whose
 * result no tolerance can be computed for (a comparison of rounded values, an overflow) are left out too.
 */
import fc from "fast-check";
import { elementCount, maxOf, type Shape, Sym } from "../tensor/dim.ts";
import { type DType, float16Bits, float16Value, isFloat } from "../tensor/dtype.ts";
import { type Bindings, type Evaluated, Interpreter, storedValues } from "../tensor/interpret.ts";
import { base } from "../tensor/lower.ts";
import * as graph from "../tensor/node.ts";
import type { Node } from "../tensor/node.ts";
import type { ScalarOpName } from "../tensor/scalar.ts";
import { Storage } from "../tensor/storage.ts";
import { RANDOM_KERNELS } from "./random_kernels.ts";

const MAX_NODES = 12;
const MAX_ELEMENTS = 4096;
const SIZES = [1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 33, 64, 67, 131, 257, 0];
const DTYPES: readonly DType[] = ["f32", "f16", "i32", "u32", "bool"];

const UNARY = [
  "exp",
  "log",
  "sqrt",
  "rsqrt",
  "sin",
  "cos",
  "tanh",
  "sigmoid",
  "silu",
  "neg",
  "abs",
  "floor",
  "ceil",
  "not",
];
const BINARY = ["add", "sub", "mul", "div", "mod", "max", "min", "and", "or", "lt", "le", "gt", "ge", "eq", "ne"];
const MOVEMENT = ["reshape", "permute", "expand", "slice", "pad"];
const REDUCTIONS = ["sum", "max", "argmax"];
const KERNELS = ["triple", "triple", "halves", "advance"];
const OTHER = ["cast", "where", "gather", "assign"];

/** What fast-check draws. Numbers are choices, taken modulo what there is to choose from. */
export interface Recipe {
  /** Sizes of the axes that leaves and broadcasts share. */
  readonly base: readonly number[];
  /** Whether the first axis is a symbol. */
  readonly symbolic: boolean;
  /** Leaves: kind, which axes have size 1, and how values are drawn. */
  readonly leaves: readonly { kind: string; dtype: DType; ones: number; whole: boolean; seed: number }[];
  /** Operations; `choices` picks operands, axes and sizes. */
  readonly steps: readonly { op: string; choices: readonly number[] }[];
}

const choice = fc.nat(999);

/** Draws recipes. */
export const recipes: fc.Arbitrary<Recipe> = fc.record({
  base: fc.array(fc.constantFrom(...SIZES), { maxLength: 3 }),
  symbolic: fc.boolean(),
  leaves: fc.array(
    fc.record({
      kind: fc.constantFrom("input", "buffer", "input", "const", "iota"),
      dtype: fc.constantFrom<DType>("f32", "f32", "f32", "f16", "f16", "i32", "i32", "u32", "bool"),
      ones: fc.nat(7),
      whole: fc.boolean(),
      seed: fc.nat(1 << 20),
    }),
    { minLength: 1, maxLength: 3 },
  ),
  steps: fc.array(
    fc.record({
      op: fc.oneof(
        fc.constantFrom(...UNARY.map((name) => `unary ${name}`)),
        fc.constantFrom(...BINARY.map((name) => `binary ${name}`)),
        fc.constantFrom(...MOVEMENT),
        fc.constantFrom(...REDUCTIONS.map((name) => `reduce ${name}`)),
        fc.constantFrom(...KERNELS.map((name) => `kernel ${name}`)),
        fc.constantFrom(...OTHER),
      ),
      choices: fc.array(choice, { minLength: 8, maxLength: 8 }),
    }),
    { minLength: 6, maxLength: 24, size: "max" },
  ),
});

/** A graph with its data. */
export interface RandomGraph {
  /** What to compute: every node that no other one reads. */
  readonly roots: readonly Node[];
  /** Inputs by name, at their greatest size. */
  readonly inputs: ReadonlyMap<Node & { op: "input" }, readonly number[]>;
  /** What buffers hold before the first run. */
  readonly state: ReadonlyMap<Storage, Evaluated>;
  /** The symbol of the first axis. */
  readonly symbol: Sym | undefined;
}

/** Numbers from 0 to 1 after mulberry32, a generator of 32 bits of state. */
function* randomNumbers(seed: number): Generator<number, never> {
  for (let state = seed;;) {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    yield ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }
}

function drawValues(count: number, dtype: DType, whole: boolean, seed: number): number[] {
  const random = randomNumbers(seed);
  return Array.from({ length: count }, () => {
    const x = random.next().value, wide = random.next().value < 0.05;
    if (dtype === "bool") return x < 0.5 ? 1 : 0;
    if (dtype === "u32") return wide ? Math.floor(x * 2 ** 32) : Math.floor(x * 8);
    if (dtype === "i32") return wide ? Math.floor((x - 0.5) * 2 ** 32) : Math.floor(x * 11) - 5;
    if (whole) return Math.floor(x * 9) - 4;
    const value = Math.fround((x - 0.4) * (wide ? 20 : 4));
    return dtype === "f16" ? float16Value(float16Bits(value)) : value;
  });
}

class Builder {
  readonly inputs = new Map<Node & { op: "input" }, readonly number[]>();
  readonly state = new Map<Storage, Evaluated>();
  readonly symbol: Sym | undefined;
  readonly #interpreter: Interpreter;
  readonly #values: Record<string, readonly number[]> = {};
  #pool: Node[] = [];
  #accepted: Node[] = [];

  constructor(readonly recipe: Recipe, readonly prefix: string) {
    const [first = 0] = recipe.base;
    this.symbol = recipe.symbolic && first > 0 ? new Sym(`${prefix}n`, first) : undefined;
    const sizes: Record<string, number> = this.symbol ? { [this.symbol.name]: first } : {};
    this.#interpreter = new Interpreter({ inputs: this.#values, sizes, state: this.state });
  }

  build(): RandomGraph {
    this.recipe.leaves.forEach((_, i) => this.#leaf(i));
    this.recipe.steps.forEach(({ op, choices }) => this.#step(op, choices));
    const read = new Set(this.#accepted.flatMap((node) => [...graphOf([node])].filter((other) => other !== node)));
    // A program hands back neither its inputs nor what it overwrites.
    const gone = (node: Node): boolean => {
      const owner = base(node);
      return owner.op === "input" || (owner.op === "buffer" && owner.version !== owner.storage.version);
    };
    const roots = this.#accepted.filter((node) => !read.has(node) && !gone(node));
    const needed = graphOf(roots);
    const inputs = new Map([...this.inputs].filter(([node]) => needed.has(node)));
    return { roots, inputs, state: this.state, symbol: this.symbol };
  }

  #baseShape(ones: number, fixed: boolean): Shape {
    const { base } = this.recipe;
    const shape = base.map((dim, axis) =>
      (ones >> axis) & 1 ? 1 : axis === 0 && this.symbol && !fixed ? this.symbol : dim
    );
    return elementCount(shape) > MAX_ELEMENTS ? shape.slice(0, 1) : shape;
  }

  #leaf(i: number): void {
    const { kind, dtype, ones, whole, seed } = this.recipe.leaves[i]!;
    const shape = this.#baseShape(ones, kind === "buffer");
    const draw = (): number[] => drawValues(elementCount(shape), dtype, whole, seed);
    if (kind === "const") this.#accept(graph.constant(drawValues(1, dtype, whole, seed)[0]!, dtype));
    else if (kind === "iota" && shape.length > 0) {
      this.#accept(graph.iota(shape, ones % shape.length, seed % 2 ? "i32" : "u32"));
    } else if (kind === "buffer") {
      const values = draw();
      const host = dtype === "f32" || dtype === "f16"
        ? Float32Array.from(values)
        : dtype === "i32"
        ? Int32Array.from(values)
        : Uint32Array.from(values);
      const storage = new Storage(dtype, shape, host, `${this.prefix}b${i}`);
      this.state.set(storage, storedValues(host, dtype, shape as number[], storage.label));
      this.#accept(graph.buffer(storage));
    } else {
      const node = graph.input(`${this.prefix}x${i}`, dtype, shape) as Node & { op: "input" };
      this.inputs.set(node, this.#values[node.name] = draw());
      this.#accept(node);
    }
  }

  /** Takes a node into the graph if that stays small and every element has a tolerance that says something. */
  #accept(node: Node): boolean {
    if (graphOf([...this.#accepted, node]).size > MAX_NODES || elementCount(node.shape) > MAX_ELEMENTS) return false;
    const { values, error } = this.#interpreter.evaluate(node);
    if (!error.every((bound, i) => bound <= 0.05 * Math.max(1, Math.abs(values[i]!)))) return false;
    this.#pool.push(node);
    this.#accepted.push(node);
    return true;
  }

  /** A node of the pool that fits: 0 is the latest, and later ones are likelier. */
  #pick(choice: number, fits: (node: Node) => boolean): Node | undefined {
    const candidates = this.#pool.filter(fits);
    return candidates.at(-1 - Math.floor(candidates.length * (choice / 1000) ** 2));
  }

  #step(op: string, choices: readonly number[]): void {
    const [kind, name] = op.split(" ") as [string, string];
    const node = attempt(() => this.#make(kind, name, choices));
    if (!node || this.#accepted.includes(node)) return;
    const accepted = this.#accept(node);
    if (op !== "assign" && op !== "kernel advance") return;
    // The old version may not be read any more; a write that was not taken is undone.
    if (accepted) this.#pool = this.#pool.filter((other) => other !== node.src[0]);
    else (node.src[0] as Node & { op: "buffer" }).storage.version--;
  }

  #make(kind: string, name: string, choices: readonly number[]): Node | undefined {
    const [first, second, third] = choices as [number, number, number];
    switch (kind) {
      case "unary":
        return this.#unary(name as ScalarOpName, first);
      case "binary":
        return this.#binary(name as ScalarOpName, first, second);
      case "reduce": {
        const node = this.#pick(first, (n) => {
          const last = n.shape.at(-1);
          return typeof last === "number" && n.dtype !== "bool" && (last > 0 || name === "sum");
        });
        return node && graph.reduceLast(node, name as graph.ReduceKind);
      }
      case "cast": {
        const node = this.#pick(first, () => true);
        return node && graph.cast(node, DTYPES[second % DTYPES.length]!);
      }
      case "where": {
        const condition = this.#pick(first, (n) => n.dtype === "bool"), yes = this.#pick(second, () => true);
        if (!condition || !yes || !broadcasts(condition, yes)) return undefined;
        const no = this.#pick(third, (n) => n.dtype === yes.dtype && broadcasts(n, yes) && broadcasts(n, condition));
        return no && graph.map("where", condition, yes, no);
      }
      case "gather": {
        const table = this.#pick(first, (n) => typeof n.shape[0] === "number" && n.shape[0] > 0);
        const indices = this.#pick(second, (n) => n.dtype === "i32" || n.dtype === "u32");
        return table && indices && graph.gather(table, indices);
      }
      case "assign": {
        const target = this.#pick(first, (n) => n.op === "buffer");
        const value = target &&
          this.#pick(second, (n) => n.dtype === target.dtype && `${n.shape}` === `${target.shape}`);
        return target && value && graph.assign(target, value);
      }
      case "kernel": {
        const source = this.#pick(first, (n) => n.dtype === "i32" && (name !== "advance" || n.op === "buffer"));
        const kernel = source && graph.kernelNode(RANDOM_KERNELS[name]!, [source], null);
        return kernel && name === "halves" ? graph.output(kernel, second % 2) : kernel;
      }
      default:
        return this.#movement(kind, choices);
    }
  }

  #unary(fn: ScalarOpName, first: number): Node | undefined {
    const number = fn === "neg" || fn === "abs";
    const node = this.#pick(
      first,
      (n) => fn === "not" ? n.dtype === "bool" : number ? n.dtype !== "bool" : isFloat(n.dtype),
    );
    return node && graph.map(fn, node);
  }

  #binary(fn: ScalarOpName, first: number, second: number): Node | undefined {
    const logical = fn === "and" || fn === "or";
    const left = this.#pick(first, (n) => logical === (n.dtype === "bool") && !(fn === "mod" && isFloat(n.dtype)));
    const right = left && this.#pick(second, (n) => n.dtype === left.dtype && broadcasts(left, n));
    return right && graph.map(fn, left, right);
  }

  #movement(kind: string, choices: readonly number[]): Node | undefined {
    const node = this.#pick(choices[0]!, (n) => n.shape.length > 0), rest = choices.slice(1);
    if (!node) return undefined;
    const at = (axis: number): number => rest[axis % rest.length]!;
    const sizes = node.shape.map(maxOf);
    switch (kind) {
      case "reshape":
        return graph.reshape(node, factor(node.shape, rest));
      case "permute": {
        const order = node.shape.map((_, axis) => axis).sort((a, b) => at(a) - at(b));
        return graph.permute(node, order);
      }
      case "expand": {
        const wider = node.shape.map((dim, axis) => dim === 1 ? SIZES[at(axis) % SIZES.length]! : dim);
        return graph.expand(node, at(3) % 3 === 0 ? [1 + at(4) % 3, ...wider] : wider);
      }
      case "slice": {
        const start = sizes.map((size, axis) => typeof node.shape[axis] === "number" ? at(axis) % (size + 1) : 0);
        const end = sizes.map((size, axis) =>
          typeof node.shape[axis] === "number" ? start[axis]! + at(axis + 3) % (size - start[axis]! + 1) : size
        );
        return graph.slice(node, start, end);
      }
      default: {
        const amounts = (from: number): number[] =>
          node.shape.map((dim, axis) => typeof dim === "number" ? at(axis + from) % 3 : 0);
        const value = node.dtype === "bool" || node.dtype === "u32" ? at(6) % 2 : at(6) % 3 - 1;
        return graph.pad(node, amounts(0), amounts(3), value);
      }
    }
  }
}

/** Another shape of as many elements; a leading symbol stays. */
function factor(shape: Shape, choices: readonly number[]): Shape {
  const leading = shape.filter((dim) => typeof dim !== "number");
  let count = elementCount(shape.filter((dim) => typeof dim === "number"));
  if (count === 0) return [...leading, choices[0]! % 4, 0];
  const sizes: number[] = [];
  for (const choice of choices.slice(0, choices[6]! % 4)) {
    const divisors = Array.from({ length: count }, (_, i) => i + 1).filter((size) => count % size === 0);
    const size = divisors[choice % divisors.length]!;
    sizes.push(size);
    count /= size;
  }
  return [...leading, ...sizes, count];
}

/** What a builder of the graph makes; undefined where it refuses with its own error. */
function attempt(make: () => Node | undefined): Node | undefined {
  try {
    return make();
  } catch (cause) {
    if (cause instanceof Error && cause.message.startsWith("Cannot")) return undefined;
    throw cause;
  }
}

function broadcasts(a: Node, b: Node): boolean {
  try {
    graph.broadcastShapes(a.shape, b.shape);
    return true;
  } catch {
    return false;
  }
}

function graphOf(roots: readonly Node[]): Set<Node> {
  const nodes = new Set(roots);
  for (const node of nodes) node.src.forEach((source) => nodes.add(source));
  return nodes;
}

/** Builds a recipe's graph. `prefix` keeps names apart where several graphs make one program. */
export function buildGraph(recipe: Recipe, prefix: string): RandomGraph {
  return new Builder(recipe, prefix).build();
}

/** Runs a graph twice in the interpreter, with the symbol at its bound and then at about half of it. */
export function runsOf(random: RandomGraph): { bindings: Bindings; results: Evaluated[] }[] {
  const state = new Map(random.state), { symbol } = random;
  return [1, 0.5].map((part) => {
    const size = symbol && Math.floor(symbol.max * part);
    const sizes: Record<string, number> = symbol ? { [symbol.name]: size! } : {};
    const inputs = Object.fromEntries(
      Array.from(random.inputs, ([node, values]) => [node.name, values.slice(0, elementCount(node.shape, sizes))]),
    );
    const interpreter = new Interpreter({ inputs, sizes, state });
    const results = random.roots.map((root) => interpreter.evaluate(root));
    interpreter.commit();
    return { bindings: { inputs, sizes }, results };
  });
}
