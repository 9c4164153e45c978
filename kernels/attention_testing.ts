/**
 * Steps of attention for tests: any sequences in a batch, in programs over the same pools.
 *
 * @module
 */
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
import { flashAttentionKernel } from "./flash_attention.ts";
import { quantise32, quantiseActivations } from "./quantise.ts";
import { seededRandom } from "./random.ts";

/** Tokens of a block. */
export const blockSize = 16;

const blocks = 50;

/** Queries and context of a sequence. */
export type Sequence = readonly [queries: number, context: number];

/** Heads of a program, and its longest context. */
export interface Heads {
  readonly kvHeads: number;
  readonly group: number;
  readonly headDim: number;
  /** Blocks of a table. */
  readonly maxBlocks: number;
}

/** Of all steps of a file. */
export const random = seededRandom(5);
const floats = (length: number): Float32Array<ArrayBuffer> => Float32Array.from({ length }, () => random.normal());

/** Inputs of a step, whose blocks are any of the pool's. */
export function stepOf(
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
      blockTables: sequences.flatMap(() => Array.from({ length: maxBlocks }, () => random.integer(0, blocks - 1))),
    },
  };
}

/** Sizes and inputs of a run. */
export type Step = ReturnType<typeof stepOf>;

/**
 * Programs over the same pools: attention as GPUs choose it, in floats and in codes, the exact one, and that of tiles with whole
 * contexts.
 */
export class Programs {
  readonly #pools: readonly Storage[];
  readonly mixed: Program;
  readonly codes: Program;
  readonly exact: Program;
  readonly whole: Program;

  constructor(readonly device: Device, heads: Heads, most: { tokens: number; sequences: number }) {
    const { kvHeads, group, headDim, maxBlocks } = heads, shape = [blocks * blockSize, kvHeads, headDim];
    this.#pools = ["keys", "values"].map((label) =>
      new Storage("f16", shape, floats(blocks * blockSize * kvHeads * headDim), label)
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
    this.whole = capture((inputs) => kernelNode(flashAttentionKernel, inputs, params));
  }

  /** Runs a step and reads an output. */
  async run(program: Program, { inputs, sizes }: Step, output = 0): Promise<HostArray> {
    program.run({ inputs, sizes });
    return await program.read(output, sizes);
  }

  /** Frees everything but the device. */
  close(): void {
    for (const program of [this.mixed, this.codes, this.exact, this.whole]) program.dispose();
    this.#pools.forEach((pool) => pool.release());
  }
}

/** The device with the choices of a GPU, or none where it lacks what the kernels need. */
export async function openAsGpu(): Promise<Device | undefined> {
  const device = await openDevice();
  if (device.caps.subgroups && device.caps.f16) return asGpu(device);
  device.close();
}

/** Queries of each row's sequence; 0 for padding. */
function queriesOf(sequences: readonly Sequence[], tokens: number): number[] {
  const queries = sequences.flatMap(([count]) => Array<number>(count).fill(count));
  return [...queries, ...Array<number>(tokens - queries.length).fill(0)];
}

/** Holds a step against the exact path. @returns What it gives. */
export async function checkStep(
  programs: Programs,
  sequences: readonly Sequence[],
  step: Step,
  label: string,
): Promise<HostArray> {
  const mixed = await programs.run(programs.mixed, step), exact = await programs.run(programs.exact, step);
  const singles = programs.mixed.dispatches.some(({ name }) => name === "single_attention");
  const rows = queriesOf(sequences, step.sizes.tokens), columns = mixed.length / rows.length;
  rows.forEach((queries, row) => {
    const [own, expected] = [mixed, exact].map((values) => values.slice(row * columns, (row + 1) * columns));
    // `attention_cases.ts` has the bound of tiles, which are in half precision.
    const most = queries === 1 && singles ? 2e-4 : queries > 0 ? 1e-2 : 0;
    assert(own!.every((value, i) => Math.abs(value - expected![i]!) <= most), `${label}, row ${row}`);
  });
  return mixed;
}

/** Queries of sequence `b` of a step by themselves, all unless given, as if its context ended with them. */
export function alone(
  { inputs: { q, queryStart, contextLens, blockTables } }: Step,
  b: number,
  columns: number,
  [from, to]: readonly [number, number] = [0, queryStart[b + 1]! - queryStart[b]!],
): Step {
  const start = queryStart[b]!,
    behind = queryStart[b + 1]! - start - to,
    maxBlocks = blockTables.length / contextLens.length;
  return {
    sizes: { tokens: to - from, sequences: 1 },
    inputs: {
      q: q.slice((start + from) * columns, (start + to) * columns),
      queryStart: queryStart.map((_, i) => i === 0 ? 0 : to - from),
      contextLens: [contextLens[b]! - behind],
      blockTables: blockTables.slice(b * maxBlocks, (b + 1) * maxBlocks),
    },
  };
}

/** Within a program a sequence is attended to with the same bits in every batch. */
export async function checkAlone(programs: Programs, step: Step, together: HostArray, label: string): Promise<void> {
  const columns = together.length / step.sizes.tokens, { queryStart } = step.inputs;
  for (let b = 0; b < step.sizes.sequences; b += 3) {
    const start = queryStart[b]!, end = queryStart[b + 1]!;
    if (start === end) continue;
    const own = await programs.run(programs.mixed, alone(step, b, columns));
    assertEquals(own, together.slice(start * columns, end * columns), `sequence ${b} of ${label}`);
  }
}

/** Holds codes against those of quantising what is attended to in floats. */
export function checkCodes(codes: HostArray, attended: HostArray, label: string): void {
  const bytes = new Int8Array(Uint32Array.from(codes).buffer);
  const wanted = new Int8Array(quantiseActivations(attended).codes.buffer);
  // Rounded to half precision on the way, a code may go to the other side of a half.
  assert(bytes.every((code, i) => Math.abs(code - wanted[i]!) <= 1), `codes of ${label}`);
  assert(bytes.filter((code, i) => code !== wanted[i]!).length < bytes.length / 20, `most codes of ${label}`);
}
