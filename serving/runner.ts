/**
 * Runs steps on the device. A program is captured for each bucket of tokens, of sequences and way of sampling when it is first
 * needed, and replayed from then on: nothing recompiles as sequences grow, come and go, unless memory is so short that programs have to
 * make room for one another.
 *
 * Drawn tokens stay on the device in slots, a slot a draw, in a ring: a step names the slots of tokens that have not been read
 * yet, so steps can be submitted one after another, and one read fetches what all of them drew.
 *
 * @module
 */
import { keepTokens, tokenIds } from "../kernels/token_slots.ts";
import { batchInputs, type BatchLimits } from "../model/batch.ts";
import type { DecoderConfig } from "../model/config.ts";
import { forward, type Precision } from "../model/decoder.ts";
import type { DecoderWeights } from "../model/decoder_weights.ts";
import type { KvCache } from "../model/kv_cache.ts";
import type { Device } from "../tensor/device.ts";
import { buffer, type Node } from "../tensor/node.ts";
import type { Program, RunValues } from "../tensor/program.ts";
import type { ReadOptions } from "../tensor/readback.ts";
import type { Storage } from "../tensor/storage.ts";
import { Submission } from "../tensor/submission.ts";
import { BatchBuilder } from "./batch.ts";
import { BlockCopier } from "./block_copier.ts";
import { blockBuckets, sequenceBuckets, tokenBuckets } from "./buckets.ts";
import { type Captured, CapturedPrograms } from "./captured_programs.ts";
import {
  describeSampler,
  detailColumns,
  type Details,
  readDetails,
  type Sampled,
  type Sampler,
  samplerNodes,
  samplerOf,
  SamplerRows,
  type WayOfDrawing,
} from "./sampler.ts";
import { scoredTokens } from "./memory.ts";
import type { EncodedStep, StepResult } from "./encoded_step.ts";
import { decodes, type ScheduledStep } from "./scheduled_step.ts";
import { TokenSlots } from "./token_slots.ts";

export type { Sampled } from "./sampler.ts";

/** Most bytes of one piece of logits: a piece is held on the device and once more on the host. */
const LOGITS_BYTES = 64 * 2 ** 20;

/**
 * Most tokens of a step whose logits are all wanted, on a device that computes on the CPU: whoever stops waits for the end of a step, and
 * more tokens gain nothing there. llvmpipe takes 5 to 8 ms for a token of the story model, by 64 as by 512.
 */
const CPU_LOGITS_TOKENS = 64;

/** Of each step that was read what it drew, and its logits. */
interface Read {
  readonly sampled: Sampled[][];
  readonly logits: (Float32Array<ArrayBuffer> | undefined)[];
}

/** Reads some of that. */
type ReadPart = (read: Read, options: ReadOptions) => Promise<void>;

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
  readonly maxNumSeqs: number;
  /** Most tokens of a step. */
  readonly maxNumBatchedTokens: number;
  /** Most steps that are submitted before the first of them is read. */
  readonly maxSteps: number;
}

/** Most sequences of a step, and the widest model, whose dispatches are so short that joining them is faster. */
const MOST_JOINED = { sequences: 8, hiddenSize: 2048 } as const;

/** Steps after which a program's dispatches are joined: that stops the engine for a second, which a few saved tokens are not worth. */
const JOINED_AFTER = 2048;

/** Tokens whose logits may be computed in one step, by the size of a piece of them, the time that one takes, and what memory is left. */
function mostLogitsTokens({ device: { caps, memoryLimit, allocated }, config }: RunnerModel): number {
  const rows = Math.min(caps.maxBinding, LOGITS_BYTES) / (4 * config.vocabSize);
  return Math.min(rows, caps.cpu ? CPU_LOGITS_TOKENS : Infinity, scoredTokens(memoryLimit - allocated, config));
}

/** A forward pass with its programs. The blocks of the sequences are the caller's to take and free. */
export class Runner {
  readonly #model: RunnerModel;
  readonly #programs: CapturedPrograms;
  readonly #rows = new SamplerRows();
  readonly #tokenBuckets: readonly number[];
  /** Most tokens of a step whose logits are all wanted, by the size of a piece of them and the time that one takes. */
  readonly maxLogitsTokens: number;
  readonly #slots: TokenSlots;
  /** The tokens in the slots. */
  readonly #drawn: Storage;
  readonly #copier: BlockCopier;
  /** Steps that are encoded and not submitted. */
  readonly #submission: Submission;
  /** Encodes what a step like the last one runs, where such a one is likely to follow. */
  #encodeAlike: (() => void) | undefined;

