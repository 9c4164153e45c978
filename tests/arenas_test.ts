/** Programs that share the memory of their results compute what they would alone, one after another. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { asGpu } from "../tensor/device_testing.ts";
import {
  Arenas,
  compile,
  Device,
  gather,
  input,
  map,
  type Node,
  openDevice,
  OutOfMemoryError,
  type Program,
  reduceLast,
  reshape,
  Sym,
} from "../tensor/mod.ts";

/** Rows at the places of their greatest elements, a few times over: each time needs memory for all of it. */
function chain(device: Device, rows: number, arenas?: Arenas): Program {
  const size = new Sym("rows", rows);
  return compile(device, () => {
    let x: Node = input("x", "f32", [size, 4]);
    for (let i = 0; i < 3; i++) x = map("tanh", gather(x, reshape(reduceLast(x, "argmax"), [size])));
    return x;
  }, arenas && { arenas });
}

Deno.test("programs of many sizes take turns in memory that is as large as the largest", async () => {
  const device = asGpu(await openDevice()), arenas = new Arenas(device, "chains"), before = device.allocated;
  const sizes = [4000, 50, 700, 3999, 1], programs = sizes.map((rows) => chain(device, rows, arenas));
  const one = arenas.bytes;
  assert(one > 0 && one < 8 * 16 * 4000, `${one} bytes`);
  assertEquals(device.allocated - before - one, programs.reduce((sum, { bytes }) => sum + bytes, 0));
  for (const turn of [0, 3, 1, 2, 4, 0, 1]) {
    const rows = sizes[turn]!, x = Float32Array.from({ length: rows * 4 }, (_, i) => ((i + turn) * 37) % 101);
    using alone = chain(device, rows);
    for (const program of [programs[turn]!, alone]) program.run({ inputs: { x }, sizes: { rows } });
    assertEquals(await programs[turn]!.read(0, { rows }), await alone.read(0, { rows }));
  }
  chain(device, 5000, arenas).dispose();
  assert(arenas.bytes > one);
  const grown = arenas.bytes;
  chain(device, 7000, arenas).dispose();
  assertEquals(arenas.bytes, grown, "it grew to twice the size");
  programs.forEach((program) => program.dispose());
  arenas.release();
  assertEquals(device.allocated - device.readback.bytes, before);
  device.close();
});

Deno.test("where memory is short it grows by no more than is needed, and then says so", async () => {
  const device = asGpu(await openDevice()), arenas = new Arenas(device, "steps"), bytes = 1 << 16;
  arenas.take(0, bytes);
  const short = new Device(device.gpu, device.info, device.caps, 3.5 * bytes, true), few = new Arenas(short, "steps");
  few.take(0, bytes);
  few.take(1, bytes);
  few.take(0, bytes + 256);
  assertEquals(few.bytes, 3 * bytes + 256);
  assertThrows(() => few.take(1, bytes + 256), OutOfMemoryError, "for results of steps");
  [arenas, few].forEach((each) => each.release());
  assertEquals(short.allocated, 0);
  device.close();
});
