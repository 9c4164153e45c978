import { assert, assertEquals } from "@std/assert";
import { float16Bits, float16Value } from "./dtype.ts";

Deno.test("float16Bits takes every f16 value back to its bits", () => {
  for (let bits = 0; bits < 65536; bits++) {
    const value = float16Value(bits);
    if (Number.isNaN(value)) assertEquals(float16Bits(value) & 0x7c00, 0x7c00);
    else if (float16Bits(value) !== bits) throw new Error(`${bits} is ${value}, which is ${float16Bits(value)}`);
  }
});

Deno.test("float16Bits rounds to the nearest value, ties to even", () => {
  for (let bits = 0; bits < 0x7bff; bits++) {
    const low = float16Value(bits), high = float16Value(bits + 1), middle = (low + high) / 2; // exact in f32
    assertEquals(float16Bits(middle), bits % 2 === 0 ? bits : bits + 1);
    assertEquals(float16Bits(-middle), 0x8000 | (bits % 2 === 0 ? bits : bits + 1));
  }
});

Deno.test("float16Bits gives random f32 numbers their nearest f16", () => {
  const words = crypto.getRandomValues(new Uint32Array(16384));
  for (const value of new Float32Array(words.buffer)) {
    if (Number.isNaN(value)) continue;
    const bits = float16Bits(value), got = float16Value(bits), magnitude = bits & 0x7fff;
    if (!Number.isFinite(got)) assert(Math.abs(value) >= 65520, `${value} became ${got}`);
    else {
      const error = Math.abs(got - value);
      const neighbours = [magnitude - 1, magnitude + 1].filter((m) => m >= 0).map((m) => float16Value(m));
      for (const other of neighbours) assert(error <= Math.abs(other - Math.abs(value)), `${value} became ${got}`);
    }
  }
});
