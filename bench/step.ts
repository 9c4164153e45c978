/**
 * Times one step of a whole model: the real forward pass with greedy sampling on the GPU, random weights in real shapes.
 *
 * @module
 */
import { greedy } from "../kernels/argmax.ts";
import { type Batch, batchInputs, type BatchValues } from "../model/batch.ts";
import { forward, type Precision } from "../model/decoder.ts";
import { KvCache } from "../model/kv_cache.ts";
import { assign, buffer, compile, type Device, gather, iota, type Program } from "../tensor/mod.ts";
import { randomDecoder } from "./random_model.ts";
import { shapeConfig, type ShapeName } from "./shapes.ts";

/** What is timed. */
export interface StepOptions {
  readonly shape: ShapeName;
  readonly precision: Precision;
  /** Sequences of the step. */
  readonly batch: number;
  /** Tokens of each sequence in the step: 1 decodes, more prefill. */
  readonly tokens: number;
  /** Positions that each sequence has after the step. */
  readonly context: number;
  /** Steps that are timed, after a quarter as many to warm up. */
  readonly steps: number;
  /** Whether to time each dispatch too. */
  readonly profile?: boolean;
}

/** What was measured. */
export interface StepTiming extends StepOptions {
  readonly device: string;
  /** Tokens a second as the engine decodes: a token is read back before the next step is submitted. */
  readonly tokensPerSecond: number;
  /** Tokens a second where tokens stay on the GPU and steps are submitted ahead: what the GPU alone allows. */
  readonly aheadTokensPerSecond: number;
  /** Median milliseconds of such a step. */
  readonly stepMs: number;
  /** Least and greatest. */
  readonly stepMsRange: readonly [number, number];
  /** Milliseconds of a step, ahead. */
  readonly aheadMs: number;
  /** Median milliseconds that the CPU takes to upload, submit and encode a step. */
  readonly encodeMs: number;
  readonly dispatches: number;
  readonly weightBytes: number;
}

const BLOCK = 16;

function stepValues({ batch, tokens, context }: StepOptions, maxBlocks: number): BatchValues {
  const total = batch * tokens, first = context - tokens;
  const each = (count: number, value: (i: number) => number): Int32Array =>
    Int32Array.from({ length: count }, (_, i) => value(i));
  const position = (t: number): number => first + t % tokens, sequence = (t: number): number => Math.floor(t / tokens);
  return {
    inputs: {
      tokens: each(total, (t) => 17 + t),
      positions: each(total, position),
      slotMapping: each(total, (t) => sequence(t) * maxBlocks * BLOCK + position(t)),
      queryStart: each(batch + 1, (b) => b * tokens),
      contextLens: each(batch, () => context),
      blockTables: each(batch * maxBlocks, (i) => i),
      logitRows: each(batch, (b) => b * tokens + tokens - 1),
    },
    sizes: { tokens: total, sequences: batch, rows: batch },
  };
}

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1]!;

/** Steps as the engine takes them: the next is encoded while one runs, and submitted once that one has been read back. */
async function timeWaiting(
  program: Program,
  values: BatchValues,
  steps: number,
): Promise<{ wall: number[]; encode: number[] }> {
  const wall: number[] = [], encode: number[] = [];
  for (let step = -(steps >> 2); step < steps; step++) {
    const start = performance.now();
    program.run(values);
    program.encodeAhead(values.sizes);
    const encoded = performance.now();
    await program.read(0, values.sizes);
    if (step < 0) continue;
    encode.push(encoded - start);
    wall.push(performance.now() - start);
  }
  return { wall, encode };
}

/** Steps that run ahead: one read-back at the end. */
async function timeAhead(program: Program, values: BatchValues, steps: number): Promise<number> {
  program.run(values);
  await program.read(0, values.sizes);
  const start = performance.now();
  for (let step = 0; step < steps; step++) program.run(values);
  await program.read(0, values.sizes);
  return (performance.now() - start) / steps;
}

/** Times a step; with `profile`, a line a dispatch goes to standard error. */
export async function timeStep(device: Device, options: StepOptions): Promise<StepTiming> {
  const { shape, precision, batch, tokens, context, steps } = options;
  const config = shapeConfig(shape), maxBlocks = Math.ceil(context / BLOCK), total = batch * tokens;
  const weights = randomDecoder(device, config, context);
  const cache = new KvCache(device, config, { numBlocks: batch * maxBlocks, blockSize: BLOCK, dtype: "f16" });
  const limits = { maxTokens: total, maxSequences: batch, maxBlocks, maxLogitRows: batch };
  const drawn = device.storage("i32", [batch], "tokens of the step before");
  const waiting = compile(device, () => greedy(forward(weights, config, batchInputs(limits), cache, precision)).token);
  const ahead = tokens > 1 ? undefined : compile(device, () => {
    const inputs = batchInputs(limits), rows = inputs.tokens.shape;
    const batched: Batch = { ...inputs, tokens: gather(buffer(drawn), iota(rows, 0)) };
    const { token } = greedy(forward(weights, config, batched, cache, precision));
    return assign(buffer(drawn), gather(token, iota([batch], 0)));
  });
  const values = stepValues(options, maxBlocks), { tokens: _, ...others } = values.inputs;
  const { wall, encode } = await timeWaiting(waiting, values, steps);
  const aheadMs = ahead
    ? await timeAhead(ahead, { ...values, inputs: others as BatchValues["inputs"] }, steps)
    : await timeAhead(waiting, values, steps);
  if (options.profile) {
    const microseconds = await waiting.profile(values);
    console.error(waiting.explain({ microseconds, bytesPerSecond: 3.1e12 }));
  }
  const { dispatchCount: dispatches } = waiting, stepMs = median(wall);
  for (const program of [waiting, ahead]) program?.dispose();
  const weightBytes = weights.bytes;
  [drawn, cache, weights].forEach((held) => held.release());
  return {
    ...options,
    device: device.info.description,
    tokensPerSecond: 1000 * total / stepMs,
    aheadTokensPerSecond: 1000 * total / aheadMs,
    stepMs,
    stepMsRange: [Math.min(...wall), Math.max(...wall)],
    aheadMs,
    encodeMs: median(encode),
    dispatches,
    weightBytes,
  };
}
