import { assertEquals, assertThrows } from "@std/assert";
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

Deno.test({
  name: "integers divided by zero stay as they are, by a constant and by an element",
  sanitizeResources: false,
  sanitizeOps: false,
  async fn() {
    for (const dtype of ["i32", "u32"] as const) {
      const values = dtype === "i32" ? [7, -7, 0, -(2 ** 31)] : [7, 0, 1, 2 ** 32 - 1], x = tensor(values, { dtype });
      for (const zero of [0, tensor([0, 0, 0, 0], { dtype })]) assertEquals([...await x.div(zero).data()], values);
    }
  },
});
