/**
 * Writes keys and values into the paged cache (Kwon et al. 2023, "Efficient Memory Management for Large Language Model
 * Serving with PagedAttention"). A pool holds blocks of tokens; `slotMapping` names the pool row of each token of the
 * batch, or a number below 0 for a token that is not to be kept. A pool is state: the write is in place, and what the
 * functions return is the pool's next version.
 *
 * {@linkcode ropeAndWriteKv} is what decoders use between the Q/K/V product and attention: Qwen3's RMSNorm per head
 * where there are weights for it, the rotation, and both writes in one dispatch.
 *
 * @module
 */
import { type Dim, formatShape, maxOf } from "../tensor/dim.ts";
import { bytesPerElement, isFloat } from "../tensor/dtype.ts";
import {
  type Caps,
  dimWgsl,
  type Kernel,
  type KernelCall,
  type KernelSource,
  type TensorType,
} from "../tensor/kernel.ts";
import { kernelNode, type Node, output } from "../tensor/node.ts";
import { isWide, wideGrid, wideWgsl } from "./kv_write_wide.ts";
import { inverseRms } from "./norm.ts";
import { anglesWgsl, checkRotation, pairOf, pairWgsl, type RopeParams } from "./rope.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";

const LANES = 64;

function checkPool(what: string, pool: TensorType | undefined, kvHeads?: number, headDim?: number): void {
  if (!pool || pool.shape.length !== 3 || !isFloat(pool.dtype) || typeof pool.shape[0] !== "number") {
    throw new Error(`Cannot write ${what}: the pool has to be floats [slots, kvHeads, headDim]`);
  }
  if (pool.shape[1] !== (kvHeads ?? pool.shape[1]) || pool.shape[2] !== (headDim ?? pool.shape[2])) {
    throw new Error(
      `Cannot write ${what}: the pool is ${formatShape(pool.shape)}, not [slots, ${kvHeads}, ${headDim}]`,
    );
  }
}

function checkSlots(slots: TensorType | undefined, rows: Dim): void {
  if (slots?.dtype !== "i32" || slots.shape.length !== 1 || maxOf(slots.shape[0]!) !== maxOf(rows)) {
    throw new Error(`Cannot write to the cache: the slot mapping has to be i32 [${rows}]`);
  }
}

// ---- write ----

function writeWgsl(call: KernelCall<null>): KernelSource {
  const [pool, value] = call.inputs as [TensorType, TensorType];
  const [slots, kvHeads, headDim] = pool.shape as [number, number, number];
  const width = headDim % 4 === 0 ? 4 : 1, count = kvHeads * headDim / width;
  return {
    inputs: [{ name: "pool", width }, { name: "value", width }, { name: "slot_mapping" }],
    outputs: [{ name: "next", width }],
    workgroupSize: [LANES, 1, 1],
    main: `
  ${rowWgsl(dimWgsl(value.shape[0]!))}
  let slot = slot_mapping(row);
  if (global.x >= ${count}u || slot < 0 || slot >= ${slots}) { return; }
  store_next(u32(slot) * ${count}u + global.x, value(row * ${count}u + global.x));`,
  };
}

/**
 * The write as a kernel: pool [S, kvHeads, D], value [T, kvHeads, D], slotMapping [T] i32 to the pool's next version.
 */
export const writeKvKernel: Kernel<null> = {
  name: "write_kv",
  infer([pool, value, slots]) {
    checkPool("to the cache", pool);
    if (!value || value.shape.length !== 3 || !isFloat(value.dtype)) {
      throw new Error("Cannot write to the cache: the value has to be floats [rows, kvHeads, headDim]");
    }
    checkPool("to the cache", pool, value.shape[1] as number, value.shape[2] as number);
    checkSlots(slots, value.shape[0]!);
    return [pool!];
  },
  wgsl: writeWgsl,
  grid(call, _caps, resolve) {
    const [rows, kvHeads, headDim] = call.inputs[1]!.shape as [Dim, number, number];
    return rowGrid(Math.ceil(kvHeads * headDim / (headDim % 4 === 0 ? 4 : 1) / LANES), resolve(rows));
  },
  reference(call, [pool, value, slots]) {
    const next = Float64Array.from(pool!), size = next.length / maxOf(call.inputs[0]!.shape[0]!);
    for (let row = 0; row < slots!.length; row++) {
      for (let i = 0; slots![row]! >= 0 && i < size; i++) next[slots![row]! * size + i] = value![row * size + i]!;
    }
    return [next];
  },
  cost(call, caps, resolve) {
    const [pool, value] = call.inputs as [TensorType, TensorType];
    const [rows, kvHeads, headDim] = value.shape as [Dim, number, number];
    const bytes = bytesPerElement(pool.dtype, caps.f16) + bytesPerElement(value.dtype, caps.f16);
    return { flops: 0, bytes: resolve(rows) * (kvHeads * headDim * bytes + 4) };
  },
  updates: () => [0],
};

