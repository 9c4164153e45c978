/** The library from end to end, on whatever device answers: the story model, and a tiny one where every logit is compared. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { openCheckpoint } from "../model/checkpoint.ts";
import { readConfig } from "../model/config.ts";
import { loadDecoder } from "../model/decoder_weights.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { kvBytesPerToken, KvCache } from "../model/kv_cache.ts";
import { loadModel, type Model, OutOfMemoryError, RequestError } from "../mod.ts";
import { load } from "../serving/load_model.ts";
import type { Engine } from "../serving/engine.ts";
import type { LoadedModel } from "../serving/loaded_model.ts";
import { openNamed } from "../serving/model_source.ts";
import { Runner } from "../serving/runner.ts";
import type { Scheduled } from "../serving/scheduled_step.ts";
import { Sequence } from "../serving/sequence.ts";
import { openDevice } from "../tensor/device.ts";

const TINY = `${import.meta.dirname}/fixtures/models/qwen3-tiny`;
const HELLO = [{ role: "user", content: "Hello!" }];

interface StoryCase {
  readonly messages: { role: string; content: string }[];
  readonly ids: number[];
  readonly greedy: number[];
}

type Story = LoadedModel<Engine>;

/** The story model with a cache in f32, and its engine in sight. */
async function storyModel(): Promise<Story> {
  return await load(await openNamed(undefined, {}), { kvDtype: "f32" });
}

function largest(row: Float32Array): number {
  return row.reduce((best, logit, id) => logit > row[best]! ? id : best, 0);
}

/** Greedy decoding that computes the whole sequence anew for every token. */
async function withoutCache(model: Model, prompt: readonly number[], count: number): Promise<number[]> {
  const ids = [...prompt];
  while (ids.length < prompt.length + count) {
    const { data, shape: [rows, vocabulary] } = await model.logits(ids);
    ids.push(largest(data.subarray((rows - 1) * vocabulary)));
  }
  return ids.slice(prompt.length);
}

/** Nothing runs, and no block is lost. */
async function assertIdle(model: Story): Promise<void> {
  await model.engine.idle();
  model.engine.scheduler.assertConsistent();
  const { running, waiting, usedBlocks } = model.stats();
  assertEquals([running, waiting, usedBlocks], [0, 0, 0]);
}

