import { assert, assertEquals, assertRejects } from "@std/assert";
import { openCheckpoint, readTensor, readTensorChunks, readTensorInto } from "./checkpoint.ts";
import { openSafetensors, SafetensorsError, type SafetensorsProblem } from "./safetensors.ts";
import { memorySource } from "./source.ts";

/** A safetensors file of that header, of its own or a lying length, and `dataBytes` bytes of data. */
function file(header: unknown, dataBytes: number, headerBytes?: number): Uint8Array {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(headerBytes ?? text.length), true);
  bytes.set(text, 8);
  for (let i = 0; i < dataBytes; i++) bytes[8 + text.length + i] = i;
  return bytes;
}

const entry = (dtype: string, shape: number[], begin: number, end: number) => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

/** Three tensors, the second at an odd offset. */
const GOOD = {
  __metadata__: { format: "pt" },
  norm: entry("F32", [3], 0, 12),
  mask: entry("BOOL", [1], 12, 13),
  weight: entry("BF16", [2, 3], 13, 25),
};

Deno.test("a good file: names, shapes, places, metadata", async () => {
  const bytes = file(GOOD, 25);
  const source = memorySource({ "x.safetensors": bytes });
  const { tensors, metadata } = await openSafetensors(source, "x.safetensors");
  assertEquals([...tensors.keys()], ["norm", "mask", "weight"]);
  assertEquals(metadata, { format: "pt" });
  const weight = tensors.get("weight")!;
  assertEquals([weight.dtype, weight.shape, weight.length], ["BF16", [2, 3], 12]);
  assertEquals([...await readTensor(source, weight)], Array.from({ length: 12 }, (_, i) => 13 + i));
});

Deno.test("scalars, empty tensors and a file without tensors are fine", async () => {
  const header = { s: entry("I64", [], 0, 8), none: entry("F32", [0, 4], 8, 8), last: entry("U8", [1], 8, 9) };
  const { tensors } = await openSafetensors(memorySource({ x: file(header, 9) }), "x");
  assertEquals([...tensors.values()].map((tensor) => tensor.length), [8, 0, 1]);
  assertEquals((await openSafetensors(memorySource({ x: file({}, 0) }), "x")).tensors.size, 0);
});

const MALFORMED: [SafetensorsProblem, string, Uint8Array | undefined][] = [
  ["missing file", "no such file", undefined],
  ["truncated file", "it has 3 bytes", new Uint8Array(3)],
  ["truncated file", 'tensor "weight" ends at byte', file(GOOD, 24)],
  ["trailing bytes", "tensors end at byte", file(GOOD, 26)],
  ["header length", "header says 812 bytes, file has 12 after it", file("{}", 10, 812)],
  ["header length", "the format allows 100000000", file("{}", 0, 2 ** 60)],
  ["header text", "not JSON", file(GOOD, 25, 20)],
  ["header text", "not JSON", file("", 0)],
  ["header text", "no JSON object", file([1], 0)],
  ["header text", "__metadata__", file({ __metadata__: { a: 1 } }, 0)],
  ["duplicate name", '"a" twice', file(`{"a":${JSON.stringify(entry("U8", [1], 0, 1))},"\\u0061":{}}`, 1)],
  ["duplicate name", '"dtype" twice', file('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"dtype":"I8"}}', 1)],
  ["tensor entry", 'tensor "a" has no dtype', file({ a: 5 }, 0)],
  ["tensor entry", "has no dtype", file({ a: { shape: [1], data_offsets: [0, 1] } }, 1)],
  ["tensor entry", "has shape [-1]", file({ a: entry("U8", [-1], 0, 1) }, 1)],
  ["tensor entry", "has shape [1.5]", file({ a: entry("U8", [1.5], 0, 1) }, 1)],
  ["tensor entry", "data_offsets [0]", file({ a: { dtype: "U8", shape: [1], data_offsets: [0] } }, 1)],
  ["tensor entry", "ends before it", file({ a: entry("U8", [1], 2, 1) }, 2)],
  ["unknown dtype", 'dtype "F8_E4M3"; known are F64', file({ a: entry("F8_E4M3", [1], 0, 1) }, 1)],
  ["unknown dtype", 'dtype "toString"', file({ a: entry("toString", [1], 0, 1) }, 1)],
  ["absurd size", "would not fit any file", file({ a: entry("F32", [2 ** 40, 2 ** 40], 0, 8) }, 8)],
  ["wrong length", "F32 [3] takes 12 bytes, its offsets give 8", file({ a: entry("F32", [3], 0, 8) }, 8)],
  ["overlap", '"b" overlaps "a" by 2 bytes', file({ a: entry("U8", [4], 0, 4), b: entry("U8", [4], 2, 6) }, 6)],
  ["hole", '2 bytes before tensor "b"', file({ a: entry("U8", [4], 0, 4), b: entry("U8", [4], 6, 10) }, 10)],
];

for (const [problem, message, bytes] of MALFORMED) {
  Deno.test(`malformed, ${problem}: ${message}`, async () => {
    const source = memorySource(bytes ? { "x.safetensors": bytes } : {});
    const error = await assertRejects(() => openSafetensors(source, "x.safetensors"), SafetensorsError, message);
    assertEquals(error.problem, problem);
    assert(error.message.startsWith('Cannot load "x.safetensors" of "memory": '), error.message);
  });
}

Deno.test("checkpoint: one file beside files that are not the model's", async () => {
  const checkpoint = await openCheckpoint(
    memorySource({ "model.safetensors": file(GOOD, 25), "adapter.safetensors": file({}, 0) }),
  );
  assertEquals(checkpoint.paths, ["model.safetensors"]);
  assertEquals(checkpoint.totalBytes, 25);
});

