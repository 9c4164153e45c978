/**
 * Rotary position embedding (Su et al. 2021, "RoFormer"): the pair (a, b) of features turns by position times
 * frequency,
 *
 *     (a, b) -> (a cos - b sin, b cos + a sin)
 *
 * `traditional` pairs features 2i and 2i + 1 as the paper does, otherwise i and i + rotaryDim / 2 (GPT-NeoX and nearly
 * every checkpoint since). Features from rotaryDim on pass through.
 *
 * Cosines and sines come from a table computed on the CPU in float64: f32 angles alone are off by 6e-4 near position
 * 32,767, and drivers promise little for sin and cos.
 *
 * @module
 */
import { type Dim, formatShape, maxOf } from "../tensor/dim.ts";
import { bytesPerElement, isFloat } from "../tensor/dtype.ts";
import { dimWgsl, type Kernel, type KernelCall, type KernelSource, type TensorType } from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";

/** How features rotate. */
export interface RopeParams {
  /** Features that rotate, from the first: even, at most the head's size. */
  readonly rotaryDim: number;
  /** Pairs (2i, 2i + 1) rather than (i, i + rotaryDim / 2). */
  readonly traditional: boolean;
}

/** Refuses a rotation that does not fit `headDim`, a table that does not fit it, or positions of the wrong type. */
export function checkRotation(
  { rotaryDim }: RopeParams,
  headDim: number,
  rows: Dim,
  positions: TensorType,
  table: TensorType,
): void {
  if (rotaryDim % 2 !== 0 || rotaryDim < 2 || rotaryDim > headDim) {
    throw new Error(`Cannot rotate ${rotaryDim} features of heads of ${headDim}: an even number up to that is needed`);
  }
  if (table.dtype !== "f32" || table.shape.length !== 3 || table.shape[1] !== rotaryDim / 2 || table.shape[2] !== 2) {
    throw new Error(
      `Cannot rotate: the table is ${table.dtype} ${formatShape(table.shape)}, not f32 [positions, ${
        rotaryDim / 2
      }, 2]`,
    );
  }
  const whole = positions.dtype === "i32" || positions.dtype === "u32";
  if (!whole || positions.shape.length !== 1 || maxOf(positions.shape[0]!) !== maxOf(rows)) {
    throw new Error(
      `Cannot rotate: positions are ${positions.dtype} ${formatShape(positions.shape)}, not whole numbers [${rows}]`,
    );
  }
}

/** Where the two features of pair `i` stand in a head. */
export function pairOf(i: number, { rotaryDim, traditional }: RopeParams): [number, number] {
  return traditional ? [2 * i, 2 * i + 1] : [i, i + rotaryDim / 2];
}

/** WGSL of {@linkcode pairOf}: declares `first` and `second` out of `i`. */
export function pairWgsl({ rotaryDim, traditional }: RopeParams): string {
  return traditional
    ? "let first = 2u * i; let second = first + 1u;"
    : `let first = i; let second = i + ${rotaryDim / 2}u;`;
}

/** WGSL: the first pair of the table at a row's position, kept inside the table for rows that are padding. */
export function anglesWgsl({ rotaryDim }: RopeParams, table: TensorType): string {
  const last = maxOf(table.shape[0]!) - 1;
  return `let angles = u32(clamp(i32(positions(row)), 0, ${last})) * ${rotaryDim / 2}u;`;
}

const LANES = 64;

function sizes(call: KernelCall<RopeParams>): { rows: Dim; heads: number; headDim: number; items: number } {
  const [rows, heads, headDim] = call.inputs[0]!.shape as [Dim, number, number];
  return { rows, heads, headDim, items: headDim - call.params.rotaryDim / 2 };
}

