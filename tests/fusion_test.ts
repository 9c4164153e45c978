/**
 * Shows that fusion happens: how many dispatches a computation takes, with each rule and without it; and that it keeps the
 * order of reads and writes of state.
 */
import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { randomDecoder } from "../bench/random_model.ts";
import { shapeConfig } from "../bench/shapes.ts";
import { fastLinear } from "../kernels/int8_matmul.ts";
import { weightOf } from "../kernels/int8_matmul_cases.ts";
import { matmul } from "../kernels/matmul.ts";
import { rmsNorm } from "../kernels/norm.ts";
import { quantise32 } from "../kernels/quantise.ts";
import { batchInputs } from "../model/batch.ts";
import { forward } from "../model/decoder.ts";
import { KvCache } from "../model/kv_cache.ts";
import { asGpu, deviceTests } from "../tensor/device_testing.ts";
import {
  assign,
  buffer,
  compile,
  type CompileOptions,
  constant,
  type Device,
  gather,
  iota,
  kernelNode,
  map,
  type Node,
  RULES,
  slice,
  Storage,
  Tensor,
} from "../tensor/mod.ts";

type Build = () => Node | readonly Node[];

const deviceTest = deviceTests("fusion");

function floats(shape: readonly number[], value: (i: number) => number = (i) => Math.sin(i)): Storage {
  const count = shape.reduce((a, b) => a * b, 1);
  return new Storage("f32", shape, Float32Array.from({ length: count }, (_, i) => value(i)), "values");
}

const leaf = (...shape: number[]): Tensor => new Tensor(buffer(floats(shape)));

function dispatches(device: Device, build: Build, options: CompileOptions = {}): number {
  using program = compile(device, build, options);
  return program.dispatchCount;
}

/** Runs a graph and reads every output. */
async function evaluate(device: Device, build: Build, options: CompileOptions = {}): Promise<number[][]> {
  let outputs = 0;
  using program = compile(device, () => {
    const built = build(), list = Array.isArray(built) ? built as Node[] : [built as Node];
    outputs = list.length;
    return list;
  }, options);
  program.run();
  const values: number[][] = [];
  for (let i = 0; i < outputs; i++) values.push([...await program.read(i)]);
  return values;
}

deviceTest("softmax is one dispatch", (device) => {
  assertEquals(dispatches(device, () => leaf(3, 70).softmax().node), 1);
});

deviceTest("RMSNorm in elementary operations is one dispatch", async (device) => {
  const x = leaf(4, 96), weight = leaf(96);
  const norm = (): Node => x.mul(x.mul(x).mean(-1, true).add(1e-6).rsqrt()).mul(weight).node;
  assertEquals(dispatches(device, norm), 1);
  const [got] = await evaluate(device, norm);
  const row = Array.from({ length: 96 }, (_, i) => Math.fround(Math.sin(96 + i)));
  const scale = 1 / Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / 96 + 1e-6);
  row.forEach((v, i) => assertAlmostEquals(got![96 + i]!, v * scale * Math.fround(Math.sin(i)), 1e-5));
});

deviceTest("SwiGLU's gate is one dispatch", (device) => {
  const gate = leaf(2, 50), up = leaf(2, 50);
  assertEquals(dispatches(device, () => gate.silu().mul(up).node), 1);
});

/** x W^T of a dense weight [rows, columns]. */
const product = (x: Tensor, rows: number, columns: number): Node =>
  kernelNode(matmul, [x.node, leaf(rows, columns).node], { format: { kind: "dense", dtype: "f32" } });

/** Dispatches of a graph without a rule and with it; on both sides stand those `beside` it. */
interface RuleCase {
  readonly build: () => Node;
  readonly before: number;
  readonly after: number;
  readonly beside?: readonly string[];
}

/** What each rule saves, by its name. */
const RULE_CASES: Readonly<Record<string, RuleCase>> = {
  siluGate: {
    build: () => {
      const gateUp = product(leaf(3, 32), 80, 32);
      const half = (start: number): Node => slice(gateUp, [0, start], [3, start + 40]);
      return map("mul", map("silu", half(0)), half(40));
    },
    before: 2,
    after: 1,
  },
  absorb: {
    build: () => quantise32(rmsNorm(leaf(3, 64).node, leaf(64).node, 1e-6)).scales,
    before: 2,
    after: 1,
  },
  addend: {
    build: () => {
      // Integers up to 127 in every block of 32, to which nothing is added: no rounding changes a code.
      const sum = map(
        "add",
        fastLinear(buffer(floats([40, 64], () => 0)), weightOf(64, 64, 1).weight),
        integers(40, 64),
      );
      return fastLinear(rmsNorm(sum, buffer(floats([64], () => 1)), 1e-6), weightOf(10, 64, 2).weight);
    },
    before: 4,
    after: 3,
    beside: ["absorb"],
  },
};

/** Whole numbers, the greatest of each block of 32 the same. */
function integers(...shape: number[]): Node {
  return buffer(floats(shape, (i) => i % 32 === 0 ? 127 : (37 * i) % 101 - 50));
}

