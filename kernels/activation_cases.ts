/** Cases of SwiGLU's gate: odd sizes, and values where exp(-x) would overflow or underflow. */
import { swigluKernel } from "./activation.ts";
import type { CaseCall, KernelCase, Random } from "./spec.ts";

const edges = [0, -0, 1e-30, -1e-30, 20, -20, 87, -87, 88.8, -88.8, 110, -110, 1000, -1000];

function call(rows: number, columns: number, random: Random): CaseCall<null> {
  const data = Float32Array.from({ length: rows * columns * 2 }, () => {
    return random.uniform() < 0.1 ? edges[random.integer(0, edges.length - 1)]! : random.normal() * 3;
  });
  return { params: null, inputs: [{ dtype: "f32", shape: [rows, columns * 2], data }] };
}

/**
 * exp errs by 3 + 2 |x| units of 2^-23 (WGSL's accuracy table), a division by 2.5, products by 0.5 each. Where exp
 * or a product underflows what is lost is below 2^-126 times the other factors.
 */
function tolerance({ inputs }: CaseCall<null>, [y]: readonly Float64Array[]): Float64Array[] {
  const doubled = inputs[0]!.shape[1] as number, columns = doubled / 2;
  return [y!.map((value, i) => {
    const at = Math.floor(i / columns) * doubled + i % columns;
    const gate = Math.abs(inputs[0]!.data[at]!), up = Math.abs(inputs[0]!.data[at + columns]!);
    return Math.abs(value) * (8 + 2 * gate) * 2 ** -23 + (gate + 1) * (up + 1) * 2 ** -125;
  })];
}

/** Cases of SwiGLU's gate. */
export const cases: KernelCase<null>[] = [{
  name: "swiglu",
  kernel: swigluKernel,
  random: (random) => call(random.integer(1, 9), [1, 5, 45, 64, 300, 1408][random.integer(0, 5)]!, random),
  tolerance,
  bench: {
    "0.5B, one row": (random) => call(1, 4864, random),
    "0.5B, 128 rows": (random) => call(128, 4864, random),
    "7B, 512 rows": (random) => call(512, 18944, random),
  },
}];
