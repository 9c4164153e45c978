/**
 * What a program promises: it is captured once and replayed with other sizes, a run is one upload, one pass and one
 * submission, pipelines and memory are shared, and tables larger than a binding work like any other.
 */
import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { embedding } from "../kernels/embedding.ts";
import { linear } from "../kernels/quantised_matmul.ts";
import { seededRandom } from "../kernels/random.ts";
import { randomWeight } from "../kernels/random_product.ts";
import type { Weight, WeightFormat } from "../kernels/weight_format.ts";
import { asGpu, deviceTests, withCaps } from "../tensor/device_testing.ts";
import {
  assign,
  buffer,
  compile,
  constant,
  gather,
  type HostArray,
  input,
  map,
  type Node,
  openDevice,
  reduceLast,
  reshape,
  Storage,
  Sym,
} from "../tensor/mod.ts";

const deviceTest = deviceTests("program");

const add = (x: Node, value: number): Node => map("add", x, constant(value, x.dtype));

deviceTest("it is replayed with other sizes", async (device) => {
  const tokens = new Sym("tokens", 100);
  using program = compile(
    device,
    () => reduceLast(map("mul", input("x", "f32", [tokens, 7]), constant(2, "f32")), "sum"),
  );
  for (const count of [100, 1, 0, 33]) {
    const x = Float32Array.from({ length: count * 7 }, (_, i) => i);
    program.run({ inputs: { x }, sizes: { tokens: count } });
    const want = Array.from({ length: count }, (_, row) => 2 * (7 * 7 * row + 21));
    assertEquals([...await program.read(0, { tokens: count })], want);
  }
});

deviceTest("a run is one upload, one pass and one submission", (device) => {
  const calls: Record<string, number> = {}, { queue } = device.gpu;
  const sums = reshape(reduceLast(map("exp", input("x", "f32", [8, 300])), "sum"), [8]);
  using program = compile(device, () => reduceLast(map("mul", sums, input("scale", "f32", [8])), "max"));
  assert(program.dispatchCount >= 2);
  count(queue, "writeBuffer", calls);
  count(queue, "submit", calls);
  const create = device.gpu.createCommandEncoder.bind(device.gpu);
  device.gpu.createCommandEncoder = (descriptor) => {
    const encoder = create(descriptor);
    count(encoder, "beginComputePass", calls);
    return encoder;
  };
  program.run({ inputs: { x: new Float32Array(2400), scale: new Float32Array(8) } });
  assertEquals(calls, { writeBuffer: 1, beginComputePass: 1, submit: 1 });
});

deviceTest("a run that was encoded ahead takes the values and sizes that it is asked for", async (device) => {
  const tokens = new Sym("tokens", 100), calls: Record<string, number> = { createCommandEncoder: 0 };
  const scale = new Storage("f32", [1], new Float32Array([2]), "scale");
  using program = compile(device, () => map("mul", input("x", "f32", [tokens]), buffer(scale)));
  count(device.gpu, "createCommandEncoder", calls);
  const runs = [[3, 1], [3, 2], [3, 3], [70, 4], [70, 5], [2, 6]] as const, encoded: number[] = [];
  for (const [size, value] of runs) {
    const sizes = { tokens: size }, before = calls.createCommandEncoder!;
    program.run({ inputs: { x: new Float32Array(size).fill(value) }, sizes });
    encoded.push(calls.createCommandEncoder! - before);
    program.encodeAhead(sizes);
    assertEquals([...await program.read(0, sizes)], Array(size).fill(2 * value));
  }
  assertEquals(encoded, [1, 0, 0, 1, 0, 1], "only the first run of each size is encoded when it is asked for");
  scale.release();
  assertThrows(() => program.encodeAhead({ tokens: 2 }), Error, '"scale" was released');
  const values = { inputs: { x: new Float32Array(2) }, sizes: { tokens: 2 } };
  assertThrows(() => program.run(values), Error, '"scale" was released');
});

/** Counts the calls of a method. */
function count<T extends object>(target: T, name: keyof T & string, calls: Record<string, number>): void {
  const method = target[name] as (...args: unknown[]) => unknown;
  const value = (...args: unknown[]): unknown => {
    calls[name] = (calls[name] ?? 0) + 1;
    return method.apply(target, args);
  };
  Object.defineProperty(target, name, { value });
}