for (const rule of RULES) {
  deviceTest(`rule ${rule.name} saves dispatches and changes no value`, async (own) => {
    const { build, before, after, beside = [] } = RULE_CASES[rule.name]!, device = asGpu(own);
    const graph = build(), without = RULES.filter(({ name }) => beside.includes(name)), rules = [...without, rule];
    assertEquals(dispatches(device, () => graph, { rules: without }), before);
    assertEquals(dispatches(device, () => graph, { rules }), after);
    const [plain] = await evaluate(device, () => graph, { rules: without });
    const [fused] = await evaluate(device, () => graph, { rules });
    plain!.forEach((value, i) => assertAlmostEquals(fused![i]!, value, 1e-5));
  });
}

deviceTest("bias and residual are stored by the matmul", async (device) => {
  const x = leaf(2, 32), bias = leaf(24), residual = leaf(2, 24), weighted = product(x, 24, 32);
  const build = (): Node => new Tensor(weighted).add(bias).add(residual).node;
  assertEquals(dispatches(device, build), 1);
  const [got] = await evaluate(device, build), [plain] = await evaluate(device, () => weighted);
  plain!.forEach((value, i) => assertAlmostEquals(got![i]!, value + Math.sin(i % 24) + Math.sin(i), 1e-6));
});

deviceTest("a decoder layer's decode step is at most 8 dispatches", (device) => {
  const shape = { ...shapeConfig("stories"), hiddenSize: 128, intermediateSize: 256, numHeads: 2, vocabSize: 64 };
  const counts = [1, 2, 3].map((numLayers) => {
    const config = { ...shape, numKvHeads: 1, numLayers };
    const weights = randomDecoder(device, config, 32);
    const cache = new KvCache(device, config, { numBlocks: 2, blockSize: 16, dtype: "f16" });
    const batch = batchInputs({ maxTokens: 1, maxSequences: 1, maxBlocks: 2, maxLogitRows: 1 });
    const count = dispatches(device, () => forward(weights, config, batch, cache));
    cache.release();
    weights.release();
    return count;
  });
  const [one, two, three] = counts as [number, number, number];
  assertEquals(three - two, two - one);
  assert(two - one <= 8, `a layer takes ${two - one} dispatches`);
});

deviceTest("what is read from an assign is the new version", async (device) => {
  const state = floats([4], (i) => i);
  const build = (): Node[] => {
    const next = assign(buffer(state), map("add", buffer(state), constant(10, "f32")));
    return [map("mul", next, constant(2, "f32")), next];
  };
  assertEquals(await evaluate(device, build), [[20, 22, 24, 26], [10, 11, 12, 13]]);
  assertEquals([...await device.readStorage(state)], [10, 11, 12, 13]);
});

deviceTest("reads traced before a write see the old values", async (device) => {
  const state = floats([4], (i) => i);
  const build = (): Node[] => {
    const before = map("mul", buffer(state), constant(2, "f32"));
    const next = assign(buffer(state), map("add", buffer(state), constant(10, "f32")));
    return [next, map("add", before, next)];
  };
  assertEquals(await evaluate(device, build), [[10, 11, 12, 13], [10, 13, 16, 19]]);
});

deviceTest("reading an old version after the write throws while tracing", (device) => {
  const state = floats([4]);
  const old = buffer(state);
  assign(old, constantOf(4, 1));
  assertThrows(() => buffer(state, 0), Error, 'Cannot read version 0 of "values": a later assign made version 1');
  assertThrows(() => assign(old, constantOf(4, 2)), Error, 'Cannot write version 0 of "values"');
  const other = floats([4]), stale = buffer(other);
  assertThrows(
    () =>
      compile(device, () => {
        const next = assign(stale, constantOf(4, 3));
        return [next, map("exp", stale)];
      }),
    Error,
    'Cannot order the program: "values" is read after it was overwritten',
  );
});

/** The same number in every element. */
const constantOf = (size: number, value: number): Node => new Tensor(constant(value, "f32")).expand([size]).node;

deviceTest("an update in place that reads other elements stays right", async (device) => {
  const size = 5000, state = floats([size], (i) => i);
  const build = (): Node => {
    const backwards = map("sub", constant(size - 1, "i32"), iota([size], 0));
    return assign(buffer(state), gather(buffer(state), backwards));
  };
  using program = compile(device, build);
  for (const first of [size - 1, 0]) {
    program.run();
    const values = await device.readStorage(state);
    assertEquals(values[0], first);
    assert(values.every((value, i) => value === Math.abs(first - i)), "every element is there, in reverse");
  }
});

deviceTest("an output that the same program overwrites is refused", (device) => {
  const state = floats([4]), old = buffer(state);
  const build = (): Node[] => [new Tensor(old).reshape([2, 2]).node, assign(old, constantOf(4, 3))];
  assertThrows(() => compile(device, build), Error, 'version 0 of "values", which the program overwrites');
});
