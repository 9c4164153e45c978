/**
 * Int8 products: both widths of codes, all group sizes and types of scales, few tokens and many, gated or not. Forms that
 * only GPUs choose are named, so that they are tested on every device.
 *
 * @module
 */
import type { Caps } from "../tensor/kernel.ts";
import { buffer } from "../tensor/node.ts";
import { Storage } from "../tensor/storage.ts";
import { int8Kernel, int8Matmul, type Int8Params, int8Terms } from "./int8_matmul.ts";
import type { Int8Form, Int8Size, RowsForm, TileForm } from "./int8_variants.ts";
import { inverseReference } from "./late_norm.ts";
import { rmsNormKernel, type RmsNormParams } from "./norm.ts";
import { quantiseActivations } from "./quantise.ts";
import { normCall } from "./quantise_cases.ts";
import { groupSizes } from "./quantised_reference.ts";
import { seededRandom } from "./random.ts";
import { randomWeight, repeatedWeight } from "./random_product.ts";
import type { CaseCall, Kernel, KernelCase, Random } from "./spec.ts";
import { type AffineFormat, formatName, type Weight } from "./weight_format.ts";

type Shape = readonly [tokens: number, rows: number, columns: number];

/** The format of most tests. */
export const fourBits = { kind: "affine", bits: 4, groupSize: 64, scales: "f16" } as const;

/** A random weight of four bits, for graphs. */
export function weightOf(rows: number, columns: number, seed: number): { weight: Weight; release(): void } {
  const call = int8Call({ format: fourBits }, [1, rows, columns], seededRandom(seed));
  const storages = call.inputs.slice(2).map(({ dtype, shape, data }) => new Storage(dtype, shape, data));
  const weight = { format: fourBits, rows, columns, tensors: storages.map((storage) => buffer(storage)) };
  return { weight, release: () => storages.forEach((storage) => storage.release()) };
}

/** A product of random activations, quantised, and a random weight. */
export function int8Call(
  params: Int8Params,
  [tokens, rows, columns]: Shape,
  random: Random,
  weight: typeof randomWeight = randomWeight,
): CaseCall<Int8Params> {
  if (params.source && params.source.kind !== "late") {
    const { inputs } = normCall(tokens, columns, random);
    return { params, inputs: [...inputs, ...weight(params.format, rows, columns, random)] };
  }
  const { codes, scales } = quantiseActivations(Float32Array.from({ length: tokens * columns }, () => random.normal()));
  const blocks = columns / 32, squares = Float32Array.from({ length: tokens * blocks }, () => 100 * random.uniform());
  return {
    params,
    inputs: [
      { dtype: "u32", shape: [tokens, columns / 4], data: codes },
      { dtype: "f32", shape: [tokens, blocks, 2], data: Float32Array.from(scales) },
      ...(params.source ? [{ dtype: "f32", shape: [tokens, blocks], data: squares }] as const : []),
      ...weight(params.format, rows, columns, random),
    ],
  };
}

/** The same call with activations in codes. */
function inCodes(call: CaseCall<Int8Params>): CaseCall<Int8Params> {
  const { source, ...params } = call.params, [x, weight, ...rest] = call.inputs;
  if (!source) return call;
  if (source.kind === "late") {
    const [squares, ...weights] = rest, blocks = squares!.shape[1] as number;
    const inverses = inverseReference(squares!.data, blocks, source.params);
    const scales = Float32Array.from(weight!.data, (scale, i) => scale * inverses[Math.floor(i / (2 * blocks))]!);
    return { params, inputs: [x!, { ...weight!, data: scales }, ...weights] };
  }
  const [tokens, columns] = x!.shape as [number, number];
  const normed = rmsNormKernel.reference(
    { params: source.params as RmsNormParams, inputs: [x!, weight!], outputs: [] },
    [x!.data, weight!.data],
  );
  const { codes, scales } = quantiseActivations(normed[0]!);
  return {
    params,
    inputs: [
      { dtype: "u32", shape: [tokens, columns / 4], data: codes },
      { dtype: "f32", shape: [tokens, columns / 32, 2], data: Float32Array.from(scales) },
      ...rest,
    ],
  };
}

