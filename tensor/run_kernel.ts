/**
 * Runs one kernel on given data: what the table of kernel tests and the bench do with each row.
 *
 * @module
 */
import type { Device } from "./device.ts";
import type { Shape } from "./dim.ts";
import type { DType, HostArray } from "./dtype.ts";
import type { Kernel } from "./kernel.ts";
import { buffer, kernelNode, output, outputTypes } from "./node.ts";
import { compile, type Program } from "./program.ts";
import { Storage } from "./storage.ts";

/** A kernel's parameters and inputs with their values. */
export interface KernelData<P> {
  /** The op's parameters. */
  readonly params: P;
  /** Inputs in order. */
  readonly inputs: readonly { readonly dtype: DType; readonly shape: Shape; readonly data: HostArray }[];
}

/** Compiles one kernel over storages made of the data, which `release` frees. */
export function compileKernel<P>(
  device: Device,
  kernel: Kernel<P>,
  call: KernelData<P>,
): { program: Program; release(): void } {
  const storages = call.inputs.map((i, n) => new Storage(i.dtype, i.shape, i.data.slice() as HostArray, `input ${n}`));
  const program = compile(device, () => {
    const node = kernelNode(kernel, storages.map((storage) => buffer(storage)), call.params);
    return outputTypes(node as typeof node & { op: "kernel" }).map((_, i) => output(node, i));
  }, { label: kernel.name });
  const release = (): void => {
    program.dispose();
    storages.forEach((storage) => storage.release());
  };
  return { program, release };
}

/** Runs a kernel once and reads all its outputs. */
export async function runKernel<P>(device: Device, kernel: Kernel<P>, call: KernelData<P>): Promise<HostArray[]> {
  const { program, release } = compileKernel(device, kernel, call);
  program.run();
  const types = kernel.infer(call.inputs, call.params);
  const outputs: HostArray[] = [];
  for (let i = 0; i < types.length; i++) outputs.push(await program.read(i));
  release();
  return outputs;
}
