/**
 * The scalar operations: one table from which the graph takes its typing rule, code generation its WGSL, and the
 * interpreter its value and rounding error. A new elementwise operation is a new row.
 *
 * @module
 */
import type { DType } from "./dtype.ts";

/** Where a result's dtype comes from: the operands', or bool. */
export type ResultType = "operand" | "bool";

/** What operands an operation takes. */
export type OperandType = "number" | "float" | "integer" | "bool" | "any";

/** One row of the table. */
export interface ScalarOp {
  /** Number of operands; the first of three is a bool condition. */
  readonly arity: 1 | 2 | 3;
  /** Dtypes taken. */
  readonly operands: OperandType;
  /** Dtype given. */
  readonly result: ResultType;
  /** The WGSL expression; `dtype` is that of the (last) operand. */
  readonly wgsl: (args: readonly string[], dtype: DType) => string;
  /** The value in float64; integers wrap to 32 bits afterwards, bools are 0 or 1. */
  readonly evaluate: (a: number, b: number, c: number) => number;
  /**
   * Bound on the result's error, for floats: given values and bounds of the operands, the exact result and the unit
   * roundoff. WGSL's own accuracy for the function ("Accuracy of built-in functions") is included. Absent where the result is
   * exact on exact operands and jumps otherwise (comparisons, floor).
   */
  readonly error?: (value: readonly number[], error: readonly number[], result: number, unit: number) => number;
}

const infix = (symbol: string) => (args: readonly string[]): string => `(${args[0]} ${symbol} ${args[1]})`;
const call = (name: string) => (args: readonly string[]): string => `${name}(${args.join(", ")})`;
const truth = (value: boolean): number => value ? 1 : 0;
const compare = (symbol: string, test: (a: number, b: number) => boolean): ScalarOp => ({
  arity: 2,
  operands: "number",
  result: "bool",
  wgsl: infix(symbol),
  evaluate: (a, b) => truth(test(a, b)),
});
const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

/** Name of a scalar operation. */
export type ScalarOpName =
  | "add"
  | "sub"
  | "mul"
  | "div"
  | "mod"
  | "max"
  | "min"
  | "neg"
  | "abs"
  | "exp"
  | "log"
  | "sqrt"
  | "rsqrt"
  | "sin"
  | "cos"
  | "tanh"
  | "sigmoid"
  | "silu"
  | "floor"
  | "ceil"
  | "lt"
  | "le"
  | "gt"
  | "ge"
  | "eq"
  | "ne"
  | "and"
  | "or"
  | "not"
  | "where";

