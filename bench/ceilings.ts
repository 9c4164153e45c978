/**
 * What a device can do at most, measured: the rate at which it copies memory, the rate of f32 multiply-adds, and that of the
 * products of four 8-bit integers that quantised weights are multiplied by. Every kernel's time is held against these. Measured
 * rather than looked up: a specification says what a chip can do, not what a shader reaches on it.
 *
 * @module
 */
import type { Device, DispatchInfo, Kernel } from "../tensor/mod.ts";
import { buffer, compile, kernelNode, Storage } from "../tensor/mod.ts";
import { timeProgram, wallMicroseconds } from "./timing.ts";

/** Measured rates. */
export interface Ceilings {
  /** Bytes read and written a second by a copy that no cache holds. */
  readonly bytesPerSecond: number;
  /** f32 operations a second, a multiply-add as two. */
  readonly flopsPerSecond: number;
  /** Operations a second of `dot4I8Packed` with an addition: four multiply-adds, as eight. */
  readonly integerOpsPerSecond: number;
}

/** The least seconds that a dispatch takes at these rates. Products on 8-bit activations are told by their name. */
export function leastSeconds({ name, cost }: Pick<DispatchInfo, "name" | "cost">, ceilings: Ceilings): number {
  const { bytesPerSecond, flopsPerSecond, integerOpsPerSecond } = ceilings;
  const operations = cost.flops / (name.includes("int8") ? integerOpsPerSecond : flopsPerSecond);
  return Math.max(cost.bytes / bytesPerSecond, operations);
}

/** Copies of this size leave every cache: 50 MB on an H100, as much on a server's CPU. */
const COPY_BYTES = { cpu: 64 << 20, gpu: 512 << 20 };

/** Independent chains of vec4: enough to hide the latency of a multiply-add. */
const CHAINS = 8;
const STEPS = 4096;
const UNROLLED = 4;
const WORKGROUP = 64;

/** A loop of `chain = f(chain)` over some chains; one value is stored, so that nothing can be left out. */
function chainsKernel(
  name: string,
  { start, step, sum }: { start: string; step: (chain: string) => string; sum: (chains: string) => string },
  operations: number,
): Kernel<{ invocations: number }> {
  const chains = Array.from({ length: CHAINS }, (_, i) => `chain${i}`);
  const body = chains.map((chain) => `${chain} = ${step(chain)};`).join(" ");
  return {
    name,
    infer: (_inputs, { invocations }) => [{ dtype: "f32", shape: [invocations] }],
    wgsl: () => ({
      inputs: [{ name: "x" }],
      outputs: [{ name: "y" }],
      workgroupSize: [WORKGROUP, 1, 1],
      main: `${start}
${chains.map((chain, i) => `  var ${chain} = start * ${i + 1};`).join("\n")}
  for (var step = 0u; step < ${STEPS / UNROLLED}u; step++) {
${`    ${body}\n`.repeat(UNROLLED)}  }
  store_y(global.x, ${sum(chains.join(" + "))});`,
    }),
    grid: ({ params }) => [params.invocations / WORKGROUP, 1, 1],
    reference: ({ params }) => [new Float64Array(params.invocations)],
    cost: ({ params }) => ({ flops: params.invocations * STEPS * CHAINS * operations, bytes: 4 * params.invocations }),
  };
}

const multiplyAdds = chainsKernel("multiply_adds", {
  start: "  let start = vec4f(x(0u));\n  let factor = vec4f(x(1u));",
  step: (chain) => `fma(${chain}, factor, start)`,
  sum: (chains) => `dot(${chains}, vec4f(1.0))`,
}, 8);

const integerProducts = chainsKernel("integer_products", {
  start: "  let start = bitcast<i32>(x(0u));\n  let factor = bitcast<u32>(x(1u));",
  step: (chain) => `dot4I8Packed(bitcast<u32>(${chain}), factor) + start`,
  sum: (chains) => `f32(${chains})`,
}, 8);

/** vec4s that an invocation copies. */
const PIECES = 8;

/** Copies vec4s; the invocations of a workgroup take adjacent ones. */
const copy: Kernel<null> = {
  name: "copy",
  infer: ([x]) => [x!],
  wgsl: () => ({
    inputs: [{ name: "x", width: 4 }],
    outputs: [{ name: "y", width: 4 }],
    workgroupSize: [WORKGROUP, 1, 1],
    main: `  let start = (workgroup.y * groups.x + workgroup.x) * ${WORKGROUP * PIECES}u + lane;\n` +
      Array.from({ length: PIECES }, (_, i) => `  store_y(start + ${i * WORKGROUP}u, x(start + ${i * WORKGROUP}u));\n`)
        .join(""),
  }),
  grid: ({ inputs }) => [32, (inputs[0]!.shape[0] as number) / (32 * WORKGROUP * PIECES * 4), 1],
  reference: (_call, [x]) => [Float64Array.from(x!)],
  cost: ({ inputs }) => ({ flops: 0, bytes: 8 * (inputs[0]!.shape[0] as number) }),
};

/** By a shader or by the driver's own copy, whichever is faster: on llvmpipe 0.6 GB/s and 6. */
async function copyRate(device: Device): Promise<number> {
  const bytes = COPY_BYTES[device.caps.cpu ? "cpu" : "gpu"];
  const source = device.storage("f32", [bytes / 4], "source of a copy");
  const byShader = async (): Promise<number> => {
    using program = compile(device, () => kernelNode(copy, [buffer(source)], null));
    return (await timeProgram(device, program)).microseconds;
  };
  const target = device.storage("f32", [bytes / 4], "target of a copy");
  const from = device.resident(source).buffer, to = device.resident(target).buffer;
  const byDriver = await wallMicroseconds(device, 5, () => {
    const encoder = device.gpu.createCommandEncoder();
    encoder.copyBufferToBuffer(from, 0, to, 0, bytes);
    device.gpu.queue.submit([encoder.finish()]);
  });
  target.release();
  const microseconds = Math.min(await byShader(), byDriver);
  source.release();
  return 2 * bytes / microseconds * 1e6;
}

async function operationRate(device: Device, kernel: Kernel<{ invocations: number }>): Promise<number> {
  const invocations = device.caps.cpu ? 1024 : 1 << 20;
  const numbers = new Storage("f32", [2], new Float32Array([1e-3, 0.5]), "factors");
  using program = compile(device, () => kernelNode(kernel, [buffer(numbers)], { invocations }));
  const { microseconds } = await timeProgram(device, program);
  numbers.release();
  return program.dispatches[0]!.cost.flops / microseconds * 1e6;
}

/** Measures all rates, in about a second. */
export async function measureCeilings(device: Device): Promise<Ceilings> {
  return {
    bytesPerSecond: await copyRate(device),
    flopsPerSecond: await operationRate(device, multiplyAdds),
    integerOpsPerSecond: await operationRate(device, integerProducts),
  };
}
