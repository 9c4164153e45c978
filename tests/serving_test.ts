/**
 * Many requests at once on the story model: whatever joins, leaves, yields or shares, every answer is the one that the request gets
 * alone, token for token and, in exact precision, bit for bit. Steps are submitted ahead here, as on a GPU.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { kvBytesPerToken } from "../model/kv_cache.ts";
import type { Completion, GenerateOptions } from "../mod.ts";
import type { Engine } from "../serving/engine.ts";
import type { EngineLoadOptions } from "../serving/load_engine.ts";
import { load } from "../serving/load_model.ts";
import type { LoadedModel } from "../serving/loaded_model.ts";
import { openNamed } from "../serving/model_source.ts";
import { RequestError } from "../serving/request_error.ts";
import { OutOfMemoryError } from "../tensor/device_errors.ts";

type Story = LoadedModel<Engine>;

const BLOCK = 16;

/** The books are proved after each step. */
async function storyModel(options: EngineLoadOptions = {}): Promise<Story> {
  const defaults = { maxSteps: 4, contextLength: 256, precision: "exact" } as const;
  const model = await load(await openNamed(undefined, {}), { ...defaults, ...options });
  const { engine } = model, step = engine.step.bind(engine);
  engine.step = async () => {
    await step();
    engine.scheduler.assertConsistent();
  };
  return model;
}

/** Memory of so many blocks of keys and values. */
function blocks(count: number, { config }: Story): number {
  return count * BLOCK * kvBytesPerToken(config, "f16", true);
}

/** A prompt of some length that differs from others within its first block. */
function prompt(length: number, which: number): number[] {
  return Array.from({ length }, (_, i) => 300 + (37 * which + 11 * i * (which + 1)) % 4000);
}

const request = (tokens: number[], maxTokens: number, more: GenerateOptions = {}): GenerateOptions => ({
  ...{ tokens, maxTokens, temperature: 1, seed: tokens.length, ignoreEos: true, logprobs: true },
  ...more,
});

type Answer = Pick<Completion, "tokens" | "logprobs" | "finishReason">;

function answer({ tokens, logprobs, finishReason }: Completion): Answer {
  return { tokens, ...(logprobs && { logprobs }), finishReason };
}

async function alone(model: Story, requests: readonly GenerateOptions[]): Promise<Answer[]> {
  const answers: Answer[] = [];
  for (const each of requests) answers.push(answer(await model.complete(each)));
  return answers;
}

async function together(model: Story, requests: readonly GenerateOptions[]): Promise<Answer[]> {
  return (await Promise.all(requests.map((each) => model.complete(each)))).map(answer);
}

/** Calls `act` after each of an engine's steps, until it says that it is done. */
function afterSteps({ engine }: Story, act: () => boolean): void {
  const step = engine.step;
  engine.step = async () => {
    await step();
    if (act()) engine.step = step;
  };
}

/** Nothing runs, and no block is lost. */
async function assertIdle({ engine }: Story): Promise<void> {
  await engine.idle();
  engine.scheduler.assertConsistent();
  const { running, waiting, usedBlocks } = engine.stats();
  assertEquals([running, waiting, usedBlocks], [0, 0, 0]);
}

/** Small programs compile fast: steps of up to 64 tokens, longer prompts in chunks. */
const SMALL = { maxNumSeqs: 8, maxNumBatchedTokens: 64 };

