/**
 * The WGSL of split attention's second dispatch: partial results of a row's tiles, merged in order.
 *
 * @module
 */
import { type Dim, maxOf } from "../tensor/dim.ts";
import { type Caps, dimWgsl, INPUTS_READY, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { LOWEST, TILE } from "./attention_layout.ts";
import { blockFunctions, octet, type QuantisedStore, quantiseFinished, quantiseOctet } from "./quantise_wgsl.ts";
import { rowWgsl } from "./row_grid.ts";
import { repeat } from "./unroll.ts";

/** Parameters of the merge. */
export interface MergeParams {
  /** Factor on scores. */
  readonly scale: number;
  /** Whether the result is stored in codes and scales (`quantise32`). Head dimensions that are a multiple of 32 only. */
  readonly quantise?: boolean;
}

/** WGSL that finds the sequence of `row` and how many keys it sees; in a batch of single queries that is one look. */
export function seenWgsl(sequences: Dim): string {
  return `
  let sequences = ${dimWgsl(sequences)};
  var sequence = min(row, max(sequences, 1u) - 1u);
  if (u32(query_start(sequence)) > row || u32(query_start(sequence + 1u)) <= row) {
    sequence = 0u;
    var beyond = sequences + 1u;
    while (beyond - sequence > 1u) {
      let middle = (sequence + beyond) >> 1u;
      if (u32(query_start(middle)) <= row) { sequence = middle; } else { beyond = middle; }
    }
  }
  var seen = 0u;
  if (sequence < sequences) {
    seen = u32(max(context_lens(sequence) - query_start(sequence + 1u) + i32(row) + 1, 0));
  }
  let tiles = (seen + ${TILE - 1}u) >> 7u;`;
}

/** What {@linkcode seenWgsl} declares where `row` is the only one of sequence `row`: nothing to search, so all loads are under way at once. */
export const ownRowWgsl = `let behind = context_lens(row) - query_start(row + 1u) + i32(row) + 1;
  let is_own = query_start(row) <= i32(row) && query_start(row + 1u) > i32(row);
  let seen = select(0u, u32(max(behind, 0)), is_own);
  let tiles = (seen + ${TILE - 1}u) >> 7u;`;

/** Sizes of a merge. */
export function mergeSizesOf(
  { inputs }: KernelCall<MergeParams>,
): { rows: Dim; sequences: Dim; tiles: number; heads: number; headDim: number } {
  const [rows, tiles, heads, headDim] = inputs[0]!.shape as [Dim, number, number, number];
  return { rows, tiles, heads, headDim, sequences: inputs[3]!.shape[0]! };
}

/** Tiles up to which a lane reads all of them at once. */
const fewTiles = 8;

/** Tiles whose sums a lane waits for at a time: many where few rows leave little else to wait for. */
function heldTilesOf(rows: Dim, tiles: number): number {
  return tiles <= 8 ? 4 : maxOf(rows) <= 8 && tiles > 32 ? 32 : 8;
}

/**
 * The shader of a merge: one workgroup a row and head, one lane a feature. The lanes first find the factors of as many
 * tiles as there are lanes, by a scan of the maxima; then each adds tile after tile.
 */
export function mergeWgsl(call: KernelCall<MergeParams>, caps: Caps): KernelSource {
  const { rows, sequences, tiles: tileCount, heads, headDim } = mergeSizesOf(call);
  const heldTiles = heldTilesOf(rows, tileCount), { joinedLanes } = caps;
  if (joinedLanes !== undefined && tileCount <= fewTiles) return fewTilesWgsl(call, caps, joinedLanes);
  if (joinedLanes !== undefined && joinedLanes % (headDim / 4) === 0) return manyTilesWgsl(call, caps, joinedLanes);
  const lanes = Math.max(64, 32 * Math.ceil(headDim / 32)), exponent = call.params.scale * Math.LOG2E;
  const { quantise = false } = call.params;
  const load = (u: number, tile: string) =>
    `held${u} = sums(((row * ${tileCount}u + min(${tile}, tiles - 1u)) * ${heads}u + head) * ${headDim}u + feature); `;
  return {
    ...mergePorts(quantise),
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

/** Inputs and outputs of a merge. */
function mergePorts(quantise: boolean): Pick<KernelSource, "inputs" | "outputs"> {
  return {
    inputs: [{ name: "sums" }, { name: "stats", width: 2 }, { name: "query_start" }, { name: "context_lens" }],
    outputs: quantise ? [{ name: "codes", width: 2 }, { name: "scales", width: 2 }] : [{ name: "attended" }],
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
    ...mergePorts(quantise),
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

/** Tiles that a lane of {@linkcode manyTilesWgsl} reads at a time. */
const mostHeld = 8;

/**
 * The shader of a merge of many tiles by the many lanes of joined dispatches: neighbours take four features each, and their groups take
 * turns at the tiles. The first tiles are read before their factors are known, and no factor depends on another one, so that a
 * row waits for memory once. The groups' sums add up in another order than in {@linkcode mergeWgsl}.
 */
function manyTilesWgsl(call: KernelCall<MergeParams>, caps: Caps, lanes: number): KernelSource {
  const { rows, sequences, tiles: tileCount, heads, headDim } = mergeSizesOf(call), { quantise = false } = call.params;
  const vectors = headDim / 4, groups = lanes / vectors, held = Math.min(mostHeld, Math.ceil(tileCount / groups));
  const left = caps.subgroups ? lanes / Math.max(vectors, caps.subgroupSize) : groups;
  const place = (tile: string): string => `(row * ${tileCount}u + min(${tile}, ${tileCount - 1}u)) * ${heads}u + head`;
  const tileOf = (first: string, u: number): string => `${first} + group + ${u * groups}u`;
  const load = (first: string): string =>
    repeat(held, (u) => `let held${u} = sums((${place(tileOf(first, u))}) * ${vectors}u + vector);\n`);
  const add = (first: string): string =>
    repeat(held, (u) =>
      `if (${tileOf(first, u)} < tiles) {
      let factor = factors[${tileOf(first, u)}];
      value = fma(held${u}, vec4f(factor.x), value);
      total += factor.y;
    }
    `);
  const rest = `for (var first = ${held * groups}u; first < tiles; first += ${held * groups}u) {
    ${load("first")}
    ${add("first")}
  }`;
  return {
    inputs: [{ name: "sums", width: 4 }, { name: "stats", width: 2 }, { name: "query_start" }, {
      name: "context_lens",
    }],
    outputs: quantise ? [{ name: "codes", width: 2 }, { name: "scales", width: 2 }] : [{ name: "attended", width: 4 }],
    workgroupSize: [lanes, 1, 1],
    subgroups: caps.subgroups,
    declarations: `var<workgroup> group_sums: array<vec4f, ${left * vectors}>;
var<workgroup> group_totals: array<f32, ${left}>;
var<workgroup> maxima: array<f32, ${lanes / (caps.subgroups ? caps.subgroupSize : 1)}>;
var<workgroup> factors: array<vec2f, ${tileCount}>;
${quantise ? blockFunctions(lanes, caps) : ""}`,
    main: `${rowWgsl(dimWgsl(rows))}
  let head = workgroup.x;
  let group = lane / ${vectors}u;
  let vector = lane % ${vectors}u;
  ${seenWgsl(sequences)}
  ${INPUTS_READY}
  ${factorsWgsl(tileCount, lanes, place, load("0u"), call.params.scale * Math.LOG2E, caps)}
  var value = vec4f();
  var total = 0.0;
  ${add("0u")}
  ${tileCount > held * groups ? rest : ""}
  ${meetWgsl(groups, left, vectors)}
  workgroupBarrier();
  ${joinGroupsWgsl(left, vectors, heads, quantise, caps)}`,
  };
}

/** WGSL that puts every tile's factor of its values, and its share of the total, into `factors`; `loads` are under way meanwhile. */
function factorsWgsl(
  tileCount: number,
  lanes: number,
  place: (tile: string) => string,
  loads: string,
  exponent: number,
  caps: Caps,
): string {
  const turns = Math.ceil(tileCount / lanes), parts = caps.subgroups ? lanes / caps.subgroupSize : lanes;
  const tile = (i: number): string => `lane + ${i * lanes}u`;
  const seen = (i: number): string => `select(${LOWEST}, stats${i}.x, ${tile(i)} < tiles)`;
  const put = caps.subgroups
    ? "let together = subgroupMax(own_peak);\n  if (subgroupLane == 0u) { maxima[subgroup] = together; }"
    : "maxima[lane] = own_peak;";
  return `${repeat(turns, (i) => `let stats${i} = stats(${place(tile(i))});\n`)}
  ${loads}
  var own_peak = ${LOWEST};
  ${repeat(turns, (i) => `own_peak = max(own_peak, ${seen(i)});\n`)}
  ${put}
  workgroupBarrier();
  var peak = ${LOWEST};
  for (var i = 0u; i < ${parts}u; i++) { peak = max(peak, maxima[i]); }
  ${
    repeat(turns, (i) =>
      `if (${tile(i)} < tiles) {
    let factor = exp2((stats${i}.x - peak) * ${exponent});
    factors[${tile(i)}] = vec2f(factor, stats${i}.y * factor);
  }
  `)
  }
  workgroupBarrier();`;
}

/** WGSL that puts the groups' sums into workgroup memory: those of a subgroup meet first, so that `left` are left. */
function meetWgsl(groups: number, left: number, vectors: number): string {
  const distances = Array.from({ length: Math.log2(groups / left) }, (_, bit) => vectors * 2 ** bit),
    each = groups / left;
  return `${
    distances.map((distance) =>
      `value += subgroupShuffleXor(value, ${distance}u); total += subgroupShuffleXor(total, ${distance}u);`
    ).join("\n  ")
  }
  if (group % ${each}u == 0u) {
    group_sums[group / ${each}u * ${vectors}u + vector] = value;
    if (vector == 0u) { group_totals[group / ${each}u] = total; }
  }`;
}

/** WGSL that adds up what the groups have, and stores a head's attended values. */
function joinGroupsWgsl(groups: number, vectors: number, heads: number, quantise: boolean, caps: Caps): string {
  const octets = vectors / 2, add = (name: string): string => `${name} += group_sums[g * ${vectors}u + ${name}_at];`;
  const names = quantise ? ["low", "high"] : ["merged"];
  const at = quantise
    ? `let own = min(lane, ${octets - 1}u); let low_at = 2u * own; let high_at = low_at + 1u;`
    : `let merged_at = min(lane, ${vectors - 1}u);`;
  const store = quantise
    ? quantiseOctet(`(row * ${heads}u + head) * ${octets}u + lane`, `lane < ${octets}u`, caps)
    : `if (lane < ${vectors}u) { store_attended((row * ${heads}u + head) * ${vectors}u + lane, merged); }`;
  return `${at}
  ${names.map((name) => `var ${name} = vec4f();`).join(" ")}
  var all = 0.0;
  for (var g = 0u; g < ${groups}u; g++) {
    ${names.map(add).join(" ")}
    all += group_totals[g];
  }
  let weight = select(0.0, 1.0 / max(all, 1e-37), all > 0.0);
  ${names.map((name) => `${name} *= weight;`).join(" ")}
  ${store}`;
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
