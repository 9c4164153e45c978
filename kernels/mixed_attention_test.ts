/** Attention of tokens beside prompts: what the exact path gives but for rounding, in floats and codes, in batches of all kinds. */
import { assert, assertEquals } from "@std/assert";
import { type Device, openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";
import { Sym } from "../tensor/dim.ts";
import type { HostArray } from "../tensor/dtype.ts";
import { buffer, input, kernelNode, type Node } from "../tensor/node.ts";
import { compile, type Program } from "../tensor/program.ts";
import { Storage } from "../tensor/storage.ts";
import { attend } from "./attend.ts";
import { pagedAttentionKernel } from "./attention.ts";
import { quantise32, quantiseActivations } from "./quantise.ts";
import { seededRandom } from "./random.ts";

const blockSize = 16, slots = 50 * blockSize;

/** Queries and context of a sequence. */
type Sequence = readonly [queries: number, context: number];

interface Heads {
  readonly kvHeads: number;
  readonly group: number;
  readonly headDim: number;
  /** Blocks of a table. */
  readonly maxBlocks: number;
}

const random = seededRandom(5);
const floats = (length: number): Float32Array<ArrayBuffer> => Float32Array.from({ length }, () => random.normal());

/** Inputs of a step, whose blocks are any of the pool's. */
function stepOf(
  sequences: readonly Sequence[],
  padding: number,
  mostSequences: number,
  { kvHeads, group, headDim, maxBlocks }: Heads,
) {
  const queryStart = [0];
  for (const [queries] of sequences) queryStart.push(queryStart.at(-1)! + queries);
  const tokens = queryStart.at(-1)! + padding;
  while (queryStart.length <= mostSequences) queryStart.push(queryStart.at(-1)!);
  return {
    sizes: { tokens, sequences: sequences.length },
    inputs: {
      q: floats(tokens * kvHeads * group * headDim),
      queryStart,
      contextLens: sequences.map(([, context]) => context),
      blockTables: sequences.flatMap(() => Array.from({ length: maxBlocks }, () => random.integer(0, 49))),
    },
  };
}

type Step = ReturnType<typeof stepOf>;

/** Programs over the same pools: attention as GPUs choose it, in floats and in codes, and the exact one. */
class Programs {
  readonly #pools: readonly Storage[];
  readonly mixed: Program;
  readonly codes: Program;
  readonly exact: Program;

  constructor(readonly device: Device, heads: Heads, most: { tokens: number; sequences: number }) {
    const { kvHeads, group, headDim, maxBlocks } = heads, shape = [slots, kvHeads, headDim];
    this.#pools = ["keys", "values"].map((label) =>
      new Storage("f16", shape, floats(slots * kvHeads * headDim), label)
    );
    const tokens = new Sym("tokens", most.tokens), sequences = new Sym("sequences", most.sequences);
    const capture = (build: (inputs: Node[]) => Node | Node[]): Program =>
      compile(device, () =>
        build([
          input("q", "f32", [tokens, kvHeads * group, headDim]),
          ...this.#pools.map((pool) => buffer(pool)),
          input("queryStart", "i32", [most.sequences + 1]),
          input("contextLens", "i32", [sequences]),
          input("blockTables", "i32", [sequences, maxBlocks]),
        ]));
    const params = { blockSize, scale: 1 / Math.sqrt(headDim) };
    const attended = ([q, keys, values, queryStart, contextLens, blockTables]: Node[]): Node =>
      attend(q!, keys!, values!, { queryStart: queryStart!, contextLens: contextLens!, blockTables: blockTables! }, {
        ...params,
        fast: true,
      });
    this.mixed = capture((inputs) => attended(inputs));
    this.codes = capture((inputs) => {
      const { codes, scales } = quantise32(attended(inputs));
      return [codes, scales];
    });
    this.exact = capture((inputs) => kernelNode(pagedAttentionKernel, inputs, { ...params, queries: 1 }));
  }

  async run(program: Program, { inputs, sizes }: Step, output = 0): Promise<HostArray> {
    program.run({ inputs, sizes });
    return await program.read(output, sizes);
  }

  close(): void {
    for (const program of [this.mixed, this.codes, this.exact]) program.dispose();
    this.#pools.forEach((pool) => pool.release());
  }
}

/** The device with the choices of a GPU, or none where it lacks what the kernels need. */
async function openAsGpu(): Promise<Device | undefined> {
  const device = await openDevice();
  if (device.caps.subgroups && device.caps.f16) return asGpu(device);
  device.close();
}

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

/** Queries of each row's sequence; 0 for padding. */
function queriesOf(sequences: readonly Sequence[], tokens: number): number[] {
  const queries = sequences.flatMap(([count]) => Array<number>(count).fill(count));
  return [...queries, ...Array<number>(tokens - queries.length).fill(0)];
}

/** Holds a step against the exact path. @returns What it gives. */
async function checkStep(
  programs: Programs,
  sequences: readonly Sequence[],
  step: Step,
  label: string,
): Promise<HostArray> {
  const mixed = await programs.run(programs.mixed, step), exact = await programs.run(programs.exact, step);
  const rows = queriesOf(sequences, step.sizes.tokens), columns = mixed.length / rows.length;
  rows.forEach((queries, row) => {
    const [own, expected] = [mixed, exact].map((values) => values.slice(row * columns, (row + 1) * columns));
    // `attention_cases.ts` has the bound of tiles, which are in half precision.
    const most = queries === 1 ? 2e-4 : queries > 1 ? 1e-2 : 0;
    assert(own!.every((value, i) => Math.abs(value - expected![i]!) <= most), `${label}, row ${row}`);
  });
  return mixed;
}

/** Sequence `b` of a step by itself. */
function alone({ inputs: { q, queryStart, contextLens, blockTables } }: Step, b: number, columns: number): Step {
  const start = queryStart[b]!, end = queryStart[b + 1]!, maxBlocks = blockTables.length / contextLens.length;
  return {
    sizes: { tokens: end - start, sequences: 1 },
    inputs: {
      q: q.slice(start * columns, end * columns),
      queryStart: queryStart.map((_, i) => i === 0 ? 0 : end - start),
      contextLens: [contextLens[b]!],
      blockTables: blockTables.slice(b * maxBlocks, (b + 1) * maxBlocks),
    },
  };
}

/** Within a program a sequence is attended to with the same bits in every batch. */
async function checkAlone(programs: Programs, step: Step, together: HostArray, label: string): Promise<void> {
  const columns = together.length / step.sizes.tokens, { queryStart } = step.inputs;
  for (let b = 0; b < step.sizes.sequences; b += 3) {
    const start = queryStart[b]!, end = queryStart[b + 1]!;
    if (start === end) continue;
    const own = await programs.run(programs.mixed, alone(step, b, columns));
    assertEquals(own, together.slice(start * columns, end * columns), `sequence ${b} of ${label}`);
  }
}

function checkCodes(codes: HostArray, attended: HostArray, label: string): void {
  const bytes = new Int8Array(Uint32Array.from(codes).buffer);
  const wanted = new Int8Array(quantiseActivations(attended).codes.buffer);
  // Rounded to half precision on the way, a code may go to the other side of a half.
  assert(bytes.every((code, i) => Math.abs(code - wanted[i]!) <= 1), `codes of ${label}`);
  assert(bytes.filter((code, i) => code !== wanted[i]!).length < bytes.length / 20, `most codes of ${label}`);
}

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