/**
 * Writes keys or values to their places in a pool.
 *
 * @param pool [numBlocks * blockSize, kvHeads, D] f16 or f32; must not be read afterwards.
 * @param value [T, kvHeads, D].
 * @param slotMapping [T] i32: the pool row of each token; below 0 skips it.
 * @returns The pool's next version.
 */
export function writeKv(pool: Node, value: Node, slotMapping: Node): Node {
  return kernelNode(writeKvKernel, [pool, value, slotMapping], null);
}

// ---- normalise, rotate and write ----

/** The shape of a decoder's attention, and how it rotates. */
export interface RopeAndWriteKvParams extends RopeParams {
  /** Query heads. */
  readonly heads: number;
  /** Key and value heads. */
  readonly kvHeads: number;
  /** Features of a head. */
  readonly headDim: number;
  /** Epsilon of the per-head RMSNorm; given exactly where there are norm weights. */
  readonly eps?: number;
}

/** Lanes of a head's workgroup. */
function headLanes(caps: Caps): number {
  return caps.cpu ? 8 : 32;
}

/**
 * WGSL that sets `inverse_rms` of the head at `base`: lanes sum squares, each adds the lanes' sums in the same order.
 */
function rmsWgsl(headDim: number, eps: number, lanes: number): string {
  return `
  var squares = 0.0;
  for (var i = lane; i < ${headDim}u; i += ${lanes}u) {
    let value = qkv(base + i);
    squares = fma(value, value, squares);
  }
  partial[lane] = squares;
  workgroupBarrier();
  let sum = ${Array.from({ length: lanes }, (_, i) => `partial[${i}]`).join(" + ")};
  let inverse_rms = ${inverseRms("sum", headDim, eps)};`;
}

function fusedWgsl(call: KernelCall<RopeAndWriteKvParams>, caps: Caps): KernelSource {
  const { heads, kvHeads, headDim, rotaryDim, eps } = call.params;
  const qkv = call.inputs[0]!, slots = maxOf(call.inputs[4]!.shape[0]!), lanes = headLanes(caps), half = rotaryDim / 2;
  const normed = eps !== undefined;
  const norms = normed ? [{ name: "q_norm" }, { name: "k_norm" }] : [];
  return {
    inputs: [
      { name: "qkv" },
      { name: "positions" },
      { name: "slot_mapping" },
      { name: "table", width: 2 },
      { name: "keys" },
      { name: "values" },
      ...norms,
    ],
    outputs: [{ name: "q" }, { name: "next_keys" }, { name: "next_values" }],
    workgroupSize: [lanes, 1, 1],
    declarations: `${normed ? `var<workgroup> partial: array<f32, ${lanes}>;` : ""}
fn feature(index: u32, i: u32, is_query: bool, inverse_rms: f32) -> f32 {
  ${normed ? "return qkv(index) * inverse_rms * select(k_norm(i), q_norm(i), is_query);" : "return qkv(index);"}
}
fn store(row: u32, head: u32, slot: i32, i: u32, value: f32) {
  if (head < ${heads}u) {
    store_q((row * ${heads}u + head) * ${headDim}u + i, value);
  } else if (slot >= 0 && slot < ${slots}) {
    store_next_keys((u32(slot) * ${kvHeads}u + head - ${heads}u) * ${headDim}u + i, value);
  }
}`,
    // A workgroup takes one head of one row: a query head, a key head, or a value head, in the order of the product.
    main: `
  ${rowWgsl(dimWgsl(qkv.shape[0]!))}
  let head = workgroup.x;
  let base = (row * ${heads + 2 * kvHeads}u + head) * ${headDim}u;
  let slot = slot_mapping(row);
  if (head >= ${heads + kvHeads}u) {
    if (slot < 0 || slot >= ${slots}) { return; }
    let place = (u32(slot) * ${kvHeads}u + head - ${heads + kvHeads}u) * ${headDim}u;
    for (var i = lane; i < ${headDim}u; i += ${lanes}u) { store_next_values(place + i, qkv(base + i)); }
    return;
  }
  let is_query = head < ${heads}u;
  ${normed ? rmsWgsl(headDim, eps, lanes) : "let inverse_rms = 1.0;"}
  ${anglesWgsl(call.params, call.inputs[3]!)}
  for (var i = lane; i < ${half}u; i += ${lanes}u) {
    ${pairWgsl(call.params)}
    let turn = table(angles + i);
    let a = feature(base + first, first, is_query, inverse_rms);
    let b = feature(base + second, second, is_query, inverse_rms);
    store(row, head, slot, first, fma(a, turn.x, -(b * turn.y)));
    store(row, head, slot, second, fma(b, turn.x, a * turn.y));
  }
  ${
      rotaryDim === headDim ? "" : `for (var i = lane + ${rotaryDim}u; i < ${headDim}u; i += ${lanes}u) {
    store(row, head, slot, i, feature(base + i, i, is_query, inverse_rms));
  }`
    }`,
  };
}

