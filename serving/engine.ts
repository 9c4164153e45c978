/**
 * The loop that serves all requests of a model together, where the device is: token ids in and out, no text. Each round
 * schedules, runs and postprocesses; the loop sleeps when there is nothing to do.
 *
 * @module
 */
import { checkSamplingRow } from "../kernels/sampling_rows.ts";
import type { FinishReason, TokenLogprob } from "./request.ts";
import { asRequestError, RequestError } from "./request_error.ts";
import type { EngineClient, EngineOutput, EngineRequest, EngineStats, LogitsSink, OutputSink } from "./engine_types.ts";
import { LookAhead } from "./look_ahead.ts";
import { Turns } from "./macrotask.ts";
import { RateMeter } from "./rate_meter.ts";
import type { StepResult } from "./encoded_step.ts";
import type { Runner } from "./runner.ts";
import type { Details, Sampled } from "./sampler.ts";
import type { Scheduled } from "./scheduled_step.ts";
import { Scheduler, type SchedulerOptions } from "./scheduler.ts";
import { Sequence } from "./sequence.ts";

/** What an engine works with. */
export interface EngineOptions extends Omit<SchedulerOptions, "maxNumScoredTokens"> {
  /** Runs its steps. */
  readonly runner: Pick<Runner, "encode" | "submit" | "discard" | "read" | "maxLogitsTokens">;
  /** Most steps that are submitted before the first of them is read; 1: none ahead. */
  readonly maxSteps: number;
  /** Says what the device runs. */
  readonly explain?: () => string;
  /** Most bytes of the device that were in use at one time. */
  readonly peakBytes?: () => number;
  /** Frees what the engine ran on, once it is closed. */
  readonly release?: () => void;
}

/** A request that is not over. */
interface Request {
  readonly id: number;
  readonly asked: EngineRequest;
  readonly sink: OutputSink;
  readonly arrived: number;
  /** Samples that are not over, by their index. */
  readonly samples: Map<number, Sample>;
  queuedMs: number | undefined;
}

/** One of the answers to a request. */
interface Sample {
  readonly request: Request;
  readonly index: number;
  readonly sequence: Sequence;
  /** Whether an output has said how long it waited. */
  told: boolean;
  /** What was drawn since the last output. */
  tokens: number[];
  logprobs: number[];
  tops: (readonly TokenLogprob[])[];
}

/** Logits of a whole sequence. */
interface LogitsJob {
  readonly sink: LogitsSink;
  readonly resolve: () => void;
  readonly reject: (cause: Error) => void;
}

/** Serves requests in the thread that it lives in. */
export class Engine implements EngineClient {
  readonly scheduler: Scheduler;
  readonly #options: EngineOptions;
  readonly #lookAhead: LookAhead;
  readonly #requests = new Map<number, Request>();
  readonly #samples = new Map<Sequence, Sample>();
  readonly #jobs = new Map<Sequence, LogitsJob>();
  readonly #promptMeter = new RateMeter();
  readonly #generatedMeter = new RateMeter();
  #steps = 0;
  #loop: Promise<void> | undefined;
  #closing: Promise<void> | undefined;
  #closed: Error | undefined;

  /** An engine without requests. */
  constructor(options: EngineOptions) {
    const { runner, maxSteps } = options;
    this.#options = options;
    this.scheduler = new Scheduler({ ...options, maxNumScoredTokens: runner.maxLogitsTokens });
    const detailsOf = (scheduled: Scheduled): Details => this.#detailsOf(scheduled);
    this.#lookAhead = new LookAhead({ scheduler: this.scheduler, runner, maxSteps, detailsOf });
  }

