/**
 * From "compute so many tokens of these sequences" to the values of the one batch form.
 *
 * @module
 */
import type { BatchLimits, BatchValues } from "../model/batch.ts";
import type { Scheduled } from "./scheduled_step.ts";
import type { Sequence } from "./sequence.ts";
import type { TokenSlots } from "./token_slots.ts";

/** Which rows need logits, and where what is drawn from them stays. */
export interface BatchRows {
  /** Of each sequence that draws the last token, or all tokens of all. */
  readonly rows: "drawing" | "all";
  /** Slot of the first row's token; those of the others follow. */
  readonly firstSlot?: number;
  /** Has the slots of tokens in flight. */
  readonly slots?: Pick<TokenSlots, "slotOf">;
}

/** Makes the values of steps within limits. Its arrays are used again: values hold until the next step is built. */
export class BatchBuilder {
  readonly #limits: BatchLimits;
  readonly #blockSize: number;
  readonly #tokens: Int32Array;
  readonly #positions: Int32Array;
  readonly #slotMapping: Int32Array;
  readonly #queryStart: Int32Array;
  readonly #contextLens: Int32Array;
  readonly #blockTables: Int32Array;
  readonly #logitRows: Int32Array;
  readonly #slots: Int32Array;

  /** @param blockSize Tokens of a block. */
  constructor(limits: BatchLimits, blockSize: number) {
    const { maxTokens, maxSequences, maxBlocks, maxLogitRows } = limits;
    this.#limits = limits;
    this.#blockSize = blockSize;
    this.#tokens = new Int32Array(maxTokens);
    this.#positions = new Int32Array(maxTokens);
    this.#slotMapping = new Int32Array(maxTokens);
    this.#queryStart = new Int32Array(maxSequences + 1);
    this.#contextLens = new Int32Array(maxSequences);
    this.#blockTables = new Int32Array(maxSequences * maxBlocks);
    this.#logitRows = new Int32Array(maxLogitRows);
    this.#slots = new Int32Array(maxLogitRows);
  }

  /**
   * The values of a step. The sequences' block tables have to cover the tokens already.
   *
   * @throws {Error} where the step exceeds the limits, or a table is too short.
   */
  build(scheduled: readonly Scheduled[], options: BatchRows): BatchValues {
    const limits = this.#limits, all = options.rows === "all";
    const tokens = scheduled.reduce((sum, { numTokens }) => sum + numTokens, 0);
    const rows = all ? tokens : scheduled.reduce((sum, item) => sum + (item.draws ? 1 : 0), 0);
    const sizes = { tokens, sequences: scheduled.length, rows };
    checkSizes(sizes, limits);
    let token = 0, logitRow = 0;
    this.#queryStart.fill(tokens);
    scheduled.forEach((item, s) => {
      checkItem(item, limits, this.#blockSize);
      this.#queryStart[s] = token;
      this.#contextLens[s] = item.start + item.numTokens;
      this.#blockTables.set(item.sequence.blockTable, s * limits.maxBlocks);
      this.#place(item, token, options);
      token += item.numTokens;
      if (all) { for (; logitRow < token; logitRow++) this.#logitRows[logitRow] = logitRow; }
      else if (item.draws) this.#logitRows[logitRow++] = token - 1;
    });
    const { firstSlot } = options;
    // A program for one row computes it even where a step draws nothing: what it draws then goes nowhere.
    this.#slots.fill(-1);
    if (firstSlot !== undefined) { for (let row = 0; row < rows; row++) this.#slots[row] = firstSlot + row; }
    const inputs = {
      tokens: this.#tokens.subarray(0, tokens),
      positions: this.#positions.subarray(0, tokens),
      slotMapping: this.#slotMapping.subarray(0, tokens),
      queryStart: this.#queryStart,
      contextLens: this.#contextLens.subarray(0, scheduled.length),
      blockTables: this.#blockTables.subarray(0, scheduled.length * limits.maxBlocks),
      ...(!limits.decode && { logitRows: this.#logitRows.subarray(0, rows) }),
      ...(firstSlot !== undefined && { slots: this.#slots }),
    };
    return { inputs, sizes };
  }

  /** Ids, positions and places in the pool, from row `row` on. */
  #place({ sequence, start, numTokens }: Scheduled, row: number, { slots }: BatchRows): void {
    const { tokens, blockTable } = sequence, blockSize = this.#blockSize;
    for (let position = start; position < start + numTokens; position++, row++) {
      this.#tokens[row] = tokens[position] ?? inFlight(sequence, position, slots);
      this.#positions[row] = position;
      this.#slotMapping[row] = blockTable[Math.floor(position / blockSize)]! * blockSize + position % blockSize;
    }
  }
}

/** What stands for a token that has been drawn and not been read. */
function inFlight(sequence: Sequence, position: number, slots: BatchRows["slots"]): number {
  const slot = slots?.slotOf(sequence, position);
  if (slot === undefined) throw new Error(`Cannot compute token ${position}: ${sequence.tokens.length} are known`);
  return -1 - slot;
}

function checkItem({ sequence, start, numTokens }: Scheduled, { maxBlocks }: BatchLimits, blockSize: number): void {
  const end = start + numTokens, held = sequence.blockTable.length;
  if (!(numTokens >= 1 && start >= 0 && end <= sequence.length)) {
    throw new RangeError(`Cannot compute tokens ${start} to ${end} of a sequence: it has ${sequence.length}`);
  }
  if (held * blockSize < end) {
    throw new Error(`Cannot compute up to token ${end}: the sequence holds ${held} blocks of ${blockSize} tokens`);
  }
  if (held > maxBlocks) throw new Error(`Cannot compute a sequence of ${held} blocks: a table takes ${maxBlocks}`);
}

function checkSizes({ tokens, sequences, rows }: BatchValues["sizes"], limits: BatchLimits): void {
  const check = (what: string, count: number, most: number): void => {
    if (count > most) throw new Error(`Cannot run ${count} ${what} in one step: the program takes ${most}`);
  };
  check("tokens", tokens, limits.maxTokens);
  check("sequences", sequences, limits.maxSequences);
  check("rows of logits", rows, limits.maxLogitRows);
}
