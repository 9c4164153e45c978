/** Attention of tokens beside prompts: what the exact path gives but for rounding, in floats and codes, in batches of all kinds. */
import { assert, assertEquals } from "@std/assert";
import { withCaps } from "../tensor/device_testing.ts";
import {
  blockSize,
  checkAlone,
  checkCodes,
  checkStep,
  type Heads,
  openAsGpu,
  Programs,
  random,
  type Sequence,
  stepOf,
} from "./attention_testing.ts";

/** A prompt's piece behind a cached prefix of any length. */
const piece = (most: number): Sequence => {
  const queries = random.integer(2, most);
  return [queries, queries + random.integer(0, 200)];
};

/** Batches of all kinds, of at most 200 tokens and 40 sequences. */
function batches(longest: number): Sequence[][] {
  const token = (context = random.integer(1, longest)): Sequence => [1, Math.min(context, longest)];
  const of = (count: number, make: () => Sequence): Sequence[] => Array.from({ length: count }, () => make());
  return [
    [...of(30, token), piece(90)],
    [piece(90), ...of(9, token), [0, 7], piece(3), ...of(4, token), token(1), piece(70), token(1024), token(1025)],
    of(40, token),
    of(2, () => piece(90)),
    of(40, () => piece(4)), // more tiles than workgroups
    [token(1)],
    of(random.integer(10, 40), () => random.uniform() < 0.7 ? token() : piece(8)),
  ];
}

/** Programs, and their dispatches by name. */
const settings: (Heads & { tokens: number; dispatches: string[] })[] = [
  {
    ...{ kvHeads: 2, group: 2, headDim: 64, maxBlocks: 20, tokens: 2200 },
    dispatches: ["flash_attention", "single_attention"],
  },
  { // contexts of single queries in parts
    ...{ kvHeads: 2, group: 3, headDim: 32, maxBlocks: 140, tokens: 2200 },
    dispatches: ["flash_attention", "single_attention"],
  },
  { // all contexts
    ...{ kvHeads: 2, group: 3, headDim: 32, maxBlocks: 140, tokens: 203 },
    dispatches: ["flash_attention_merge", "flash_attention_parts", "single_attention"],
  },
];

Deno.test("attention of tokens beside prompts is exact attention but for rounding, and its codes those of quantising it", async () => {
  const gpu = await openAsGpu();
  if (!gpu) return;
  for (const [setting, { tokens, dispatches: expected, ...heads }] of settings.entries()) {
    const programs = new Programs(gpu, heads, { tokens, sequences: 40 });
    for (const { dispatches } of [programs.mixed, programs.codes]) {
      assertEquals(dispatches.map(({ name }) => name).toSorted(), expected);
    }
    for (const [which, sequences] of batches(heads.maxBlocks * blockSize).entries()) {
      const step = stepOf(sequences, which % 4, 40, heads), label = `batch ${which} of heads of ${heads.headDim}`;
      const attended = await checkStep(programs, sequences, step, label);
      if (which === 1) await checkAlone(programs, step, attended, label);
      if (setting > 0) checkCodes(await programs.run(programs.codes, step), attended, label);
    }
    programs.close();
  }
  gpu.close();
});

Deno.test("attention of tokens beside prompts binds no more buffers than a device allows", async () => {
  const gpu = await openAsGpu();
  if (!gpu) return;
  const maxStorageBuffers = 9, device = withCaps(gpu, { maxStorageBuffers }); // results in codes and parts would be 10
  for (const { tokens, dispatches: _, ...heads } of settings.slice(1)) {
    const programs = new Programs(device, heads, { tokens, sequences: 40 });
    for (const { name, wgsl } of [programs.mixed, programs.codes].flatMap(({ dispatches }) => dispatches)) {
      const buffers = wgsl.match(/var<storage/g)?.length ?? 0;
      assert(buffers <= maxStorageBuffers, `${name} binds ${buffers}`);
    }
    programs.close();
  }
  gpu.close();
});
