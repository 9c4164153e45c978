/**
 * WGSL that quantises activations, in pieces: what `quantise.ts` runs by itself, and what the products of `int8_matmul.ts` and
 * attention's merge run where activations are made or used.
 *
 * @module
 */
import type { Caps } from "../tensor/kernel.ts";
import { inverseRms } from "./norm.ts";

/** A block whose greatest magnitude is at most this counts as zeros: 127 / max has to be finite. */
export const smallestMax = 1e-30;

/** Columns of an invocation. */
export const octet = 8;

/** Names of the functions that take two words of codes, and scale and sum. */
export interface QuantisedStore {
  readonly codes: string;
  readonly scales: string;
}

/** The outputs of a kernel whose results are codes and scales. */
export const outputStore: QuantisedStore = { codes: "store_codes", scales: "store_scales" };

/** Functions that give each of four neighbouring lanes what they have together. Called in uniform control flow. */
export function blockFunctions(lanes: number, caps: Caps): string {
  const combine = (name: string, join: (a: string, b: string) => string): string => {
    if (caps.subgroups) {
      return `fn block_${name}(own: f32) -> f32 {
  let pair = ${join("own", "subgroupShuffleXor(own, 1u)")};
  return ${join("pair", "subgroupShuffleXor(pair, 2u)")};
}\n`;
    }
    return `fn block_${name}(own: f32, lane: u32) -> f32 {
  workgroupBarrier();
  exchange[lane] = own;
  workgroupBarrier();
  let first = lane & ~3u;
  return ${join(join("exchange[first]", "exchange[first + 1u]"), join("exchange[first + 2u]", "exchange[first + 3u]"))};
}\n`;
  };
  const shared = caps.subgroups ? "" : `var<workgroup> exchange: array<f32, ${lanes}>;\n`;
  return shared + combine("max", (a, b) => `max(${a}, ${b})`) + combine("sum", (a, b) => `(${a} + ${b})`);
}

/** Quantises vec4f `low` and `high`, the columns of octet `at`, in uniform control flow; stores where `inside` holds. */
export function quantiseOctet(at: string, inside: string, caps: Caps, store = outputStore): string {
  const lane = caps.subgroups ? "" : ", lane";
  return `
    let magnitudes = max(abs(low), abs(high));
    let greatest = block_max(max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w))${lane});
    let some = greatest > ${smallestMax};
    let steps = select(0.0, 127.0 / max(greatest, ${smallestMax}), some);
    let rounded_low = round(low * steps);
    let rounded_high = round(high * steps);
    let sums = rounded_low + rounded_high;
    let sum = block_sum((sums.x + sums.y) + (sums.z + sums.w)${lane});
    let scale = select(0.0, greatest * ${1 / 127}, some);
    let first = vec4i(rounded_low) & vec4i(255);
    let second = vec4i(rounded_high) & vec4i(255);
    let even = first.x | (first.z << 8u) | (second.x << 16u) | (second.z << 24u);
    let odd = first.y | (first.w << 8u) | (second.y << 16u) | (second.w << 24u);
    if (${inside}) {
      ${store.codes}(${at}, vec2u(u32(even), u32(odd)));
      if ((lane & 3u) == 0u) {
        ${store.scales}((${at}) >> 2u, vec2f(scale, scale * sum));
      }
    }`;
}

/** {@linkcode quantiseOctet} of eight neighbours in the workgroup's array `finished`, from index `start` on. */
export function quantiseFinished(start: string, at: string, inside: string, caps: Caps, store = outputStore): string {
  const four = (from: number): string =>
    `vec4f(${[0, 1, 2, 3].map((i) => `finished[start + ${from + i}u]`).join(", ")})`;
  return `let start = ${start};
    let low = ${four(0)};
    let high = ${four(4)};
    ${quantiseOctet(at, inside, caps, store)}`;
}

/** Octets that an invocation of the fused norm keeps in registers; longer rows are read twice. */
const keptOctets = 4;

/** Partial sums of a row's squares in workgroup memory. */
function partsOf(lanes: number, caps: Caps): number {
  return caps.subgroups && caps.subgroupSize <= lanes ? lanes / caps.subgroupSize : lanes;
}

/** WGSL that leaves `squares` of the lanes of a row for `inverse_of`, which a barrier has to come before. */
function putSquares(lanes: number, caps: Caps): string {
  return partsOf(lanes, caps) < lanes
    ? `let together = subgroupAdd(squares);
    if (subgroupLane == 0u) { partial_squares[subgroup] = together; }`
    : "partial_squares[lane] = squares;";
}

