/** Flash attention by tiles: a row's result does not depend on its company, and other devices and pools fall back. */
import { assert, assertEquals } from "@std/assert";
import { openDevice } from "../tensor/device.ts";
import type { Caps } from "../tensor/kernel.ts";
import { runKernel } from "../tensor/run_kernel.ts";
import { pagedAttentionKernel } from "./attention.ts";
import { attentionCall, type AttentionSetting } from "./attention_cases.ts";
import { flashAttentionKernel, flashForm } from "./flash_attention.ts";
import { seededRandom } from "./random.ts";
import type { CaseCall } from "./spec.ts";

const setting: AttentionSetting = {
  sequences: [[90, 300], [1, 131], [70, 70], [0, 9], [3, 260]],
  kvHeads: 2,
  group: 3,
  headDim: 64,
  blockSize: 16,
  pool: "f16",
  padding: 3,
};

/** Sequence `b` of a batch alone, its last `queries` rows. */
function alone<P>(call: CaseCall<P>, b: number, queries: number): CaseCall<P> {
  const [q, keys, values, starts, contexts, tables] = call.inputs, [, heads, headDim] = q!.shape as number[];
  const maxBlocks = tables!.shape[1] as number, end = starts!.data[b + 1]!, row = heads! * headDim!;
  const integers = (shape: number[], data: number[]) => ({ dtype: "i32" as const, shape, data: Int32Array.from(data) });
  const data = Float32Array.from(q!.data.slice((end - queries) * row, end * row));
  return {
    ...call,
    inputs: [
      { ...q!, shape: [queries, heads!, headDim!], data },
      keys!,
      values!,
      integers([2], [0, queries]),
      integers([1], [contexts!.data[b]!]),
      integers([1, maxBlocks], [...tables!.data.slice(b * maxBlocks, (b + 1) * maxBlocks)]),
    ],
  };
}

Deno.test("flash attention of a row has the same bits in every batch, and padding rows are zeros", async () => {
  await using stack = new AsyncDisposableStack();
  const device = await openDevice();
  stack.defer(() => device.close());
  const call = attentionCall(setting, seededRandom(3));
  if (!flashForm(call, device.caps)) return; // a device without subgroups or half precision
  const row = 6 * 64, [batch] = await runKernel(device, flashAttentionKernel, call);
  const [exact] = await runKernel(device, pagedAttentionKernel, call);
  assert([...exact!].every((value, i) => Math.abs(value - batch![i]!) < 1e-5), "the exact order gives nearly the same");
  for (const [b, queries] of [[0, 90], [0, 5], [1, 1], [2, 33], [4, 3]] as const) {
    const [own] = await runKernel(device, flashAttentionKernel, alone(call, b, queries));
    const end = call.inputs[3]!.data[b + 1]!;
    assertEquals(own, batch!.slice((end - queries) * row, end * row), `${queries} rows of sequence ${b}`);
  }
  assertEquals(Math.max(...batch!.slice(-3 * row).map(Math.abs)), 0, "padding rows");
});

Deno.test("flash attention has forms for half-precision pools and usual heads, within the device's workgroup memory", () => {
  const caps = { subgroups: true, subgroupSize: 32, f16: true, workgroupMemory: 49152 } as Caps;
  const formOf = (headDim: number, changes: Partial<Caps> = {}, pool: "f16" | "f32" = "f16") =>
    flashForm(attentionCall({ ...setting, headDim, pool }, seededRandom(1)), { ...caps, ...changes });
  assertEquals(formOf(64)?.slices, 4);
  assertEquals(formOf(64, { workgroupMemory: 32768 })?.slices, 2);
  assertEquals(formOf(128)?.slices, 2);
  assertEquals(formOf(80), undefined);
  assertEquals(formOf(256), undefined);
  assertEquals(formOf(64, {}, "f32"), undefined);
  assertEquals(formOf(64, { subgroups: false }), undefined);
  assertEquals(formOf(64, { f16: false }), undefined);
  assertEquals(formOf(64, { workgroupMemory: 16384 }), undefined);
});
