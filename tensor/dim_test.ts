import { assert, assertEquals, assertThrows } from "@std/assert";
import { checkShape, elementCount, formatShape, maxOf, resolveDim, sameDim, sameShape, Sym } from "./dim.ts";

const tokens = new Sym("tokens", 512);

Deno.test("symbols are known by name and bound", () => {
  assert(sameDim(tokens, new Sym("tokens", 512)));
  assert(!sameDim(tokens, new Sym("tokens", 256)));
  assert(!sameDim(tokens, 512));
  assert(sameShape([tokens, 64], [new Sym("tokens", 512), 64]));
  assert(!sameShape([tokens], [tokens, 1]));
  assertEquals([maxOf(tokens), maxOf(3)], [512, 3]);
});

Deno.test("sizes print and count", () => {
  assertEquals(formatShape([tokens, 64]), "[tokens<=512, 64]");
  assertEquals(elementCount([tokens, 64]), 512 * 64);
  assertEquals(elementCount([tokens, 64], { tokens: 3 }), 192);
  assertEquals(elementCount([]), 1);
  assertEquals(elementCount([0, 5]), 0);
});

Deno.test("wrong sizes are refused", () => {
  assertThrows(() => new Sym("max tokens", 5), Error, 'symbol named "max tokens"');
  assertThrows(() => new Sym("tokens", 0), Error, "bound 0 is not positive");
  assertThrows(() => resolveDim(tokens, {}), Error, 'no value for size "tokens"');
  assertThrows(() => resolveDim(tokens, { tokens: 513 }), Error, 'size "tokens" is 513, outside 0 to 512');
  assertThrows(() => checkShape([2, tokens], "make x"), Error, "is not the leading size");
  assertThrows(() => checkShape([-1], "make x"), Error, "[-1] has size -1");
});
