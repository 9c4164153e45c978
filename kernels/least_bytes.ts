/**
 * The least bytes of a call that reads every input once and writes every output once: what most kernels' cost is.
 *
 * @module
 */
import { bytesPerElement } from "../tensor/dtype.ts";
import type { Caps, KernelCall, Resolver } from "../tensor/kernel.ts";

/** Bytes of all inputs and outputs of a call, at the sizes that `resolve` gives. */
export function leastBytes(call: KernelCall<unknown>, caps: Caps, resolve: Resolver): number {
  return [...call.inputs, ...call.outputs].reduce((sum, { dtype, shape }) => {
    const elements = shape.reduce<number>((count, dim) => count * resolve(dim), 1);
    return sum + elements * bytesPerElement(dtype, caps.f16);
  }, 0);
}
