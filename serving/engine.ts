/**
 * The loop that serves all requests of a model together. One rule, no phases of prefill and decode: every running sequence has
 * tokens that are not computed yet, and a step fills one budget of tokens, running sequences first, then waiting ones in
 * the order they came.
 *
 * A request is admitted when the blocks that it may grow to are there, beside those promised to the running ones: what runs
 * never runs out. Later requests wait.
 *
 * @module
 */
import type { Scheduled } from "./batch.ts";
import { BlockManager } from "./block_manager.ts";
import type { EngineStats } from "./engine_types.ts";
import { Generation } from "./generation.ts";
import { Turns } from "./macrotask.ts";
import type { Runner, Sampled } from "./runner.ts";
import { Sequence } from "./sequence.ts";

/** What an engine works with. */
export interface EngineOptions {
  /** Runs its steps. */
  readonly runner: Pick<Runner, "run" | "logits" | "maxTokens" | "maxLogitsTokens">;
  /** Blocks of the pool: at least one full context. */
  readonly numBlocks: number;
  /** Tokens of a block. */
  readonly blockSize: number;
  /** Most sequences of a step. */
  readonly maxSequences: number;
}

/** Takes a piece of logits: those of the tokens from index `first` on. */
export type LogitsSink = (first: number, logits: Float32Array<ArrayBuffer>) => void;

/** Logits of a whole sequence, computed a piece a turn, between the steps of the others. */
interface LogitsJob {
  readonly sequence: Sequence;
  /** Tokens that the sequence may reach: those it has. */
  readonly maxLength: number;
  readonly sink: LogitsSink;
  readonly resolve: () => void;
  readonly reject: (cause: Error) => void;
}

const NO_WORK = {
  ...{ prefixHits: 0, prefixMisses: 0, preemptions: 0, steps: 0, promptTokens: 0, generatedTokens: 0 },
  ...{ promptTokensPerSecond: 0, generatedTokensPerSecond: 0, schedulingMs: 0, peakBytes: 0 },
};

/** A scheduled generation. */
interface ScheduledGeneration extends Scheduled {
  readonly generation: Generation;
}

/** Serves generations and requests for logits, all in one loop that sleeps when there is nothing to do. */
export class Engine {
  readonly blocks: BlockManager;
  readonly #options: EngineOptions;
  readonly #waiting: (Generation | LogitsJob)[] = [];
  readonly #running: Generation[] = [];
  readonly #jobs: LogitsJob[] = [];
  readonly #promised = new Map<Sequence, number>();
  #loop: Promise<void> | undefined;
  #closed: Error | undefined;

  /** An engine without requests. */
  constructor(options: EngineOptions) {
    this.#options = options;
    this.blocks = new BlockManager(options.numBlocks, options.blockSize);
  }

  /** Requests that are not over. */
  get numRequests(): number {
    return this.#waiting.length + this.#running.length + this.#jobs.length;
  }

  /** What it is doing. */
  stats(): EngineStats {
    const running = this.#running.length, waiting = this.#waiting.length;
    const { numBlocks: blocks, numFreeBlocks: free, blockSize } = this.blocks;
    return { ...NO_WORK, running, waiting, blocks, usedBlocks: blocks - free, blockSize };
  }

  /** Takes a request. Its chunks come from {@linkcode Generation.chunks}. */
  submit(generation: Generation): void {
    if (this.#closed) throw this.#closed;
    this.#waiting.push(generation);
    this.#start();
  }

  /** Computes the logits of all tokens, and hands them over in pieces, in order. */
  logits(tokens: readonly number[], sink: LogitsSink): Promise<void> {
    if (this.#closed) return Promise.reject(this.#closed);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ sequence: new Sequence(tokens), maxLength: tokens.length, sink, resolve, reject });
      this.#start();
    });
  }

  /** Ends all requests with an error, and waits for the step under way. */
  async close(cause: Error): Promise<void> {
    this.#closed ??= cause;
    await this.#loop;
  }

