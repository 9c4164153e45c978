/** Which forms int8 products take. */
import { assert, assertEquals } from "@std/assert";
import type { Caps } from "../tensor/kernel.ts";
import { int8Form } from "./int8_variants.ts";

/** What an H100 can do. */
const h100: Caps = {
  ...{
    subgroups: true,
    subgroupSize: 32,
    f16: true,
    timestamps: true,
    packedDot: true,
    int64: false,
    coherent: true,
    cpu: false,
  },
  ...{ maxBinding: 2 ** 31, maxUniformBinding: 65536, maxStorageBuffers: 32 },
  ...{ maxInvocations: 1024, workgroupMemory: 49152 },
};

Deno.test("tiles that store codes are sliced where there are few, as others are", () => {
  // Gate and up of small models, by 128 tokens: fewer than 132 tiles of 64 x 64.
  for (const [rows, columns] of [[2816, 512], [3072, 896], [2048, 2048]] as const) {
    const size = { maxTokens: 128, rows, columns },
      plain = int8Form(h100, size),
      blocks = int8Form(h100, { ...size, blocks: true });
    assert(plain.slices > 1, "plain");
    assert(blocks.kind === "tile" && blocks.slices > 1, `${rows} x ${columns} in ${JSON.stringify(blocks)}`);
    const across = blocks.rows / blocks.threadRows;
    assertEquals(blocks.threadRows / 2 % (32 / across), 0, "neighbours have whole blocks of 32 outputs");
  }
});

Deno.test("forms that store sums have whole teams, and blocks of 32 outputs, on every device", () => {
  for (const maxInvocations of [256, 384, 512, 640, 768, 1024]) {
    for (const subgroupSize of [8, 16, 32, 64]) {
      for (const maxTokens of [1, 2, 4, 8, 32]) {
        const size = { maxTokens, rows: 3584, columns: 3584, sums: true };
        const form = int8Form({ ...h100, maxInvocations, subgroupSize }, size);
        assert(form.kind === "rows" && Number.isInteger(form.slices), JSON.stringify(form));
        assert(form.lanes * form.groups * form.slices <= maxInvocations, JSON.stringify(form));
        assertEquals(form.groups * form.rows, 32);
      }
    }
  }
});
