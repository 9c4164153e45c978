/**
 * RMSNorm between two products, without a dispatch of its own. A row's norm is one number r, which may come last:
 *
 *     norm(x) W^T = r * ((x ∘ w) W^T),     r = 1 / sqrt(mean(x^2) + eps)          w the norm's weight
 *
 * And a block of x ∘ w has the same 8-bit codes with r as without, only another scale (`quantise.ts`). So the product that ends in
 * x, a sum with what was there before, stores codes and scales of x ∘ w beside x, and the sum of squares of each block of 32; the
 * product that takes the codes adds these up while its first weights are on their way, and multiplies its results by r.
 *
 * A product that makes its codes from x itself (`int8_activations.ts`) multiplies by r last, too. With subgroups its invocations then wait
 * for one another's squares and codes at one barrier in place of two, which is worth 2% of a step of one or eight sequences of a 0.5B model.
 *
 * On an H100 an engine decodes 32 sequences of a 0.5B model 9% faster so, and one of a 7B model 4%. Of more than some 48 tokens it is
 * slower: many rows fill the device with their norm, and each tile would have codes to make.
 *
 * @module
 */
import type { Caps, Kernel, Port, RewriteContext } from "../tensor/kernel.ts";
import { type Node, output } from "../tensor/node.ts";
import { inverseRms, rmsNormKernel, type RmsNormParams } from "./norm.ts";
import { activationBlock, quantise32Kernel, rmsNormQuantise32Kernel } from "./quantise.ts";
import { indices } from "./unroll.ts";

/** Sums of squares of each block of 32 columns. */
export function squaresReference(x: ArrayLike<number>): Float64Array {
  const squares = new Float64Array(x.length / activationBlock);
  for (let i = 0; i < x.length; i++) squares[Math.floor(i / activationBlock)]! += x[i]! ** 2;
  return squares;
}

/** The number by which each row's products are multiplied, by its blocks' sums of squares. */
export function inverseReference(squares: ArrayLike<number>, blocks: number, { eps }: RmsNormParams): Float64Array {
  const inverses = new Float64Array(squares.length / blocks);
  for (let i = 0; i < squares.length; i++) inverses[Math.floor(i / blocks)]! += squares[i]!;
  return inverses.map((total) => 1 / Math.sqrt(total / (blocks * activationBlock) + eps));
}

/** The inputs after the weight of a product that stores sums. */
export const sumPorts: readonly Port[] = [{ name: "addend" }, { name: "norm_weight" }];

/** The outputs of a product that gives results of all rows. `width` is in words of codes. */
export function outputPorts({ quantise, sums }: { quantise: boolean; sums: boolean }, width: 1 | 2): Port[] {
  const codes: Port[] = [{ name: "y_codes", width }, { name: "y_scales", width: 2 }];
  if (sums) return [{ name: "y" }, ...codes, { name: "y_squares" }];
  return quantise ? codes : [{ name: "y" }];
}

/** Storage buffers that a product has beside its inputs where it stores sums. */
export const sumBuffers = sumPorts.length + outputPorts({ quantise: false, sums: true }, 1).length;

/** The tokens of a workgroup: `token0` on, of `tokens` in all. */
interface InversesUse {
  readonly columns: number;
  readonly tokens: number;
  readonly lanes: number;
}

/** Workgroup memory of {@linkcode inversesWgsl}. */
export function inversesDeclaration({ tokens }: Pick<InversesUse, "tokens">): string {
  return `var<workgroup> inverses: array<f32, ${tokens}>;\n`;
}

/** Loads of an invocation that are under way at a time. */
const mostLoads = 32;

/**
 * WGSL that puts the number of each of the workgroup's tokens into `inverses`, in uniform control flow.
 *
 * @returns `loads`, which waits for nothing, and `rest`, which a barrier has to follow.
 */
