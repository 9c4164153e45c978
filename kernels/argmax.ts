/**
 * The greedy path: the largest logit of each row, the lowest id among equals, and on request its log-probability
 * x - log Σ exp x. A vocabulary of up to 16,384 takes one dispatch, a larger one two: workgroups over slices of a row,
 * then one workgroup that merges the slices. Where nothing else reads the logits, the product that makes them may give the best of
 * its tiles instead, and they are never written. The greatest is the same in any order; the sum is taken in an order that
 * depends on the vocabulary's size alone, so a row's result does not depend on its batch.
 *
 * @module
 */
import { type Dim, formatShape } from "../tensor/dim.ts";
import { isFloat } from "../tensor/dtype.ts";
import { type Caps, dimWgsl, type Kernel, type KernelCall, type TensorType } from "../tensor/kernel.ts";
import { kernelNode, type Node, output } from "../tensor/node.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";
import { argmaxReference, logSumExpReference } from "./sampling_reference.ts";

const oneDispatch = 16384;
const sliceTokens = 2048;

/** Parameters of the argmax kernels. */
export interface ArgmaxParams {
  /** Give the log-probability of the largest too. */
  readonly logprob: boolean;
}

/** Rows and vocabulary of logits, or an error that says what is wrong with them. */
export function logitSizes(type: TensorType | undefined, what: string): { rows: Dim; vocabulary: number } {
  const [rows, vocabulary] = type?.shape ?? [];
  if (!type || type.shape.length !== 2 || !isFloat(type.dtype) || typeof vocabulary !== "number" || vocabulary < 1) {
    const given = type ? `${type.dtype} ${formatShape(type.shape)}` : "nothing";
    throw new Error(`Cannot ${what}: logits are ${given}, not floats [rows, vocabulary]`);
  }
  return { rows: rows!, vocabulary };
}

/** Invocations for a row of logits. A CPU device runs one subgroup after another, so there one of 8 lanes is best. */
export function logitLanes(vocabulary: number, caps: Caps): number {
  if (caps.cpu) return 8;
  let lanes = 32;
  while (lanes < 256 && lanes * 32 < vocabulary) lanes *= 2;
  return lanes;
}

/** Elements an index counts in a row of logits. */
export function logitWidth(vocabulary: number): 1 | 4 {
  return vocabulary % 4 === 0 ? 4 : 1;
}

/**
 * WGSL that reads four neighbouring logits of a row through port `port` and finds the best of a workgroup:
 * `row4(row, group)`, `best_of_four`, `best_over_lanes`. Past the row's end and for minus infinity it reads the least f32.
 */
export function bestWgsl(port: string, vocabulary: number, lanes: number): string {
  const element = (i: number): string =>
    `select(-3.4028234e38, ${port}(base + min(first + ${i}u, ${vocabulary - 1}u)), first + ${i}u < ${vocabulary}u)`;
  const read = logitWidth(vocabulary) === 4
    ? `return max(${port}(row * ${vocabulary / 4}u + group), vec4f(-3.4028234e38));`
    : `let base = row * ${vocabulary}u;
  let first = group * 4u;
  return max(vec4f(${[0, 1, 2, 3].map(element).join(", ")}), vec4f(-3.4028234e38));`;
  return `${overLanesWgsl(lanes)}
fn row4(row: u32, group: u32) -> vec4f {
  ${read}
}
fn best_of_four(x: vec4f, first: u32, so_far: Best) -> Best {
  var best = so_far;
  if (x.x > best.value) { best = Best(x.x, first); }
  if (x.y > best.value) { best = Best(x.y, first + 1u); }
  if (x.z > best.value) { best = Best(x.z, first + 2u); }
  if (x.w > best.value) { best = Best(x.w, first + 3u); }
  return best;
}`;
}

/** WGSL of `Best`, `better` and `best_over_lanes`. */
function overLanesWgsl(lanes: number): string {
  return `
struct Best { value: f32, id: u32 }
var<workgroup> bests: array<Best, ${lanes}>;
var<workgroup> overall: Best;
fn better(a: Best, b: Best) -> Best {
  if (b.value > a.value || (b.value == a.value && b.id < a.id)) { return b; }
  return a;
}
fn best_over_lanes(lane: u32, mine: Best) -> Best {
  bests[lane] = mine;
  workgroupBarrier();
  if (lane < 8u) {
    var best = bests[lane * ${lanes / 8}u];
    for (var i = 1u; i < ${lanes / 8}u; i++) { best = better(best, bests[lane * ${lanes / 8}u + i]); }
    bests[lane * ${lanes / 8}u] = best;
  }
  workgroupBarrier();
  if (lane == 0u) {
    var best = bests[0];
${Array.from({ length: 7 }, (_, i) => `    best = better(best, bests[${(i + 1) * (lanes / 8)}]);`).join("\n")}
    overall = best;
  }
  return workgroupUniformLoad(&overall);
}`;
}

