import { assertEquals, assertNotStrictEquals, assertStrictEquals, assertThrows } from "@std/assert";
import {
  assign,
  buffer,
  cast,
  constant,
  expand,
  gather,
  input,
  iota,
  map,
  type Node,
  pad,
  permute,
  reduceLast,
  reshape,
  slice,
} from "./node.ts";
import { Storage } from "./storage.ts";

const storage = (label = "values"): Storage => new Storage("f32", [2, 3], new Float32Array(6), label);

Deno.test("nodes of one structure are one object, whatever the operation", () => {
  const x = buffer(storage());
  const makers: Readonly<Record<string, () => Node>> = {
    input: () => input("tokens", "i32", [4]),
    constant: () => constant(2, "f32"),
    iota: () => iota([2, 3], 1),
    map: () => map("add", x, constant(2, "f32")),
    cast: () => cast(x, "i32"),
    reshape: () => reshape(x, [3, 2]),
    permute: () => permute(x, [1, 0]),
    expand: () => expand(constant(2, "f32"), [5]),
    slice: () => slice(x, [0, 1], [2, 3]),
    pad: () => pad(x, [0, 1], [0, 0], 7),
    reduce: () => reduceLast(x, "sum"),
    gather: () => gather(x, iota([2], 0)),
  };
  for (const [name, make] of Object.entries(makers)) assertStrictEquals(make(), make(), name);
});

Deno.test("what differs in any part is another node", () => {
  const x = buffer(storage());
  const different = [
    constant(0, "f32"),
    constant(-0, "f32"),
    constant(0, "f16"),
    constant(0, "i32"),
    input("x", "f32", [2]),
    input("y", "f32", [2]),
    input("x", "f32", [2, 1]),
    map("add", x, x),
    map("mul", x, x),
    iota([2, 2], 0),
    iota([2, 2], 1),
    slice(x, [0, 0], [2, 2]),
    slice(x, [0, 1], [2, 3]),
    pad(x, [0, 1], [0, 0], 0),
    pad(x, [0, 0], [0, 1], 0),
    pad(x, [0, 1], [0, 0], 1),
    reduceLast(x, "sum"),
    reduceLast(x, "max"),
  ];
  assertEquals(new Set(different).size, different.length);
});

Deno.test("operations that change nothing give their source", () => {
  const x = buffer(storage());
  const same = [
    cast(x, "f32"),
    reshape(x, [2, 3]),
    permute(x, [0, 1]),
    expand(x, [2, 3]),
    slice(x, [0, 0], [2, 3]),
    pad(x, [0, 0], [0, 0], 1),
  ];
  for (const node of same) assertStrictEquals(node, x);
});

Deno.test("nodes are immutable, and have greater ids than their sources", () => {
  const x = buffer(storage()), y = map("exp", x);
  assertEquals([Object.isFrozen(y), y.id > x.id], [true, true]);
  assertThrows(() => Object.assign(y, { op: "cast" }), TypeError);
});

Deno.test("state is never merged by structure, and each write makes another version", () => {
  const one = storage(), other = storage(), first = buffer(one);
  assertNotStrictEquals(first, buffer(other));
  assertStrictEquals(first, buffer(one));
  const next = assign(first, map("neg", first));
  assertEquals([one.version, other.version], [1, 0]);
  assertNotStrictEquals(buffer(one), first);
  assertThrows(() => assign(first, map("neg", first)), Error, 'Cannot write version 0 of "values"');
  assertEquals(next.op, "assign");
});
