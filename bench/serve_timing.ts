/**
 * What `bench:serve` measures: decoding at fixed batch sizes, what a long prompt does to running sequences, and traffic.
 *
 * @module
 */
import { UsageError } from "./arguments.ts";
import { seededRandom } from "../kernels/random.ts";
import type { Precision } from "../model/decoder.ts";
import type { EngineClient } from "../serving/engine_types.ts";
import type { Device } from "../tensor/mod.ts";
import type { Result } from "./result.ts";
import { type BenchEngineOptions, BLOCK, openBenchEngine } from "./serve_engine.ts";
import {
  latencies,
  occupancy,
  outputTokens,
  type Replay,
  replay,
  steadyRate,
  submit,
  type Trace,
} from "./serve_replay.ts";
import { shapeConfig, type ShapeName } from "./shapes.ts";
import { cumulative, summarise, type Summary } from "./statistics.ts";
import { longestRequest, makeWorkload, randomPrompt, type WorkloadName } from "./workload.ts";

/** How serving is timed. */
export interface ServeOptions {
  readonly shape: ShapeName;
  readonly precision: Precision;
  /** Tokens of a sequence in the middle of the decoding that is timed. */
  readonly context: number;
  /** Decode steps that are timed. */
  readonly steps: number;
  /** Factor on the lengths of workloads. */
  readonly scale: number;
  /** Requests of a workload; its own number unless given. */
  readonly requests: number | undefined;
  /** Requests a second. */
  readonly rate: number;
  readonly seed: number;
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  /** Tokens that the pool holds; as many as the sequences come to, in memory that a GPU has, unless given. */
  readonly poolTokens: number | undefined;
  readonly prefixCache: boolean;
}

/** What every measurement says of the engine. */
interface EngineFigures {
  readonly shape: ShapeName;
  readonly precision: Precision;
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  readonly poolTokens: number;
  /** Milliseconds of the CPU that scheduling a step takes, in the mean. */
  readonly schedulingMs: number;
  readonly preemptions: number;
  /** Most bytes on the device. */
  readonly peakBytes: number;
}

/** Decoding at a fixed batch size. */
export interface DecodeResult extends Result, EngineFigures {
  readonly kind: "decode";
  readonly batch: number;
  readonly context: number;
  readonly tokensPerSecond: number;
  /** Milliseconds of a step. */
  readonly stepMs: number;
  /** Milliseconds that were timed. */
  readonly milliseconds: number;
}

/** What a long prompt does to running sequences. */
export interface InterferenceResult extends Result, EngineFigures {
  readonly kind: "interference";
  readonly batch: number;
  readonly promptTokens: number;
  /** Milliseconds between outputs, before the prompt comes. An output has the tokens of a run of steps, several mostly. */
  readonly quiet: Summary;
  /** The same while it is read. */
  readonly busy: Summary;
  /** Milliseconds a token before the prompt comes: those between outputs, by the tokens of the second. */
  readonly quietToken: Summary;
  /** The same while it is read. */
  readonly busyToken: Summary;
  /** p99 between outputs while it is read, by the median before: how much longer a reader waits for what comes next. */
  readonly outputRatio: number;
  /** p99 a token while it is read, by the median before: how much slower tokens come. */
  readonly tokenRatio: number;
  /** Milliseconds until the prompt's own first token. */
  readonly firstTokenMs: number;
}

/** A workload. */
export interface TrafficResult extends Result, EngineFigures {
  readonly kind: "traffic";
  readonly workload: WorkloadName;
  readonly scale: number;
  /** Requests a second that came; null where all came at once. */
  readonly rate: number | null;
  readonly requests: number;
  readonly seconds: number;
  readonly requestsPerSecond: number;
  readonly outputTokensPerSecond: number;
  /** Prompts counted in. */
  readonly totalTokensPerSecond: number;
  readonly steps: number;
  readonly prefixHits: number;
  readonly prefixMisses: number;
  readonly running: Summary;
  readonly waiting: Summary;
  readonly kv: Summary;
  readonly ttft: Summary;
  readonly tpot: Summary;
  readonly itl: Summary;
  /** Points of the distributions, for plots. */
  readonly distributions: Readonly<Record<"ttft" | "tpot" | "itl", readonly (readonly [number, number])[]>>;
}

/** A line of results. */
export type ServeResult = DecodeResult | InterferenceResult | TrafficResult;

type Measured<T> = Omit<T, keyof Result>;

/** Bytes of keys and values that are asked for at most, unless told otherwise. */
const MOST_POOL = { cpu: 2 ** 29, gpu: 2 ** 35 };

/** Tokens that a request generates before anything is timed: programs are compiled and clocks are up then. */
const WARM_TOKENS = 8;