/**
 * WGSL of `sum_over_lanes(lane, value)`, always in one order, and of `log_sum_exp_of(greatest, sum)`, the logarithm of the sum of
 * exponentials out of Σ exp(x - greatest): whichever kernel computes it rounds alike, since no step is left to a compiler.
 */
export function sumWgsl(lanes: number): string {
  return `
fn log_sum_exp_of(greatest: f32, sum: f32) -> f32 { return fma(log2(sum), ${Math.LN2}, greatest); }
var<workgroup> addends: array<f32, ${lanes}>;
var<workgroup> total: f32;
fn sum_over_lanes(lane: u32, mine: f32) -> f32 {
  addends[lane] = mine;
  workgroupBarrier();
  if (lane < 8u) {
    var sum = addends[lane * ${lanes / 8}u];
    for (var i = 1u; i < ${lanes / 8}u; i++) { sum += addends[lane * ${lanes / 8}u + i]; }
    addends[lane * ${lanes / 8}u] = sum;
  }
  workgroupBarrier();
  if (lane == 0u) {
    total = ${Array.from({ length: 8 }, (_, i) => `addends[${i * (lanes / 8)}]`).join(" + ")};
  }
  return workgroupUniformLoad(&total);
}`;
}

/** WGSL loops over groups of four from `first` to `end`: the best in `best`, then with `logprob` Σ exp(x - best) in `sum`. */
export function bestAndSumWgsl(first: string, end: string, lanes: number, logprob: boolean): string {
  return `
  var mine = Best(-3.4028234e38, (${first} + lane) * 4u);
  for (var group = ${first} + lane; group < ${end}; group += ${lanes}u) {
    mine = best_of_four(row4(row, group), group * 4u, mine);
  }
  let best = best_over_lanes(lane, mine);${
    logprob
      ? `
  var sums = vec4f(0.0);
  for (var group = ${first} + lane; group < ${end}; group += ${lanes}u) {
    sums += exp(max(row4(row, group) - best.value, vec4f(-100.0)));
  }
  let sum = sum_over_lanes(lane, (sums.x + sums.y) + (sums.z + sums.w));`
      : ""
  }`;
}

const picked = (rows: Dim, { logprob }: ArgmaxParams): TensorType[] => {
  const token: TensorType = { dtype: "i32", shape: [rows] };
  return logprob ? [token, { dtype: "f32", shape: [rows] }] : [token];
};

function rowsReference(logits: ArrayLike<number>, vocabulary: number, { logprob }: ArgmaxParams): Float64Array[] {
  const rows = logits.length / vocabulary;
  const tokens = new Float64Array(rows), logprobs = new Float64Array(rows);
  for (let row = 0; row < rows; row++) {
    const values = Array.prototype.slice.call(logits, row * vocabulary, (row + 1) * vocabulary) as number[];
    tokens[row] = argmaxReference(values);
    logprobs[row] = values[tokens[row]!]! - logSumExpReference(values);
  }
  return logprob ? [tokens, logprobs] : [tokens];
}

/** logits [R, V] to token [R] i32 (and logprob [R] f32), a workgroup a row. */
export const argmaxKernel: Kernel<ArgmaxParams> = {
  name: "argmax",
  infer: ([logits], params) => picked(logitSizes(logits, "take the argmax").rows, params),
  wgsl(call, caps) {
    const { rows, vocabulary } = logitSizes(call.inputs[0], "take the argmax");
    const lanes = logitLanes(vocabulary, caps), { logprob } = call.params;
    return {
      inputs: [{ name: "logits", width: logitWidth(vocabulary) }],
      outputs: logprob ? [{ name: "token" }, { name: "logprob" }] : [{ name: "token" }],
      workgroupSize: [lanes, 1, 1],
      declarations: bestWgsl("logits", vocabulary, lanes) + (logprob ? sumWgsl(lanes) : ""),
      main: `
  ${rowWgsl(dimWgsl(rows))}
  ${bestAndSumWgsl("0u", `${Math.ceil(vocabulary / 4)}u`, lanes, logprob)}
  if (lane == 0u) {
    store_token(row, i32(best.id));
    ${logprob ? "store_logprob(row, -log(sum));" : ""}
  }`,
    };
  },
  grid: (call, _caps, resolve) => rowGrid(1, resolve(call.outputs[0]!.shape[0]!)),
  reference: (call, [logits]) => rowsReference(logits!, call.inputs[0]!.shape[1] as number, call.params),
  cost: (call, _caps, resolve) => logitCost(call, resolve),
};