const SHARDS = {
  "model-1.safetensors": file({ a: entry("U8", [1], 0, 1) }, 1),
  "model-2.safetensors": file({ b: entry("U8", [2], 0, 2) }, 2),
};
const index = (map: unknown) => ({ "model.safetensors.index.json": JSON.stringify({ weight_map: map }) });
const GOOD_INDEX = index({ a: "model-1.safetensors", b: "model-2.safetensors" });

Deno.test("checkpoint: shards with an index, and without", async () => {
  for (const files of [{ ...SHARDS, ...GOOD_INDEX }, SHARDS]) {
    const { tensors, paths } = await openCheckpoint(memorySource(files));
    assertEquals([...tensors.values()].map(({ name, path }) => [name, path]), [["a", paths[0]], ["b", paths[1]]]);
  }
});

const BAD_INDEXES: [string, SafetensorsProblem, Record<string, string>, Record<string, Uint8Array>][] = [
  ['names the file "model-3.safetensors"', "index", index({ a: "model-3.safetensors" }), SHARDS],
  ['names tensor "c" in "model-1.safetensors", but it has none', "index", index({ c: "model-1.safetensors" }), SHARDS],
  ['but it is in "model-1', "index", index({ a: "model-2.safetensors", b: "model-1.safetensors" }), SHARDS],
  ["it has no weight_map", "index", index([]), SHARDS],
  ["no safetensors file", "index", index({ a: "model.bin" }), SHARDS],
  ["JSON", "index", { "model.safetensors.index.json": "{" }, SHARDS],
  ['tensor "a" is in "model-1', "duplicate name", GOOD_INDEX, {
    ...SHARDS,
    "model-2.safetensors": file({ a: entry("U8", [1], 0, 1), b: entry("U8", [1], 1, 2) }, 2),
  }],
  ["there is no model*.safetensors", "missing file", {}, { "other.safetensors": file({}, 0) }],
];

for (const [message, problem, json, shards] of BAD_INDEXES) {
  Deno.test(`checkpoint: ${message}`, async () => {
    const error = await assertRejects(
      () => openCheckpoint(memorySource({ ...shards, ...json })),
      SafetensorsError,
      message,
    );
    assertEquals(error.problem, problem);
    assert(/^Cannot load "[^"]+" of "memory": /.test(error.message), error.message);
  });
}

Deno.test("an index cannot lead out of its folder", async () => {
  const source = memorySource({ ...SHARDS, ...index({ a: "../model-1.safetensors" }) });
  await assertRejects(() => openCheckpoint(source), Error, "stay inside");
});

Deno.test("pieces: bounded, whole elements, in order; together the tensor", async () => {
  const source = memorySource({ "model.safetensors": file({ x: entry("F32", [9], 0, 36) }, 36) });
  const tensor = (await openCheckpoint(source)).tensors.get("x")!;
  const sizes = [];
  for await (const { offset, bytes } of readTensorChunks(source, tensor, 15)) {
    sizes.push(bytes.length);
    assertEquals([bytes.byteOffset, bytes[0]], [0, offset]);
  }
  assertEquals(sizes, [12, 12, 12]);
  const target = new Uint8Array(40);
  await readTensorInto(source, tensor, target, 1);
  assertEquals([...target], [...Array(36).keys(), 0, 0, 0, 0]);
  await assertRejects(() => readTensorInto(source, tensor, new Uint8Array(35)), RangeError, "it has 36 bytes");
});

/** A small generator with a seed (mulberry32), so that a failure can be had again. */
function random(seed: number): (below: number) => number {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor(((t ^ (t >>> 14)) >>> 0) / 2 ** 32 * below);
  };
}

/**
 * One to four edits: a byte changed, a bit flipped, a digit changed, a cut, an insertion, a repeated piece. Half of them
 * change digits, so that much stays JSON and meets the later checks.
 */
function mutate(original: Uint8Array, below: (limit: number) => number): Uint8Array {
  let bytes = original.slice();
  for (let edits = 1 + below(4); edits > 0 && bytes.length > 0; edits--) {
    const at = below(bytes.length);
    const to = at + below(bytes.length - at + 1);
    const edit = below(2) === 0 ? 2 : below(6);
    if (edit === 0) bytes[at] = below(256);
    else if (edit === 1) bytes[at]! ^= 1 << below(8);
    else if (edit === 2) {
      const digits = [...bytes.keys()].filter((i) => bytes[i]! >= 48 && bytes[i]! <= 57);
      if (digits.length > 0) bytes[digits[below(digits.length)]!] = 48 + below(10);
    } else if (edit === 3) bytes = bytes.slice(0, at);
    else if (edit === 4) bytes = new Uint8Array([...bytes.slice(0, at), below(256), ...bytes.slice(at)]);
    else bytes = new Uint8Array([...bytes.slice(0, to), ...bytes.slice(at, to), ...bytes.slice(to)]);
  }
  return bytes;
}

Deno.test("fuzz: 10,000 mutated files load or are refused, and what loads can be read", async () => {
  const good = file(GOOD, 25);
  const below = random(20);
  const refused = new Map<string, number>();
  for (let i = 0; i < 10_000; i++) {
    const source = memorySource({ "model.safetensors": mutate(good, below) });
    try {
      const { tensors } = await openCheckpoint(source);
      for (const tensor of tensors.values()) assertEquals((await readTensor(source, tensor)).length, tensor.length);
    } catch (error) {
      if (!(error instanceof SafetensorsError)) throw new Error(`Mutation ${i} of seed 20`, { cause: error });
      refused.set(error.problem, (refused.get(error.problem) ?? 0) + 1);
    }
  }
  assert(refused.size >= 8, `the mutations reach most checks: ${[...refused.keys()]}`);
});
