/**
 * Copies whole blocks of a pool of keys or values: copy-on-write of the paged cache (Kwon et al. 2023, section 4.4). A
 * sequence that shares a block with another gets a block of its own before it writes there.
 *
 *     pool[to * blockSize + i] = pool[from * blockSize + i]   for each pair (from, to) and i < blockSize
 *
 * @module
 */
import { formatShape } from "../tensor/dim.ts";
import { bytesPerElement, isFloat } from "../tensor/dtype.ts";
import { dimWgsl, type Kernel, type KernelCall, type TensorType } from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";

/** Parameters of the copy. */
export interface CopyBlocksParams {
  /** Tokens of a block. */
  readonly blockSize: number;
}

const LANES = 64;

/** Blocks of the pool, and how many loads copy one, of how many elements each. */
function sizes(
  { inputs, params: { blockSize } }: KernelCall<CopyBlocksParams>,
): Record<"blocks" | "loads" | "width", number> {
  const [slots, kvHeads, headDim] = inputs[0]!.shape as [number, number, number];
  const width = headDim % 4 === 0 ? 4 : 1;
  return { blocks: slots / blockSize, loads: blockSize * kvHeads * headDim / width, width };
}

function checkTypes([pool, pairs]: readonly TensorType[], { blockSize }: CopyBlocksParams): void {
  const slots = pool?.shape[0];
  const goodPool = pool && pool.shape.length === 3 && isFloat(pool.dtype) && typeof slots === "number";
  if (!goodPool || slots % blockSize !== 0) {
    const given = pool ? `${pool.dtype} ${formatShape(pool.shape)}` : "nothing";
    throw new Error(
      `Cannot copy blocks of ${blockSize} tokens: the pool is ${given}, not floats [slots, kvHeads, headDim]`,
    );
  }
  if (pairs?.dtype === "i32" && pairs.shape.length === 2 && pairs.shape[1] === 2) return;
  const given = pairs ? `${pairs.dtype} ${formatShape(pairs.shape)}` : "nothing";
  throw new Error(`Cannot copy blocks: the pairs are ${given}, not i32 [copies, 2]`);
}

/** pool [numBlocks * blockSize, kvHeads, D] and pairs [N, 2] i32 to the pool's next version. */
export const copyBlocksKernel: Kernel<CopyBlocksParams> = {
  name: "copy_blocks",
  infer(inputs, params) {
    checkTypes(inputs, params);
    return [inputs[0]!];
  },
  wgsl(call) {
    const { blocks, loads, width } = sizes(call), port = width === 4 ? 4 : 1;
    return {
      inputs: [{ name: "pool", width: port }, { name: "pairs" }],
      outputs: [{ name: "next", width: port }],
      workgroupSize: [LANES, 1, 1],
      main: `
  ${rowWgsl(dimWgsl(call.inputs[1]!.shape[0]!))}
  let origin = pairs(row * 2u);
  let copy = pairs(row * 2u + 1u);
  if (global.x >= ${loads}u || min(origin, copy) < 0 || max(origin, copy) >= ${blocks}) { return; }
  store_next(u32(copy) * ${loads}u + global.x, pool(u32(origin) * ${loads}u + global.x));`,
    };
  },
  grid: (call, _caps, resolve) => rowGrid(Math.ceil(sizes(call).loads / LANES), resolve(call.inputs[1]!.shape[0]!)),
  reference(call, [pool, pairs]) {
    const next = Float64Array.from(pool!), { blocks, loads, width } = sizes(call), size = loads * width;
    for (let at = 0; at < pairs!.length; at += 2) {
      const from = pairs![at]!, to = pairs![at + 1]!;
      if (Math.min(from, to) >= 0 && Math.max(from, to) < blocks) {
        next.copyWithin(to * size, from * size, (from + 1) * size);
      }
    }
    return [next];
  },
  cost(call, caps, resolve) {
    const { loads, width } = sizes(call), copies = resolve(call.inputs[1]!.shape[0]!);
    return { flops: 0, bytes: copies * (2 * loads * width * bytesPerElement(call.inputs[0]!.dtype, caps.f16) + 8) };
  },
  updates: () => [0],
};

/**
 * Copies blocks within a pool.
 *
 * @param pool [numBlocks * blockSize, kvHeads, D] f16 or f32; must not be read afterwards.
 * @param pairs [N, 2] i32: from and to. No block is written twice, and none that is written is read.
 * @returns The pool's next version.
 */
export function copyBlocks(pool: Node, pairs: Node, params: CopyBlocksParams): Node {
  return kernelNode(copyBlocksKernel, [pool, pairs], params);
}
