/**
 * Decoding and prefill as the engine does them: requests in, token ids out, in the bench's own thread. What is timed of the
 * engine's parts comes after, on the same engine, while it has nothing to do.
 *
 * @module
 */
import { seededRandom } from "../kernels/random.ts";
import { GPU_STEPS } from "../serving/load_engine.ts";
import type { Device } from "../tensor/mod.ts";
import { type BenchEngine, openBenchEngine } from "./serve_engine.ts";
import { steadyRate, submit, timeToFirstToken, type Trace } from "./serve_replay.ts";
import { shapeConfig } from "./shapes.ts";
import { summarise } from "./statistics.ts";
import type { StepOptions, StepResult } from "./step.ts";
import { randomPrompt } from "./workload.ts";

/** Most tokens of a step of an engine that decodes, unless a bench is told otherwise. */
export const STEP_TOKENS = 512;

/** Tokens before a sequence's end that are not timed: fewer steps are submitted ahead there. */
const TAIL = GPU_STEPS;

/** What decides how long sequences are. */
type StepSize = Pick<StepOptions, "batch" | "tokens" | "context" | "chunk" | "steps">;

type EngineFigures = Pick<StepResult, "tokensPerSecond" | "stepMs" | "step" | "schedulingMs">;

/** What a bench of decoding asks the engine for: tokens of a prompt, and of its answer. */
function decodeRequest({ batch, context, chunk, steps }: StepSize): { length: number; maxTokens: number } {
  // Whoever is read first decodes while the others are read; then a quarter of the steps warms clocks up.
  const before = Math.ceil(batch * context / chunk) + (steps >> 2);
  return { length: Math.max(1, context - before - (steps >> 1)), maxTokens: before + steps + TAIL };
}

/** Positions that each sequence takes in the engine. */
export function positionsOf(size: StepSize): number {
  if (size.tokens > 1) return size.context + 1;
  const { length, maxTokens } = decodeRequest(size);
  return length + maxTokens;
}

/**
 * Times decoding: all sequences at once, their contexts `context` tokens long in the middle of what is timed. Dispatches are joined
 * before, as in an engine that is warm.
 */
export async function decodeOnEngine<T>(
  device: Device,
  options: StepOptions,
  after: (bench: BenchEngine) => Promise<T>,
): Promise<EngineFigures & T> {
  const { batch, steps } = options, { length, maxTokens } = decodeRequest(options);
  const measure: Measure = async (prompt, run, join) => {
    await Promise.all(Array.from({ length: batch }, () => run(prompt(length), 32)));
    await join();
    const decode = (): Promise<Trace[]> =>
      Promise.all(Array.from({ length: batch }, () => run(prompt(length), maxTokens)));
    // A GPU's clock falls while shaders are compiled, and rises over some tenths of a second.
    if (!device.caps.cpu) await decode();
    const traces = await decode();
    const late = traces.map(({ arrived, outputs }): Trace => ({ arrived, outputs: middleOf(outputs, steps) }));
    const { tokensPerSecond } = steadyRate(late);
    if (!(tokensPerSecond > 0)) throw new Error(`Cannot time ${steps} steps of ${batch} sequences: give more --steps`);
    // An output that has several tokens took as many steps.
    const each = late[0]!.outputs.slice(1).map(([at, tokens], i) => (at - late[0]!.outputs[i]![0]) / tokens);
    return { tokensPerSecond, stepMs: 1000 * batch / tokensPerSecond, step: summarise(each) };
  };
  return await withEngine(device, options, measure, after);
}

/** Times prompts of `tokens` tokens, one after the other, each until its first token is there. */
export async function prefillOnEngine<T>(
  device: Device,
  options: StepOptions,
  after: (bench: BenchEngine) => Promise<T>,
): Promise<EngineFigures & T> {
  const { batch, tokens, steps } = options;
  const measure: Measure = async (prompt, run) => {
    const times: number[] = [];
    for (let step = -Math.max(1, steps >> 2); step < steps; step++) {
      const traces = await Promise.all(Array.from({ length: batch }, () => run(prompt(tokens), 1)));
      if (step >= 0) times.push(Math.max(...traces.map(timeToFirstToken)));
    }
    const step = summarise(times);
    return { tokensPerSecond: 1000 * batch * tokens / step.p50, stepMs: step.p50, step };
  };
  return await withEngine(device, options, measure, after);
}

/** The outputs with the last `steps` tokens but for the tail, and the one before them. */
function middleOf(outputs: Trace["outputs"], steps: number): Trace["outputs"] {
  const from = (count: number): number => {
    let tokens = 0;
    return outputs.findLastIndex(([, more]) => (tokens += more) >= count);
  };
  return outputs.slice(Math.max(0, from(steps + TAIL) - 1), from(TAIL));
}

type Measure = (
  prompt: (length: number) => number[],
  run: (prompt: readonly number[], maxTokens: number) => Promise<Trace>,
  join: () => Promise<void>,
) => Promise<Omit<EngineFigures, "schedulingMs">>;

async function withEngine<T>(
  device: Device,
  options: StepOptions,
  measure: Measure,
  after: (bench: BenchEngine) => Promise<T>,
): Promise<EngineFigures & T> {
  const { shape, precision, batch, chunk } = options, contextLength = positionsOf(options);
  const bench = openBenchEngine(device, {
    ...{ shape, precision, contextLength, maxNumSeqs: batch, maxNumBatchedTokens: Math.max(chunk, batch) },
    ...{ poolTokens: batch * (contextLength + 32), prefixCache: false },
  });
  const { engine, join } = bench;
  try {
    const random = seededRandom(1), { vocabSize } = shapeConfig(shape);
    const figures = await measure(
      (length) => randomPrompt(random, length, vocabSize),
      (prompt, maxTokens) => submit(engine, { prompt, maxTokens }).done,
      join,
    );
    const { schedulingMs, steps } = engine.stats();
    return { ...figures, schedulingMs: schedulingMs / Math.max(1, steps), ...await after(bench) };
  } finally {
    await engine.close(new Error("The bench is over"));
  }
}