/** Requests that come and go, on a model with plenty of memory. */
const JOINING: Readonly<Record<string, (model: Story, reference: Story) => Promise<void>>> = {
  "requests that join at any step answer as alone, some without log-probabilities and some with penalties": async (
    model,
    reference,
  ) => {
    const requests = [3, 20, 9, 33, 1].map((length, i) => {
      const more = i === 1
        ? { logprobs: false }
        : i === 2
        ? { repetitionPenalty: 1.2 }
        : i === 3
        ? { temperature: 0 }
        : {};
      return request(prompt(length, i), 6 + 3 * i, more);
    });
    const expected = await alone(reference, requests);
    let started = 0;
    const answers: Promise<Answer>[] = [];
    // Each joins when the one before it has said its second token.
    const join = async (): Promise<Answer> => {
      const each = requests[started++]!, tokens: number[] = [], logprobs: number[] = [];
      for await (const chunk of model.generate(each)) {
        tokens.push(...chunk.tokens);
        logprobs.push(...chunk.logprobs ?? []);
        if (tokens.length === 2 && started < requests.length) answers.push(join());
        if (!chunk.finishReason) continue;
        return { tokens, ...(each.logprobs !== false && { logprobs }), finishReason: chunk.finishReason };
      }
      throw new Error("ended without a reason");
    };
    answers.push(join());
    for (let i = 0; i < requests.length; i++) assertEquals(await answers[i], expected[i]);
    await assertIdle(model);
  },

  "a prompt longer than a step's budget is computed beside those that decode": async (model, reference) => {
    const requests = [request(prompt(4, 1), 20), request(prompt(200, 2), 5), request(prompt(7, 3), 12)];
    assertEquals(await together(model, requests), await alone(reference, requests));
    await assertIdle(model);
  },

  "aborting: waiting, in prefill, decoding, over; others go on": async (model, reference) => {
    const others = [request(prompt(5, 4), 16), request(prompt(60, 5), 8)];
    const expected = await alone(reference, others);
    const answers = together(model, others);
    const early = new AbortController(), late = new AbortController();
    early.abort();
    const waiting = model.complete(request(prompt(9, 6), 50, { signal: early.signal }));
    const decoding = (async (): Promise<number> => {
      let count = 0;
      for await (const chunk of model.generate(request(prompt(3, 7), 200, { signal: late.signal }))) {
        count += chunk.tokens.length;
        if (count >= 5) late.abort();
      }
      return count;
    })();
    const prefill = new AbortController(), before = model.stats().promptTokens;
    const computed = (): number => model.stats().promptTokens - before;
    const long = model.complete(request(prompt(220, 8), 10, { signal: prefill.signal }));
    // Only what is more than the prompts of the others (5, 60 and 3 tokens) is of the long one.
    afterSteps(model, () => {
      if (computed() > 68) prefill.abort();
      return prefill.signal.aborted;
    });
    const { tokens, finishReason } = await waiting;
    assertEquals([tokens, finishReason], [[], "abort"]);
    assertEquals((await long).finishReason, "abort");
    assert(computed() > 68 && computed() < 68 + 220, `${computed()} tokens of prompts are computed`);
    assert(await decoding < 30);
    for await (const _ of model.generate(request(prompt(3, 9), 50))) break;
    assertEquals(await answers, expected);
    late.abort();
    await assertIdle(model);
  },

  "samples of one prompt: the first as alone, the others as with seeds of their own": async (model, reference) => {
    const base = request(prompt(37, 10), 8, { seed: 40, temperature: 2 });
    const [first, second, third] = await alone(reference, [0, 1, 2].map((i) => ({ ...base, seed: 40 + i })));
    const before = model.stats().promptTokens;
    const { samples, usage } = await model.complete({ ...base, n: 3 });
    assertEquals(samples!.map((sample) => sample.tokens), [first!.tokens, second!.tokens, third!.tokens]);
    assertEquals(samples!.map((sample) => sample.logprobs), [first!.logprobs, second!.logprobs, third!.logprobs]);
    assertEquals(usage, { promptTokens: 37, completionTokens: 24, cachedTokens: 0 });
    assert(model.stats().promptTokens - before <= 37 + 2, "the prompt is computed once, but for its last token");
    await assertIdle(model);
  },

  "aborting samples while their prompt is computed": async (model) => {
    const controller = new AbortController(), { signal } = controller, before = model.stats().promptTokens;
    afterSteps(model, () => {
      assertEquals([model.stats().running, model.stats().waiting], [1, 2]);
      controller.abort();
      return true;
    });
    const { samples } = await model.complete(request(prompt(150, 12), 8, { n: 3, signal }));
    assertEquals(samples!.map(({ tokens, finishReason }) => [tokens, finishReason]), Array(3).fill([[], "abort"]));
    assert(model.stats().promptTokens - before < 150);
    await assertIdle(model);
  },

  "the likeliest tokens are in order, and the drawn one's figure is the same among them": async (model) => {
    const { tokens, logprobs, topLogprobs } = await model.complete(
      request(prompt(6, 11), 4, { temperature: 0, logprobs: 20 }),
    );
    topLogprobs!.forEach((top, i) => {
      assertEquals(top.length, 20);
      assertEquals(top[0], { token: tokens[i]!, logprob: logprobs![i]! });
      assertEquals(top.map(({ logprob }) => logprob), top.map(({ logprob }) => logprob).sort((a, b) => b - a));
    });
  },

  "many prompts, one call": async (model, reference) => {
    const answers = await model.generate(["Once upon a time", [301, 302], [{ role: "user", content: "Hi" }]], {
      temperature: 0,
      maxTokens: 4,
    });
    const [text] = await alone(reference, [{ prompt: "Once upon a time", temperature: 0, maxTokens: 4 }]);
    assertEquals(answers.map(({ usage }) => usage.completionTokens), [4, 4, 4]);
    assertEquals(answers[0]!.tokens, text!.tokens);
    await assertRejects(() => model.generate(["a", ""], { maxTokens: 200 }), Error, "prompt is empty");
    for (const wrong of [{ messages: [] }, { prompt: "A" }, 5, null]) {
      const prompts = ["a", wrong as unknown as string];
      await assertRejects(() => model.generate(prompts), RequestError, "prompt 1 of the list is ");
    }
    await assertIdle(model);
  },
};

