/**
 * One sequence over the paged cache: the simplest user of a decoder, for suites that hold its logits against recorded ones.
 * The blocks of the sequence lie in the pool in a shuffled order, so that nothing passes by reading it straight through.
 */
import { batchInputs, type BatchValues } from "../../model/batch.ts";
import { openCheckpoint } from "../../model/checkpoint.ts";
import { type DecoderConfig, readConfig } from "../../model/config.ts";
import { forward } from "../../model/decoder.ts";
import { type DecoderWeights, loadDecoder } from "../../model/decoder_weights.ts";
import { KvCache } from "../../model/kv_cache.ts";
import type { Source } from "../../model/source.ts";
import type { Device } from "../../tensor/device.ts";
import { compile, type Program } from "../../tensor/program.ts";

const BLOCK_SIZE = 16;

/** All blocks, in the order of the golden ratio's multiples modulo 1: neighbours lie far apart. */
function shuffledBlocks(count: number): Int32Array<ArrayBuffer> {
  const key = (block: number): number => (block + 1) * 0.6180339887 % 1;
  return Int32Array.from({ length: count }, (_, block) => block).sort((a, b) => key(a) - key(b));
}

/** A model with room for one sequence. */
export class SequenceRunner {
  readonly #blockTable: Int32Array<ArrayBuffer>;
  readonly #cache: KvCache;
  readonly #prefill: Program;
  readonly #decode: Program;
  #length = 0;

  private constructor(
    device: Device,
    /** The model's shape. */
    readonly config: DecoderConfig,
    readonly weights: DecoderWeights,
    maxPrompt: number,
    numBlocks: number,
  ) {
    this.#blockTable = shuffledBlocks(numBlocks);
    this.#cache = new KvCache(device, config, { numBlocks, blockSize: BLOCK_SIZE, dtype: "f32" });
    const program = (most: number): Program =>
      compile(device, () => {
        const limits = { maxTokens: most, maxSequences: 1, maxBlocks: numBlocks, maxLogitRows: most };
        return forward(weights, config, batchInputs(limits), this.#cache);
      });
    this.#prefill = program(maxPrompt);
    this.#decode = program(1);
  }

  /**
   * Loads a model.
   *
   * @param maxPrompt The most tokens of a prompt.
   * @param maxContext The most positions, those of the prompt among them.
   */
  static async open(device: Device, source: Source, maxPrompt: number, maxContext: number): Promise<SequenceRunner> {
    const config = await readConfig(source);
    const weights = await loadDecoder(device, await openCheckpoint(source), config, { positions: maxContext });
    return new SequenceRunner(device, config, weights, maxPrompt, Math.ceil(maxContext / BLOCK_SIZE));
  }

  /** Begins the sequence anew with a prompt. Returns logits `[positions, vocabulary]` at the positions asked for. */
  prompt(ids: readonly number[], positions: readonly number[]): Promise<Float32Array> {
    this.#length = 0;
    return this.#step(this.#prefill, ids, positions);
  }

  /** Appends a token. Returns the logits `[vocabulary]` of the one after it. */
  next(id: number): Promise<Float32Array> {
    return this.#step(this.#decode, [id], [0]);
  }

  async #step(program: Program, ids: readonly number[], rows: readonly number[]): Promise<Float32Array> {
    const start = this.#length, end = this.#length += ids.length;
    const positions = Int32Array.from(ids, (_, i) => start + i);
    const slot = (position: number): number =>
      this.#blockTable[Math.floor(position / BLOCK_SIZE)]! * BLOCK_SIZE + position % BLOCK_SIZE;
    const inputs: BatchValues["inputs"] = {
      tokens: Int32Array.from(ids),
      positions,
      slotMapping: positions.map(slot),
      queryStart: Int32Array.of(0, ids.length),
      contextLens: Int32Array.of(end),
      blockTables: this.#blockTable,
      logitRows: Int32Array.from(rows),
    };
    const sizes = { tokens: ids.length, sequences: 1, rows: rows.length };
    program.run({ inputs, sizes });
    return await program.read(0, sizes) as Float32Array;
  }

  /** Frees the model, its cache and its programs. */
  [Symbol.dispose](): void {
    this.#prefill.dispose();
    this.#decode.dispose();
    this.#cache.release();
    this.weights.release();
  }
}
