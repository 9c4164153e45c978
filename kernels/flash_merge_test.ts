/** Flash attention in parts of contexts: what whole contexts give but for rounding, at all places where parts begin and end. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import type { HostArray } from "../tensor/dtype.ts";
import {
  alone,
  checkAlone,
  checkCodes,
  checkStep,
  type Heads,
  openAsGpu,
  Programs,
  type Sequence,
  type Step,
  stepOf,
} from "./attention_testing.ts";
import { attentionCall } from "./attention_cases.ts";
import { flashAttentionKernel } from "./flash_attention.ts";
import { flashMergeKernel } from "./flash_merge.ts";
import { flashPartsKernel } from "./flash_parts.ts";
import { singleAttentionKernel } from "./mixed_attention.ts";
import { seededRandom } from "./random.ts";
import type { CaseInput, Kernel } from "./spec.ts";

/** A program's bounds, its dispatches by name, and what it is given. */
interface Setting extends Heads {
  readonly tokens: number;
  readonly sequences: number;
  readonly dispatches: readonly string[];
  readonly batches: readonly (readonly Sequence[])[];
}

const inParts = ["flash_attention_merge", "flash_attention_parts"], withSingles = [...inParts, "single_attention"];

/** Contexts that end where parts do: turns of a tile's parts are 128 keys, or fewer that divide it, and 16 parts are the most. */
const edges: readonly (readonly Sequence[])[] = [
  [[1, 3], [1, 2240], [48, 2240], [2, 2], [1, 1025]],
  [[9, 129], [5, 128], [2, 127], [17, 259], [3, 2049], [1, 129], [0, 7], [20, 40]],
  [[2, 513], [33, 1025], [1, 1024], [2, 2239], [15, 385]],
  [[61, 700]],
];

/** Less for the heads of whole models. */
const few: readonly (readonly Sequence[])[] = [[[1, 3], [1, 1100], [48, 260], [2, 129]]];

const settings: readonly Setting[] = [
  {
    ...{ kvHeads: 1, group: 2, headDim: 64, maxBlocks: 140, tokens: 64, sequences: 8 },
    ...{ dispatches: inParts, batches: edges },
  },
  {
    ...{ kvHeads: 2, group: 3, headDim: 32, maxBlocks: 140, tokens: 203, sequences: 40 },
    ...{ dispatches: withSingles, batches: edges },
  },
  {
    ...{ kvHeads: 2, group: 7, headDim: 64, maxBlocks: 70, tokens: 128, sequences: 16 },
    ...{ dispatches: withSingles, batches: few },
  },
  {
    ...{ kvHeads: 4, group: 7, headDim: 128, maxBlocks: 70, tokens: 64, sequences: 16 },
    ...{ dispatches: withSingles, batches: few },
  },
  { // sequences so many that the contexts of single queries stay whole
    ...{ kvHeads: 14, group: 1, headDim: 32, maxBlocks: 70, tokens: 203, sequences: 40 },
    ...{ dispatches: withSingles, batches: few },
  },
];

/** Rows of more than one query are those of whole contexts, added up in another order: both round tiles of 32 keys alike. */
async function checkWhole(programs: Programs, step: Step, attended: HostArray, label: string): Promise<void> {
  const whole = await programs.run(programs.whole, step), { sizes, inputs: { queryStart } } = step;
  const columns = whole.length / sizes.tokens;
  for (let b = 0; b < sizes.sequences; b++) {
    if (queryStart[b + 1]! - queryStart[b]! === 1) continue;
    for (let at = queryStart[b]! * columns; at < queryStart[b + 1]! * columns; at++) {
      assert(Math.abs(whole[at]! - attended[at]!) <= 2e-6, `${label}, row ${Math.floor(at / columns)}`);
    }
  }
}

/** A prompt's rows have the same bits wherever the step before ended, and this one does. */
async function checkPieces(programs: Programs, step: Step, b: number, attended: HostArray): Promise<void> {
  const columns = attended.length / step.sizes.tokens, start = step.inputs.queryStart[b]!;
  for (const [from, to] of [[0, 20], [20, 48], [31, 33]] as const) {
    const own = await programs.run(programs.mixed, alone(step, b, columns, [from, to]));
    assertEquals(own, attended.slice((start + from) * columns, (start + to) * columns), `queries ${from} to ${to}`);
  }
}

Deno.test("references: the merge of parts is attention, and keeps the results of single queries", () => {
  const call = attentionCall({
    ...{
      sequences: [[3, 20], [1, 9], [2, 2], [0, 4]],
      kvHeads: 1,
      group: 2,
      headDim: 32,
      blockSize: 4,
      pool: "f16",
      padding: 1,
    },
  }, seededRandom(2));
  const reference = <P>(kernel: Kernel<P>, params: P, inputs: readonly CaseInput[]): CaseInput[] => {
    const outputs = kernel.infer(inputs, params), values = inputs.map(({ data }) => data);
    return kernel.reference({ params, inputs, outputs }, values).map((data, i) => ({
      ...outputs[i]!,
      data: Float32Array.from(data),
    }));
  };
  const { scale } = call.params, parts = { most: 3, keys: 4 };
  for (const quantise of [false, true]) {
    const [whole, scales] = reference(flashAttentionKernel, { ...call.params, quantise }, call.inputs);
    for (const singlesGiven of [false, true]) {
      const cut = reference(flashPartsKernel, { ...call.params, parts, othersOnly: singlesGiven }, call.inputs);
      const given = singlesGiven ? reference(singleAttentionKernel, { ...call.params, quantise }, call.inputs) : [];
      const merged = reference(flashMergeKernel, { parts, scale, quantise, singlesGiven }, [
        ...cut,
        ...call.inputs.slice(3, 5),
        ...given,
      ]);
      [whole!, ...scales ? [scales] : []].forEach(({ data }, output) =>
        data.forEach((value, i) => assertAlmostEquals(merged[output]!.data[i]!, value, 1e-5))
      );
    }
  }
});

for (const { tokens, sequences: most, dispatches: expected, batches, ...heads } of settings) {
  const { kvHeads, group, headDim } = heads, name = `${kvHeads * group} heads of ${headDim}, ${most} sequences`;
  Deno.test(`attention in parts is that of whole contexts but for rounding, the same in any company: ${name}`, async () => {
    const gpu = await openAsGpu();
    if (!gpu) return;
    const programs = new Programs(gpu, heads, { tokens, sequences: most });
    for (const { dispatches } of [programs.mixed, programs.codes]) {
      assertEquals(dispatches.map(({ name }) => name).toSorted(), expected);
    }
    for (const [which, sequences] of batches.entries()) {
      const step = stepOf(sequences, which % 4, most, heads), label = `batch ${which}`;
      const attended = await checkStep(programs, sequences, step, label);
      await checkWhole(programs, step, attended, label);
      if (which === 0) await checkPieces(programs, step, 2, attended);
      if (which === 1) await checkAlone(programs, step, attended, label);
      checkCodes(await programs.run(programs.codes, step), attended, label);
    }
    programs.close();
    gpu.close();
  });
}
