import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { Sym } from "./dim.ts";
import type { DType } from "./dtype.ts";
import { F32_UNIT, sumError } from "./error_bound.ts";
import { interpret, Interpreter } from "./interpret.ts";
import type { Kernel } from "./kernel.ts";
import {
  assign,
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
  output,
  pad,
  permute,
  reduceLast,
  reshape,
  slice,
} from "./node.ts";
import { Storage } from "./storage.ts";

const count = (rows: number, columns: number): Node => reshape(iota([rows * columns], 0), [rows, columns]);
const valuesOf = (
  node: Node,
  inputs: Record<string, ArrayLike<number>> = {},
): number[] => [...interpret(node, { inputs }).values];

Deno.test("movement", async (t) => {
  const cases: [string, Node, number[]][] = [
    ["permute", permute(count(2, 3), [1, 0]), [0, 3, 1, 4, 2, 5]],
    ["permute of three axes", permute(reshape(iota([6], 0), [1, 2, 3]), [2, 0, 1]), [0, 3, 1, 4, 2, 5]],
    ["expand", expand(reshape(iota([2], 0), [2, 1]), [2, 3]), [0, 0, 0, 1, 1, 1]],
    ["slice", slice(count(3, 3), [1, 0], [3, 2]), [3, 4, 6, 7]],
    ["pad", pad(count(1, 2), [1, 0], [0, 1], 9), [9, 9, 9, 0, 1, 9]],
    ["reshape", reshape(permute(count(2, 2), [1, 0]), [4]), [0, 2, 1, 3]],
    ["iota", iota([2, 2], 1), [0, 1, 0, 1]],
    ["nothing", slice(count(2, 2), [0, 1], [2, 1]), []],
  ];
  for (const [name, node, expected] of cases) {
    await t.step(name, () => assertEquals(valuesOf(node), expected));
  }
});

Deno.test("gather clamps its indices, unsigned ones too", () => {
  const table = count(3, 2);
  assertEquals(valuesOf(gather(table, input("i", "i32", [3])), { i: [2, -5, 7] }), [4, 5, 0, 1, 4, 5]);
  assertEquals(valuesOf(gather(table, input("u", "u32", [1])), { u: [4294967295] }), [4, 5]);
});

Deno.test("integers wrap to 32 bits, and division by zero is what WGSL says", () => {
  const x = input("x", "i32", [3]), y = input("y", "i32", [3]);
  const inputs = { x: [2147483647, -7, 5], y: [1, 2, 0] };
  assertEquals(valuesOf(map("add", x, y), inputs), [-2147483648, -5, 5]);
  assertEquals(valuesOf(map("div", x, y), inputs), [2147483647, -3, 5]);
  assertEquals(valuesOf(map("mod", x, y), inputs), [0, -1, 0]);
  assertEquals(valuesOf(reduceLast(cast(x, "u32"), "max"), inputs), [4294967289]);
});

Deno.test("reductions", () => {
  const x = input("x", "f32", [2, 3]), inputs = { x: [1, 3, 3, -1, -2, -3] };
  assertEquals(valuesOf(reduceLast(x, "sum"), inputs), [7, -6]);
  assertEquals(valuesOf(reduceLast(x, "max"), inputs), [3, -1]);
  assertEquals(valuesOf(reduceLast(x, "argmax"), inputs), [1, 0]);
  assertEquals(valuesOf(reduceLast(input("e", "f32", [2, 0]), "sum"), { e: [] }), [0, 0]);
});

Deno.test("whole numbers stay exact in floats", () => {
  const x = input("x", "f32", [4]);
  const { values, error } = interpret(reduceLast(map("mul", x, x), "sum"), { inputs: { x: [1, 2, 3, 1000] } });
  assertEquals([...values, ...error], [1000014, 0]);
});

Deno.test("bounds grow with rounding", () => {
  const x = input("x", "f32", [1]), third = map("div", x, constant(3, "f32"));
  const { values: [value], error: [error] } = interpret(third, { inputs: { x: [1] } });
  assertAlmostEquals(value!, 1 / 3, 1e-15);
  assert(error! >= 2.5 * 2 ** -25 && error! < 10 * F32_UNIT);
  const half = interpret(cast(x, "f16"), { inputs: { x: [0.1] } }).error[0]!;
  assert(half > 0 && half < 0.1 * 2 ** -10);
  const bound = sumError(new Float64Array(1000).fill(0.1), new Float64Array(1000), 100, "f32");
  assert(bound >= 999 * F32_UNIT * 100 && bound < 1100 * F32_UNIT * 100);
});

