import { assert, assertEquals, assertStrictEquals } from "@std/assert";
import { type Expr, ExprBuilder } from "./expr.ts";
import { evaluateScalar } from "./scalar.ts";

/** The value of an index expression. */
function evaluate(expr: Expr, variables: Readonly<Record<string, number>>): number {
  if (expr.kind === "literal") return expr.value;
  if (expr.kind === "variable") return variables[expr.name]!;
  const [a, b] = expr.args.map((arg) => evaluate(arg, variables));
  if (expr.kind !== "apply") throw new Error(`No index: ${expr.kind}`);
  return evaluateScalar(expr.fn, expr.operand, a!, b);
}

Deno.test("equal expressions are one object", () => {
  const build = new ExprBuilder(), i = build.variable("i", "u32", 9);
  assertStrictEquals(build.add(build.mul(i, 3), build.literal(1)), build.add(build.mul(i, 3), build.literal(1)));
  assert(build.variable("i", "u32", 9) !== build.variable("j", "u32", 9));
  assert(build.literal(0, "f32") !== build.literal(-0, "f32"));
});

Deno.test("index arithmetic is simplified while it is built", () => {
  const build = new ExprBuilder(), i = build.variable("i", "u32", 9), j = build.variable("j", "u32", 6);
  const flat = build.flatten([i, j], [10, 7]);
  assertStrictEquals(build.div(flat, 7), i);
  assertStrictEquals(build.mod(flat, 7), j);
  assertEquals(build.unflatten(flat, [10, 7]), [i, j]);
  assertStrictEquals(build.mod(j, 7), j);
  assertEquals(build.div(j, 7), build.literal(0));
  assertStrictEquals(build.add(build.literal(0), i), i);
  assertStrictEquals(build.mul(i, 1), i);
  assertEquals(build.mul(i, 0), build.literal(0));
});

Deno.test("a position survives any reshape", () => {
  const build = new ExprBuilder();
  const shapes = [[60], [4, 15], [3, 4, 5], [1, 60, 1], [2, 5, 2, 3], [5, 12]];
  for (const from of shapes) {
    const name = (axis: number): string => `v${from.join("x")}_${axis}`;
    const index = from.map((size, axis) => build.variable(name(axis), "u32", size - 1));
    const flat = build.flatten(index, from);
    for (const to of shapes) {
      const back = build.flatten(build.unflatten(flat, to), to);
      for (let position = 0; position < 60; position++) {
        let rest = position;
        const variables: Record<string, number> = {};
        for (let axis = from.length - 1; axis >= 0; axis--) {
          variables[name(axis)] = rest % from[axis]!;
          rest = Math.floor(rest / from[axis]!);
        }
        assertEquals(evaluate(back, variables), position, `[${from}] as [${to}]`);
      }
    }
  }
});

Deno.test("constants are computed, and stay within what a shader can hold", () => {
  const build = new ExprBuilder(), f = (value: number): Expr => build.literal(value, "f32");
  const i = (value: number): Expr => build.literal(value, "i32");
  const values: [Expr, number][] = [
    [build.apply("add", "f32", [f(1.5), f(2)]), 3.5],
    [build.apply("exp", "f32", [f(1000)]), 3.4028234663852886e38],
    [build.apply("log", "f32", [f(-1)]), 0],
    [build.apply("add", "i32", [i(2 ** 31 - 1), i(1)]), -(2 ** 31)],
    [build.apply("div", "i32", [i(7), i(0)]), 7],
    [build.apply("lt", "bool", [f(1), f(2)]), 1],
    [build.cast(f(-1.7), "i32"), -1],
    [build.cast(f(-1.7), "u32"), 0],
    [build.cast(f(1e20), "i32"), 2 ** 31 - 1],
    [build.cast(i(-1), "u32"), 2 ** 32 - 1],
    [build.cast(f(0.1), "f16"), 0.0999755859375],
  ];
  for (const [expr, value] of values) {
    assertEquals(expr.kind, "literal");
    assertEquals(evaluate(expr, {}), value);
  }
});