/** All scalar operations by name. */
export const SCALAR_OPS: Readonly<Record<ScalarOpName, ScalarOp>> = {
  add: {
    arity: 2,
    operands: "number",
    result: "operand",
    wgsl: infix("+"),
    evaluate: (a, b) => a + b,
    error: (_, e, r, u) => e[0]! + e[1]! + u * Math.abs(r),
  },
  sub: {
    arity: 2,
    operands: "number",
    result: "operand",
    wgsl: infix("-"),
    evaluate: (a, b) => a - b,
    error: (_, e, r, u) => e[0]! + e[1]! + u * Math.abs(r),
  },
  mul: {
    arity: 2,
    operands: "number",
    result: "operand",
    wgsl: infix("*"),
    evaluate: (a, b) => a * b,
    error: (v, e, r, u) => Math.abs(v[0]!) * e[1]! + Math.abs(v[1]!) * e[0]! + e[0]! * e[1]! + u * Math.abs(r),
  },
  div: {
    arity: 2,
    operands: "number",
    result: "operand",
    wgsl: infix("/"),
    evaluate: (a, b) => a / b,
    error: (v, e, r, u) => {
      const least = Math.abs(v[1]!) - e[1]!;
      return least <= 0 ? Infinity : (e[0]! + Math.abs(r) * e[1]!) / least + 5 * u * Math.abs(r);
    },
  },
  mod: { arity: 2, operands: "integer", result: "operand", wgsl: infix("%"), evaluate: (a, b) => a % b },
  max: {
    arity: 2,
    operands: "number",
    result: "operand",
    wgsl: call("max"),
    evaluate: (a, b) => Math.max(a, b),
    error: (_, e) => Math.max(e[0]!, e[1]!),
  },
  min: {
    arity: 2,
    operands: "number",
    result: "operand",
    wgsl: call("min"),
    evaluate: (a, b) => Math.min(a, b),
    error: (_, e) => Math.max(e[0]!, e[1]!),
  },
  neg: {
    arity: 1,
    operands: "number",
    result: "operand",
    wgsl: ([a], dtype) => dtype === "u32" ? `(0u - ${a})` : `(-${a})`,
    evaluate: (a) => -a,
    error: (_, e) => e[0]!,
  },
  abs: {
    arity: 1,
    operands: "number",
    result: "operand",
    wgsl: call("abs"),
    evaluate: (a) => Math.abs(a),
    error: (_, e) => e[0]!,
  },
  exp: {
    arity: 1,
    operands: "float",
    result: "operand",
    wgsl: call("exp"),
    evaluate: (a) => Math.exp(a),
    error: (v, e, r, u) => r * Math.expm1(Math.min(e[0]!, 100)) + (6 + 4 * Math.abs(v[0]!)) * u * r,
  },
  log: {
    arity: 1,
    operands: "float",
    result: "operand",
    wgsl: call("log"),
    evaluate: (a) => Math.log(a),
    error: (v, e, r, u) => {
      const least = v[0]! - e[0]!;
      return least <= 0 ? Infinity : e[0]! / least + 6 * u * Math.abs(r) + 2 ** -21;
    },
  },
  sqrt: {
    arity: 1,
    operands: "float",
    result: "operand",
    wgsl: call("sqrt"),
    evaluate: (a) => Math.sqrt(a),
    error: (v, e, r, u) => v[0]! <= e[0]! ? Math.sqrt(2 * e[0]!) : e[0]! / (r + Math.sqrt(v[0]! - e[0]!)) + 6 * u * r,
  },
  rsqrt: {
    arity: 1,
    operands: "float",
    result: "operand",
    wgsl: call("inverseSqrt"),
    evaluate: (a) => 1 / Math.sqrt(a),
    error: (v, e, r, u) => v[0]! <= 2 * e[0]! ? Infinity : r * e[0]! / (v[0]! - e[0]!) + 4 * u * r,
  },
  sin: {
    arity: 1,
    operands: "float",
    result: "operand",
    wgsl: call("sin"),
    evaluate: (a) => Math.sin(a),
    error: (v, e, _r, u) => e[0]! + 2 ** -11 * truth(Math.abs(v[0]!) > Math.PI) + 2 ** -20 + u,
  },
  cos: {
    arity: 1,
    operands: "float",
    result: "operand",
    wgsl: call("cos"),
    evaluate: (a) => Math.cos(a),
    error: (v, e, _r, u) => e[0]! + 2 ** -11 * truth(Math.abs(v[0]!) > Math.PI) + 2 ** -20 + u,
  },
  tanh: {
    arity: 1,
    operands: "float",
    result: "operand",
    // Beyond 15 the result is 1 in f32, and a driver's exp(2x) / exp(2x) must not overflow.
    wgsl: ([a]) => `tanh(clamp(${a}, -15.0, 15.0))`,
    evaluate: (a) => Math.tanh(a),
    error: (_, e, _r, u) => e[0]! + 2 ** -18 + u,
  },
  sigmoid: {
    arity: 1,
    operands: "float",
    result: "operand",
    // The clamp keeps exp finite: infinities are not kept on every device.
    wgsl: ([a]) => `(1.0 / (1.0 + exp(-clamp(${a}, -80.0, 80.0))))`,
    evaluate: sigmoid,
    error: (v, e, r, u) => e[0]! / 4 + (14 + 4 * Math.min(Math.abs(v[0]!), 80)) * u * r + 2e-35,
  },
  silu: {
    arity: 1,
    operands: "float",
    result: "operand",
    wgsl: ([a]) => `(${a} / (1.0 + exp(-clamp(${a}, -80.0, 80.0))))`,
    evaluate: (a) => a * sigmoid(a),
    error: (v, e, r, u) => 1.1 * e[0]! + (14 + 4 * Math.min(Math.abs(v[0]!), 80)) * u * Math.abs(r) + 2e-33,
  },
  floor: { arity: 1, operands: "float", result: "operand", wgsl: call("floor"), evaluate: (a) => Math.floor(a) },
  ceil: { arity: 1, operands: "float", result: "operand", wgsl: call("ceil"), evaluate: (a) => Math.ceil(a) },
  lt: compare("<", (a, b) => a < b),
  le: compare("<=", (a, b) => a <= b),
  gt: compare(">", (a, b) => a > b),
  ge: compare(">=", (a, b) => a >= b),
  eq: compare("==", (a, b) => a === b),
  ne: compare("!=", (a, b) => a !== b),
  and: { arity: 2, operands: "bool", result: "bool", wgsl: infix("&&"), evaluate: (a, b) => truth(a !== 0 && b !== 0) },
  or: { arity: 2, operands: "bool", result: "bool", wgsl: infix("||"), evaluate: (a, b) => truth(a !== 0 || b !== 0) },
  not: { arity: 1, operands: "bool", result: "bool", wgsl: ([a]) => `(!${a})`, evaluate: (a) => truth(a === 0) },
  where: {
    arity: 3,
    operands: "any",
    result: "operand",
    wgsl: ([condition, yes, no]) => `select(${no}, ${yes}, ${condition})`,
    evaluate: (condition, yes, no) => condition !== 0 ? yes : no,
    error: (v, e) => v[0]! !== 0 ? e[1]! : e[2]!,
  },
};

/** The table's row, typed as a row. */
export function scalarOp(name: ScalarOpName): ScalarOp {
  return SCALAR_OPS[name];
}

/** Brings a float64 result into its dtype's set of values, but for float rounding: integers wrap to 32 bits. */
export function wrap(value: number, dtype: DType): number {
  if (dtype === "i32") return value | 0;
  if (dtype === "u32") return value >>> 0;
  return value;
}

/** 32-bit products need more than float64 holds: the exact evaluation of an operation in its dtype. */
export function evaluateScalar(name: ScalarOpName, dtype: DType, a: number, b = 0, c = 0): number {
  if (dtype === "i32" || dtype === "u32") {
    if (name === "mul") return wrap(Math.imul(a, b), dtype);
    if (name === "div" || name === "mod") {
      if (b === 0) return name === "div" ? a : 0; // WGSL defines both
      return wrap(name === "div" ? Math.trunc(a / b) : a % b, dtype);
    }
  }
  return wrap(scalarOp(name).evaluate(a, b, c), dtype);
}