/** Inner sums are exact. A block rounds four times, and what has been added up so far once. */
function int8Tolerance(given: CaseCall<Int8Params>): Float64Array {
  const call = inCodes(given);
  const rows = call.inputs[2]!.shape[0] as number, columns = 4 * (call.inputs[0]!.shape[1] as number);
  const magnitudes = new Float64Array((call.inputs[0]!.shape[0] as number) * rows);
  int8Terms(call, call.inputs.map(({ data }) => data), (output, product, bias) => {
    magnitudes[output]! += Math.abs(product) + Math.abs(bias);
  });
  // The sum of squares rounds once a column, of which half reaches its root.
  const norming = given.params.source ? columns / 4 + 8 : 0;
  const errors = magnitudes.map((magnitude) => (columns / 16 + 8 + norming) * 2 ** -24 * magnitude + 1e-30);
  if (!call.params.gate) return errors;
  // |silu'| is at most 1.1 and |silu(v)| at most |v|; exp is good to 4e-6.
  const outputs = rows / 2;
  return Float64Array.from({ length: errors.length / 2 }, (_, i) => {
    const a = Math.floor(i / outputs) * rows + i % outputs, b = a + outputs;
    return 1.1 * errors[a]! * (magnitudes[b]! + errors[b]!) + magnitudes[a]! * (errors[b]! + 1e-5 * magnitudes[b]!);
  });
}

function int8Case(
  label: string,
  params: Int8Params,
  shape: (random: Random) => Shape,
  kernel: Kernel<Int8Params> = int8Matmul,
  bench: Readonly<Record<string, Shape>> = {},
): KernelCase<Int8Params> {
  const calls = Object.entries(bench).map(([name, sizes]) => {
    return [name, (random: Random) => int8Call(params, sizes, random, repeatedWeight)] as const;
  });
  return {
    name: `int8_matmul ${formatName(params.format)}, ${label}`,
    kernel,
    random: (random) => int8Call(params, shape(random), random),
    tolerance: (call) => [int8Tolerance(call)],
    bench: Object.fromEntries(calls),
  };
}

const types = ["f32", "f16", "bf16"] as const;

/** Columns that fill no whole number of loops and stages. */
function columns(groupSize: number, random: Random): number {
  return groupSize * random.integer(1, 768 / groupSize);
}

const everyFormat = ([4, 8] as const).flatMap((bits) =>
  groupSizes.flatMap((groupSize, i) => {
    const format: AffineFormat = { kind: "affine", bits, groupSize, scales: types[(i + bits / 4) % 3]! };
    return [
      int8Case(
        "few tokens",
        { format },
        (random) => [random.integer(1, 5), random.integer(1, 50), columns(groupSize, random)],
      ),
      int8Case("many tokens", { format }, (random) => {
        return [random.integer(33, 50), random.integer(1, 50), columns(groupSize, random)];
      }),
    ];
  })
);

/** Real shapes, timed for 4 bits in groups of 64. */
const realShapes: Readonly<Record<string, Shape>> = {
  "0.5B, QKV, one token": [1, 1152, 896],
  "0.5B, gate and up, one token": [1, 9728, 896],
  "0.5B, down, one token": [1, 896, 4864],
  "0.5B, gate and up, 512 tokens": [512, 9728, 896],
  "7B, gate and up, one token": [1, 37888, 3584],
  "7B, down, one token": [1, 3584, 18944],
  "7B, gate and up, 512 tokens": [512, 37888, 3584],
};

/** A form of a GPU in lanes that every device has. */
function named(form: Int8Form): Kernel<Int8Params> {
  return int8Kernel((caps: Caps, _size: Int8Size) => {
    if (form.kind === "tile" || !caps.subgroups) return form;
    return { ...form, lanes: Math.min(form.lanes, caps.subgroupSize) };
  });
}