function logitCost<P>(call: KernelCall<P>, resolve: (dim: Dim) => number): { flops: number; bytes: number } {
  const { rows, vocabulary } = logitSizes(call.inputs[0], "take the argmax");
  return { flops: resolve(rows) * vocabulary, bytes: 4 * resolve(rows) * (vocabulary + 2) };
}

const slicesOf = (vocabulary: number): number => Math.ceil(vocabulary / sliceTokens);

/** logits [R, V] to the best of each slice: value [R, S] f32, token [R, S] i32 (and Σ exp(x - value) [R, S] f32). */
export const argmaxSlicesKernel: Kernel<ArgmaxParams> = {
  name: "argmax_slices",
  infer([logits], { logprob }) {
    const { rows, vocabulary } = logitSizes(logits, "take the argmax");
    const shape = [rows, slicesOf(vocabulary)];
    const best: TensorType[] = [{ dtype: "f32", shape }, { dtype: "i32", shape }];
    return logprob ? [...best, { dtype: "f32", shape }] : best;
  },
  wgsl(call, caps) {
    const { rows, vocabulary } = logitSizes(call.inputs[0], "take the argmax");
    const lanes = caps.cpu ? 8 : 256, { logprob } = call.params, slices = slicesOf(vocabulary);
    return {
      inputs: [{ name: "logits", width: logitWidth(vocabulary) }],
      outputs: [{ name: "value" }, { name: "token" }, ...(logprob ? [{ name: "sum" }] : [])],
      workgroupSize: [lanes, 1, 1],
      declarations: bestWgsl("logits", vocabulary, lanes) + (logprob ? sumWgsl(lanes) : ""),
      main: `
  ${rowWgsl(dimWgsl(rows))}
  let first = workgroup.x * ${sliceTokens / 4}u;
  let end = min(first + ${sliceTokens / 4}u, ${Math.ceil(vocabulary / 4)}u);
  ${bestAndSumWgsl("first", "end", lanes, logprob)}
  if (lane == 0u) {
    let slice = row * ${slices}u + workgroup.x;
    store_value(slice, best.value);
    store_token(slice, i32(best.id));
    ${logprob ? "store_sum(slice, sum);" : ""}
  }`,
    };
  },
  grid: (call, _caps, resolve) => rowGrid(call.outputs[0]!.shape[1] as number, resolve(call.outputs[0]!.shape[0]!)),
  reference(call, [logits]) {
    const { vocabulary } = logitSizes(call.inputs[0], "take the argmax");
    const rows = logits!.length / vocabulary, slices = slicesOf(vocabulary);
    const value = new Float64Array(rows * slices), token = value.slice(), sum = value.slice();
    for (let at = 0; at < value.length; at++) {
      const first = (at % slices) * sliceTokens, start = Math.floor(at / slices) * vocabulary;
      const end = start + Math.min(vocabulary, first + sliceTokens);
      const part = Array.prototype.slice.call(logits, start + first, end) as number[];
      const best = argmaxReference(part);
      value[at] = part[best]!;
      token[at] = first + best;
      sum[at] = Math.exp(logSumExpReference(part) - part[best]!);
    }
    return call.params.logprob ? [value, token, sum] : [value, token];
  },
  cost: (call, _caps, resolve) => logitCost(call, resolve),
};

