/** A row's attention is bit-equal in any company: alone, in a batch, and however many queries share a workgroup. */
import { assertEquals } from "@std/assert";
import { openDevice } from "../tensor/device.ts";
import { runKernel } from "../tensor/run_kernel.ts";
import { pagedAttentionKernel } from "./attention.ts";
import { attentionCall, type AttentionSetting } from "./attention_cases.ts";
import { seededRandom } from "./random.ts";
import type { CaseInput } from "./spec.ts";

const setting: AttentionSetting = {
  sequences: [[5, 300], [1, 131], [40, 40], [1, 1], [3, 260]],
  kvHeads: 2,
  group: 4,
  headDim: 64,
  blockSize: 16,
  pool: "f16",
  padding: 3,
};

Deno.test("attention of a row does not depend on the batch, the layout or subgroups", async () => {
  const call = attentionCall(setting, seededRandom(3));
  const device = await openDevice(), plain = await openDevice({ disable: ["subgroups", "f16"] });
  const [batch] = await runKernel(device, pagedAttentionKernel, call);
  for (const queries of [1, 4] as const) {
    const shared = { ...call, params: { ...call.params, queries } };
    if (queries > 1) assertEquals((await runKernel(device, pagedAttentionKernel, shared))[0], batch);
    assertEquals((await runKernel(plain, pagedAttentionKernel, shared))[0], batch);
  }
  const [q, keys, values, starts, contexts, tables] = call.inputs as [
    CaseInput,
    CaseInput,
    CaseInput,
    CaseInput,
    CaseInput,
    CaseInput,
  ];
  const columns = 8 * 64, maxBlocks = tables.shape[1] as number;
  for (const [b, context] of contexts.data.entries()) {
    // The sequence's last query alone, as a decode step would have it.
    const last = starts.data[b + 1]! - 1;
    const integers = (shape: number[], data: ArrayLike<number>): CaseInput => ({
      dtype: "i32",
      shape,
      data: Int32Array.from(data),
    });
    const inputs = [
      {
        ...q,
        shape: [1, 8, 64],
        data: q.data.slice(last * columns, (last + 1) * columns) as Float32Array<ArrayBuffer>,
      },
      keys,
      values,
      integers([2], [0, 1]),
      integers([1], [context]),
      integers([1, maxBlocks], tables.data.slice(b * maxBlocks, (b + 1) * maxBlocks)),
    ];
    const [alone] = await runKernel(device, pagedAttentionKernel, { params: call.params, inputs });
    assertEquals(alone, batch!.slice(last * columns, (last + 1) * columns));
  }
  assertEquals(Math.max(...batch!.slice(-3 * columns).map(Math.abs)), 0, "padding rows give zeros");
  device.close();
  plain.close();
});
