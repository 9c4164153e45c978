import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { type Lifetime, planMemory, sizeClass } from "./memory.ts";

Deno.test("size classes hold their bytes and waste a quarter at most", () => {
  for (const bytes of [0, 1, 255, 256, 257, 1000, 1024, 1025, 5000, 123457, 2 ** 27, 2 ** 27 + 1]) {
    const size = sizeClass(bytes);
    assert(size >= bytes && size % 256 === 0, `${bytes} got ${size}`);
    assert(size <= Math.max(256, bytes * 1.25 + 255), `${bytes} got ${size}`);
    assertEquals(sizeClass(size), size);
  }
});

const lifetime: fc.Arbitrary<Lifetime> = fc
  .record({ bytes: fc.nat(3000), first: fc.nat(20), length: fc.nat(6), forever: fc.boolean(), arena: fc.nat(2) })
  .map(({ length, forever, ...rest }) => ({ ...rest, last: forever ? Infinity : rest.first + length }));

Deno.test("no two results that live at once share a buffer", () => {
  fc.assert(
    fc.property(fc.array(lifetime, { maxLength: 30 }), (lifetimes) => {
      const { slot, bytes, arenas } = planMemory(lifetimes);
      lifetimes.forEach((a, i) => {
        assert(bytes[slot[i]!]! >= a.bytes);
        assertEquals(arenas[slot[i]!], a.arena);
        lifetimes.forEach((b, j) => {
          const together = i !== j && a.first <= b.last && b.first <= a.last;
          assert(!together || slot[i] !== slot[j], `${JSON.stringify([a, b])} share a buffer`);
        });
      });
    }),
    { seed: 3 },
  );
});
