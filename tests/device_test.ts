/**
 * What goes wrong on a device, and what a user is told: it is lost, memory runs out, a driver refuses, devices are mixed,
 * values are missing. And read-back, by its fast path and without it.
 */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { deviceTests } from "../tensor/device_testing.ts";
import {
  assign,
  buffer,
  compile,
  constant,
  DeviceLostError,
  gather,
  input,
  type Kernel,
  map,
  type Node,
  openDevice,
  OutOfMemoryError,
  pad,
  permute,
  Readback,
  reduceLast,
  reshape,
  slice,
  Storage,
  Sym,
  Tensor,
  tensor,
  wrapDevice,
} from "../tensor/mod.ts";
import { runKernel } from "../tensor/run_kernel.ts";

const deviceTest = deviceTests("device");

const floats = (count: number, label = "values"): Storage =>
  new Storage("f32", [count], Float32Array.from({ length: count }, (_, i) => i), label);

/** One operation on a storage. */
const doubled = (storage: Storage): Node => map("mul", buffer(storage), constant(2, "f32"));

/** Fails where `work` neither ends nor fails in five seconds. */
async function ends<T>(work: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => timer = setTimeout(() => reject(new Error("It hangs")), 5000));
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Replaces a method of a WebGPU object until `restore` is called. */
function replace<T extends object, K extends keyof T>(target: T, name: K, method: T[K]): () => void {
  Object.defineProperty(target, name, { value: method, configurable: true, writable: true });
  return () => void Reflect.deleteProperty(target, name);
}

deviceTest("losing it ends every wait with one clear error", async (device) => {
  const values = floats(1000), program = compile(device, () => doubled(values));
  program.run();
  const waiting = [program.read(0), program.read(0), device.readStorage(values)];
  device.gpu.destroy();
  for (const wait of waiting) {
    const outcome = await ends(wait.then(() => undefined, (cause: unknown) => cause));
    assert(outcome === undefined || outcome instanceof DeviceLostError, `${outcome}`);
  }
  const lost = await ends(assertRejects(() => program.read(0), DeviceLostError, "The GPU device was lost"));
  assertEquals(assertThrows(() => program.run(), DeviceLostError), lost);
  assertThrows(() => device.storage("f32", [4], "late"), DeviceLostError);
  assertThrows(() => compile(device, () => doubled(values)), DeviceLostError);
  program.dispose();
  values.release();
});

deviceTest("the memory limit is refused with its numbers, and everything is released", async (device) => {
  const before = device.allocated, large = floats(1 << 18, "table"), small = floats(1 << 17, "other");
  const staging = device.readback.bytes;
  const resident = device.resident(large);
  const full = assertThrows(() => device.resident(small), OutOfMemoryError);
  assertEquals(
    full.message,
    'Cannot allocate 0.5 MiB for "other": 1.0 MiB of 1.3 MiB are in use. ' +
      "Raise memoryLimit, or use a smaller model or context.",
  );
  assertThrows(() => compile(device, () => doubled(large)), OutOfMemoryError, "for results of a program");
  assertEquals(device.allocated, before + resident.bytes);
  large.release();
  assertEquals(device.allocated, before);
  assertEquals((await device.readStorage(small))[5], 5);
  assertEquals(device.readback.bytes - staging, (1 << 19) - 4096, "memory of reading back grows, and counts");
  const more = floats(1 << 18, "more");
  assertThrows(() => device.resident(more), OutOfMemoryError, "1.0 MiB of 1.3 MiB are in use");
  small.release();
  assertEquals(device.allocated - device.readback.bytes, before - staging);
}, { memoryLimit: 1.25 * 2 ** 20 + 4096 });

deviceTest("a caller's device that is refused keeps no buffer", async ({ gpu }) => {
  const create = gpu.createBuffer, alive = new Set<GPUBuffer>();
  for (const allowed of [0, 1, 2]) {
    let asked = 0;
    const restore = replace(gpu, "createBuffer", (descriptor: GPUBufferDescriptor) => {
      if (asked++ === allowed) throw new Error("no memory");
      const made = create.call(gpu, descriptor), destroy = made.destroy;
      alive.add(made);
      replace(made, "destroy", () => {
        alive.delete(made);
        destroy.call(made);
      });
      return made;
    });
    await assertRejects(() => wrapDevice(gpu), OutOfMemoryError, "the driver refused");
    restore();
    assertEquals([asked, alive.size], [allowed + 1, 0]);
  }
});

