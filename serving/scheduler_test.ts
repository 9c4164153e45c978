import { assertEquals } from "@std/assert";
import type { ScheduledStep } from "./scheduled_step.ts";
import { Scheduler, type SchedulerOptions } from "./scheduler.ts";
import { Sequence, type SequenceOptions } from "./sequence.ts";

function scheduler(options: Partial<SchedulerOptions> = {}): Scheduler {
  return new Scheduler({
    numBlocks: 64,
    blockSize: 4,
    maxNumSeqs: 4,
    maxNumBatchedTokens: 16,
    contextLength: 64,
    ...options,
  });
}

/** A sequence whose tokens count up from `first`. */
function sequence(length: number, first = 0, options: SequenceOptions = {}): Sequence {
  return new Sequence(Array.from({ length }, (_, i) => first + i), {}, options);
}

/** Reads a step: every token that it drew is a 7. */
function read(from: Scheduler, step: ScheduledStep | undefined): void {
  if (!step) throw new Error("there is no step");
  for (const { sequence, draws } of step.scheduled) if (draws && sequence.state !== "finished") sequence.append(7);
  from.retire(step.number);
}

Deno.test("a prompt longer than the budget is computed in chunks, beside what decodes", () => {
  const steps = scheduler();
  const short = sequence(3), long = sequence(30, 100);
  steps.add(short);
  read(steps, steps.schedule());
  steps.add(long);
  const seen = [1, 2, 3].map(() => {
    const step = steps.schedule();
    read(steps, step);
    return step!.scheduled.map(({ sequence, start, numTokens, draws }) => [sequence === long, start, numTokens, draws]);
  });
  assertEquals(seen, [
    [[false, 3, 1, true], [true, 0, 15, false]],
    [[false, 4, 1, true], [true, 15, 15, true]],
    [[false, 5, 1, true], [true, 30, 1, true]],
  ]);
  [short, long].forEach((each) => steps.finish(each));
  steps.blocks.assertConsistent([]);
  assertEquals(steps.blocks.numFreeBlocks, 64);
});
