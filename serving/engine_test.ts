import { assertEquals, assertRejects, assertThrows, unreachable } from "@std/assert";
import { Engine } from "./engine.ts";
import type { EngineRequest } from "./engine_types.ts";
import { Generation } from "./generation.ts";
import { resolveParameters } from "./parameters.ts";
import type { Chunk, Completion, SamplingOptions } from "./request.ts";
import type { EncodedStep, StepResult } from "./encoded_step.ts";
import type { ScheduledStep } from "./scheduled_step.ts";
import type { Sequence } from "./sequence.ts";

const CONTEXT = 64;

/** A runner without a GPU: the next token is the last one plus 1, so every answer is known. */
class CountingRunner {
  readonly maxLogitsTokens = 4;
  /** Tokens of each sequence in each step that was submitted. */
  readonly steps: number[][] = [];
  /** Steps of each read. */
  readonly runs: number[] = [];
  failure: Error | undefined;
  onStep: () => void = () => {};
  readonly #encoded: number[][] = [];
  readonly #drawn = new Map<Sequence, number[]>();

  encode(step: ScheduledStep): EncodedStep {
    const drawing = step.scheduled.filter(({ draws }) => draws).map(({ sequence }) => sequence);
    const readLogits = step.task === "score" ? (): Promise<Float32Array<ArrayBuffer>> => logitsOf(step) : undefined;
    if (step.task === "generate") this.#encoded.push(step.scheduled.map(({ numTokens }) => numTokens));
    return { step, drawing, firstSlot: 0, readDetails: undefined, readLogits };
  }

