/** Programs of the runner: nothing compiles after warm-up, and what company does to a sequence in fast precision. */
import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../model/checkpoint.ts";
import { type DecoderConfig, readConfig } from "../model/config.ts";
import { type DecoderWeights, loadDecoder } from "../model/decoder_weights.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { KvCache } from "../model/kv_cache.ts";
import type { EngineOutput } from "../serving/engine_types.ts";
import { makeEngine } from "../serving/load_engine.ts";
import { Runner } from "../serving/runner.ts";
import type { Scheduled } from "../serving/scheduled_step.ts";
import { Sequence } from "../serving/sequence.ts";
import { type Device, openDevice } from "../tensor/device.ts";

const TINY = `${import.meta.dirname}/fixtures/models/qwen3-tiny`;
const STORIES = `${import.meta.dirname}/../model/assets/stories`;

interface Parts {
  readonly device: Device;
  readonly config: DecoderConfig;
  readonly weights: DecoderWeights;
  readonly cache: KvCache;
}

async function openParts(folder: string, positions: number, numBlocks: number): Promise<Parts> {
  const source = fileSource(folder), device = await openDevice();
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
    const submitted = runner.prepare({ number: ++steps, task: "score", scheduled, numTokens, copies: [] }).submit();
    return (await runner.read([submitted]))[0]!.logits!;
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
