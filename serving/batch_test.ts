import { assertEquals, assertThrows } from "@std/assert";
import { BatchBuilder } from "./batch.ts";
import type { Scheduled } from "./scheduled_step.ts";
import { Sequence } from "./sequence.ts";

const limits = { maxTokens: 8, maxSequences: 4, maxBlocks: 3, maxLogitRows: 4 };

/** Tokens of a sequence in `blocks`; it draws where they reach its end. */
function item(tokens: number[], start: number, numTokens: number, blocks: number[]): Scheduled {
  const sequence = new Sequence(tokens);
  sequence.blockTable.push(...blocks);
  return { sequence, start, numTokens, draws: start + numTokens === tokens.length };
}

const plain = (inputs: Readonly<Record<string, Int32Array>>): Record<string, number[]> =>
  Object.fromEntries(Object.entries(inputs).map(([name, values]) => [name, [...values]]));

Deno.test("a batch of prefill, a chunk of one, and decode", () => {
  const scheduled = [
    item([10, 11, 12], 0, 3, [5, 2]),
    item([20, 21, 22, 23], 1, 2, [4, 0]),
    item([30, 31, 32, 33, 34], 4, 1, [7, 6, 1]),
  ];
  const builder = new BatchBuilder(limits, 2);
  const { inputs, sizes } = builder.build(scheduled, { rows: "drawing", firstSlot: 6 });
  assertEquals(sizes, { tokens: 6, sequences: 3, rows: 2 });
  assertEquals(plain(inputs as Record<string, Int32Array>), {
    tokens: [10, 11, 12, 21, 22, 34],
    positions: [0, 1, 2, 1, 2, 4],
    slotMapping: [10, 11, 4, 9, 0, 2],
    queryStart: [0, 3, 5, 6, 6],
    contextLens: [3, 3, 5],
    blockTables: [5, 2, 0, 4, 0, 0, 7, 6, 1],
    logitRows: [2, 5],
    slots: [6, 7, -1, -1],
  });
  const all = builder.build([scheduled[1]!], { rows: "all" });
  assertEquals([[...all.inputs.logitRows!], all.inputs.slots], [[0, 1], undefined]);
});

Deno.test("a token in flight is named by its slot, and one that nobody keeps is refused", () => {
  const decode = item([1, 2, 3], 3, 1, [0, 1]);
  decode.sequence.numInFlight = 2;
  const builder = new BatchBuilder(limits, 2);
  const slotOf = (_: Sequence, position: number): number | undefined => position === 3 ? 40 : undefined;
  assertEquals([...builder.build([decode], { rows: "drawing", firstSlot: 0, slots: { slotOf } }).inputs.tokens], [-41]);
  const lost = { ...decode, start: 4 };
  lost.sequence.blockTable.push(2);
  assertThrows(() => builder.build([lost], { rows: "drawing", slots: { slotOf } }), Error, "token 4: 3 are known");
});

Deno.test("what exceeds a program or a table is refused with the numbers", () => {
  const tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9], rows = "drawing";
  const build = (scheduled: Scheduled, blockSize = 2, rows: "drawing" | "all" = "drawing"): unknown =>
    new BatchBuilder(limits, blockSize).build([scheduled], { rows });
  assertThrows(() => build(item(tokens, 0, 5, [0, 1])), Error, "holds 2 blocks of 2 tokens");
  assertThrows(() => build(item(tokens, 5, 5, [0, 1])), RangeError, "tokens 5 to 10 of a sequence: it has 9");
  assertThrows(() => build(item(tokens, 0, 9, [0]), 16, rows), Error, "9 tokens in one step: the program takes 8");
  assertThrows(() => build(item(tokens, 0, 8, [0]), 16, "all"), Error, "8 rows of logits");
});
