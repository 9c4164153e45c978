/**
 * Sampling on the GPU: penalties and logit bias, temperature, min-p, top-k, top-p and the draw, for rows that each have
 * parameters of their own. `sampling_reference.ts` is the definition; here is how it is done without sorting.
 *
 * Every filter keeps a set {l >= threshold}, ties aside. A logit's bits, mapped to an unsigned key of the same order, make a
 * threshold something to search for: top-k's is the largest key t with count(key >= t) >= k, top-p's the largest with
 * weight(key >= t) >= topP x weight of all left. `search` finds either, exactly, with eight thresholds a pass over the row:
 * log8(2^32) = 11 passes at most. Where top-p cuts through equal logits, a second search over ids finds how many stay.
 *
 * The draw is an exponential race (Gumbel-max; Yellott 1977): the token with the largest l / T - ln E wins, with an
 * exponential variate E of its own made from Philox words of (seed, index, token). No prefix sums, no state, and no
 * dependence on the row's place in the batch.
 *
 * @module
 */
import { type Caps, dimWgsl, type Kernel, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { kernelNode, type Node, output } from "../tensor/node.ts";
import { bestAndSumWgsl, bestWgsl, logitLanes, logitSizes, logitWidth, sumWgsl } from "./argmax.ts";
import { applyPenalties, checkRows, float, logitPassCost, rowsOf, word } from "./penalties.ts";
import { philoxWgsl } from "./philox.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";
import { filterReference, sampleReference } from "./sampling_reference.ts";
import { decodeSamplingRow, greedyBelow, lowestLogit } from "./sampling_rows.ts";

/** Parameters of the sampling kernel. */
export interface SampleParams {
  /** `token` draws; `probabilities` gives what a draw is made from. */
  readonly result: "token" | "probabilities";
  /** The raw logits and their log-sum-exp are inputs of their own, since the first input was adjusted. */
  readonly adjusted: boolean;
}

/** Keys in the order of the logits, weights exp((l - max) / T), and sums of eight numbers over the workgroup. */
function measureWgsl(lanes: number, groups: number): string {
  const segments = Math.min(8, lanes / 8), length = lanes / segments;
  const eight = (from: number): string =>
    Array.from(
      { length: 4 },
      (_, j) => Array.from({ length: segments }, (_, s) => `segments[${(from + j) * segments + s}]`).join(" + "),
    ).join(", ");
  const add = (j: "x" | "y" | "z" | "w"): string => `
      a += select(vec4f(0.0), vec4f(w.${j}), vec4u(keys.${j}) >= at.a);
      b += select(vec4f(0.0), vec4f(w.${j}), vec4u(keys.${j}) >= at.b);`;
  return `
struct Eight { a: vec4f, b: vec4f }
struct Thresholds { a: vec4u, b: vec4u }
var<workgroup> addends8: array<f32, ${lanes * 8}>;
var<workgroup> segments: array<f32, ${segments * 8}>;
var<workgroup> total8: Eight;
fn eight_over_lanes(lane: u32, mine: Eight) -> Eight {
${
    [0, 1, 2, 3, 4, 5, 6, 7].map((j) => `  addends8[${j * lanes}u + lane] = mine.${j < 4 ? "a" : "b"}[${j & 3}];`).join(
      "\n",
    )
  }
  workgroupBarrier();
  if (lane < ${8 * segments}u) {
    var sum = addends8[lane * ${length}u];
    for (var i = 1u; i < ${length}u; i++) { sum += addends8[lane * ${length}u + i]; }
    segments[lane] = sum;
  }
  workgroupBarrier();
  if (lane == 0u) { total8 = Eight(vec4f(${eight(0)}), vec4f(${eight(4)})); }
  return workgroupUniformLoad(&total8);
}
fn keys_of(x: vec4f) -> vec4u {
  let bits = bitcast<vec4u>(x);
  let plain = select(bits, vec4u(0u), bits == vec4u(0x80000000u)); // -0 equals 0
  return select(plain | vec4u(0x80000000u), ~plain, (plain >> vec4u(31u)) == vec4u(1u));
}
fn scaled(x: vec4f, row: Row) -> vec4f {
  return max(x - row.largest, vec4f(-100.0 * row.temperature)) / row.temperature;
}
// Weight (or count) of the tokens at and above each threshold; the first threshold is the lowest.
fn mass(lane: u32, row: Row, by_weight: bool, at: Thresholds) -> Eight {
  var a = vec4f(0.0);
  var b = vec4f(0.0);
  for (var group = lane; group < ${groups}u; group += ${lanes}u) {
    let x = row4(row.index, group);
    let keys = keys_of(x);
    if (any(keys >= vec4u(at.a.x))) {
      var w = vec4f(1.0);
      if (by_weight) { w = exp(scaled(x, row)); }${(["x", "y", "z", "w"] as const).map(add).join("")}
    }
  }
  return eight_over_lanes(lane, Eight(a, b));
}`;
}

/** The search of ids among equal keys. */
const lastTieWgsl = (lanes: number, groups: number): string => `
// The id of the stay-th token of this key.
fn last_tie(lane: u32, row: Row, key: u32, stay: f32) -> u32 {
  var first = 0u;
  var last = ${groups * 4 - 1}u;
  while (first < last) {
    let middle = (first + last) >> 1u;
    var count = 0.0;
    for (var group = lane; group < ${groups}u; group += ${lanes}u) {
      let same = keys_of(row4(row.index, group)) == vec4u(key);
      let ids = vec4u(group * 4u) + vec4u(0u, 1u, 2u, 3u);
      count += dot(select(vec4f(0.0), vec4f(1.0), same & (ids <= vec4u(middle))), vec4f(1.0));
    }
    if (sum_over_lanes(lane, count) >= stay) { last = middle; } else { first = middle + 1u; }
  }
  return last;
}`;

/** The searches of key thresholds. One loop for both filters keeps `mass` inlined once. */
function filterWgsl(vocabulary: number): string {
  const masses = Array.from({ length: 8 }, (_, j) => `m.${j < 4 ? "a" : "b"}.${"xyzw"[j & 3]}`);
  const narrow = masses.map((m, j) => `
      if (${j === 0 ? "true" : `${m} >= want`}) {
        low = base + ${j}u * step;
        here = ${m};
        high = min(low + step, end);
        above = ${j === 7 ? "beyond" : `select(${masses[j + 1]}, beyond, low + step >= end)`};
      }`);
  return `
struct Kept { key: u32, last: u32 }
fn key_of(x: f32) -> u32 { return keys_of(vec4f(x)).x; }
fn value_of(key: u32) -> f32 { return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u)); }
// Invariant of the inner loop: mass(key >= low) is \`here\` >= want, mass(key >= high) is \`above\` < want.
fn filter_row(lane: u32, row: Row, top_k: u32, top_p: f32, margin: f32) -> Kept {
  var kept = Kept(key_of(max(row.largest + margin, ${lowestLogit})), 0xffffffffu);
  for (var phase = 0u; phase < 2u; phase++) {
    let by_weight = phase == 1u;
    if (select(top_k == 0u || top_k >= ${vocabulary}u, top_p >= 1.0, by_weight)) { continue; }
    var low = kept.key;
    var high = key_of(row.largest) + 1u;
    var here = 0.0;
    var above = 0.0;
    var unit = 1.0;
    var want = select(f32(top_k), 0.0, by_weight);
    loop {
      let base = low;
      let end = high;
      let beyond = above;
      let step = (high - low + 7u) >> 3u;
      let first = vec4u(base) + vec4u(step) * vec4u(0u, 1u, 2u, 3u);
      let m = mass(lane, row, by_weight, Thresholds(first, first + vec4u(4u * step)));
      if (want == 0.0) { want = max(top_p * m.a.x, 1e-30); }${narrow.join("")}
      // One token in between: no need to find its exact key.
      if (by_weight) { unit = max(exp(scaled(vec4f(value_of(low)), row)).x, 1e-30); }
      if (high - low <= 1u || here - above < 1.5 * unit) { break; }
    }
    kept.key = low;
    if (by_weight) {
      let stay = max(1.0, ceil((want - above) / unit));
      if ((stay + 0.5) * unit < here - above) { kept.last = last_tie(lane, row, low, stay); }
    }
  }
  return kept;
}`;
}

/** The kept set, as its lowest key and the last id that stays of that key; and exponential variates. */
const keepWgsl = `
fn stays(x: vec4f, group: u32, kept: Kept) -> vec4<bool> {
  let keys = keys_of(x);
  let ids = vec4u(group * 4u) + vec4u(0u, 1u, 2u, 3u);
  return (keys > vec4u(kept.key)) | ((keys == vec4u(kept.key)) & (ids <= vec4u(kept.last)));
}
// -ln(1 - u) for u = (word + 1/2) / 2^32. Small u by the series 2 (z + z^3/3 + ...), z = u / (2 - u), because small variates
// decide the race and ln(1 - u) would round them away; large u by ln of the complement, which is exact where u rounds to 1.
fn exponential(words: vec4u) -> vec4f {
  let u = (vec4f(words) + 0.5) * ${2 ** -32};
  let z = min(u, vec4f(0.5)) / (2.0 - min(u, vec4f(0.5)));
  let q = z * z;
  let series = ${
  [1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11].reduceRight((rest, c) => `fma(q, ${rest}, vec4f(${c}))`, "vec4f(0.0769230769)")
};
  let small = 2.0 * fma(z * q, series, z);
  let large = -log((vec4f(~words) + 0.5) * ${2 ** -32});
  return select(large, small, words < vec4u(0x80000000u));
}`;

const drawWgsl = (lanes: number, groups: number): string => `
fn draw(lane: u32, row: Row, kept: Kept, index: u32, seed: vec2u) -> u32 {
  var mine = Best(-3.4028234e38, 0xffffffffu);
  for (var group = lane; group < ${groups}u; group += ${lanes}u) {
    let x = row4(row.index, group);
    let keep = stays(x, group, kept);
    if (any(keep)) {
      let noise = log2(exponential(philox(vec4u(group, index, 0u, 0u), seed)));
      let raced = fma(noise, vec4f(${-Math.LN2}), scaled(x, row));
      mine = best_of_four(select(vec4f(-3.4028234e38), raced, keep), group * 4u, mine);
    }
  }
  return best_over_lanes(lane, mine).id;
}`;

const readRowWgsl = `
  let temperature = ${float("temperature")};
  let settings = Row(row, temperature, best.value);
  let greedy = temperature < ${greedyBelow} || best.value < ${lowestLogit};`;

const keptWgsl = `filter_row(lane, settings, ${word("topK")}, ${float("topP")}, ${float("minPMargin")})`;

function tokenWgsl({ adjusted }: SampleParams, vocabulary: number): string {
  const raw = adjusted ? `logits(row * ${vocabulary}u + id)` : `row4(row, id >> 2u)[id & 3u]`;
  return `
  var id = best.id;
  if (!greedy) {
    let kept = ${keptWgsl};
    id = draw(lane, settings, kept, ${word("index")}, vec2u(${word("seedLow")}, ${word("seedHigh")}));
  }
  if (lane == 0u) {
    store_token(row, i32(id));
    store_logprob(row, ${raw} - ${adjusted ? "log_sum_exp(row)" : "log_sum_exp_of(best.value, sum)"});
  }`;
}

function probabilitiesWgsl(lanes: number, groups: number, vocabulary: number): string {
  const store = (j: number): string =>
    `if (group * 4u + ${j}u < ${vocabulary}u) { store_probabilities(row * ${vocabulary}u + group * 4u + ${j}u, p[${j}]); }`;
  return `
  var kept = Kept(key_of(best.value), best.id);
  if (!greedy) { kept = ${keptWgsl}; }
  var weights = vec4f(0.0);
  for (var group = lane; group < ${groups}u; group += ${lanes}u) {
    let x = row4(row, group);
    weights += select(vec4f(0.0), exp(scaled(x, settings)), stays(x, group, kept));
  }
  let weight = sum_over_lanes(lane, (weights.x + weights.y) + (weights.z + weights.w));
  for (var group = lane; group < ${groups}u; group += ${lanes}u) {
    let x = row4(row, group);
    var p = select(vec4f(0.0), exp(scaled(x, settings)) / weight, stays(x, group, kept));
    if (greedy) { p = select(vec4f(0.0), vec4f(1.0), vec4u(group * 4u) + vec4u(0u, 1u, 2u, 3u) == vec4u(best.id)); }
    ${[0, 1, 2, 3].map(store).join("\n    ")}
  }`;
}

function sampleWgsl(call: KernelCall<SampleParams>, caps: Caps): KernelSource {
  const { rows, vocabulary } = logitSizes(call.inputs[0], "sample");
  const { result, adjusted } = call.params;
  const lanes = logitLanes(vocabulary, caps), groups = Math.ceil(vocabulary / 4);
  const draws = result === "token";
  return {
    inputs: [
      { name: "values", width: logitWidth(vocabulary) },
      { name: "rows" },
      ...(adjusted ? [{ name: "logits" }, { name: "log_sum_exp" }] : []),
    ],
    outputs: draws ? [{ name: "token" }, { name: "logprob" }] : [{ name: "probabilities" }],
    workgroupSize: [lanes, 1, 1],
    declarations: [
      "struct Row { index: u32, temperature: f32, largest: f32 }",
      bestWgsl("values", vocabulary, lanes),
      sumWgsl(lanes),
      measureWgsl(lanes, groups),
      lastTieWgsl(lanes, groups),
      filterWgsl(vocabulary),
      keepWgsl,
      ...(draws ? [philoxWgsl, drawWgsl(lanes, groups)] : []),
    ].join("\n"),
    main: `
  ${rowWgsl(dimWgsl(rows))}
  ${bestAndSumWgsl("0u", `${groups}u`, lanes, draws && !adjusted)}
  ${readRowWgsl}
  ${draws ? tokenWgsl(call.params, vocabulary) : probabilitiesWgsl(lanes, groups, vocabulary)}`,
  };
}

/**
 * values [R, V], rows [R, 12] u32 (and, adjusted, the raw logits [R, V] and their log-sum-exp [R]) to token [R] i32 and
 * logprob [R] f32, or to probabilities [R, V] f32. A workgroup a row.
 */
export const sampleKernel: Kernel<SampleParams> = {
  name: "sample",
  infer([values, rows], { result }) {
    const sizes = logitSizes(values, "sample");
    checkRows(rows, values!);
    if (result === "probabilities") return [{ dtype: "f32", shape: values!.shape }];
    return [{ dtype: "i32", shape: [sizes.rows] }, { dtype: "f32", shape: [sizes.rows] }];
  },
  wgsl: sampleWgsl,
  grid: (call, _caps, resolve) => rowGrid(1, resolve(call.inputs[0]!.shape[0]!)),
  reference(call, [values, rows, logits, logSumExp]) {
    const vocabulary = call.inputs[0]!.shape[1] as number;
    const decoded = rowsOf(values!, vocabulary).map((row, r) => ({ row, settings: decodeSamplingRow(rows!, r) }));
    if (call.params.result === "probabilities") {
      return [Float64Array.from(decoded.flatMap(({ row, settings }) => [...filterReference(row, settings).probs]))];
    }
    const drawn = decoded.map(({ row, settings }) => sampleReference(row, settings));
    const logprob = ({ token, logprob }: { token: number; logprob: number }, r: number): number =>
      call.params.adjusted ? logits![r * vocabulary + token]! - logSumExp![r]! : logprob;
    return [Float64Array.from(drawn, ({ token }) => token), Float64Array.from(drawn, logprob)];
  },
  cost: (call, _caps, resolve) => logitPassCost(call, resolve, 20, 1),
};

/**
 * Draws a token for each row: one dispatch, two with `adjustments`.
 *
 * @param logits [R, V]. @param rows [R, 12] u32 from `encodeSamplingRows`.
 * @param adjustments [E, 4] i32 from `encodeSamplingRows`; leave out where no row has penalties or bias.
 * @param slots [S] i32: the tokens that rows name by `inFlight`; leave out where none does.
 * @returns `token` [R] i32, and `logprob` [R] f32 under the softmax of the raw logits.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { encodeSamplingRows, sample, sampleReference } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const logits = [1, 2, 3, 2.5], row = { temperature: 0.8, topK: 3, seed: 7, index: 0 };
 * const { rows } = encodeSamplingRows([row]);
 * const { token } = sample(tensor([logits]).node, tensor(rows, { shape: [1, 12] }).node);
 * assertEquals((await new Tensor(token).data())[0], sampleReference(logits, row).token);
 * ```
 */
export function sample(logits: Node, rows: Node, adjustments?: Node, slots?: Node): { token: Node; logprob: Node } {
  const token = kernelNode(sampleKernel, sampleInputs(logits, rows, adjustments, slots), {
    result: "token",
    adjusted: adjustments !== undefined,
  });
  return { token, logprob: output(token, 1) };
}

function sampleInputs(logits: Node, rows: Node, adjustments?: Node, slots?: Node): Node[] {
  if (!adjustments) return [logits, rows];
  const adjusted = applyPenalties(logits, rows, adjustments, slots);
  return [adjusted, rows, logits, output(adjusted, 1)];
}

/**
 * The distribution that {@linkcode sample} draws from: softmax over the tokens that the filters keep, 0 elsewhere.
 * Speculative decoding compares such distributions.
 *
 * @param logits [R, V]; apply penalties first. @param rows [R, 12] u32 from `encodeSamplingRows`.
 * @returns [R, V] f32.
 */
export function filteredProbabilities(logits: Node, rows: Node): Node {
  return kernelNode(sampleKernel, [logits, rows], { result: "probabilities", adjusted: false });
}
