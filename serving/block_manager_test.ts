import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { type BlockCopy, BlockManager, OutOfBlocksError } from "./block_manager.ts";
import { Sequence } from "./sequence.ts";

/** What the random test does to one of its sequences. */
type Action = {
  readonly kind: "append" | "free" | "fork" | "retire";
  readonly which: number;
  readonly amount: number;
};

const action: fc.Arbitrary<Action> = fc.record({
  kind: fc.constantFrom("append", "append", "append", "append", "free", "fork", "retire"),
  which: fc.nat(3),
  amount: fc.integer({ min: 1, max: 40 }),
});

/** A pool under steps of one sequence each, and what its rows hold: the token of the position that was written last. */
class Pool {
  readonly blocks: BlockManager;
  readonly sequences = [0, 1, 2, 3].map((i) => new Sequence([1, 2, i >> 1]));
  readonly #rows: Int32Array;
  #step = 0;

  constructor(numBlocks: number, blockSize: number) {
    this.blocks = new BlockManager(numBlocks, blockSize);
    this.#rows = new Int32Array(numBlocks * blockSize);
  }

  apply({ kind, which, amount }: Action): void {
    const sequence = this.sequences[which]!;
    if (kind === "retire") this.blocks.retire(this.#step - amount % 3);
    else if (kind === "free") this.blocks.free(sequence, this.#step);
    else if (kind === "append") this.#append(sequence, amount);
    else {
      const child = new Sequence(sequence.tokens.slice(0, amount)), place = (which + 1 + amount % 3) % 4;
      this.blocks.free(this.sequences[place]!, this.#step);
      this.sequences[place] = child;
      this.blocks.fork(sequence, child);
    }
  }

  /** Every sequence finds its tokens in its blocks, and the books are right. */
  prove(): void {
    this.blocks.assertConsistent(this.sequences);
    for (const sequence of this.sequences) {
      const { tokens, numComputedTokens } = sequence;
      assertEquals(sequence.blockTable.length, this.blocks.blocksFor(numComputedTokens));
      const held = Array.from(
        { length: numComputedTokens },
        (_, position) => this.#rows[this.#row(sequence, position)],
      );
      assertEquals(held, tokens.slice(0, numComputedTokens));
    }
  }

  #append(sequence: Sequence, amount: number): void {
    const step = ++this.#step, copies: BlockCopy[] = [], { blocks } = this, { blockTable } = sequence;
    if (blockTable.length === 0) blocks.claim(sequence, blocks.match(sequence, step));
    while (sequence.numPendingTokens < amount) sequence.append(amount % 3);
    if (amount > blocks.room(sequence)) {
      const before = [[...blockTable], blocks.numFreeBlocks];
      assertThrows(() => blocks.append(sequence, amount, step, copies), OutOfBlocksError);
      assertEquals([[...blockTable], blocks.numFreeBlocks], before);
      return;
    }
    blocks.append(sequence, amount, step, copies);
    const size = blocks.blockSize;
    for (const { from, to } of copies) this.#rows.copyWithin(to * size, from * size, (from + 1) * size);
    for (let i = 0; i < amount; i++) {
      const position = sequence.numComputedTokens++;
      this.#rows[this.#row(sequence, position)] = sequence.tokens[position]!;
    }
    blocks.cacheFullBlocks(sequence, step);
  }

  #row({ blockTable }: Sequence, position: number): number {
    const size = this.blocks.blockSize;
    return blockTable[Math.floor(position / size)]! * size + position % size;
  }
}

Deno.test("after any appends, forks and frees the books are right and every block holds what its tables say", () => {
  const actions = fc.array(action, { maxLength: 60 });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), fc.constantFrom(1, 2, 4, 16), actions, (count, size, actions) => {
      const pool = new Pool(count, size);
      for (const each of actions) {
        pool.apply(each);
        pool.prove();
      }
      pool.sequences.forEach((sequence) => pool.blocks.free(sequence, 1000));
      pool.blocks.retire(1000);
      assertEquals([pool.blocks.numFreeBlocks, pool.blocks.isRetiring], [count, false]);
      pool.blocks.assertConsistent([]);
    }),
    { seed: 3, numRuns: 500 },
  );
});

/** Computes a sequence of these tokens and lets go of it. Returns how many of them were in the cache. */
function compute(blocks: BlockManager, tokens: readonly number[]): number {
  const sequence = new Sequence(tokens);
  blocks.claim(sequence, blocks.match(sequence, 1));
  const hits = sequence.numComputedTokens;
  blocks.append(sequence, tokens.length - hits);
  sequence.numComputedTokens = tokens.length;
  blocks.free(sequence);
  return hits;
}

Deno.test("cached prefixes are kept until their blocks are needed, and go from their ends", () => {
  const blocks = new BlockManager(6, 2);
  const first = [1, 2, 3, 4, 5, 6, 0], second = [11, 12, 13, 14, 0];
  assertEquals([compute(blocks, first), compute(blocks, second)], [0, 0]); // 4 blocks, then 3: one that holds no full block is taken first
  assertEquals(blocks.numFreeBlocks, 6);
  assertEquals(compute(blocks, second), 4);
  assertEquals(compute(blocks, [21, 22, 23, 24, 25]), 0); // takes the one without contents, and the two ends of `first`
  assertEquals(compute(blocks, first), 2);
  blocks.assertConsistent([]);
});

Deno.test("the last token is never found: its logits are wanted", () => {
  const blocks = new BlockManager(8, 2);
  compute(blocks, [1, 2, 3, 4]);
  assertEquals([[1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3], [1, 2]].map((tokens) => compute(blocks, tokens)), [
    2,
    4,
    2,
    0,
  ]);
  const scored = new Sequence([1, 2, 3, 4, 5], {}, { task: "score" });
  assertEquals(blocks.match(scored, 9).blocks, []);
  const off = new BlockManager(8, 2, { prefixCache: false });
  assertEquals([compute(off, [1, 2, 3]), compute(off, [1, 2, 3])], [0, 0]);
});

Deno.test("what a step in the making writes is not for others in that step", () => {
  const blocks = new BlockManager(8, 2), one = new Sequence([1, 2, 3]), other = new Sequence([1, 2, 4]);
  blocks.append(one, 3, 5);
  one.numComputedTokens = 3;
  blocks.cacheFullBlocks(one, 5);
  assertEquals([5, 6].map((step) => blocks.match(other, step).fresh), [true, false]);
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

Deno.test("tokens in flight become known in their order", () => {
  const sequence = new Sequence([1, 2], { presencePenalty: 1 });
  sequence.numInFlight = 2;
  assertEquals([sequence.length, sequence.numPendingTokens], [4, 4]);
  sequence.append(8);
  assertEquals([sequence.length, sequence.numInFlight, sequence.tokens], [4, 1, [1, 2, 8]]);
});