Deno.test("joining and leaving", async (t) => {
  await using reference = await storyModel({ ...SMALL, maxSteps: 1, prefixCache: false });
  await using model = await storyModel(SMALL);

  for (const [name, run] of Object.entries(JOINING)) await t.step(name, () => run(model, reference));
});

/** Requests that ask for more than there is, each on a model of its own. */
const MEMORY: Readonly<Record<string, (reference: Story) => Promise<void>>> = {
  "the youngest yields, and loses nothing": async (reference) => {
    await using model = await storyModel({ ...SMALL, kvMemory: blocks(9, reference) });
    const requests = [20, 25, 12, 30].map((length, i) =>
      request(prompt(length, i + 20), 60 + 5 * i, { temperature: i % 2 })
    );
    assertEquals(await together(model, requests), await alone(reference, requests));
    assert(model.stats().preemptions > 0);
    await assertIdle(model);
  },

  "aborting one that has yielded, and waits to be computed anew": async (reference) => {
    await using model = await storyModel({ ...SMALL, kvMemory: blocks(9, reference) });
    const controller = new AbortController();
    const requests = [20, 25, 12].map((length, i) => request(prompt(length, i + 24), 60 + 5 * i));
    afterSteps(model, () => {
      const { preemptions, waiting } = model.stats();
      if (preemptions === 0) return false;
      assertEquals([preemptions, waiting], [1, 1]);
      controller.abort();
      return true;
    });
    // The last to come is the first to yield.
    const answers = together(model, requests.slice(0, 2));
    const youngest = await model.complete({ ...requests[2]!, signal: controller.signal });
    const expected = await alone(reference, requests);
    assertEquals([youngest.finishReason, youngest.tokens.length > 0], ["abort", true]);
    assertEquals(youngest.tokens, expected[2]!.tokens.slice(0, youngest.tokens.length));
    assertEquals(await answers, expected.slice(0, 2));
    await assertIdle(model);
  },

  "a request that outgrows the pool is refused with the numbers, at once": async (reference) => {
    await using model = await storyModel({ ...SMALL, kvMemory: blocks(4, reference) });
    const running = model.complete(request(prompt(5, 30), 10));
    await assertRejects(
      () => model.complete(request(prompt(30, 31), 100)),
      RangeError,
      "request of up to 130 tokens: it needs 9 blocks of 16, the pool has 4",
    );
    assertEquals([answer(await running)], await alone(reference, [request(prompt(5, 30), 10)]));
  },

  "a shared prefix is computed once, also after others have driven it out in part": async (reference) => {
    await using model = await storyModel({ ...SMALL, kvMemory: blocks(12, reference) });
    const shared = prompt(80, 40);
    const requests = [0, 1, 2].map((i) => request([...shared, 500 + i, 600 + i], 3));
    const expected = await alone(reference, requests);
    assertEquals([await model.complete(requests[0]!)].map(answer), [expected[0]]);
    const second = await model.complete(requests[1]!);
    assertEquals([answer(second), second.usage.cachedTokens], [expected[1], 80]);
    assertEquals(model.stats().prefixHits, 80);
    // Takes ten of twelve blocks: the end of the prefix goes before its beginning.
    await model.complete(request(prompt(150, 41), 2));
    const third = await model.complete(requests[2]!);
    assertEquals(answer(third), expected[2]);
    assertEquals(third.usage.cachedTokens, 32, "its first two blocks are still there");
    const salted = await model.complete({ ...requests[2]!, cacheSalt: "mine" });
    assertEquals([answer(salted), salted.usage.cachedTokens], [expected[2], 0]);
    await assertIdle(model);
  },

  "who has the smaller number goes first under the policy of priorities": async () => {
    await using model = await storyModel({ ...SMALL, maxNumSeqs: 1, policy: "priority" });
    const order: number[] = [];
    await Promise.all([5, 9, 1, 3].map(async (priority) => {
      await model.complete(request(prompt(4, priority), 2, { priority }));
      order.push(priority);
    }));
    assertEquals(order, [1, 3, 5, 9]);
  },
};