  checkOpen(): void {
    if (this.#closed) throw this.#closed;
  }

  addRequest(asked: EngineRequest, sink: OutputSink): void {
    this.checkOpen();
    const { id } = asked;
    if (this.#requests.has(id)) throw new Error(`Cannot take request ${id}: one of that number is not over`);
    const request: Request = { id, asked, sink, arrived: performance.now(), samples: new Map(), queuedMs: undefined };
    let sequences: Sequence[];
    try {
      sequences = samplesOf(asked);
      this.scheduler.add(sequences[0]!, sequences.slice(1));
    } catch (cause) {
      return sink.fail(asRequestError(cause));
    }
    this.#requests.set(id, request);
    sequences.forEach((sequence, index) => {
      const sample: Sample = { request, index, sequence, told: false, tokens: [], logprobs: [], tops: [] };
      request.samples.set(index, sample);
      this.#samples.set(sequence, sample);
    });
    this.#start();
  }

  abort(id: number, index?: number): void {
    const samples = this.#requests.get(id)?.samples ?? new Map<number, Sample>();
    for (const sample of [...samples.values()]) {
      if (index === undefined || index === sample.index) this.#finish(sample, "abort");
    }
  }

  logits(tokens: readonly number[], sink: LogitsSink): Promise<void> {
    if (this.#closed) return Promise.reject(this.#closed);
    return new Promise((resolve, reject) => {
      const sequence = new Sequence(tokens, {}, { task: "score" });
      this.scheduler.add(sequence);
      this.#jobs.set(sequence, { sink, resolve, reject });
      this.#start();
    });
  }

  stats(): EngineStats {
    const { scheduler } = this, { blocks } = scheduler;
    return {
      waiting: scheduler.numWaiting,
      running: scheduler.numRunning,
      blocks: blocks.numBlocks,
      usedBlocks: blocks.numBlocks - blocks.numFreeBlocks,
      blockSize: blocks.blockSize,
      prefixHits: blocks.numHitTokens,
      prefixMisses: blocks.numMissTokens,
      preemptions: scheduler.numPreemptions,
      steps: this.#steps,
      promptTokens: this.#promptMeter.total,
      generatedTokens: this.#generatedMeter.total,
      promptTokensPerSecond: this.#promptMeter.perSecond,
      generatedTokensPerSecond: this.#generatedMeter.perSecond,
      schedulingMs: this.#lookAhead.schedulingMs,
      peakBytes: this.#options.peakBytes?.() ?? 0,
    };
  }

  explain(): Promise<string> {
    return Promise.resolve(this.#options.explain?.() ?? "");
  }

  close(cause: Error): Promise<void> {
    this.#closed ??= cause;
    return this.#closing ??= this.idle().then(() => this.#options.release?.());
  }

  /** Resolves when all requests are over and no step is under way. */
  async idle(): Promise<void> {
    await this.#loop;
  }

  #start(): void {
    this.#loop ??= this.#work();
  }

  get #hasWork(): boolean {
    return this.#samples.size > 0 || this.#jobs.size > 0 || this.#lookAhead.isBusy;
  }

  /** Each round starts in a turn of its own, so that signals and requests made meanwhile count in it. */
  async #work(): Promise<void> {
    const turns = new Turns();
    try {
      while (this.#hasWork) {
        await turns.next();
        try {
          this.checkOpen();
          await this.step();
        } catch (cause) {
          this.#failAll(cause instanceof Error ? cause : new Error(String(cause)));
        }
      }
    } finally {
      turns.close();
      this.#loop = undefined; // in the same turn as the last look for requests: the next one starts a loop of its own
    }
  }

  /** One round: some steps are scheduled and run, and what they drew is postprocessed. */
  async step(): Promise<void> {
    const start = performance.now(), results = await this.#lookAhead.advance();
    if (results.length === 0 && this.#hasWork) {
      throw new Error("Cannot go on: there are requests, and none can be computed");
    }
    this.#postprocess(results, start);
  }

  #postprocess(results: readonly StepResult[], start: number): void {
    const touched = new Set<Sample>(), now = performance.now();
    let promptTokens = 0, generated = 0;
    for (const result of results) {
      for (const item of result.step.scheduled) promptTokens += this.#begin(item, start);
      for (const { sequence, sampled } of result.drawn) {
        const sample = this.#samples.get(sequence);
        if (!sample) continue; // it ended before: what ran past its end is dropped
        generated++;
        touched.add(sample);
        this.#accept(sample, sampled);
      }
      if (result.logits) this.#score(result.step.scheduled[0]!, result.logits);
      this.scheduler.retire(result.step.number);
      this.#steps++;
    }
    this.#promptMeter.add(promptTokens, now);
    this.#generatedMeter.add(generated, now);
    for (const sample of touched) this.#tell(sample);
  }

