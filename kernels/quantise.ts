/**
 * Activations as 8-bit codes, one scale for each 32 columns: what the products of `int8_matmul.ts` take.
 *
 *     scale[t, b] = max |x[t, c]| / 127          c in block b: columns 32 b to 32 b + 31
 *     code[t, c]  = round(x[t, c] / scale[t, b])          -127 to 127
 *     sum[t, b]   = scale[t, b] * sum of code[t, c]
 *
 * The sum is that of what the codes stand for, not of x: a weight is code * scale + bias, two large terms that nearly cancel,
 * and only if both meet the same rounded activation does its rounding cancel with them. With the sum of x itself the mean KL
 * of a real 0.5B model at 4 bits was 1.3e-2, over ten times as much.
 *
 * Layout: codes u32 [T, K / 4], two words for each eight columns. The first word has columns 0, 2, 4, 6, the second one 1, 3,
 * 5, 7, the lowest column in the lowest byte. That is the order in which masking splits a word of eight 4-bit weights, so
 * that products move no bits of either side. Scales f32 [T, K / 32, 2]: scale, then sum.
 *
 * An invocation takes eight columns, and four neighbours a block. `rmsNormQuantise32` normalises in the same dispatch
 * (`norm.ts` has the formula): one workgroup takes one row.
 *
 * @module
 */
import { type Dim, formatShape } from "../tensor/dim.ts";
import { isFloat } from "../tensor/dtype.ts";
import {
  type Caps,
  dimWgsl,
  type Kernel,
  type KernelCall,
  type KernelSource,
  type Resolver,
  type TensorType,
} from "../tensor/kernel.ts";
import { kernelNode, type Node, output } from "../tensor/node.ts";
import { rmsNormKernel, type RmsNormParams } from "./norm.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";
import { leastBytes } from "./least_bytes.ts";
import {
  blockFunctions,
  normaliseDeclarations,
  normaliseWgsl,
  octet,
  outputStore,
  quantiseOctet,
  smallestMax,
} from "./quantise_wgsl.ts";

/** Columns that share a scale. */
export const activationBlock = 32;

/** Activations [T, K] in 8-bit codes. */
export interface QuantisedActivations {
  /** u32 [T, K / 4], four codes a word, in the order that this file's head states. */
  readonly codes: Node;
  /** f32 [T, K / 32, 2]: scale of a block, and the sum of what its codes stand for. */
  readonly scales: Node;
}

/** Columns of a block of eight in the order of their bytes. */
export const codeOrder = [0, 2, 4, 6, 1, 3, 5, 7] as const;

function checkActivations(x: TensorType | undefined): { rows: Dim; columns: number } {
  if (!x || x.shape.length !== 2 || !isFloat(x.dtype)) {
    const given = x ? `${x.dtype} ${formatShape(x.shape)}` : "nothing";
    throw new Error(`Cannot quantise ${given}: activations are floats of shape [tokens, columns]`);
  }
  const [rows, columns] = x.shape as [Dim, number];
  if (columns % activationBlock !== 0 || columns === 0) {
    throw new Error(`Cannot quantise ${formatShape(x.shape)}: columns have to be a multiple of ${activationBlock}`);
  }
  return { rows, columns };
}

function outputTypesOf(x: TensorType | undefined): TensorType[] {
  const { rows, columns } = checkActivations(x);
  return [
    { dtype: "u32", shape: [rows, columns / 4] },
    { dtype: "f32", shape: [rows, columns / activationBlock, 2] },
  ];
}

/**
 * The plain definition, in float64.
 *
 * @param x Activations, whole rows of a multiple of 32 columns.
 * @returns Words of codes, and scale and sum of each block.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { quantiseActivations } from "./quantise.ts";
 * const x = Float32Array.from({ length: 32 }, (_, i) => i === 31 ? 127 : i);
 * const { codes, scales } = quantiseActivations(x);
 * assertEquals([codes[0], codes[1]], [0x06040200, 0x07050301]);
 * assertEquals([...scales], [1, 592]); // 0 + 1 + … + 30 + 127
 * ```
 */
export function quantiseActivations(
  x: ArrayLike<number>,
): { codes: Uint32Array<ArrayBuffer>; scales: Float64Array<ArrayBuffer> } {
  const blocks = x.length / activationBlock;
  const codes = new Int8Array(x.length), scales = new Float64Array(2 * blocks);
  for (let block = 0; block < blocks; block++) {
    let greatest = 0, sum = 0;
    for (let c = 0; c < activationBlock; c++) greatest = Math.max(greatest, Math.abs(x[block * activationBlock + c]!));
    const scale = greatest > smallestMax ? greatest / 127 : 0;
    for (let c = 0; c < activationBlock && scale > 0; c++) {
      const from = block * activationBlock + (c & ~7) + codeOrder[c & 7]!;
      sum += codes[block * activationBlock + c] = Math.round(x[from]! / scale);
    }
    scales.set([scale, scale * sum], 2 * block);
  }
  return { codes: new Uint32Array(codes.buffer), scales };
}

/** Invocations of a workgroup that quantises without a norm. */
const plainLanes = 64;

