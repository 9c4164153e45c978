/**
 * What a device does with the steps of a scheduler, without one: a pool of keys and values that records the position and token
 * of each row, and a "model" whose next token is a hash of all tokens that it reads there. Each step checks what a real device
 * could not: that every position holds the right token, that no step reads what another sequence writes at the same time, and
 * that no block is written anew before the last step that reads it has retired.
 */
import type { Scheduled, ScheduledStep } from "../serving/scheduled_step.ts";
import type { Sequence } from "../serving/sequence.ts";
import { TokenSlots } from "../serving/token_slots.ts";

/** Extends the hash of the tokens before a token. */
function extend(hash: number, token: number): number {
  hash = Math.imul(hash ^ token + 0x9e37, 0x85ebca6b);
  return hash ^ hash >>> 15;
}

/** The next token after those of a hash. */
function draw(hash: number, seed: number, index: number, vocabSize: number): number {
  let mixed = Math.imul(hash ^ Math.imul(seed + 1, 0x27d4eb2f) ^ Math.imul(index, 0x165667b1), 0xc2b2ae35);
  mixed = Math.imul(mixed ^ mixed >>> 13, 0x2c1b3c6d);
  return (mixed >>> 8) % vocabSize;
}

/** What the model answers alone: up to `maxLength` tokens with the prompt, or to the first `stop`, which is part of it. */
export function answerAlone(
  prompt: readonly number[],
  { seed, maxLength, stop, vocabSize }: { seed: number; maxLength: number; stop: number; vocabSize: number },
): number[] {
  const tokens = [...prompt];
  let hash = prompt.reduce(extend, 0);
  while (tokens.length < maxLength) {
    const token = draw(hash, seed, tokens.length, vocabSize);
    tokens.push(token);
    if (token === stop) break;
    hash = extend(hash, token);
  }
  return tokens;
}

/** Sizes of a simulated device. */
export interface SimulatedDeviceOptions {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly maxNumSeqs: number;
  readonly vocabSize: number;
  /** Most steps that are under way at a time. */
  readonly maxSteps: number;
}

/** A device that runs steps in the order in which they are submitted. */
export class SimulatedDevice {
  readonly #options: SimulatedDeviceOptions;
  /** Of each row of the pool: token, position, and the step that wrote it. */
  readonly #tokens: Int32Array;
  readonly #positions: Int32Array;
  readonly #writtenIn: Float64Array;
  /** Of each block: the last step that read it, and for whom. */
  readonly #readIn: Float64Array;
  readonly #reader: (Sequence | undefined)[];
  /** The tokens that steps drew, and where they are. */
  readonly #drawn: Int32Array;
  readonly #slots: TokenSlots;
  #submitted = 0;
  #retired = 0;

  constructor(options: SimulatedDeviceOptions) {
    const rows = options.numBlocks * options.blockSize;
    this.#options = options;
    this.#tokens = new Int32Array(rows).fill(-1);
    this.#positions = new Int32Array(rows).fill(-1);
    this.#writtenIn = new Float64Array(rows);
    this.#readIn = new Float64Array(options.numBlocks);
    this.#reader = Array(options.numBlocks);
    this.#slots = new TokenSlots(options.maxNumSeqs, options.maxSteps);
    this.#drawn = new Int32Array(this.#slots.size).fill(-1);
  }

  /** Says that all steps up to this one have retired. */
  retire(step: number): void {
    this.#retired = step;
  }

