/**
 * How long a dispatch takes that only reads: the least that a matrix-vector product of so many bytes can take, since it reads its weight
 * once, starts when the dispatch before has ended, and ends when its last workgroup has. Short dispatches so read more
 * slowly than the long copy that rooflines are measured by.
 *
 * @module
 */
import { indices, repeat } from "../kernels/unroll.ts";
import { buffer, compile, type Device, type Kernel, kernelNode } from "../tensor/mod.ts";
import { timeProgram } from "./timing.ts";

/** Time of a dispatch that reads so many bytes. */
export interface ReadTiming {
  /** Bytes that it reads. */
  readonly bytes: number;
  /** Microseconds of a dispatch among others like it, each of other memory. */
  readonly microseconds: number;
  /** What that makes. */
  readonly bytesPerSecond: number;
}

/** Invocations of a workgroup, and vec4s that each loads before it waits for them. */
const WORKGROUP = 256, PIECES = 8;

/** Bytes of a workgroup. */
const WORKGROUP_BYTES = 16 * WORKGROUP * PIECES;

/** Bytes, in workgroups, of down and of gate and up of a 7B model in 4 bits. */
const WORKGROUPS = [1166, 2332];

/** Bytes that dispatches read before one reads the same again: more than any cache holds. */
const ALL_BYTES = 256 << 20;

/** Times that a run reads all of them: between two runs a GPU waits for what a dispatch takes. */
const TURNS = { cpu: 1, gpu: 8 };

/** A value that no sum of zeros has: the loads have to be done, and nothing is stored. */
const IMPOSSIBLE = 1.5;

/** Reads a whole input. Dispatches of different turns differ in nothing else: alike, they would be one. */
const read: Kernel<{ readonly turn: number }> = {
  name: "read",
  infer: () => [{ dtype: "f32", shape: [4] }],
  wgsl: () => ({
    inputs: [{ name: "x", width: 4 }],
    outputs: [{ name: "y" }],
    workgroupSize: [WORKGROUP, 1, 1],
    main: `  let start = workgroup.x * ${WORKGROUP * PIECES}u + lane;\n` +
      repeat(PIECES, (i) => `  let piece${i} = x(start + ${i * WORKGROUP}u);\n`) +
      `  let sum = dot(${indices(PIECES).map((i) => `piece${i}`).join(" + ")}, vec4f(1.0));\n` +
      `  if (sum == ${IMPOSSIBLE}) { store_y(lane & 3u, sum); }`,
  }),
  grid: ({ inputs }) => [4 * (inputs[0]!.shape[0] as number) / WORKGROUP_BYTES, 1, 1],
  reference: () => [new Float64Array(4)],
  cost: ({ inputs }) => ({ flops: 0, bytes: 4 * (inputs[0]!.shape[0] as number) }),
};

/** Times dispatches of the sizes of 7B's larger weights, one behind the other. */
export async function timeReadDispatches(device: Device): Promise<ReadTiming[]> {
  const timings: ReadTiming[] = [];
  for (const workgroups of WORKGROUPS) {
    const bytes = workgroups * WORKGROUP_BYTES, count = Math.ceil(ALL_BYTES / bytes);
    const sources = indices(count).map((i) => device.storage("f32", [bytes / 4], `source ${i} of reads`));
    const turns = indices(TURNS[device.caps.cpu ? "cpu" : "gpu"]);
    using program = compile(
      device,
      () => turns.flatMap((turn) => sources.map((source) => kernelNode(read, [buffer(source)], { turn }))),
    );
    const { microseconds: all } = await timeProgram(device, program), microseconds = all / (turns.length * count);
    sources.forEach((source) => source.release());
    timings.push({ bytes, microseconds, bytesPerSecond: bytes / microseconds * 1e6 });
  }
  return timings;
}
