import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Engine } from "./engine.ts";
import { Generation, type GenerationRequest } from "./generation.ts";
import type { Completion, SamplingOptions } from "./request.ts";
import { resolveParameters } from "./parameters.ts";
import type { Sampled, Step } from "./runner.ts";

const CONTEXT = 64;

/** A runner without a GPU: the next token is the last one plus 1, so every answer is known. */
class CountingRunner {
  readonly maxTokens = 16;
  readonly maxLogitsTokens = 4;
  readonly steps: number[][] = [];
  failure: Error | undefined;
  onStep: () => void = () => {};

  async run({ scheduled }: Step): Promise<(Sampled | undefined)[]> {
    await Promise.resolve();
    if (this.failure) throw this.failure;
    this.steps.push(scheduled.map(({ numTokens }) => numTokens));
    this.onStep();
    return scheduled.map(({ sequence, numTokens }) => {
      sequence.numComputedTokens += numTokens;
      return sequence.numPendingTokens === 0 ? { token: sequence.tokens.at(-1)! + 1 } : undefined;
    });
  }

  logits(scheduled: Step["scheduled"]): Promise<Float32Array<ArrayBuffer>> {
    const { sequence, numTokens } = scheduled[0]!, first = sequence.numComputedTokens;
    sequence.numComputedTokens += numTokens;
    return Promise.resolve(Float32Array.from(sequence.tokens.slice(first, first + numTokens)));
  }
}

function setUp(numBlocks = 32): { runner: CountingRunner; engine: Engine } {
  const runner = new CountingRunner();
  return { runner, engine: new Engine({ runner, numBlocks, blockSize: 4, maxSequences: 3 }) };
}

function request(prompt: number[], options: SamplingOptions & Pick<GenerationRequest, "signal">): Generation {
  const defaults = { generation: { eosTokenIds: [] }, eosTokenIds: [99], vocabSize: 1000 };
  const parameters = resolveParameters(options, defaults);
  return new Generation({ prompt, parameters, contextLength: CONTEXT, signal: options.signal });
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
function ask(engine: Engine, prompt: number[], options: Parameters<typeof request>[1]): ReturnType<typeof answerOf> {
  const generation = request(prompt, options);
  engine.submit(generation);
  return answerOf(generation);
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
  engine.blocks.assertConsistent([]);
});

Deno.test("a long prompt is computed in chunks, beside what runs", async () => {
  const { runner, engine } = setUp();
  const long = Array.from({ length: 30 }, (_, i) => i);
  await Promise.all([ask(engine, [1], { maxTokens: 3 }), ask(engine, long, { maxTokens: 1 })]);
  assertEquals(runner.steps, [[1, 15], [1, 15], [1]]);
});

Deno.test("a request waits for sequences and blocks, in its turn", async () => {
  const { runner, engine } = setUp(16);
  const order: string[] = [];
  const named = (name: string, prompt: number[]): Promise<unknown> =>
    ask(engine, prompt, { maxTokens: 20 }).then(() => order.push(name));
  await Promise.all([
    named("first", Array(20).fill(1)),
    named("large", Array(40).fill(1)),
    named("small", [1]),
  ]);
  assertEquals(order, ["first", "large", "small"]);
  assertEquals(Math.max(...runner.steps.map((step) => step.length)), 1, "60 and 40 tokens do not share 64");
  engine.blocks.assertConsistent([]);
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
    ask(engine, [5], { maxTokens: 50, signal }),
  ];
  assertEquals(await Promise.all(answers), [
    { tokens: [2, 3], finishReason: "abort" },
    { tokens: [], finishReason: "abort" },
  ]);
  assertEquals(runner.steps.length, 3);
  engine.blocks.assertConsistent([]);
});

Deno.test("who stops reading frees the blocks", async () => {
  const { runner, engine } = setUp();
  const generation = request([1], {});
  engine.submit(generation);
  for await (const chunk of generation.chunks()) if (chunk.tokens[0] === 3) break;
  generation.abandon();
  await generation.retired;
  engine.blocks.assertConsistent([]);
  const { length } = runner.steps;
  assertEquals([length < 5, engine.numRequests], [true, 0]);
});

Deno.test("a failed step rejects everyone who waits, and the engine goes on", async () => {
  const { runner, engine } = setUp(16);
  runner.failure = new Error("the device is gone");
  const waiting = [ask(engine, [1], {}), ask(engine, [2], {}), engine.logits([1, 2], () => {})];
  await Promise.all(
    waiting.map((answer) => assertRejects(() => answer as Promise<unknown>, Error, "the device is gone")),
  );
  engine.blocks.assertConsistent([]);
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
  engine.blocks.assertConsistent([]);
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
  assertThrows(() => engine.submit(request([1], {})), Error, "closed");
  await assertRejects(() => engine.logits([1], () => {}), Error, "closed");
  engine.blocks.assertConsistent([]);
});
