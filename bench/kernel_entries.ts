/**
 * What `bench:kernels` times: the cases of the table of kernels in real shapes, and every 4-bit matrix-vector product of the
 * models that benches know.
 *
 * @module
 */
import { int8Matmul } from "../kernels/int8_matmul.ts";
import { int8Call } from "../kernels/int8_matmul_cases.ts";
import { seededRandom } from "../kernels/random.ts";
import { repeatedWeight } from "../kernels/random_product.ts";
import { buffer, compile, type Cost, type Device, kernelNode, type Program, Storage } from "../tensor/mod.ts";
import { compileKernel } from "../tensor/run_kernel.ts";
import { KERNEL_CASES } from "../tests/kernel_table.ts";
import { benchFormat } from "./random_model.ts";
import { shapeConfig, type ShapeName, shapeNames } from "./shapes.ts";

/** One line of the bench. */
export interface Entry {
  readonly name: string;
  /** Puts its data on the device. Large weights do not all fit at a time: one entry is held at once. */
  open(device: Device): OpenEntry;
}

/** An entry that can run. */
export interface OpenEntry {
  readonly program: Program;
  /** How many times a run does what is timed, each time on other weights. */
  readonly copies: number;
  release(): void;
}

/** More than a GPU's cache: products run over copies of their weight of so many bytes, so that it comes from memory. */
const COLD_BYTES = 192e6;

/** Rows and columns of each product of a decoder, by its role. */
export function productsOf(shape: ShapeName): [role: string, rows: number, columns: number][] {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim, vocabSize } = shapeConfig(shape);
  return [
    ["QKV", (numHeads + 2 * numKvHeads) * headDim, hiddenSize],
    ["attention's output", hiddenSize, numHeads * headDim],
    ["gate and up", 2 * intermediateSize, hiddenSize],
    ["down", hiddenSize, intermediateSize],
    ["LM head", vocabSize, hiddenSize],
  ];
}

/** A 4-bit product with one token's codes. */
function openProduct(device: Device, rows: number, columns: number): OpenEntry {
  const { params, inputs } = int8Call({ format: benchFormat }, [1, rows, columns], seededRandom(1), repeatedWeight);
  const place = (some: typeof inputs): Storage[] =>
    some.map(({ dtype, shape, data }) => new Storage(dtype, shape, data.slice() as typeof data, "a product's input"));
  const weight = inputs.slice(2), bytes = weight.reduce((sum, { data }) => sum + data.byteLength, 0);
  const copies = device.caps.cpu ? 1 : Math.ceil(COLD_BYTES / bytes);
  const x = place(inputs.slice(0, 2)), weights = Array.from({ length: copies }, () => place(weight));
  const program = compile(device, () =>
    weights.map((one) => {
      return kernelNode(int8Matmul, [...x, ...one].map((storage) => buffer(storage)), params);
    }), { label: "a product" });
  const release = (): void => {
    program.dispose();
    [...x, ...weights.flat()].forEach((storage) => storage.release());
  };
  return { program, copies, release };
}

/** All entries, those of the products first. The largest shape is left out on CPU devices. */
export function kernelEntries(cpu: boolean): Entry[] {
  const products = shapeNames.filter((shape) => !(cpu && shape === "7b")).flatMap((shape) =>
    productsOf(shape).map(([role, rows, columns]): Entry => ({
      name: `4-bit matrix-vector ${rows} x ${columns}: ${shape}, ${role}`,
      open: (device) => openProduct(device, rows, columns),
    }))
  );
  const table = KERNEL_CASES.flatMap(({ name, kernel, bench = {} }) =>
    Object.entries(bench).filter(([label]) => !(cpu && label.startsWith("7B"))).map(([label, make]): Entry => ({
      name: `${name}: ${label}`,
      open: (device) => ({ ...compileKernel(device, kernel, make(seededRandom(1))), copies: 1 }),
    }))
  );
  return [...products, ...table];
}

/** What one of an entry's copies has to compute and move. */
export function costOf({ program, copies }: OpenEntry): Cost {
  const costs = program.dispatches.map(({ cost }) => cost);
  const sum = (of: (cost: Cost) => number): number => costs.reduce((total, cost) => total + of(cost), 0) / copies;
  return { bytes: sum(({ bytes }) => bytes), flops: sum(({ flops }) => flops) };
}
