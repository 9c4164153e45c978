/** Attention of many sequences, a token each: what the exact path gives but for rounding, in floats and codes. */
import { assert, assertEquals } from "@std/assert";
import { type Device, openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";
import { Sym } from "../tensor/dim.ts";
import type { HostArray } from "../tensor/dtype.ts";
import { buffer, input } from "../tensor/node.ts";
import { compile } from "../tensor/program.ts";
import { Storage } from "../tensor/storage.ts";
import { attend } from "./attend.ts";
import { ropeAndWriteKv } from "./kv_write.ts";
import { quantise32 } from "./quantise.ts";
import { seededRandom } from "./random.ts";

interface Setting {
  readonly kvHeads: number;
  readonly group: number;
  readonly headDim: number;
  /** Sequences of the step, and most of them, by which the form is chosen. */
  readonly count: number;
  readonly most: number;
  readonly seed: number;
}

const blockSize = 16, maxBlocks = 45;

type Inputs = Readonly<Record<string, ArrayLike<number>>>;

/** The inputs of sequence `row` alone. */
function alone(inputs: Inputs, count: number, row: number): Inputs {
  const starts = Array.from(inputs.queryStart!, (_, i) => Math.min(i, 1));
  const own = (values: ArrayLike<number>): number[] => {
    const each = values.length / count;
    return Array.from({ length: each }, (_, i) => values[row * each + i]!);
  };
  return {
    ...Object.fromEntries(Object.entries(inputs).map(([name, values]) => [name, own(values)])),
    queryStart: starts,
  };
}

/** Pools, table and inputs of a step; every fourth token is not to be kept. */
function stepOf({ kvHeads, group, headDim, count, most, seed }: Setting) {
  const random = seededRandom(seed), heads = kvHeads * group, slots = count * maxBlocks * blockSize;
  const floats = (length: number) => Float32Array.from({ length }, () => random.normal());
  const pool = (label: string) =>
    new Storage("f16", [slots, kvHeads, headDim], floats(slots * kvHeads * headDim), label);
  const contextLens = Array.from({ length: count }, () => random.integer(1, maxBlocks * blockSize));
  const blockTables = Array.from({ length: count * maxBlocks }, (_, i) => (i * 7 + 3) % (count * maxBlocks));
  const positions = contextLens.map((context) => context - 1);
  const slotMapping = positions.map((position, row) => {
    const block = blockTables[row * maxBlocks + Math.floor(position / blockSize)]!;
    return row % 4 === 3 ? -1 : block * blockSize + position % blockSize;
  });
  const queryStart = Array.from({ length: most + 1 }, (_, i) => Math.min(i, count));
  const qkv = floats(count * (heads + 2 * kvHeads) * headDim);
  return {
    storages: {
      keys: pool("keys"),
      values: pool("values"),
      table: new Storage("f32", [800, headDim / 2, 2], floats(800 * headDim), "table"),
    },
    inputs: { qkv, positions, slotMapping, queryStart, contextLens, blockTables },
    params: { heads, kvHeads, headDim, rotaryDim: headDim, traditional: false },
  };
}

/** Attended values of a step or of one of its sequences, or their codes and scales, and the pools after it. */
async function run(
  device: Device,
  setting: Setting,
  { fast = true, quantise = false, row }: { fast?: boolean; quantise?: boolean; row?: number } = {},
): Promise<HostArray[]> {
  const { storages: { keys, values, table }, inputs, params } = stepOf(setting), size = new Sym("tokens", setting.most);
  const { heads, kvHeads, headDim } = params,
    whole = (name: string, shape: (number | Sym)[]) => input(name, "i32", shape);
  using program = compile(device, () => {
    const rotated = ropeAndWriteKv({
      ...{ qkv: input("qkv", "f32", [size, (heads + 2 * kvHeads) * headDim]), table: buffer(table) },
      ...{ positions: whole("positions", [size]), slotMapping: whole("slotMapping", [size]) },
      ...{ keys: buffer(keys), values: buffer(values) },
    }, params);
    const batch = {
      queryStart: whole("queryStart", [setting.most + 1]),
      contextLens: whole("contextLens", [size]),
      blockTables: whole("blockTables", [size, maxBlocks]),
    };
    const attended = attend(rotated.q, rotated.keys, rotated.values, batch, { blockSize, scale: 0.125, fast });
    if (!quantise) return attended;
    const { codes, scales } = quantise32(attended);
    return [codes, scales];
  });
  if (fast) assert(program.dispatches.some(({ name }) => name.startsWith("batch_attention")), program.explain());
  const sizes = { tokens: row === undefined ? setting.count : 1 };
  program.run({ inputs: row === undefined ? inputs : alone(inputs, setting.count, row), sizes });
  const results = [await program.read(0, sizes), ...(quantise ? [await program.read(1, sizes)] : [])];
  results.push(await device.readStorage(keys), await device.readStorage(values));
  [keys, values, table].forEach((storage) => storage.release());
  return results;
}

/** The device with the choices of a GPU, or none where it lacks what the kernel needs. */
async function openAsGpu(): Promise<Device | undefined> {
  const device = await openDevice();
  if (device.caps.subgroups && device.caps.f16) return asGpu(device);
  device.close();
}

function greatestDifference(a: HostArray, b: HostArray): number {
  assertEquals(a.length, b.length);
  return Float64Array.from(a).reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0);
}

