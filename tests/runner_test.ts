/** Programs of the runner: nothing compiles after warm-up, and what company does to a sequence in fast precision. */
import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../model/checkpoint.ts";
import { type DecoderConfig, readConfig } from "../model/config.ts";
import { type DecoderWeights, loadDecoder } from "../model/decoder_weights.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { KvCache } from "../model/kv_cache.ts";
import type { Source } from "../model/source.ts";
import type { EngineOutput } from "../serving/engine_types.ts";
import { loadEngine, makeEngine } from "../serving/load_engine.ts";
import type { LoadProgress } from "../serving/model.ts";
import { type EncodedStep, Runner } from "../serving/runner.ts";
import type { Scheduled } from "../serving/scheduled_step.ts";
import { Sequence } from "../serving/sequence.ts";
import { Device, openDevice } from "../tensor/device.ts";

const TINY = `${import.meta.dirname}/fixtures/models/qwen3-tiny`;
const STORIES = `${import.meta.dirname}/../model/assets/stories`;

interface Parts {
  readonly device: Device;
  readonly config: DecoderConfig;
  readonly weights: DecoderWeights;
  readonly cache: KvCache;
}

/** @param cpu `false` where kernels are to have the forms that they have on GPUs. */
async function openParts(folder: string, positions: number, numBlocks: number, cpu?: false): Promise<Parts> {
  const source = fileSource(folder), opened = await openDevice(), { gpu, info, caps } = opened;
  const device = cpu === false ? new Device(gpu, info, { ...caps, cpu }, Infinity, true) : opened;
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

/** What a penalised sequence and a plain one say, where so many steps are submitted before the first of them is read. */
async function decode(parts: Parts, count: number, ahead: number): Promise<number[][]> {
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
  let number = 0;
  while (number < count) {
    const steps: EncodedStep[] = [];
    while (steps.length < ahead) {
      const scheduled = sequences.map((sequence): Scheduled => {
        const { numComputedTokens: start, length } = sequence, numTokens = length - start;
        sequence.numComputedTokens = length;
        return { sequence, start, numTokens, draws: true };
      });
      const numTokens = scheduled.reduce((sum, item) => sum + item.numTokens, 0);
      const step = { number: ++number, task: "generate", scheduled, numTokens, copies: [] } as const;
      steps.push(runner.encode(step));
      for (const sequence of sequences) sequence.numInFlight++;
    }
    for (const { drawn } of await runner.read(steps)) {
      for (const { sequence, sampled } of drawn) sequence.append(sampled.token);
    }
  }
  runner.dispose();
  return sequences.map(({ tokens }) => tokens);
}

Deno.test("penalties count tokens that nobody has read yet", async () => {
  for (const cpu of [undefined, false] as const) {
    const parts = await openParts(TINY, 64, 16, cpu);
    const expected = await decode(parts, 24, 1);
    assert(expected.some((tokens) => new Set(tokens).size < tokens.length), "some tokens come again");
    for (const ahead of [2, 3, 8, 24]) assertEquals(await decode(parts, 24, ahead), expected);
    parts.device.close();
  }
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
