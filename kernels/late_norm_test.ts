import { assert, assertEquals } from "@std/assert";
import { openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";
import { Sym } from "../tensor/dim.ts";
import { buffer, input, map, type Node, slice } from "../tensor/node.ts";
import { compile } from "../tensor/program.ts";
import { RULES } from "../tensor/rules.ts";
import { runKernel } from "../tensor/run_kernel.ts";
import { Storage } from "../tensor/storage.ts";
import { fastLinear, int8Kernel } from "./int8_matmul.ts";
import { fourBits, int8Call, weightOf } from "./int8_matmul_cases.ts";
import type { Int8Form } from "./int8_variants.ts";
import { inverseReference, squaresReference } from "./late_norm.ts";
import { rmsNorm, rmsNormKernel } from "./norm.ts";
import { quantise32Kernel, quantiseActivations } from "./quantise.ts";
import { seededRandom } from "./random.ts";
import type { CaseInput } from "./spec.ts";
import type { Weight } from "./weight_format.ts";

const eps = 1e-6;

Deno.test("codes do not change with a factor of their row, and the factor may come last", () => {
  const random = seededRandom(1), columns = 96, x = Float64Array.from({ length: 3 * columns }, () => random.normal());
  const weight = Float64Array.from({ length: columns }, () => 0.5 + random.uniform());
  const call = { params: { eps }, inputs: [{ dtype: "f32", shape: [3, columns] } as const], outputs: [] };
  const early = quantiseActivations(rmsNormKernel.reference(call, [x, weight])[0]!);
  const late = quantiseActivations(x.map((value, i) => value * weight[i % columns]!));
  const inverses = inverseReference(squaresReference(x), columns / 32, { eps });
  assertEquals(late.codes, early.codes);
  late.scales.forEach((scale, i) => {
    const finished = scale * inverses[Math.floor(i / 6)]!;
    assert(Math.abs(finished - early.scales[i]!) <= 1e-12 * Math.abs(finished));
  });
});

const forms: readonly Int8Form[] = [
  { kind: "tile", tokens: 16, rows: 32, threadTokens: 4, threadRows: 4, slices: 4 },
  { kind: "tile", tokens: 32, rows: 32, threadTokens: 4, threadRows: 4, slices: 1 },
  { kind: "tile", tokens: 16, rows: 64, threadTokens: 4, threadRows: 8, slices: 2 },
  { kind: "rows", rows: 4, tokens: 1, lanes: 8, groups: 8, slices: 2, unroll: 1 },
  { kind: "rows", rows: 2, tokens: 8, lanes: 8, groups: 16, slices: 1, unroll: 1 },
  { kind: "rows", rows: 2, tokens: 2, lanes: 4, groups: 32, slices: 4, unroll: 1 },
];

/** Holds values against the reference's, but for a part of the greatest. */
function assertNear(values: ArrayLike<number>, expected: Float64Array, part: number): void {
  const most = part * expected.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  assertEquals(values.length, expected.length);
  expected.forEach((value, i) => assert(Math.abs(values[i]! - value) <= most, `${values[i]} is not ${value}`));
}

Deno.test("a product stores a sum, and the codes of its norm, as dispatches apart do, bit for bit", async () => {
  const device = await openDevice(), random = seededRandom(2);
  try {
    if (!device.caps.subgroups) return;
    for (const [i, form] of forms.entries()) {
      const kernel = int8Kernel(() => form), format = i % 2 === 0 ? fourBits : { ...fourBits, bits: 8 } as const;
      const tokens = random.integer(20, 70), rows = 32 * random.integer(1, 5);
      const call = int8Call({ format }, [tokens, rows, 64 * random.integer(8, 12)], random);
      const normal = (shape: readonly number[]): CaseInput => {
        const count = shape.reduce((a, b) => a * b, 1);
        return { dtype: "f32", shape, data: Float32Array.from({ length: count }, () => random.normal()) };
      };
      const addend = normal([tokens, rows]), weight = normal([rows]);
      const [y] = await runKernel(device, kernel, call);
      const sum = Float32Array.from(y!, (value, i) => value + addend.data[i]!);
      const weighted = sum.map((value, i) => value * weight.data[i % rows]!);
      const x: CaseInput = { dtype: "f32", shape: [tokens, rows], data: weighted };
      const [codes, scales] = await runKernel(device, quantise32Kernel, { params: null, inputs: [x] });
      const params = { format, sumNorm: { eps } }, inputs = [...call.inputs, addend, weight];
      const stored = await runKernel(device, kernel, { params, inputs });
      assertEquals(stored.slice(0, 3), [sum, codes!, scales!], `${tokens} x ${rows}, ${JSON.stringify(form)}`);
      squaresReference(sum).forEach((value, i) => assert(Math.abs(stored[3]![i]! - value) <= 32 * 2 ** -24 * value));
      const expected = kernel.reference({ params, inputs, outputs: [] }, inputs.map(({ data }) => data));
      [0, 2, 3].forEach((output) => assertNear(stored[output]!, expected[output]!, 1e-5));
    }
  } finally {
    device.close();
  }
});

/** Blocks of a decoder without attention: each ends in a sum that the next one's norm and its sum read. */
function blocks(x: Node, tokens: number, norms: readonly Node[], gateUp: Weight, down: Weight): Node {
  for (const norm of norms) {
    const both = fastLinear(rmsNorm(x, norm, eps), gateUp), width = gateUp.rows / 2;
    const gate = slice(both, [0, 0], [tokens, width]), up = slice(both, [0, width], [tokens, 2 * width]);
    x = map("add", x, fastLinear(map("mul", map("silu", gate), up), down));
  }
  return x;
}

/** Three of these blocks as a graph of up to `most` tokens, with weights of their own. */
function decoderOf(most: number, columns: number): { trace(): Node; release(): void } {
  const random = seededRandom(3), tokens = new Sym("tokens", most);
  const gateUp = weightOf(256, columns, 1), down = weightOf(columns, 128, 2);
  const norms = [0, 1, 2].map(() =>
    new Storage("f32", [columns], Float32Array.from({ length: columns }, () => 0.5 + random.uniform()))
  );
  return {
    trace: () =>
      blocks(input("x", "f32", [tokens, columns]), most, norms.map((norm) => buffer(norm)), gateUp.weight, down.weight),
    release: () => [gateUp, down, ...norms].forEach((held) => held.release()),
  };
}

Deno.test("norms between products keep their dispatches where a shader may bind too few buffers for more outputs", async () => {
  const opened = await openDevice(), maxStorageBuffers = 9, { trace, release } = decoderOf(48, 320);
  try {
    using program = compile(asGpu(opened, { maxStorageBuffers }), trace);
    assertEquals(program.dispatchCount, 9);
    for (const { name, wgsl } of program.dispatches) {
      assert((wgsl.match(/var<storage/g)?.length ?? 0) <= maxStorageBuffers, name);
    }
  } finally {
    release();
    opened.close();
  }
});

for (const [most, columns] of [[48, 320], [32, 832]] as const) {
  Deno.test(`norms between products of ${most} tokens take no dispatches, where a device has what they need`, async () => {
    const opened = await openDevice(), device = asGpu(opened), random = seededRandom(4);
    const { trace, release } = decoderOf(most, columns);
    try {
      using program = compile(device, trace);
      using apart = compile(device, trace, { rules: RULES.filter(({ name }) => name !== "addend") });
      if (device.caps.subgroups) assertEquals([program.dispatchCount, apart.dispatchCount], [7, 9]);
      const x = Float32Array.from({ length: most * columns }, () => random.normal());
      const run = async (p: typeof program, from: number, to: number): Promise<Float32Array> => {
        p.run({ inputs: { x: x.slice(from * columns, to * columns) }, sizes: { tokens: to - from } });
        return await p.read(0, { tokens: to - from }) as Float32Array;
      };
      const whole = await run(program, 0, most), other = await run(apart, 0, most);
      for (const token of [0, 17, most - 1]) {
        assertEquals(await run(program, token, token + 1), whole.slice(token * columns, (token + 1) * columns));
      }
      // Rounding differs before codes are made, so that a code may be another one.
      const greatest = other.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
      assert(whole.every((value, i) => Math.abs(value - other[i]!) <= 0.02 * greatest));
    } finally {
      release();
      opened.close();
    }
  });
}
