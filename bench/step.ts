/**
 * Times one step of a whole model over random weights in real shapes: in the engine as it serves, and the program of the step
 * on its own, which is what the GPU allows and where its time goes.
 *
 * @module
 */
import { greedy } from "../kernels/argmax.ts";
import { batchInputs, type BatchValues } from "../model/batch.ts";
import { forward, type Precision } from "../model/decoder.ts";
import { KvCache } from "../model/kv_cache.ts";
import { compile, type Device, type Program } from "../tensor/mod.ts";
import { type Ceilings, leastSeconds } from "./ceilings.ts";
import { randomDecoder } from "./random_model.ts";
import type { Result } from "./result.ts";
import { type RoleTime, timeByRole } from "./roles.ts";
import { BLOCK } from "./serve_engine.ts";
import { decodeOnEngine, prefillOnEngine } from "./step_engine.ts";
import { shapeConfig, type ShapeName } from "./shapes.ts";
import { median, type Summary } from "./statistics.ts";

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
  /** Most tokens of a step of the engine: longer prompts are read in chunks of so many. */
  readonly chunk: number;
  /** Steps that are timed, or prompts, after a quarter as many to warm up. */
  readonly steps: number;
  /** Whether to time each dispatch too. */
  readonly profile?: boolean;
}

/** What was measured. */
export interface StepResult extends Result, StepOptions {
  /** Tokens a second of the real engine: scheduler, sampling on the GPU, token ids on the host. */
  readonly tokensPerSecond: number;
  /** Tokens a second where a program alone runs, step after step, and nothing is read: what the GPU allows. */
  readonly aheadTokensPerSecond: number;
  /** Milliseconds of a step of the engine, or of all steps of a prefill. */
  readonly stepMs: number;
  /** The same of every step, or of every prompt. */
  readonly step: Summary;
  /** Milliseconds of a step, ahead. */
  readonly aheadMs: number;
  /** Median milliseconds that the CPU takes to upload, encode and submit a step. */
  readonly encodeMs: number;
  /** Milliseconds of the CPU that scheduling a step takes. */
  readonly schedulingMs: number;
  readonly dispatches: number;
  readonly weightBytes: number;
  /** Weights read a second, ahead. */
  readonly bytesPerSecond: number;
  /** What the step would take at the device's measured rates of memory and of operations, as a share of what it takes. */
  readonly roofline: number;
  /** GPU time by what dispatches are for, by timestamps; each dispatch in a pass of its own. Where a profile was asked for. */
  readonly roles?: readonly RoleTime[];
}

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

/** CPU milliseconds of each step: upload, encode and submit. The GPU is waited for between them. */
async function timeEncoding(program: Program, values: BatchValues, steps: number): Promise<number> {
  const times: number[] = [];
  for (let step = 0; step < steps; step++) {
    const start = performance.now();
    program.run(values);
    times.push(performance.now() - start);
    await program.read(0, values.sizes);
  }
  return median(times);
}

/** Steps that run ahead: one read-back at the end. The first quarter warms clocks up. */
async function timeAhead(program: Program, values: BatchValues, steps: number): Promise<number> {
  const run = async (count: number): Promise<number> => {
    const start = performance.now();
    for (let step = 0; step < count; step++) program.run(values);
    await program.read(0, values.sizes);
    return (performance.now() - start) / count;
  };
  await run(Math.max(1, steps >> 2));
  return await run(steps);
}

/** What a step takes at the least, by its dispatches' costs, in milliseconds. */
function leastMilliseconds(program: Program, ceilings: Ceilings): number {
  return 1000 * program.dispatches.reduce((sum, dispatch) => sum + leastSeconds(dispatch, ceilings), 0);
}

/** The figures of a program on its own. */
type ProgramFigures = Pick<
  StepResult,
  "aheadMs" | "encodeMs" | "dispatches" | "weightBytes" | "bytesPerSecond" | "roofline" | "roles"
>;

/** Times the program of a step without an engine; with `profile`, a line a dispatch goes to standard error. */
async function timeProgram(device: Device, options: StepOptions, ceilings: Ceilings): Promise<ProgramFigures> {
  const { shape, precision, batch, tokens, context, steps } = options;
  const config = shapeConfig(shape), maxBlocks = Math.ceil(context / BLOCK), total = batch * tokens;
  const weights = randomDecoder(device, config, context), { bytes: weightBytes } = weights;
  const cache = new KvCache(device, config, { numBlocks: batch * maxBlocks, blockSize: BLOCK, dtype: "f16" });
  const limits = { maxTokens: total, maxSequences: batch, maxBlocks, maxLogitRows: batch };
  const program = compile(device, () => greedy(forward(weights, config, batchInputs(limits), cache, precision)).token);
  try {
    const values = stepValues(options, maxBlocks), { dispatchCount: dispatches } = program;
    const aheadMs = await timeAhead(program, values, steps), encodeMs = await timeEncoding(program, values, steps);
    const roofline = leastMilliseconds(program, ceilings) / aheadMs, bytesPerSecond = 1000 * weightBytes / aheadMs;
    const figures = { aheadMs, encodeMs, dispatches, weightBytes, bytesPerSecond, roofline };
    if (!options.profile) return figures;
    const microseconds = await program.profile(values);
    console.error(program.explain({ microseconds, bytesPerSecond: ceilings.bytesPerSecond }));
    return { ...figures, roles: timeByRole(program.dispatches, microseconds, config, total, batch) };
  } finally {
    program.dispose();
    [cache, weights].forEach((held) => held.release());
  }
}

/** Times a step in the engine, and its program without one. */
export async function timeStep(
  device: Device,
  options: StepOptions,
  ceilings: Ceilings,
): Promise<Omit<StepResult, keyof Result>> {
  const engine = options.tokens === 1 ? await decodeOnEngine(device, options) : await prefillOnEngine(device, options);
  // A longer prompt is read in chunks: on its own, the last one of them.
  const tokens = Math.min(options.tokens, options.chunk), total = options.batch * tokens;
  const program = await timeProgram(device, { ...options, tokens }, ceilings);
  const { profile: _, ...rest } = options;
  return { ...rest, ...engine, aheadTokensPerSecond: 1000 * total / program.aheadMs, ...program };
}
