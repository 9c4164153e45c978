import { assertEquals, assertThrows } from "@std/assert";
import type { ScheduledStep } from "./scheduled_step.ts";
import { Scheduler, type SchedulerOptions } from "./scheduler.ts";
import { Sequence, type SequenceOptions, type SequenceSampling } from "./sequence.ts";

function makeScheduler(options: Partial<SchedulerOptions> = {}): Scheduler {
  const defaults = { numBlocks: 64, blockSize: 4, maxNumSeqs: 4, maxNumBatchedTokens: 16, contextLength: 64 };
  return new Scheduler({ ...defaults, ...options });
}

/** A sequence whose tokens count up from `first`. */
function makeSequence(length: number, first = 0, options: SequenceOptions = {}, sampling?: SequenceSampling): Sequence {
  return new Sequence(Array.from({ length }, (_, i) => first + i), sampling, options);
}

/** The next step, which has to be. */
function next(scheduler: Scheduler): ScheduledStep {
  const step = scheduler.schedule();
  if (!step) throw new Error("there is no step");
  return step;
}

/** Reads and retires a step: every token that it drew is a 7. Sequences at their end are let go of. */
function read(scheduler: Scheduler, step: ScheduledStep): void {
  for (const { sequence, draws } of step.scheduled) {
    if (draws && sequence.state !== "finished") sequence.append(7);
    if (sequence.tokens.length === sequence.maxLength) scheduler.finish(sequence);
  }
  scheduler.retire(step.number);
  scheduler.assertConsistent();
}

/** Takes a step and reads it. Returns the tokens of each sequence in it. */
function advance(scheduler: Scheduler): Map<Sequence, number> {
  const step = next(scheduler);
  read(scheduler, step);
  return new Map(step.scheduled.map(({ sequence, numTokens }) => [sequence, numTokens]));
}

/** Lets go of all, and proves that everything is free. */
function end(scheduler: Scheduler, ...sequences: Sequence[]): void {
  sequences.forEach((sequence) => scheduler.finish(sequence));
  scheduler.retire(Infinity);
  scheduler.assertConsistent();
  const { numRunning, numWaiting, blocks } = scheduler;
  assertEquals([numRunning, numWaiting, blocks.numFreeBlocks], [0, 0, blocks.numBlocks]);
}

Deno.test("a prompt longer than the budget is computed in chunks, beside what decodes", () => {
  const scheduler = makeScheduler(), short = makeSequence(3), long = makeSequence(30, 100);
  scheduler.add(short);
  advance(scheduler);
  scheduler.add(long);
  const seen = [1, 2, 3].map(() => {
    const step = next(scheduler);
    read(scheduler, step);
    return step.scheduled.map(({ sequence, start, numTokens, draws }) => [sequence === long, start, numTokens, draws]);
  });
  assertEquals(seen, [
    [[false, 3, 1, true], [true, 0, 15, false]],
    [[false, 4, 1, true], [true, 15, 15, true]],
    [[false, 5, 1, true], [true, 30, 1, true]],
  ]);
  end(scheduler, short, long);
});

Deno.test("steps are larger while nothing but prompts is computed", () => {
  const scheduler = makeScheduler({ contextLength: 128, maxNumBatchedTokens: 32, maxNumMixedTokens: 8 });
  const first = makeSequence(40, 0, { maxLength: 43 }), second = makeSequence(70, 100, { maxLength: 71 });
  scheduler.add(first);
  scheduler.add(second);
  const tokens = Array.from({ length: 5 }, () => {
    const step = advance(scheduler);
    return [step.get(first), step.get(second)];
  });
  // The fourth step draws the last token that `first` may have: nobody waits for the end of those behind.
  assertEquals(tokens, [[32, undefined], [8, 24], [1, 7], [1, 7], [undefined, 32]]);
  end(scheduler);
});

