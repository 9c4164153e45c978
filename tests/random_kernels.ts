/**
 * Hand-written kernels for random graphs: one whose store takes an epilogue, one with two outputs, one that updates its
 * input in place. They work on i32, so that their references are exact.
 */
import type { Dim } from "../tensor/dim.ts";
import { dimWgsl, type Kernel, type TensorType } from "../tensor/kernel.ts";

const WORKGROUP = 64;

/** A kernel that computes each element of its outputs from one of its input. */
function elementwise(
  name: string,
  functions: readonly { wgsl: string; value: (x: number) => number }[],
  more: Partial<Kernel<null>> = {},
): Kernel<null> {
  const countOf = (type: TensorType, resolve: (dim: Dim) => number): number =>
    type.shape.reduce<number>((n, dim) => n * resolve(dim), 1);
  return {
    name,
    infer: ([x]) => functions.map(() => x!),
    wgsl: ({ inputs }) => {
      const count = inputs[0]!.shape.map(dimWgsl).join(" * ") || "1u";
      const stores = functions.map(({ wgsl }, k) => `  store_y${k}(i, ${wgsl});`).join("\n");
      return {
        inputs: [{ name: "x" }],
        outputs: functions.map((_, k) => ({ name: `y${k}` })),
        workgroupSize: [WORKGROUP, 1, 1],
        main: `  let i = global.x;\n  if (i >= ${count}) { return; }\n  let value = x(i);\n${stores}`,
      };
    },
    grid: ({ inputs }, _caps, resolve) => [Math.ceil(countOf(inputs[0]!, resolve) / WORKGROUP), 1, 1],
    reference: (_call, [x]) => functions.map(({ value }) => Float64Array.from(x!, value)),
    cost: ({ inputs }, _caps, resolve) => ({
      flops: 0,
      bytes: 4 * (1 + functions.length) * countOf(inputs[0]!, resolve),
    }),
    ...more,
  };
}

/** The kernels by name. */
export const RANDOM_KERNELS: Readonly<Record<string, Kernel<null>>> = {
  triple: elementwise("triple", [{ wgsl: "value * 3i + 1i", value: (x) => (Math.imul(x, 3) + 1) | 0 }], {
    slots: ["elementwise"],
  }),
  halves: elementwise("halves", [
    { wgsl: "max(value, 0i)", value: (x) => Math.max(x, 0) },
    { wgsl: "min(value, 0i)", value: (x) => Math.min(x, 0) },
  ]),
  advance: elementwise("advance", [{ wgsl: "value + 1i", value: (x) => (x + 1) | 0 }], { updates: () => [0] }),
};