const rows = (tokens: number, lanes: number, groups: number, slices: number, unroll: number): RowsForm => {
  return { kind: "rows", rows: 2, tokens, lanes, groups, slices, unroll };
};

const tile = (tokens: number, rows: number, threadTokens: number, slices: number): TileForm => {
  return { kind: "tile", tokens, rows, threadTokens, threadRows: 4, slices };
};

const forms: readonly [string, Int8Form, number][] = [
  ["one token, loops", rows(1, 8, 4, 1, 2), 1],
  ["one token, slices", rows(1, 4, 4, 4, 2), 1],
  ["eight tokens, slices", rows(8, 8, 4, 4, 1), 20],
  ["tiles", tile(32, 32, 4, 1), 70],
  ["sliced tiles", tile(16, 32, 4, 2), 40],
  ["tiles of wide threads", { ...tile(32, 32, 4, 1), threadRows: 8 }, 70],
  ["many slices", { ...tile(16, 16, 4, 8), threadRows: 2 }, 40],
];

const gpuForms = ([4, 8] as const).flatMap((bits) =>
  forms.flatMap(([label, form, tokens]) => {
    const format: AffineFormat = { kind: "affine", bits, groupSize: 64, scales: "f16" };
    const shape = (random: Random): Shape => {
      return [random.integer(Math.ceil(tokens / 2), tokens), 2 * random.integer(1, 50), columns(64, random)];
    };
    return [
      int8Case(`form: ${label}`, { format }, shape, named(form)),
      ...(bits === 4 ? [int8Case(`form: ${label}, gated`, { format, gate: true }, shape, named(form))] : []),
    ];
  })
);

const benched = int8Case(
  "one token",
  { format: { kind: "affine", bits: 4, groupSize: 64, scales: "f16" } },
  (random) => [1, random.integer(1, 90), columns(64, random)],
  int8Matmul,
  realShapes,
);

const gated = ([4, 8] as const).flatMap((bits) => {
  const format: AffineFormat = { kind: "affine", bits, groupSize: 64, scales: "f16" };
  return [
    int8Case("gated", { format, gate: true }, (random) => [1, 2 * random.integer(1, 50), columns(64, random)]),
    int8Case("gated, many tokens", { format, gate: true }, (random) => {
      return [random.integer(33, 40), 2 * random.integer(1, 50), columns(64, random)];
    }),
  ];
});

/** Products that normalise and quantise their activations. */
const normed = ([4, 8] as const).flatMap((bits) => {
  const format: AffineFormat = { kind: "affine", bits, groupSize: 64, scales: "f16" },
    source = { kind: "norm", params: { eps: 1e-6 } } as const;
  const shape = (random: Random): Shape => [random.integer(1, 3), 2 * random.integer(1, 50), columns(64, random)];
  return [
    int8Case("normed", { format, source }, shape),
    int8Case("normed and gated, long rows", { format, source, gate: true }, (random) => {
      return [1, 2 * random.integer(1, 20), 64 * random.integer(20, 40)];
    }),
    int8Case("form: slices, normed", { format, source }, shape, named(rows(1, 4, 4, 4, 2))),
  ];
});

/** Products that multiply by the factor of a late norm, in forms of both kinds. */
const late = ([rows(4, 4, 4, 1, 1), rows(8, 8, 4, 4, 1), tile(32, 32, 4, 1), tile(16, 32, 4, 2)] as const).flatMap(
  (form) => {
    const source = { kind: "late", params: { eps: 1e-6 } } as const;
    const shape = (random: Random): Shape => [random.integer(1, 40), 2 * random.integer(1, 50), columns(64, random)];
    const label = `form: ${form.kind} of ${form.tokens}, late norm`;
    return [
      int8Case(label, { format: fourBits, source }, shape, named(form)),
      int8Case(`${label}, gated`, { format: fourBits, source, gate: true }, shape, named(form)),
    ];
  },
);

/** Cases of the table-driven test and bench. */
export const cases: readonly KernelCase<Int8Params>[] = [
  benched,
  ...everyFormat,
  ...gated,
  ...gpuForms,
  ...normed,
  ...late,
];
