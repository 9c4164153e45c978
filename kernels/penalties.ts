/**
 * Penalties for repetition and logit bias: a copy of the logits in which the tokens of a sparse list differ. The list comes
 * from the host with each step, so that nothing has to be kept on the GPU for a sequence; tokens that the host has not read yet are
 * named in it by their slots. The log-sum-exp of the raw logits is
 * taken on the way, because log-probabilities are reported under the raw distribution.
 *
 * @module
 */
import { type Dim, formatShape } from "../tensor/dim.ts";
import {
  type Caps,
  type Cost,
  dimWgsl,
  type Kernel,
  type KernelCall,
  type KernelSource,
  type TensorType,
} from "../tensor/kernel.ts";
import { kernelNode, type Node } from "../tensor/node.ts";
import { bestAndSumWgsl, bestWgsl, logitLanes, logitSizes, logitWidth, sumWgsl } from "./argmax.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";
import { logSumExpReference, penaltiesReference } from "./sampling_reference.ts";
import { adjustmentWords, decodeSamplingRow, lowestLogit, mostInFlight, rowWord, rowWords } from "./sampling_rows.ts";

/** Parameters of the penalties kernel: none. */
export type PenaltiesParams = Readonly<Record<never, never>>;

/** Refuses anything but one record for each row of the logits. */
export function checkRows(rows: TensorType | undefined, logits: TensorType): void {
  if (rows?.dtype !== "u32" || rows.shape.length !== 2 || rows.shape[1] !== rowWords || !sameRows(rows, logits)) {
    const given = rows ? `${rows.dtype} ${formatShape(rows.shape)}` : "nothing";
    throw new Error(`Cannot sample: rows are ${given}, not u32 [${logits.shape[0]}, ${rowWords}]`);
  }
}

const sameRows = (a: TensorType, b: TensorType): boolean => `${a.shape[0]}` === `${b.shape[0]}`;

/** WGSL of a word of the record of `row`. */
export const word = (name: keyof typeof rowWord): string => `rows(row * ${rowWords}u + ${rowWord[name]}u)`;
/** WGSL of an f32 of the record of `row`. */
export const float = (name: keyof typeof rowWord): string => `bitcast<f32>(${word(name)})`;

/** The rows of flat values. */
export function rowsOf(values: ArrayLike<number>, size: number): number[][] {
  return Array.from(
    { length: values.length / size },
    (_, row) => Array.prototype.slice.call(values, row * size, (row + 1) * size) as number[],
  );
}

/** Cost of a kernel over logits: operations an element, and times that a row moves. */
export function logitPassCost<P>(
  call: KernelCall<P>,
  resolve: (dim: Dim) => number,
  flops: number,
  moves: number,
): Cost {
  const elements = resolve(call.inputs[0]!.shape[0]!) * (call.inputs[0]!.shape[1] as number);
  return { flops: flops * elements, bytes: 4 * moves * elements };
}

/** The penalties of one token. */
const penalisedWgsl = `
fn penalised(logit: f32, row: u32, count: i32) -> f32 {
  let repetition = ${float("repetitionPenalty")};
  let l = fma(-${float("frequencyPenalty")}, f32(count), select(logit * repetition, logit / repetition, logit > 0.0));
  return l - select(0.0, ${float("presencePenalty")}, count > 0);
}`;

/**
 * The tokens of a row that stand in slots: `drawn` of them are `token`. Whoever knows a token by its id says so in `is_known`; what
 * nobody knows is new.
 */
const inFlightWgsl = `
var<workgroup> in_flight: array<i32, ${mostInFlight}>;
var<workgroup> is_known: array<atomic<u32>, ${mostInFlight}>;
fn drawn(token: i32) -> i32 {
  var count = 0;
  for (var i = 0u; i < ${mostInFlight}u && in_flight[i] >= 0; i++) {
    if (in_flight[i] == token) {
      count++;
      atomicStore(&is_known[i], 1u);
    }
  }
  return count;
}
fn is_first(i: u32) -> bool {
  for (var j = 0u; j < i; j++) { if (in_flight[j] == in_flight[i]) { return false; } }
  return true;
}`;

/** Reads the slots, before what follows a barrier. */
const readSlotsWgsl = (lanes: number): string => `
  for (var i = lane; i < ${mostInFlight}u; i += ${lanes}u) {
    in_flight[i] = -1;
    atomicStore(&is_known[i], 0u);
    if (start + i < end && adjustments(start + i).x < 0) { in_flight[i] = slots(u32(-1 - adjustments(start + i).x)); }
  }
  workgroupBarrier();`;

/** Adjusts the tokens in slots that no entry knows. */
const newTokensWgsl = (vocabulary: number, lanes: number): string => `
  workgroupBarrier();
  for (var i = lane; i < ${mostInFlight}u; i += ${lanes}u) {
    let token = in_flight[i];
    if (token < 0 || token >= ${vocabulary} || atomicLoad(&is_known[i]) != 0u || !is_first(i)) { continue; }
    let l = logit_of(row, u32(token));
    if (l >= ${lowestLogit}) { store_adjusted(row * ${vocabulary}u + u32(token), penalised(l, row, drawn(token))); }
  }`;

