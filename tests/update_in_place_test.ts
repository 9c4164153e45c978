/** Kernels that update another kernel's result in place: nothing is copied, and whoever would read it later is refused. */
import { assertEquals, assertThrows } from "@std/assert";
import { openDevice } from "../tensor/device.ts";
import { interpret } from "../tensor/interpret.ts";
import { buffer, kernelNode, map, type Node, output } from "../tensor/node.ts";
import { compile } from "../tensor/program.ts";
import { Storage } from "../tensor/storage.ts";
import { RANDOM_KERNELS } from "./random_kernels.ts";

const run = (name: string, x: Node): Node => kernelNode(RANDOM_KERNELS[name]!, [x], null);

Deno.test("a kernel updates another one's result in place, and what follows reads the update", async () => {
  const device = await openDevice(), storage = new Storage("i32", [3], Int32Array.of(-4, 0, 5), "x");
  const graph = (): Node => {
    const halves = run("halves", buffer(storage)), updated = run("advance", output(halves, 1));
    return map("mul", map("add", halves, updated), run("triple", updated));
  };
  const node = graph();
  // Of -4: halves 0 and -4, updated -3; (0 - 3) * (3 * -3 + 1).
  assertEquals([...interpret(node).values], [24, 4, 24]);
  using program = compile(device, () => [node]);
  program.run();
  assertEquals([...await program.read(0)], [24, 4, 24]);
  storage.release();
  device.close();
});

Deno.test("an update in place of a result that is read later is refused", async () => {
  const device = await openDevice(), storage = new Storage("i32", [3], Int32Array.of(-4, 0, 5), "x");
  const x = buffer(storage), tripled = run("triple", x), updated = run("advance", tripled);
  assertThrows(
    () => compile(device, () => [tripled, updated], { label: "both" }),
    Error,
    "Cannot compile both: a result is read after its update in place",
  );
  assertThrows(() => run("advance", map("neg", x)), Error, "Cannot update map in place");
  storage.release();
  device.close();
});
