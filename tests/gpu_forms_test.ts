/**
 * The engine with the forms that kernels have on GPUs, on whatever device there is: split and flash attention, tiles, fused
 * rotation, steps submitted ahead. In exact precision requests answer among others as alone, bit for bit; in fast precision nearly.
 */
import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../model/checkpoint.ts";
import { type DecoderConfig, readConfig } from "../model/config.ts";
import { loadDecoder } from "../model/decoder_weights.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { KvCache } from "../model/kv_cache.ts";
import type { Engine } from "../serving/engine.ts";
import type { EngineRequest } from "../serving/engine_types.ts";
import { makeEngine } from "../serving/load_engine.ts";
import type { TokenLogprob } from "../serving/request.ts";
import type { SequenceSampling } from "../serving/sequence.ts";
import { openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";

const TINY = `${import.meta.dirname}/fixtures/models/qwen3-tiny`;
const STORIES = `${import.meta.dirname}/../model/assets/stories`;

interface Opened {
  readonly engine: Engine;
  readonly config: DecoderConfig;
  close(): Promise<void>;
}

async function open(
  folder: string,
  precision: "exact" | "fast",
  maxNumSeqs = 16,
  contextLength = 128,
): Promise<Opened> {
  const source = fileSource(folder), device = asGpu(await openDevice());
  const config = await readConfig(source);
  const weights = await loadDecoder(device, await openCheckpoint(source), config, { positions: contextLength });
  const cache = new KvCache(device, config, { numBlocks: 200, blockSize: 16, dtype: "f16" });
  const limits = { contextLength, maxNumSeqs, maxNumBatchedTokens: 4 * maxNumSeqs };
  const parts = { device, weights, config, cache, ...limits };
  const { engine, runner } = makeEngine(parts, { precision, maxSteps: 4, prefixCache: false });
  const close = async (): Promise<void> => {
    await engine.close(new Error("closed"));
    runner.dispose();
    device.close();
  };
  return { engine, config, close };
}

/** What a request says. */
interface Answer {
  readonly tokens: number[];
  readonly logprobs: number[];
  readonly tops: (readonly TokenLogprob[])[];
}

let requests = 0;

type Asked = Pick<EngineRequest, "prompt" | "maxTokens"> & { sampling?: SequenceSampling; logprobs?: number };

function ask(engine: Engine, { sampling = {}, ...asked }: Asked): Promise<Answer> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  const answer: Answer = { tokens: [], logprobs: [], tops: [] };
  const request = { id: requests++, sampling, stopTokenIds: new Set<number>(), n: 1, priority: 0, ...asked };
  engine.addRequest(request, {
    output({ tokens, logprobs, topLogprobs, finishReason }) {
      answer.tokens.push(...tokens);
      answer.logprobs.push(...logprobs ?? []);
      answer.tops.push(...topLogprobs ?? []);
      if (finishReason) resolve(answer);
    },
    fail: reject,
  });
  return promise;
}

const prompt = (length: number, which: number, { vocabSize }: DecoderConfig): number[] =>
  Array.from({ length }, (_, i) => (3 + 37 * which + 11 * i * (which + 1)) % vocabSize);

/** Others that come with the watched ones. */
function company({ engine, config }: Opened, count: number, logprobs: boolean): Promise<Answer[]> {
  return Promise.all(Array.from({ length: count }, (_, i) =>
    ask(engine, {
      prompt: prompt(1 + 3 * i % 29, 50 + i, config),
      maxTokens: 4 + i % 5,
      sampling: { temperature: 1, seed: i, ...(i % 4 === 0 && { presencePenalty: 0.5 }) },
      ...(logprobs && i % 3 === 0 && { logprobs: 0 }),
    })));
}

for (const logprobs of [true, false]) {
  const what = logprobs ? "tokens and log-probabilities" : "tokens of steps ahead of reading";
  Deno.test(`with the forms of GPUs, in exact precision: the same ${what} alone and in company`, async () => {
    const opened = await open(TINY, "exact"), { engine, config } = opened;
    const watched = [3, 17, 40, 70, 9].map((length, i): Asked => ({
      prompt: prompt(length, i, config),
      maxTokens: 12,
      sampling: { temperature: i % 2, seed: i, ...(i > 2 && { repetitionPenalty: 1.2, frequencyPenalty: 0.1 }) },
      ...(logprobs && { logprobs: 0 }),
    }));
    const alone: Answer[] = [];
    for (const each of watched) alone.push(await ask(engine, each));
    const others = company(opened, 11, logprobs);
    assertEquals(await Promise.all(watched.map((each) => ask(engine, each))), alone);
    await others;
    await opened.close();
  });
}

/** KL(p || q) over the likeliest tokens of p, all others as one. */
function divergence(p: readonly TokenLogprob[], q: readonly TokenLogprob[]): number {
  const other = new Map(q.map(({ token, logprob }) => [token, logprob]));
  const both = p.filter(({ token }) => other.has(token)).map(({ token, logprob }) => [logprob, other.get(token)!]);
  const rest = [0, 1].map((side) => Math.max(1e-9, 1 - both.reduce((sum, pair) => sum + Math.exp(pair[side]!), 0)));
  return [...both, rest.map(Math.log)].reduce((sum, [a, b]) => sum + Math.exp(a!) * (a! - b!), 0);
}

Deno.test("with the forms of GPUs, in exact precision: the same tokens across the bounds of contexts", async () => {
  const opened = await open(TINY, "exact", 16, 1100), { engine, config } = opened, whole = prompt(1015, 1, config);
  const { tokens } = await ask(engine, { prompt: whole, maxTokens: 20 });
  const rest = await ask(engine, { prompt: [...whole, ...tokens.slice(0, 12)], maxTokens: 8 });
  assertEquals(rest.tokens, tokens.slice(12), "beyond 1,024 positions from the beginning on");
  assert((await engine.explain()).split("\n\n").filter((text) => text.startsWith("a token each")).length >= 2);
  await opened.close();
});

Deno.test("with the forms of GPUs, in fast precision: nearly the same distributions alone and in company", async () => {
  const opened = await open(STORIES, "fast"), { engine, config } = opened;
  const watched = [5, 33].map((length, i): Asked => ({
    prompt: prompt(length, i, config),
    maxTokens: 16,
    logprobs: 20,
  }));
  const alone: Answer[] = [];
  for (const each of watched) alone.push(await ask(engine, each));
  const others = company(opened, 12, true);
  const together = await Promise.all(watched.map((each) => ask(engine, each)));
  const divergences: number[] = [];
  for (const [i, { tokens, tops }] of alone.entries()) {
    // What follows another token is another text.
    const other = together[i]!, differs = tokens.findIndex((token, at) => token !== other.tokens[at]);
    const comparable = differs < 0 ? tokens.length : differs + 1;
    for (let at = 0; at < comparable; at++) divergences.push(divergence(tops[at]!, other.tops[at]!));
  }
  const mean = divergences.reduce((a, b) => a + b) / divergences.length;
  assert(divergences.length >= 8 && mean <= 3e-3, `mean KL ${mean} at ${divergences.length} places`);
  await others;
  await opened.close();
});
