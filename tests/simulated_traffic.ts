/**
 * Random traffic for a scheduler: requests of one sample or some come, and are aborted at every phase, steps are submitted ahead and read and
 * retired late, in pools that are too small. After everything that happens the bookkeeping is proved, and what each request
 * answers is what it would alone.
 */
import type { Random } from "../kernels/spec.ts";
import type { ScheduledStep } from "../serving/scheduled_step.ts";
import { Scheduler, type SchedulerOptions } from "../serving/scheduler.ts";
import { Sequence, type SequenceState } from "../serving/sequence.ts";
import { answerAlone, SimulatedDevice } from "./simulated_device.ts";

/** A token of this id ends an answer. */
const STOP = 0;

/** What has happened, so that a test can say that everything did. */
export interface TrafficCounts {
  steps: number;
  answers: number;
  refused: number;
  preemptions: number;
  hitTokens: number;
  copies: number;
  clears: number;
  mostInFlight: number;
  readonly aborted: Record<SequenceState, number>;
}

/** Counts of nothing. */
export function noTraffic(): TrafficCounts {
  const aborted = { new: 0, waiting: 0, running: 0, finished: 0 };
  return {
    steps: 0,
    answers: 0,
    refused: 0,
    preemptions: 0,
    hitTokens: 0,
    copies: 0,
    clears: 0,
    mostInFlight: 0,
    aborted,
  };
}

/** A submitted step and what it drew. */
interface InFlight {
  readonly step: ScheduledStep;
  readonly drawn: Int32Array;
}

/** One scheduler under traffic, from its first request until everything is over. */
export class SimulatedTraffic {
  readonly #random: Random;
  readonly #counts: TrafficCounts;
  readonly #options: Required<Omit<SchedulerOptions, "blockBytes">>;
  readonly #scheduler: Scheduler;
  readonly #device: SimulatedDevice;
  readonly #vocabSize: number;
  readonly #maxInFlight: number;
  /** How busy it is: requests and aborts a turn. */
  readonly #arrivalRate: number;
  readonly #abortRate: number;
  /** Sequences that are not over, with how many of its tokens each that scores has scored. */
  readonly #live = new Map<Sequence, number>();
  readonly #unread: InFlight[] = [];
  readonly #unretired: number[] = [];
  /** Beginnings that prompts share. */
  readonly #openings: number[][];
  #lastAdmitted = 0;
  #seen = new Set<Sequence>();

