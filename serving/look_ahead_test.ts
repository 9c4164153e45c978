/** Runs and their groups, on a device and a clock that are simulated. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { groupSize } from "./group_size.ts";
import { LookAhead } from "./look_ahead.ts";
import type { EncodedStep, StepResult } from "./encoded_step.ts";
import type { ScheduledStep } from "./scheduled_step.ts";
import { Sequence } from "./sequence.ts";

/** Milliseconds of a step on the device, of encoding it, of taking what was read, and of postprocessing a run. */
interface Times {
  readonly step: number;
  readonly encode: number;
  readonly read: number;
  readonly postprocess: number;
}

/** Runs steps on a clock of its own, one after another. */
class SimulatedRunner {
  /** Steps of each submission, and of each read. */
  readonly groups: number[] = [];
  readonly runs: number[] = [];
  /** For how long the device had nothing to do although a run was not over, and when it will have done all that it has. */
  idleMs = 0;
  #doneAt = 0;
  #waiting = 0;
  #given = 0;
  failure: Error | undefined;

  constructor(readonly clock: { ms: number }, readonly times: Times) {}

  encode(step: ScheduledStep): EncodedStep {
    if (this.failure) throw this.failure;
    this.clock.ms += this.times.encode;
    this.#waiting++;
    const drawing = step.scheduled.map(({ sequence }) => sequence);
    return { step, drawing, firstSlot: 0, readDetails: undefined, readLogits: undefined };
  }

