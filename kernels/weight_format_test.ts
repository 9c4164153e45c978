import { assertEquals, assertThrows } from "@std/assert";
import { decodeWeight, packAffine, packCodes, packDense, weightTensorTypes } from "./weight_format.ts";

Deno.test("16-bit rows of odd length are padded, whatever the alignment of the bytes", () => {
  const bytes = new Uint8Array([9, 0x00, 0x3c, 0x00, 0x40, 0x00, 0x42, 0x01, 0x00, 0x00, 0xbc, 0x00, 0x00]).subarray(1);
  const words = packDense(bytes, "f16", 3); // 1 2 3 / 2^-24 -1 0
  assertEquals(words, new Uint32Array([0x40003c00, 0x00004200, 0xbc000001, 0x00000000]));
  assertEquals([...Array.from(decodeWeight({ kind: "dense", dtype: "f16" }, [words], 3))], [1, 2, 3, 2 ** -24, -1, 0]);
  assertEquals(weightTensorTypes({ kind: "dense", dtype: "f16" }, 2, 3), [{ dtype: "u32", shape: [2, 2] }]);
});

Deno.test("bf16 is the upper half of f32", () => {
  const words = packDense(new Uint8Array([0x80, 0x3f, 0x00, 0xc0]), "bf16", 2);
  assertEquals(Array.from(decodeWeight({ kind: "dense", dtype: "bf16" }, [words], 2)), [1, -2]);
});

Deno.test("a tensor packed in pieces is the tensor packed at once", () => {
  const bytes = Uint8Array.from({ length: 48 }, (_, i) => i * 37);
  for (const dtype of ["f32", "f16", "bf16"] as const) {
    const whole = packAffine(bytes, bytes, dtype);
    const pieces = [bytes.subarray(0, 12), bytes.subarray(12)].flatMap((part) => [...packAffine(part, part, dtype)]);
    assertEquals(pieces, [...whole]);
  }
  assertEquals([...packCodes(bytes.subarray(1, 9))], [0x946f4a25, 0x2803deb9]);
});

Deno.test("what does not fit is refused by name", () => {
  assertThrows(() => packCodes(new Uint8Array(6)), Error, "Cannot read 6 bytes as 32-bit words");
  assertThrows(() => packDense(new Uint8Array(8), "f16", 3), Error, "rows of 3 f16 elements take 6 each");
  assertThrows(
    () => packAffine(new Uint8Array(4), new Uint8Array(2), "f16"),
    Error,
    "Cannot pack 4 bytes of f16 scales with 2",
  );
  assertThrows(
    () => weightTensorTypes({ kind: "affine", bits: 4, groupSize: 64, scales: "f16" }, 8, 96),
    Error,
    "Cannot store [8, 96] as affine 4 bits, group 64, f16",
  );
});
