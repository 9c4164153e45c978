import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { openCheckpoint } from "../model/checkpoint.ts";
import { readConfig } from "../model/config.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { kvBytesPerToken } from "../model/kv_cache.ts";
import { weightBytes } from "../model/weights.ts";
import { OutOfMemoryError } from "../tensor/device_errors.ts";
import type { Caps } from "../tensor/kernel.ts";
import type { LoadOptions } from "./model.ts";
import {
  BLOCK_SIZE,
  checkMemoryLimit,
  chooseContextLength,
  choosePoolBlocks,
  chooseStepLimits,
  contextShortage,
  estimate,
  estimateMemory,
  type Room,
} from "./memory.ts";

const CAPS: Caps = {
  subgroups: false,
  subgroupSize: 1,
  f16: true,
  timestamps: false,
  packedDot: false,
  int64: false,
  coherent: false,
  cpu: true,
  maxBinding: 2 ** 27,
  maxUniformBinding: 2 ** 16,
  maxStorageBuffers: 8,
  maxInvocations: 256,
  workgroupMemory: 2 ** 15,
};

const STEPS = { maxNumSeqs: 16, maxNumBatchedTokens: 512, maxNumMixedTokens: 512 };

/** The story model, whose context is 1,024 tokens, and as much memory as is asked for. */
async function room(changes: Partial<Room> = {}): Promise<Room> {
  const source = fileSource(`${import.meta.dirname}/../model/assets/stories`);
  const [config, checkpoint] = await Promise.all([readConfig(source), openCheckpoint(source)]);
  const asked = { kvDtype: "f16", kvMemory: undefined, steps: STEPS } as const;
  return { config, checkpoint, ...asked, caps: CAPS, memoryLimit: Infinity, inUse: 0, ...changes };
}

Deno.test("the context is the model's own, less where memory is short, and never below what makes sense", async () => {
  const plenty = await room();
  assertEquals(chooseContextLength(undefined, plenty), 1024);
  const { weights, activations } = estimate(plenty.config, plenty.checkpoint, 1024, "f16", true, STEPS);
  const cache = (tokens: number): number => tokens * kvBytesPerToken(plenty.config, "f16", true);
  const short = { ...plenty, memoryLimit: weights + activations + cache(500) };
  assertEquals(chooseContextLength(undefined, short), 496);
  assertEquals(chooseContextLength(undefined, { ...plenty, memoryLimit: 1 }), 256);
});

Deno.test("a context that the model or the device cannot have is refused with both numbers", async () => {
  const plenty = await room({ kvDtype: "f32" });
  assertThrows(() => chooseContextLength(1.5, plenty), RangeError, "contextLength is 1.5, give a whole number");
  assertThrows(() => chooseContextLength(2000, plenty), RangeError, "2000, and it was made for 1024");
  const perToken = kvBytesPerToken(plenty.config, "f32", true) / (2 * plenty.config.numLayers);
  const narrow = { ...plenty, caps: { ...CAPS, maxBinding: 512 * perToken } };
  assertEquals(chooseContextLength(512, narrow), 512);
  assertThrows(
    () => chooseContextLength(513, narrow),
    RangeError,
    'contextLength is 513, and this device binds a cache of 512 tokens: give that or less, or use kvDtype "f16"',
  );
  assertEquals(choosePoolBlocks(512, narrow), 512 / BLOCK_SIZE);
});

