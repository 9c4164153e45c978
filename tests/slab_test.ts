/** Storages that share a buffer: values stay apart, memory comes back with the last of them. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { openCheckpoint } from "../model/checkpoint.ts";
import { readConfig } from "../model/config.ts";
import { loadDecoder } from "../model/decoder_weights.ts";
import { fileSource } from "../model/deno/file_source.ts";
import { weightBytes } from "../model/weights.ts";
import { buffer, compile, map, openDevice, OutOfMemoryError, Slabs, Storage } from "../tensor/mod.ts";

const floats = (...values: number[]): Storage =>
  new Storage("f32", [values.length], new Float32Array(values), "values");

Deno.test("storages of a slab share a buffer, and free it with the last of them", async () => {
  const device = await openDevice(), before = device.allocated;
  const slabs = new Slabs(device, 4096, "weights");
  const [a, b, large] = [floats(1, 2, 3), floats(10, 20, 30), new Storage("f32", [2000], undefined, "large")];
  for (const storage of [a, b, large]) slabs.place(storage);
  assertEquals(a.resident!.buffer === b.resident!.buffer, true);
  assertEquals([b.resident!.offset, large.resident!.offset], [256, 0]);
  {
    using program = compile(device, () => map("add", buffer(a), buffer(b)));
    program.run();
    assertEquals(await program.read(0), new Float32Array([11, 22, 33]));
  }
  assertEquals(await device.readStorage(b), new Float32Array([10, 20, 30]));
  a.release();
  assertEquals(await device.readStorage(b), new Float32Array([10, 20, 30]));
  b.release();
  large.release();
  assertEquals(device.allocated, before);
  device.close();
});

Deno.test("a slab counts against the memory limit", async () => {
  const device = await openDevice({ memoryLimit: 1 << 20 });
  assertThrows(() => new Slabs(device, 1 << 21, "weights").place(floats(1)), OutOfMemoryError, "weights");
  device.close();
});

Deno.test("no slab is larger than what is left of all storages", async () => {
  const device = await openDevice(), before = device.allocated;
  const storages = Array.from({ length: 5 }, () => new Storage("f32", [300], undefined, "values")), each = 1280;
  assertEquals(Slabs.round(storages[0]!.bytes(true)), each);
  const slabs = new Slabs(device, 2 * each, "weights", 5 * each);
  for (const storage of storages) slabs.place(storage);
  assertEquals(device.allocated - before, 5 * each);
  slabs.place(floats(1)); // more than was said
  assertEquals(device.allocated - before, 5 * each + 256);
  device.close();
});

Deno.test("a model's weights take no more than its headers tell", async () => {
  for (const folder of ["fixtures/models/qwen3-tiny", "fixtures/mlx/qwen2-tiny-4bit", "../model/assets/stories"]) {
    const device = await openDevice(),
      before = device.allocated,
      source = fileSource(`${import.meta.dirname}/${folder}`);
    const config = await readConfig(source), checkpoint = await openCheckpoint(source);
    const weights = await loadDecoder(device, checkpoint, config, { positions: 16 });
    const told = weightBytes(checkpoint, config), taken = device.allocated - before - weights.rope.resident!.bytes;
    assert(taken <= told && taken > 0.99 * told, `${folder}: ${taken} bytes were taken, and ${told} told`);
    device.close();
  }
});