  /** Runs a step. Returns what each of its sequences drew; -1 for those that drew nothing. */
  run(step: ScheduledStep): Int32Array {
    assert(step.number === this.#submitted + 1, `step ${step.number} follows step ${this.#submitted}`);
    this.#submitted = step.number;
    this.#copy(step);
    for (const item of step.scheduled) this.#write(item, step.number);
    let slot = step.task === "generate" ? this.#slots.take(step.scheduled) : 0;
    return Int32Array.from(step.scheduled, (item) => {
      const hash = this.#read(item, step.number);
      if (!item.draws) return -1;
      const { sequence, start, numTokens } = item;
      const token = draw(hash, Number(sequence.sampling.seed ?? 0), start + numTokens, this.#options.vocabSize);
      return this.#drawn[slot++] = token;
    });
  }

  #copy({ copies, scheduled, number }: ScheduledStep): void {
    const { blockSize } = this.#options, written = new Set(copies.map(({ to }) => to));
    assert(written.size === copies.length, "a block is copied to twice");
    for (const { from, to } of copies) {
      assert(!written.has(from), `block ${from} is copied, and copied to, before the same step`);
      const owner = scheduled.find(({ sequence }) => sequence.blockTable.includes(to));
      assert(owner !== undefined, `block ${to} is copied to, and no sequence of the step holds it`);
      this.#assertWritable(to, owner.sequence, number);
      this.#readIn[from] = number;
      this.#reader[from] = owner.sequence;
      for (const rows of [this.#tokens, this.#positions, this.#writtenIn]) {
        rows.copyWithin(to * blockSize, from * blockSize, (from + 1) * blockSize);
      }
    }
  }

  #write({ sequence, start, numTokens, draws }: Scheduled, step: number): void {
    const { tokens, length, task } = sequence;
    assert(numTokens >= 1, "a sequence is scheduled for no token");
    assert(start + numTokens === sequence.numComputedTokens, "what is computed is not counted as such");
    const unread = Math.max(0, start + numTokens - tokens.length);
    assert(this.#slots.slotsOf(sequence, start + numTokens).length === unread, `${unread} tokens have other slots`);
    const ends = start + numTokens + (draws ? 1 : 0) === length;
    assert(
      ends === (draws || task === "score" && start + numTokens === tokens.length),
      "it draws before the end, or not",
    );
    for (let position = start; position < start + numTokens; position++) {
      const known = position < tokens.length;
      if (!known && position !== start + numTokens - 1) fail(`token ${position} is in flight, and not the last drawn`);
      const block = this.#blockOf(sequence, position), row = this.#rowOf(block, position);
      if (this.#writtenIn[row] === step) fail(`row ${row} is written twice in step ${step}`);
      this.#assertWritable(block, sequence, step);
      this.#tokens[row] = known ? tokens[position]! : this.#drawn[this.#slots.slotOf(sequence, position)!]!;
      this.#positions[row] = position;
      this.#writtenIn[row] = step;
    }
  }

  /** Reads all positions of a sequence, as attention does. Returns the hash of their tokens. */
  #read({ sequence, start, numTokens }: Scheduled, step: number): number {
    const { tokens } = sequence;
    let hash = 0;
    for (let position = 0; position < start + numTokens; position++) {
      const block = this.#blockOf(sequence, position), row = this.#rowOf(block, position);
      const token = this.#tokens[row]!, writtenIn = this.#writtenIn[row]!;
      if (this.#positions[row] !== position) fail(`row ${row} holds position ${this.#positions[row]}, not ${position}`);
      if (position < tokens.length && token !== tokens[position]) fail(`token ${position} is not what the table says`);
      if ((writtenIn < step) !== (position < start)) {
        fail(`step ${step} reads position ${position} of step ${writtenIn}`);
      }
      hash = extend(hash, token);
      this.#readIn[block] = step;
      this.#reader[block] = sequence;
    }
    return hash;
  }

  #assertWritable(block: number, sequence: Sequence, step: number): void {
    const readIn = this.#readIn[block]!;
    if (this.#reader[block] === sequence || readIn <= this.#retired) return;
    fail(
      `step ${step} writes block ${block}, and step ${readIn}, which reads it for another sequence, has not retired`,
    );
  }

  #blockOf(sequence: Sequence, position: number): number {
    const block = sequence.blockTable[Math.floor(position / this.#options.blockSize)];
    return block ?? fail(`the table does not reach position ${position}`);
  }

  #rowOf(block: number, position: number): number {
    return block * this.#options.blockSize + position % this.#options.blockSize;
  }
}

function assert(condition: boolean, message: string): asserts condition {
  if (!condition) fail(message);
}

function fail(message: string): never {
  throw new Error(`The scheduler is wrong: ${message}`);
}