deviceTest("on a GPU a dispatch reads no buffer that it writes: products with residuals", async (device) => {
  const gpu = asGpu(device);
  const random = seededRandom(7), layers = [0, 1, 2], size = 12, results: HostArray[] = [];
  const weight = (layer: number): Weight => {
    const tensors = [input(`w${layer}`, "f32", [size, size])];
    return { format: { kind: "dense", dtype: "f32" }, rows: size, columns: size, tensors };
  };
  const values = (length: number): Float32Array => Float32Array.from({ length }, () => random.normal());
  const weights = Object.fromEntries(layers.map((layer) => [`w${layer}`, values(size * size)]));
  const inputs = { x: values(5 * size), ...weights };
  for (const on of [device, gpu]) {
    using program = compile(on, () =>
      layers.reduce<Node>(
        (x, layer) => map("add", x, linear(map("tanh", x), weight(layer))),
        input("x", "f32", [5, size]),
      ));
    program.run({ inputs });
    results.push(await program.read(0));
    assert(on === device || program.dispatchCount >= 3);
    for (const { wgsl } of program.dispatches) assertEquals(wgsl.match(/read_write/g)?.length, 1, wgsl);
  }
  results[0]!.forEach((value, i) => assert(Math.abs(value - results[1]![i]!) < 1e-4 * Math.max(1, Math.abs(value))));
});

deviceTest("pipelines are compiled once a device", (device) => {
  const graph = (name: string): Node => map("tanh", add(input(name, "f32", [50]), 3));
  compile(device, () => graph("x")).dispose();
  const { pipelineCount } = device;
  compile(device, () => graph("x")).dispose();
  compile(device, () => graph("another")).dispose();
  assertEquals(device.pipelineCount, pipelineCount);
});

deviceTest("a chain of results shares few buffers, and dispose gives them back", (device) => {
  const before = device.allocated, length = 20, rows = 4096;
  let x = input("x", "f32", [rows, 4]);
  // Rows at the positions of the greatest elements: each step needs memory for the whole of the one before.
  for (let i = 0; i < length; i++) x = gather(add(x, i), reshape(reduceLast(x, "argmax"), [rows]));
  const program = compile(device, () => x);
  assert(program.dispatchCount >= length);
  const results = program.bytes - rows * 16;
  assert(results <= 5 * rows * 16, `${results} bytes for results of ${rows * 16} bytes each`);
  program.dispose();
  assertEquals(device.allocated, before);
});

Deno.test("program: a device tells of each program once it is compiled", async () => {
  const told: string[] = [];
  const device = await openDevice({ debug: (text) => told.push(text) });
  using program = compile(device, () => add(input("x", "f32", [8]), 1), { label: "one more" });
  program.run({ inputs: { x: new Float32Array(8) } });
  assertEquals(told, [`one more: ${program.bytes} bytes\n${program.explain()}`]);
  device.close();
});

deviceTest("explain has a line a dispatch, profile the time of each", async (device) => {
  const x = input("x", "f32", [512, 64]), inputs = { x: new Float32Array(512 * 64) };
  using program = compile(device, () => reduceLast(reshape(reduceLast(map("exp", x), "max"), [512]), "sum"));
  assertEquals(program.explain().split("\n").length, program.dispatchCount);
  assertStringIncludes(program.explain(), "reduce");
  assertStringIncludes(program.explain({ wgsl: true }), "@compute");
  if (!device.caps.timestamps) return;
  const microseconds = await program.profile({ inputs });
  assertEquals(microseconds.length, program.dispatchCount);
  assert(microseconds.every((time) => time > 0 && time < 1e6), `${microseconds}`);
  assertStringIncludes(program.explain({ microseconds, bytesPerSecond: 1e10 }), " us (");
});

deviceTest("without timestamps profile says so", async (device) => {
  using program = compile(device, () => map("neg", input("x", "f32", [4])));
  await assertRejects(() => program.profile({ inputs: { x: [1] } }), Error, "the device has no timestamps");
}, { disable: ["timestamps"] });

deviceTest("programs of nothing, and outputs that are inputs, are refused", async (device) => {
  assertThrows(() => compile(device, () => []), Error, "Cannot compile a program without outputs");
  assertThrows(() => compile(device, () => input("x", "f32", [4])), Error, 'output is input "x" itself');
  assertThrows(
    () => compile(device, () => map("mul", input("x", "f32", [4, 1]), input("x", "f32", [3]))),
    Error,
    'two inputs are named "x"',
  );
  using program = compile(device, () => map("neg", input("x", "f32", [4])));
  await assertRejects(() => program.read(1), Error, "Cannot read output 1: the program has 1");
});

