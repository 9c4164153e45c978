import { assert, assertEquals, assertThrows } from "@std/assert";
import { openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";
import { Sym } from "../tensor/dim.ts";
import type { Caps } from "../tensor/kernel.ts";
import { buffer, input, kernelNode, map, slice } from "../tensor/node.ts";
import { compile } from "../tensor/program.ts";
import { runKernel } from "../tensor/run_kernel.ts";
import { Storage } from "../tensor/storage.ts";
import { argmax } from "./argmax.ts";
import { attentionCall } from "./attention_cases.ts";
import { decodeAttention } from "./decode_attention.ts";
import { fastLinear, int8Kernel, int8Linear, int8Matmul } from "./int8_matmul.ts";
import { cases, fourBits, int8Call, weightOf } from "./int8_matmul_cases.ts";
import { int8Form } from "./int8_variants.ts";
import { quantise32, quantise32Kernel, rmsNormQuantise32 } from "./quantise.ts";
import { seededRandom } from "./random.ts";
import type { CaseInput } from "./spec.ts";

/** The forms of a GPU, run on whatever device there is. */
function gpuCaps(caps: Caps): Caps {
  return { ...caps, cpu: false };
}

/** Products in the form that stores codes, whether they do or not. */
function blocksKernel(features: Pick<Caps, "cpu" | "subgroups">): typeof int8Matmul {
  const chosen = int8Kernel((caps, size) => int8Form({ ...caps, ...features }, { ...size, blocks: true }));
  return { ...chosen, wgsl: (call, caps) => chosen.wgsl(call, { ...caps, ...features }) };
}

Deno.test("the forms that a GPU chooses agree with the reference", async () => {
  const device = await openDevice();
  const chosen = int8Kernel((caps, size) => int8Form(gpuCaps(caps), size));
  const kernel = { ...chosen, wgsl: (call, caps) => chosen.wgsl(call, gpuCaps(caps)) } as typeof chosen;
  try {
    for (const [tokens, rows, columns] of [[1, 70, 448], [40, 64, 320], [64, 70, 64]] as const) {
      const call = int8Call({ format: fourBits }, [tokens, rows, columns], seededRandom(tokens));
      const [y] = await runKernel(device, kernel, call);
      const outputs = kernel.infer(call.inputs, call.params);
      const reference = kernel.reference({ ...call, outputs }, call.inputs.map(({ data }) => data));
      const [limit] = cases[0]!.tolerance(call, reference) as [Float64Array];
      assert(reference[0]!.every((value, i) => Math.abs(y![i]! - value) <= limit[i]!), `${tokens} x ${rows}`);
    }
  } finally {
    device.close();
  }
});

Deno.test("outputs stored in codes are those of quantising the outputs, bit for bit", async () => {
  const device = await openDevice();
  try {
    for (const [subgroups, cpu] of [[true, true], [true, false], [false, false]] as const) {
      const kernel = blocksKernel({ subgroups: subgroups && device.caps.subgroups, cpu });
      const tiled = [[40, 192, 320], [70, 128, 64], [600, 4096, 64]] as const;
      const sizes = [[1, 192, 448], [5, 320, 128], [11, 64, 64], ...(subgroups && !cpu ? tiled : [])] as const;
      for (const [tokens, rows, columns] of sizes) {
        const call = int8Call({ format: fourBits, gate: true }, [tokens, rows, columns], seededRandom(tokens + rows));
        const [y] = await runKernel(device, kernel, call);
        const x: CaseInput = { dtype: "f32", shape: [tokens, rows / 2], data: Float32Array.from(y!) };
        const apart = await runKernel(device, quantise32Kernel, { params: null, inputs: [x] });
        const stored = await runKernel(device, kernel, { ...call, params: { ...call.params, quantise: true } });
        assertEquals(stored, apart, `${tokens} x ${rows} x ${columns}, subgroups ${subgroups}, cpu ${cpu}`);
      }
    }
  } finally {
    device.close();
  }
});

Deno.test("a product that gives the best of its tiles draws the tokens that its logits do", async () => {
  const device = await openDevice(), vocabulary = 16500, { weight, release } = weightOf(vocabulary, 64, 6);
  const gpu = asGpu(device);
  const x = Float32Array.from({ length: 41 * 64 }, () => Math.random() - 0.5), sizes = { tokens: 41 }, drawn = [];
  // Eight invocations have a token, as many as the smallest subgroups.
  const kernel = int8Kernel(() => ({ kind: "tile", tokens: 32, rows: 64, threadTokens: 4, threadRows: 8, slices: 1 }));
  try {
    for (const rules of [undefined, []]) {
      using program = compile(gpu, () => {
        const { codes, scales } = quantise32(input("x", "f32", [new Sym("tokens", 130), 64]));
        return argmax(kernelNode(kernel, [codes, scales, ...weight.tensors], { format: fourBits }));
      }, rules && { rules });
      if (device.caps.subgroups) assertEquals(program.dispatchCount, rules ? 4 : 3);
      program.run({ inputs: { x }, sizes });
      drawn.push(await program.read(0, sizes));
    }
    assertEquals(drawn[0], drawn[1]);
  } finally {
    release();
    device.close();
  }
});

Deno.test("the best of each tile's rows agrees with the reference", async () => {
  const device = await openDevice();
  const form = { kind: "tile", tokens: 16, rows: 16, threadTokens: 4, threadRows: 2, slices: 2 } as const;
  const kernel = int8Kernel(() => form),
    call = int8Call({ format: fourBits, greatestOf: 16 }, [21, 70, 512], seededRandom(8));
  try {
    if (!device.caps.subgroups) return;
    const [values, places] = await runKernel(device, kernel, call);
    const outputs = kernel.infer(call.inputs, call.params);
    const [best, rows] = kernel.reference({ ...call, outputs }, call.inputs.map(({ data }) => data));
    const close = (i: number): boolean => Math.abs(values![i]! - best![i]!) < 1e-4 * Math.abs(best![i]!);
    assert(best!.every((_, i) => close(i)));
    // Two rows of random weights do not come as close to each other as to make rounding choose.
    assertEquals([...places!], [...rows!]);
  } finally {
    device.close();
  }
});

Deno.test("norm, gate and up, SwiGLU, down and residual take three dispatches", async () => {
  const device = await openDevice();
  const x = new Storage("f32", [3, 128], Float32Array.from({ length: 384 }, () => Math.random() - 0.5));
  const norm = new Storage("f32", [128], new Float32Array(128).fill(1));
  const gateUp = weightOf(512, 128, 1), down = weightOf(128, 256, 2);
  try {
    const program = compile(device, () => {
      const both = int8Linear(rmsNormQuantise32(buffer(x), buffer(norm), 1e-6), gateUp.weight);
      const gate = slice(both, [0, 0], [3, 256]), up = slice(both, [0, 256], [3, 512]);
      const hidden = map("mul", map("silu", gate), up);
      return map("add", int8Linear(quantise32(hidden), down.weight), buffer(x));
    });
    assertEquals(program.dispatchCount, 3);
    program.run();
    assert((await program.read(0)).some((value) => value !== 0));
    program.dispose();
  } finally {
    [x, norm, gateUp, down].forEach((held) => held.release());
    device.close();
  }
});

Deno.test("within a program a token has the same bits in every batch", async () => {
  const device = await openDevice();
  const columns = 320, { weight, release } = weightOf(70, columns, 3);
  const program = compile(device, () => fastLinear(input("x", "f32", [new Sym("tokens", 40), columns]), weight));
  try {
    const x = Float32Array.from({ length: 40 * columns }, () => Math.random() - 0.5);
    program.run({ inputs: { x }, sizes: { tokens: 40 } });
    const batch = await program.read(0, { tokens: 40 });
    for (const token of [0, 17, 39]) {
      program.run({ inputs: { x: x.slice(token * columns, (token + 1) * columns) }, sizes: { tokens: 1 } });
      assertEquals(await program.read(0, { tokens: 1 }), batch.slice(token * 70, (token + 1) * 70));
    }
  } finally {
    program.dispose();
    release();
    device.close();
  }
});

Deno.test("weights without an int8 product go the exact way, and are refused where they are given directly", () => {
  const x = input("x", "f32", [3, 64]);
  const dense = { format: { kind: "dense", dtype: "f32" }, rows: 10, columns: 64 } as const;
  const weight = { ...dense, tensors: [input("dense", "f32", [10, 64])] };
  const y = fastLinear(x, weight);
  assertEquals(y.op === "kernel" && y.kernel.name, "matmul");
  assertThrows(() => int8Linear(quantise32(x), weight), Error, "Cannot multiply int8 activations by f32");
  assertThrows(
    () => int8Matmul.infer([], { format: { ...fourBits, bits: 3 } }),
    Error,
    "Cannot multiply int8 activations by affine 3 bits",
  );
  assertThrows(() => quantise32(input("x", "f32", [3, 40])), Error, "Cannot quantise [3, 40]");
});

Deno.test("a product that merges attention's tiles has the bits of one that is given codes", async () => {
  const setting = { kvHeads: 2, group: 7, headDim: 64, blockSize: 16, pool: "f16", padding: 0 } as const;
  for (const disable of [[], ["subgroups"]] as const) {
    const device = await openDevice({ disable }), gpu = asGpu(device);
    for (const context of [1, 129, 700]) {
      const call = attentionCall({ ...setting, sequences: [[1, context]] }, seededRandom(context));
      const { weight, release } = weightOf(70, 896, 5);
      const storages = call.inputs.map((i, n) => new Storage(i.dtype, i.shape, i.data.slice(), `input ${n}`));
      const results = [];
      for (const [options, dispatches] of [[{}, 2], [{ rules: [] }, 4]] as const) {
        using program = compile(gpu, () => {
          const [q, keys, values, queryStart, contextLens, blockTables] = storages.map((storage) => buffer(storage));
          const batch = { queryStart: queryStart!, contextLens: contextLens!, blockTables: blockTables! };
          const { blockSize, scale } = call.params;
          return fastLinear(decodeAttention(q!, keys!, values!, batch, { blockSize, scale }), weight);
        }, options);
        assertEquals(program.dispatchCount, dispatches);
        program.run();
        results.push(await program.read(0));
      }
      assertEquals(results[0], results[1], `context ${context}`);
      storages.forEach((storage) => storage.release());
      release();
    }
    device.close();
  }
});
