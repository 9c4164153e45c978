/**
 * In exact precision a row has the same bits alone and in any company: operation by operation over the sizes that programs are
 * captured for, then through whole models, with prompts in pieces of any size and tokens in batches of any kind. It holds on every
 * device, whatever forms of the kernels the device chooses.
 */
import { assertEquals } from "@std/assert";
import { embedding } from "../kernels/embedding.ts";
import { rmsNorm } from "../kernels/norm.ts";
import { linear } from "../kernels/quantised_matmul.ts";
import { seededRandom } from "../kernels/random.ts";
import { randomWeight } from "../kernels/random_product.ts";
import { randomLogits, randomSamplingRow } from "../kernels/sampling_cases.ts";
import { sample } from "../kernels/sampling.ts";
import { encodeSamplingRows } from "../kernels/sampling_rows.ts";
import { topLogprobs } from "../kernels/top_logprobs.ts";
import { formatName, type Weight, type WeightFormat } from "../kernels/weight_format.ts";
import { batchInputs, type BatchLimits } from "../model/batch.ts";
import { openCheckpoint } from "../model/checkpoint.ts";
import { readConfig } from "../model/config.ts";
import { forward } from "../model/decoder.ts";
import { loadDecoder } from "../model/decoder_weights.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { KvCache } from "../model/kv_cache.ts";
import { BatchBuilder } from "../serving/batch.ts";
import { sequenceBuckets, tokenBuckets } from "../serving/buckets.ts";
import type { Scheduled } from "../serving/scheduled_step.ts";
import { Sequence } from "../serving/sequence.ts";
import { type Device, openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";
import { maxOf, Sym } from "../tensor/dim.ts";
import type { DType, HostArray } from "../tensor/dtype.ts";
import { buffer, input, map, type Node, slice } from "../tensor/node.ts";
import { compile, type Program } from "../tensor/program.ts";
import { Storage } from "../tensor/storage.ts";

const STORIES = `${import.meta.dirname}/../model/assets/stories`;
const TINY = `${import.meta.dirname}/fixtures/mlx/qwen2-tiny-4bit`;

/** The device as it is, or taken for a GPU: with those paths' forms and sizes. */
async function openAs(cpu: false | undefined): Promise<Device> {
  const device = await openDevice();
  return cpu === undefined ? device : asGpu(device);
}

/** How many elements of two rows differ, and by how much at most. */
function differences(got: HostArray, expected: HostArray): { count: number; most: number } {
  let count = Math.abs(got.length - expected.length), most = 0;
  for (const [i, value] of expected.entries()) {
    if (got[i] === value) continue;
    count++;
    most = Math.max(most, Math.abs(got[i]! - value));
  }
  return { count, most };
}

const SAME = { count: 0, most: 0 };

/** Most rows of the operations' batches. */
const ROWS = 256;

/** An operation on rows. */
interface RowOp {
  readonly name: string;
  /** Values of {@linkcode ROWS} rows of each input. */
  readonly inputs: readonly { readonly dtype: DType; readonly columns: number; readonly data: HostArray }[];
  /** Nodes of as many rows. Vectors come as one column. */
  readonly build: (...inputs: Node[]) => readonly Node[];
}

const random = seededRandom(11);

function floats(columns: number): RowOp["inputs"][number] {
  return { dtype: "f32", columns, data: Float32Array.from({ length: ROWS * columns }, () => random.normal()) };
}

function vector(length: number): Node {
  return buffer(new Storage("f32", [length], Float32Array.from({ length }, () => random.normal()), "vector"));
}

function weightOf(format: WeightFormat, rows: number, columns: number): Weight {
  const tensors = randomWeight(format, rows, columns, random).map(({ dtype, shape, data }) =>
    buffer(new Storage(dtype, shape, data, "weight"))
  );
  return { format, rows, columns, tensors };
}

const fourBits = { kind: "affine", bits: 4, groupSize: 64, scales: "f16" } as const;

/** Products with what decoders put behind them: biases, residuals and gates. */
function productOps(): RowOp[] {
  const formats = [fourBits, { ...fourBits, bits: 8, groupSize: 128 }, { kind: "dense", dtype: "bf16" }] as const;
  return formats.flatMap((format): RowOp[] => {
    const wide = weightOf(format, 48, 128 * 19), narrow = weightOf(format, 48, 512), bias = vector(48);
    const half = (y: Node, at: number): Node => slice(y, [0, at], [maxOf(y.shape[0]!), at + 24]);
    return [{
      name: `product with bias and residual, ${formatName(format)}`,
      inputs: [floats(128 * 19), floats(48)],
      build: (x, residual) => [map("add", residual!, map("add", linear(x!, wide), bias))],
    }, {
      name: `gated product, ${formatName(format)}`,
      inputs: [floats(512)],
      build(x) {
        const y = linear(x!, narrow);
        return [map("mul", map("silu", half(y, 0)), half(y, 24))];
      },
    }];
  });
}

function rowOps(): RowOp[] {
  const table = weightOf(fourBits, 300, 512), norm = vector(896);
  const settings = Array.from({ length: ROWS }, () => randomSamplingRow(random, 1003));
  const records = encodeSamplingRows(settings).rows;
  return [
    ...productOps(),
    {
      name: "embedding",
      inputs: [{ dtype: "i32", columns: 1, data: Int32Array.from({ length: ROWS }, () => random.integer(0, 299)) }],
      build: (ids) => [embedding(table, ids!)],
    },
    { name: "norm", inputs: [floats(896)], build: (x) => [rmsNorm(x!, norm, 1e-6)] },
    {
      name: "drawing and log-probabilities",
      inputs: [
        { dtype: "f32", columns: 1003, data: randomLogits(random, ROWS, 1003).data },
        { dtype: "u32", columns: 12, data: records },
      ],
      build(logits, rows) {
        const drawn = sample(logits!, rows!), top = topLogprobs(logits!, 3);
        return [drawn.token, drawn.logprob, top.ids, top.logprobs];
      },
    },
  ];
}

/** A program of an operation for up to so many rows, and what it makes of rows `from` to `to`. */
function capture(device: Device, op: RowOp, most: number): {
  readonly program: Program;
  readonly run: (from: number, to: number) => Promise<HostArray[]>;
} {
  const size = most === 1 ? 1 : new Sym("rows", most);
  let outputs = 0;
  const program = compile(device, () => {
    const nodes = op.build(
      ...op.inputs.map(({ dtype, columns }, i) => input(`input ${i}`, dtype, columns === 1 ? [size] : [size, columns])),
    );
    outputs = nodes.length;
    return nodes;
  });
  const run = async (from: number, to: number): Promise<HostArray[]> => {
    const values = op.inputs.map(({ columns, data }) => data.slice(from * columns, to * columns));
    const sizes = { rows: to - from };
    program.run({ inputs: Object.fromEntries(values.map((value, i) => [`input ${i}`, value])), sizes });
    const results: HostArray[] = [];
    for (let i = 0; i < outputs; i++) results.push(await program.read(i, sizes));
    return results;
  };
  return { program, run };
}

for (const cpu of [undefined, false] as const) {
  Deno.test(`a row's bits are the same alone and in batches of any size${cpu === false ? ", on a GPU's paths" : ""}`, async (t) => {
    const device = await openAs(cpu);
    const [, ...buckets] = tokenBuckets(ROWS, device.caps.cpu);
    for (const op of rowOps()) {
      await t.step(op.name, async () => {
        const one = capture(device, op, 1);
        for (const bucket of buckets) {
          const many = capture(device, op, bucket);
          for (const count of [bucket, Math.ceil(bucket * 0.7)]) {
            const batch = await many.run(0, count);
            for (const row of new Set([0, count >> 1, count - 1])) {
              const alone = await one.run(row, row + 1);
              for (const [i, expected] of alone.entries()) {
                const size = expected.length, got = batch[i]!.slice(row * size, (row + 1) * size);
                assertEquals(differences(got, expected), SAME, `row ${row} of ${count} for ${bucket}, output ${i}`);
              }
            }
          }
          many.program.dispose();
        }
        one.program.dispose();
      });
    }
    device.close();
  });
}

const BLOCK = 16;
/** Most tokens of a step, and positions of a sequence: more than a tile of keys, so that GPUs split it. */
const MOST = 160;
/** Tokens of the prompt that is watched. */
const PROMPT = 140;
const MAX_BLOCKS = MOST / BLOCK;

/** A model whose forward passes are captured for the limits that the runner has. */
class Model {
  readonly #programs = new Map<string, { program: Program; builder: BatchBuilder }>();

  private constructor(
    readonly device: Device,
    readonly vocabulary: number,
    readonly capture: (limits: BatchLimits) => Program,
    readonly close: () => void,
  ) {}

  static async open(folder: string, cpu: false | undefined): Promise<Model> {
    const source = fileSource(folder), device = await openAs(cpu), config = await readConfig(source);
    const weights = await loadDecoder(device, await openCheckpoint(source), config, { positions: MOST });
    const cache = new KvCache(device, config, { numBlocks: MAX_BLOCKS + MOST, blockSize: BLOCK, dtype: "f16" });
    const capture = (limits: BatchLimits): Program =>
      compile(device, () => forward(weights, config, batchInputs(limits), cache));
    return new Model(device, config.vocabSize, capture, () => device.close());
  }

  /** Logits of the last token of the first of some sequences, computed in one step. */
  async step(limits: BatchLimits, scheduled: readonly Scheduled[], watched: number): Promise<HostArray> {
    const label = JSON.stringify(limits);
    let captured = this.#programs.get(label);
    if (!captured) {
      captured = { program: this.capture(limits), builder: new BatchBuilder(limits, BLOCK) };
      this.#programs.set(label, captured);
    }
    const { inputs, sizes } = captured.builder.build(scheduled, { rows: "drawing" });
    captured.program.run({ inputs, sizes });
    const logits = await captured.program.read(0, sizes);
    return logits.slice(watched * this.vocabulary, (watched + 1) * this.vocabulary);
  }
}

/** Sequence number `s` with its last `numTokens` of `length` tokens to compute. Number 0 has ten blocks, others have one. */
function item(s: number, length: number, numTokens: number): Scheduled {
  const tokens = Array.from({ length }, (_, i) => (3 + 37 * s + 11 * i * (s + 1)) % 1000);
  const sequence = new Sequence(tokens);
  if (s > 0) sequence.blockTable.push(MAX_BLOCKS + s - 1);
  else for (let block = 0; block < MAX_BLOCKS; block++) sequence.blockTable.push((7 * block + 3) % MAX_BLOCKS);
  return { sequence, start: length - numTokens, numTokens, draws: true };
}

/** Others that compute `tokens` tokens, at most a block each, in `most` sequences or fewer. */
function company(tokens: number, most: number): Scheduled[] {
  const others: Scheduled[] = [];
  for (let left = tokens; left > 0 && others.length < most;) {
    const numTokens = Math.min(BLOCK, left, Math.ceil(left / (most - others.length)));
    others.push(item(others.length + 1, Math.min(BLOCK, numTokens + others.length % 5), numTokens));
    left -= numTokens;
  }
  return others;
}

/** A batch with the watched sequence in the middle of others, and its place. */
function amid(watched: Scheduled, others: readonly Scheduled[]): [Scheduled[], number] {
  const place = others.length >> 1;
  return [[...others.slice(0, place), watched, ...others.slice(place)], place];
}

for (
  const [name, folder, cpu] of [["the story model", STORIES], ["a tiny model, on a GPU's paths", TINY, false]] as const
) {
  Deno.test(`a sequence's logits have the same bits alone and in any batch: ${name}`, async () => {
    const model = await Model.open(folder, cpu), { caps } = model.device;
    const buckets = tokenBuckets(MOST, caps.cpu);
    const limitsOf = (maxTokens: number, maxSequences: number): BatchLimits => {
      return { maxTokens, maxSequences, maxBlocks: MAX_BLOCKS, maxLogitRows: maxSequences };
    };
    const decodeLimits = (count: number): BatchLimits => ({ ...limitsOf(count, count), decode: true });
    // Alone: the prompt in one step, then a token.
    const ofPrompt = await model.step(limitsOf(MOST, 1), [item(0, PROMPT, PROMPT)], 0);
    const ofToken = await model.step(decodeLimits(1), [item(0, PROMPT + 1, 1)], 0);
    const check = async (
      limits: BatchLimits,
      last: Scheduled,
      others: Scheduled[],
      expected: HostArray,
    ): Promise<void> => {
      const logits = await model.step(limits, ...amid(last, others));
      const label = `${last.numTokens} of ${last.sequence.length} tokens with ${others.length} others in ${
        JSON.stringify(limits)
      }`;
      assertEquals(differences(logits, expected), SAME, label);
    };
    for (const bucket of buckets) {
      const token = item(0, PROMPT + 1, 1);
      const singles = Array.from({ length: bucket - 1 }, (_, i) => item(i + 1, 1 + i % BLOCK, 1));
      await check(decodeLimits(bucket), token, singles, ofToken);
      for (const sequences of sequenceBuckets(bucket, 64, caps.cpu)) {
        const limits = limitsOf(bucket, sequences);
        await check(limits, token, company(bucket - 1, sequences - 1), ofToken);
        for (const numTokens of new Set([Math.min(bucket, PROMPT), (bucket + 1) >> 1])) {
          await check(limits, item(0, PROMPT, numTokens), company(bucket - numTokens, sequences - 1), ofPrompt);
        }
      }
    }
    model.close();
  });
}
