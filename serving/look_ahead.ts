/**
 * Steps that are submitted before earlier ones have been read. A read in this runtime waits for all that was submitted, so what
 * gains is a run: some steps one after another, each taking the tokens of the one before on the device, and one read for all.
 * The first step of the next run is scheduled and encoded while the device works, and submitted as soon as the read is there,
 * before the host looks at what was drawn. What ran past a stop is for the engine to discard.
 *
 * A run is short where someone would wait for its end: it has one step while a request could be admitted, while a prompt is
 * computed, and where a draw reports more than an id. On a CPU device, where steps are long and
 * compete with the host, nothing is submitted ahead.
 *
 * @module
 */
import type { PreparedStep, Runner, StepResult, SubmittedStep } from "./runner.ts";
import type { Details } from "./sampler.ts";
import { decodes, type Scheduled } from "./scheduled_step.ts";
import type { Scheduler } from "./scheduler.ts";

/** What steps are made of and where they run. */
export interface LookAheadOptions {
  readonly scheduler: Pick<Scheduler, "schedule" | "canAdmit">;
  readonly runner: Pick<Runner, "prepare" | "read">;
  /** Most steps of a run. With 1 nothing is submitted before what runs has been read. */
  readonly maxSteps: number;
  /** What is to be reported of a sequence's tokens. */
  readonly detailsOf: (scheduled: Scheduled) => Details;
}

/** A run lasts about so many milliseconds: a read costs 0.1 ms, and tokens are not to come in lumps. */
const RUN_MS = 12;

/** Submits steps in runs and reads them in order. */
export class LookAhead {
  readonly #options: LookAheadOptions;
  #submitted: SubmittedStep[] = [];
  /** The run's last step, where another may follow it before it is read. */
  #mayFollow = true;
  #stepMs = RUN_MS;
  #schedulingMs = 0;

  /** Nothing is submitted yet. */
  constructor(options: LookAheadOptions) {
    this.#options = options;
  }

  /** Whether steps are under way. */
  get isBusy(): boolean {
    return this.#submitted.length > 0;
  }

  /** Milliseconds that scheduling took so far. */
  get schedulingMs(): number {
    return this.#schedulingMs;
  }

  /** Submits a run, waits for it, and says what it drew; nothing where there is nothing to compute. */
  async advance(): Promise<StepResult[]> {
    const start = performance.now();
    this.#submitRun();
    const steps = this.#submitted;
    if (steps.length === 0) return [];
    const next = this.#options.maxSteps > 1 ? this.#prepare(true) : undefined;
    const results = await this.#options.runner.read(steps);
    this.#stepMs = (performance.now() - start) / steps.length;
    this.#submitted = [];
    if (next) this.#submit(next);
    return results;
  }

  /** Forgets what is under way: it failed. */
  reset(): void {
    this.#submitted = [];
    this.#mayFollow = true;
  }

  #submitRun(): void {
    const { maxSteps } = this.#options;
    const length = Math.max(1, Math.min(maxSteps, Math.round(RUN_MS / this.#stepMs)));
    while (this.#submitted.length === 0 || (this.#submitted.length < length && this.#mayFollow)) {
      const next = this.#prepare(false);
      if (!next) return;
      this.#submit(next);
    }
  }

  #submit({ prepared, followed }: Next): void {
    this.#submitted.push(prepared.submit());
    this.#mayFollow = followed;
  }

  /** Schedules and builds the next step. */
  #prepare(ahead: boolean): Next | undefined {
    const { scheduler, runner, detailsOf } = this.#options, start = performance.now();
    const step = scheduler.schedule();
    this.#schedulingMs += performance.now() - start;
    if (!step) return undefined;
    const details = strongest(step.scheduled.filter(({ draws }) => draws).map(detailsOf));
    const followed = decodes(step) && details === "none" && !scheduler.canAdmit;
    return { prepared: runner.prepare(step, details, ahead), followed };
  }
}

/** A step to submit. */
interface Next {
  readonly prepared: PreparedStep;
  /** Whether another may be submitted before it is read. */
  readonly followed: boolean;
}

function strongest(details: readonly Details[]): Details {
  return details.includes("top") ? "top" : details.includes("logprob") ? "logprob" : "none";
}
