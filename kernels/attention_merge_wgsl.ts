/**
 * The WGSL of split attention's second dispatch: partial results of a row's tiles, merged in order; `attention_merge_many_wgsl.ts` has a
 * form in another order.
 *
 * @module
 */
import { type Dim, maxOf } from "../tensor/dim.ts";
import { type Caps, dimWgsl, INPUTS_READY, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { LOWEST } from "./attention_layout.ts";
import {
  fewTiles,
  type MergeParams,
  mergePorts,
  mergeSizesOf,
  ownRowWgsl,
  seenWgsl,
} from "./attention_merge_layout.ts";
import { fitsMany, manyTilesWgsl } from "./attention_merge_many_wgsl.ts";
import { blockFunctions, octet, type QuantisedStore, quantiseFinished, quantiseOctet } from "./quantise_wgsl.ts";
import { rowWgsl } from "./row_grid.ts";
import { repeat } from "./unroll.ts";

/** Tiles whose sums a lane waits for at a time: many where few rows leave little else to wait for. */
function heldTilesOf(rows: Dim, tiles: number): number {
  return tiles <= fewTiles ? 4 : maxOf(rows) <= 8 && tiles > 32 ? 32 : 8;
}

/**
 * The shader of a merge: one workgroup a row and head, one lane a feature. The lanes first find the factors of as many
 * tiles as there are lanes, by a scan of the maxima; then each adds tile after tile.
 */
export function mergeWgsl(call: KernelCall<MergeParams>, caps: Caps): KernelSource {
  const { rows, sequences, tiles: tileCount, heads, headDim } = mergeSizesOf(call);
  const heldTiles = heldTilesOf(rows, tileCount), { joinedLanes } = caps;
  if (joinedLanes !== undefined && tileCount <= fewTiles) return fewTilesWgsl(call, caps, joinedLanes);
  if (joinedLanes !== undefined && call.params.fast && fitsMany(call, caps, joinedLanes)) {
    return manyTilesWgsl(call, caps, joinedLanes);
  }
  const lanes = Math.max(64, 32 * Math.ceil(headDim / 32)), exponent = call.params.scale * Math.LOG2E;
  const { quantise = false } = call.params;
  const load = (u: number, tile: string) =>
    `held${u} = sums(((row * ${tileCount}u + min(${tile}, tiles - 1u)) * ${heads}u + head) * ${headDim}u + feature); `;
  return {
    ...mergePorts(quantise, 1),
    workgroupSize: [lanes, 1, 1],
    subgroups: quantise && caps.subgroups,
    declarations: `${finishedWgsl(quantise, headDim, lanes, caps)}
var<workgroup> greatest_to: array<f32, ${lanes}>;
var<workgroup> factors: array<vec4f, ${lanes}>;`,
    main: `${rowWgsl(dimWgsl(rows))}
  let head = workgroup.x;
  let feature = min(lane, ${headDim - 1}u);
  ${seenWgsl(sequences)}
  var greatest_so_far = ${LOWEST};
  var total = 0.0;
  var value = 0.0;
  ${repeat(heldTiles, (u) => `var held${u} = 0.0; `)}
  if (tiles > 0u) { ${repeat(heldTiles, (u) => load(u, `${u}u`))} }
  for (var round = 0u; round < tiles; round += ${lanes}u) {
    let count = min(${lanes}u, tiles - round);
    let own = stats((row * ${tileCount}u + min(round + lane, tiles - 1u)) * ${heads}u + head);
    let inside = lane < count;
    var greatest = select(${LOWEST}, own.x, inside);
    greatest_to[lane] = greatest;
    workgroupBarrier();
    for (var step = 1u; step < count; step <<= 1u) {
      let other = greatest_to[max(lane, step) - step];
      workgroupBarrier();
      greatest = max(greatest, other);
      greatest_to[lane] = greatest;
      workgroupBarrier();
    }
    let prior = max(greatest_so_far, select(${LOWEST}, greatest_to[max(lane, 1u) - 1u], lane > 0u));
    let next = max(greatest_so_far, greatest);
    let before = exp2((prior - next) * ${exponent});
    let now = exp2((own.x - next) * ${exponent});
    factors[lane] = select(vec4f(1.0, 0.0, 0.0, 0.0), vec4f(before, now, own.y * now, 0.0), inside);
    greatest_so_far = max(greatest_so_far, greatest_to[${lanes - 1}]);
    workgroupBarrier();
    for (var j = 0u; j < count; j += ${heldTiles}u) {
      ${
      repeat(heldTiles, (u) =>
        `{
        let factor = factors[j + ${u}u];
        value = fma(value, factor.x, held${u} * factor.y);
        total = fma(total, factor.x, factor.z);
        ${load(u, `round + j + ${u + heldTiles}u`)}
      }
      `)
    }
    }
    workgroupBarrier();
  }
  let weight = select(0.0, 1.0 / max(total, 1e-37), total > 0.0);
  ${storeHead(quantise, heads, headDim, caps)}`,
  };
}

/** Declarations for a result in codes. */
function finishedWgsl(quantise: boolean, headDim: number, lanes: number, caps: Caps): string {
  return quantise ? `var<workgroup> finished: array<f32, ${headDim}>;\n${blockFunctions(lanes, caps)}` : "";
}

/** WGSL that stores `value` times `weight`, a feature of `head` a lane. */
function storeHead(quantise: boolean, heads: number, headDim: number, caps: Caps): string {
  return quantise
    ? quantiseHead(`(row * ${heads}u + head) * ${headDim / octet}u`, headDim, caps)
    : `if (lane < ${headDim}u) { store_attended((row * ${heads}u + head) * ${headDim}u + lane, value * weight); }`;
}

/** WGSL of one more tile in the running sums: `peak`, `total` and the values. `stats` is a vec2f. */
function addTile(tile: number, values: readonly string[], type: string): string {
  return `if (${tile}u < tiles) {
      let next = max(peak, stats${tile}.x);
      let before = exp2((peak - next) * exponent);
      let now = exp2((stats${tile}.x - next) * exponent);
      ${values.map((value) => `${value} = fma(${value}, ${type}(before), ${value}${tile} * now);`).join("\n      ")}
      total = fma(total, before, stats${tile}.y * now);
      peak = next;
    }
    `;
}

/** The shader of a merge of few tiles: all are read at once, before it is known how many there are. */
function fewTilesWgsl(call: KernelCall<MergeParams>, caps: Caps, lanes: number): KernelSource {
  const { rows, sequences, tiles, heads, headDim } = mergeSizesOf(call), { scale, quantise = false } = call.params;
  const place = (tile: number): string => `(row * ${tiles}u + ${tile}u) * ${heads}u + head`;
  return {
    ...mergePorts(quantise, 1),
    workgroupSize: [lanes, 1, 1],
    subgroups: quantise && caps.subgroups,
    declarations: finishedWgsl(quantise, headDim, lanes, caps),
    main: `${rowWgsl(dimWgsl(rows))}
  let head = workgroup.x;
  let feature = min(lane, ${headDim - 1}u);
  ${seenWgsl(sequences)}
  ${INPUTS_READY}
  ${
      repeat(tiles, (i) =>
        `let stats${i} = stats(${place(i)});
  let value${i} = sums((${place(i)}) * ${headDim}u + feature);
  `)
    }
  let exponent = ${scale * Math.LOG2E};
  var peak = ${LOWEST};
  var total = 0.0;
  var value = 0.0;
  ${repeat(tiles, (i) => addTile(i, ["value"], "f32"))}
  let weight = select(0.0, 1.0 / max(total, 1e-37), total > 0.0);
  ${storeHead(quantise, heads, headDim, caps)}`,
  };
}

/** WGSL that quantises the features of a head, one a lane, into the codes from octet `first` on. */
function quantiseHead(first: string, headDim: number, caps: Caps): string {
  const octets = headDim / octet, start = `${octet}u * min(lane, ${octets - 1}u)`;
  return `if (lane < ${headDim}u) { finished[lane] = value * weight; }
  workgroupBarrier();
  ${quantiseFinished(start, `${first} + lane`, `lane < ${octets}u`, caps)}`;
}

/** Rows whose tiles a workgroup merges, from `token0` on. */
export interface MergedRows {
  readonly rows: number;
  readonly lanes: number;
  readonly store: QuantisedStore;
}

/**
 * WGSL that merges the tiles of rows, each the only one of its sequence, and quantises the results, eight features an invocation, in
 * uniform control flow: the order of summation is that of {@linkcode mergeWgsl}. For few tiles: all are read at once.
 */
export function mergeOctetsWgsl(
  { tiles, heads, headDim }: ReturnType<typeof mergeSizesOf>,
  { scale }: MergeParams,
  { rows, lanes, store }: MergedRows,
  caps: Caps,
): { loads: string; rest: string } {
  const octets = heads * headDim / octet, exponent = scale * Math.LOG2E, vectors = heads * headDim / 4;
  const count = rows * octets;
  const place = rows === 1 ? "let row = 0u;" : `let row = min(token0 + all / ${octets}u, tokens - 1u);`;
  const first = (i: number, each: number): string =>
    rows === 1 ? `${i * each}u` : `(row * ${tiles}u + ${i}u) * ${each}u`;
  const turn = (from: number): string =>
    `{
    let at = lane + ${from}u;
    let all = min(at, ${count - 1}u);
    ${place}
    let own = ${rows === 1 ? "all" : `all % ${octets}u`};
    let head = own / ${headDim / octet}u;
    ${ownRowWgsl}
    ${
      repeat(tiles, (i) =>
        `let stats${i} = stats(${first(i, heads)} + head);
    let low${i} = sums(${first(i, vectors)} + 2u * own);
    let high${i} = sums(${first(i, vectors)} + 2u * own + 1u);
    `)
    }
    let exponent = ${exponent};
    var peak = ${LOWEST};
    var total = 0.0;
    var low = vec4f();
    var high = vec4f();
    ${repeat(tiles, (i) => addTile(i, ["low", "high"], "vec4f"))}
    let weight = select(0.0, 1.0 / max(total, 1e-37), total > 0.0);
    low *= weight;
    high *= weight;
    ${quantiseOctet("at", `at < ${count}u`, caps, store)}
  }`;
  const turns = Array.from({ length: Math.ceil(count / lanes) }, (_, i) => turn(i * lanes));
  return { loads: "", rest: turns.join("\n") };
}