/** How the columns of a row, or of some rows side by side, are normalised and quantised by a workgroup. */
export interface NormaliseText {
  /** Columns of a row. */
  readonly columns: number;
  /** Invocations of a row: a multiple of four. */
  readonly lanes: number;
  /** Rows of the workgroup: one unless given. An invocation's is `team_row`. */
  readonly rows?: number;
  /** Added to the mean of squares. */
  readonly eps: number;
  /** WGSL of the row's first octet, in x and in the codes. */
  readonly from: string;
  readonly to: string;
  readonly store: QuantisedStore;
  /** Whether codes and scales lack the factor, which `inverse_of` gives behind a barrier (`late_norm.ts`). */
  readonly late?: boolean;
}

/**
 * WGSL of RMSNorm and quantisation of rows by a workgroup, from `x` and `weight` (vec4f), in uniform control flow. Declarations of
 * {@linkcode normaliseDeclarations} are needed.
 *
 * @returns `loads`, which waits for nothing, and `rest`. Columns stay in registers where a row is short, else they are read again.
 */
export function normaliseWgsl(text: NormaliseText, caps: Caps): { loads: string; rest: string } {
  const { columns, lanes, rows = 1, from, to, store, late = false } = text, octets = columns / octet;
  const turns = Math.ceil(octets / lanes), member = rows > 1 ? "row_lane" : "lane";
  const team = rows > 1 ? `let team_row = lane / ${lanes}u;\nlet row_lane = lane % ${lanes}u;\n` : "";
  const load = (name: string, at: string): string =>
    `let ${name}_low = x(2u * (${from} + ${at}));
    let ${name}_high = x(2u * (${from} + ${at}) + 1u);
    let ${name}_weight_low = weight(2u * ${at});
    let ${name}_weight_high = weight(2u * ${at} + 1u);\n`;
  // Multiply-adds are written as fma: no compiler may join them in one way here and in another where dispatches are joined.
  const square = (name: string): string => `add_up(fma(${name}_low, ${name}_low, ${name}_high * ${name}_high))`;
  const factor = late ? "" : "inverse * ";
  const normed = (name: string, at: string): string => `
    let low = ${name}_low * ${factor}${name}_weight_low;
    let high = ${name}_high * ${factor}${name}_weight_high;
    ${quantiseOctet(`${to} + ${at}`, `${at} < ${octets}u`, caps, store)}`;
  const put = putSquares(lanes, caps);
  const inverse = `${put}
    workgroupBarrier();
    let inverse = inverse_of(${rows > 1 ? "team_row" : "0u"});\n`;
  if (turns > keptOctets) {
    const eachTurn = (more: string): string =>
      `for (var turn = 0u; turn < ${turns}u; turn++) {
      let at = turn * ${lanes}u + ${member};
      let inside = min(at, ${octets - 1}u);
      ${load("v", "inside")} ${more} ${normed("v", "at")}
    }\n`;
    return {
      loads: `${team}var squares = 0.0;\n`,
      rest: late
        ? `${eachTurn(`squares += select(0.0, ${square("v")}, at < ${octets}u);`)} ${put}`
        : `for (var at = ${member}; at < ${octets}u; at += ${lanes}u) {
      let v_low = x(2u * (${from} + at)); let v_high = x(2u * (${from} + at) + 1u); squares += ${square("v")};
    }
    ${inverse} ${eachTurn("")}`,
    };
  }
  const each = (piece: (name: string, at: string) => string): string =>
    Array.from({ length: turns }, (_, turn) => piece(`v${turn}`, `(${member} + ${turn * lanes}u)`)).join("");
  const clamped = (at: string): string => `min(${at}, ${octets - 1}u)`;
  return {
    loads: team + each((name, at) => load(name, clamped(at))),
    rest: `var squares = 0.0;
    ${each((name, at) => `squares += select(0.0, ${square(name)}, ${at} < ${octets}u);\n`)}
    ${late ? put : inverse}
    ${each((name, at) => `{ ${normed(name, at)} }\n`)}`,
  };
}

/**
 * What {@linkcode normaliseWgsl} needs beside {@linkcode blockFunctions}: `inverse_of` is the factor of the norm of a row of the
 * workgroup, behind a barrier.
 */
export function normaliseDeclarations(
  { columns, lanes, rows = 1, eps }: Pick<NormaliseText, "columns" | "lanes" | "rows" | "eps">,
  caps: Caps,
): string {
  const parts = partsOf(lanes, caps), first = rows > 1 ? `row * ${parts}u + ` : "";
  const terms = (count: number, from: string): string =>
    Array.from({ length: count }, (_, i) => `total += partial_squares[${first}${from}${i}u];`).join(" ");
  const sum = parts <= 16 ? terms(parts, "") : `for (var i = 0u; i < ${parts}u; i += 8u) { ${terms(8, "i + ")} }`;
  return `var<workgroup> partial_squares: array<f32, ${lanes * rows}>;
fn add_up(squares: vec4f) -> f32 { return (squares.x + squares.y) + (squares.z + squares.w); }
fn inverse_of(row: u32) -> f32 {
  var total = 0.0;
  ${sum}
  return ${inverseRms("total", columns, eps)};
}\n`;
}
