/**
 * Prints a lowered group as WGSL: one thread an element where nothing is reduced; else a row at a time, by one thread or
 * by a workgroup, with each reduction a phase before the output. A group spliced into a kernel becomes that kernel's
 * store function.
 *
 * @module
 */
import { type Dim, maxOf, type Shape } from "./dim.ts";
import { wgslValueType } from "./dtype.ts";
import type { Expr } from "./expr.ts";
import { type Caps, dimWgsl, type Resolver, type TensorType } from "./kernel.ts";
import { ANCHOR_VALUE, type Lowered, type Phase } from "./lower.ts";
import type { Node } from "./node.ts";
import { scalarOp } from "./scalar.ts";

/** WGSL of a group, before assembly. */
export interface GroupCode {
  /** Invocations of a workgroup. */
  readonly workgroupSize: readonly [number, number, number];
  /** Module-scope declarations. */
  readonly declarations: string;
  /** Body of the entry point. */
  readonly main: string;
  /** Workgroups of a run. */
  readonly grid: (resolve: Resolver) => readonly [number, number, number];
}

/** Prints a constant of a dtype. */
export function literalWgsl(value: number, dtype: string): string {
  if (dtype === "bool") return value !== 0 ? "true" : "false";
  if (dtype === "u32") return `${value >>> 0}u`;
  if (dtype === "i32") return value === -2147483648 ? "(-2147483647i - 1i)" : value < 0 ? `(${value}i)` : `${value}i`;
  const text = `${Math.fround(value)}`;
  const number = `${/[.e]/.test(text) ? text : `${text}.0`}f`;
  return number.startsWith("-") ? `(${number})` : number; // two signs in a row would be a decrement
}

/** Statements of nested scopes: an expression is computed in the outermost scope that knows all its variables. */
class Printer {
  #scopes: { lines: string[]; known: Set<string>; names: Map<Expr, string> }[] = [];
  #next = 0;

  constructor(readonly access: (node: Node) => string) {}

  open(...variables: string[]): void {
    this.#scopes.push({ lines: [], known: new Set(variables), names: new Map() });
  }

  close(indent = "  "): string {
    return this.#scopes.pop()!.lines.map((line) => indent + line.replaceAll("\n", `\n${indent}`)).join("\n");
  }

  line(text: string): void {
    this.#scopes.at(-1)!.lines.push(text);
  }

  /** Makes a variable known in the innermost scope. */
  know(name: string): void {
    this.#scopes.at(-1)!.known.add(name);
  }

  #scopeOf(expr: Expr): number {
    const missing = new Set(expr.variables);
    for (let depth = 0; depth < this.#scopes.length; depth++) {
      this.#scopes[depth]!.known.forEach((name) => missing.delete(name));
      if (missing.size === 0) return depth;
    }
    throw new Error(`Cannot print an expression: ${[...missing].join()} unknown`);
  }

  print(expr: Expr): string {
    if (expr.kind === "literal") return literalWgsl(expr.value, wgslValueType(expr.dtype));
    if (expr.kind === "variable") return expr.name;
    for (const scope of this.#scopes) {
      const name = scope.names.get(expr);
      if (name) return name;
    }
    const args = expr.args.map((arg) => this.print(arg));
    const scope = this.#scopes[this.#scopeOf(expr)]!;
    const name = `t${this.#next++}`;
    scope.lines.push(`let ${name} = ${this.#operation(expr, args)};`);
    scope.names.set(expr, name);
    return name;
  }

  #operation(expr: Expr, args: readonly string[]): string {
    switch (expr.kind) {
      case "load":
        return `${this.access(expr.node)}(${args[0]})`;
      case "cast":
        return castWgsl(args[0]!, expr.args[0]!.dtype, expr.dtype);
      case "apply":
        return scalarOp(expr.fn).wgsl(args, expr.operand);
      default:
        throw new Error(`Cannot print ${expr.kind}`);
    }
  }
}

function castWgsl(value: string, from: string, to: string): string {
  // Rounding through f16 happens where the result is stored; between casts the value stays f32.
  if (to === "f16") return from === "f32" ? `quantizeToF16(${value})` : `quantizeToF16(f32(${value}))`;
  return `${wgslValueType(to as "f32")}(${value})`;
}

const WORKGROUP = 64;
const MAX_GROUPS = 65535;

/** Spreads a count of workgroups over two grid dimensions; `workgroupIndex` undoes it. */
export function foldGrid(groups: number): readonly [number, number, number] {
  if (groups <= MAX_GROUPS) return [groups, 1, 1];
  const rows = Math.ceil(groups / MAX_GROUPS);
  return [Math.ceil(groups / rows), rows, 1];
}

const countOf = (shape: Shape, resolve: Resolver): number => shape.reduce<number>((n, dim) => n * resolve(dim), 1);

const countWgsl = (shape: Shape): string => {
  const fixed = shape.reduce<number>((n, dim) => typeof dim === "number" ? n * dim : n, 1);
  const symbol = shape.find((dim) => typeof dim !== "number");
  return symbol === undefined ? `${fixed}u` : `(${dimWgsl(symbol)} * ${fixed}u)`;
};