Deno.test("steps are scheduled ahead of reading: what they draw is in flight", () => {
  const scheduler = makeScheduler(), sequence = makeSequence(3, 0, { maxLength: 6 });
  scheduler.add(sequence);
  const steps = [1, 2, 3].map(() => next(scheduler));
  assertEquals(steps.map(({ scheduled: [item] }) => [item!.start, item!.numTokens]), [[0, 3], [3, 1], [4, 1]]);
  assertEquals([sequence.length, sequence.numInFlight, sequence.tokens.length], [6, 3, 3]);
  assertEquals(scheduler.schedule(), undefined, "it has drawn all that it may");
  steps.forEach((step) => read(scheduler, step));
  assertEquals(sequence.tokens, [0, 1, 2, 7, 7, 7]);
  end(scheduler);
});

Deno.test("a sequence that waits can be admitted while fewer run than may", () => {
  const scheduler = makeScheduler({ maxNumSeqs: 2 }), sequences = [1, 2, 3].map((length) => makeSequence(length));
  assertEquals(scheduler.canAdmit, false);
  scheduler.add(sequences[0]!);
  assertEquals(scheduler.canAdmit, true);
  sequences.slice(1).forEach((each) => scheduler.add(each));
  advance(scheduler);
  assertEquals([scheduler.numRunning, scheduler.numWaiting, scheduler.canAdmit], [2, 1, false]);
  scheduler.finish(sequences[0]!);
  assertEquals(scheduler.canAdmit, true);
  end(scheduler, ...sequences);
});

Deno.test("blocks are free once the steps that use them have retired", () => {
  const scheduler = makeScheduler({ numBlocks: 4 }), sequence = makeSequence(16, 0, { maxLength: 17 });
  scheduler.add(sequence);
  const step = next(scheduler);
  scheduler.finish(sequence);
  const later = makeSequence(5, 50, { maxLength: 9 });
  scheduler.add(later);
  assertEquals([scheduler.blocks.numFreeBlocks, scheduler.schedule()], [0, undefined]);
  scheduler.retire(step.number);
  assertEquals(advance(scheduler).get(later), 5);
  end(scheduler, later);
});

Deno.test("when memory runs out the youngest yields, waits in its place, and loses nothing", () => {
  const scheduler = makeScheduler({ numBlocks: 8, prefixCache: false });
  const old = makeSequence(15, 0, { maxLength: 24 }), young = makeSequence(9, 100, { maxLength: 20 });
  const late = makeSequence(1, 200, { maxLength: 3 });
  for (const each of [old, young, late]) {
    scheduler.add(each);
    advance(scheduler);
  }
  while (scheduler.numPreemptions === 0) advance(scheduler);
  const generated = young.tokens.length - young.numPromptTokens;
  assertEquals([old, young, late].map(({ state }) => state), ["running", "waiting", "waiting"]);
  assertEquals([generated > 0, young.blockTable.length, young.numComputedTokens], [true, 0, 0]);
  while (old.state === "running") assertEquals([...advance(scheduler).keys()], [old]);
  assertEquals(advance(scheduler), new Map([[young, 9 + generated], [late, 1]]), "computed anew, and in one go");
  while (scheduler.numRunning > 0) advance(scheduler);
  assertEquals([old, young, late].map(({ tokens }) => tokens.length), [24, 20, 3]);
  assertEquals([old.numPreemptions, young.numPreemptions, scheduler.numPreemptions], [0, 1, 1]);
  end(scheduler);
});

Deno.test("what a preempted sequence finds of itself is no hit of the prefix cache", () => {
  const scheduler = makeScheduler({ numBlocks: 8 }),
    opening = makeSequence(8, 100, { maxLength: 9 }),
    { blocks } = scheduler;
  scheduler.add(opening);
  advance(scheduler);
  assertEquals(opening.state, "finished");
  const old = makeSequence(15, 0, { maxLength: 24 }), young = makeSequence(9, 100, { maxLength: 20 });
  for (const each of [old, young]) {
    scheduler.add(each);
    advance(scheduler);
  }
  const counts = [old.numHitTokens, young.numHitTokens, blocks.numHitTokens, blocks.numMissTokens];
  assertEquals(counts, [0, 8, 8, 8 + 15 + 1]);
  while (scheduler.numRunning + scheduler.numWaiting > 0) advance(scheduler);
  assertEquals([old.numPreemptions, young.numPreemptions > 0], [0, true]);
  assertEquals([old.numHitTokens, young.numHitTokens, blocks.numHitTokens, blocks.numMissTokens], counts);
  end(scheduler);
});