  submit(): void {
    this.steps.push(...this.#encoded.splice(0));
  }

  discard(): void {
    this.#encoded.length = 0;
  }

  async read(steps: readonly EncodedStep[], meanwhile?: () => void): Promise<StepResult[]> {
    this.submit();
    meanwhile?.();
    await Promise.resolve();
    if (this.failure) throw this.failure;
    this.runs.push(steps.length);
    this.onStep();
    const results: StepResult[] = [];
    for (const { step, drawing, readLogits } of steps) {
      const drawn = drawing.map((sequence) => ({ sequence, sampled: { token: this.#next(sequence) } }));
      results.push({ step, drawn, logits: await readLogits?.() });
    }
    this.submit();
    return results;
  }

  /** Counts up from the prompt's last token, whatever the engine has made of the tokens since. */
  #next(sequence: Sequence): number {
    const drawn = this.#drawn.get(sequence) ?? [];
    this.#drawn.set(sequence, drawn);
    drawn.push(sequence.tokens[sequence.numPromptTokens - 1]! + drawn.length + 1);
    return drawn.at(-1)!;
  }
}

/** Of each token a row of one logit: its id. */
function logitsOf({ scheduled }: ScheduledStep): Promise<Float32Array<ArrayBuffer>> {
  const { sequence, start, numTokens } = scheduled[0]!;
  return Promise.resolve(Float32Array.from(sequence.tokens.slice(start, start + numTokens)));
}

function setUp(numBlocks = 32, maxSteps = 1): { runner: CountingRunner; engine: Engine } {
  const runner = new CountingRunner(), limits = { maxNumSeqs: 3, maxNumBatchedTokens: 16, contextLength: CONTEXT };
  const engine = new Engine({ runner, numBlocks, blockSize: 4, maxSteps, prefixCache: false, ...limits });
  const step = engine.step.bind(engine);
  engine.step = async () => {
    await step();
    engine.scheduler.assertConsistent();
  };
  return { runner, engine };
}

let requests = 0;

/** Submits, and returns the text's side of it. */
function submit(engine: Engine, prompt: number[], options: SamplingOptions & { signal?: AbortSignal }): Generation {
  const defaults = { generation: { eosTokenIds: [] }, eosTokenIds: [99], vocabSize: 1000 };
  const parameters = resolveParameters(options, defaults), id = requests++;
  const abort = (index?: number): void => engine.abort(id, index);
  const generation = new Generation({ promptTokens: prompt.length, parameters, abort, signal: options.signal });
  const { sampling, maxTokens, stopTokenIds, n, logprobs, priority } = parameters;
  const request: EngineRequest = { id, prompt, sampling, maxTokens, stopTokenIds, n, priority };
  generation.start(engine, { ...request, ...(logprobs !== undefined && { logprobs }) });
  return generation;
}

async function answerOf(generation: Generation): Promise<Pick<Completion, "tokens" | "finishReason">> {
  const tokens: number[] = [];
  for await (const chunk of generation.chunks()) {
    tokens.push(...chunk.tokens);
    if (chunk.finishReason) return { tokens, finishReason: chunk.finishReason };
  }
  throw new Error("ended without a reason");
}

/** Submits and reads to the end. */
async function ask(
  engine: Engine,
  prompt: number[],
  options: Parameters<typeof submit>[2],
): ReturnType<typeof answerOf> {
  return await answerOf(submit(engine, prompt, options));
}

/** Nothing is left, and nothing lost. */
async function assertIdle(engine: Engine): Promise<void> {
  await engine.idle();
  engine.scheduler.assertConsistent();
  const { running, waiting, usedBlocks } = engine.stats();
  assertEquals([running, waiting, usedBlocks], [0, 0, 0]);
}

Deno.test("requests made together are computed together, and each gets its own answer", async () => {
  const { runner, engine } = setUp();
  const answers = await Promise.all([
    ask(engine, [10, 11], { maxTokens: 3 }),
    ask(engine, [20], { maxTokens: 2 }),
    ask(engine, [97], { maxTokens: 9 }),
  ]);
  assertEquals(answers, [
    { tokens: [12, 13, 14], finishReason: "length" },
    { tokens: [21, 22], finishReason: "length" },
    { tokens: [98], finishReason: "stop" },
  ]);
  assertEquals(runner.steps, [[2, 1, 1], [1, 1, 1], [1]]);
  await assertIdle(engine);
});

Deno.test("a long prompt is computed in chunks, beside what runs", async () => {
  const { runner, engine } = setUp();
  const long = Array.from({ length: 30 }, (_, i) => i);
  await Promise.all([ask(engine, [1], { maxTokens: 3 }), ask(engine, long, { maxTokens: 1 })]);
  assertEquals(runner.steps, [[1, 15], [1, 15], [1]]);
});

Deno.test("a request waits for sequences and blocks, in its turn", async () => {
  const { engine } = setUp(16);
  const order: string[] = [];
  const named = (name: string, prompt: number[]): Promise<unknown> =>
    ask(engine, prompt, { maxTokens: 20 }).then(() => order.push(name));
  await Promise.all([
    named("first", Array(20).fill(1)),
    named("large", Array(40).fill(1)),
    named("small", [1]),
  ]);
  assertEquals(order, ["first", "large", "small"]);
  await assertIdle(engine);
});

Deno.test("generation ends with the context", async () => {
  const { engine } = setUp();
  const answer = await ask(engine, Array(60).fill(1), {});
  assertEquals([answer.tokens.length, answer.finishReason], [4, "length"]);
});

Deno.test("a signal ends a request within a step, running or waiting", async () => {
  const { runner, engine } = setUp(16);
  const controller = new AbortController(), { signal } = controller;
  runner.onStep = () => {
    if (runner.steps.length === 3) controller.abort();
  };
  const answers = [
    ask(engine, [1], { maxTokens: 50, signal }),
    ask(engine, Array(60).fill(5), { signal }), // does not fit beside the other
  ];
  assertEquals(await Promise.all(answers), [
    { tokens: [2, 3], finishReason: "abort" },
    { tokens: [], finishReason: "abort" },
  ]);
  assertEquals(runner.steps.length, 3);
  await assertIdle(engine);
});

Deno.test("a signal that is aborted already ends a request as right after it was asked for; the engine hears nothing", async () => {
  const { runner, engine } = setUp(), controller = new AbortController(), options = { n: 2, logprobs: 1 };
  const chunksOf = async (generation: Generation): Promise<Omit<Chunk, "timings">[]> => {
    const chunks = await Array.fromAsync(generation.chunks());
    await generation.retired;
    return chunks.map(({ timings: _, ...chunk }) => chunk);
  };
  const late = submit(engine, [1], { ...options, signal: controller.signal });
  controller.abort();
  const expected = await chunksOf(late);
  engine.addRequest = () => unreachable();
  assertEquals(await chunksOf(submit(engine, [1], { ...options, signal: controller.signal })), expected);
  assertEquals(expected.map(({ tokens, finishReason }) => [tokens, finishReason]), [[[], "abort"], [[], "abort"]]);
  assertEquals(runner.steps, []);
  await assertIdle(engine);
});

Deno.test("who stops reading frees the blocks", async () => {
  const { runner, engine } = setUp();
  const generation = submit(engine, [1], {});
  for await (const chunk of generation.chunks()) if (chunk.tokens[0] === 3) break;
  generation.abandon();
  await generation.retired;
  await assertIdle(engine);
  assertEquals(runner.steps.length < 5, true);
});

Deno.test("a failed step rejects everyone who waits, and the engine goes on", async () => {
  const { runner, engine } = setUp(16);
  runner.failure = new Error("the device is gone");
  const waiting = [ask(engine, [1], {}), ask(engine, [2], {}), engine.logits([1, 2], () => {})];
  await Promise.all(
    waiting.map((answer) => assertRejects(() => answer as Promise<unknown>, Error, "the device is gone")),
  );
  await assertIdle(engine);
  runner.failure = undefined;
  assertEquals((await ask(engine, [1], { maxTokens: 1 })).tokens, [2]);
});

Deno.test("logits come in pieces between the steps of others, and are not starved", async () => {
  const { engine } = setUp(16);
  const pieces: [number, number[]][] = [];
  const first = ask(engine, [1], { maxTokens: 30 });
  const logits = engine.logits(Array.from({ length: 50 }, (_, i) => i), (at, values) => pieces.push([at, [...values]]));
  const later = ask(engine, [7], { maxTokens: 30 });
  await Promise.all([first, logits, later]);
  assertEquals(pieces.length, 13);
  assertEquals(pieces.flatMap(([, values]) => values), Array.from({ length: 50 }, (_, i) => i));
  assertEquals(pieces.at(-1)![0], 48);
  await assertIdle(engine);
});

Deno.test("timers run between steps", async () => {
  const { runner, engine } = setUp();
  let fired = 0;
  runner.onStep = () => {
    if (runner.steps.length === 1) setTimeout(() => fired = runner.steps.length, 0);
    const until = performance.now() + 2;
    while (performance.now() < until);
  };
  await ask(engine, [1], { maxTokens: 40 });
  // Set during the first step and due at once: it may not wait for the last, however slow the machine is.
  assertEquals(fired > 0 && fired < 40, true, `fired after step ${fired}`);
});

Deno.test("a closed engine ends what runs and takes nothing more", async () => {
  const { engine } = setUp();
  const answer = ask(engine, [1], {});
  const rejected = assertRejects(() => answer, Error, "closed");
  await engine.close(new Error("closed"));
  await rejected;
  assertThrows(() => submit(engine, [1], {}), Error, "closed");
  assertThrows(() => submit(engine, [1], { signal: AbortSignal.abort() }), Error, "closed");
  await assertRejects(() => engine.logits([1], () => {}), Error, "closed");
  await assertIdle(engine);
});

Deno.test("steps are submitted ahead in runs, and what runs past an end is dropped", async () => {
  const { runner, engine } = setUp(32, 4);
  const answers = await Promise.all([
    ask(engine, [10], { maxTokens: 30 }),
    ask(engine, [90], { maxTokens: 30 }),
    ask(engine, [50, 51], { maxTokens: 7 }),
  ]);
  assertEquals(answers, [
    { tokens: Array.from({ length: 30 }, (_, i) => 11 + i), finishReason: "length" },
    { tokens: Array.from({ length: 8 }, (_, i) => 91 + i), finishReason: "stop" },
    { tokens: Array.from({ length: 7 }, (_, i) => 52 + i), finishReason: "length" },
  ]);
  assertEquals(Math.max(...runner.runs), 4);
  assertEquals(runner.runs.reduce((a, b) => a + b), runner.steps.length, "every step is read");
  await assertIdle(engine);
});

Deno.test("penalties and a full house keep no step from being submitted ahead", async () => {
  const { runner, engine } = setUp(32, 4);
  const answers = await Promise.all([
    ask(engine, [10], { maxTokens: 20, repetitionPenalty: 1.1 }),
    ask(engine, [20], { maxTokens: 20, frequencyPenalty: 1 }),
    ask(engine, [30], { maxTokens: 20 }),
    ask(engine, [40], { maxTokens: 20 }), // waits until one of the three is over
  ]);
  assertEquals(
    answers.map(({ tokens }) => tokens),
    [10, 20, 30, 40].map((first) => {
      return Array.from({ length: 20 }, (_, i) => first + i + 1);
    }),
  );
  assertEquals(runner.steps.slice(0, 19), Array(19).fill([1, 1, 1]));
  assertEquals(Math.max(...runner.runs), 4);
  await assertIdle(engine);
});

Deno.test("samples of one prompt are answers of one request", async () => {
  const { runner, engine } = setUp(32, 4);
  const generation = submit(engine, [10, 11, 12, 13, 14], { n: 3, maxTokens: 4 });
  const tokens: number[][] = [[], [], []];
  let last;
  for await (const chunk of generation.chunks()) {
    tokens[chunk.index]!.push(...chunk.tokens);
    last = chunk;
  }
  assertEquals(tokens, Array(3).fill([15, 16, 17, 18]));
  assertEquals(last!.usage, { promptTokens: 5, completionTokens: 12, cachedTokens: 0 });
  assertEquals(runner.steps[0], [5], "the prompt is computed once");
  await assertIdle(engine);
});

Deno.test("a request that can never fit is refused with the numbers, and others go on", async () => {
  const { engine } = setUp(4);
  const other = ask(engine, [1], { maxTokens: 3 });
  await assertRejects(() => ask(engine, [1, 2], { maxTokens: 20 }), RangeError, "needs 6 blocks of 4, the pool has 4");
  assertEquals((await other).tokens, [2, 3, 4]);
  await assertIdle(engine);
});