/** What the story model does. */
const STORY: Readonly<Record<string, (model: Story) => Promise<void>>> = {
  "says greedily what the reference says, all cases at once": async (model) => {
    const text = await Deno.readTextFile(`${import.meta.dirname}/fixtures/stories/expected.json`);
    const { cases } = JSON.parse(text) as { cases: StoryCase[] };
    const answers = await Promise.all(
      cases.map(({ messages, greedy }) => model.complete({ messages, temperature: 0, maxTokens: greedy.length })),
    );
    cases.forEach(({ ids, greedy }, i) => {
      const { tokens, finishReason, usage, text } = answers[i]!;
      const ended = model.config.eosTokenIds.includes(greedy.at(-1)!);
      const expected = ended ? greedy.slice(0, -1) : greedy;
      assertEquals(tokens, expected);
      assertEquals(text, model.tokenizer!.decode(expected));
      assertEquals(finishReason, ended ? "stop" : "length");
      assertEquals(usage, { promptTokens: ids.length, completionTokens: expected.length, cachedTokens: 0 });
    });
    await assertIdle(model);
  },

  "with the cache as without": async (model) => {
    const prompt = model.tokenizer!.encode("The cat sat");
    const { tokens } = await model.complete({ tokens: prompt, temperature: 0, maxTokens: 5 });
    assertEquals(tokens, await withoutCache(model, prompt, 5));
    await assertIdle(model);
  },

  "same seed, same text, in any company; another seed, another text": async (model) => {
    const prompt = "Once upon a time", sampling = { prompt, temperature: 1, maxTokens: 12, repetitionPenalty: 1.1 };
    const alone = await model.complete({ ...sampling, seed: 7 });
    const [same, other] = await Promise.all([7, 8].map((seed) => model.complete({ ...sampling, seed })));
    assertEquals(same!.tokens, alone.tokens);
    assert(other!.text !== alone.text);
    await assertIdle(model);
  },

  "log-probabilities are those of the logits": async (model) => {
    const prompt = model.tokenizer!.encode("Once upon a");
    const { tokens, logprobs } = await model.complete({ tokens: prompt, temperature: 0, maxTokens: 3, logprobs: true });
    const { mean, count } = await model.nll([...prompt, ...tokens]);
    const before = await model.nll(prompt);
    const sum = logprobs!.reduce((a, b) => a + b, 0);
    assert(Math.abs(sum + mean * count - before.mean * before.count) < 1e-3, `${sum}, ${mean * count}`);
  },

  "a stop string over several tokens is no part of the text": async (model) => {
    const answer = await model.complete({ messages: HELLO, temperature: 0, stop: ["story sh", "never"] });
    assertEquals([answer.text, answer.finishReason], ["Hello! Tell me who the ", "stop"]);
    const pieces: string[] = [];
    for await (const chunk of model.generate({ messages: HELLO, temperature: 0, stop: "who the" })) {
      pieces.push(chunk.text);
    }
    assertEquals(pieces.join(""), "Hello! Tell me ");
    await assertIdle(model);
  },

  "stop ids and bias": async (model) => {
    const [exclamation] = model.tokenizer!.encode("!");
    const stopped = await model.complete({ messages: HELLO, temperature: 0, stopTokenIds: [exclamation!] });
    assertEquals([stopped.text, stopped.finishReason], ["Hello", "stop"]);
    const biased = await model.complete({ messages: HELLO, temperature: 0, maxTokens: 2, logitBias: { 100: 1000 } });
    assertEquals(biased.tokens, [100, 100]);
  },

  "breaking out of the loop frees the blocks": async (model) => {
    for await (const chunk of model.generate({ messages: HELLO, temperature: 0 })) if (chunk.text) break;
    await assertIdle(model);
  },

  "aborting ends within a step, with what was written": async (model) => {
    const controller = new AbortController(), chunks = [];
    for await (const chunk of model.generate({ prompt: "Once", temperature: 0, signal: controller.signal })) {
      chunks.push(chunk);
      if (chunks.length === 3) controller.abort();
    }
    assertEquals(chunks.at(-1)?.finishReason, "abort");
    assert(chunks.length <= 5, `${chunks.length} chunks`);
    assertEquals((await model.complete({ prompt: "Once", signal: AbortSignal.abort() })).finishReason, "abort");
    await assertIdle(model);
  },

  "what cannot be is refused with both numbers": async (model) => {
    const long = Array<number>(1024).fill(5);
    await assertRejects(
      () => model.complete({ tokens: long }),
      Error,
      "the prompt has 1024 tokens, and a context of 1024 has room for 1023 and an answer. Shorten it: the model cannot take more",
    );
    await assertRejects(
      () => model.logits([...long, 5]),
      Error,
      "1025 tokens do not fit a context of 1024. Shorten them: the model cannot take more",
    );
    for (const signal of [{}, { signal: AbortSignal.abort() }]) {
      await assertRejects(() => model.complete({ prompt: "", ...signal }), Error, "prompt is empty");
      await assertRejects(() => model.complete({ prompt: "a", topP: 2, ...signal }), RangeError, "topP is 2");
    }
    const signal = "no" as unknown as AbortSignal;
    await assertRejects(
      () => model.complete({ prompt: "a", signal }),
      RequestError,
      "signal is no, give an AbortSignal",
    );
    const messages = [{ role: "asistant", content: "Hi" }];
    await assertRejects(
      () => model.complete({ messages }),
      RequestError,
      'message 0 is "asistant", did you mean assistant?',
    );
  },
};

Deno.test("the story model", async (t) => {
  await using model = await storyModel();
  for (const [name, run] of Object.entries(STORY)) await t.step(name, () => run(model));
});