Deno.test("an estimate goes by the options, and is refused where loading would be", async () => {
  const source = fileSource(`${import.meta.dirname}/../model/assets/stories`);
  const most = await estimateMemory(source, { contextLength: 1024 });
  assertEquals(most.kvCache, 1024 * kvBytesPerToken(await readConfig(source), "f16", true));
  assertEquals(most.loaded!.cpu, most.total + (STEPS.maxNumSeqs - 1) * most.kvCache);
  assertEquals([most.contextLength, most.loaded!.gpu > most.loaded!.cpu], [1024, true]);
  const limited = await estimateMemory(source, { memoryLimit: most.loaded!.cpu - 1 });
  const block = most.kvCache / (1024 / BLOCK_SIZE);
  assertEquals(limited.loaded!.cpu, most.loaded!.cpu - block);
  assertEquals((await estimateMemory(source, { kvMemory: 1e7 })).loaded, undefined);
  const smaller = await estimateMemory(source, { maxNumSeqs: 1, maxNumBatchedTokens: 64 });
  assertEquals([smaller.kvCache, smaller.activations < most.activations / 4], [most.kvCache, true]);
  assertEquals((await estimateMemory(source, { kvMemory: 1e7 })).kvCache, 1e7);
  const half = { kvMemory: 0.5, memoryLimit: most.weights + most.activations + 1000 };
  assertEquals((await estimateMemory(source, half)).kvCache, 500);
  const refused = (contextLength: number, message: string): Promise<unknown> =>
    assertRejects(() => estimateMemory(source, { contextLength }), RangeError, message);
  await refused(1025, "contextLength is 1025, and it was made for 1024: give that or less");
  await refused(0, "contextLength is 0, give a whole number");
});

Deno.test("the pool has room for every sequence where there is memory, and for one where there is not", async () => {
  const plenty = await room(), perContext = 1024 / BLOCK_SIZE;
  assertEquals(choosePoolBlocks(1024, plenty), STEPS.maxNumSeqs * perContext);
  assertEquals(choosePoolBlocks(1024, { ...plenty, memoryLimit: 1 }), perContext);
});

Deno.test("the pool is as large as asked, in bytes or as a fraction of what is left", async () => {
  const block = BLOCK_SIZE * kvBytesPerToken((await room()).config, "f16", true);
  const bytes = await room({ kvMemory: 10.5 * block });
  assertEquals(choosePoolBlocks(1024, bytes), 10);
  assertEquals(chooseContextLength(undefined, bytes), 10 * BLOCK_SIZE);
  const { weights, activations } = estimate(bytes.config, bytes.checkpoint, 1024, "f16", true, STEPS);
  const half = { ...bytes, kvMemory: 0.5, memoryLimit: weights + activations + 100 * block };
  assertEquals(choosePoolBlocks(1024, half), 50);
  assertThrows(
    () => choosePoolBlocks(1024, { ...bytes, kvMemory: 1000 }),
    RangeError,
    "kvMemory is 1000 bytes, and 16 tokens take 65536: give that or more",
  );
});

Deno.test("a context that memory made shorter says which option did, and what it would have to be", async () => {
  const plenty = await room(), cache = 1024 * kvBytesPerToken(plenty.config, "f16", true);
  const { weights, activations } = estimate(plenty.config, plenty.checkpoint, 1024, "f16", true, STEPS);
  const needed = weights + activations + cache, half = needed + cache;
  const shortage = (changes: Partial<Room>): string | undefined => {
    const short = { ...plenty, ...changes };
    return contextShortage(chooseContextLength(undefined, short), short);
  };
  assertEquals(shortage({}), undefined);
  assertEquals(shortage({ caps: { ...CAPS, maxBinding: 2 ** 16 } }), undefined, "no option can help");
  assertEquals(
    shortage({ kvMemory: 65536 }),
    `kvMemory is 65536 bytes, and a context of 1024 takes ${cache}`,
  );
  assertEquals(
    shortage({ memoryLimit: needed - 1 }),
    `memoryLimit is ${needed - 1} bytes, and a context of 1024 takes ${needed}`,
  );
  const fraction = shortage({ memoryLimit: half - 100, kvMemory: 0.5 });
  assertEquals(fraction?.endsWith(`get 0.5 (kvMemory), and a context of 1024 takes ${half}`), true, fraction);
  for (const enough of [{ kvMemory: cache }, { memoryLimit: needed }, { memoryLimit: half, kvMemory: 0.5 }]) {
    assertEquals(shortage(enough), undefined);
  }
});