  /** Notes when the first of a sequence's steps began, and says how many of its prompt a step computed. */
  #begin({ sequence, start, numTokens }: Scheduled, began: number): number {
    const request = this.#samples.get(sequence)?.request;
    if (request) request.queuedMs ??= Math.max(0, began - request.arrived);
    return Math.max(0, Math.min(start + numTokens, sequence.numPromptTokens) - start);
  }

  /** Takes the next token of a sample, or ends it. */
  #accept(sample: Sample, { token, logprob, top }: Sampled): void {
    const { sequence, request: { asked } } = sample;
    if (asked.stopTokenIds.has(token)) return this.#finish(sample, "stop");
    sequence.append(token);
    sample.tokens.push(token);
    if (asked.logprobs !== undefined) {
      sample.logprobs.push(logprob!);
      if (asked.logprobs > 0) sample.tops.push(top!.slice(0, asked.logprobs));
    }
    if (sequence.length - sequence.numInFlight >= Math.min(sequence.maxLength, this.#options.contextLength)) {
      this.#finish(sample, "length");
    }
  }

  #finish(sample: Sample, reason: FinishReason): void {
    this.scheduler.finish(sample.sequence);
    this.#samples.delete(sample.sequence);
    const { samples, id } = sample.request;
    samples.delete(sample.index);
    if (samples.size === 0) this.#requests.delete(id);
    this.#tell(sample, reason);
  }

  /** Hands over what is new of a sample. */
  #tell(sample: Sample, finishReason?: FinishReason): void {
    const { request: { id, asked, sink, queuedMs }, index, sequence, tokens, logprobs, tops } = sample;
    if (tokens.length === 0 && !finishReason) return;
    const output: EngineOutput = {
      id,
      index,
      tokens,
      ...(asked.logprobs !== undefined && { logprobs }),
      ...((asked.logprobs ?? 0) > 0 && { topLogprobs: tops }),
      ...(!sample.told && { queuedMs: queuedMs ?? 0, cachedTokens: sequence.numHitTokens }),
      ...(finishReason && { finishReason }),
    };
    sample.told = true;
    sample.tokens = [];
    sample.logprobs = [];
    sample.tops = [];
    sink.output(output);
  }

  #detailsOf({ sequence }: Scheduled): Details {
    const count = this.#samples.get(sequence)?.request.asked.logprobs;
    return count === undefined ? "none" : count > 0 ? "top" : "logprob";
  }

  /** Hands over logits of a sequence; with the last of them it is done. */
  #score({ sequence, start, numTokens }: Scheduled, logits: Float32Array<ArrayBuffer>): void {
    const job = this.#jobs.get(sequence);
    if (!job) return;
    job.sink(start, logits);
    if (start + numTokens < sequence.length) return;
    this.scheduler.finish(sequence);
    this.#jobs.delete(sequence);
    job.resolve();
  }

  /** A step failed: nobody may wait for an answer that never comes. */
  #failAll(cause: Error): void {
    const requests = [...this.#requests.values()], jobs = [...this.#jobs.values()];
    this.#requests.clear();
    this.#samples.clear();
    this.#jobs.clear();
    this.scheduler.clear();
    this.#lookAhead.reset();
    for (const { sink } of requests) sink.fail(cause);
    for (const { reject } of jobs) reject(cause);
  }
}

/**
 * The sequences of a request's samples. What is wrong with it shows here, and not in a step with others.
 *
 * @throws {RangeError} for what the sampler does not take.
 */
function samplesOf({ prompt, sampling, maxTokens, priority, cacheSalt, n }: EngineRequest): Sequence[] {
  checkSamplingRow(sampling);
  if (!(Number.isInteger(n) && n >= 1)) throw new RequestError(`Cannot draw ${n} samples: give a whole number from 1`);
  const options = {
    maxLength: prompt.length + maxTokens,
    priority,
    ...(cacheSalt !== undefined && { salt: cacheSalt }),
  };
  const seed = BigInt(sampling.seed ?? 0);
  return Array.from(
    { length: n },
    (_, i) => new Sequence(prompt, { ...sampling, seed: seed + BigInt(i) }, options),
  );
}