  #start(): void {
    this.#loop ??= this.#work();
  }

  /** Each round starts in a turn of its own, so that signals and requests made meanwhile count in it. */
  async #work(): Promise<void> {
    const turns = new Turns();
    try {
      while (this.numRequests > 0) {
        await turns.next();
        try {
          if (this.#closed) throw this.#closed;
          await this.step();
          await this.#advanceJob();
        } catch (cause) {
          this.#failAll(cause instanceof Error ? cause : new Error(String(cause)));
        }
      }
    } finally {
      turns.close();
      this.#loop = undefined; // in the same turn as the last look for requests: the next one starts a loop of its own
    }
  }

  /** One step: schedule, run, postprocess. */
  async step(): Promise<void> {
    const scheduled = this.#schedule();
    if (scheduled.length === 0) return;
    const logprobs = scheduled.some(({ generation }) => generation.parameters.logprobs !== undefined);
    const sampled = await this.#options.runner.run({ scheduled, logprobs });
    this.#postprocess(scheduled, sampled);
  }

  #schedule(): ScheduledGeneration[] {
    this.#dropEnded();
    const scheduled: ScheduledGeneration[] = [];
    let budget = this.#options.runner.maxTokens;
    const take = (generation: Generation): void => {
      const { sequence } = generation, numTokens = Math.min(budget, sequence.numPendingTokens);
      this.blocks.append(sequence, numTokens);
      scheduled.push({ generation, sequence, numTokens });
      budget -= numTokens;
    };
    for (const generation of this.#running) if (budget > 0) take(generation);
    while (this.#waiting.length > 0) {
      const next = this.#waiting[0]!, generates = next instanceof Generation;
      if (generates && (budget === 0 || this.#running.length === this.#options.maxSequences)) break;
      if (!this.#promise(next)) break;
      this.#waiting.shift();
      if (!generates) this.#jobs.push(next);
      else {
        this.#running.push(next);
        next.admit();
        take(next);
      }
    }
    return scheduled;
  }

  #postprocess(scheduled: readonly ScheduledGeneration[], sampled: readonly (Sampled | undefined)[]): void {
    scheduled.forEach(({ generation }, i) => {
      const drawn = sampled[i];
      if (drawn && generation.open) {
        generation.accept(generation.parameters.logprobs !== undefined ? drawn : { token: drawn.token });
      }
    });
    this.#dropEnded();
  }

  /** Lets go of what has ended or was aborted, waiting requests too. */
  #dropEnded(): void {
    const ended = [...this.#running, ...this.#waiting].filter((request) =>
      request instanceof Generation && !request.open
    );
    for (const generation of ended as Generation[]) {
      for (const list of [this.#running, this.#waiting]) {
        const at = list.indexOf(generation);
        if (at >= 0) list.splice(at, 1);
      }
      this.#retire(generation);
    }
  }

  #retire(generation: Generation): void {
    this.#release(generation.sequence);
    generation.abort();
    generation.retire();
  }

  /** Reserves the blocks that a sequence may grow to, if they are there beside those promised already. */
  #promise({ sequence, maxLength }: Generation | LogitsJob): boolean {
    const blocks = this.blocks.blocksFor(maxLength);
    const taken = [...this.#promised.values()].reduce((sum, count) => sum + count, 0);
    if (taken + blocks > this.blocks.numBlocks) return false;
    this.#promised.set(sequence, blocks);
    return true;
  }

  #release(sequence: Sequence): void {
    this.blocks.free(sequence);
    this.#promised.delete(sequence);
  }

  /** Computes one piece of the first job. */
  async #advanceJob(): Promise<void> {
    const job = this.#jobs[0];
    if (!job) return;
    const { sequence, sink } = job, first = sequence.numComputedTokens;
    const numTokens = Math.min(this.#options.runner.maxLogitsTokens, sequence.numPendingTokens);
    this.blocks.append(sequence, numTokens);
    sink(first, await this.#options.runner.logits([{ sequence, numTokens }]));
    if (sequence.numPendingTokens > 0) return;
    this.#jobs.shift();
    this.#release(sequence);
    job.resolve();
  }

  /** A step failed: nobody may wait for an answer that never comes. */
  #failAll(cause: Error): void {
    for (const request of [...this.#running.splice(0), ...this.#jobs.splice(0), ...this.#waiting.splice(0)]) {
      if (request instanceof Generation) {
        request.fail(cause);
        this.#retire(request);
      } else {
        this.#release(request.sequence);
        request.reject(cause);
      }
    }
  }
}
