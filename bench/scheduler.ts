/**
 * Times the scheduler and the block manager alone: the CPU's part of a step beside encoding.
 *
 * `decode` holds a number of sequences at a context, a token each a step; `churn` has them end after 128 tokens and others
 * come in their place, whose prompts share their first half; `small pool` is churn with room for a third of the sequences, so that
 * they are preempted. Steps are scheduled ahead in runs, and read at the end of each run.
 *
 * @module
 */
import type { ScheduledStep } from "../serving/scheduled_step.ts";
import { Scheduler } from "../serving/scheduler.ts";
import { Sequence } from "../serving/sequence.ts";
import { BenchArguments, runBench } from "./arguments.ts";
import { type Result, Results } from "./result.ts";
import { summarise } from "./statistics.ts";
import { formatNumber, formatTable } from "./table.ts";

const USAGE = "deno task bench:scheduler [--sequences=256] [--context=512] [--ahead=8] [--steps=2000] [--out=FILE]";

/** What is done to the scheduler. */
interface Load {
  readonly name: string;
  /** Tokens that a sequence generates; without it all run on. */
  readonly answer?: number;
  /** Sequences at their full length that the pool has room for, as a share of those that run. */
  readonly room: number;
}

const LOADS: readonly Load[] = [
  { name: "decode", room: 2 },
  { name: "churn", answer: 128, room: 2 },
  { name: "small pool", answer: 128, room: 0.3 },
];

/** What was measured: milliseconds of the CPU a step. */
interface SchedulerResult extends Result {
  readonly load: string;
  readonly seqs: number;
  readonly context: number;
  readonly ahead: number;
  readonly steps: number;
  /** Mean of scheduling, reading and retiring together. */
  readonly meanMs: number;
  readonly scheduleMs: { readonly p50: number; readonly p99: number; readonly max: number };
  /** Appending what was drawn, finishing and retiring. */
  readonly readMs: { readonly p50: number; readonly p99: number; readonly max: number };
  readonly sequencesPerStep: number;
  readonly preemptions: number;
  readonly hitRate: number;
}

const BLOCK_SIZE = 16;

class LoadedScheduler {
  readonly scheduler: Scheduler;
  #made = 0;

  constructor(readonly load: Load, readonly seqs: number, readonly context: number, readonly steps: number) {
    const length = context + (load.answer ?? steps);
    const numBlocks = Math.ceil(Math.max(1, load.room * seqs) * length / BLOCK_SIZE);
    this.scheduler = new Scheduler({
      numBlocks,
      blockSize: BLOCK_SIZE,
      maxNumSeqs: seqs,
      maxNumBatchedTokens: 2048 + seqs,
      contextLength: length + 1,
    });
    for (let i = 0; i < seqs; i++) this.arrive();
  }

  /** Appends the tokens that a step drew and lets go of the sequences that are over. Returns how many these are. */
  read({ number, scheduled }: ScheduledStep): number {
    const { answer = Infinity } = this.load;
    let over = 0;
    for (const { sequence, draws } of scheduled) {
      if (!draws || sequence.state === "finished") continue;
      sequence.append(sequence.length * 31 % 50_000);
      if (sequence.tokens.length - sequence.numPromptTokens < answer - sequence.arrival % 64) continue; // they end one by one
      this.scheduler.finish(sequence);
      over++;
    }
    this.scheduler.retire(number);
    return over;
  }

  /** Takes in a sequence. */
  arrive(): void {
    const own = ++this.#made, half = this.context / 2;
    const prompt = Array.from({ length: this.context }, (_, i) => i < half ? i : i * own % 50_000);
    this.scheduler.add(new Sequence(prompt, {}, { maxLength: this.context + (this.load.answer ?? this.steps) }));
  }
}

function measure(load: Load, seqs: number, context: number, ahead: number, steps: number) {
  const loaded = new LoadedScheduler(load, seqs, context, 2 * steps), { scheduler } = loaded;
  const scheduleMs: number[] = [], readMs: number[] = [];
  let sequences = 0;
  const turn = (): void => {
    const run: ScheduledStep[] = [];
    while (run.length < ahead) {
      const start = performance.now(), step = scheduler.schedule();
      scheduleMs.push(performance.now() - start);
      if (!step) break;
      run.push(step);
      sequences += step.scheduled.length;
    }
    for (const step of run) {
      const start = performance.now();
      const over = loaded.read(step);
      readMs.push(performance.now() - start);
      for (let i = 0; i < over; i++) loaded.arrive();
    }
  };
  // The prompts are read first, and the code is warm then.
  for (let warm = 0; warm < steps / 4 || scheduler.numWaiting > 0 && load.room > 1 && !load.answer; warm += ahead) {
    turn();
  }
  [scheduleMs, readMs].forEach((times) => times.length = 0);
  sequences = 0;
  while (readMs.length < steps) turn();
  const total = [...scheduleMs, ...readMs].reduce((sum, time) => sum + time, 0);
  const { numHitTokens: hits, numMissTokens: misses } = scheduler.blocks;
  return {
    meanMs: total / readMs.length,
    scheduleMs: summarise(scheduleMs),
    readMs: summarise(readMs),
    sequencesPerStep: sequences / readMs.length,
    preemptions: scheduler.numPreemptions,
    hitRate: hits / (hits + misses),
  };
}

function main(args: readonly string[]): void {
  const flags = new BenchArguments(args);
  const [seqs, context, ahead, steps] = ([["sequences", 256], ["context", 512], ["ahead", 8], ["steps", 2000]] as const)
    .map(([name, fallback]) => flags.number(name, fallback)) as [number, number, number, number];
  const out = flags.text("out");
  flags.check([]);
  const results = new Results<SchedulerResult>("scheduler", `CPU, ${Deno.build.arch}`, args, out);
  for (const load of LOADS) {
    results.add({ load: load.name, seqs, context, ahead, steps, ...measure(load, seqs, context, ahead, steps) });
  }
  const head = ["load", "ms a step", "schedule p50", "p99", "read p50", "p99", "sequences", "preemptions", "hits"];
  const rows = results.all.map((result) => [
    result.load,
    ...[result.meanMs, result.scheduleMs.p50, result.scheduleMs.p99, result.readMs.p50, result.readMs.p99].map(
      formatNumber,
    ),
    formatNumber(result.sequencesPerStep),
    result.preemptions,
    `${formatNumber(100 * result.hitRate)}%`,
  ]);
  console.log(`\n${formatTable(head, rows)}`);
}

if (import.meta.main) await runBench(USAGE, main);