Deno.test("generation ends with the context, and each of many gets its own answer", async () => {
  await using model = await loadModel(TINY, { contextLength: 20 });
  const prompts = Array.from({ length: 10 }, (_, i) => Array.from({ length: 3 + i }, (_, j) => 7 * i + j + 1));
  const complete = (tokens: number[]): Promise<{ tokens: number[]; finishReason: string }> =>
    model.complete({ tokens, temperature: 0, ignoreEos: true });
  const together = await Promise.all(prompts.map(complete));
  for (const [i, prompt] of prompts.entries()) {
    const alone = await complete(prompt);
    assertEquals(together[i]!.tokens, alone.tokens);
    assertEquals([alone.tokens.length, alone.finishReason], [20 - prompt.length, "length"]);
  }
  const kvMemory = 2 * 16 * kvBytesPerToken(model.config, "f32", true);
  await using short = await loadModel(TINY, { kvDtype: "f32", kvMemory });
  assertEquals(short.contextLength, 32);
  await assertRejects(
    () => short.complete({ tokens: Array<number>(32).fill(1) }),
    RequestError,
    "Shorten it, or load the model with more memory: kvMemory is ",
  );
  const longer = "Shorten it, or load the model with a contextLength of up to 512";
  await assertRejects(() => complete(Array<number>(20).fill(1)), Error, longer);
  assert((await model.explain()).includes("paged_attention"));
});

Deno.test("five sequences, some in prefill and some in decode, have the logits they have alone", async () => {
  const source = fileSource(TINY), device = await openDevice();
  const config = await readConfig(source), checkpoint = await openCheckpoint(source);
  const weights = await loadDecoder(device, checkpoint, config, { positions: 64 });
  const cache = new KvCache(device, config, { numBlocks: 40, blockSize: 4, dtype: "f32" });
  const limits = { contextLength: 64, maxNumSeqs: 8, maxNumBatchedTokens: 64, maxSteps: 1 };
  const runner = new Runner({ device, weights, config, cache, precision: "exact", ...limits });
  let steps = 0;
  const compute = async (scheduled: readonly Scheduled[]): Promise<Float32Array> => {
    const numTokens = scheduled.reduce((sum, item) => sum + item.numTokens, 0);
    const encoded = runner.encode({ number: ++steps, task: "score", scheduled, numTokens, copies: [] });
    const [result] = await runner.read([encoded]);
    return result!.logits!;
  };
  // Tokens computed before the common step, and in it.
  const shares = [[0, 9], [11, 1], [5, 6], [30, 1], [0, 1]] as const;
  const made = shares.map(([before, now], s) => {
    const sequence = new Sequence(Array.from({ length: before + now }, (_, i) => (37 * s + 11 * i) % config.vocabSize));
    sequence.blockTable.push(...Array.from({ length: 8 }, (_, i) => 5 * i + s));
    return { sequence, start: before, numTokens: now, draws: false };
  });
  for (const item of made) if (item.start > 0) await compute([{ ...item, start: 0, numTokens: item.start }]);
  const together = await compute(made);
  let row = 0;
  for (const { sequence, start, numTokens } of made) {
    const alone = await compute([{ sequence, start: 0, numTokens: start + numTokens, draws: false }]);
    const expected = alone.subarray(start * config.vocabSize);
    const actual = together.subarray(row * config.vocabSize, (row + numTokens) * config.vocabSize);
    assertEquals(actual.length, expected.length);
    const off = actual.reduce((worst, logit, i) => Math.max(worst, Math.abs(logit - expected[i]!)), 0);
    assertEquals(off, 0, `${start} + ${numTokens} tokens: off by ${off}`);
    row += numTokens;
  }
  runner.dispose();
  cache.release();
  weights.release();
  assertEquals(device.allocated, device.readback.bytes);
  device.close();
});

