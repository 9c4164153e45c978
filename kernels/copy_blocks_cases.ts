/** Cases of copying blocks: any shape, both ways of storing, pairs that name no block among them. */
import { float16Bits, float16Value } from "../tensor/dtype.ts";
import { copyBlocksKernel, type CopyBlocksParams } from "./copy_blocks.ts";
import type { KernelCase } from "./spec.ts";

/** Cases of the kernel. */
export const cases: KernelCase<CopyBlocksParams>[] = [{
  name: "copy_blocks",
  kernel: copyBlocksKernel,
  random(random) {
    const blocks = random.integer(2, 12), blockSize = [1, 4, 16][random.integer(0, 2)]!;
    const shape = [blocks * blockSize, random.integer(1, 3), [4, 33, 64][random.integer(0, 2)]!];
    const half = random.uniform() < 0.5, round = half ? (x: number) => float16Value(float16Bits(x)) : (x: number) => x;
    const data = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => round(random.normal()));
    const order = Array.from({ length: blocks }, (_, i) => i).sort(() => random.uniform() - 0.5);
    const copies = random.integer(1, blocks >> 1), read = order.slice(copies);
    const pairs = order.slice(0, copies).flatMap((to, i) => {
      const from = read[random.integer(0, read.length - 1)]!;
      return i === 3 ? [from, blocks] : [from, to];
    });
    return {
      params: { blockSize },
      inputs: [
        { dtype: half ? "f16" : "f32", shape, data },
        { dtype: "i32", shape: [copies, 2], data: Int32Array.from(pairs) },
      ],
    };
  },
  tolerance: () => [0],
}];