  /** A runner that has compiled nothing yet. */
  constructor(model: RunnerModel) {
    this.#model = model;
    this.#tokenBuckets = tokenBuckets(model.maxNumBatchedTokens, model.device.caps.cpu);
    this.#slots = new TokenSlots(model.maxNumSeqs, model.maxSteps);
    this.#drawn = model.device.storage("i32", [this.#slots.size], "drawn tokens");
    this.#copier = new BlockCopier(model.device, model.cache);
    this.#submission = new Submission(model.device);
    this.#programs = new CapturedPrograms(model.device);
    this.maxLogitsTokens = this.#tokenBuckets.findLast((bucket) => bucket <= mostLogitsTokens(model)) ?? 1;
  }

  /** Most tokens of a step. */
  get maxTokens(): number {
    return this.#model.maxNumBatchedTokens;
  }

  /**
   * Encodes a step behind those before it, and uploads its values. It computes the scheduled tokens, and draws the next token of each
   * sequence that draws, or gives the logits of all tokens where the step scores. Every token in flight has to be drawn by a step
   * that was encoded before.
   *
   * @param details What is reported of each token. More than its id can be read of the step submitted last alone.
   * @param begin Whether the device has nothing to do meanwhile: what is encoded first of a long step is submitted at once then.
   */
  encode(step: ScheduledStep, details: Details = "none", begin = false): EncodedStep {
    return step.task === "score" ? this.#encodeScore(step, begin) : this.#encodeDraws(step, details, begin);
  }