/** One head: normalised where there is a weight, and rotated. */
function turnedHead(
  head: Float64Array,
  weight: ArrayLike<number> | undefined,
  angles: number,
  table: ArrayLike<number>,
  params: RopeAndWriteKvParams,
): Float64Array {
  const squares = head.reduce((sum, value) => sum + value * value, 0);
  const scale = 1 / Math.sqrt(squares / head.length + (params.eps ?? 0));
  const plain = weight ? head.map((value, i) => value * scale * weight[i]!) : head;
  const turned = plain.slice();
  for (let i = 0; i < params.rotaryDim / 2; i++) {
    const [first, second] = pairOf(i, params);
    const cosine = table[2 * (angles + i)]!, sine = table[2 * (angles + i) + 1]!;
    turned[first] = plain[first]! * cosine - plain[second]! * sine;
    turned[second] = plain[second]! * cosine + plain[first]! * sine;
  }
  return turned;
}

function fusedReference(
  { params }: KernelCall<RopeAndWriteKvParams>,
  [qkv, positions, slots, table, keys, values, qNorm, kNorm]: readonly ArrayLike<number>[],
): Float64Array[] {
  const { heads, kvHeads, headDim, rotaryDim } = params, perRow = heads + 2 * kvHeads, rows = positions!.length;
  const q = new Float64Array(rows * heads * headDim),
    nextKeys = Float64Array.from(keys!),
    nextValues = Float64Array.from(values!);
  const flat = Float64Array.from(qkv!);
  for (let row = 0; row < rows; row++) {
    const slot = slots![row]!, angles = positions![row]! * rotaryDim / 2;
    for (let head = 0; head < perRow; head++) {
      const start = (row * perRow + head) * headDim, features = flat.subarray(start, start + headDim);
      if (head < heads) {
        q.set(turnedHead(features, qNorm, angles, table!, params), (row * heads + head) * headDim);
      } else if (slot < 0) {
        continue;
      } else if (head < heads + kvHeads) {
        const turned = turnedHead(features, kNorm, angles, table!, params);
        nextKeys.set(turned, (slot * kvHeads + head - heads) * headDim);
      } else {
        nextValues.set(features, (slot * kvHeads + head - heads - kvHeads) * headDim);
      }
    }
  }
  return [q, nextKeys, nextValues];
}

/**
 * The fused kernel: qkv [T, (heads + 2 kvHeads) D], positions [T], slotMapping [T], table, keys and values pools, and,
 * with `eps`, the weights [D] of the query and key norms, to q [T, heads, D] f32 and the pools' next versions.
 */