Deno.test("nobody yields where waiting for what is under way is enough", () => {
  const scheduler = makeScheduler({ numBlocks: 5 });
  const going = makeSequence(7, 0, { maxLength: 21 }), ending = makeSequence(7, 100, { maxLength: 8 });
  [going, ending].forEach((each) => scheduler.add(each));
  const steps = [1, 2, 3, 4, 5, 6].map(() => next(scheduler));
  assertEquals(steps.map(({ scheduled }) => scheduled.length), [2, 1, 1, 1, 1, 1]);
  assertEquals(scheduler.schedule(), undefined, "a block is missing, and two will come free");
  scheduler.finish(ending);
  assertEquals(scheduler.schedule(), undefined, "not yet");
  steps.forEach((step) => read(scheduler, step));
  while (scheduler.numRunning > 0) advance(scheduler);
  assertEquals([going.tokens.length, scheduler.numPreemptions], [21, 0]);
  end(scheduler);
});

Deno.test("who would have to yield at once is not admitted", () => {
  const scheduler = makeScheduler({ numBlocks: 8, maxNumBatchedTokens: 32 });
  const first = makeSequence(8, 0, { maxLength: 14 }), large = makeSequence(19, 100, { maxLength: 21 });
  scheduler.add(first);
  advance(scheduler);
  scheduler.add(large); // its 5 blocks are there, and no other for `first`
  while (first.state === "running") assertEquals(advance(scheduler).size, 1);
  while (scheduler.numWaiting + scheduler.numRunning > 0) advance(scheduler);
  assertEquals(scheduler.numPreemptions, 0);
  end(scheduler);
});

Deno.test("a sequence that yields finds in the cache what nobody took meanwhile", () => {
  const scheduler = makeScheduler({ numBlocks: 6 });
  const old = makeSequence(8, 0, { maxLength: 16 }), young = makeSequence(11, 100, { maxLength: 16 });
  [old, young].forEach((each) => scheduler.add(each));
  while (scheduler.numPreemptions === 0) advance(scheduler);
  while (old.state !== "finished") advance(scheduler);
  assertEquals(young.state, "waiting");
  const tokens = young.tokens.length, { start, numTokens } = next(scheduler).scheduled[0]!;
  assertEquals([start > 0 && start % 4 === 0, start + numTokens, young.numHitTokens], [true, tokens, 0]);
  end(scheduler, young);
});

Deno.test("who does not fit is not overtaken, so that a stream of short requests starves nobody", () => {
  const scheduler = makeScheduler({ numBlocks: 16, prefixCache: false });
  const large = makeSequence(50, 0, { maxLength: 60 });
  const short = (): Sequence => makeSequence(4, 100, { maxLength: 12 });
  scheduler.add(short());
  advance(scheduler);
  scheduler.add(large);
  let steps = 0;
  for (; large.state === "waiting"; steps++) {
    scheduler.add(short());
    advance(scheduler);
  }
  assertEquals(steps <= 12, true, `it waited for ${steps} steps, and the one in front ran for 12`);
  while (large.state !== "finished") advance(scheduler);
  while (scheduler.numRunning + scheduler.numWaiting > 0) advance(scheduler);
  end(scheduler);
});

