/** Int8 products of a few tokens in the forms of programs whose dispatches can be joined: what decoding a few sequences runs. */
import { assert, assertEquals } from "@std/assert";
import { type Device, openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";
import { Sym } from "../tensor/dim.ts";
import type { Caps } from "../tensor/kernel.ts";
import { buffer, input, map, type Node, slice } from "../tensor/node.ts";
import { compile } from "../tensor/program.ts";
import { runKernel } from "../tensor/run_kernel.ts";
import { Storage } from "../tensor/storage.ts";
import { attentionCall } from "./attention_cases.ts";
import { decodeAttention } from "./decode_attention.ts";
import { fastLinear, int8Kernel, int8Linear } from "./int8_matmul.ts";
import { cases, fourBits, int8Call, weightOf } from "./int8_matmul_cases.ts";
import { type Int8Form, int8Form } from "./int8_variants.ts";
import { quantise32, rmsNormQuantise32 } from "./quantise.ts";
import { seededRandom } from "./random.ts";
import type { Weight } from "./weight_format.ts";

/** A random size of a product, and whether it is gated. */
type Size = readonly [tokens: number, rows: number, columns: number, gate: boolean];

/** Holds a form, chosen by caps that are changed, against the reference. */
async function check(device: Device, change: Partial<Caps>, form: (caps: Caps) => Int8Form, size: Size): Promise<void> {
  const [tokens, rows, columns, gate] = size, as = (caps: Caps): Caps => ({ ...caps, cpu: false, ...change });
  const chosen = int8Kernel((caps) => form(as(caps)));
  const kernel = { ...chosen, wgsl: (call, caps) => chosen.wgsl(call, as(caps)) } as typeof chosen;
  const params = { format: fourBits, ...(gate && { gate }) };
  const call = int8Call(params, [tokens, rows, columns], seededRandom(tokens + rows));
  const [y] = await runKernel(device, kernel, call), outputs = kernel.infer(call.inputs, call.params);
  const reference = kernel.reference({ ...call, outputs }, call.inputs.map(({ data }) => data));
  const plain = { ...call, params: { format: fourBits } },
    whole = { ...plain, outputs: kernel.infer(call.inputs, plain.params) };
  if (!gate) {
    const [limit] = cases[0]!.tolerance(call, reference) as [Float64Array];
    return assert(reference[0]!.every((value, i) => Math.abs(y![i]! - value) <= limit[i]!), `${size}`);
  }
  // silu(a) b moves by at most 1.1 |b| for a and |a| for b.
  const parts = kernel.reference(whole, call.inputs.map(({ data }) => data));
  const [limit] = cases[0]!.tolerance(plain, parts) as [Float64Array], half = rows / 2;
  reference[0]!.forEach((value, i) => {
    const first = Math.floor(i / half) * rows + i % half, second = first + half;
    const most = 1.2 * Math.abs(parts[0]![second]!) * limit[first]! +
      (1 + Math.abs(parts[0]![first]!)) * limit[second]!;
    assert(Math.abs(y![i]! - value) <= most + 1e-5 * Math.abs(value) + 1e-6, `${size}: output ${i}`);
  });
}

Deno.test("matrix-vector forms of all kinds agree with the reference", async () => {
  const device = await openDevice(), random = seededRandom(11);
  const pick = <T>(of: readonly T[]): T => of[random.integer(0, of.length - 1)]!;
  for (let i = 0; i < 12; i++) {
    const subgroups = device.caps.subgroups && i % 3 > 0, joinedLanes = pick([undefined, 256]);
    const tokens = pick([1, 2, 4, 8]), lanes = pick([2, 4, 8]), groups = pick([4, 8]), slices = pick([1, 2, 4]);
    const form = { kind: "rows", rows: pick([2, 4, 8]), tokens, lanes, groups, slices, unroll: pick([1, 2]) } as const;
    const columns = 64 * random.integer(1, 9), gate = random.uniform() < 0.5;
    await check(device, { subgroups, joinedLanes }, () => form, [
      random.integer(1, 11),
      2 * random.integer(2, 40),
      columns,
      gate,
    ]);
  }
  device.close();
});

Deno.test("the forms that programs for joining choose agree with the reference", async () => {
  const device = await openDevice();
  for (const change of [{ joinedLanes: 256 }, { joinedLanes: 256, subgroups: false, subgroupSize: 1 }]) {
    for (const [tokens, rows, columns] of [[3, 70, 896], [8, 20, 4864], [5, 2100, 64]] as const) {
      const size = { maxTokens: tokens, rows, columns };
      await check(device, change, (caps) => int8Form(caps, size), [tokens, rows, columns, false]);
    }
  }
  device.close();
});

/** A block of a decoder: norm, gate and up, down, and what was there before. */
function feedForward(x: Node, tokens: number, norm: Node, gateUp: Weight, down: Weight): Node {
  const both = int8Linear(rmsNormQuantise32(x, norm, 1e-6), gateUp), width = gateUp.rows / 2;
  const gate = slice(both, [0, 0], [tokens, width]), up = slice(both, [0, width], [tokens, 2 * width]);
  return map("add", int8Linear(quantise32(map("mul", map("silu", gate), up)), down), x);
}

for (const most of [4, 8]) {
  Deno.test(`products that normalise up to ${most} tokens themselves have the same bits in every batch`, async () => {
    const opened = await openDevice(), device = asGpu(opened), columns = 320, random = seededRandom(most);
    const norm = new Storage("f32", [columns], Float32Array.from({ length: columns }, () => 0.5 + random.uniform()));
    const gateUp = weightOf(512, columns, 1), down = weightOf(columns, 256, 2), tokens = new Sym("tokens", most);
    const trace = (): Node =>
      feedForward(input("x", "f32", [tokens, columns]), most, buffer(norm), gateUp.weight, down.weight);
    using program = compile(device, trace, { join: true });
    using apart = compile(device, trace);
    if (device.caps.subgroups) assertEquals([program.dispatchCount, apart.dispatchCount], [2, 3]);
    const x = Float32Array.from({ length: most * columns }, () => random.uniform() - 0.5);
    const run = async (p: typeof program, from: number, to: number): Promise<Float32Array> => {
      p.run({ inputs: { x: x.slice(from * columns, to * columns) }, sizes: { tokens: to - from } });
      return await p.read(0, { tokens: to - from }) as Float32Array;
    };
    const whole = await run(program, 0, most), other = await run(apart, 0, most);
    for (const token of [0, 2, most - 1]) {
      assertEquals(await run(program, token, token + 1), whole.slice(token * columns, (token + 1) * columns));
    }
    // The sum of squares is added up in another order, so that a code may be another one.
    const greatest = other.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    assert(whole.every((value, i) => Math.abs(value - other[i]!) <= 0.02 * greatest));
    [gateUp, down].forEach((held) => held.release());
    norm.release();
    opened.close();
  });
}

Deno.test("a product that merges attention's tiles of several sequences has the bits of one that is given codes", async () => {
  const setting = { kvHeads: 2, group: 7, headDim: 64, blockSize: 16, pool: "f16", padding: 0 } as const;
  const opened = await openDevice(), device = asGpu(opened);
  const call = attentionCall({ ...setting, sequences: [[1, 300], [1, 1], [1, 129]] }, seededRandom(3));
  const { weight, release } = weightOf(70, 896, 5);
  const storages = call.inputs.map((i, n) => new Storage(i.dtype, i.shape, i.data.slice(), `input ${n}`));
  const results = [], counts = [];
  for (const options of [{ join: true }, { join: true, rules: [] }]) {
    using program = compile(device, () => {
      const [q, keys, values, queryStart, contextLens, blockTables] = storages.map((storage) => buffer(storage));
      const batch = { queryStart: queryStart!, contextLens: contextLens!, blockTables: blockTables! };
      const { blockSize, scale } = call.params;
      return fastLinear(decodeAttention(q!, keys!, values!, batch, { blockSize, scale }), weight);
    }, options);
    counts.push(program.dispatchCount);
    program.run();
    results.push(await program.read(0));
  }
  if (device.caps.subgroups) assertEquals(counts, [2, 4]);
  assertEquals(results[0], results[1]);
  storages.forEach((storage) => storage.release());
  release();
  opened.close();
});
