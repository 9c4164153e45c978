/** Which form attention takes, by device and batch. */
import { assertEquals } from "@std/assert";
import { type Device, openDevice } from "../tensor/device.ts";
import { asGpu, withCaps } from "../tensor/device_testing.ts";
import type { HostArray } from "../tensor/dtype.ts";
import { buffer } from "../tensor/node.ts";
import { compile } from "../tensor/program.ts";
import { Storage } from "../tensor/storage.ts";
import { attend } from "./attend.ts";
import { attentionCall, type AttentionSetting } from "./attention_cases.ts";
import { seededRandom } from "./random.ts";

async function attended(device: Device, setting: AttentionSetting): Promise<{ dispatches: number; values: HostArray }> {
  const call = attentionCall(setting, seededRandom(1));
  const storages = call.inputs.map((i, n) => new Storage(i.dtype, i.shape, i.data.slice() as HostArray, `input ${n}`));
  const program = compile(device, () => {
    const [q, keys, values, queryStart, contextLens, blockTables] = storages.map((storage) => buffer(storage));
    const batch = { queryStart: queryStart!, contextLens: contextLens!, blockTables: blockTables! };
    return attend(q!, keys!, values!, batch, call.params);
  });
  program.run();
  const values = await program.read(0), { dispatchCount: dispatches } = program;
  program.dispose();
  storages.forEach((storage) => storage.release());
  return { dispatches, values };
}

Deno.test("a GPU splits the contexts of few queries, with the same bits; a CPU device never does", async () => {
  const device = await openDevice(), cpu = withCaps(device, { cpu: true }), gpu = asGpu(device);
  const decode: AttentionSetting = {
    ...{ sequences: [[1, 300], [1, 140]], kvHeads: 2, group: 3, headDim: 16, blockSize: 16, pool: "f32", padding: 0 },
  };
  const cases: [AttentionSetting, number][] = [
    [decode, 2],
    [{ ...decode, sequences: [[1, 100]] }, 1], // one tile: nothing to split
    [{ ...decode, sequences: [[40, 300]] }, 1], // a prompt
  ];
  for (const [setting, dispatches] of cases) {
    const plain = await attended(cpu, setting), chosen = await attended(gpu, setting);
    assertEquals([plain.dispatches, chosen.dispatches], [1, dispatches]);
    assertEquals(chosen.values, plain.values);
  }
  device.close();
});