Deno.test("what could never run is refused at once, with the numbers", () => {
  const scheduler = makeScheduler({ numBlocks: 8, contextLength: 40 });
  const refuse = (sequence: Sequence, message: string): void => {
    assertThrows(() => scheduler.add(sequence), RangeError, message);
    assertThrows(() => scheduler.add(makeSequence(1, 0, { maxLength: 9 }), [sequence]), RangeError, message);
    assertEquals([sequence.state, scheduler.numWaiting], ["new", 0]);
  };
  refuse(makeSequence(9, 0, { maxLength: 34 }), "of up to 34 tokens: it needs 9 blocks of 4, the pool has 8");
  refuse(makeSequence(20), "of up to 40 tokens: it needs 10 blocks");
  refuse(makeSequence(40), "a prompt of 40 tokens: prompt and answer have 40 in all");
  refuse(makeSequence(5, 0, { maxLength: 5 }), "prompt and answer have 5 in all");
  refuse(makeSequence(41, 0, { task: "score" }), "a prompt of 41 tokens");
  const most = makeSequence(9, 0, { maxLength: 33 }); // the last token is never computed: 32 positions
  scheduler.add(most);
  assertThrows(() => scheduler.add(most), Error, "it is waiting");
  while (scheduler.numRunning + scheduler.numWaiting > 0) advance(scheduler);
  assertEquals([most.tokens.length, scheduler.numPreemptions], [33, 0]);
  assertThrows(() => makeScheduler({ maxNumSeqs: 5, maxNumBatchedTokens: 4 }), RangeError, "5 sequences in steps of 4");
  const mixed = { maxNumSeqs: 5, maxNumBatchedTokens: 16, maxNumMixedTokens: 4 };
  assertThrows(() => makeScheduler(mixed), RangeError, "5 sequences in steps of 4");
});

Deno.test("by priority the lower number goes first, and the higher one yields", () => {
  const scheduler = makeScheduler({ policy: "priority", maxNumSeqs: 2, numBlocks: 8, prefixCache: false });
  const [low, high, middle] = [9, 1, 5].map((priority, i) => makeSequence(9, 100 * i, { priority, maxLength: 20 }));
  [low!, high!, middle!].forEach((each) => scheduler.add(each));
  assertEquals([...advance(scheduler).keys()], [high, middle]);
  while (scheduler.numPreemptions === 0) advance(scheduler);
  assertEquals([high, middle, low].map((each) => each!.state), ["running", "waiting", "waiting"]);
  while (high!.state === "running") advance(scheduler);
  assertEquals([...advance(scheduler).keys()][0], middle);
  while (scheduler.numRunning + scheduler.numWaiting > 0) advance(scheduler);
  end(scheduler);
});

Deno.test("an urgent prompt does not stall those that decode", () => {
  const scheduler = makeScheduler({ policy: "priority" });
  const decoding = [1, 2, 3].map((i) => makeSequence(2, 10 * i, { priority: 1 }));
  decoding.forEach((each) => scheduler.add(each));
  advance(scheduler);
  const urgent = makeSequence(50, 100, { priority: 0 });
  scheduler.add(urgent);
  for (const tokens of [13, 13, 13, 11]) {
    assertEquals(
      advance(scheduler),
      new Map([...decoding, urgent].map((each) => [each, each === urgent ? tokens : 1])),
    );
  }
  end(scheduler, urgent, ...decoding);
});

Deno.test("a prefix that 100 requests share is computed once", () => {
  const scheduler = makeScheduler({
    numBlocks: 4000,
    maxNumSeqs: 100,
    maxNumBatchedTokens: 512,
    contextLength: 4096,
    blockSize: 16,
  });
  const shared = Array.from({ length: 2000 }, (_, i) => i % 977);
  const sequences = Array.from(
    { length: 100 },
    (_, i) => new Sequence([...shared, 2000 + i, 5], {}, { maxLength: 2003 }),
  );
  sequences.forEach((each) => scheduler.add(each));
  let computed = 0;
  while (scheduler.numRunning + scheduler.numWaiting > 0) {
    for (const tokens of advance(scheduler).values()) computed += tokens;
  }
  assertEquals(computed, 2000 + 100 * 2);
  assertEquals([scheduler.blocks.numHitTokens, scheduler.blocks.numMissTokens], [99 * 2000, 2002 + 99 * 2]);
  end(scheduler);
});

Deno.test("salts keep prefixes apart, and the cache can be switched off", () => {
  const hits = (options: Partial<SchedulerOptions>, ...salts: (string | undefined)[]): number[] => {
    const scheduler = makeScheduler(options);
    return salts.map((salt) => {
      const sequence = makeSequence(9, 0, salt === undefined ? {} : { salt });
      scheduler.add(sequence);
      advance(scheduler);
      scheduler.finish(sequence);
      return sequence.numHitTokens;
    });
  };
  assertEquals(hits({}, undefined, "a", "b", "", "a", undefined, ""), [0, 0, 0, 0, 8, 8, 8]);
  assertEquals(hits({ prefixCache: false }, undefined, undefined), [0, 0]);
});

