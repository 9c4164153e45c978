/**
 * Joined dispatches against the same ones apart. The device here runs one workgroup after another, so that joined dispatches
 * have one workgroup, which does the work of all; on a GPU they have as many as it keeps resident.
 */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { greedy } from "../kernels/argmax.ts";
import { randomDecoder } from "../bench/random_model.ts";
import { batchInputs } from "../model/batch.ts";
import { forward } from "../model/decoder.ts";
import type { DecoderConfig } from "../model/config.ts";
import { KvCache } from "../model/kv_cache.ts";
import { compile, type Device, openDevice, type Program } from "../tensor/mod.ts";
import { shapeConfig } from "../bench/shapes.ts";
import { asGpu } from "../tensor/device_testing.ts";

const BLOCK = 16;

const workgroups = (device: Device): number[] | undefined => /llvmpipe/.test(device.info.description) ? [1] : undefined;

const config: DecoderConfig = {
  ...shapeConfig("0.5b"),
  numLayers: 2,
  hiddenSize: 256,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 64,
  intermediateSize: 512,
  vocabSize: 512,
};

/** Inputs of a step of `count` sequences, of different lengths. */
function stepOf(
  count: number,
  seed: number,
  length: number,
): { inputs: Record<string, number[]>; sizes: Record<string, number> } {
  const each = (value: (i: number) => number): number[] => Array.from({ length: count }, (_, i) => value(i));
  const blocks = length / BLOCK, context = (i: number): number => length - (seed * 37 + i * 53) % 160;
  return {
    inputs: {
      tokens: each((i) => (seed * 11 + i) % config.vocabSize),
      positions: each((i) => context(i) - 1),
      slotMapping: each((i) => i * length + context(i) - 1),
      queryStart: Array.from({ length: count + 1 }, (_, i) => i),
      contextLens: each(context),
      blockTables: Array.from({ length: count * blocks }, (_, i) => i),
    },
    sizes: { tokens: count },
  };
}

async function results(program: Program, count: number, seed: number, length: number): Promise<number[]> {
  const step = stepOf(count, seed, length);
  program.run(step);
  return [...await program.read(0, step.sizes), ...await program.read(1, step.sizes)];
}

// With subgroups so many dispatches are left. Contexts of nine tiles and more are merged in a stage of their own, and attention of two
// such rows stands apart.
const settings = [[1, 160, 7], [2, 160, 7], [8, 160, 7], [1, 1152, 7], [2, 1152, 9]] as const;
for (const [most, length, left] of settings) {
  const what = `joined decoding of at most ${most} sequences of ${length} positions`;
  Deno.test(`${what} is that of dispatches apart, bit for bit`, async (t) => {
    for (
      const change of most === 2 || length > 160 ? [{}] : [{}, { subgroups: false, subgroupSize: 1 }]
    ) {
      const device = asGpu(await openDevice(), change), weights = randomDecoder(device, config, length);
      const cache = new KvCache(device, config, { numBlocks: most * length / BLOCK, blockSize: BLOCK, dtype: "f16" });
      const limits = {
        maxTokens: most,
        maxSequences: most,
        maxLogitRows: most,
        maxBlocks: length / BLOCK,
        decode: true,
      };
      using program = compile(device, () => {
        const logits = forward(weights, config, batchInputs(limits), cache, "fast");
        return [logits, greedy(logits).token];
      }, { join: true });
      const all = async (): Promise<number[][]> => {
        for (const pool of [...cache.keys, ...cache.values]) {
          device.write(pool, 0, new Uint8Array(2 * (pool.shape as number[]).reduce((a, b) => a * b)));
        }
        const found: number[][] = [];
        for (const seed of length > 160 ? [1] : [1, 2, 3]) {
          found.push(await results(program, 1 + seed * 5 % most, seed, length));
        }
        return found;
      };
      const apart = await all(), dispatches = program.dispatchCount;
      await t.step(`${change.subgroups === false ? "without" : "with"} subgroups`, async () => {
        assert(await program.join(workgroups(device)), "nothing was joined");
        assertMatch(program.explain(), /joined 1$/m);
        const few = change.subgroups === false ? dispatches / 2 : left;
        assert(program.dispatchCount <= few, `${program.dispatchCount} of ${dispatches} dispatches`);
        for (let round = 0; round < 2; round++) assertEquals(await all(), apart); // counters are put back from run to run
      });
      device.close();
    }
  });
}

Deno.test("what cannot be resident at once is not joined, and results that no one can trust are refused", async () => {
  const length = 160;
  const device = asGpu(await openDevice()), weights = randomDecoder(device, config, length);
  const cache = new KvCache(device, config, { numBlocks: length / BLOCK, blockSize: BLOCK, dtype: "f16" });
  const limits = { maxTokens: 1, maxSequences: 1, maxLogitRows: 1, maxBlocks: length / BLOCK, decode: true };
  using program = compile(device, () => {
    const logits = forward(weights, config, batchInputs(limits), cache, "fast");
    return [logits, greedy(logits).token];
  }, { join: true });
  const apart = await results(program, 1, 1, length), { dispatchCount } = program;
  // llvmpipe runs one workgroup after another, a GPU never so many at once.
  assertEquals(await program.join([/llvmpipe/.test(device.info.description) ? 5 : 65535]), false);
  assertEquals(program.dispatchCount, dispatchCount);
  assertEquals(await results(program, 1, 1, length), apart);
  device.gpu.queue.writeBuffer(device.health.buffer, 0, Uint32Array.of(1));
  await assertRejects(() => results(program, 1, 1, length), Error, "waited in vain");
  device.close();
});
