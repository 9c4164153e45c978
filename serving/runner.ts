/**
 * Runs steps on the device. A program is captured for each bucket of tokens and way of sampling when it is first needed, and
 * replayed from then on: nothing recompiles as sequences grow, come and go.
 *
 * @module
 */
import { argmax, greedy } from "../kernels/argmax.ts";
import { sample } from "../kernels/sampling.ts";
import { adjustmentWords, type EncodedSamplingRows, encodeSamplingRows, rowWords } from "../kernels/sampling_rows.ts";
import { batchInputs, type BatchLimits } from "../model/batch.ts";
import type { DecoderConfig } from "../model/config.ts";
import { forward, type Precision } from "../model/decoder.ts";
import type { DecoderWeights } from "../model/decoder_weights.ts";
import type { KvCache } from "../model/kv_cache.ts";
import type { Device } from "../tensor/device.ts";
import { cast, input, map, type Node, pad, reshape } from "../tensor/node.ts";
import { compile, type Program } from "../tensor/program.ts";
import { buildBatch, reachesEnd, type Scheduled } from "./batch.ts";

/** Bounds of the programs' tokens: one for decoding alone, decoding together, short prompts, long ones. */
export const TOKEN_BUCKETS: readonly number[] = [1, 8, 64, 512];

/** Most bytes of one piece of logits: a piece is held on the device and once more on the host. */
const LOGITS_BYTES = 64 * 2 ** 20;

/** Smallest bound of a program's sampling adjustments; larger ones are powers of 4 times this. */
const ADJUSTMENTS = 256;

/** A token that was drawn. */
export interface Sampled {
  readonly token: number;
  /** Its natural log-probability under the raw logits, where asked for. */
  readonly logprob?: number;
}

/** Sequences and tokens of a step, and what it is asked for. */
export interface Step {
  readonly scheduled: readonly Scheduled[];
  /** Whether log-probabilities are read back. */
  readonly logprobs?: boolean;
}

/** What a runner runs. */
export interface RunnerModel {
  readonly device: Device;
  readonly weights: DecoderWeights;
  readonly config: DecoderConfig;
  readonly cache: KvCache;
  /** How products are computed. */
  readonly precision: Precision;
  /** Most tokens of a sequence. */
  readonly contextLength: number;
  /** Most sequences of a step. */
  readonly maxSequences: number;
}

/** How the logits of a program become its output. */
type Sampler =
  | { readonly kind: "logits" }
  | { readonly kind: "greedy"; readonly logprobs: boolean }
  | { readonly kind: "sample"; readonly logprobs: boolean; readonly adjustments: number };

/** A forward pass with its programs. The blocks of the sequences are the caller's to take and free. */
export class Runner {
  readonly #model: RunnerModel;
  readonly #programs = new Map<string, Program>();

  /** A runner that has compiled nothing yet. */
  constructor(model: RunnerModel) {
    this.#model = model;
  }

  /** Most tokens of a step. */
  get maxTokens(): number {
    return TOKEN_BUCKETS.at(-1)!;
  }

  /** Most tokens of a step whose logits are all wanted, by the size of a piece of them. */
  get maxLogitsTokens(): number {
    const { device, config } = this.#model;
    const rows = Math.min(device.caps.maxBinding, LOGITS_BYTES) / (4 * config.vocabSize);
    return TOKEN_BUCKETS.findLast((bucket) => bucket <= rows) ?? 1;
  }

  /**
   * Computes the scheduled tokens, and draws the next token of each sequence whose last one is among them.
   *
   * Counts the tokens as computed, and appends nothing: what is drawn is the caller's to take or leave.
   *
   * @returns for each scheduled sequence what was drawn; undefined where tokens are still pending.
   */
  async run({ scheduled, logprobs = false }: Step): Promise<(Sampled | undefined)[]> {
    const drawing = scheduled.filter(reachesEnd);
    const rows = encodeSamplingRows(drawing.map(({ sequence }) => sequence.samplingRow));
    const sampler = samplerOf(rows, logprobs);
    const values = await this.#submit(scheduled, sampler, rows);
    const width = logprobs ? 2 : 1;
    const drawn = drawing.map((_, i): Sampled => {
      const token = Math.round(values[i * width]!);
      return logprobs ? { token, logprob: values[i * width + 1]! } : { token };
    });
    const ends = new Map(drawing.map((item, i) => [item, drawn[i]!]));
    scheduled.forEach((item) => count(item));
    return scheduled.map((item) => ends.get(item));
  }

  /**
   * Computes the scheduled tokens and returns the logits of them all; they count as computed.
   *
   * @returns `[tokens, vocabulary]`, flat, in the order of the schedule. At most {@linkcode Runner.maxLogitsTokens} rows.
   */
  async logits(scheduled: readonly Scheduled[]): Promise<Float32Array<ArrayBuffer>> {
    const values = await this.#submit(scheduled, { kind: "logits" });
    scheduled.forEach((item) => count(item));
    return values as Float32Array<ArrayBuffer>;
  }