export function inversesWgsl(
  { columns, tokens, lanes }: InversesUse,
  { eps }: RmsNormParams,
  caps: Caps,
): { loads: string; rest: string } {
  const blocks = columns / activationBlock, room = 2 ** Math.floor(Math.log2(lanes / tokens));
  const each = caps.subgroups ? Math.max(1, Math.min(room, caps.subgroupSize)) : 1, shift = Math.log2(each);
  const distances = indices(shift).map((bit) => 2 ** bit), turns = Math.ceil(blocks / each);
  const place = (turn: number): string => `squares_part + ${turn * each}u`;
  const inside = (turn: number): boolean => (turn + 1) * each <= blocks;
  const load = (turn: number): string =>
    `let squares_${turn} = squares(squares_row + ${
      inside(turn) ? place(turn) : `min(${place(turn)}, ${blocks - 1}u)`
    });\n`;
  const term = (turn: number): string =>
    inside(turn) ? `squares_${turn}` : `select(0.0, squares_${turn}, ${place(turn)} < ${blocks}u)`;
  const all = turns <= mostLoads;
  return {
    loads: `let squares_token = lane >> ${shift}u;
let squares_part = lane & ${each - 1}u;
let squares_row = min(token0 + min(squares_token, ${tokens - 1}u), tokens - 1u) * ${blocks}u;
${all ? indices(turns).map(load).join("") : ""}`,
    rest: `{
  var total = ${all ? indices(turns).map(term).join(" + ") : "0.0"};
  ${all ? "" : `for (var i = squares_part; i < ${blocks}u; i += ${each}u) { total += squares(squares_row + i); }`}
  ${distances.map((distance) => `total += subgroupShuffleXor(total, ${distance}u);`).join(" ")}
  if (squares_token < ${tokens}u && squares_part == 0u) {
    inverses[squares_token] = ${inverseRms("total", columns, eps)};
  }
}
`,
  };
}

/** The norm of `sum` that only products by `kernel` read, with its weight. */
export function normOf(
  sum: Node,
  kernel: Kernel<unknown>,
  context: RewriteContext,
): { weight: Node; params: RmsNormParams } | undefined {
  const takesCodes = (codes: Node, node: Node): boolean =>
    node.op === "output" || (node.op === "kernel" && node.kernel === kernel && node.src[0] === codes);
  for (const norm of context.readersOf(sum)) {
    if (norm.op !== "kernel") continue;
    const [reader] = context.readersOf(norm), alone = context.readers(norm) === 1;
    const codes = norm.kernel === rmsNormQuantise32Kernel as Kernel<unknown>
      ? norm
      : norm.kernel === rmsNormKernel as Kernel<unknown> && alone && isQuantise32(reader)
      ? reader
      : undefined;
    const readers = codes ? context.readersOf(codes) : [];
    if (!codes || context.readers(codes) !== readers.length || readers.length < 2) continue;
    if (readers.every((node) => takesCodes(codes, node))) {
      return { weight: norm.src[1]!, params: norm.params as RmsNormParams };
    }
  }
  return undefined;
}

function isQuantise32(node: Node | undefined): node is Node & { op: "kernel" } {
  return node?.op === "kernel" && node.kernel === quantise32Kernel as Kernel<unknown>;
}

/** The stored codes, scales and sums of squares in place of a norm's `codes`, where the product before has stored them. */
export function storedCodes(codes: Node | undefined): { inputs: readonly Node[]; params: RmsNormParams } | undefined {
  if (codes?.op !== "kernel" || codes.kernel !== rmsNormQuantise32Kernel as Kernel<unknown>) return undefined;
  const [sum, weight] = codes.src as [Node, Node], params = codes.params as RmsNormParams;
  if (sum.op !== "kernel" || sum.src.at(-1) !== weight) return undefined;
  if ((sum.params as { readonly sumNorm?: RmsNormParams } | null)?.sumNorm?.eps !== params.eps) return undefined;
  return { inputs: [output(sum, 1), output(sum, 2), output(sum, 3)], params };
}
