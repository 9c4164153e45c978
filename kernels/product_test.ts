import { assertEquals, assertThrows } from "@std/assert";
import { openDevice } from "../tensor/device.ts";
import { withCaps } from "../tensor/device_testing.ts";
import type { HostArray } from "../tensor/dtype.ts";
import { input } from "../tensor/node.ts";
import { runKernel } from "../tensor/run_kernel.ts";
import { matmul } from "./matmul.ts";
import { productKernel, type ProductParams } from "./product.ts";
import { linear, quantisedMatmul } from "./quantised_matmul.ts";
import { seededRandom } from "./random.ts";
import { productCall } from "./random_product.ts";
import { type ProductVariant, productVariants } from "./variants.ts";
import type { WeightFormat } from "./weight_format.ts";

const fourBits: WeightFormat = { kind: "affine", bits: 4, groupSize: 64, scales: "f16" };

/** Products whose readers differ: in the parts of a step, in what a load brings, in columns that run out. */
const products: readonly (ProductParams & { readonly columns: number })[] = [
  { format: fourBits, columns: 64 * 45 },
  { format: { kind: "dense", dtype: "f16" }, columns: 1130, gate: true },
  { format: { ...fourBits, bits: 3, groupSize: 32 }, columns: 32 * 37 },
];

for (const cpu of [true, false]) {
  for (const disable of cpu ? [[] as const] : [[], ["subgroups"]] as const) {
    Deno.test(`all forms for a ${cpu ? "CPU" : "GPU"} without [${disable}] add a row in one order`, async () => {
      const plain = await openDevice({ disable }), device = withCaps(plain, { cpu });
      const [one, ...many] = productVariants.filter((form) => form.cpu === cpu);
      for (const { columns, ...params } of disable.length > 0 ? products.slice(0, 1) : products) {
        const rows = 6, tokens = 9, kind = params.format.kind;
        const { inputs: [x, ...weight] } = productCall(params, tokens, rows, columns, seededRandom(columns));
        const run = async (form: ProductVariant, from: number, to: number): Promise<HostArray> => {
          const data = x!.data.slice(from * columns, to * columns);
          const inputs = [{ dtype: "f32", shape: [to - from, columns], data } as const, ...weight];
          return (await runKernel(device, productKernel(kind, kind, () => form), { params, inputs }))[0]!;
        };
        const alone = [await run(one!, 0, 1), await run(one!, tokens - 1, tokens)];
        for (const form of many) {
          const batch = await run(form, 0, tokens), size = batch.length / tokens;
          const label = JSON.stringify([params, form]);
          assertEquals([batch.slice(0, size), batch.slice(-size)], alone, label);
        }
      }
      plain.close();
    });
  }
}

Deno.test("a token's product has the same bits alone and in a batch", async () => {
  const device = await openDevice();
  try {
    for (const format of [fourBits, { kind: "dense", dtype: "bf16" } as const]) {
      const kernel = format.kind === "dense" ? matmul : quantisedMatmul;
      const columns = 448, rows = 300; // enough weights for the form with the most tokens
      const { params, inputs: [x, ...weight] } = productCall({ format }, 21, rows, columns, seededRandom(5));
      const [batch] = await runKernel(device, kernel, { params, inputs: [x!, ...weight] });
      for (const [from, to] of [[0, 1], [20, 21], [3, 8]] as const) {
        const data = x!.data.slice(from * columns, to * columns);
        const [alone] = await runKernel(device, kernel, {
          params,
          inputs: [{ dtype: "f32", shape: [to - from, columns], data }, ...weight],
        });
        assertEquals(alone, batch!.slice(from * rows, to * rows));
      }
    }
  } finally {
    device.close();
  }
});

Deno.test("shapes that do not meet are named", () => {
  const x = input("x", "f32", [3, 64]);
  const codes = input("codes", "u32", [10, 4]), affine = input("affine", "u32", [10, 1]);
  assertThrows(
    () => linear(x, { format: { ...fourBits, groupSize: 32 }, rows: 10, columns: 32, tensors: [codes, affine] }),
    Error,
    "Cannot multiply [3, 64] by weight [10, 32]: 64 columns meet 32",
  );
  const dense = input("dense", "f32", [10, 32]);
  assertThrows(
    () => linear(x, { format: { kind: "dense", dtype: "f32" }, rows: 10, columns: 32, tensors: [dense] }),
    Error,
    "Cannot multiply [3, 64] by weight [10, 32]",
  );
  const wrong = input("wrong", "u32", [10, 2]), wide = input("wide", "u32", [10, 8]);
  assertThrows(
    () => linear(x, { format: fourBits, rows: 10, columns: 64, tensors: [wide, wrong] }),
    Error,
    "Cannot multiply by weight [10, 64]: tensor 1 has to be u32 [10, 1], not u32 [10, 2]",
  );
});

Deno.test("an odd number of rows cannot be gated", () => {
  const types = [{ dtype: "f32", shape: [1, 8] }, { dtype: "f32", shape: [3, 8] }] as const;
  assertThrows(
    () => matmul.infer(types, { format: { kind: "dense", dtype: "f32" }, gate: true }),
    Error,
    "Cannot gate weight [3, 8]",
  );
});