  #encodeDraws(step: ScheduledStep, details: Details, begin: boolean): EncodedStep {
    const { scheduled } = step, { sampler, inputs: rowInputs } = this.#rows.encode(scheduled, details, this.#slots);
    const limits = this.#limits(step), captured = this.#capture(limits, sampler), { program, builder } = captured;
    const drawing = scheduled.filter(({ draws }) => draws).map(({ sequence }) => sequence);
    this.#programs.hold(step, captured);
    const firstSlot = this.#slots.take(scheduled);
    const { inputs, sizes } = builder.build(scheduled, { rows: "drawing", firstSlot, slots: this.#slots });
    this.#copier.copy(step.copies, this.#submission);
    program.run({ inputs: { ...inputs, ...rowInputs }, sizes }, this.#submission, begin);
    // Whatever fails here fails the next step too.
    if (captured.short && ++captured.steps === JOINED_AFTER) program.join().catch(() => {});
    // A step of decoding, and a whole chunk of a prompt, are mostly followed by one like it.
    const alike = sizes.rows === sizes.tokens || sizes.tokens === limits.maxTokens;
    this.#encodeAlike = alike ? () => program.encodeAhead(sizes) : undefined;
    const { vocabSize } = this.#model.config;
    const readsDetails = details !== "none" && drawing.length > 0;
    return {
      step,
      drawing,
      firstSlot,
      readDetails: readsDetails
        ? async (options) => readDetails(await program.read(1, sizes, options), details, vocabSize)
        : undefined,
      readLogits: undefined,
    };
  }

  #encodeScore(step: ScheduledStep, begin: boolean): EncodedStep {
    const limits = this.#limits(step), maxLogitRows = Math.min(limits.maxTokens, this.maxLogitsTokens);
    const captured = this.#capture({ ...limits, maxLogitRows }, "logits"), { program, builder } = captured;
    this.#programs.hold(step, captured);
    const { inputs, sizes } = builder.build(step.scheduled, { rows: "all" });
    this.#copier.copy(step.copies, this.#submission);
    program.run({ inputs, sizes }, this.#submission, begin);
    this.#encodeAlike = undefined;
    const readLogits = async (options?: ReadOptions): Promise<Float32Array<ArrayBuffer>> =>
      await program.read(0, sizes, options) as Float32Array<ArrayBuffer>;
    return { step, drawing: [], firstSlot: 0, readDetails: undefined, readLogits };
  }

  /** Submits the steps that have been encoded and not been submitted, all at once. Returns at once. */
  submit(): void {
    this.#submission.flush();
  }

  /** Drops the steps that have been encoded and not been submitted; nobody reads the others any more. */
  discard(): void {
    this.#submission.discard();
    this.#programs.letGoOfAll();
  }

  /**
   * Submits what has been encoded, waits for steps and reads what they drew.
   *
   * @param steps Encoded one after another, and all that was.
   * @param meanwhile Called while the device works: steps that it encodes are submitted as soon as the others have been read. Returns
   * whether it encodes any; where not, what a step like the last one runs is encoded.
   */
  async read(steps: readonly EncodedStep[], meanwhile: () => boolean = () => false): Promise<StepResult[]> {
    const read: Read = { sampled: [], logits: [] }, parts = this.#partsOf(steps);
    for (const [i, part] of parts.entries()) {
      await part(read, {
        ...(i === 0 && { behind: this.#submission, meanwhile: () => void (meanwhile() || this.#encodeAlike?.()) }),
        ...(i === parts.length - 1 && { arrived: () => this.submit() }),
      });
    }
    return steps.map(({ step, drawing }, i) => {
      this.#programs.letGo(step);
      const drawn = drawing.map((sequence, row) => ({ sequence, sampled: read.sampled[i]![row]! }));
      return { step, drawn, logits: read.logits[i] };
    });
  }

  /** What reads steps, piece by piece. */
  #partsOf(steps: readonly EncodedStep[]): ReadPart[] {
    const parts: ReadPart[] = [], last = steps.length - 1;
    let next = 0;
    // Only the last step can have details, and who reads them knows its tokens.
    while (next < (last === 0 && steps[0]!.readDetails ? 0 : steps.length)) {
      const first = next, start = steps[first]!.firstSlot;
      let end = start;
      // Slots follow each other but at the ring's end.
      while (next < steps.length && steps[next]!.firstSlot === end) end += steps[next++]!.drawing.length;
      const some = steps.slice(first, next);
      parts.push(async ({ sampled }, options) => {
        // A step that draws nothing is waited for all the same, so that aborting takes effect within a step: by reading a slot,
        // since waiting for the queue alone costs 11 ms.
        const from = Math.min(start, this.#slots.size - 1);
        const values = await this.#readSlots(from, Math.max(1, end - start), options);
        for (const { drawing, firstSlot } of some) {
          sampled.push(drawing.map((_, row) => ({ token: values[firstSlot - start + row]! })));
        }
      });
    }
    for (const [i, { readDetails, readLogits }] of steps.entries()) {
      if (readDetails) parts.push(async ({ sampled }, options) => void (sampled[i] = await readDetails(options)));
      if (readLogits) parts.push(async ({ logits }, options) => void (logits[i] = await readLogits(options)));
    }
    return parts;
  }

  /**
   * Compiles every program that steps of some ways of drawing can need, and joins the dispatches of short ones, so that no later step
   * waits. Log-probabilities have programs of their own, and so do scores: these are not among them.
   *
   * @param ways Those without penalties and biases unless given.
   * @param told Told how many programs there are, and how many of them are compiled.
   */
  async warmUp(
    ways: readonly WayOfDrawing[] = ["greedy", "sample"],
    told: (done: number, all: number) => void = () => {},
  ): Promise<void> {
    // They share memory: the largest come first, lest it grows.
    const wanted = this.#allLimits().toReversed().flatMap((limits) =>
      ways.map((way) => ({ limits, sampler: samplerOf(way) }))
    );
    for (const [done, { limits, sampler }] of wanted.entries()) {
      told(done, wanted.length);
      this.#capture(limits, sampler);
    }
    this.#copier.compile();
    await this.join();
    told(wanted.length, wanted.length);
  }

  /** The bounds of all programs that draw. */
  #allLimits(): BatchLimits[] {
    const { maxNumSeqs, device } = this.#model;
    const mostDecoded = this.#tokenBuckets.find((bucket) => bucket >= maxNumSeqs) ?? this.maxTokens;
    return this.#tokenBuckets.flatMap((maxTokens) => {
      const sequences = sequenceBuckets(maxTokens, maxNumSeqs, device.caps.cpu);
      return [
        ...sequences.map((maxSequences) => this.#limitsOf(maxTokens, maxSequences)),
        ...(maxTokens <= mostDecoded ? this.#decodeLimits(maxTokens) : []),
      ];
    });
  }

  /** Joins the dispatches of short programs compiled so far, where that makes them faster. Takes a second or two. */
  async join(): Promise<void> {
    for (const [, captured] of this.#programs) {
      if (captured.short && captured.steps < JOINED_AFTER) await captured.program.join();
      captured.steps = Math.max(captured.steps, JOINED_AFTER);
    }
  }

  /**
   * The program that a step of drawing runs, and the values that it takes, until another step is prepared: benches time it on its
   * own.
   */
  programOf(step: ScheduledStep): { readonly program: Program; readonly values: RunValues } {
    const { sampler, inputs: rowInputs } = this.#rows.encode(step.scheduled, "none", this.#slots);
    const { program, builder } = this.#capture(this.#limits(step), sampler);
    const { inputs, sizes } = builder.build(step.scheduled, { rows: "drawing", firstSlot: 0, slots: this.#slots });
    return { program, values: { inputs: { ...inputs, ...rowInputs }, sizes } };
  }

  /** The dispatches of every program compiled so far; of the greedy decode step where there is none. */
  explain(): string {
    if ([...this.#programs].length === 0) this.#capture(this.#decodeLimits(1)[0]!, samplerOf("greedy"));
    return [...this.#programs].map(([label, { program }]) => `${label}\n${program.explain()}`).join("\n\n");
  }

  /** Frees the programs and the slots; what was not submitted is dropped. Weights and cache stay. */
  dispose(): void {
    this.#submission.dispose();
    this.#programs.dispose();
    this.#copier.dispose();
    this.#drawn.release();
  }

  #readSlots(start: number, count: number, options: ReadOptions): ReturnType<Device["read"]> {
    const { device } = this.#model, { buffer, offset } = device.resident(this.#drawn);
    return device.read(buffer, "i32", count, offset + 4 * start, options);
  }

  #limits(step: ScheduledStep): BatchLimits {
    const { numTokens, scheduled } = step;
    const maxTokens = this.#tokenBuckets.find((bucket) => bucket >= numTokens);
    if (maxTokens === undefined) {
      throw new Error(`Cannot run ${numTokens} tokens in one step: at most ${this.maxTokens}`);
    }
    const { maxNumSeqs, device } = this.#model, numSequences = scheduled.length;
    const maxSequences = sequenceBuckets(maxTokens, maxNumSeqs, device.caps.cpu).find((bucket) =>
      bucket >= numSequences
    );
    if (maxSequences === undefined) {
      throw new Error(`Cannot run ${numSequences} sequences in one step: at most ${maxNumSeqs}`);
    }
    if (!decodes(step)) return this.#limitsOf(maxTokens, maxSequences);
    const held = Math.max(...scheduled.map(({ sequence }) => sequence.blockTable.length));
    return this.#decodeLimits(maxTokens).find(({ maxBlocks }) => maxBlocks >= held)!;
  }

  #limitsOf(maxTokens: number, maxSequences: number): BatchLimits {
    return { maxTokens, maxSequences, maxBlocks: this.#maxBlocks, maxLogitRows: maxSequences };
  }

  /** The bounds of programs that decode up to so many tokens, one a sequence, by the blocks of a sequence in ascending order. */
  #decodeLimits(maxTokens: number): BatchLimits[] {
    const { device, cache, maxNumSeqs } = this.#model, most = Math.min(maxTokens, maxNumSeqs);
    const programs = { maxTokens: most, cpu: device.caps.cpu, joined: this.#joins(most) };
    return blockBuckets(programs, this.#maxBlocks, cache.options.blockSize).map((maxBlocks) => {
      return { maxTokens: most, maxSequences: most, maxLogitRows: most, maxBlocks, decode: true };
    });
  }

  /** Whether dispatches of programs that decode so many sequences may be joined. */
  #joins(maxTokens: number): boolean {
    const { device, config, precision } = this.#model, { sequences, hiddenSize } = MOST_JOINED;
    const small = maxTokens <= sequences && config.hiddenSize <= hiddenSize;
    return small && precision === "fast" && !device.caps.cpu;
  }

  get #maxBlocks(): number {
    return Math.ceil(this.#model.contextLength / this.#model.cache.options.blockSize);
  }

  #capture(limits: BatchLimits, sampler: Sampler | "logits"): Captured {
    const what = sampler === "logits" ? sampler : describeSampler(sampler);
    const { maxTokens, maxSequences, maxBlocks, decode } = limits;
    const label = decode
      ? `a token each of ${maxSequences} sequences of ${maxBlocks} blocks, ${what}`
      : `${maxTokens} tokens of ${maxSequences} sequences, ${what}`;
    return this.#programs.get(label, () => {
      this.#encodeAlike = undefined; // its program may be freed for this one
      return {
        trace: () => this.#trace(limits, sampler),
        builder: new BatchBuilder(limits, this.#model.cache.options.blockSize),
        short: decode === true && this.#joins(maxTokens),
        readBytes: this.#readBytes(limits, sampler),
      };
    });
  }

  /** Bytes of a program's results that are read at once, besides drawn tokens. */
  #readBytes({ maxLogitRows }: BatchLimits, sampler: Sampler | "logits"): number {
    const { vocabSize } = this.#model.config;
    const columns = sampler === "logits"
      ? vocabSize
      : sampler.details === "none"
      ? 0
      : detailColumns(sampler.details, vocabSize);
    return 4 * maxLogitRows * columns;
  }

  /** What a program computes: logits, or the slots with what was drawn, and its details. */
  #trace(limits: BatchLimits, sampler: Sampler | "logits"): Node[] {
    const { weights, config, cache, precision } = this.#model, batch = batchInputs(limits);
    if (sampler === "logits") return [forward(weights, config, batch, cache, precision)];
    const slots = buffer(this.#drawn), tokens = tokenIds(batch.tokens, slots);
    const logits = forward(weights, config, { ...batch, tokens }, cache, precision);
    const { token, details } = samplerNodes(logits, sampler, slots);
    const kept = keepTokens(slots, token, batch.slots);
    return details ? [kept, details] : [kept];
  }
}