function wgsl(call: KernelCall<RopeParams>): KernelSource {
  const { rows, heads, headDim, items } = sizes(call), { rotaryDim } = call.params;
  // A lane takes one pair, or one feature that passes through.
  return {
    inputs: [{ name: "x" }, { name: "positions" }, { name: "table", width: 2 }],
    outputs: [{ name: "y" }],
    workgroupSize: [LANES, 1, 1],
    main: `
  ${rowWgsl(dimWgsl(rows))}
  if (global.x >= ${heads * items}u) { return; }
  let head = global.x / ${items}u;
  let i = global.x - head * ${items}u;
  let base = (row * ${heads}u + head) * ${headDim}u;
  if (i >= ${rotaryDim / 2}u) {
    store_y(base + i + ${rotaryDim / 2}u, x(base + i + ${rotaryDim / 2}u));
    return;
  }
  ${anglesWgsl(call.params, call.inputs[2]!)}
  ${pairWgsl(call.params)}
  let turn = table(angles + i);
  let a = x(base + first);
  let b = x(base + second);
  store_y(base + first, fma(a, turn.x, -(b * turn.y)));
  store_y(base + second, fma(b, turn.x, a * turn.y));`,
  };
}

/** RoPE as a kernel: x [T, heads, D], positions [T], table [P, rotaryDim / 2, 2] to [T, heads, D] f32. */
export const ropeKernel: Kernel<RopeParams> = {
  name: "rope",
  infer([x, positions, table], params) {
    if (!x || !positions || !table || x.shape.length !== 3 || !isFloat(x.dtype)) {
      throw new Error("Cannot rotate: x has to be floats [rows, heads, headDim], with positions and a table");
    }
    checkRotation(params, x.shape[2] as number, x.shape[0]!, positions, table);
    return [{ dtype: "f32", shape: x.shape }];
  },
  wgsl,
  grid(call, _caps, resolve) {
    const { rows, heads, items } = sizes(call);
    return rowGrid(Math.ceil(heads * items / LANES), resolve(rows));
  },
  reference(call, [x, positions, table]) {
    const { heads, headDim } = sizes(call), half = call.params.rotaryDim / 2;
    const y = Float64Array.from(x!);
    for (let base = 0; base < y.length; base += headDim) {
      const angles = positions![Math.floor(base / headDim / heads)]! * half;
      for (let i = 0; i < half; i++) {
        const [first, second] = pairOf(i, call.params);
        const a = x![base + first]!, b = x![base + second]!;
        const cosine = table![2 * (angles + i)]!, sine = table![2 * (angles + i) + 1]!;
        y[base + first] = a * cosine - b * sine;
        y[base + second] = b * cosine + a * sine;
      }
    }
    return [y];
  },
  cost(call, caps, resolve) {
    const { rows, heads, headDim } = sizes(call), count = resolve(rows);
    return {
      flops: 3 * count * heads * call.params.rotaryDim,
      bytes: count * (heads * headDim * (4 + bytesPerElement(call.inputs[0]!.dtype, caps.f16)) +
        4 * call.params.rotaryDim + 4),
    };
  },
};

/**
 * Rotates queries or keys by their positions (Su et al. 2021).
 *
 * @param x [T, heads, D] f32 or f16.
 * @param positions [T] i32 or u32.
 * @param table [P, rotaryDim / 2, 2] f32: cosine and sine of each position and frequency.
 * @returns [T, heads, D] f32.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { rope } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const x = tensor([[[1, 2]], [[1, 2]]]); // two tokens, one head of two features
 * const table = tensor([[[1, 0]], [[0, 1]]]); // position 0 turns by nothing, position 1 by a right angle
 * const positions = tensor([0, 1], { dtype: "i32" });
 * const turned = rope(x.node, positions.node, table.node, { rotaryDim: 2, traditional: false });
 * assertEquals([...await new Tensor(turned).data()], [1, 2, -2, 1]);
 * ```
 */
export function rope(x: Node, positions: Node, table: Node, params: RopeParams): Node {
  return kernelNode(ropeKernel, [x, positions, table], params);
}