Deno.test("what jumps is exact where no bound reaches the jump, and unsure elsewhere", () => {
  const x = input("x", "f32", [2]), third = map("div", x, constant(3, "f32"));
  const inputs = { x: [1, 3] };
  const errorOf = (node: Node): number[] => [...interpret(node, { inputs }).error];
  assertEquals(errorOf(map("floor", third)), [0, Infinity]);
  assertEquals(errorOf(map("lt", third, constant(1, "f32"))), [0, Infinity]);
  assertEquals(errorOf(cast(third, "i32")), [0, Infinity]);
  assertEquals(errorOf(reduceLast(third, "argmax")), [0]);
  assertEquals(errorOf(cast(cast(constant(3e9, "f32"), "i32"), "f32")), [Infinity]);
});

Deno.test("overflow of f16 and division by zero are unsure", () => {
  const errorOf = (node: Node): number => interpret(node).error[0]!;
  assertEquals(errorOf(cast(constant(70000, "f32"), "f16")), Infinity);
  assertEquals(errorOf(map("exp", constant(100, "f32"))), Infinity);
  assertEquals(errorOf(map("div", constant(1, "f32"), constant(0, "f32"))), Infinity);
});

Deno.test("assign shows in the state once the run is committed", () => {
  const storage = new Storage("f32", [2], Float32Array.of(1, 2), "s");
  const before = buffer(storage);
  const after = assign(before, map("add", before, constant(1, "f32")));
  const state = new Map();
  for (const expected of [[2, 3], [3, 4]]) {
    const run = new Interpreter({ state });
    assertEquals([...run.evaluate(map("mul", after, constant(1, "f32"))).values], expected);
    run.commit();
    assertEquals([...state.get(storage).values], expected);
  }
});

Deno.test("kernels are their references, with all outputs and updates", () => {
  const split: Kernel<{ at: number }> = {
    name: "split",
    infer: ([x], { at }) => [{ dtype: x!.dtype, shape: [at] }, x!],
    wgsl: () => ({ inputs: [], outputs: [], workgroupSize: [1, 1, 1], main: "" }),
    grid: () => [1, 1, 1],
    reference: ({ params }, [x]) => [Float64Array.from(x!).slice(0, params.at), Float64Array.from(x!, (v) => v * 2)],
    cost: () => ({ flops: 0, bytes: 0 }),
    updates: () => [-1, 0],
  };
  const make = (dtype: DType): { storage: Storage; node: Node } => {
    const storage = new Storage(
      dtype,
      [3],
      dtype === "i32" ? Int32Array.of(1, 2, 3) : Float32Array.of(1, 2, 3),
      "state",
    );
    return { storage, node: kernelNode(split, [buffer(storage)], { at: 1 }) };
  };
  const { storage, node } = make("i32"), state = new Map();
  assertEquals(interpret(node), { values: Float64Array.of(1), error: Float64Array.of(0), shape: [1] });
  assertEquals([...interpret(output(node, 1), { state }).values], [2, 4, 6]);
  assertEquals([...state.get(storage).values], [2, 4, 6]);
  assertEquals(interpret(make("f32").node).error[0], Infinity);
});

Deno.test("symbols take the run's values; missing data is named", () => {
  const x = input("x", "f32", [new Sym("n", 8), 2]), sum = reduceLast(x, "sum");
  const result = interpret(sum, { inputs: { x: [1, 2, 3, 4] }, sizes: { n: 2 } });
  assertEquals([...result.values, ...result.shape], [3, 7, 2, 1]);
  assertThrows(() => interpret(sum, { sizes: { n: 2 } }), Error, 'Cannot interpret input "x": no values given');
  assertThrows(() => interpret(sum, { inputs: { x: [1] }, sizes: { n: 2 } }), Error, "1 values given");
  assertThrows(() => interpret(sum, { inputs: { x: [1] } }), Error, 'no value for size "n"');
});