function penaltiesWgsl(call: KernelCall<PenaltiesParams>, caps: Caps): KernelSource {
  const { rows, vocabulary } = logitSizes(call.inputs[0], "apply penalties"), hasSlots = call.inputs.length > 3;
  const lanes = logitLanes(vocabulary, caps), width = logitWidth(vocabulary);
  const copy = width === 4
    ? `let x = logits(row * ${vocabulary / 4}u + i);
    let at = row * ${vocabulary}u + i * 4u;
    store_adjusted(at, x.x); store_adjusted(at + 1u, x.y); store_adjusted(at + 2u, x.z); store_adjusted(at + 3u, x.w);`
    : `store_adjusted(row * ${vocabulary}u + i, logits(row * ${vocabulary}u + i));`;
  const logit = width === 4
    ? `logits((row * ${vocabulary}u + token) >> 2u)[token & 3u]`
    : `logits(row * ${vocabulary}u + token)`;
  const slots = [{ name: "slots" }];
  return {
    inputs: [
      { name: "logits", width },
      { name: "rows" },
      { name: "adjustments", width: 4 },
      ...(hasSlots ? slots : []),
    ],
    outputs: [{ name: "adjusted" }, { name: "log_sum_exp" }],
    workgroupSize: [lanes, 1, 1],
    declarations: [
      bestWgsl("logits", vocabulary, lanes),
      sumWgsl(lanes),
      `fn logit_of(row: u32, token: u32) -> f32 { return ${logit}; }`,
      penalisedWgsl,
      ...(hasSlots ? [inFlightWgsl] : []),
    ].join("\n"),
    main: `
  ${rowWgsl(dimWgsl(rows))}
  ${bestAndSumWgsl("0u", `${Math.ceil(vocabulary / 4)}u`, lanes, true)}
  if (lane == 0u) { store_log_sum_exp(row, log_sum_exp_of(best.value, sum)); }
  for (var i = lane; i < ${vocabulary / width}u; i += ${lanes}u) {
    ${copy}
  }
  storageBarrier(); // what follows overwrites some of the copies
  let start = ${word("adjustmentsStart")};
  let end = start + ${word("adjustmentsCount")};${hasSlots ? readSlotsWgsl(lanes) : ""}
  for (var entry = start + lane; entry < end; entry += ${lanes}u) {
    let adjustment = adjustments(entry);
    let token = u32(adjustment.x);
    if (adjustment.x < 0 || token >= ${vocabulary}u) { continue; }
    let more = ${hasSlots ? "drawn(adjustment.x)" : "0"};
    var l = logit_of(row, token);
    if (l < ${lowestLogit}) { continue; }
    if (adjustment.y != 0 || more > 0) { l = penalised(l, row, adjustment.z + more); }
    store_adjusted(row * ${vocabulary}u + token, l + bitcast<f32>(adjustment.w));
  }${hasSlots ? newTokensWgsl(vocabulary, lanes) : ""}`,
  };
}

/**
 * logits [R, V], rows [R, 12] u32, adjustments [E, 4] i32 and, where they name any, slots [S] i32 to adjusted logits [R, V] f32 and
 * log-sum-exp of the raw ones [R].
 */
export const penaltiesKernel: Kernel<PenaltiesParams> = {
  name: "penalties",
  infer([logits, rows, adjustments, slots]) {
    const sizes = logitSizes(logits, "apply penalties");
    checkRows(rows, logits!);
    if (adjustments?.dtype !== "i32" || adjustments.shape.length !== 2 || adjustments.shape[1] !== adjustmentWords) {
      const given = adjustments ? `${adjustments.dtype} ${formatShape(adjustments.shape)}` : "nothing";
      throw new Error(`Cannot apply penalties: adjustments are ${given}, not i32 [entries, ${adjustmentWords}]`);
    }
    if (slots && !(slots.dtype === "i32" && slots.shape.length === 1)) {
      throw new Error(`Cannot apply penalties: slots are ${slots.dtype} ${formatShape(slots.shape)}, not i32 [slots]`);
    }
    return [{ dtype: "f32", shape: logits!.shape }, { dtype: "f32", shape: [sizes.rows] }];
  },
  wgsl: penaltiesWgsl,
  grid: (call, _caps, resolve) => rowGrid(1, resolve(call.inputs[0]!.shape[0]!)),
  reference(call, [logits, rows, adjustments, slots]) {
    const all = rowsOf(logits!, call.inputs[0]!.shape[1] as number);
    const adjusted = all.map((row, r) => [...penaltiesReference(row, decodeSamplingRow(rows!, r, adjustments, slots))]);
    return [Float64Array.from(adjusted.flat()), Float64Array.from(all.map(logSumExpReference))];
  },
  cost: (call, _caps, resolve) => logitPassCost(call, resolve, 3, 2),
};

/**
 * Applies penalties and logit bias. Minus infinity stays.
 *
 * @param logits [R, V]. @param rows [R, 12] u32. @param adjustments [E, 4] i32: both from `encodeSamplingRows`.
 * @param slots [S] i32: the tokens that rows name by `inFlight`; leave out where none does.
 * @returns [R, V] f32.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { applyPenalties, encodeSamplingRows } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const history = new Map([[0, 0], [1, 2]]); // token 0 in the prompt, token 1 twice in the output
 * const { rows, adjustments } = encodeSamplingRows([{ repetitionPenalty: 2, frequencyPenalty: 0.5, history }]);
 * const penalised = applyPenalties(
 *   tensor([[4, -1, 3]]).node,
 *   tensor(rows, { shape: [1, 12] }).node,
 *   tensor(adjustments, { shape: [2, 4] }).node,
 * );
 * assertEquals([...await new Tensor(penalised).data()], [2, -3, 3]);
 * ```
 */
export function applyPenalties(logits: Node, rows: Node, adjustments: Node, slots?: Node): Node {
  return kernelNode(penaltiesKernel, [logits, rows, adjustments, ...(slots ? [slots] : [])], {});
}
