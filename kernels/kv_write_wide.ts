/**
 * Rotation and cache writes for many rows on a GPU: the form of `ropeAndWriteKv` that prompts take. A lane turns four pairs, or moves
 * eight values, with vector loads and stores, and workgroups are filled whatever a head's size. Results are those of the other
 * form, bit for bit.
 *
 * @module
 */
import { maxOf } from "../tensor/dim.ts";
import { type Caps, dimWgsl, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import type { RopeAndWriteKvParams } from "./kv_write.ts";

const LANES = 64;

/** Rows above which there are enough lanes. */
const FEW_ROWS = 16;

/** Most workgroups along one axis. */
const GREATEST = 65535;

/** Whether a call takes this form: heads without norms that turn as a whole, their halves apart. */
export function isWide({ params, inputs }: KernelCall<RopeAndWriteKvParams>, caps: Caps): boolean {
  const { headDim, rotaryDim, traditional, eps } = params;
  return !caps.cpu && maxOf(inputs[0]!.shape[0]!) > FEW_ROWS && eps === undefined && !traditional &&
    rotaryDim === headDim && headDim % 8 === 0;
}

/** Lanes of a row. */
function rowLanes({ heads, kvHeads, headDim }: RopeAndWriteKvParams): number {
  return (heads + 2 * kvHeads) * headDim / 8;
}

/** Workgroups for `rows` rows. */
export function wideGrid(params: RopeAndWriteKvParams, rows: number): readonly [number, number, number] {
  const count = Math.ceil(rows * rowLanes(params) / LANES), x = Math.min(count, GREATEST);
  return [x, x === 0 ? 0 : Math.ceil(count / x), 1];
}

/** The shader. */
export function wideWgsl(call: KernelCall<RopeAndWriteKvParams>): KernelSource {
  const { heads, kvHeads, headDim } = call.params, [qkv, , , table, pool] = call.inputs, each = headDim / 8;
  const slots = maxOf(pool!.shape[0]!), last = maxOf(table!.shape[0]!) - 1, perRow = rowLanes(call.params);
  return {
    inputs: [
      { name: "qkv", width: 4 },
      { name: "positions" },
      { name: "slot_mapping" },
      { name: "table", width: 4 },
      { name: "keys", width: 4 },
      { name: "values", width: 4 },
    ],
    outputs: [{ name: "q", width: 4 }, { name: "next_keys", width: 4 }, { name: "next_values", width: 4 }],
    workgroupSize: [LANES, 1, 1],
    // Vectors of four features: a head has `2 * each`, and those of its second half turn with those of the first.
    main: `
  let at = (workgroup.y * groups.x + workgroup.x) * ${LANES}u + lane;
  let row = at / ${perRow}u;
  if (row >= ${dimWgsl(qkv!.shape[0]!)}) { return; }
  let head = (at - row * ${perRow}u) / ${each}u;
  let low = at % ${each}u;
  let source = (row * ${heads + 2 * kvHeads}u + head) * ${2 * each}u + low;
  let slot = slot_mapping(row);
  let kept = slot >= 0 && slot < ${slots};
  let a = qkv(source);
  let b = qkv(source + ${each}u);
  if (head >= ${heads + kvHeads}u) {
    if (kept) {
      let place = (u32(slot) * ${kvHeads}u + head - ${heads + kvHeads}u) * ${2 * each}u + low;
      store_next_values(place, a);
      store_next_values(place + ${each}u, b);
    }
    return;
  }
  let angles = u32(clamp(i32(positions(row)), 0, ${last})) * ${2 * each}u + 2u * low;
  let pair0 = table(angles);
  let pair1 = table(angles + 1u);
  let cosine = vec4f(pair0.xz, pair1.xz);
  let sine = vec4f(pair0.yw, pair1.yw);
  let first = fma(a, cosine, -(b * sine));
  let second = fma(b, cosine, a * sine);
  if (head < ${heads}u) {
    let place = (row * ${heads}u + head) * ${2 * each}u + low;
    store_q(place, first);
    store_q(place + ${each}u, second);
  } else if (kept) {
    let place = (u32(slot) * ${kvHeads}u + head - ${heads}u) * ${2 * each}u + low;
    store_next_keys(place, first);
    store_next_keys(place + ${each}u, second);
  }`,
  };
}