/** Times decoding of `batch` sequences at once. */
export async function timeDecode(
  device: Device,
  options: ServeOptions,
  batch: number,
): Promise<Measured<DecodeResult>> {
  const { context, steps } = options;
  // Prompts are read one after the other, within the budget of a step, and who was read first decodes meanwhile.
  const reading = Math.ceil(batch * context / options.maxNumBatchedTokens);
  const length = Math.max(1, context - Math.ceil((reading + steps) / 2)), maxTokens = reading + 2 * steps;
  const size = { maxNumSeqs: batch, contextLength: length + maxTokens };
  await using warm = await warmEngine(device, { ...options, prefixCache: false }, size);
  const random = seededRandom(options.seed), { vocabSize } = shapeConfig(options.shape);
  const requests = Array.from({ length: batch }, () => {
    return { arrivalMs: 0, prompt: randomPrompt(random, length, vocabSize), maxTokens };
  });
  const figures = warm.count(), { traces } = await replay(warm.engine, requests);
  const { tokensPerSecond, milliseconds } = steadyRate(traces), stepMs = 1000 * batch / tokensPerSecond;
  return { kind: "decode", ...figures(), batch, context, tokensPerSecond, stepMs, milliseconds };
}

/** Times how long running sequences wait for tokens while a long prompt is read. */
export async function timeInterference(
  device: Device,
  options: ServeOptions,
  [batch = 16, promptTokens = 8192]: readonly number[],
): Promise<Measured<InterferenceResult>> {
  const { context, steps } = options;
  const reading = Math.ceil((batch * context + promptTokens) / Math.max(1, options.maxNumBatchedTokens - batch));
  const length = Math.max(1, context - steps), maxTokens = 4 * steps + 3 * reading;
  const contextLength = Math.max(length + maxTokens, promptTokens + WARM_TOKENS);
  const size = {
    maxNumSeqs: batch + 1,
    contextLength,
    poolTokens: batch * inBlocks(length + maxTokens) + inBlocks(promptTokens),
    anyStep: true,
  };
  await using warm = await warmEngine(device, { ...options, prefixCache: false }, size);
  const { engine } = warm, figures = warm.count();
  const random = seededRandom(options.seed), { vocabSize } = shapeConfig(options.shape);
  const prompt = (tokens: number): number[] => randomPrompt(random, tokens, vocabSize);
  const running = Array.from({ length: batch }, () => submit(engine, { prompt: prompt(length), maxTokens }));
  await until(() => running.every(({ trace }) => outputTokens(trace) > steps));
  const long = { prompt: prompt(promptTokens), maxTokens: 1 };
  const trace = await submit(engine, long).done;
  const from = trace.arrived, to = trace.outputs[0]![0];
  const traces = await Promise.all(running.map(({ done }) => done));
  const decoding = Math.max(...traces.map(({ outputs }) => outputs[0]![0]));
  const waits = traces.flatMap(waitsOf), quiet = waits.filter(({ start, end }) => start >= decoding && end <= from);
  const busy = waits.filter(({ start, end }) => end > from && start < to);
  return {
    kind: "interference",
    ...figures(),
    batch,
    promptTokens,
    ...compareWaits(quiet, busy),
    firstTokenMs: to - from,
  };
}

/** A wait for an output. */
interface Wait {
  readonly milliseconds: number;
  /** Tokens that came at its end. */
  readonly tokens: number;
}

/** The waits of a trace. */
function waitsOf({ outputs }: Trace): (Wait & { readonly start: number; readonly end: number })[] {
  return outputs.slice(1).map(([end, tokens], i) => {
    const [start] = outputs[i]!;
    return { start, end, tokens, milliseconds: end - start };
  });
}

/** What the waits before and while a prompt is read come to, by output and by token. */
export function compareWaits(
  quietWaits: readonly Wait[],
  busyWaits: readonly Wait[],
): Pick<InterferenceResult, "quiet" | "busy" | "quietToken" | "busyToken" | "outputRatio" | "tokenRatio"> {
  const byOutput = (waits: readonly Wait[]): Summary => summarise(waits.map(({ milliseconds }) => milliseconds));
  const byToken = (waits: readonly Wait[]): Summary =>
    summarise(waits.flatMap(({ milliseconds, tokens }) => Array<number>(tokens).fill(milliseconds / tokens)));
  const quiet = byOutput(quietWaits), busy = byOutput(busyWaits);
  const quietToken = byToken(quietWaits), busyToken = byToken(busyWaits);
  const outputRatio = busy.p99 / quiet.p50, tokenRatio = busyToken.p99 / quietToken.p50;
  return { quiet, busy, quietToken, busyToken, outputRatio, tokenRatio };
}

