import { assertThrows } from "@std/assert";
import { type Nested, tensor } from "./tensor.ts";

Deno.test("a tensor is made of numbers alone", () => {
  const bad: [unknown, string][] = [
    ["x", 'Cannot make a tensor of "x": give numbers or booleans'],
    [[1, "2"], 'of "2"'],
    [[[null]], "of null"],
    [undefined, "of undefined"],
    [{ length: 1 }, "of [object Object]"],
  ];
  for (const [values, message] of bad) assertThrows(() => tensor(values as Nested), TypeError, message);
  assertThrows(() => tensor([[1], 2]), Error, "ragged");
});
