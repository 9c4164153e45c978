/**
 * Scalar expressions as data: what one output element is, as a function of index variables. One printer makes WGSL of
 * them (`codegen`), and index arithmetic is simplified while it is built, so that a reshape between two equal
 * views costs nothing and equal indices are equal objects.
 *
 * @module
 */
import type { Shape } from "./dim.ts";
import { maxOf } from "./dim.ts";
import { type DType, float16Bits, float16Value, isFloat } from "./dtype.ts";
import { evaluateScalar, type ScalarOpName, wrap } from "./scalar.ts";
import type { Node } from "./node.ts";

/** An expression. Index expressions are u32. */
export type Expr =
  & {
    readonly id: number;
    readonly dtype: DType;
    readonly variables: ReadonlySet<string>;
    readonly args: readonly Expr[];
  }
  & (
    | { readonly kind: "literal"; readonly value: number }
    /** An index or a reduced value that the generated code has a name for. */
    | { readonly kind: "variable"; readonly name: string; readonly max: number }
    /** An element of a realised tensor: `args[0]` is its flat index. */
    | { readonly kind: "load"; readonly node: Node }
    /** A scalar operation; `operand` is the dtype it works in. */
    | { readonly kind: "apply"; readonly fn: ScalarOpName; readonly operand: DType }
    | { readonly kind: "cast" }
  );

type Distribute<T> = T extends Expr ? Omit<T, "id" | "variables"> : never;

const GREATEST = 3.4028234663852886e38;

/** A float that a WGSL literal can hold. What overflows is no promise of ours, only it has to compile. */
function finite(value: number, dtype: DType): number {
  if (!isFloat(dtype)) return value;
  return Number.isNaN(value) ? 0 : Math.fround(Math.min(Math.max(value, -GREATEST), GREATEST));
}

/** What WGSL's conversions make of a constant: floats saturate, integers keep their bits. */
function convert(value: number, from: DType, to: DType): number {
  if (to === "bool") return value !== 0 ? 1 : 0;
  if (from === "bool") return value !== 0 ? 1 : 0;
  if (to === "f16") return finite(float16Value(float16Bits(value)), "f16");
  if (to === "f32") return Math.fround(value);
  if (!isFloat(from)) return wrap(value, to);
  const [least, greatest] = to === "i32" ? [-(2 ** 31), 2 ** 31 - 1] : [0, 2 ** 32 - 1];
  return Math.trunc(Math.min(Math.max(value, least), greatest));
}

/** Makes expressions; equal ones are one object. One builder serves one generated kernel. */
export class ExprBuilder {
  #known = new Map<string, Expr>();
  #bounds = new Map<Expr, number>();

  #make(parts: Distribute<Expr>): Expr {
    const own = parts.kind === "literal"
      ? `${Object.is(parts.value, -0) ? "-0" : parts.value}`
      : parts.kind === "variable"
      ? parts.name
      : parts.kind === "load"
      ? `${parts.node.id}`
      : parts.kind === "apply"
      ? `${parts.fn}:${parts.operand}`
      : "";
    const key = `${parts.kind}|${parts.dtype}|${own}|${parts.args.map((a) => a.id).join()}`;
    let expr = this.#known.get(key);
    if (!expr) {
      const variables = new Set(parts.args.flatMap((a) => [...a.variables]));
      if (parts.kind === "variable") variables.add(parts.name);
      expr = { ...parts, variables, id: this.#known.size } as Expr;
      this.#known.set(key, expr);
    }
    return expr;
  }

  /** A number. */
  literal(value: number, dtype: DType = "u32"): Expr {
    return this.#make({ kind: "literal", dtype, value, args: [] });
  }

  /** A named value; `max` bounds an index. */
  variable(name: string, dtype: DType = "u32", max: number = Infinity): Expr {
    return this.#make({ kind: "variable", dtype, name, max, args: [] });
  }

  /** An element of a realised tensor. */
  load(node: Node, index: Expr): Expr {
    return this.#make({ kind: "load", dtype: node.dtype, node, args: [index] });
  }

  /**
   * A scalar operation. What is constant is computed here: WGSL refuses a shader with a constant expression that overflows
   * or divides by zero.
   */
  apply(fn: ScalarOpName, dtype: DType, args: readonly Expr[]): Expr {
    const operand = args.at(-1)!.dtype, divisor = args[1];
    const values = args.flatMap((arg) => arg.kind === "literal" ? [arg.value] : []);
    if (values.length === args.length) {
      const [a, b, c] = values as [number, number?, number?];
      return this.literal(finite(evaluateScalar(fn, operand, a, b, c), dtype), dtype);
    }
    if ((fn === "div" || fn === "mod") && !isFloat(dtype) && divisor!.kind === "literal" && divisor!.value === 0) {
      return fn === "div" ? args[0]! : this.literal(0, dtype);
    }
    return this.#make({ kind: "apply", fn, dtype, operand, args });
  }

