/**
 * The WGSL of split attention's second dispatch for many tiles, by the many lanes of joined dispatches.
 *
 * @module
 */
import { type Caps, dimWgsl, INPUTS_READY, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { LOWEST } from "./attention_layout.ts";
import { type MergeParams, mergePorts, mergeSizesOf, seenWgsl } from "./attention_merge_layout.ts";
import { blockFunctions, quantiseOctet } from "./quantise_wgsl.ts";
import { rowWgsl } from "./row_grid.ts";
import { repeat } from "./unroll.ts";

/** Tiles that a lane reads at a time. */
const mostHeld = 8;

/** Whether lanes divide into groups for a head's features, and workgroup memory holds the factors of all tiles. */
export function fitsMany(call: KernelCall<MergeParams>, caps: Caps, lanes: number): boolean {
  const { tiles, headDim } = mergeSizesOf(call), bytes = 8 * tiles + 16 * lanes + 4 * lanes + 4 * lanes;
  return headDim % 4 === 0 && lanes >= headDim && lanes % (headDim / 4) === 0 && bytes <= caps.workgroupMemory;
}

/**
 * The shader of a merge of many tiles by the many lanes of joined dispatches: neighbours take four features each, and their groups take
 * turns at the tiles. The first tiles are read before their factors are known, and no factor depends on another one, so that a
 * row waits for memory once. The groups' sums add up in another order than tile after tile.
 */
export function manyTilesWgsl(call: KernelCall<MergeParams>, caps: Caps, lanes: number): KernelSource {
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
    ...mergePorts(quantise, 4),
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
  const octets = vectors / 2, headDim = 4 * vectors;
  const add = (name: string): string => `${name} += group_sums[g * ${vectors}u + ${name}_at];`;
  const names = quantise ? ["low", "high"] : ["merged"];
  const at = quantise
    ? `let own = min(lane, ${octets - 1}u); let low_at = 2u * own; let high_at = low_at + 1u;`
    : `let merged_at = min(lane >> 2u, ${vectors - 1}u);`;
  const store = quantise
    ? quantiseOctet(`(row * ${heads}u + head) * ${octets}u + lane`, `lane < ${octets}u`, caps)
    : `if (lane < ${headDim}u) { store_attended((row * ${heads}u + head) * ${headDim}u + lane, merged[lane & 3u]); }`;
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
