/**
 * Root mean square normalisation (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"):
 *
 *     y = x / sqrt(mean(x²) + eps) * weight
 *
 * One workgroup takes one row. Its lanes sum squares over strided columns and every lane adds up the lanes' sums in the
 * same order, so that a row's result depends on nothing but the row. Multiply-adds are written as `fma`: no compiler may join
 * them one way in a program for one row and another way in one for many.
 *
 * @module
 */
import { type Dim, elementCount, formatShape } from "../tensor/dim.ts";
import { bytesPerElement, isFloat } from "../tensor/dtype.ts";
import { type Caps, dimWgsl, type Kernel, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";

/** Parameters of RMSNorm. */
export interface RmsNormParams {
  /** Added to the mean of squares: `rms_norm_eps` of a checkpoint. */
  readonly eps: number;
}

function sizes(call: KernelCall<RmsNormParams>): { rows: Dim; columns: number } {
  const [rows, columns] = call.inputs[0]!.shape as [Dim, number];
  return { rows, columns };
}

/** WGSL of 1 / sqrt(mean + eps), by the sum of squares of so many columns; a row of zeros gives zeros. */
export function inverseRms(squares: string, columns: number, eps: number): string {
  return `inverseSqrt(max(fma(${squares}, ${1 / columns}, ${eps}), 1.2e-38))`;
}

/** Lanes of a row's workgroup. A CPU runs lanes one subgroup after the other: one is enough. */
function lanesOf(columns: number, caps: Caps): number {
  if (caps.cpu) return 8;
  return columns >= 1024 ? 256 : 64;
}

function wgsl(call: KernelCall<RmsNormParams>, caps: Caps): KernelSource {
  const { rows, columns } = sizes(call);
  const wide = columns % 4 === 0;
  const width = wide ? 4 : 1, count = columns / width, lanes = lanesOf(columns, caps);
  const vector = wide ? "vec4f" : "f32", sum = wide ? "(squares.x + squares.y) + (squares.z + squares.w)" : "squares";
  return {
    inputs: [{ name: "x", width }, { name: "weight", width }],
    outputs: [{ name: "y", width }],
    workgroupSize: [lanes, 1, 1],
    declarations: `var<workgroup> partial: array<f32, ${lanes}>;`,
    main: `
  ${rowWgsl(dimWgsl(rows))}
  let base = row * ${count}u;
  var squares = ${vector}();
  for (var i = lane; i < ${count}u; i += ${lanes}u) {
    let value = x(base + i);
    squares = fma(value, value, squares);
  }
  partial[lane] = ${sum};
  workgroupBarrier();
  var sum = 0.0;
  for (var i = 0u; i < ${lanes}u; i += 8u) {
    ${Array.from({ length: 8 }, (_, i) => `sum += partial[i + ${i}u];`).join(" ")}
  }
  let inverse = ${inverseRms("sum", columns, call.params.eps)};
  for (var i = lane; i < ${count}u; i += ${lanes}u) {
    store_y(base + i, x(base + i) * inverse * weight(i));
  }`,
  };
}

/** RMSNorm as a kernel: x [T, K] f32 or f16, weight [K] to y [T, K] f32. */
export const rmsNormKernel: Kernel<RmsNormParams> = {
  name: "rms_norm",
  infer([x, weight], { eps }) {
    if (!x || !weight || x.shape.length !== 2 || !isFloat(x.dtype) || !isFloat(weight.dtype)) {
      throw new Error("Cannot normalise: x has to be [rows, columns] and weight [columns], both floats");
    }
    if (weight.shape.length !== 1 || weight.shape[0] !== x.shape[1]) {
      throw new Error(
        `Cannot normalise ${formatShape(x.shape)}: weight is ${formatShape(weight.shape)}, not [${x.shape[1]}]`,
      );
    }
    if (!(eps >= 0)) throw new Error(`Cannot normalise: eps is ${eps}, it has to be 0 or more`);
    return [{ dtype: "f32", shape: x.shape }];
  },
  wgsl,
  grid: (call, _caps, resolve) => rowGrid(1, resolve(sizes(call).rows)),
  reference(call, [x, weight]) {
    const { columns } = sizes(call), y = new Float64Array(x!.length);
    for (let start = 0; start < y.length; start += columns) {
      let squares = 0;
      for (let i = 0; i < columns; i++) squares += x![start + i]! ** 2;
      const scale = 1 / Math.sqrt(squares / columns + call.params.eps);
      for (let i = 0; i < columns; i++) y[start + i] = x![start + i]! * scale * weight![i]!;
    }
    return [y];
  },
  cost(call, caps, resolve) {
    const { rows, columns } = sizes(call), elements = resolve(rows) * columns;
    const [x, weight] = call.inputs;
    return {
      flops: 4 * elements,
      bytes: elements * (4 + bytesPerElement(x!.dtype, caps.f16)) +
        elementCount(weight!.shape) * bytesPerElement(weight!.dtype, caps.f16),
    };
  },
};

/**
 * RMSNorm over the last axis (Zhang and Sennrich 2019).
 *
 * @param x [T, K] f32 or f16. @param weight [K]. @param eps Added to the mean of squares.
 * @returns [T, K] f32.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { rmsNorm } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const y = rmsNorm(tensor([[1, -1], [3, 3]]).node, tensor([1, 2]).node, 0);
 * assertEquals([...await new Tensor(y).data()], [1, -2, 1, 2]);
 * ```
 */
export function rmsNorm(x: Node, weight: Node, eps: number): Node {
  return kernelNode(rmsNormKernel, [x, weight], { eps });
}