  constructor(random: Random, counts: TrafficCounts) {
    const { integer } = random;
    this.#random = random;
    this.#counts = counts;
    const maxNumSeqs = integer(1, 8), blockSize = [1, 2, 3, 4, 8, 16][integer(0, 5)]!;
    this.#options = {
      numBlocks: integer(2, 1 + Math.ceil(160 / blockSize)),
      blockSize,
      maxNumSeqs,
      maxNumBatchedTokens: maxNumSeqs + integer(0, 24),
      maxNumMixedTokens: maxNumSeqs + integer(0, 24),
      maxNumScoredTokens: integer(1, 9),
      contextLength: integer(8, 80),
      policy: this.#chance(0.5) ? "priority" : "fcfs",
      prefixCache: this.#chance(0.8),
    };
    this.#vocabSize = integer(2, 40);
    this.#maxInFlight = integer(1, 8);
    this.#arrivalRate = 0.05 + 0.5 * random.uniform() ** 2;
    this.#abortRate = this.#chance(0.5) ? 0 : 0.1 * random.uniform();
    this.#scheduler = new Scheduler(this.#options);
    this.#device = new SimulatedDevice({
      ...this.#options,
      vocabSize: this.#vocabSize,
      maxSteps: this.#maxInFlight,
    });
    this.#openings = Array.from({ length: 3 }, () => this.#tokens(integer(1, this.#options.contextLength)));
  }

  /** Lets requests come for some turns, and then runs until all is over. */
  run(turns: number): void {
    for (let turn = 0; turn < turns; turn++) {
      if (this.#chance(this.#arrivalRate)) this.#arrive();
      if (this.#chance(this.#abortRate)) this.#abort();
      if (this.#chance(0.001)) this.#clear();
      this.#advance();
    }
    for (let turn = 0; this.#live.size > 0 || this.#unread.length > 0 || this.#unretired.length > 0; turn++) {
      assert(turn < 100_000, `${this.#live.size} requests do not come to an end`);
      this.#advance();
    }
    const { blocks, numRunning, numWaiting } = this.#scheduler;
    assert(numRunning === 0 && numWaiting === 0, `${numRunning} run and ${numWaiting} wait after the last is over`);
    assert(blocks.numFreeBlocks === blocks.numBlocks && !blocks.isRetiring, "blocks have leaked");
    this.#counts.preemptions += this.#scheduler.numPreemptions;
    this.#counts.hitTokens += blocks.numHitTokens;
  }

  #arrive(): void {
    const { contextLength } = this.#options, { integer } = this.#random;
    const opening = this.#openings[integer(0, 2)]!;
    const shared = this.#chance(0.7) ? opening.slice(0, integer(0, opening.length)) : [];
    const prompt = [...shared, ...this.#tokens(integer(shared.length > 0 ? 0 : 1, Math.ceil(contextLength / 2)))];
    const scores = this.#chance(0.05);
    const make = (index: number): Sequence =>
      new Sequence(prompt, { seed: 100 * prompt.length + index }, {
        priority: prompt.length % 3,
        ...(prompt.length % 5 === 0 && { salt: "secret" }),
        ...(this.#chance(0.9) && { maxLength: prompt.length + integer(0, 40) }),
        ...(scores && { task: "score" }),
      });
    const samples = Array.from({ length: this.#chance(0.2) && !scores ? integer(2, 5) : 1 }, (_, i) => make(i));
    try {
      this.#scheduler.add(samples[0]!, samples.slice(1));
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#counts.refused++;
      assert(samples.every(({ state }) => state === "new"), "a refused sequence was taken in");
      return;
    }
    samples.forEach((sample) => this.#live.set(sample, 0));
    this.#prove();
  }

  #abort(): void {
    const victim = this.#any();
    if (!victim) return;
    this.#counts.aborted[victim.state]++;
    this.#over(victim);
  }

  /** A step has failed: everything is let go of, and the next one starts anew. */
  #clear(): void {
    this.#scheduler.clear();
    const last = this.#unread.at(-1)?.step.number ?? this.#unretired.at(-1);
    if (last !== undefined) this.#retire(last);
    this.#unread.length = this.#unretired.length = 0;
    this.#live.clear();
    this.#counts.clears++;
    this.#prove();
    assert(this.#scheduler.blocks.numFreeBlocks === this.#options.numBlocks, "clearing leaves blocks");
  }

  /** Submits a step, or reads or retires one that is under way. */
  #advance(): void {
    const ahead = this.#unread.length + this.#unretired.length;
    if (this.#unretired.length > 0 && this.#chance(0.4)) return this.#retire(this.#unretired.shift()!);
    if (ahead < this.#maxInFlight && this.#chance(0.7)) {
      const step = this.#scheduler.schedule();
      if (step) return this.#submit(step);
      assert(ahead > 0 || this.#live.size === 0, `nothing is under way, and ${this.#live.size} wait for ever`);
    }
    if (this.#unread.length > 0) return this.#read(this.#unread.shift()!);
    if (this.#unretired.length > 0) this.#retire(this.#unretired.shift()!);
  }

  #submit(step: ScheduledStep): void {
    const { maxNumBatchedTokens, maxNumScoredTokens, maxNumSeqs } = this.#options, { scheduled, numTokens } = step;
    const most = step.task === "score" ? maxNumScoredTokens : maxNumBatchedTokens;
    assert(numTokens <= most && scheduled.length <= maxNumSeqs, `${numTokens} tokens of ${scheduled.length} in a step`);
    assert(numTokens === scheduled.reduce((sum, item) => sum + item.numTokens, 0), "tokens are miscounted");
    assert(new Set(scheduled.map(({ sequence }) => sequence)).size === scheduled.length, "a sequence is there twice");
    assert(scheduled.every(({ sequence }) => sequence.state === "running"), "a sequence is scheduled, and not running");
    if (step.task === "generate") this.#checkFairness(step);
    const drawn = this.#device.run(step);
    this.#unread.push({ step, drawn });
    this.#counts.steps++;
    this.#counts.copies += step.copies.length;
    this.#counts.mostInFlight = Math.max(this.#counts.mostInFlight, this.#unread.length + this.#unretired.length);
    this.#scheduler.assertConsistent();
  }

  /** Nobody who runs is left out for want of budget, and who came first was admitted first. */
  #checkFairness({ scheduled }: ScheduledStep): void {
    const inStep = new Set(scheduled.map(({ sequence }) => sequence));
    for (const sequence of this.#live.keys()) {
      const { state, task, length, maxLength } = sequence;
      if (state !== "running" || task === "score") continue;
      if (inStep.has(sequence)) continue;
      if (length >= Math.min(maxLength, this.#options.contextLength)) continue;
      assert(this.#scheduler.blocks.room(sequence) === 0, "a running sequence is left out, and has room");
    }
    if (this.#options.policy === "priority") return;
    for (const { sequence } of scheduled) {
      if (this.#seen.has(sequence) || sequence.serial > 0) continue;
      this.#seen.add(sequence);
      assert(sequence.arrival > this.#lastAdmitted, "a sequence was overtaken by one that came later");
      this.#lastAdmitted = sequence.arrival;
    }
  }

  #read({ step, drawn }: InFlight): void {
    step.scheduled.forEach(({ sequence, start, numTokens, draws }, i) => {
      if (sequence.state === "finished") return;
      if (step.task === "score") return this.#score(sequence, start, numTokens);
      if (!draws) return;
      sequence.append(drawn[i]!);
      const most = Math.min(sequence.maxLength, this.#options.contextLength);
      if (drawn[i] === STOP || sequence.tokens.length === most) this.#answered(sequence, most);
    });
    this.#unretired.push(step.number);
    this.#prove();
  }

  #score(sequence: Sequence, start: number, numTokens: number): void {
    assert(this.#live.get(sequence) === start, "a score has a gap");
    this.#live.set(sequence, start + numTokens);
    if (start + numTokens < sequence.tokens.length) return;
    this.#counts.answers++;
    this.#over(sequence);
  }

  #answered(sequence: Sequence, maxLength: number): void {
    const { tokens, numPromptTokens, sampling } = sequence, seed = Number(sampling.seed);
    const expected = answerAlone(tokens.slice(0, numPromptTokens), {
      seed,
      maxLength,
      stop: STOP,
      vocabSize: this.#vocabSize,
    });
    assert(expected.join() === tokens.join(), `the answer is ${tokens}, and alone ${expected}`);
    this.#counts.answers++;
    this.#over(sequence);
  }

  #over(sequence: Sequence): void {
    this.#scheduler.finish(sequence);
    this.#scheduler.finish(sequence);
    this.#live.delete(sequence);
    this.#prove();
  }

  #retire(step: number): void {
    this.#scheduler.retire(step);
    this.#device.retire(step);
    this.#prove();
  }

  #prove(): void {
    this.#scheduler.blocks.assertConsistent(this.#live.keys());
  }

  #any(): Sequence | undefined {
    return [...this.#live.keys()][this.#random.integer(0, this.#live.size - 1)];
  }

  #tokens(count: number): number[] {
    return Array.from({ length: count }, () => this.#random.integer(1, this.#vocabSize - 1));
  }

  #chance(probability: number): boolean {
    return this.#random.uniform() < probability;
  }
}

function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`The scheduler is wrong: ${message}`);
}
