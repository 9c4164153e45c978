/**
 * Drawn tokens that stay on the device, each in a slot of its own, so that a step can take what an earlier one drew before the
 * host has read it: among the ids of a batch, -1 - s stands for the token in slot s.
 *
 *     slots[places[r]] = drawn[r]
 *     ids[t] = tokens[t] < 0 ? slots[-1 - tokens[t]] : tokens[t]
 *
 * @module
 */
import { formatShape, maxOf } from "../tensor/dim.ts";
import { dimWgsl, type Kernel, type TensorType } from "../tensor/kernel.ts";
import { constant, gather, kernelNode, map, type Node } from "../tensor/node.ts";

const LANES = 64;

function checkTypes([slots, drawn, places]: readonly TensorType[]): void {
  const list = (type: TensorType | undefined): boolean => type?.dtype === "i32" && type.shape.length === 1;
  if (list(slots) && list(drawn) && list(places) && maxOf(drawn!.shape[0]!) === maxOf(places!.shape[0]!)) return;
  const given = [slots, drawn, places].map((type) => type ? `${type.dtype} ${formatShape(type.shape)}` : "nothing");
  throw new Error(`Cannot keep tokens: slots, tokens and places are ${given.join(", ")}, not i32 [S], [R] and [R]`);
}

/** slots [S], drawn [R] and places [R], all i32, to the next version of the slots. A place outside the slots is skipped. */
export const keepTokensKernel: Kernel<null> = {
  name: "keep_tokens",
  infer(inputs) {
    checkTypes(inputs);
    return [inputs[0]!];
  },
  wgsl: ({ inputs: [slots, drawn] }) => ({
    inputs: [{ name: "slots" }, { name: "drawn" }, { name: "places" }],
    outputs: [{ name: "next" }],
    workgroupSize: [LANES, 1, 1],
    main: `
  if (global.x >= ${dimWgsl(drawn!.shape[0]!)}) { return; }
  let place = places(global.x);
  if (place >= 0 && place < ${slots!.shape[0]}) { store_next(u32(place), drawn(global.x)); }`,
  }),
  grid: ({ inputs }, _caps, resolve) => [Math.ceil(resolve(inputs[1]!.shape[0]!) / LANES), 1, 1],
  reference(_call, [slots, drawn, places]) {
    const next = Float64Array.from(slots!);
    for (let r = 0; r < drawn!.length; r++) if (places![r]! in next) next[places![r]!] = drawn![r]!;
    return [next];
  },
  cost: ({ inputs }, _caps, resolve) => ({ flops: 0, bytes: 12 * resolve(inputs[1]!.shape[0]!) }),
  updates: () => [0],
};

/**
 * Keeps the tokens that a step drew.
 *
 * @param slots [S] i32; must not be read afterwards. @param drawn [R] i32.
 * @param places [R] i32: the slot of each token, no slot twice; one that does not exist skips it.
 * @returns The next version of the slots.
 */
export function keepTokens(slots: Node, drawn: Node, places: Node): Node {
  return kernelNode(keepTokensKernel, [slots, drawn, places], null);
}

/**
 * The ids of a batch whose tokens may stand for slots.
 *
 * @param tokens [T] i32: ids, or -1 - s for the token in slot s. @param slots [S] i32.
 * @returns [T] i32.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { tokenIds } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const list = (values: number[]) => tensor(values, { dtype: "i32" }).node;
 * const ids = tokenIds(list([5, -1, -3]), list([70, 71, 72])); // slots 0 and 2
 * assertEquals([...await new Tensor(ids).data()], [5, 70, 72]);
 * ```
 */
export function tokenIds(tokens: Node, slots: Node): Node {
  const slot = map("sub", constant(-1, "i32"), tokens);
  return map("where", map("lt", tokens, constant(0, "i32")), gather(slots, slot), tokens);
}