  submit(): void {
    if (this.#waiting === 0) return;
    const now = this.clock.ms;
    if (this.#given > 0) this.idleMs += Math.max(0, now - this.#doneAt);
    this.#doneAt = Math.max(now, this.#doneAt) + this.#waiting * this.times.step;
    this.groups.push(this.#waiting);
    this.#given += this.#waiting;
    this.#waiting = 0;
  }

  discard(): void {
    this.#waiting = 0;
  }

  read(steps: readonly EncodedStep[], meanwhile?: () => void): Promise<StepResult[]> {
    this.submit();
    assertEquals(this.#given, steps.length, "a read is for all that was submitted");
    this.#given = 0;
    meanwhile?.();
    this.clock.ms = Math.max(this.clock.ms, this.#doneAt) + this.times.read;
    this.submit();
    this.runs.push(steps.length);
    return Promise.resolve(steps.map((step) => ({ ...step, drawn: [], logits: undefined })));
  }
}

interface Simulated {
  readonly runner: SimulatedRunner;
  readonly lookAhead: LookAhead;
  readonly clock: { ms: number };
}

/** A sequence that decodes for ever. */
function simulate(times: Times, maxSteps = 16): Simulated {
  const clock = { ms: 0 }, runner = new SimulatedRunner(clock, times), sequence = new Sequence([1]);
  let number = 0;
  const scheduler = {
    canAdmit: false,
    schedule(): ScheduledStep {
      const scheduled = [{ sequence, start: number, numTokens: 1, draws: true }];
      return { number: ++number, task: "generate", scheduled, numTokens: 1, copies: [] };
    },
  };
  return { runner, clock, lookAhead: new LookAhead({ scheduler, runner, maxSteps, detailsOf: () => "none" }) };
}

/** Runs some, with the clock that is simulated in place of the real one. */
async function advance({ lookAhead, clock, runner }: Simulated, runs: number): Promise<number[]> {
  const { now } = performance, numbers: number[] = [];
  performance.now = () => clock.ms;
  try {
    for (let run = 0; run < runs; run++) {
      numbers.push(...(await lookAhead.advance()).map(({ step }) => step.number));
      clock.ms += runner.times.postprocess;
    }
  } finally {
    performance.now = now;
  }
  return numbers;
}

/** The groups of the last run: the first of them was submitted before the run, as soon as the one before was read. */
function lastGroups({ runner }: Simulated): number[] {
  return runner.groups.slice(0, -1).slice(-groupsOf(runner));
}

function groupsOf({ groups, runs }: SimulatedRunner): number {
  let steps = 0;
  const all = groups.slice(0, -1);
  return all.length - all.findLastIndex((size) => (steps += size) >= runs.at(-1)!);
}

Deno.test("a run begins with short steps that were encoded before, and each group is as large as all before it", async () => {
  const simulated = simulate({ step: 0.56, encode: 0.2, read: 0.1, postprocess: 0.2 });
  const numbers = await advance(simulated, 12);
  assertEquals(numbers, numbers.map((_, i) => i + 1));
  assertEquals(simulated.runner.runs.at(-1), 16);
  assertEquals(lastGroups(simulated), [3, 3, 6, 4]);
  assertEquals(simulated.runner.idleMs, 0);
});

Deno.test("steps of 2 ms and more are encoded before a run one at a time", async () => {
  const simulated = simulate({ step: 2.1, encode: 0.2, read: 0.1, postprocess: 0.2 });
  await advance(simulated, 12);
  assertEquals(simulated.runner.runs.at(-1), 11);
  assertEquals(lastGroups(simulated), [1, 1, 2, 4, 3]);
});

Deno.test("while the host hands a run's tokens on, the device has short steps to do", async () => {
  const simulated = simulate({ step: 0.56, encode: 0.3, read: 0.1, postprocess: 1.2 });
  await advance(simulated, 20);
  simulated.runner.idleMs = 0;
  await advance(simulated, 100);
  assertEquals(simulated.runner.idleMs, 0);
});

Deno.test("where encoding takes longer, groups are smaller, and the device is not made to wait", async () => {
  for (const encode of [0.3, 0.35, 0.4, 0.45]) {
    const simulated = simulate({ step: 0.56, encode, read: 0.1, postprocess: 0.1 });
    await advance(simulated, 20);
    simulated.runner.idleMs = 0;
    assertEquals((await advance(simulated, 100)).length, 1600);
    const share = simulated.runner.idleMs / (100 * 16 * 0.56);
    assert(share <= 0.02, `the device waits for ${share} of its time where encoding takes ${encode} ms`);
    assert(lastGroups(simulated).length < 16, `${lastGroups(simulated)}`);
  }
});

Deno.test("where encoding takes longer than a step, steps are submitted one by one", async () => {
  const simulated = simulate({ step: 0.5, encode: 0.6, read: 0.1, postprocess: 0.1 });
  await advance(simulated, 40);
  const groups = lastGroups(simulated);
  assert(groups.every((size) => size === 1) && groups.length > 8, `${groups}`);
});

Deno.test("a device that is not to be given steps ahead has one at a time", async () => {
  const simulated = simulate({ step: 0.56, encode: 0.2, read: 0.1, postprocess: 0.1 }, 1);
  assertEquals(await advance(simulated, 5), [1, 2, 3, 4, 5]);
  assertEquals([simulated.runner.groups, simulated.runner.runs], [Array(5).fill(1), Array(5).fill(1)]);
});

Deno.test("after a failure nothing is left of what was encoded", async () => {
  const simulated = simulate({ step: 0.56, encode: 0.2, read: 0.1, postprocess: 0.1 }),
    { runner, lookAhead } = simulated;
  await advance(simulated, 4);
  const { encode } = runner;
  let left = 4;
  runner.encode = (step) => {
    if (left-- === 0) throw new Error("no memory");
    return encode.call(runner, step);
  };
  await assertRejects(() => advance(simulated, 1), Error, "no memory");
  lookAhead.reset();
  assertEquals(lookAhead.isBusy, false);
  const { groups } = runner, before = groups.length;
  runner.submit();
  assertEquals(groups.length, before);
});

Deno.test("a group is one step at least", () => {
  assertEquals(groupSize({ submitted: 0, elapsedMs: 5, stepMs: 1, encodeMs: 1 }), 1);
  assertEquals(groupSize({ submitted: 3, elapsedMs: 5, stepMs: 1, encodeMs: 0 }), 3);
  assertEquals(groupSize({ submitted: 3, elapsedMs: 5, stepMs: 1, encodeMs: 0.1 }), 1);
});