const settings: Setting[] = [
  { kvHeads: 2, group: 3, headDim: 64, count: 5, most: 64, seed: 1 },
  { kvHeads: 2, group: 7, headDim: 32, count: 6, most: 256, seed: 2 },
  { kvHeads: 1, group: 2, headDim: 128, count: 4, most: 128, seed: 3 },
  { kvHeads: 2, group: 2, headDim: 64, count: 5, most: 256, seed: 4 },
];

Deno.test("attention of a batch is exact attention but for rounding, and writes the same keys and values", async () => {
  const gpu = await openAsGpu();
  if (!gpu) return;
  for (const setting of settings) {
    const [attended, keys, values] = await run(gpu, setting);
    const [expected, expectedKeys, expectedValues] = await run(gpu, setting, { fast: false });
    // A value is a mean of numbers below 6; scores, below 100, err by some 2^-17 of themselves.
    assert(greatestDifference(attended!, expected!) < 2e-4, `seed ${setting.seed}`);
    assertEquals([keys, values], [expectedKeys, expectedValues], `seed ${setting.seed}`);
  }
  gpu.close();
});

Deno.test("codes of attention of a batch are those of quantising it", async () => {
  const gpu = await openAsGpu();
  if (!gpu) return;
  const setting = settings[1]!, count = setting.count * setting.kvHeads * setting.group * setting.headDim;
  const [codes, scales] = await run(gpu, setting, { quantise: true }), [attended] = await run(gpu, setting);
  const x = new Storage("f32", [1, count], Float32Array.from(attended!));
  using program = compile(gpu, () => {
    const quantised = quantise32(buffer(x));
    return [quantised.codes, quantised.scales];
  });
  program.run();
  assertEquals([codes, scales], [await program.read(0), await program.read(1)]);
  x.release();
  gpu.close();
});

Deno.test("within a program a sequence is attended to with the same bits in every batch", async () => {
  const gpu = await openAsGpu();
  if (!gpu) return;
  for (const setting of settings.slice(0, 2)) {
    const [all] = await run(gpu, setting), columns = setting.kvHeads * setting.group * setting.headDim;
    for (const row of [0, 3]) {
      const [own] = await run(gpu, setting, { row });
      assertEquals(own, all!.slice(row * columns, (row + 1) * columns), `seed ${setting.seed}, sequence ${row}`);
    }
  }
  gpu.close();
});
