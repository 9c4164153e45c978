import { assertEquals, assertThrows } from "@std/assert";
import { buildBatch } from "./batch.ts";
import { Sequence } from "./sequence.ts";

const limits = { maxTokens: 8, maxSequences: 4, maxBlocks: 3, maxLogitRows: 4 };

/** A sequence of which `computed` tokens are in `blocks`. */
function sequenceOf(tokens: number[], computed: number, blocks: number[]): Sequence {
  const sequence = new Sequence(tokens);
  sequence.numComputedTokens = computed;
  sequence.blockTable.push(...blocks);
  return sequence;
}

Deno.test("a batch of prefill, a chunk of one, and decode", () => {
  const prefill = sequenceOf([10, 11, 12], 0, [5, 2]);
  const chunk = sequenceOf([20, 21, 22, 23], 1, [4, 0]);
  const decode = sequenceOf([30, 31, 32, 33, 34], 4, [7, 6, 1]);
  const scheduled = [
    { sequence: prefill, numTokens: 3 },
    { sequence: chunk, numTokens: 2 },
    { sequence: decode, numTokens: 1 },
  ];
  const { inputs, sizes } = buildBatch(scheduled, limits, 2);
  assertEquals(sizes, { tokens: 6, sequences: 3, rows: 2 });
  assertEquals(Object.fromEntries(Object.entries(inputs).map(([name, values]) => [name, [...values]])), {
    tokens: [10, 11, 12, 21, 22, 34],
    positions: [0, 1, 2, 1, 2, 4],
    slotMapping: [10, 11, 4, 9, 0, 2],
    queryStart: [0, 3, 5, 6, 6],
    contextLens: [3, 3, 5],
    blockTables: [5, 2, 0, 4, 0, 0, 7, 6, 1],
    logitRows: [2, 5],
  });
  const all = buildBatch([scheduled[1]!], limits, 2, "all");
  assertEquals([...all.inputs.logitRows], [0, 1]);
});

Deno.test("what exceeds a program or a table is refused with the numbers", () => {
  const sequence = sequenceOf([1, 2, 3, 4, 5, 6, 7, 8, 9], 0, [0, 1]);
  assertThrows(() => buildBatch([{ sequence, numTokens: 5 }], limits, 2), Error, "holds 2 blocks of 2 tokens");
  assertThrows(() => buildBatch([{ sequence, numTokens: 10 }], limits, 2), RangeError, "9 are pending");
  const wide = sequenceOf([...Array(9).keys()], 0, [0]);
  assertThrows(
    () => buildBatch([{ sequence: wide, numTokens: 9 }], limits, 16),
    Error,
    "9 tokens in one step: the program takes 8",
  );
  assertThrows(() => buildBatch([{ sequence: wide, numTokens: 8 }], limits, 16, "all"), Error, "8 rows of logits");
});
