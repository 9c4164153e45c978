/**
 * Quantised arrays recorded from MLX: `arrays.json` lists the cases. Each is dequantised exactly, by the plain reference and by
 * the embedding kernel, and multiplied by recorded activations, held against the product in float64.
 */
import { embeddingKernel } from "../../kernels/embedding.ts";
import { quantisedMatmul } from "../../kernels/quantised_matmul.ts";
import { dequantise, matmulReference } from "../../kernels/quantised_reference.ts";
import {
  type AffineFormat,
  type FloatType,
  packAffine,
  packCodes,
  weightTensorTypes,
} from "../../kernels/weight_format.ts";
import { type Device, openDevice } from "../../tensor/device.ts";
import { runKernel } from "../../tensor/run_kernel.ts";
import type { Report } from "./report.ts";
import { differValues, readTensors, type RecordedTensor } from "./tensors.ts";

interface ArrayCase {
  name: string;
  mode: string;
  bits: AffineFormat["bits"];
  group_size: AffineFormat["groupSize"];
  dtype: string;
  rows: number;
  out: number;
  in: number;
  tensors: Record<string, string>;
}

const FLOAT_TYPES: Readonly<Record<string, FloatType>> = { float32: "f32", float16: "f16", bfloat16: "bf16" };

/** Runs every case of `arrays.json`. */
export async function runArrays(folder: string, report: Report): Promise<void> {
  const { cases } = JSON.parse(await Deno.readTextFile(`${folder}/arrays.json`)) as { cases: ArrayCase[] };
  const tensors = await readTensors(`${folder}/arrays.safetensors`);
  const device = await openDevice();
  try {
    for (const recorded of cases) {
      if (recorded.mode !== "affine") {
        report.skip(recorded.name, `mode ${recorded.mode}`);
        continue;
      }
      const difference = await check(device, recorded, tensors);
      if (difference === undefined) report.pass(recorded.name);
      else report.fail(recorded.name, difference);
    }
  } finally {
    device.close();
  }
}

async function check(
  device: Device,
  recorded: ArrayCase,
  tensors: ReadonlyMap<string, RecordedTensor>,
): Promise<string | undefined> {
  const of = (role: string): RecordedTensor => {
    const found = tensors.get(recorded.tensors[role] ?? "");
    if (found === undefined) throw new Error(`arrays.safetensors has no ${role} of "${recorded.name}"`);
    return found;
  };
  const scales = FLOAT_TYPES[recorded.dtype];
  if (scales === undefined) return `unknown type ${recorded.dtype}`;
  const format: AffineFormat = { kind: "affine", bits: recorded.bits, groupSize: recorded.group_size, scales };
  const expected = of("dequant").values;
  const plain = dequantise(
    of("codes").values,
    of("scales").values,
    of("biases").values,
    format.bits,
    format.groupSize,
  );
  // f32 scales: MLX rounds the product and the sum, the reference their sum alone.
  const slack = scales === "f32" ? lastPlaces(of("codes").values.length * 32 / format.bits, recorded, of) : undefined;
  const dequantised = differExactly(plain, expected, slack);
  if (dequantised !== undefined) return `dequantised: ${dequantised}`;

  const [codesType, affineType] = weightTensorTypes(format, recorded.out, recorded.in);
  const weight = [
    { ...codesType!, data: packCodes(of("codes").bytes) },
    { ...affineType!, data: packAffine(of("scales").bytes, of("biases").bytes, scales) },
  ];
  const ids = {
    dtype: "u32",
    shape: [recorded.out],
    data: Uint32Array.from({ length: recorded.out }, (_, i) => i),
  } as const;
  const rows = await runKernel(device, embeddingKernel, {
    params: { format, rows: recorded.out, columns: recorded.in },
    inputs: [ids, ...weight],
  });
  const looked = differExactly(rows[0]!, expected, slack);
  if (looked !== undefined) return `embedding: ${looked}`;
  return await checkProduct(device, recorded, format, weight, of);
}

/** What a doubly rounded product and sum may differ by from a singly rounded one, for each weight. */
function lastPlaces(count: number, recorded: ArrayCase, of: (role: string) => RecordedTensor): Float64Array {
  const scales = of("scales").values, biases = of("biases").values;
  return Float64Array.from({ length: count }, (_, i) => {
    const group = Math.floor(i / recorded.group_size);
    return 2 ** -23 * (2 ** recorded.bits * Math.abs(scales[group]!) + Math.abs(biases[group]!));
  });
}

function differExactly(
  got: ArrayLike<number>,
  expected: ArrayLike<number>,
  slack: ArrayLike<number> | undefined,
): string | undefined {
  if (slack === undefined) return differValues(got, expected, 0);
  for (let i = 0; i < expected.length; i++) {
    if (!(Math.abs(got[i]! - expected[i]!) <= slack[i]!)) return `element ${i}: got ${got[i]}, expected ${expected[i]}`;
  }
  return undefined;
}

/** The product on the device, within the rounding of f32 sums of what float64 gives. */
async function checkProduct(
  device: Device,
  recorded: ArrayCase,
  format: AffineFormat,
  weight: Parameters<typeof runKernel>[2]["inputs"],
  of: (role: string) => RecordedTensor,
): Promise<string | undefined> {
  const x = of("x").values;
  const [y] = await runKernel(device, quantisedMatmul, {
    params: { format },
    inputs: [{ dtype: "f32", shape: [recorded.rows, recorded.in], data: Float32Array.from(x) }, ...weight],
  });
  const truth = of("product64").values;
  const magnitudes = matmulReference(
    Float64Array.from(x, Math.abs),
    Float64Array.from(of("dequant").values, Math.abs),
    recorded.in,
  );
  for (let i = 0; i < truth.length; i++) {
    const allowed = (recorded.in / 4 + 8) * 2 ** -24 * magnitudes[i]!;
    if (!(Math.abs(y![i]! - truth[i]!) <= allowed)) {
      return `product: element ${i}: got ${y![i]}, expected ${truth[i]} within ${allowed}`;
    }
  }
  return undefined;
}
