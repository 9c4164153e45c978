/** Cases of writing to the cache: skipped rows, shuffled slots, both ways of storing, with and without norms. */
import { float16Bits, float16Value } from "../tensor/dtype.ts";
import { ropeAndWriteKvKernel, type RopeAndWriteKvParams, writeKvKernel } from "./kv_write.ts";
import { randomPositions, randomTable } from "./rope_cases.ts";
import type { CaseCall, CaseInput, KernelCase, Random } from "./spec.ts";

type PoolType = "f16" | "f32";

function floats(dtype: PoolType, shape: number[], random: Random): CaseInput {
  const round = dtype === "f16" ? (x: number) => float16Value(float16Bits(x)) : (x: number) => x;
  const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => round(random.normal()));
  return { dtype, shape, data };
}

/** A slot of its own for each row; a quarter of the rows are skipped. */
function slotMapping(rows: number, slots: number, random: Random): CaseInput {
  const free = Array.from({ length: slots }, (_, i) => i);
  const take = (): number => free.splice(random.integer(0, free.length - 1), 1)[0]!;
  const data = Int32Array.from({ length: rows }, () => random.uniform() < 0.25 ? -1 : take());
  return { dtype: "i32", shape: [rows], data };
}

/** Storing as f16 errs by a unit in the last of 11 bits at most (WGSL leaves the direction open), or 2^-24 near zero. */
function stored(dtype: string, values: Float64Array, computed: number): Float64Array | number {
  return dtype === "f16" ? values.map((value) => Math.abs(value) * 2 ** -10 + 2 ** -24 + computed) : computed;
}

function writeCall(rows: number, kvHeads: number, headDim: number, random: Random): CaseCall<null> {
  const slots = rows + random.integer(0, 20), type: PoolType = random.uniform() < 0.5 ? "f16" : "f32";
  return {
    params: null,
    inputs: [
      floats(type, [slots, kvHeads, headDim], random),
      floats("f32", [rows, kvHeads, headDim], random),
      slotMapping(rows, slots, random),
    ],
  };
}

function fusedCall(rows: number, params: RopeAndWriteKvParams, random: Random): CaseCall<RopeAndWriteKvParams> {
  const { heads, kvHeads, headDim, rotaryDim, eps } = params, slots = rows + random.integer(0, 20);
  const type: PoolType = random.uniform() < 0.5 ? "f16" : "f32", pool = [slots, kvHeads, headDim];
  const norms = eps === undefined ? [] : [floats("f32", [headDim], random), floats("f32", [headDim], random)];
  return {
    params,
    inputs: [
      floats("f32", [rows, (heads + 2 * kvHeads) * headDim], random),
      randomPositions(rows, 100, random),
      slotMapping(rows, slots, random),
      randomTable(100, rotaryDim),
      floats(type, pool, random),
      floats(type, pool, random),
      ...norms,
    ],
  };
}

/** Features below 6 turned: three roundings of 12; normed they are below 6 sqrt(headDim) and a weight of 5 larger. */
function turned({ params }: CaseCall<RopeAndWriteKvParams>): number {
  const plain = 3 * 12 * 2 ** -24;
  return params.eps === undefined ? plain : plain * 5 * (params.headDim / 2 + 8);
}

const stories = { heads: 8, kvHeads: 2, headDim: 64, rotaryDim: 64, traditional: false };
const qwen7 = { heads: 28, kvHeads: 4, headDim: 128, rotaryDim: 128, traditional: false };
const qwen3 = { heads: 16, kvHeads: 8, headDim: 128, rotaryDim: 128, traditional: false, eps: 1e-6 };

/** A random shape of attention: any grouping, in part rotated, half of them normed. */
function randomParams(random: Random): RopeAndWriteKvParams {
  const [headDim, rotaryDim] = ([[64, 64], [128, 128], [33, 16], [32, 16], [20, 6], [8, 8]] as const)[
    random.integer(0, 5)
  ]!;
  const kvHeads = random.integer(1, 3);
  return {
    heads: kvHeads * [1, 2, 7][random.integer(0, 2)]!,
    kvHeads,
    headDim,
    rotaryDim,
    traditional: random.uniform() < 0.5,
    ...(random.uniform() < 0.5 ? { eps: 1e-6 } : {}),
  };
}

/** Cases of the plain write. */
export const writeCases: KernelCase<null>[] = [{
  name: "write_kv",
  kernel: writeKvKernel,
  random: (random) => writeCall(random.integer(1, 9), random.integer(1, 3), [4, 33, 64][random.integer(0, 2)]!, random),
  tolerance: ({ inputs }, [next]) => [stored(inputs[0]!.dtype, next!, 0)],
  bench: {
    "0.5B, 128 rows": (random) => writeCall(128, 2, 64, random),
    "7B, 512 rows": (random) => writeCall(512, 4, 128, random),
  },
}];

/** Cases of the fused kernel. */
export const cases: KernelCase<RopeAndWriteKvParams>[] = [{
  name: "rope_write_kv",
  kernel: ropeAndWriteKvKernel,
  random: (random) => fusedCall(random.integer(1, 9), randomParams(random), random),
  tolerance: (call, [, keys, values]) => {
    const computed = turned(call), type = call.inputs[4]!.dtype;
    return [computed, stored(type, keys!, computed), stored(type, values!, 0)];
  },
  bench: {
    "stories, one row": (random) => fusedCall(1, stories, random),
    "7B, 512 rows": (random) => fusedCall(512, qwen7, random),
    "Qwen3-0.6B, 128 rows": (random) => fusedCall(128, qwen3, random),
  },
}, {
  name: "rope_write_kv for many rows",
  kernel: ropeAndWriteKvKernel,
  random(random) {
    const headDim = [8, 32, 64, 72, 128][random.integer(0, 4)]!, kvHeads = random.integer(1, 3);
    const params = { heads: kvHeads * random.integer(1, 7), kvHeads, headDim, rotaryDim: headDim, traditional: false };
    return fusedCall(random.integer(17, 40), params, random);
  },
  tolerance: (call, [, keys, values]) => {
    const computed = turned(call), type = call.inputs[4]!.dtype;
    return [computed, stored(type, keys!, computed), stored(type, values!, 0)];
  },
}];
