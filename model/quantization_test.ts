import { assertEquals, assertThrows } from "@std/assert";
import { UnsupportedModelError } from "./config_json.ts";
import { parseQuantization, quantizationOf } from "./quantization.ts";

const parse = (quantization: unknown) => parseQuantization({ quantization }, "qwen2");
/** A row of 256 in groups of 32 at 8 bits. */
const STORED = { inFeatures: 256, weightColumns: 64, scaleColumns: 8 };

Deno.test("one setting, and what each kind of override means", () => {
  const quantization = parse({
    group_size: 32,
    bits: 8,
    mode: "affine",
    yes: true,
    no: false,
    own: { group_size: 64, bits: 6, mode: "affine" },
    sparse: { bits: 3 },
  })!;
  assertEquals([quantization.groupSize, quantization.bits], [32, 8]);
  assertEquals(Object.fromEntries(quantization.overrides), {
    yes: { groupSize: 32, bits: 8 },
    no: false,
    own: { groupSize: 64, bits: 6 },
    sparse: { groupSize: 64, bits: 3 },
  });
  assertEquals(quantizationOf(quantization, "yes", STORED), { groupSize: 32, bits: 8 });
  assertEquals(quantizationOf(quantization, "own", { inFeatures: 256, weightColumns: 48, scaleColumns: 4 }), {
    groupSize: 64,
    bits: 6,
  });
  assertEquals(quantizationOf(quantization, "no"), undefined);
});

Deno.test("a module without an entry is what its shapes say, whatever the top level says", () => {
  const quantization = parse({ group_size: 64, bits: 4 });
  assertEquals(quantizationOf(quantization, "x", STORED), { groupSize: 32, bits: 8 });
  assertEquals(quantizationOf(quantization, "x", { inFeatures: 256, weightColumns: 24, scaleColumns: 2 }), {
    groupSize: 128,
    bits: 3,
  });
  assertEquals(quantizationOf(quantization, "x"), undefined);
});

Deno.test("settings and tensors that do not fit each other", () => {
  const quantization = parse({ group_size: 64, bits: 4, a: { group_size: 64, bits: 4 }, no: false });
  assertThrows(
    () => quantizationOf(quantization, "a", STORED),
    Error,
    "4 bits in groups of 64 do not fit a row of 256",
  );
  assertThrows(() => quantizationOf(quantization, "no", STORED), Error, "not quantised, but it has scales");
  assertThrows(() => quantizationOf(quantization, "x", { ...STORED, weightColumns: 63 }), Error, "7.875 bits");
  assertThrows(() => quantizationOf(quantization, "x", { ...STORED, scaleColumns: 7 }), Error, "groups of 36.57");
});

Deno.test("defaults, and settings that are refused", () => {
  assertEquals(parse({}), { groupSize: 64, bits: 4, overrides: new Map() });
  assertEquals(parseQuantization({}, "qwen2"), undefined);
  // The first of the two objects that MLX writes wins.
  assertEquals(
    parseQuantization({ quantization: { bits: 8 }, quantization_config: { quant_method: "x" } }, "qwen2")?.bits,
    8,
  );
  assertThrows(() => parse({ bits: 7 }), Error, "quantization has 7 bits; supported are 2, 3, 4, 5, 6, 8");
  assertThrows(() => parse({ group_size: 16 }), Error, "groups of 16");
  assertThrows(() => parse({ "model.x": { mode: "nvfp4" } }), UnsupportedModelError, 'model.x has MLX mode "nvfp4"');
  assertThrows(() => parse({ quantize_activations: true }), UnsupportedModelError, "activations");
  assertThrows(() => parse({ bits: "4" }), Error, 'bits is "4"');
});