  /** A conversion. */
  cast(arg: Expr, dtype: DType): Expr {
    if (arg.dtype === dtype) return arg;
    if (arg.kind === "literal") return this.literal(convert(arg.value, arg.dtype, dtype), dtype);
    return this.#make({ kind: "cast", dtype, args: [arg] });
  }

  /** Greatest value of an index expression. */
  bound(index: Expr): number {
    let bound = this.#bounds.get(index);
    if (bound === undefined) {
      bound = this.#computeBound(index);
      this.#bounds.set(index, bound);
    }
    return bound;
  }

  #computeBound(index: Expr): number {
    if (index.kind === "literal") return index.value;
    if (index.kind === "variable") return index.max;
    if (index.kind !== "apply" || index.dtype !== "u32") return Infinity;
    const [a, b] = index.args.map((arg) => this.bound(arg));
    switch (index.fn) {
      case "add":
        return a! + b!;
      case "mul":
        return a! * b!;
      case "div":
        return Math.floor(a! / b!);
      case "mod":
        return Math.min(a!, b! - 1);
      default:
        return Infinity;
    }
  }

  /** `a + b` for indices. */
  add(a: Expr, b: Expr): Expr {
    if (a.kind === "literal" && b.kind === "literal") return this.literal(a.value + b.value);
    if (a.kind === "literal" && a.value === 0) return b;
    if (b.kind === "literal" && b.value === 0) return a;
    return this.apply("add", "u32", [a, b]);
  }

  /** `a * factor` for indices. */
  mul(a: Expr, factor: number): Expr {
    if (a.kind === "literal") return this.literal(a.value * factor);
    if (factor === 1) return a;
    if (factor === 0) return this.literal(0);
    return this.apply("mul", "u32", [a, this.literal(factor)]);
  }

  /** Splits `index` as `quotient * divisor + rest` where each term shows on which side it falls. */
  #split(index: Expr, divisor: number): { quotient: Expr; rest: Expr } | undefined {
    if (this.bound(index) < divisor) return { quotient: this.literal(0), rest: index };
    if (index.kind !== "apply") return undefined;
    const [a, b] = index.args;
    if (index.fn === "mul" && b!.kind === "literal" && b!.value % divisor === 0) {
      return { quotient: this.mul(a!, b!.value / divisor), rest: this.literal(0) };
    }
    if (index.fn !== "add") return undefined;
    const left = this.#split(a!, divisor), right = this.#split(b!, divisor);
    if (!left || !right || this.bound(left.rest) + this.bound(right.rest) >= divisor) return undefined;
    return { quotient: this.add(left.quotient, right.quotient), rest: this.add(left.rest, right.rest) };
  }

  /** `floor(a / divisor)` for indices. */
  div(a: Expr, divisor: number): Expr {
    if (divisor === 1) return a;
    if (a.kind === "literal") return this.literal(Math.floor(a.value / divisor));
    return this.#split(a, divisor)?.quotient ?? this.apply("div", "u32", [a, this.literal(divisor)]);
  }

  /** `a mod divisor` for indices. */
  mod(a: Expr, divisor: number): Expr {
    if (divisor === 1) return this.literal(0);
    if (a.kind === "literal") return this.literal(a.value % divisor);
    return this.#split(a, divisor)?.rest ?? this.apply("mod", "u32", [a, this.literal(divisor)]);
  }

  /** Row-major position of an index tuple. A leading symbol needs no stride. */
  flatten(index: readonly Expr[], shape: Shape): Expr {
    let flat = this.literal(0), stride = 1;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      flat = this.add(this.mul(index[axis]!, stride), flat);
      stride *= maxOf(shape[axis]!);
    }
    return flat;
  }

  /** The index tuple of a row-major position. */
  unflatten(flat: Expr, shape: Shape): Expr[] {
    const index: Expr[] = [];
    for (let axis = shape.length - 1, stride = 1; axis >= 0; axis--) {
      const size = maxOf(shape[axis]!);
      const quotient = this.div(flat, Math.max(stride, 1));
      const leading = shape.slice(0, axis).every((dim) => dim === 1);
      index[axis] = size === 1 ? this.literal(0) : leading ? quotient : this.mod(quotient, Math.max(size, 1));
      stride *= size;
    }
    return index;
  }
}