/** `let i0 = …;` for the axes of a flat position. */
function indexLines(flat: string, axes: readonly { name: string; size: Dim }[]): string[] {
  // No thread gets as far as the code of an empty tensor, which has to compile all the same.
  const extents = axes.map(({ size }) => Math.max(1, maxOf(size)));
  let stride = extents.reduce((n, extent) => n * extent, 1);
  return axes.map(({ name }, position) => {
    stride /= extents[position]!;
    const quotient = stride === 1 ? flat : `(${flat} / ${stride}u)`;
    return `let ${name} = ${position === 0 ? quotient : `${quotient} % ${extents[position]}u`};`;
  });
}

/** Axes of the output, by whether they number rows. */
function axesOf(group: Lowered, shape: Shape, rows: boolean): { name: string; size: Dim }[] {
  return shape.flatMap((size, axis) => {
    const name = group.index[axis];
    return name !== undefined && group.rows.has(name) === rows ? [{ name, size }] : [];
  });
}

/** WGSL of a group that no kernel anchors. `access` names the accessor of a realised node. */
export function generate(group: Lowered, shape: Shape, access: (node: Node) => string, caps: Caps): GroupCode {
  return group.phases.length === 0 ? elementwise(group, shape, access) : rowwise(group, shape, access, caps);
}

function outputIndex(group: Lowered, shape: Shape): Expr {
  const { builder } = group;
  return builder.flatten(
    shape.map((dim, axis) =>
      group.index[axis] ? builder.variable(group.index[axis]!, "u32", maxOf(dim) - 1) : builder.literal(0)
    ),
    shape,
  );
}

function elementwise(group: Lowered, shape: Shape, access: (node: Node) => string): GroupCode {
  const printer = new Printer(access);
  const axes = axesOf(group, shape, true);
  printer.open(...axes.map((axis) => axis.name));
  printer.line(`let flat = (workgroup.y * groups.x + workgroup.x) * ${WORKGROUP}u + lane;`);
  printer.line(`if (flat >= ${countWgsl(shape)}) { return; }`);
  indexLines("flat", axes).forEach((line) => printer.line(line));
  printer.line(`store_out(flat, ${printer.print(group.body)});`);
  return {
    workgroupSize: [WORKGROUP, 1, 1],
    declarations: "",
    main: printer.close(),
    grid: (resolve) => foldGrid(Math.ceil(countOf(shape, resolve) / WORKGROUP)),
  };
}

/** Lanes that share a row: one where rows are many or short, a workgroup otherwise. */
function lanesOf(group: Lowered, rows: number, inner: number, caps: Caps): number {
  const longest = Math.max(inner, ...group.phases.map((phase) => phase.count));
  if (longest <= 32 || (caps.cpu && rows >= 16)) return 1;
  if (caps.cpu) return 16;
  return longest <= 256 ? 32 : 256;
}

function rowwise(group: Lowered, shape: Shape, access: (node: Node) => string, caps: Caps): GroupCode {
  const rowAxes = axesOf(group, shape, true), innerAxes = axesOf(group, shape, false);
  const rowShape = rowAxes.map((axis) => axis.size), inner = innerAxes.reduce((n, axis) => n * maxOf(axis.size), 1);
  const lanes = lanesOf(group, rowShape.reduce<number>((n, dim) => n * maxOf(dim), 1), inner, caps);
  const rowsPerGroup = lanes === 1 ? (caps.cpu ? 8 : 32) : 1;
  const printer = new Printer(access);
  printer.open(...rowAxes.map((axis) => axis.name));
  const group1 = `workgroup.y * groups.x + workgroup.x`;
  printer.line(`let row = ${lanes === 1 ? `(${group1}) * ${rowsPerGroup}u + lane` : group1};`);
  printer.line(`if (row >= ${countWgsl(rowShape)}) { return; }`);
  indexLines("row", rowAxes).forEach((line) => printer.line(line));
  group.phases.forEach((phase) => printPhase(printer, phase, lanes));
  printOutput(printer, group, shape, innerAxes, inner, lanes);
  return {
    workgroupSize: [lanes === 1 ? rowsPerGroup : lanes, 1, 1],
    declarations: lanes === 1 ? "" : group.phases.map((phase) => sharedDeclarations(phase, lanes)).join("\n"),
    main: printer.close(),
    grid: (resolve) => foldGrid(Math.ceil(countOf(rowShape, resolve) / rowsPerGroup)),
  };
}

/** Elements of a phase as WGSL values: argmax compares values and keeps positions. */
function valueType(phase: Phase): "f32" | "i32" | "u32" {
  return wgslValueType(phase.node.src[0]!.dtype) as "f32";
}

function identityOf(phase: Phase): string {
  const type = valueType(phase);
  if (phase.kind === "sum") return literalWgsl(0, type);
  return { f32: "-3.4028234663852886e38f", i32: "(-2147483647i - 1i)", u32: "0u" }[type];
}

