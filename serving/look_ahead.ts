/**
 * Steps that are submitted before earlier ones have been read. A read in this runtime waits for all that was submitted, so what
 * gains is a run: some steps one after another, each taking the tokens of the one before on the device, and one read for all.
 * The first steps of the next run are scheduled and encoded while the device works, and submitted as soon as it is done, before the
 * host even takes what was drawn: one, or as many short ones as last while the host hands that on and encodes the next. What ran
 * past a stop is for the engine to discard.
 *
 * The steps of a run are submitted in groups, each encoded while the device works on those before; the last goes along with the read.
 *
 * A run is short where someone would wait for its end: it has one step while a request could be admitted, while a prompt is
 * computed, and where a draw reports more than an id. On a CPU device, where steps are long and
 * compete with the host, nothing is submitted ahead.
 *
 * @module
 */
import { groupSize } from "./group_size.ts";
import type { EncodedStep, StepResult } from "./encoded_step.ts";
import type { Runner } from "./runner.ts";
import type { Details } from "./sampler.ts";
import { decodes, type Scheduled } from "./scheduled_step.ts";
import type { Scheduler } from "./scheduler.ts";

/** What steps are made of and where they run. */
export interface LookAheadOptions {
  readonly scheduler: Pick<Scheduler, "schedule" | "canAdmit">;
  readonly runner: Pick<Runner, "encode" | "submit" | "discard" | "read">;
  /** Most steps of a run. With 1 nothing is submitted before what runs has been read. */
  readonly maxSteps: number;
  /** What is to be reported of a sequence's tokens. */
  readonly detailsOf: (scheduled: Scheduled) => Details;
}

/**
 * A run lasts about so many milliseconds. A GPU idles for some 0.6 ms a run, between its groups and around the read, and tokens are not
 * to come in lumps.
 */
const RUN_MS = 24;

/** The first steps of a run last about so many milliseconds, if they are short: what ran past a stop is in vain. */
const FIRST_MS = 2;

/** Share of a step's time up to which encoding one is surely not what steps wait for. */
const ENCODED_IN_TIME = 0.75;

/** Submits steps in runs and reads them in order. */
export class LookAhead {
  readonly #options: LookAheadOptions;
  /** The steps of the run. */
  #steps: EncodedStep[] = [];
  /** How many of them were submitted, and when the first was. */
  #submitted = 0;
  #submittedAt = 0;
  /** Whether another step may follow the last one before it is read. */
  #mayFollow = true;
  /** What a step of the last run took, from submitting the first to reading the last; undefined before there was one. */
  #stepMs: number | undefined;
  /** What encoding the last step took, scheduling among it; undefined before there was one. */
  #encodeMs: number | undefined;
  #schedulingMs = 0;

  /** Nothing is submitted yet. */
  constructor(options: LookAheadOptions) {
    this.#options = options;
  }

  /** Whether steps are under way. */
  get isBusy(): boolean {
    return this.#steps.length > 0;
  }

  /** Milliseconds that scheduling took so far. */
  get schedulingMs(): number {
    return this.#schedulingMs;
  }

  /** Submits a run, waits for it, and says what it drew; nothing where there is nothing to compute. */
  async advance(): Promise<StepResult[]> {
    const { runner, maxSteps } = this.#options;
    this.#encodeRun();
    const steps = this.#steps;
    if (steps.length === 0) return [];
    if (this.#submitted === 0) this.#submittedAt = performance.now();
    this.#steps = [];
    const results = await runner.read(steps, maxSteps > 1 ? () => this.#encodeFirst(steps.length) : undefined);
    const now = performance.now();
    this.#stepMs = (now - this.#submittedAt) / steps.length;
    this.#submitted = this.#steps.length;
    this.#submittedAt = now;
    return results;
  }

  /** Forgets what is under way: it failed. */
  reset(): void {
    this.#options.runner.discard();
    this.#steps = [];
    this.#submitted = 0;
    this.#mayFollow = true;
  }

  /** Encodes the steps of a run, and submits all but the last group. */
  #encodeRun(): void {
    const { maxSteps } = this.#options, length = this.#runLength;
    let full = this.#submitted + this.#groupAfter(this.#submitted);
    while (this.#steps.length === 0 || (this.#steps.length < length && this.#mayFollow)) {
      if (this.#steps.length === full) {
        this.#submit();
        full += this.#groupAfter(this.#submitted);
      }
      if (!this.#encodeStep(maxSteps > 1 && this.#steps.length === 0)) return;
    }
  }

  /** Encodes the first steps of the next run while the device works on `running` steps. Returns whether there are any. */
  #encodeFirst(running: number): boolean {
    const most = this.#firstSteps(running);
    if (!this.#encodeStep()) return false;
    while (this.#steps.length < most && this.#mayFollow && this.#encodeStep());
    return true;
  }

  /**
   * How many are to be encoded: no more than there is time for, and one where the run is short. Where encoding is the bottleneck, steps
   * take as long as it does.
   */
  #firstSteps(running: number): number {
    if (!this.#mayFollow || this.#stepMs === undefined || !(this.#encodeMs! < this.#stepMs * ENCODED_IN_TIME)) return 1;
    return Math.min(this.#runLength, Math.floor(FIRST_MS / this.#stepMs), this.#groupAfter(running));
  }

  /** Steps of a run. The first has one, which says how long they take. */
  get #runLength(): number {
    if (this.#stepMs === undefined) return 1;
    return Math.max(1, Math.min(this.#options.maxSteps, Math.round(RUN_MS / this.#stepMs)));
  }

  /** Steps of the next group, where `submitted` of the run were. */
  #groupAfter(submitted: number): number {
    if (this.#stepMs === undefined || this.#encodeMs === undefined) return 1;
    const elapsedMs = performance.now() - this.#submittedAt;
    return groupSize({ submitted, elapsedMs, stepMs: this.#stepMs, encodeMs: this.#encodeMs });
  }

  #submit(): void {
    this.#options.runner.submit();
    if (this.#submitted === 0) this.#submittedAt = performance.now();
    this.#submitted = this.#steps.length;
  }

  /**
   * Schedules and encodes the next step. Returns whether there is one.
   *
   * @param begin Whether the device has nothing to do meanwhile.
   */
  #encodeStep(begin = false): boolean {
    const { scheduler, runner, detailsOf } = this.#options, start = performance.now();
    const step = scheduler.schedule();
    this.#schedulingMs += performance.now() - start;
    if (!step) return false;
    const details = strongest(step.scheduled.filter(({ draws }) => draws).map(detailsOf));
    this.#mayFollow = decodes(step) && details === "none" && !scheduler.canAdmit;
    this.#steps.push(runner.encode(step, details, begin));
    this.#encodeMs = performance.now() - start;
    return true;
  }
}

function strongest(details: readonly Details[]): Details {
  return details.includes("top") ? "top" : details.includes("logprob") ? "logprob" : "none";
}