/** A device of the test's own that knows which of its buffers are alive. */
async function watchedDevice(): Promise<{ gpu: GPUDevice; alive: Set<GPUBuffer> }> {
  const adapter = await navigator.gpu.requestAdapter();
  const { maxStorageBuffersPerShaderStage } = adapter!.limits;
  const gpu = await adapter!.requestDevice({ requiredLimits: { maxStorageBuffersPerShaderStage } });
  const alive = new Set<GPUBuffer>(), createBuffer = gpu.createBuffer.bind(gpu);
  gpu.createBuffer = (descriptor): GPUBuffer => {
    const buffer = createBuffer(descriptor), destroy = buffer.destroy.bind(buffer);
    alive.add(buffer);
    buffer.destroy = (): undefined => {
      alive.delete(buffer);
      return destroy();
    };
    return buffer;
  };
  return { gpu, alive };
}

Deno.test("a model on the caller's device leaves it as it was", async () => {
  const { gpu, alive } = await watchedDevice();
  const model = await loadModel(TINY, { device: gpu });
  const running = model.complete({ tokens: [1, 2, 3], temperature: 0, maxTokens: 30, ignoreEos: true });
  const rejected = assertRejects(() => running, Error, "it was disposed");
  await new Promise((resolve) => setTimeout(resolve, 20));
  await model.dispose();
  await rejected;
  assertEquals([...alive].map((buffer) => buffer.label), []);
  for (const signal of [{}, { signal: AbortSignal.abort() }]) {
    await assertRejects(() => model.complete({ tokens: [1], ...signal }), Error, "it was disposed");
  }
  gpu.destroy();
});

Deno.test("running out of memory says the numbers, and leaves nothing behind", async () => {
  const { gpu, alive } = await watchedDevice();
  const limited = loadModel(undefined, { device: gpu, memoryLimit: 17e6 });
  await assertRejects(() => limited, OutOfMemoryError, "is 17000000 bytes, and");
  assertEquals(alive.size, 0);
  const create = gpu.createBuffer.bind(gpu);
  let left = Infinity;
  gpu.createBuffer = (descriptor) => {
    if (--left < 0) throw new Error("there is no more");
    return create(descriptor);
  };
  const model = await loadModel(TINY, { device: gpu });
  const needed = alive.size;
  await model.dispose();
  assert(needed > 4); // the first few prove the device itself
  for (const buffers of [needed - 2, needed - 1]) {
    left = buffers;
    await assertRejects(() => loadModel(TINY, { device: gpu }), OutOfMemoryError, "the driver refused");
    assertEquals(alive.size, 0, `after ${buffers} buffers`);
  }
  gpu.destroy();
});

Deno.test("losing the device rejects everyone who waits", async () => {
  const { gpu } = await watchedDevice();
  const model = await loadModel(TINY, { device: gpu });
  const ask = (): Promise<unknown> => model.complete({ tokens: [1, 2, 3], temperature: 0, ignoreEos: true });
  const first = ask(), second = ask();
  const rejections = [first, second].map((answer) => assertRejects(() => answer, Error, "device was lost"));
  await new Promise((resolve) => setTimeout(resolve, 100));
  gpu.destroy();
  await Promise.all(rejections);
  await assertRejects(ask, Error, "device was lost");
  await model.dispose();
});

Deno.test("a device with too few bindings is refused", async () => {
  const gpu = await (await navigator.gpu.requestAdapter())!.requestDevice();
  await assertRejects(
    () => loadModel(TINY, { device: gpu }),
    Error,
    "allows 8 storage buffers a shader, and 9 are needed",
  );
  gpu.destroy();
});

Deno.test("loading is refused early where it cannot be", async () => {
  await assertRejects(() => loadModel("/no/such folder"), Error, "there is no such folder");
  await assertRejects(() => loadModel(TINY, { precision: "half" as "fast" }), Error, 'give "exact" or "fast"');
  await assertRejects(() => loadModel(TINY, { contextLength: 1e6 }), RangeError, "contextLength is 1000000");
  await assertRejects(() => loadModel(TINY, { signal: AbortSignal.abort(new Error("stop")) }), Error, "stop");
});