deviceTest("a driver that cannot allocate fails a program and leaves nothing behind", async (device) => {
  const values = floats(1000), before = device.allocated;
  device.resident(values);
  const resident = device.allocated, create = device.gpu.createBuffer;
  let calls = 0;
  const restore = replace(device.gpu, "createBuffer", (descriptor: GPUBufferDescriptor) => {
    if (++calls === 2) throw new RangeError("no memory");
    return create.call(device.gpu, descriptor);
  });
  assertThrows(() => compile(device, () => doubled(values)), OutOfMemoryError, "the driver refused");
  assertEquals([calls, device.allocated], [2, resident]);
  restore();
  assertEquals([...await new Tensor(doubled(values)).data(device)].slice(0, 3), [0, 2, 4]);
  values.release();
  assertEquals(device.allocated, before);
});

deviceTest("a driver that reports running out of memory later ends every wait", async (device) => {
  const values = floats(8), program = compile(device, () => doubled(values));
  const event = new Event("uncapturederror", { cancelable: true });
  Object.defineProperty(event, "error", { value: new GPUOutOfMemoryError("device out of memory") });
  program.run();
  device.gpu.dispatchEvent(event);
  await ends(assertRejects(() => program.read(0), OutOfMemoryError, "The GPU ran out of memory at"));
  assertThrows(() => program.run(), OutOfMemoryError);
  program.dispose();
  values.release();
});

deviceTest("mixing devices and using what was released are refused", async (device) => {
  const other = await openDevice(), values = floats(4, "weights");
  other.resident(values);
  assertThrows(
    () => compile(device, () => doubled(values)),
    Error,
    'Cannot mix devices: "weights" lives on another device',
  );
  const program = compile(other, () => doubled(values));
  values.release();
  assertThrows(() => program.run(), Error, 'Cannot run: "weights" was released');
  assertThrows(() => compile(other, () => doubled(values)), Error, 'Cannot use "weights": it was released');
  program.dispose();
  assertThrows(() => program.run(), Error, "Cannot run: the program was disposed");
  other.close();
});

Deno.test("device: wrong shapes and dtypes are refused while tracing", () => {
  const f = tensor([[1, 2, 3], [4, 5, 6]]).node, i = tensor([1, 2], { dtype: "i32" }).node;
  const cases: readonly [() => unknown, string][] = [
    [() => map("add", f, tensor([1, 2]).node), "Cannot broadcast [2, 3] with [2]: 3 and 2 differ"],
    [() => map("add", f, i), "Cannot add f32 and i32: cast one of them"],
    [() => map("exp", i), "Cannot exp i32: it takes float values"],
    [() => map("and", i, i), "Cannot and i32: it takes bool values"],
    [() => reshape(f, [5]), "Cannot reshape [2, 3] to [5]: element counts differ"],
    [() => permute(f, [0, 0]), "Cannot permute"],
    [() => slice(f, [0, 0], [2, 4]), "Cannot slice"],
    [() => pad(f, [-1, 0], [0, 0], 0), "Cannot pad axis 0 by -1 and 0: negative"],
    [() => gather(f, f), "Cannot gather at f32 indices: cast to i32"],
    [() => reduceLast(reshape(slice(f, [0, 0], [0, 3]), [3, 0]), "max"), "Cannot take max of [3, 0]"],
    [() => assign(f, i), 'Cannot assign i32 [2] to "tensor" of f32 [2, 3]'],
    [() => assign(map("neg", f), f), "Cannot assign to map: only buffers hold state"],
    [() => constant(NaN, "f32"), "Cannot make a constant of NaN: values have to be finite"],
    [() => constant(-Infinity, "f32"), "Cannot make a constant of -Infinity: values have to be finite"],
    [() => input("x", "f32", [2, new Sym("tokens", 4)]), 'symbol "tokens" of [2, tokens<=4] is not the leading size'],
    [() => input("x", "f32", [2.5]), "[2.5] has size 2.5, sizes are whole numbers from 0"],
    [() => new Storage("f32", [3], new Float32Array(2)), "Cannot make a tensor of [3]: 2 values given"],
    [() => tensor([[1, 2], [3]]), "Cannot make a tensor of ragged arrays"],
  ];
  for (const [make, message] of cases) assertThrows(make, Error, message);
});