Deno.test("a limit that the largest steps would exceed is refused with what is needed, and that suffices", async () => {
  const plenty = await room({ inUse: 48 }), block = BLOCK_SIZE * kvBytesPerToken(plenty.config, "f16", true);
  checkMemoryLimit(1024, plenty);
  for (const kvMemory of [undefined, 0.5, 7.5 * block]) {
    const short = { ...plenty, kvMemory, memoryLimit: 18e6 };
    const { message } = assertThrows(() => checkMemoryLimit(256, short), OutOfMemoryError, "is 18000000 bytes, and");
    const needed = Number(/and (\d+) are needed/.exec(message)![1]);
    checkMemoryLimit(256, { ...short, memoryLimit: needed });
    assertThrows(
      () => checkMemoryLimit(256, { ...short, memoryLimit: needed - 1 }),
      OutOfMemoryError,
      "Raise memoryLimit",
    );
  }
});

Deno.test("a limit that is too low for the usual steps is refused with steps that fit, where there are any", async () => {
  const short = await room({ memoryLimit: 20e6 });
  const { message } = assertThrows(() => checkMemoryLimit(256, short), OutOfMemoryError);
  const [tokens, sequences] = /context of 256, maxNumBatchedTokens (\d+) with maxNumSeqs (\d+) fits/.exec(message)!
    .slice(1);
  const limits = { maxNumBatchedTokens: Number(tokens), maxNumSeqs: Number(sequences) };
  checkMemoryLimit(256, { ...short, steps: chooseStepLimits(limits, true, short.config) });
  const twice = { ...limits, maxNumBatchedTokens: 2 * limits.maxNumBatchedTokens };
  assertThrows(() => checkMemoryLimit(256, { ...short, steps: chooseStepLimits(twice, true, short.config) }));
  const none = assertThrows(() => checkMemoryLimit(256, { ...short, memoryLimit: 16e6 }), OutOfMemoryError);
  assertEquals(none.message.includes("fits"), false);
});

Deno.test("a limit below what weights and the smallest steps take is refused with both, and what to raise it to", async () => {
  const short = await room({ memoryLimit: 10e6 });
  const { message } = assertThrows(() => checkMemoryLimit(256, short), OutOfMemoryError);
  const [least, weights, enough] =
    /at least (\d+) are needed, (\d+) for weights alone. Raise memoryLimit to (\d+), or use/
      .exec(message)!.slice(1).map(Number) as [number, number, number];
  assertEquals(weights, weightBytes(short.checkpoint, short.config) + 256 * short.config.rope.rotaryDim * 4);
  checkMemoryLimit(256, { ...short, memoryLimit: enough });
  const steps = chooseStepLimits({ maxNumBatchedTokens: 1 }, true, short.config);
  checkMemoryLimit(BLOCK_SIZE, { ...short, steps, memoryLimit: least });
  assertThrows(() => checkMemoryLimit(BLOCK_SIZE, { ...short, steps, memoryLimit: least - 1 }), OutOfMemoryError);
});

Deno.test("steps are as large as asked, or as the device can make use of", async () => {
  const { config } = await room();
  const limits = (options: LoadOptions, cpu: boolean, intermediateSize = config.intermediateSize): number[] => {
    const { maxNumSeqs, maxNumBatchedTokens, maxNumMixedTokens } = chooseStepLimits(options, cpu, {
      ...config,
      intermediateSize,
    });
    return [maxNumSeqs, maxNumBatchedTokens, maxNumMixedTokens];
  };
  assertEquals(limits({}, true), [16, 512, 512]);
  assertEquals(limits({}, false), [256, 2048, 512]);
  assertEquals(limits({}, false, 12_000), [256, 1024, 512]);
  assertEquals(limits({}, false, 25_000), [256, 512, 512]);
  assertEquals(limits({ maxNumSeqs: 1000 }, false), [1000, 2048, 1000]);
  assertEquals(limits({ maxNumSeqs: 3000 }, false), [3000, 3000, 3000]);
  assertEquals(limits({ maxNumBatchedTokens: 9 }, true), [9, 9, 9]);
  assertEquals(limits({ maxNumBatchedTokens: 4096 }, false), [256, 4096, 4096]);
});
