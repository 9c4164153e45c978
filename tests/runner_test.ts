/** Programs of the runner: nothing compiles after warm-up, and what company does to a sequence in fast precision. */
import { assert, assertEquals } from "@std/assert";
import { seededRandom } from "../kernels/random.ts";
import { openCheckpoint } from "../model/checkpoint.ts";
import { type DecoderConfig, readConfig } from "../model/config.ts";
import { type DecoderWeights, loadDecoder } from "../model/decoder_weights.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { KvCache } from "../model/kv_cache.ts";
import type { Source } from "../model/source.ts";
import type { BlockCopy } from "../serving/block_manager.ts";
import type { EngineOutput } from "../serving/engine_types.ts";
import { loadEngine, makeEngine } from "../serving/load_engine.ts";
import type { LoadProgress } from "../serving/model.ts";
import type { EncodedStep } from "../serving/encoded_step.ts";
import { Runner } from "../serving/runner.ts";
import type { Scheduled, ScheduledStep } from "../serving/scheduled_step.ts";
import { Sequence } from "../serving/sequence.ts";
import { type Device, openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";

const TINY = `${import.meta.dirname}/fixtures/models/qwen3-tiny`;
const STORIES = `${import.meta.dirname}/../model/assets/stories`;

interface Parts {
  readonly device: Device;
  readonly config: DecoderConfig;
  readonly weights: DecoderWeights;
  readonly cache: KvCache;
}

/** @param cpu `false` where kernels are to have the forms that they have on GPUs. */
async function openParts(
  folder: string,
  positions: number,
  numBlocks: number,
  cpu?: false,
  memoryLimit?: number,
): Promise<Parts> {
  const source = fileSource(folder), opened = await openDevice(memoryLimit === undefined ? {} : { memoryLimit });
  const device = cpu === false ? asGpu(opened) : opened;
  const config = await readConfig(source);
  const weights = await loadDecoder(device, await openCheckpoint(source), config, { positions });
  const cache = new KvCache(device, config, { numBlocks, blockSize: 16, dtype: "f16" });
  return { device, config, weights, cache };
}

Deno.test("nothing compiles after warm-up", async () => {
  const parts = await openParts(TINY, 64, 16);
  const limits = { contextLength: 64, maxNumSeqs: 4, maxNumBatchedTokens: 8 };
  const { engine, runner } = makeEngine({ ...parts, ...limits }, { maxSteps: 3 });
  await runner.warmUp();
  const compiled = parts.device.pipelineCount, programs = (await engine.explain()).split("\n\n").length;
  const outputs: EngineOutput[] = [], failures: Error[] = [];
  const sink = {
    output: (each: EngineOutput) => void outputs.push(each),
    fail: (cause: Error) => void failures.push(cause),
  };
  for (let id = 0; id < 6; id++) {
    const prompt = Array.from({ length: 1 + 5 * id }, (_, i) => 3 * id + i),
      sampling = { temperature: id % 2, seed: id };
    engine.addRequest(
      { id, prompt, sampling, maxTokens: 7, stopTokenIds: new Set(), n: 1 + id % 2, priority: 0 },
      sink,
    );
  }
  await engine.idle();
  assertEquals(failures, []);
  assertEquals(outputs.filter(({ finishReason }) => finishReason === "length").length, 9);
  assertEquals([parts.device.pipelineCount, (await engine.explain()).split("\n\n").length], [compiled, programs]);
  runner.dispose();
  parts.device.close();
});

Deno.test("steps that score are short on a CPU device, where someone who stops would wait for them", async () => {
  for (const cpu of [undefined, false] as const) {
    const parts = await openParts(TINY, 64, 1, cpu), { device } = parts;
    const limits = { contextLength: 64, maxNumSeqs: 4, maxNumBatchedTokens: 512, maxSteps: 1 };
    const runner = new Runner({ ...parts, precision: "exact", ...limits });
    assertEquals(runner.maxLogitsTokens, device.caps.cpu ? 64 : 512);
    runner.dispose();
    device.close();
  }
});

/** Tokens of requests that need programs of their own, one after another, and the memory taken after the first and in all. */
async function answerAll(memoryLimit?: number): Promise<{ tokens: number[][]; first: number; all: number }> {
  const parts = await openParts(TINY, 64, 16, undefined, memoryLimit), { device } = parts;
  const limits = { contextLength: 64, maxNumSeqs: 4, maxNumBatchedTokens: 64 };
  const { engine, runner } = makeEngine({ ...parts, ...limits });
  const tokens: number[][] = [], allocated: number[] = [];
  for (
    const [id, temperature, logprobs] of [[0, 0, undefined], [1, 1, undefined], [2, 0, 3], [3, 0, undefined]] as const
  ) {
    const own: number[] = [], prompt = Array.from({ length: 9 * (id % 3) + 5 }, (_, i) => 2 * i + 1);
    const sampling = { temperature, seed: id },
      rest = { maxTokens: 6, stopTokenIds: new Set<number>(), n: 1, priority: 0 };
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    engine.addRequest({ id, prompt, sampling, ...rest, ...(logprobs !== undefined && { logprobs }) }, {
      output({ tokens, finishReason }) {
        own.push(...tokens);
        if (finishReason) resolve();
      },
      fail: reject,
    });
    await promise;
    tokens.push(own);
    allocated.push(device.allocated);
  }
  await engine.close(new Error("over"));
  runner.dispose();
  device.close();
  return { tokens, first: allocated[0]!, all: allocated.at(-1)! };
}

Deno.test("where memory is short, programs make room for one another", async () => {
  const plenty = await answerAll();
  assert(plenty.all > plenty.first);
  const short = await answerAll(Math.ceil((plenty.first + plenty.all) / 2));
  assertEquals(short.tokens, plenty.tokens);
});

Deno.test("loading with warm-up compiles what the checkpoint's own way of drawing needs", async () => {
  const files = fileSource(TINY), progress: LoadProgress[] = [];
  const source: Source = {
    ...{ name: files.name, list: () => files.list(), size: (path) => files.size(path) },
    read: (path, offset, length) => files.read(path, offset, length),
    readText: (path) =>
      path === "generation_config.json" ? Promise.resolve('{"repetition_penalty": 1.1}') : files.readText(path),
  };
  const limits = { contextLength: 64, maxNumSeqs: 2, maxNumBatchedTokens: 8 };
  const { engine } = await loadEngine(source, { ...limits, warmUp: true, onProgress: (each) => progress.push(each) });
  const programs = (await engine.explain()).split("\n\n").map((text) => text.split("\n")[0]!);
  assertEquals(progress.at(-1), { phase: "compile", received: programs.length, total: programs.length });
  assert(programs.length > 2 && programs.every((name) => name.includes("256 adjustments")), programs.join("\n"));
  await engine.close(new Error("closed"));
});

/** How steps are handed to the device. */
interface Handing {
  /** Steps that are encoded before the first of them is read. */
  readonly ahead: number;
  /** Whether those encoded so far are submitted, and not left to go along with later ones. */
  readonly submits?: () => boolean;
  /** Steps that are encoded while those before them are read. */
  readonly first?: number;
  /** Whether what is encoded first of a long step is submitted at once. */
  readonly begins?: () => boolean;
}

/**
 * What two penalised sequences and a plain one say. In some steps not all of them have their turn, and before some a block moves: it
 * is copied, and the copy stands in its place from then on.
 */
async function decode(parts: Parts, count: number, handing: Handing): Promise<number[][]> {
  const { ahead, first = 0, submits = () => false, begins = () => false } = handing;
  const limits = { contextLength: 64, maxNumSeqs: 4, maxNumBatchedTokens: 8, maxSteps: ahead };
  const runner = new Runner({ ...parts, precision: "exact", ...limits });
  const penalties = { repetitionPenalty: 1.3, presencePenalty: 0.4, frequencyPenalty: 0.2 };
  const bias = new Map([[5, 0.2], [7, -0.3]]);
  const sequences = [
    new Sequence([1, 2, 3, 2], penalties),
    new Sequence([4], { temperature: 0.7, seed: 1 }),
    new Sequence([9, 5], { ...penalties, temperature: 0.4, seed: 2, logitBias: bias }),
  ];
  sequences.forEach(({ blockTable }, i) => blockTable.push(...[0, 1, 2].map((block) => 3 * i + block)));
  const random = seededRandom(11), free = [9, 10, 11, 12, 13, 14, 15];
  let number = 0;
  const makeStep = (): ScheduledStep => {
    const turns = sequences.filter((_, i) => number === 0 || i === number % 3 || random.uniform() < 0.7);
    const scheduled = turns.map((sequence): Scheduled => {
      const { numComputedTokens: start, length } = sequence, numTokens = length - start;
      sequence.numComputedTokens = length;
      return { sequence, start, numTokens, draws: true };
    });
    const moved = random.uniform() < 0.4 ? turns.slice(0, 2) : [];
    const copies = moved.map(({ blockTable }) => {
      const at = random.integer(0, 2), from = blockTable[at]!, to = free.shift()!;
      blockTable[at] = to;
      free.push(from);
      return { from, to };
    });
    const numTokens = scheduled.reduce((sum, item) => sum + item.numTokens, 0);
    return { number: ++number, task: "generate", scheduled, numTokens, copies };
  };
  const encode = (into: EncodedStep[]): void => {
    const step = makeStep();
    into.push(runner.encode(step, "none", begins()));
    for (const { sequence } of step.scheduled) sequence.numInFlight++;
  };
  let next: EncodedStep[] = [];
  while (number < count || next.length > 0) {
    const steps = next, following: EncodedStep[] = next = [];
    while (steps.length < ahead && number < count) {
      encode(steps);
      if (submits()) runner.submit();
    }
    const encodeFirst = (): boolean => {
      while (following.length < first && number < count) encode(following);
      return following.length > 0;
    };
    for (const { drawn } of await runner.read(steps, encodeFirst)) {
      for (const { sequence, sampled } of drawn) sequence.append(sampled.token);
    }
  }
  runner.dispose();
  return sequences.map(({ tokens }) => tokens);
}

Deno.test("penalties count tokens that nobody has read yet, and steps may be submitted in groups of any size", async () => {
  for (const cpu of [undefined, false] as const) {
    const parts = await openParts(TINY, 64, 16, cpu), { device } = parts;
    const expected = await decode(parts, 48, { ahead: 1 });
    assert(expected.some((tokens) => new Set(tokens).size < tokens.length), "some tokens come again");
    const random = seededRandom(5), before = device.allocated - device.readback.bytes;
    const ways = [[2, 1, 0], [3, 0, 2], [8, 0.3, 1], [24, 0.3, 0], [24, 0, 24], [32, 0.3, 16]] as const;
    for (const [ahead, share, first] of ways) {
      const submits = (): boolean => random.uniform() < share;
      const tokens = await decode(parts, 48, { ahead, first, submits });
      assertEquals(tokens, expected, `${ahead} ahead, ${share} submitted, ${first} encoded before`);
      assertEquals(device.allocated - device.readback.bytes, before);
    }
    device.close();
  }
});

/** The same model with its layers over and over, so that a step has many dispatches. */
function deepened({ device, config, weights }: Parts, numLayers: number, numBlocks: number): Parts {
  const deep = { ...config, numLayers };
  const layers = Array.from({ length: numLayers }, (_, i) => weights.layers[i % config.numLayers]!);
  const cache = new KvCache(device, deep, { numBlocks, blockSize: 16, dtype: "f16" });
  return { device, config: deep, weights: { ...weights, layers }, cache };
}

/** Counts what a queue is given from now on. */
function countSubmissions({ gpu: { queue } }: Device): { count: number } {
  const submissions = { count: 0 }, submit = queue.submit.bind(queue);
  queue.submit = (commands) => {
    submissions.count++;
    submit(commands);
  };
  return submissions;
}

/** The logits of one scoring step. */
async function score(parts: Parts, tokens: readonly number[], begin: boolean): Promise<Float32Array | undefined> {
  const limits = { contextLength: 64, maxNumSeqs: 1, maxNumBatchedTokens: 8, maxSteps: 1 };
  const runner = new Runner({ ...parts, precision: "exact", ...limits });
  const sequence = new Sequence(tokens, {}, { task: "score" }), numTokens = tokens.length;
  sequence.blockTable.push(0);
  const scheduled = [{ sequence, start: 0, numTokens, draws: false }];
  const step = runner.encode({ number: 1, task: "score", scheduled, numTokens, copies: [] }, "none", begin);
  const [result] = await runner.read([step]);
  runner.dispose();
  return result?.logits;
}

Deno.test("a long step that begins before all of it is encoded computes the same", async () => {
  for (const cpu of [undefined, false] as const) {
    const parts = deepened(await openParts(TINY, 64, 1, cpu), 16, 16), { device } = parts;
    const submissions = countSubmissions(device), random = seededRandom(3);
    const expected = await decode(parts, 9, { ahead: 1 }), reads = submissions.count;
    for (const [ahead, share] of [[1, 1], [3, 0.5], [9, 0.3]] as const) {
      submissions.count = 0;
      const begins = (): boolean => random.uniform() < share;
      assertEquals(await decode(parts, 9, { ahead, begins }), expected, `${ahead} ahead, ${share} begun`);
      if (ahead === 1) assert(submissions.count > reads, `${submissions.count} submissions: none was divided`);
    }
    submissions.count = 0;
    const tokens = [3, 1, 4, 1, 5, 9, 2, 6], whole = await score(parts, tokens, false), undivided = submissions.count;
    submissions.count = 0;
    assertEquals(await score(parts, tokens, true), whole);
    assertEquals(submissions.count, undivided + 1);
    device.close();
  }
});

Deno.test("a read goes along with the steps before it, and a step that is encoded meanwhile comes after", async () => {
  const parts = await openParts(TINY, 64, 16), { device } = parts;
  const limits = { contextLength: 64, maxNumSeqs: 1, maxNumBatchedTokens: 8, maxSteps: 8 };
  const runner = new Runner({ ...parts, precision: "exact", ...limits }), sequence = new Sequence([1, 2]);
  sequence.blockTable.push(0);
  let number = 0;
  const encode = (copies: readonly BlockCopy[] = []): EncodedStep => {
    const { numComputedTokens: start, length } = sequence, numTokens = length - start;
    const scheduled = [{ sequence, start, numTokens, draws: true }];
    const encoded = runner.encode({ number: ++number, task: "generate", scheduled, numTokens, copies });
    sequence.numComputedTokens = length;
    sequence.numInFlight++;
    return encoded;
  };
  await runner.read([encode()]);
  const submissions = countSubmissions(device);
  const steps = [encode(), encode([{ from: 0, to: 1 }])], next: EncodedStep[] = [];
  runner.submit();
  steps.push(encode(), encode());
  assertEquals(submissions.count, 1);
  const results = await runner.read(steps, () => next.push(encode()) > 0);
  assertEquals(results.map(({ drawn }) => drawn.length), [1, 1, 1, 1]);
  assertEquals(submissions.count, 3, "with the read, and after it");
  runner.submit();
  assertEquals(submissions.count, 3);
  assertEquals((await runner.read(next)).length, 1);
  encode();
  runner.discard();
  runner.submit();
  assertEquals(submissions.count, 4, "the read alone");
  encode();
  encode();
  runner.dispose();
  runner.submit();
  await device.readStorage(device.storage("u32", [1], "after"));
  device.check();
  assertEquals(submissions.count, 5);
  device.close();
});

/** Mean over the rows of KL(p || q), where p and q are the softmax of logits. */
function meanDivergence(p: Float32Array, q: Float32Array, vocabulary: number): number {
  const rows = p.length / vocabulary;
  let sum = 0;
  for (let row = 0; row < rows; row++) {
    const [a, b] = [p, q].map((logits) => {
      const values = logits.subarray(row * vocabulary, (row + 1) * vocabulary);
      const largest = values.reduce((x, y) => Math.max(x, y));
      const total = Math.log(values.reduce((x, y) => x + Math.exp(y - largest), 0));
      return Float64Array.from(values, (value) => value - largest - total);
    }) as [Float64Array, Float64Array];
    for (let id = 0; id < vocabulary; id++) sum += Math.exp(a[id]!) * (a[id]! - b[id]!);
  }
  return sum / rows;
}

Deno.test("in fast precision a sequence in company has nearly the distributions that it has alone", async () => {
  const { config, ...parts } = await openParts(STORIES, 64, 20);
  const limits = { contextLength: 64, maxNumSeqs: 8, maxNumBatchedTokens: 64, maxSteps: 1 };
  const runner = new Runner({ ...parts, config, precision: "fast", ...limits });
  let steps = 0;
  const score = async (scheduled: readonly Scheduled[]): Promise<Float32Array> => {
    const numTokens = scheduled.reduce((sum, item) => sum + item.numTokens, 0);
    const encoded = runner.encode({ number: ++steps, task: "score", scheduled, numTokens, copies: [] });
    return (await runner.read([encoded]))[0]!.logits!;
  };
  const items = Array.from({ length: 5 }, (_, s): Scheduled => {
    const length = s === 0 ? 1 : 5 + 3 * s;
    const sequence = new Sequence(
      Array.from({ length }, (_, i) => (300 + 41 * s + 17 * i * (s + 1)) % config.vocabSize),
    );
    sequence.blockTable.push(...[0, 1, 2, 3].map((i) => 5 * i + s));
    return { sequence, start: 0, numTokens: length, draws: false };
  });
  const together = await score(items);
  const alone = new Float32Array(together.length);
  let at = 0;
  for (const item of items) {
    const logits = await score([item]);
    alone.set(logits, at);
    at += logits.length;
  }
  const divergence = meanDivergence(alone, together, config.vocabSize);
  assert(divergence <= 3e-3, `mean KL ${divergence}`);
  runner.dispose();
  parts.device.close();
});
