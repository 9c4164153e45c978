import { assertEquals } from "@std/assert";
import { bfloat16ToFloat32, bfloat16ToNumber, float16ToFloat32, float16ToNumber } from "./float.ts";

const ALL_BITS = Uint16Array.from({ length: 0x10000 }, (_, i) => i);

Deno.test("float16: every bit pattern equals the engine's own Float16Array", () => {
  const expected = Float32Array.from(new Float16Array(ALL_BITS.buffer));
  const actual = float16ToFloat32(ALL_BITS);
  for (let i = 0; i < ALL_BITS.length; i++) {
    if (!Object.is(actual[i], expected[i])) throw new Error(`bits ${i}: ${actual[i]} is not ${expected[i]}`);
    if (!Object.is(float16ToNumber(i), expected[i])) throw new Error(`bits ${i}, one at a time`);
  }
});

Deno.test("float16: landmarks", () => {
  assertEquals(float16ToNumber(0x0001), 2 ** -24, "least subnormal");
  assertEquals(float16ToNumber(0x03ff), 1023 * 2 ** -24, "greatest subnormal");
  assertEquals(float16ToNumber(0x0400), 2 ** -14, "least normal");
  assertEquals(float16ToNumber(0x7bff), 65504, "greatest");
  assertEquals(float16ToNumber(0xfc00), -Infinity);
  assertEquals(float16ToNumber(0x8000), -0);
});

Deno.test("bfloat16: every bit pattern is the upper half of its float32", () => {
  const actual = bfloat16ToFloat32(ALL_BITS);
  const words = new Uint32Array(actual.buffer);
  for (let i = 0; i < ALL_BITS.length; i++) {
    if (words[i] !== i * 65536) throw new Error(`bits ${i}: word ${words[i]}`);
    if (!Object.is(bfloat16ToNumber(i), actual[i])) throw new Error(`bits ${i}, one at a time`);
  }
  assertEquals(bfloat16ToNumber(0x3f80), 1);
  assertEquals(bfloat16ToNumber(0x0001), 2 ** -133, "least subnormal");
});

Deno.test("both write into a target at any offset", () => {
  const target = new Float32Array(5);
  float16ToFloat32(Uint16Array.of(0x3c00, 0x0001), target.subarray(1, 3));
  bfloat16ToFloat32(Uint16Array.of(0xc000), target.subarray(4));
  assertEquals([...target], [0, 1, 2 ** -24, 0, -2]);
});
