/** Storages that share a buffer: values stay apart, memory comes back with the last of them. */
import { assertEquals, assertThrows } from "@std/assert";
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