const PART_BYTES = 1 << 16;

/** Graphs over a table of several parts, whose result is read. */
const TABLES: Readonly<Record<string, { storages: () => Storage[]; graph: (tables: Storage[]) => Node }>> = {
  "a dense matmul": weightCase({ kind: "dense", dtype: "f32" }, 800, 64, productOf),
  "a 16-bit matmul": weightCase({ kind: "dense", dtype: "bf16" }, 1500, 64, productOf),
  "a quantised matmul": weightCase({ kind: "affine", bits: 4, groupSize: 64, scales: "f16" }, 1500, 256, productOf),
  "a dense embedding": weightCase({ kind: "dense", dtype: "f16" }, 1200, 100, rowsOf),
  "a quantised embedding": weightCase({ kind: "affine", bits: 5, groupSize: 32, scales: "f32" }, 1500, 256, rowsOf),
  "a generated gather": {
    storages: () => [numbers(5000, 13)],
    graph: ([table]) => add(gather(buffer(table!), ids(5000)), 1),
  },
  "a generated reduction": {
    storages: () => [numbers(5000, 13)],
    graph: ([table]) => reduceLast(map("sin", buffer(table!)), "sum"),
  },
};

function numbers(rows: number, columns: number): Storage {
  const random = seededRandom(rows);
  return new Storage("f32", [rows, columns], Float32Array.from({ length: rows * columns }, random.normal), "table");
}

/** Rows from all over a table. */
function ids(rows: number): Node {
  const data = Int32Array.from({ length: 50 }, (_, i) => (i * 1237) % rows);
  return buffer(new Storage("i32", [50], data, "ids"));
}

function productOf(weight: Weight): Node {
  const random = seededRandom(7), x = Float32Array.from({ length: 3 * weight.columns }, random.normal);
  return linear(buffer(new Storage("f32", [3, weight.columns], x, "x")), weight);
}

function rowsOf(weight: Weight): Node {
  return embedding(weight, ids(weight.rows));
}

function weightCase(
  format: WeightFormat,
  rows: number,
  columns: number,
  use: (weight: Weight) => Node,
): (typeof TABLES)[string] {
  return {
    storages: () =>
      randomWeight(format, rows, columns, seededRandom(rows)).map(({ dtype, shape, data }) =>
        new Storage(dtype, shape, data, "table")
      ),
    graph: (tables) => use({ format, rows, columns, tensors: tables.map((table) => buffer(table)) }),
  };
}

for (const [name, { storages, graph }] of Object.entries(TABLES)) {
  deviceTest(`a table larger than a binding: ${name}`, async (device) => {
    // The same device again, with bindings so small that a small table has several parts.
    const split = withCaps(device, { maxBinding: PART_BYTES });
    const results: HostArray[] = [];
    for (const on of [device, split]) {
      const tables = storages();
      assert(tables[0]!.bytes(device.caps.f16) > 2 * PART_BYTES, "the table has at least three parts");
      using program = compile(on, () => graph(tables));
      assertEquals(program.dispatchCount, 1);
      assertEquals(/_data_2\b/.test(program.dispatches[0]!.wgsl), on === split);
      program.run();
      results.push(await program.read(0));
      tables.forEach((table) => table.release());
    }
    assertEquals(results[1], results[0]);
  });
}

deviceTest("a result larger than a binding is refused with both numbers", (device) => {
  const small = withCaps(device, { maxBinding: PART_BYTES });
  assertThrows(
    () => compile(small, () => map("neg", buffer(numbers(5000, 13)))),
    Error,
    "260000 bytes exceed the device's binding of 65536",
  );
});

deviceTest("state that is written is no larger than a binding", (device) => {
  const small = withCaps(device, { maxBinding: PART_BYTES });
  const state = small.storage("f32", [50_000], "pool");
  assertThrows(
    () => compile(small, () => assign(buffer(state), add(buffer(state), 1))),
    Error,
    'Cannot write to "pool" of f32 [50000]: 200000 bytes exceed the device\'s binding of 65536. Divide it.',
  );
  state.release();
});