/** Replays workloads, one after the other on one engine. */
export async function* timeTraffic(
  device: Device,
  options: ServeOptions,
  names: readonly WorkloadName[],
): AsyncGenerator<Measured<TrafficResult>> {
  const { vocabSize } = shapeConfig(options.shape), { scale, rate, seed, requests: count, maxNumSeqs } = options;
  const workloads = names.map((name) => makeWorkload(name, { seed, scale, rate, vocabSize, requests: count }));
  const contextLength = Math.max(...workloads.map(longestRequest));
  await using warm = await warmEngine(device, options, { maxNumSeqs, contextLength, anyStep: true });
  for (const { name, requests } of workloads) {
    const figures = warm.count(), replayed = await replay(warm.engine, requests);
    const { seconds, traces, counts, samples } = replayed;
    const output = traces.reduce((sum, trace) => sum + outputTokens(trace), 0);
    const prompts = requests.reduce((sum, { prompt }) => sum + prompt.length, 0);
    yield {
      ...{ kind: "traffic", ...figures(), workload: name, scale, rate: Number.isFinite(rate) ? rate : null },
      ...{ requests: traces.length, seconds, requestsPerSecond: traces.length / seconds },
      ...{ outputTokensPerSecond: output / seconds, totalTokensPerSecond: (output + prompts) / seconds },
      ...{ steps: counts.steps, prefixHits: counts.prefixHits, prefixMisses: counts.prefixMisses },
      ...occupancy(samples),
      ...latencySummaries(replayed),
    };
  }
}

/** Waits until something holds, looking every few milliseconds. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 2));
}

function latencySummaries(replayed: Replay): Pick<TrafficResult, "ttft" | "tpot" | "itl" | "distributions"> {
  const { ttft, tpot, itl } = latencies(replayed);
  const distributions = { ttft: cumulative(ttft), tpot: cumulative(tpot), itl: cumulative(itl) };
  return { ttft: summarise(ttft), tpot: summarise(tpot), itl: summarise(itl), distributions };
}

/** Tokens that a sequence takes of a pool: whole blocks, and one to write ahead. */
function inBlocks(tokens: number): number {
  return BLOCK * (Math.ceil(tokens / BLOCK) + 1);
}

/** An engine that is warm, and what it says of itself. */
interface WarmEngine extends AsyncDisposable {
  readonly engine: EngineClient;
  /** Begins to count: what it returns says what came since. */
  count(): () => EngineFigures;
}

/** How large an engine has to be. */
interface EngineSize extends Pick<BenchEngineOptions, "maxNumSeqs" | "contextLength"> {
  readonly poolTokens?: number;
  /** Whether steps of all sizes are timed: then all programs are compiled before. */
  readonly anyStep?: boolean;
}

async function warmEngine(device: Device, options: ServeOptions, size: EngineSize): Promise<WarmEngine> {
  const { shape, precision, prefixCache } = options, { maxNumSeqs, contextLength } = size;
  const { numKvHeads, headDim, numLayers, vocabSize } = shapeConfig(shape);
  const most = Math.floor(MOST_POOL[device.caps.cpu ? "cpu" : "gpu"] / (numKvHeads * headDim * numLayers * 4));
  const poolTokens = options.poolTokens ?? Math.min(size.poolTokens ?? maxNumSeqs * inBlocks(contextLength), most);
  if (poolTokens < contextLength) {
    throw new UsageError(`--pool=${poolTokens}: a sequence alone takes ${contextLength} tokens; give at least those`);
  }
  const maxNumBatchedTokens = Math.max(options.maxNumBatchedTokens, maxNumSeqs);
  const limits = { maxNumSeqs, contextLength, maxNumBatchedTokens, poolTokens };
  const { engine, warmUp } = openBenchEngine(device, { shape, precision, prefixCache, ...limits });
  if (size.anyStep) await warmUp();
  const prompt = randomPrompt(seededRandom(~options.seed), 1, vocabSize);
  const maxTokens = Math.min(WARM_TOKENS, contextLength - 1);
  await Promise.all(Array.from({ length: maxNumSeqs }, () => submit(engine, { prompt, maxTokens }).done));
  const count = (): () => EngineFigures => {
    const before = engine.stats();
    return () => {
      const { schedulingMs, steps, preemptions, peakBytes } = engine.stats();
      return {
        ...{ shape, precision, maxNumSeqs, maxNumBatchedTokens, poolTokens },
        ...{ preemptions: preemptions - before.preemptions, peakBytes },
        schedulingMs: (schedulingMs - before.schedulingMs) / Math.max(1, steps - before.steps),
      };
    };
  };
  return { engine, count, [Symbol.asyncDispose]: () => engine.close(new Error("The bench is over")) };
}