function plainWgsl(call: KernelCall<null>, caps: Caps): KernelSource {
  const { rows, columns } = checkActivations(call.inputs[0]);
  return {
    inputs: [{ name: "x", width: 4 }],
    outputs: [{ name: "codes", width: 2 }, { name: "scales", width: 2 }],
    workgroupSize: [plainLanes, 1, 1],
    subgroups: caps.subgroups,
    declarations: blockFunctions(plainLanes, caps),
    main: `
    let count = ${dimWgsl(rows)} * ${columns / octet}u;
    let at = (workgroup.y * groups.x + workgroup.x) * ${plainLanes}u + lane;
    let pair = min(at, count - 1u) * 2u;
    let low = x(pair);
    let high = x(pair + 1u);
    ${quantiseOctet("at", "at < count", caps)}`,
  };
}

function plainGrid(call: KernelCall<null>, resolve: Resolver): readonly [number, number, number] {
  const { rows, columns } = checkActivations(call.inputs[0]);
  const count = Math.ceil(resolve(rows) * columns / octet / plainLanes);
  const width = Math.min(count, 32768);
  return [width, width === 0 ? 0 : Math.ceil(count / width), 1];
}

function normLanes(columns: number, caps: Caps): number {
  if (caps.joinedLanes) return caps.joinedLanes;
  if (caps.cpu) return 8;
  const wanted = 2 ** Math.ceil(Math.log2(Math.max(32, columns / octet)));
  return Math.min(wanted, 512, caps.maxInvocations);
}

function normWgsl(call: KernelCall<RmsNormParams>, caps: Caps): KernelSource {
  const { rows, columns } = checkActivations(call.inputs[0]), lanes = normLanes(columns, caps);
  const start = `row * ${columns / octet}u`;
  const { eps } = call.params, text = { columns, lanes, eps, from: start, to: start, store: outputStore };
  const { loads, rest } = normaliseWgsl(text, caps);
  return {
    inputs: [{ name: "x", width: 4 }, { name: "weight", width: 4 }],
    outputs: [{ name: "codes", width: 2 }, { name: "scales", width: 2 }],
    workgroupSize: [lanes, 1, 1],
    subgroups: caps.subgroups,
    declarations: normaliseDeclarations(text, caps) + blockFunctions(lanes, caps),
    main: `
    ${rowWgsl(dimWgsl(rows))}
    ${loads}${rest}`,
  };
}

/** Quantisation as a kernel: x [T, K] f32 or f16 to codes and scales. */
export const quantise32Kernel: Kernel<null> = {
  name: "quantise32",
  infer: ([x]) => outputTypesOf(x),
  wgsl: plainWgsl,
  grid: (call, _caps, resolve) => plainGrid(call, resolve),
  reference(_call, [x]) {
    const { codes, scales } = quantiseActivations(x!);
    return [Float64Array.from(codes), scales];
  },
  cost(call, caps, resolve) {
    const { rows, columns } = checkActivations(call.inputs[0]);
    return { flops: 4 * resolve(rows) * columns, bytes: leastBytes(call, caps, resolve) };
  },
  absorb([x], _params, context) {
    if (x?.op !== "kernel" || context.readers(x) !== 1) return undefined;
    if (x.kernel === rmsNormKernel as Kernel<unknown>) {
      return kernelNode(rmsNormQuantise32Kernel, x.src, x.params as RmsNormParams);
    }
    return x.kernel.withQuantise32?.(x.src, x.params, context);
  },
};

/** RMSNorm and quantisation in one dispatch: x [T, K] f32 or f16 and weight [K] to codes and scales. */
export const rmsNormQuantise32Kernel: Kernel<RmsNormParams> = {
  name: "rms_norm_quantise32",
  infer(inputs, params) {
    rmsNormKernel.infer(inputs, params);
    return outputTypesOf(inputs[0]);
  },
  wgsl: normWgsl,
  grid: (call, _caps, resolve) => rowGrid(1, resolve(checkActivations(call.inputs[0]).rows)),
  reference(call, inputs) {
    const { codes, scales } = quantiseActivations(rmsNormKernel.reference(call, inputs)[0]!);
    return [Float64Array.from(codes), scales];
  },
  cost(call, caps, resolve) {
    const { rows, columns } = checkActivations(call.inputs[0]);
    return { flops: 8 * resolve(rows) * columns, bytes: leastBytes(call, caps, resolve) };
  },
};

/**
 * Activations in 8-bit codes, one scale for each 32 columns.
 *
 * @param x [T, K] f32 or f16, K a multiple of 32.
 * @throws Where x has another shape: `Cannot quantise f32 [3, 40]: …`.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { input } from "../tensor/node.ts";
 * import { quantise32 } from "./quantise.ts";
 * const { codes, scales } = quantise32(input("x", "f32", [3, 64]));
 * assertEquals([codes.shape, scales.shape], [[3, 16], [3, 2, 2]]);
 * ```
 */
export function quantise32(x: Node): QuantisedActivations {
  const codes = kernelNode(quantise32Kernel, [x], null);
  return { codes, scales: output(codes, 1) };
}

/**
 * RMSNorm over the last axis, quantised for the products that follow: one dispatch.
 *
 * @param x [T, K] f32 or f16, K a multiple of 32. @param weight [K]. @param eps Added to the mean of squares.
 */
export function rmsNormQuantise32(x: Node, weight: Node, eps: number): QuantisedActivations {
  const codes = kernelNode(rmsNormQuantise32Kernel, [x, weight], { eps });
  return { codes, scales: output(codes, 1) };
}
