/**
 * Times decoding: the real forward pass with sampling on the GPU, random weights in real shapes. Prints tokens a second,
 * the CPU's share, and where each microsecond of the GPU goes.
 *
 * Usage: `deno task bench:decode [shape …] [--context=512] [--batch=1] [--steps=64] [--profile]`
 *
 * @module
 */
import { greedy } from "../kernels/argmax.ts";
import { batchInputs, type BatchValues } from "../model/batch.ts";
import { forward } from "../model/decoder.ts";
import { KvCache } from "../model/kv_cache.ts";
import { compile, type Device, openDevice, type Program } from "../tensor/mod.ts";
import { randomDecoder } from "./random_model.ts";
import { shapeConfig, type ShapeName, shapeNames } from "./shapes.ts";

const blockSize = 16;

interface Timing {
  readonly shape: ShapeName;
  readonly batch: number;
  readonly context: number;
  readonly tokensPerSecond: number;
  readonly stepMs: number;
  readonly encodeMs: number;
  readonly dispatches: number;
}

/** One decode step of `batch` sequences that all have `context` positions. */
function stepValues(batch: number, context: number, maxBlocks: number): BatchValues {
  const each = (value: (sequence: number) => number): Int32Array =>
    Int32Array.from({ length: batch }, (_, b) => value(b));
  const blockTables = Int32Array.from({ length: batch * maxBlocks }, (_, i) => i);
  return {
    inputs: {
      tokens: each((b) => 17 + b),
      positions: each(() => context - 1),
      slotMapping: each((b) =>
        (b * maxBlocks + Math.floor((context - 1) / blockSize)) * blockSize + (context - 1) % blockSize
      ),
      queryStart: Int32Array.from({ length: batch + 1 }, (_, b) => b),
      contextLens: each(() => context),
      blockTables,
      logitRows: each((b) => b),
    },
    sizes: { tokens: batch, sequences: batch, rows: batch },
  };
}

const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1]!;

async function timeSteps(
  program: Program,
  values: BatchValues,
  steps: number,
): Promise<{ stepMs: number; encodeMs: number }> {
  const wall: number[] = [], encode: number[] = [];
  for (let step = 0; step < steps; step++) {
    const start = performance.now();
    program.run(values);
    encode.push(performance.now() - start);
    await program.read(0, values.sizes);
    wall.push(performance.now() - start);
  }
  return { stepMs: median(wall.slice(steps >> 2)), encodeMs: median(encode.slice(steps >> 2)) };
}

/** Benches one shape; `profile` prints a line a dispatch. */
export async function benchDecode(
  device: Device,
  shape: ShapeName,
  batch: number,
  context: number,
  steps: number,
  profile: boolean,
): Promise<Timing> {
  const config = shapeConfig(shape), maxBlocks = Math.ceil(context / blockSize);
  const weights = randomDecoder(device, config, context);
  const cache = new KvCache(device, config, { numBlocks: batch * maxBlocks, blockSize, dtype: "f16" });
  const limits = { maxTokens: batch, maxSequences: batch, maxBlocks, maxLogitRows: batch };
  const program = compile(device, () => greedy(forward(weights, config, batchInputs(limits), cache)).token, {
    label: `decode ${shape}`,
  });
  const values = stepValues(batch, context, maxBlocks);
  const timed = await timeSteps(program, values, steps);
  if (profile) console.error(program.explain({ microseconds: await program.profile(values), bytesPerSecond: 3.1e12 }));
  const { dispatchCount: dispatches } = program;
  program.dispose();
  cache.release();
  weights.release();
  return { shape, batch, context, tokensPerSecond: 1000 * batch / timed.stepMs, ...timed, dispatches };
}

if (import.meta.main) {
  const option = (name: string, fallback: number): number =>
    Number(Deno.args.find((arg) => arg.startsWith(`--${name}=`))?.split("=")[1] ?? fallback);
  const shapes = Deno.args.filter((arg): arg is ShapeName => shapeNames.includes(arg as ShapeName));
  const device = await openDevice();
  for (const shape of shapes.length > 0 ? shapes : ["stories" as const]) {
    const timing = await benchDecode(
      device,
      shape,
      option("batch", 1),
      option("context", 512),
      option("steps", 64),
      Deno.args.includes("--profile"),
    );
    console.log(JSON.stringify({ device: device.info.description, ...timing }));
  }
  device.close();
}
