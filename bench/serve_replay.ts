/**
 * Replays traffic on an engine, and takes down when each token came.
 *
 * Latencies are those of vLLM's benchmark: TTFT from arrival to first token, TPOT the mean time of a token after the first,
 * ITL the time between one output and the next. An engine that reads the tokens of several steps at once gives them in one
 * output: then ITL is what a reader waits for that output, and TPOT what a token costs.
 *
 * @module
 */
import type { EngineClient, EngineStats } from "../serving/engine_types.ts";
import { summarise, type Summary } from "./statistics.ts";
import type { WorkloadRequest } from "./workload.ts";

/** When the outputs of a request came, in milliseconds of one clock. */
export interface Trace {
  readonly arrived: number;
  /** Each output: when, and how many tokens. */
  readonly outputs: (readonly [at: number, tokens: number])[];
}

/** The engine's state now and then. */
export interface Sample {
  readonly running: number;
  readonly waiting: number;
  /** Share of the pool that sequences hold. */
  readonly kv: number;
}

/** What came of a replay. */
export interface Replay {
  readonly traces: readonly Trace[];
  readonly samples: readonly Sample[];
  /** What the engine counted during the replay. */
  readonly counts: Pick<EngineStats, Count>;
  /** From the first arrival to the last token. */
  readonly seconds: number;
}

const COUNTS = ["prefixHits", "prefixMisses", "preemptions", "steps", "promptTokens", "schedulingMs"] as const;
type Count = (typeof COUNTS)[number];

/** Milliseconds between looks at the engine. */
const SAMPLE_MS = 5;
let nextId = 1;

/**
 * Runs requests, each at its time, and waits for all.
 *
 * @throws {Error} that of the first request that failed.
 */
export async function replay(engine: EngineClient, requests: readonly WorkloadRequest[]): Promise<Replay> {
  const samples: Sample[] = [], before = engine.stats(), start = performance.now();
  let sampledAt = -Infinity;
  const look = (now: number): void => {
    if (now - sampledAt < SAMPLE_MS) return;
    sampledAt = now;
    const { running, waiting, usedBlocks, blocks } = engine.stats();
    samples.push({ running, waiting, kv: usedBlocks / blocks });
  };
  const traces = await Promise.all(requests.map(async (request) => {
    const wait = start + request.arrivalMs - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    return await submit(engine, request, look).done;
  }));
  const end = Math.max(...traces.map(({ outputs }) => outputs.at(-1)![0]));
  const after = engine.stats();
  const counts = Object.fromEntries(COUNTS.map((name) => [name, after[name] - before[name]])) as Record<Count, number>;
  return { traces, samples, counts, seconds: (end - start) / 1000 };
}

/** A request under way: what has come so far, and when it is over. */
export interface Underway {
  readonly trace: Trace;
  readonly done: Promise<Trace>;
}

/** Starts a request. Its tokens are the likeliest, and it goes on past what would end it. */
export function submit(
  engine: EngineClient,
  { prompt, maxTokens }: Pick<WorkloadRequest, "prompt" | "maxTokens">,
  look: (now: number) => void = () => {},
): Underway {
  const trace: Trace = { arrived: performance.now(), outputs: [] };
  const done = new Promise<Trace>((resolve, reject) => {
    const request = {
      ...{ id: nextId++, prompt, maxTokens, n: 1, priority: 0 },
      ...{ sampling: {}, stopTokenIds: new Set<number>() },
    };
    engine.addRequest(request, {
      output({ tokens, finishReason }) {
        const now = performance.now();
        if (tokens.length > 0) trace.outputs.push([now, tokens.length]);
        look(now);
        if (finishReason) resolve(trace);
      },
      fail: reject,
    });
  });
  return { trace, done };
}

/** Milliseconds between outputs. */
export function interTokenLatencies({ outputs }: Trace): number[] {
  return outputs.slice(1).map(([at], i) => at - outputs[i]![0]);
}

/** Milliseconds to the first token. */
export function timeToFirstToken({ arrived, outputs }: Trace): number {
  return outputs[0]![0] - arrived;
}

/** Milliseconds of a token after the first output; undefined where there is none. */
export function timePerOutputToken({ outputs }: Trace): number | undefined {
  const after = outputs.slice(1).reduce((sum, [, tokens]) => sum + tokens, 0);
  return after === 0 ? undefined : (outputs.at(-1)![0] - outputs[0]![0]) / after;
}

/** Tokens of an answer. */
export function outputTokens({ outputs }: Trace): number {
  return outputs.reduce((sum, [, tokens]) => sum + tokens, 0);
}

/** The three latencies of a replay, all values of each. */
export function latencies({ traces }: Pick<Replay, "traces">): Record<"ttft" | "tpot" | "itl", number[]> {
  return {
    ttft: traces.map(timeToFirstToken),
    tpot: traces.map(timePerOutputToken).filter((value) => value !== undefined),
    itl: traces.flatMap(interTokenLatencies),
  };
}

/**
 * Tokens a second while all requests were decoding: from when the last of them had its first token to when the first ended. Outputs of
 * one step come one after another, so each request is timed by outputs of its own. 0 where that is not enough: a request has fewer than two.
 */
export function steadyRate(traces: readonly Trace[]): { tokensPerSecond: number; milliseconds: number } {
  const from = Math.max(...traces.map(({ outputs }) => outputs[0]![0]));
  const to = Math.min(...traces.map(({ outputs }) => outputs.at(-1)![0]));
  const rates = traces.map(({ outputs }) => {
    const own = outputs.filter(([at]) => at >= from && at <= to);
    const tokens = own.slice(1).reduce((sum, [, count]) => sum + count, 0);
    const milliseconds = own.length < 2 ? 0 : own.at(-1)![0] - own[0]![0];
    return milliseconds > 0 ? 1000 * tokens / milliseconds : 0;
  });
  const tokensPerSecond = rates.includes(0) ? 0 : rates.reduce((sum, rate) => sum + rate, 0);
  return { tokensPerSecond, milliseconds: Math.max(0, to - from) };
}

/** How many were running, how many waited, and how full the pool was. */
export function occupancy(samples: readonly Sample[]): Record<keyof Sample, Summary> {
  const of = (name: keyof Sample): Summary => summarise(samples.map((sample) => sample[name]));
  return { running: of("running"), waiting: of("waiting"), kv: of("kv") };
}