Deno.test("closing while a text is scored waits for the end of a step alone", async () => {
  const model = await storyModel({ ...SMALL, maxSteps: 1 }), pieces: number[] = [];
  await assertRejects(
    () =>
      model.engine.logits(prompt(256, 70), (_, piece) => {
        pieces.push(piece.length / model.config.vocabSize);
        void model.dispose();
      }),
    Error,
    "it was disposed",
  );
  assertEquals(pieces, [64]);
});

Deno.test("memory that runs out", async (t) => {
  await using reference = await storyModel({ ...SMALL, maxSteps: 1, prefixCache: false });

  for (const [name, run] of Object.entries(MEMORY)) await t.step(name, () => run(reference));
});

Deno.test("at the lowest limit that is accepted all kinds of requests are answered, and texts are scored", async () => {
  for (const [maxNumSeqs, maxNumBatchedTokens, contextLength] of [[8, 8, 64], [4, 64, 32]] as const) {
    const sizes = { maxNumSeqs, maxNumBatchedTokens, contextLength };
    const { message } = await assertRejects(() => storyModel({ ...sizes, memoryLimit: 1e6 }), OutOfMemoryError);
    const memoryLimit = Number(/Raise memoryLimit to (\d+)/.exec(message)![1]);
    await using model = await storyModel({ ...sizes, memoryLimit, maxSteps: 1 });
    const penalties = { frequencyPenalty: 0.5, repetitionPenalty: 1.1 };
    for (const more of [{ temperature: 0, logprobs: false }, penalties, { ...penalties, logprobs: 3 }]) {
      const answers = await together(
        model,
        Array.from({ length: maxNumSeqs }, (_, i) => request(prompt(3 + 2 * i, i), 6, more)),
      );
      assertEquals(answers.map(({ tokens }) => tokens.length), answers.map(() => 6));
      assertEquals((await model.nll(prompt(contextLength, 9))).count, contextLength - 1);
    }
  }
});

Deno.test("alone or among 50: the same tokens, the same log-probabilities to the last bit", async () => {
  await using model = await storyModel({ maxNumSeqs: 50, maxNumBatchedTokens: 256, kvDtype: "f32" });
  const watched = [request(prompt(17, 50), 10), request(prompt(40, 51), 10, { temperature: 0, logprobs: 5 })];
  const expected = await alone(model, watched);
  const company = Array.from({ length: 48 }, (_, i) => {
    return request(prompt(1 + (7 * i) % 23, 60 + i), 3 + i % 9, {
      temperature: i % 3,
      logprobs: i % 5 === 0,
      topK: i % 4 * 10,
    });
  });
  const answers = await together(model, [...company.slice(0, 20), watched[0]!, ...company.slice(20), watched[1]!]);
  assertEquals([answers[20], answers[49]], expected);
  await assertIdle(model);
});