  /** Runs one program and reads its output, the only read-back of a step. */
  async #submit(
    scheduled: readonly Scheduled[],
    sampler: Sampler,
    rows?: EncodedSamplingRows,
  ): Promise<ArrayLike<number>> {
    const numTokens = scheduled.reduce((sum, { numTokens }) => sum + numTokens, 0);
    const limits = this.#limits(numTokens, scheduled.length, sampler);
    const program = this.#program(limits, sampler);
    const { blockSize } = this.#model.cache.options;
    const { inputs, sizes } = buildBatch(scheduled, limits, blockSize, sampler.kind === "logits" ? "all" : "last");
    program.run({ inputs: { ...inputs, ...samplingInputs(sampler, rows) }, sizes });
    // A step of decoding is mostly followed by one like it, which is encoded while the device works on this one.
    if (sampler.kind !== "logits" && sizes.rows === numTokens) program.encodeAhead(sizes);
    // A step that draws nothing is waited for all the same, so that aborting takes effect within a step: by reading what
    // a row would hold, since waiting for the queue alone costs 11 ms.
    const values = await program.read(0, { ...sizes, rows: Math.max(1, sizes.rows) });
    return sizes.rows > 0 ? values : [];
  }

  #limits(numTokens: number, numSequences: number, sampler: Sampler): BatchLimits {
    const maxTokens = TOKEN_BUCKETS.find((bucket) => bucket >= numTokens);
    if (maxTokens === undefined) {
      throw new Error(`Cannot run ${numTokens} tokens in one step: at most ${this.maxTokens}`);
    }
    const { contextLength, cache, maxSequences: most } = this.#model;
    if (numSequences > most) throw new Error(`Cannot run ${numSequences} sequences in one step: at most ${most}`);
    const maxSequences = Math.min(maxTokens, most);
    const maxBlocks = Math.ceil(contextLength / cache.options.blockSize);
    const maxLogitRows = sampler.kind === "logits" ? Math.min(maxTokens, this.maxLogitsTokens) : maxSequences;
    return { maxTokens, maxSequences, maxBlocks, maxLogitRows };
  }

  #program(limits: BatchLimits, sampler: Sampler): Program {
    const label = `${limits.maxTokens} tokens, ${describe(sampler)}`;
    let program = this.#programs.get(label);
    if (!program) {
      const { device, weights, config, cache, precision } = this.#model;
      const trace = (): Node => outputOf(forward(weights, config, batchInputs(limits), cache, precision), sampler);
      this.#programs.set(label, program = compile(device, trace, { label }));
    }
    return program;
  }

  /** The dispatches of every program compiled so far; of the greedy decode step where there is none. */
  explain(): string {
    if (this.#programs.size === 0) {
      const sampler: Sampler = { kind: "greedy", logprobs: false };
      this.#program(this.#limits(1, 1, sampler), sampler);
    }
    return [...this.#programs].map(([label, program]) => `${label}\n${program.explain()}`).join("\n\n");
  }

  /** Frees the programs. Weights and cache stay. */
  dispose(): void {
    this.#programs.forEach((program) => program.dispose());
    this.#programs.clear();
  }
}

function count({ sequence, numTokens }: Scheduled): void {
  sequence.numComputedTokens += numTokens;
}

function samplerOf({ greedy, adjustments }: EncodedSamplingRows, logprobs: boolean): Sampler {
  if (greedy) return { kind: "greedy", logprobs };
  const entries = adjustments.length / adjustmentWords;
  const bound = entries === 0 ? 0 : ADJUSTMENTS * 4 ** Math.max(0, Math.ceil(Math.log2(entries / ADJUSTMENTS) / 2));
  return { kind: "sample", logprobs, adjustments: bound };
}

function describe(sampler: Sampler): string {
  if (sampler.kind === "logits") return "logits";
  const adjusted = sampler.kind === "sample" && sampler.adjustments > 0 ? `, ${sampler.adjustments} adjustments` : "";
  return sampler.kind + adjusted + (sampler.logprobs ? ", log-probabilities" : "");
}

/** What a program gives: logits, tokens `[rows]`, or tokens with log-probabilities `[rows, 2]` f32. */
function outputOf(logits: Node, sampler: Sampler): Node {
  if (sampler.kind === "logits") return logits;
  if (sampler.kind === "greedy" && !sampler.logprobs) return argmax(logits);
  const { token, logprob } = sampler.kind === "greedy" ? greedy(logits) : drawn(logits, sampler.adjustments);
  if (!sampler.logprobs) return token;
  // Side by side, so that one read fetches both. An id is below 2^24, so f32 holds it exactly.
  const column = (node: Node): Node => reshape(node, [...node.shape, 1]);
  return map(
    "add",
    pad(column(cast(token, "f32")), [0, 0], [0, 1], 0),
    pad(column(logprob), [0, 1], [0, 0], 0),
  );
}

function drawn(logits: Node, adjustments: number): { token: Node; logprob: Node } {
  const rows = input("samplingRows", "u32", [logits.shape[0]!, rowWords]);
  return sample(
    logits,
    rows,
    adjustments > 0 ? input("adjustments", "i32", [adjustments, adjustmentWords]) : undefined,
  );
}

function samplingInputs(sampler: Sampler, rows: EncodedSamplingRows | undefined): Record<string, ArrayLike<number>> {
  if (sampler.kind !== "sample" || !rows) return {};
  return { samplingRows: rows.rows, ...(sampler.adjustments > 0 && { adjustments: rows.adjustments }) };
}
