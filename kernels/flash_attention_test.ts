/** Flash attention by tiles: a row's result does not depend on its company, and other devices and pools fall back. */
import { assert, assertEquals } from "@std/assert";
import { openDevice } from "../tensor/device.ts";
import type { Caps } from "../tensor/kernel.ts";
import { runKernel } from "../tensor/run_kernel.ts";
import { pagedAttentionKernel } from "./attention.ts";
import { attentionCall, type AttentionSetting } from "./attention_cases.ts";
import { flashAttentionKernel, flashForm } from "./flash_attention.ts";
import { quantiseActivations } from "./quantise.ts";
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
  // Queries, weights and the sums of a tile are in half precision: `attention_cases.ts` has the bound.
  assert([...exact!].every((value, i) => Math.abs(value - batch![i]!) < 1e-2), "the exact order gives nearly the same");
  for (const [b, queries] of [[0, 90], [0, 5], [1, 1], [2, 33], [4, 3]] as const) {
    const [own] = await runKernel(device, flashAttentionKernel, alone(call, b, queries));
    const end = call.inputs[3]!.data[b + 1]!;
    assertEquals(own, batch!.slice((end - queries) * row, end * row), `${queries} rows of sequence ${b}`);
  }
  assertEquals(Math.max(...batch!.slice(-3 * row).map(Math.abs)), 0, "padding rows");
});

Deno.test("flash attention has forms for half-precision pools and usual heads, within the device's workgroup memory", () => {
  const caps = { subgroups: true, subgroupSize: 32, f16: true, workgroupMemory: 49152 } as Caps;
  const formOf = (headDim: number, changes: Partial<Caps> = {}, more: Partial<AttentionSetting> = {}) =>
    flashForm(attentionCall({ ...setting, headDim, ...more }, seededRandom(1)), { ...caps, ...changes });
  const many = { kvHeads: 15 }; // 135 workgroups of 64 queries
  assertEquals(formOf(64, {}, many), { queries: 64, across: 8, threadQueries: 8, slices: 4, narrow: false });
  assertEquals(formOf(64, { workgroupMemory: 32768 }, many)?.slices, 2);
  assertEquals(formOf(64), { queries: 32, across: 8, threadQueries: 8, slices: 4, narrow: true });
  assertEquals(formOf(128)?.slices, 2);
  assertEquals(formOf(80), undefined);
  assertEquals(formOf(256), undefined);
  assertEquals(formOf(64, {}, { pool: "f32" }), undefined);
  assertEquals(formOf(64, { subgroups: false }), undefined);
  assertEquals(formOf(64, { f16: false }), undefined);
  assertEquals(formOf(64, { workgroupMemory: 16384 }), undefined);
});

Deno.test("flash attention stores codes and scales of what it would store", async () => {
  await using stack = new AsyncDisposableStack();
  const device = await openDevice();
  stack.defer(() => device.close());
  for (const headDim of [64, 96]) {
    const call = attentionCall({ ...setting, headDim }, seededRandom(headDim));
    if (!flashForm(call, device.caps)) return;
    const [attended] = await runKernel(device, flashAttentionKernel, call);
    const quantised = { ...call, params: { ...call.params, quantise: true } };
    const [codes, scales] = await runKernel(device, flashAttentionKernel, quantised);
    const expected = quantiseActivations(attended!), bytes = new Int8Array(Uint32Array.from(codes!).buffer);
    const wanted = new Int8Array(expected.codes.buffer);
    // Rounded to half precision on the way, a code may go to the other side of a half.
    assert(bytes.every((code, i) => Math.abs(code - wanted[i]!) <= 1), "codes");
    assert(bytes.filter((code, i) => code !== wanted[i]!).length < bytes.length / 20, "most codes");
    scales!.forEach((scale, i) => {
      if (i % 2 === 0) return assert(Math.abs(scale - expected.scales[i]!) <= 1e-3 * expected.scales[i]!, "scales");
      const own = bytes.subarray(16 * (i - 1), 16 * (i + 1)).reduce((sum, code) => sum + code, 0);
      assert(Math.abs(scale - own * scales![i - 1]!) <= 1e-3 * scales![i - 1]!, "sums are those of the codes");
    });
  }
});