Deno.test("samples share the blocks of their prompt, and copy what they change", () => {
  const scheduler = makeScheduler({ prefixCache: false });
  const samples = [0, 1, 2].map((seed) => makeSequence(10, 0, { maxLength: 14 }, { seed }));
  scheduler.add(samples[0]!, samples.slice(1));
  assertEquals(scheduler.numWaiting, 3);
  const first = next(scheduler), second = next(scheduler);
  assertEquals(first.scheduled.map(({ sequence, numTokens }) => [sequence, numTokens]), [[samples[0], 10]]);
  assertEquals(second.scheduled.map(({ start, numTokens }) => [start, numTokens]), [[10, 1], [9, 1], [9, 1]]);
  const tables = samples.map(({ blockTable }) => blockTable);
  assertEquals(tables.map((table) => table.slice(0, 2)), Array(3).fill(tables[0]!.slice(0, 2)));
  assertEquals(new Set(tables.map((table) => table[2])).size, 3);
  assertEquals(second.copies.every(({ from }) => from === second.copies[0]!.from), true);
  assertEquals(new Set(second.copies.map(({ to }) => to)).isSubsetOf(new Set(tables.map((table) => table[2]!))), true);
  scheduler.assertConsistent();
  [first, second].forEach((step) => read(scheduler, step));
  while (scheduler.numRunning + scheduler.numWaiting > 0) advance(scheduler);
  assertEquals(samples.map(({ tokens }) => tokens.length), [14, 14, 14]);
  end(scheduler);
});

Deno.test("samples go on without the first, also before their prompt is computed", () => {
  const scheduler = makeScheduler(),
    samples = [0, 1, 2].map((seed) => makeSequence(30, 0, { maxLength: 32 }, { seed }));
  scheduler.add(samples[0]!, samples.slice(1));
  advance(scheduler);
  scheduler.finish(samples[2]!);
  scheduler.finish(samples[0]!);
  assertEquals(samples.map(({ state }) => state), ["finished", "waiting", "finished"]);
  while (scheduler.numRunning + scheduler.numWaiting > 0) advance(scheduler);
  assertEquals(samples[1]!.tokens.length, 32);
  end(scheduler);
});

Deno.test("scores take turns with what generates, in pieces, and hold their blocks", () => {
  const scheduler = makeScheduler({ numBlocks: 8, maxNumScoredTokens: 6, prefixCache: false });
  const generating = makeSequence(2, 50, { maxLength: 30 }), scored = makeSequence(15, 0, { task: "score" });
  [generating, scored].forEach((each) => scheduler.add(each));
  const steps: string[] = [];
  while (scored.state !== "finished") {
    const step = next(scheduler), { sequence, start, numTokens, draws } = step.scheduled[0]!;
    steps.push(`${step.task} ${start}+${numTokens}${draws ? " draws" : ""}`);
    read(scheduler, step);
    if (step.task === "score" && sequence.numPendingTokens === 0) scheduler.finish(sequence);
    scheduler.assertConsistent();
  }
  assertEquals(steps, [
    "generate 0+2 draws",
    "score 0+6",
    "generate 2+1 draws",
    "score 6+6",
    "generate 3+1 draws",
    "score 12+3",
  ]);
  end(scheduler, generating);
});

Deno.test("after a step has failed nothing is left, and others are served", () => {
  const scheduler = makeScheduler(), all = [3, 30, 5].map((length) => makeSequence(length));
  scheduler.add(all[0]!);
  scheduler.add(all[1]!, [all[2]!]);
  next(scheduler);
  scheduler.clear();
  assertEquals(all.map(({ state, blockTable }) => [state, blockTable.length]), Array(3).fill(["finished", 0]));
  end(scheduler);
  const later = makeSequence(9);
  scheduler.add(later);
  assertEquals(
    [advance(scheduler).get(later), later.numHitTokens],
    [9, 0],
    "what the failed step wrote is not trusted",
  );
  end(scheduler, later);
});
