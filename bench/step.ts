/**
 * Times one step of a whole model over random weights in real shapes: in the engine as it serves, then the program that the
 * engine ran on its own, which is what the GPU allows and where its time goes.
 *
 * @module
 */
import type { Precision } from "../model/decoder.ts";
import { GPU_STEPS } from "../serving/load_engine.ts";
import type { Scheduled, ScheduledStep } from "../serving/scheduled_step.ts";
import { Sequence } from "../serving/sequence.ts";
import { type Device, type Program, type RunValues, Submission } from "../tensor/mod.ts";
import { type Ceilings, leastSeconds } from "./ceilings.ts";
import type { Result } from "./result.ts";
import { type RoleTime, timeByRole } from "./roles.ts";
import { type BenchEngine, BLOCK } from "./serve_engine.ts";
import { decodeOnEngine, prefillOnEngine } from "./step_engine.ts";
import { shapeConfig, type ShapeName } from "./shapes.ts";
import { median, type Summary } from "./statistics.ts";
import { finish } from "./timing.ts";

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

/** Most steps that the engine submits together: half of its longest run. */
const LARGEST_GROUP = GPU_STEPS / 2;

/** What was measured. */
export interface StepResult extends Result, StepOptions {
  /** Tokens a second of the real engine: scheduler, sampling on the GPU, token ids on the host. */
  readonly tokensPerSecond: number;
  /** Tokens a second where the engine's program alone runs, step after step, and nothing is read: what the GPU allows. */
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
  /** Dispatches of a step, joined ones as one. */
  readonly dispatches: number;
  readonly weightBytes: number;
  /** Weights read a second, ahead. */
  readonly bytesPerSecond: number;
  /** What the step would take at the device's measured rates of memory and of operations, as a share of what it takes. */
  readonly roofline: number;
  /** GPU time by what dispatches are for, by timestamps; each dispatch in a pass of its own, none joined. Where a profile was asked for. */
  readonly roles?: readonly RoleTime[];
}

/**
 * The step that an engine makes of so many sequences at their context's end: of a prompt that is read in chunks a whole chunk, of
 * prompts that have no room in one step as many as have. Their blocks follow each other in a pool that nobody uses.
 */
export function stepOf(
  { batch, tokens, context, chunk }: Pick<StepOptions, "batch" | "tokens" | "context" | "chunk">,
): ScheduledStep {
  const numTokens = Math.min(tokens, chunk), room = Math.max(1, Math.floor(Math.max(chunk, batch) / numTokens));
  const blocks = Math.ceil(context / BLOCK);
  const scheduled = Array.from({ length: Math.min(batch, room) }, (_, s): Scheduled => {
    const sequence = new Sequence(Array.from({ length: context }, (_, i) => 17 + (s + i) % 97));
    sequence.blockTable.push(...Array.from({ length: blocks }, (_, block) => s * blocks + block));
    return { sequence, start: context - numTokens, numTokens, draws: true };
  });
  return { number: 1, task: "generate", scheduled, numTokens: scheduled.length * numTokens, copies: [] };
}

/** CPU milliseconds of each step: upload, encode and submit. The GPU is waited for between them. */
async function timeEncoding(device: Device, program: Program, values: RunValues, steps: number): Promise<number> {
  const times: number[] = [];
  for (let step = 0; step < steps; step++) {
    const start = performance.now();
    program.run(values);
    times.push(performance.now() - start);
    await finish(device);
  }
  return median(times);
}

/**
 * Milliseconds of steps that run ahead, with one read-back at the end, and submitted in groups as the engine does where it encodes
 * fast enough. The first quarter warms clocks up.
 */
async function timeAhead(device: Device, program: Program, values: RunValues, steps: number): Promise<number> {
  using submission = new Submission(device);
  const run = async (count: number): Promise<number> => {
    const start = performance.now();
    for (let step = 0, submitted = 0; step < count; step++) {
      program.run(values, submission);
      if (submission.size < Math.min(submitted, LARGEST_GROUP)) continue;
      submission.flush();
      submitted = step + 1;
    }
    submission.flush();
    await finish(device);
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
  | "aheadTokensPerSecond"
  | "aheadMs"
  | "encodeMs"
  | "dispatches"
  | "weightBytes"
  | "bytesPerSecond"
  | "roofline"
  | "roles"
>;

/** Times the program that an engine runs for a step; with `profile`, a line a dispatch goes to standard error. */
async function timeProgram(
  device: Device,
  { programOf, join, weightBytes }: BenchEngine,
  options: StepOptions,
  ceilings: Ceilings,
): Promise<ProgramFigures> {
  const { shape, steps } = options, step = stepOf(options), { program, values } = programOf(step);
  await join();
  const aheadMs = await timeAhead(device, program, values, steps);
  const figures = {
    aheadTokensPerSecond: 1000 * step.numTokens / aheadMs,
    aheadMs,
    encodeMs: await timeEncoding(device, program, values, steps),
    dispatches: program.dispatchCount,
    weightBytes,
    bytesPerSecond: 1000 * weightBytes / aheadMs,
    roofline: leastMilliseconds(program, ceilings) / aheadMs,
  };
  if (!options.profile) return figures;
  const microseconds = await program.profile(values), rows = step.scheduled.length;
  console.error(program.explain({ microseconds, bytesPerSecond: ceilings.bytesPerSecond }));
  return {
    ...figures,
    roles: timeByRole(program.dispatches, microseconds, shapeConfig(shape), step.numTokens, rows),
  };
}

/** Times a step in the engine, and its program alone. */
export async function timeStep(
  device: Device,
  options: StepOptions,
  ceilings: Ceilings,
): Promise<Omit<StepResult, keyof Result>> {
  const onEngine = options.tokens === 1 ? decodeOnEngine : prefillOnEngine;
  const figures = await onEngine(device, options, (bench) => timeProgram(device, bench, options, ceilings));
  const { profile: _, ...rest } = options;
  return { ...rest, ...figures };
}
