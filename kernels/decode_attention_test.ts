/** Split attention gives what paged attention gives, bit for bit, in every layout and however tiles are dealt. */
import { assert, assertEquals } from "@std/assert";
import { type Device, openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";
import { type Dim, maxOf, Sym } from "../tensor/dim.ts";
import type { HostArray } from "../tensor/dtype.ts";
import { buffer, constant, input, kernelNode, map, output } from "../tensor/node.ts";
import { compile, type CompileOptions } from "../tensor/program.ts";
import { type KernelData, runKernel } from "../tensor/run_kernel.ts";
import { Storage } from "../tensor/storage.ts";
import { pagedAttentionKernel } from "./attention.ts";
import { attend } from "./attend.ts";
import { attentionCall, type AttentionSetting } from "./attention_cases.ts";
import { TILE } from "./attention_layout.ts";
import {
  attentionMergeKernel,
  decodeAttention,
  type DecodeAttentionParams,
  type MergeParams,
} from "./decode_attention.ts";
import { quantise32, quantise32Kernel } from "./quantise.ts";
import { ropeAndWriteKv } from "./kv_write.ts";
import { seededRandom } from "./random.ts";
import type { CaseCall } from "./spec.ts";

async function split(
  device: Device,
  call: CaseCall<DecodeAttentionParams>,
  layout: Partial<DecodeAttentionParams> = {},
  options: CompileOptions = {},
): Promise<HostArray> {
  const storages = call.inputs.map((i, n) => new Storage(i.dtype, i.shape, i.data.slice() as HostArray, `input ${n}`));
  const program = compile(device, () => {
    const [q, keys, values, queryStart, contextLens, blockTables] = storages.map((storage) => buffer(storage));
    const batch = { queryStart: queryStart!, contextLens: contextLens!, blockTables: blockTables! };
    return decodeAttention(q!, keys!, values!, batch, { ...call.params, ...layout });
  }, options);
  program.run();
  const attended = await program.read(0);
  program.dispose();
  storages.forEach((storage) => storage.release());
  return attended;
}

/** Codes and scales of split attention, merged and quantised in one dispatch or in two. */
async function quantised(device: Device, call: CaseCall<DecodeAttentionParams>, joint: boolean): Promise<HostArray[]> {
  const storages = call.inputs.map((i, n) => new Storage(i.dtype, i.shape, i.data.slice() as HostArray, `input ${n}`));
  const program = compile(device, () => {
    const [q, keys, values, queryStart, contextLens, blockTables] = storages.map((storage) => buffer(storage));
    const batch = { queryStart: queryStart!, contextLens: contextLens!, blockTables: blockTables! };
    const { codes, scales } = quantise32(decodeAttention(q!, keys!, values!, batch, call.params));
    return [codes, scales];
  }, joint ? {} : { rules: [] });
  assertEquals(program.dispatchCount, joint ? 2 : 3);
  program.run();
  const results = [await program.read(0), await program.read(1)];
  program.dispose();
  storages.forEach((storage) => storage.release());
  return results;
}

/** Position of the first difference, which says more than two arrays side by side, or -1. */
function differs(got: HostArray, expected: HostArray): number {
  if (got.length !== expected.length) return Math.min(got.length, expected.length);
  for (const [i, value] of expected.entries()) if (got[i] !== value) return i;
  return -1;
}

const mixed: AttentionSetting = {
  sequences: [[5, 300], [1, 131], [0, 7], [40, 40], [1, 1], [3, 260], [1, 1200]],
  kvHeads: 2,
  group: 7,
  headDim: 64,
  blockSize: 16,
  pool: "f16",
  padding: 3,
};

/** Factor on scores of merges. */
const SCALE = 0.125;

const settings: AttentionSetting[] = [
  mixed,
  { ...mixed, sequences: [[1, 700]], padding: 0 },
  { ...mixed, sequences: [[1, 128], [1, 9000]], group: 1, headDim: 16 },
  { ...mixed, sequences: [[1, 200], [1, 129]], headDim: 128, kvHeads: 1 },
  { ...mixed, sequences: [[1, 200], [2, 129]], headDim: 256, group: 9, kvHeads: 1, blockSize: 1 },
  { ...mixed, sequences: [[1, 200], [2, 129]], headDim: 20, group: 3 },
  { ...mixed, sequences: [[1, 300], [1, 77]], headDim: 40, group: 4, pool: "f32", blockSize: 32 },
  { ...mixed, sequences: [[1, 300]], headDim: 128, group: 2, pool: "f32" },
];

for (const disable of [[], ["subgroups", "f16"]] as const) {
  Deno.test(`split attention equals paged attention bit for bit without [${disable}]`, async () => {
    const device = await openDevice({ disable });
    for (const [i, setting] of settings.entries()) {
      const call = attentionCall(setting, seededRandom(i));
      const [expected] = await runKernel(device, pagedAttentionKernel, call);
      assertEquals(differs(await split(device, call), expected!), -1, `setting ${i}`);
    }
    device.close();
  });
}

Deno.test("the layout of split attention changes no result", async () => {
  const device = await openDevice();
  const call = attentionCall(mixed, seededRandom(3));
  const [expected] = await runKernel(device, pagedAttentionKernel, call);
  for (
    const layout of [{ lanes: 256, headsPerShare: 3, width: 2 }, { lanes: 128, headsPerShare: 2, width: 4 }] as const
  ) {
    assertEquals(differs(await split(device, call, layout), expected!), -1, JSON.stringify(layout));
  }
  device.close();
});

Deno.test("programs for joining keep the order of summation but in fast precision", async () => {
  const cpu = await openDevice(), call = attentionCall({ ...mixed, sequences: [[1, 1200], [1, 90]] }, seededRandom(4));
  const device = asGpu(cpu);
  const [expected] = await runKernel(cpu, pagedAttentionKernel, call);
  assertEquals(differs(await split(device, call, {}, { join: true }), expected!), -1);
  assert(differs(await split(device, call, { fast: true }, { join: true }), expected!) >= 0, "the same order");
  cpu.close();
});

Deno.test("attention merged into codes is attention quantised, bit for bit", async () => {
  for (const disable of [[], ["subgroups"]] as const) {
    const device = await openDevice({ disable });
    for (const setting of [mixed, { ...mixed, headDim: 128, kvHeads: 1 }]) {
      const call = attentionCall(setting, seededRandom(7));
      const params = { blockSize: call.params.blockSize, scale: call.params.scale };
      const joint = await quantised(device, { ...call, params }, true);
      assertEquals(joint, await quantised(device, { ...call, params }, false));
    }
    device.close();
  }
});

/** Partial results of random tiles of a query of each context: a tile's weights come to up to 128, values are normal. */
function randomPartials(contexts: readonly number[], headDim: number): KernelData<MergeParams>["inputs"] {
  const random = seededRandom(headDim), rows = contexts.length, tiles = Math.ceil(Math.max(...contexts) / TILE);
  const heads = 3, places = rows * tiles * heads;
  const stats = Float32Array.from(
    { length: 2 * places },
    (_, i) => i % 2 === 0 ? random.normal() : 1 + 127 * random.uniform(),
  );
  const sums = Float32Array.from(
    { length: places * headDim },
    (_, i) => stats[2 * Math.floor(i / headDim) + 1]! * random.normal(),
  );
  return [
    { dtype: "f32", shape: [rows, tiles, heads, headDim], data: sums },
    { dtype: "f32", shape: [rows, tiles, heads, 2], data: stats },
    { dtype: "i32", shape: [rows + 1], data: Int32Array.from({ length: rows + 1 }, (_, i) => i) },
    { dtype: "i32", shape: [rows], data: Int32Array.from(contexts) },
  ];
}

/** Their merge as programs for joining have it in fast precision: values, the same times two, or codes and scales. */
async function mergedForJoining(
  device: Device,
  inputs: KernelData<MergeParams>["inputs"],
  what: "values" | "doubled" | "codes",
): Promise<HostArray[]> {
  const params = { scale: SCALE, quantise: what === "codes", fast: true };
  const storages = inputs.map(({ dtype, shape, data }, n) =>
    new Storage(dtype, shape, data.slice() as HostArray, `${n}`)
  );
  using program = compile(device, () => {
    const merged = kernelNode(attentionMergeKernel, storages.map((storage) => buffer(storage)), params);
    if (what === "doubled") return map("mul", merged, constant(2, "f32"));
    return what === "codes" ? [merged, output(merged, 1)] : merged;
  }, { join: true });
  assertEquals(program.dispatchCount, 1);
  program.run();
  const results = await Promise.all((what === "codes" ? [0, 1] : [0]).map((i) => program.read(i)));
  storages.forEach((storage) => storage.release());
  return results;
}

Deno.test("many tiles are merged by the lanes of joined dispatches", async () => {
  const cpu = await openDevice(), params = { scale: SCALE };
  for (const change of [{}, { subgroups: false, subgroupSize: 1 }]) {
    const device = asGpu(cpu, change);
    // Up to eight tiles have another form; 9,000 positions are more rounds of reading, 40,000 more tiles than lanes.
    for (const contexts of [[1100], [1, 0, 9000], [300, 40000]]) {
      for (const headDim of [32, 64, 80, 128, 256]) {
        const inputs = randomPartials(contexts, headDim), data = inputs.map((each) => each.data);
        const [values] = await mergedForJoining(device, inputs, "values");
        const outputs = attentionMergeKernel.infer(inputs, params);
        const [expected] = attentionMergeKernel.reference({ params, inputs, outputs }, data);
        // As in the table of cases: exponentials err by 2^-21 and their argument's rounding, results are means of values below 6.
        const far = expected!.findIndex((value, i) => !(Math.abs(value - values![i]!) <= 6 * (8 + 32) * 2 ** -24));
        assertEquals(far, -1, `contexts of ${contexts}, heads of ${headDim}`);
        assertEquals(await mergedForJoining(device, inputs, "doubled"), [values!.map((value) => 2 * value)]);
        if (headDim % 32 !== 0) continue;
        const x = { dtype: "f32", shape: [values!.length / headDim, headDim], data: values! } as const;
        const codes = await runKernel(device, quantise32Kernel, { params: null, inputs: [x] });
        assertEquals(await mergedForJoining(device, inputs, "codes"), codes);
      }
    }
  }
  cpu.close();
});

/** One token of each sequence, rotated, written and attended to: in two dispatches or in three. */
async function step(device: Device, seed: number, options: CompileOptions): Promise<Record<string, HostArray>> {
  const random = seededRandom(seed), [kvHeads, group, headDim] = [random.integer(1, 2), random.integer(1, 7), 64];
  const blockSize = 16,
    maxBlocks = 45,
    count = seed % 2 === 0 ? 1 : random.integer(2, 4),
    slots = 4 * maxBlocks * blockSize;
  const heads = kvHeads * group, size = count === 1 ? 1 : new Sym("tokens", 5);
  const floats = (length: number) => Float32Array.from({ length }, () => random.normal());
  const pool = (label: string): Storage =>
    new Storage("f16", [slots, kvHeads, headDim], floats(slots * kvHeads * headDim), label);
  const table = new Storage("f32", [800, headDim / 2, 2], floats(800 * headDim), "table");
  const keys = pool("keys"),
    values = pool("values"),
    inputOf = (name: string, shape: Dim[]) => input(name, "i32", shape);
  const program = compile(device, () => {
    const qkv = input("qkv", "f32", [size, (heads + 2 * kvHeads) * headDim]);
    const rotated = ropeAndWriteKv(
      {
        ...{ qkv, positions: inputOf("positions", [size]), slotMapping: inputOf("slotMapping", [size]) },
        ...{ keys: buffer(keys), values: buffer(values), table: buffer(table) },
      },
      { heads, kvHeads, headDim, rotaryDim: headDim, traditional: false },
    );
    const batch = {
      queryStart: inputOf("queryStart", [maxOf(size) + 1]),
      contextLens: inputOf("contextLens", [size]),
      blockTables: inputOf("blockTables", [size, maxBlocks]),
    };
    return attend(rotated.q, rotated.keys, rotated.values, batch, { blockSize, scale: 0.125 });
  }, options);
  const blockTables = Array.from({ length: count * maxBlocks }, (_, i) => (i * 7 + 3) % (count * maxBlocks));
  const contextLens = Array.from({ length: count }, () => random.integer(1, 700));
  const positions = contextLens.map((context) => context - 1);
  const slotMapping = positions.map((position, row) =>
    random.uniform() < 0.2
      ? -1
      : blockTables[row * maxBlocks + Math.floor(position / blockSize)]! * blockSize + position % blockSize
  );
  const queryStart = Array.from({ length: maxOf(size) + 1 }, (_, i) => Math.min(i, count));
  const qkv = floats(count * (heads + 2 * kvHeads) * headDim), sizes = { tokens: count };
  program.run({ inputs: { qkv, positions, slotMapping, queryStart, contextLens, blockTables }, sizes });
  const attended = await program.read(0, sizes), dispatches = Int32Array.of(program.dispatchCount);
  program.dispose();
  const result = {
    ...{ attended, dispatches },
    ...{ keys: await device.readStorage(keys), values: await device.readStorage(values) },
  };
  [keys, values, table].forEach((storage) => storage.release());
  return result;
}

Deno.test("tokens rotated and written by attention itself change no bit", async () => {
  for (const disable of [[], ["subgroups"]] as const) {
    const cpu = await openDevice({ disable });
    const device = asGpu(cpu);
    for (let seed = 1; seed <= (disable.length > 0 ? 1 : 4); seed++) {
      const { dispatches, ...joint } = await step(device, seed, {});
      const { dispatches: apart, ...plain } = await step(cpu, seed, { rules: [] });
      assertEquals([...dispatches!, ...apart!], [2, 2], "joined and split; apart and whole");
      assertEquals(joint, plain, `seed ${seed}`);
    }
    cpu.close();
  }
});