export const ropeAndWriteKvKernel: Kernel<RopeAndWriteKvParams> = {
  name: "rope_write_kv",
  infer([qkv, positions, slots, table, keys, values, qNorm, kNorm], params) {
    const { heads, kvHeads, headDim, eps } = params, columns = (heads + 2 * kvHeads) * headDim;
    if (!qkv || !positions || !table || !isFloat(qkv.dtype) || qkv.shape.length !== 2 || qkv.shape[1] !== columns) {
      throw new Error(
        `Cannot rotate: queries, keys and values are ${qkv && formatShape(qkv.shape)}, not [T, ${columns}]`,
      );
    }
    checkRotation(params, headDim, qkv.shape[0]!, positions, table);
    checkSlots(slots, qkv.shape[0]!);
    checkPool("keys", keys, kvHeads, headDim);
    checkPool("values", values, kvHeads, headDim);
    for (const norm of [qNorm, kNorm]) {
      if (
        (norm === undefined) !== (eps === undefined) || norm && (norm.shape.length !== 1 || norm.shape[0] !== headDim)
      ) {
        throw new Error(`Cannot normalise heads: two weights [${headDim}] and eps belong together`);
      }
    }
    return [{ dtype: "f32", shape: [qkv.shape[0]!, heads, headDim] }, keys!, values!];
  },
  wgsl: (call, caps) => isWide(call, caps) ? wideWgsl(call) : fusedWgsl(call, caps),
  grid(call, caps, resolve) {
    const { params, inputs } = call, rows = resolve(inputs[0]!.shape[0]!);
    return isWide(call, caps) ? wideGrid(params, rows) : rowGrid(params.heads + 2 * params.kvHeads, rows);
  },
  reference: fusedReference,
  cost({ params, inputs }, caps, resolve) {
    const { heads, kvHeads, headDim, rotaryDim, eps } = params, rows = resolve(inputs[0]!.shape[0]!);
    const read = (heads + 2 * kvHeads) * headDim * bytesPerElement(inputs[0]!.dtype, caps.f16) + 4 * rotaryDim + 8;
    const written = 4 * heads * headDim + kvHeads * headDim *
        (bytesPerElement(inputs[4]!.dtype, caps.f16) + bytesPerElement(inputs[5]!.dtype, caps.f16));
    const perHead = 3 * rotaryDim + (eps === undefined ? 0 : 4 * headDim);
    return { flops: rows * (heads + kvHeads) * perHead, bytes: rows * (read + written) };
  },
  updates: () => [-1, 4, 5],
};

/** What {@linkcode ropeAndWriteKv} works on. */
export interface RopeAndWriteKvInputs {
  /** [T, (heads + 2 kvHeads) * headDim]: queries, then keys, then values of each token. */
  readonly qkv: Node;
  /** [T] i32 or u32. */
  readonly positions: Node;
  /** [T] i32: the pool row of each token; below 0 skips it. */
  readonly slotMapping: Node;
  /** [P, rotaryDim / 2, 2] f32: cosine and sine of each position and frequency. */
  readonly table: Node;
  /** Pool of keys [numBlocks * blockSize, kvHeads, headDim], f16 or f32; must not be read afterwards. */
  readonly keys: Node;
  /** Pool of values, of the same shape; must not be read afterwards. */
  readonly values: Node;
  /** Weight [headDim] of the queries' RMSNorm (Qwen3). Needs `kNorm` and `eps`. */
  readonly qNorm?: Node;
  /** Weight [headDim] of the keys' RMSNorm (Qwen3). */
  readonly kNorm?: Node;
}

/**
 * Normalises (where there are weights) and rotates queries and keys, and writes keys and values to the cache.
 *
 * @returns q [T, heads, headDim] f32, and the next versions of both pools.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { ropeAndWriteKv } from "@tinyllm/tinyllm/kernels";
 * import { buffer, compile, openDevice, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const device = await openDevice();
 * const [keys, values] = ["keys", "values"].map((label) => device.storage("f32", [4, 1, 2], label));
 * const inputs = {
 *   qkv: tensor([[1, 2, 3, 4, 5, 6]]).node, // query, key and value of one token
 *   positions: tensor([1], { dtype: "i32" }).node,
 *   slotMapping: tensor([2], { dtype: "i32" }).node, // row 2 of the pools
 *   table: tensor([[[1, 0]], [[0, 1]]]).node, // position 1 turns by a right angle
 * };
 * const params = { heads: 1, kvHeads: 1, headDim: 2, rotaryDim: 2, traditional: false };
 * using program = compile(device, () => {
 *   const { q } = ropeAndWriteKv({ ...inputs, keys: buffer(keys!), values: buffer(values!) }, params);
 *   return q;
 * });
 * program.run();
 * assertEquals([...await program.read(0)], [-2, 1]);
 * assertEquals([...await device.readStorage(keys!)], [0, 0, 0, 0, -4, 3, 0, 0]);
 * device.close();
 * ```
 */
export function ropeAndWriteKv(
  inputs: RopeAndWriteKvInputs,
  params: RopeAndWriteKvParams,
): { q: Node; keys: Node; values: Node } {
  const { qkv, positions, slotMapping, table, keys, values, qNorm, kNorm } = inputs;
  const norms = [qNorm, kNorm].filter((norm) => norm !== undefined);
  const q = kernelNode(ropeAndWriteKvKernel, [qkv, positions, slotMapping, table, keys, values, ...norms], params);
  return { q, keys: output(q, 1), values: output(q, 2) };
}
