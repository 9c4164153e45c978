/**
 * Token embedding: row ids[t] of the table for each token t, dequantised to f32. The table is a weight like any other, so
 * that a tied head multiplies by the very tensors that are looked up here.
 *
 *     y[t, c] = W[clamp(ids[t], 0, rows - 1), c]
 *
 * An invocation copies 32 columns, the unit in which `weight_format.ts` reads every format. Ids outside the table are clamped,
 * as `gather` does: a padded row of a batch may hold anything.
 *
 * @module
 */
import { formatShape } from "../tensor/dim.ts";
import { bytesPerElement } from "../tensor/dtype.ts";
import { dimWgsl, type Kernel, type TensorType } from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import {
  decodeWeight,
  partColumns,
  type Weight,
  type WeightFormat,
  weightReader,
  weightTensorTypes,
} from "./weight_format.ts";

/** Parameters of an embedding. */
export interface EmbeddingParams {
  /** How the table is stored. */
  readonly format: WeightFormat;
  /** Tokens of the vocabulary. */
  readonly rows: number;
  /** Hidden size. */
  readonly columns: number;
}

const workgroup = 64;

function checkInputs(inputs: readonly TensorType[], { format, rows, columns }: EmbeddingParams): void {
  const [ids, ...tensors] = inputs;
  if (!ids || ids.shape.length !== 1 || (ids.dtype !== "u32" && ids.dtype !== "i32")) {
    const given = ids ? `${ids.dtype} ${formatShape(ids.shape)}` : "nothing";
    throw new Error(`Cannot look up ${given} in table [${rows}, ${columns}]: ids are u32 or i32 of shape [tokens]`);
  }
  if (rows < 1) throw new Error(`Cannot look up ids in table [${rows}, ${columns}]: it has no rows`);
  weightTensorTypes(format, rows, columns).forEach((type, i) => {
    const given = tensors[i];
    if (!given || given.dtype !== type.dtype || formatShape(given.shape) !== formatShape(type.shape)) {
      throw new Error(
        `Cannot look up ids in table [${rows}, ${columns}]: tensor ${i} has to be ${type.dtype} ${
          formatShape(type.shape)
        }, ` +
          `not ${given ? `${given.dtype} ${formatShape(given.shape)}` : "missing"}`,
      );
    }
  });
}

/** Rows of a weight, dequantised: inputs ids [tokens] and the table's tensors, output [tokens, columns] in f32. */
export const embeddingKernel: Kernel<EmbeddingParams> = {
  name: "embedding",
  infer(inputs, params) {
    checkInputs(inputs, params);
    return [{ dtype: "f32", shape: [inputs[0]!.shape[0]!, params.columns] }];
  },
  wgsl({ inputs, params: { format, rows, columns } }) {
    const reader = weightReader(format, columns, 1);
    const stores = Array.from({ length: partColumns }, (_, i) => {
      const store = `store_y(base + ${i}u, w${i >> 2}.${"xyzw"[i & 3]});`;
      return columns % partColumns === 0 ? store : `if (step * ${partColumns}u + ${i}u < ${columns}u) { ${store} }`;
    });
    return {
      inputs: [{ name: "ids" }, ...reader.ports],
      outputs: [{ name: "y" }],
      workgroupSize: [workgroup, 1, 1],
      main: `let step = workgroup.x * ${workgroup}u + lane;
let token = workgroup.y + workgroup.z * groups.y;
if (step < ${reader.steps}u && token < ${dimWgsl(inputs[0]!.shape[0]!)}) {
let row = u32(clamp(i32(ids(token)), 0, ${rows - 1}));
let base = token * ${columns}u + step * ${partColumns}u;
${reader.begin("w", "row", "step")}${reader.part("w", "row", "step", 0)}${stores.join("\n")}
}`,
    };
  },
  grid({ inputs, params }, _caps, resolve) {
    const tokens = resolve(inputs[0]!.shape[0]!);
    const folds = Math.max(1, Math.ceil(tokens / 65535)); // a dimension of the grid holds 65,535
    return [Math.ceil(params.columns / partColumns / workgroup), Math.ceil(tokens / folds), folds];
  },
  reference({ params: { format, rows, columns } }, [ids, ...tensors]) {
    const table = decodeWeight(format, tensors, columns);
    return [
      Float64Array.from({ length: ids!.length * columns }, (_, i) => {
        const row = Math.max(0, Math.min(rows - 1, ids![Math.floor(i / columns)]!));
        return table[row * columns + i % columns]!;
      }),
    ];
  },
  cost({ inputs, params: { rows, columns } }, caps, resolve) {
    const tokens = resolve(inputs[0]!.shape[0]!);
    const rowBytes = inputs.slice(1).reduce((sum, { dtype, shape }) => {
      return sum + (shape[1] as number) * bytesPerElement(dtype, caps.f16);
    }, 0);
    return { flops: 0, bytes: Math.min(tokens, rows) * rowBytes + 4 * tokens * (columns + 1) };
  },
  slots: ["elementwise"],
};

/**
 * Rows of a table by token id.
 *
 * @param weight Table [vocabulary, hidden], dense or quantised.
 * @param ids Token ids [tokens], u32 or i32; clamped to the table.
 * @returns [tokens, hidden], f32.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { input } from "../tensor/node.ts";
 * import { embedding } from "./embedding.ts";
 * const table = { format: { kind: "dense", dtype: "f32" }, rows: 100, columns: 8, tensors: [input("table", "f32", [100, 8])] } as const;
 * assertEquals(embedding(table, input("ids", "u32", [5])).shape, [5, 8]);
 * ```
 */
export function embedding(weight: Weight, ids: Node): Node {
  const { format, rows, columns, tensors } = weight;
  return kernelNode(embeddingKernel, [ids, ...tensors], { format, rows, columns });
}
