/**
 * SwiGLU's gate (Shazeer 2020, "GLU Variants Improve Transformer"): silu(gate) * up, where silu(x) = x / (1 + exp(-x)).
 * Gate and up come as the two halves of one row, as one matrix product leaves them.
 *
 * exp(-x) overflows f32 from x = -88 on, and infinities are not kept on every device: the sigmoid is computed from
 * exp(-|x|), which never exceeds 1.
 *
 * @module
 */
import { type Dim, formatShape } from "../tensor/dim.ts";
import { bytesPerElement, isFloat } from "../tensor/dtype.ts";
import { dimWgsl, type Kernel, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";

/**
 * WGSL of `silu_gate(v, gate)`, silu(v) * gate, with which products join the halves of their columns. exp stays finite: at -80
 * and below, silu is 0 to f32's precision.
 */
export const siluGateFunction: string =
  "fn silu_gate(v: f32, gate: f32) -> f32 {\n  return v / (1.0 + exp(-max(v, -80.0))) * gate;\n}\n";

const LANES = 64;

function sizes(call: KernelCall<null>): { rows: Dim; columns: number } {
  const [rows, doubled] = call.inputs[0]!.shape as [Dim, number];
  return { rows, columns: doubled / 2 };
}

/** Elements that a lane takes at once. */
function widthOf(columns: number): 1 | 4 {
  return columns % 4 === 0 ? 4 : 1;
}

function wgsl(call: KernelCall<null>): KernelSource {
  const { rows, columns } = sizes(call), width = widthOf(columns), count = columns / width;
  const type = width === 4 ? "vec4f" : "f32";
  return {
    inputs: [{ name: "gate_up", width }],
    outputs: [{ name: "y", width }],
    workgroupSize: [LANES, 1, 1],
    main: `
  ${rowWgsl(dimWgsl(rows))}
  if (global.x >= ${count}u) { return; }
  let gate = gate_up(row * ${2 * count}u + global.x);
  let up = gate_up(row * ${2 * count}u + ${count}u + global.x);
  let decay = exp(-abs(gate));
  let sigmoid = select(decay, ${type}(1.0), gate >= ${type}(0.0)) / (1.0 + decay);
  store_y(row * ${count}u + global.x, gate * sigmoid * up);`,
  };
}

/** SwiGLU's gate as a kernel: [T, 2 I] f32 or f16 to [T, I] f32. */
export const swigluKernel: Kernel<null> = {
  name: "swiglu",
  infer([gateUp]) {
    const doubled = gateUp?.shape[1];
    if (!gateUp || gateUp.shape.length !== 2 || !isFloat(gateUp.dtype) || (doubled as number) % 2 !== 0) {
      throw new Error(
        `Cannot gate ${gateUp ? formatShape(gateUp.shape) : "nothing"}: it has to be floats [rows, 2 columns]`,
      );
    }
    return [{ dtype: "f32", shape: [gateUp.shape[0]!, (doubled as number) / 2] }];
  },
  wgsl,
  grid(call, _caps, resolve) {
    const { rows, columns } = sizes(call);
    return rowGrid(Math.ceil(columns / widthOf(columns) / LANES), resolve(rows));
  },
  reference(call, [gateUp]) {
    const { columns } = sizes(call), y = new Float64Array(gateUp!.length / 2);
    for (let i = 0; i < y.length; i++) {
      const start = Math.floor(i / columns) * 2 * columns + i % columns;
      const gate = gateUp![start]!, up = gateUp![start + columns]!;
      y[i] = gate / (1 + Math.exp(-gate)) * up;
    }
    return [y];
  },
  cost(call, caps, resolve) {
    const { rows, columns } = sizes(call), elements = resolve(rows) * columns;
    return { flops: 5 * elements, bytes: elements * (4 + 2 * bytesPerElement(call.inputs[0]!.dtype, caps.f16)) };
  },
};

/**
 * SwiGLU's gate: silu of the first half of each row times the second half (Shazeer 2020).
 *
 * @param gateUp [T, 2 I] f32 or f16.
 * @returns [T, I] f32.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { swiglu } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const y = swiglu(tensor([[0, 100, 5, 2]]).node); // gates 0 and 100, times 5 and 2
 * assertEquals([...await new Tensor(y).data()], [0, 200]);
 * ```
 */
export function swiglu(gateUp: Node): Node {
  return kernelNode(swigluKernel, [gateUp], null);
}
