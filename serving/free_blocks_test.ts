import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { FreeBlocks } from "./free_blocks.ts";

Deno.test("a list of free blocks does what an array does", () => {
  const actions = fc.array(fc.tuple(fc.constantFrom("shift", "push", "unshift", "remove", "reset"), fc.nat()));
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 12 }), actions, (numBlocks, steps) => {
      const list = new FreeBlocks(numBlocks), all = Array.from({ length: numBlocks }, (_, i) => i);
      let free = [...all];
      for (const [kind, which] of steps) {
        const taken = all.filter((block) => !free.includes(block)), back = taken[which % taken.length];
        if (kind === "reset" && which % 8 === 0) {
          list.reset();
          free = [...all];
        } else if (kind === "shift" && free.length > 0) assertEquals(list.shift(), free.shift());
        else if (kind === "remove" && free.length > 0) list.remove(free.splice(which % free.length, 1)[0]!);
        else if (kind === "push" && back !== undefined) {
          list.push(back);
          free.push(back);
        } else if (kind === "unshift" && back !== undefined) {
          list.unshift(back);
          free.unshift(back);
        }
        assertEquals([[...list], list.size], [free, free.length]);
      }
    }),
    { seed: 6, numRuns: 200 },
  );
});
