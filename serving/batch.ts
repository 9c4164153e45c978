/**
 * From "compute so many tokens of these sequences" to the values of the one batch form.
 *
 * @module
 */
import type { BatchLimits, BatchValues } from "../model/batch.ts";
import type { Sequence } from "./sequence.ts";

/** A sequence and how many of its pending tokens a step computes. */
export interface Scheduled {
  readonly sequence: Sequence;
  /** At least 1, at most what is pending. */
  readonly numTokens: number;
}

/** Whether a step computes the last token of a sequence: then the next one can be drawn. */
export function reachesEnd({ sequence, numTokens }: Scheduled): boolean {
  return numTokens === sequence.numPendingTokens;
}

/**
 * The values of a step. The sequences' block tables have to cover the tokens already.
 *
 * @param blockSize Tokens of a block.
 * @param rows Which tokens need logits: of each sequence the last, where the step reaches it, or all of them.
 * @throws {Error} where the step exceeds `limits`, or a table is too short.
 */
export function buildBatch(
  scheduled: readonly Scheduled[],
  limits: BatchLimits,
  blockSize: number,
  rows: "last" | "all" = "last",
): BatchValues {
  const numTokens = scheduled.reduce((sum, { numTokens }) => sum + numTokens, 0);
  const tokens = new Int32Array(numTokens), positions = tokens.slice(), slotMapping = tokens.slice();
  const queryStart = new Int32Array(limits.maxSequences + 1).fill(numTokens);
  const contextLens = new Int32Array(scheduled.length);
  const blockTables = new Int32Array(scheduled.length * limits.maxBlocks);
  const logitRows: number[] = [];
  let row = 0;
  scheduled.forEach((item, s) => {
    const { sequence: { tokens: ids, numComputedTokens: first, blockTable }, numTokens: count } = item;
    checkItem(item, limits, blockSize);
    queryStart[s] = row;
    contextLens[s] = first + count;
    blockTables.set(blockTable, s * limits.maxBlocks);
    for (let position = first; position < first + count; position++, row++) {
      tokens[row] = ids[position]!;
      positions[row] = position;
      slotMapping[row] = blockTable[Math.floor(position / blockSize)]! * blockSize + position % blockSize;
      if (rows === "all") logitRows.push(row);
    }
    if (rows === "last" && reachesEnd(item)) logitRows.push(row - 1);
  });
  const sizes = { tokens: numTokens, sequences: scheduled.length, rows: logitRows.length };
  checkSizes(sizes, limits);
  const inputs = { tokens, positions, slotMapping, queryStart, contextLens, blockTables };
  return { inputs: { ...inputs, logitRows: Int32Array.from(logitRows) }, sizes };
}

function checkItem({ sequence, numTokens }: Scheduled, { maxBlocks }: BatchLimits, blockSize: number): void {
  if (!(numTokens >= 1 && numTokens <= sequence.numPendingTokens)) {
    throw new RangeError(`Cannot compute ${numTokens} tokens of a sequence: ${sequence.numPendingTokens} are pending`);
  }
  const end = sequence.numComputedTokens + numTokens, held = sequence.blockTable.length;
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