deviceTest("missing, unknown and too long values of a run are refused", (device) => {
  const tokens = new Sym("tokens", 4);
  using program = compile(device, () => map("neg", input("x", "f32", [tokens, 2])));
  const run = (length: number, count?: number) => (): void =>
    program.run({ inputs: { x: new Float32Array(length) }, sizes: count === undefined ? {} : { tokens: count } });
  run(8, 4)();
  assertThrows(() => program.run({ sizes: { tokens: 2 } }), Error, 'no value for input "x" of [tokens<=4, 2]');
  assertThrows(
    () => program.run({ inputs: { x: [1], y: [2] }, sizes: { tokens: 1 } }),
    Error,
    'the program has no input "y"',
  );
  assertThrows(run(9, 4), Error, '9 values for input "x" of [tokens<=4, 2]');
  assertThrows(run(8, 5), Error, 'size "tokens" is 5, outside 0 to 4');
  assertThrows(run(8, -1), Error, 'size "tokens" is -1, outside 0 to 4');
  assertThrows(run(8, 1.5), Error, 'size "tokens" is 1.5, outside 0 to 4');
  assertThrows(run(8), Error, 'no value for size "tokens"');
});

for (const disable of [[], ["fastReadback"]] as const) {
  deviceTest(`300 reads in a row are right${disable.length > 0 ? " without the fast path" : ""}`, async (device) => {
    const count = disable.length > 0 ? 30 : 300;
    using program = compile(device, () => map("add", input("x", "i32", [64]), constant(1, "i32")));
    for (let i = 0; i < count; i++) {
      program.run({ inputs: { x: new Int32Array(64).fill(i) } });
      const values = await program.read(0);
      assert(values.every((value) => value === i + 1), `read ${i} gave ${values}`);
    }
    assertEquals(device.readback.fast, disable.length === 0);
  }, { disable });
}

deviceTest("a read-back whose mapping is not there at once waits for it, from then on", async (device) => {
  const { gpu } = device, create = gpu.createBuffer;
  let refused = 0;
  const restore = replace(gpu, "createBuffer", (descriptor: GPUBufferDescriptor) => {
    const made = create.call(gpu, descriptor), range = made.getMappedRange, wait = made.mapAsync;
    let mapped = false;
    replace(made, "mapAsync", async (...args: Parameters<GPUBuffer["mapAsync"]>) => {
      mapped = false;
      await wait.apply(made, args);
      mapped = true;
      return undefined;
    });
    replace(made, "getMappedRange", (...args: Parameters<GPUBuffer["getMappedRange"]>) => {
      if (!mapped) {
        refused++;
        throw new Error("not mapped yet");
      }
      return range.apply(made, args);
    });
    return made;
  });
  const readback = new Readback(gpu), values = floats(3000);
  const { buffer: source } = device.resident(values);
  for (let i = 0; i < 3; i++) {
    const bytes = await readback.read(source, 0, 12000);
    assertEquals(new Float32Array(bytes.buffer, bytes.byteOffset, 3000)[2999], 2999);
  }
  assertEquals([refused, readback.fast], [1, false]);
  readback.destroy();
  restore();
  values.release();
});

Deno.test("a shader that does not compile is an error, not zeros", async () => {
  const device = await openDevice();
  const broken: Kernel<null> = {
    name: "broken",
    infer: ([x]) => [x!],
    wgsl: () => ({
      inputs: [{ name: "x" }],
      outputs: [{ name: "y" }],
      workgroupSize: [1, 1, 1],
      main: "let from = x(0u); store_y(0u, from);", // `from` is reserved
    }),
    grid: () => [1, 1, 1],
    reference: (_call, [x]) => [Float64Array.from(x!)],
    cost: () => ({ flops: 0, bytes: 8 }),
  };
  const call = { params: null, inputs: [{ dtype: "f32", shape: [1], data: new Float32Array([5]) }] } as const;
  await assertRejects(() => runKernel(device, broken, call), Error, 'Cannot compile "broken"');
  device.close();
});