/** Bests of slices, value and token [R, S] (and sum [R, S]), to token [R] i32 (and logprob [R] f32). */
export const argmaxMergeKernel: Kernel<ArgmaxParams> = {
  name: "argmax_merge",
  infer: ([value], params) => picked(logitSizes(value, "merge slices").rows, params),
  wgsl(call, caps) {
    const { rows, vocabulary: slices } = logitSizes(call.inputs[0], "merge slices"), { logprob } = call.params;
    const lanes = caps.cpu ? 8 : 64,
      each = (text: string): string => `for (var i = lane; i < ${slices}u; i += ${lanes}u) { ${text} }`;
    return {
      inputs: [{ name: "value" }, { name: "slice_token" }, ...(logprob ? [{ name: "slice_sum" }] : [])],
      outputs: [{ name: "token" }, ...(logprob ? [{ name: "logprob" }] : [])],
      workgroupSize: [lanes, 1, 1],
      declarations: overLanesWgsl(lanes) + (logprob ? sumWgsl(lanes) : ""),
      main: `
  ${rowWgsl(dimWgsl(rows))}
  let base = row * ${slices}u;
  var mine = Best(-3.4028234e38, min(lane, ${slices - 1}u));
  ${each("mine = better(mine, Best(value(base + i), i));")}
  let best = best_over_lanes(lane, mine);
  ${
        logprob
          ? `var own = 0.0;
  ${each("own = fma(slice_sum(base + i), exp(max(value(base + i) - best.value, -100.0)), own);")}
  let sum = sum_over_lanes(lane, own);`
          : ""
      }
  if (lane == 0u) {
    store_token(row, slice_token(base + best.id));
    ${logprob ? "store_logprob(row, -log(sum));" : ""}
  }`,
    };
  },
  grid: (call, _caps, resolve) => rowGrid(1, resolve(call.outputs[0]!.shape[0]!)),
  reference(call, [value, token, sum]) {
    const slices = call.inputs[0]!.shape[1] as number, rows = value!.length / slices;
    const tokens = new Float64Array(rows), logprobs = new Float64Array(rows);
    for (let row = 0; row < rows; row++) {
      const values = Array.from({ length: slices }, (_, i) => value![row * slices + i]!),
        best = argmaxReference(values);
      tokens[row] = token![row * slices + best]!;
      if (!sum) continue;
      const terms = values.map((v, i) => sum[row * slices + i]! * Math.exp(v - values[best]!));
      logprobs[row] = -Math.log(terms.reduce((a, b) => a + b, 0));
    }
    return call.params.logprob ? [tokens, logprobs] : [tokens];
  },
  cost: (call, _caps, resolve) => logitCost(call, resolve),
  absorb([value], params, context) {
    if (params.logprob || value?.op !== "kernel" || value.kernel !== argmaxSlicesKernel as Kernel<unknown>) {
      return undefined;
    }
    const logits = value.src[0]!;
    if (logits.op !== "kernel" || context.readers(logits) !== 1) return undefined;
    const greatest = logits.kernel.withGreatest?.(logits.src, logits.params, context);
    return greatest && kernelNode(argmaxMergeKernel, [greatest, output(greatest, 1)], params);
  },
};

function pick(logits: Node, params: ArgmaxParams): Node {
  const { vocabulary } = logitSizes(logits, "take the argmax");
  if (vocabulary <= oneDispatch) return kernelNode(argmaxKernel, [logits], params);
  const slices = kernelNode(argmaxSlicesKernel, [logits], params);
  const parts = [slices, output(slices, 1), ...(params.logprob ? [output(slices, 2)] : [])];
  return kernelNode(argmaxMergeKernel, parts, params);
}

/**
 * The id of each row's largest logit, the lowest among equals. One dispatch, two above a vocabulary of 16,384.
 *
 * @param logits [R, V], floats.
 * @returns [R] i32.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { argmax } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const logits = tensor([[1, 3, 3], [0, -1, -2]]);
 * assertEquals([...await new Tensor(argmax(logits.node)).data()], [1, 0]);
 * ```
 */
export function argmax(logits: Node): Node {
  return pick(logits, { logprob: false });
}

/**
 * Greedy sampling: `argmax` and the log-probability of what it chose, in as many dispatches.
 *
 * @param logits [R, V], floats.
 * @returns `token` [R] i32 and `logprob` [R] f32, under the softmax of the logits as given.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { greedy } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const { token, logprob } = greedy(tensor([[0, 0, -1e9, -1e9]]).node);
 * assertEquals([...await new Tensor(token).data()], [0]);
 * assertEquals((await new Tensor(logprob).data())[0]!.toFixed(4), "-0.6931"); // one of two
 * ```
 */
export function greedy(logits: Node): { token: Node; logprob: Node } {
  const token = pick(logits, { logprob: true });
  return { token, logprob: output(token, 1) };
}
