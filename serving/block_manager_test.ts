import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { BlockManager, OutOfBlocksError } from "./block_manager.ts";
import { Sequence } from "./sequence.ts";

/** What the random test does to one of its sequences. */
type Action = { readonly kind: "append" | "rewind" | "free"; readonly which: number; readonly amount: number };

const action: fc.Arbitrary<Action> = fc.record({
  kind: fc.constantFrom("append", "append", "append", "rewind", "free"),
  which: fc.nat(3),
  amount: fc.integer({ min: 1, max: 40 }),
});

function apply(blocks: BlockManager, sequence: Sequence, { kind, amount }: Action): void {
  if (kind === "free") return blocks.free(sequence);
  if (kind === "rewind") {
    const length = sequence.numPromptTokens + amount % (sequence.numGeneratedTokens + 1);
    return blocks.rewind(sequence, length);
  }
  while (sequence.numPendingTokens < amount) sequence.append(7);
  blocks.append(sequence, amount);
  sequence.numComputedTokens += amount;
}

Deno.test("after any appends, rewinds and frees every block is held once or free", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 24 }),
      fc.constantFrom(1, 4, 16),
      fc.array(action),
      (count, size, actions) => {
        const blocks = new BlockManager(count, size);
        const sequences = [0, 1, 2, 3].map(() => new Sequence([1, 2, 3]));
        for (const step of actions) {
          const sequence = sequences[step.which]!, before = [...sequence.blockTable], free = blocks.numFreeBlocks;
          try {
            apply(blocks, sequence, step);
          } catch (error) {
            if (!(error instanceof OutOfBlocksError)) throw error;
            assertEquals([sequence.blockTable, blocks.numFreeBlocks], [before, free]);
          }
          blocks.assertConsistent(sequences);
          for (const { blockTable, numComputedTokens } of sequences) {
            assertEquals(blockTable.length, blocks.blocksFor(numComputedTokens));
          }
        }
        sequences.forEach((sequence) => blocks.free(sequence));
        assertEquals(blocks.numFreeBlocks, count);
      },
    ),
    { seed: 3, numRuns: 300 },
  );
});

Deno.test("a pool without room says what is missing", () => {
  const blocks = new BlockManager(2, 16);
  assertThrows(() => blocks.append(new Sequence(Array(40).fill(1)), 40), OutOfBlocksError, "3 blocks of 16 tokens");
  assertEquals(blocks.numFreeBlocks, 2);
});

Deno.test("lost and doubled blocks are found", () => {
  const blocks = new BlockManager(3, 4), sequence = new Sequence([1, 2, 3, 4, 5]);
  blocks.append(sequence, 5);
  assertThrows(() => blocks.assertConsistent([]), Error, "Block 0 counts 1 references, and 0 hold it");
  assertThrows(
    () => blocks.assertConsistent([sequence, sequence]),
    Error,
    "Block 0 counts 1 references, and 2 hold it",
  );
});

Deno.test("rewinding forgets what the dropped tokens did to the penalties", () => {
  const sequence = new Sequence([1, 2], { frequencyPenalty: 1 });
  [2, 3, 3].forEach((token) => sequence.append(token));
  sequence.truncate(4);
  assertEquals(sequence.samplingRow.history, new Map([[1, 0], [2, 1], [3, 1]]));
  sequence.truncate(2);
  assertEquals(sequence.samplingRow.history, new Map([[1, 0], [2, 0]]));
});