function combine(phase: Phase, into: string, value: string, position: string): string {
  if (phase.kind === "sum") return `${into} = ${into} + ${value};`;
  if (phase.kind === "max") return `${into} = max(${into}, ${value});`;
  return `if (${value} > ${into}_best || (${value} == ${into}_best && ${position} < ${into}_at)) ` +
    `{ ${into}_best = ${value}; ${into}_at = ${position}; }`;
}

const sharedDeclarations = (phase: Phase, lanes: number): string =>
  `var<workgroup> shared_${phase.name}: array<${valueType(phase)}, ${lanes}>;` +
  (phase.kind === "argmax" ? `\nvar<workgroup> shared_${phase.name}_at: array<u32, ${lanes}>;` : "");

function printPhase(printer: Printer, phase: Phase, lanes: number): void {
  const { name, kind } = phase, partial = `${name}_partial`;
  if (kind === "argmax") {
    printer.line(`var ${partial}_best = ${identityOf(phase)};`);
    printer.line(`var ${partial}_at = ${phase.count}u;`);
  } else printer.line(`var ${partial} = ${identityOf(phase)};`);
  printer.open(phase.variable);
  printer.line(combine(phase, partial, printer.print(phase.body), phase.count === 1 ? "0u" : phase.variable));
  const body = printer.close();
  const start = lanes === 1 ? "0u" : "lane";
  printer.line(
    `for (var ${phase.variable} = ${start}; ${phase.variable} < ${phase.count}u; ${phase.variable} += ${lanes}u) {\n${body}\n}`,
  );
  if (lanes > 1) printShared(printer, phase, lanes);
  else printer.line(`let ${name} = ${kind === "argmax" ? `i32(${partial}_at)` : partial};`);
  printer.know(name);
}

/** Combines the lanes' partial results in workgroup memory; every lane gets the row's. */
function printShared(printer: Printer, phase: Phase, lanes: number): void {
  const { name, kind } = phase, shared = `shared_${name}`, partial = `${name}_partial`;
  printer.line(
    kind === "argmax"
      ? `${shared}[lane] = ${partial}_best; ${shared}_at[lane] = ${partial}_at;`
      : `${shared}[lane] = ${partial};`,
  );
  const step = kind === "argmax"
    ? `let v = ${shared}[lane + half]; let at = ${shared}_at[lane + half];
      if (v > ${shared}[lane] || (v == ${shared}[lane] && at < ${shared}_at[lane])) { ${shared}[lane] = v; ${shared}_at[lane] = at; }`
    : kind === "max"
    ? `${shared}[lane] = max(${shared}[lane], ${shared}[lane + half]);`
    : `${shared}[lane] = ${shared}[lane] + ${shared}[lane + half];`;
  printer.line("workgroupBarrier();");
  printer.line(
    `for (var half = ${
      lanes / 2
    }u; half > 0u; half >>= 1u) {\n  if (lane < half) {\n      ${step}\n  }\n  workgroupBarrier();\n}`,
  );
  printer.line(`let ${name} = ${kind === "argmax" ? `i32(${shared}_at[0])` : `${shared}[0]`};`);
}

function printOutput(
  printer: Printer,
  group: Lowered,
  shape: Shape,
  innerAxes: readonly { name: string; size: Dim }[],
  inner: number,
  lanes: number,
): void {
  if (innerAxes.length === 0) {
    const store = `store_out(${printer.print(outputIndex(group, shape))}, ${printer.print(group.body)});`;
    printer.line(lanes === 1 ? store : `if (lane == 0u) { ${store} }`);
    return;
  }
  printer.open(...innerAxes.map((axis) => axis.name));
  indexLines("j", innerAxes).forEach((line) => printer.line(line));
  printer.line(`store_out(${printer.print(outputIndex(group, shape))}, ${printer.print(group.body)});`);
  const body = printer.close();
  printer.line(`for (var j = ${lanes === 1 ? "0u" : "lane"}; j < ${inner}u; j += ${lanes}u) {\n${body}\n}`);
}

/** What becomes of a kernel's output `port` before it is stored, with a group spliced in: `value` is what the kernel computed. */
export function generateFinish(
  group: Lowered,
  { shape, dtype }: TensorType,
  port: string,
  access: (node: Node) => string,
): string {
  const printer = new Printer(access);
  const axes = axesOf(group, shape, true);
  const value = wgslValueType(group.anchor!.dtype);
  printer.open(ANCHOR_VALUE, ...axes.map((axis) => axis.name));
  indexLines("i", axes).forEach((line) => printer.line(line));
  printer.line(`return ${printer.print(group.body)};`);
  return `fn finished_${port}(i: u32, ${ANCHOR_VALUE}: ${value}) -> ${
    wgslValueType(dtype)
  } {\n${printer.close()}\n}\n` +
    `fn store_${port}(i: u32, value: ${value}) { write_${port}(i, finished_${port}(i, value)); }`;
}
