import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { StopStrings } from "./stop_strings.ts";

/** The text of pieces up to a stop string, and whether there was one. */
function read(pieces: readonly string[], stops: readonly string[]): { text: string; stopped: boolean } {
  const stream = new StopStrings(stops);
  const text = pieces.map((piece) => stream.push(piece)).join("") + stream.flush();
  return { text, stopped: stream.stopped };
}

Deno.test("however text is cut, the same is left of it", () => {
  const letters = (minLength: number, maxLength: number): fc.Arbitrary<string> =>
    fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength, maxLength });
  const stops = fc.array(letters(1, 4), { maxLength: 3 });
  fc.assert(
    fc.property(letters(0, 20), stops, fc.array(fc.nat(20)), (text, stops, cuts) => {
      const at = [0, ...cuts.filter((cut) => cut < text.length).sort((a, b) => a - b), text.length];
      const pieces = at.slice(1).map((end, i) => text.slice(at[i], end));
      const single = read([...text], stops);
      assertEquals(read(pieces, stops), single);
      assertEquals(read([text], stops), single);
      assertEquals(single.stopped, stops.some((stop) => text.includes(stop)));
      if (!single.stopped) assertEquals(single.text, text);
    }),
    { seed: 5, numRuns: 1000 },
  );
});

Deno.test("only what may be the beginning of a stop string is held back", () => {
  const stream = new StopStrings(["\n\nUser:", "###"]);
  assertEquals(stream.push("one\n"), "one");
  assertEquals(stream.push("two\n\nUs"), "\ntwo");
  assertEquals(stream.push("ed #"), "\n\nUsed ");
  assertEquals(stream.push("##"), "");
  assertEquals([stream.stopped, stream.push("more"), stream.flush()], [true, "", ""]);
});
