/**
 * The WGSL of split attention's first dispatch: partial results of tiles. The stages are those of `attention_wgsl.ts`.
 *
 * A tile waits for the pools once: its lanes load neighbouring words of keys and values together, and pass them on through
 * workgroup memory. There a lane owns one key for the scores, and then some features of a head, adding key after key.
 *
 * @module
 */
import { type Caps, dimWgsl, INPUTS_READY, type KernelCall, type KernelSource, type Port } from "../tensor/kernel.ts";
import { LOWEST, sizesOf, TILE } from "./attention_layout.ts";
import {
  type DecodeAttentionParams,
  type DecodeLayout,
  decodeLayoutOf,
  type StagedRow,
  stagedRow,
  stageWgsl,
  unstage,
} from "./decode_layout.ts";
import { ownRowWgsl, seenWgsl } from "./attention_merge_layout.ts";
import { rowWgsl } from "./row_grid.ts";
import { repeat } from "./unroll.ts";

/** WGSL of a lane's scores: four features of its key at a time, which `feature` gives, against the lines of its split. */
function scoresWgsl({ linesPerSplit, splits }: DecodeLayout, headDim: number, feature: (at: number) => string): string {
  const each = (text: (i: number) => string) => repeat(linesPerSplit, text);
  const line = (i: number, at: number) =>
    `s${i} = fma(queries[${at * linesPerSplit * splits + i}u + first_line], k, s${i}); `;
  return `
      ${each((i) => `var s${i} = vec4f(); `)}
      ${
    repeat(headDim / 4, (at) =>
      `{
        ${feature(at)}
        ${each((i) => line(i, at))}
      }
      `)
  }
      ${
    each((i) =>
      `let score${i} = select(${LOWEST}, (s${i}.x + s${i}.y) + (s${i}.z + s${i}.w), key < n);
      `
    )
  }`;
}

/**
 * WGSL of scores where a tile of keys, then of values, fits workgroup memory: lanes load neighbouring words of both at once;
 * values wait in registers for their turn.
 */
function stagedScoresWgsl(layout: DecodeLayout, headDim: number, own?: OwnToken): { scores: string; values: string } {
  const { lanes, width, packedValues } = layout, row = stagedRow(headDim, packedValues, width);
  const loads = Math.ceil(TILE * row.units / lanes);
  const place = (c: number) => `
      let place${c} = min(lane + ${c * lanes}u, ${TILE * row.units - 1}u);
      let key${c} = place${c} / ${row.units}u;
      let unit${c} = place${c} % ${row.units}u;
      let from${c} = addresses[key${c}] + unit${c};`;
  const each = (text: (c: number) => string) => repeat(loads, text);
  const element = (at: number) => unstage(`key_row + (${at}u ^ key_mask)`, layout);
  const loaded = (pool: string, c: number): string =>
    own ? `select(vec4u(), ${pool}(from${c}), key${c} < known)` : `${pool}(from${c})`;
  const scores = `
      if (split == 0u) { addresses[key] = slot * ${row.units}u; }
      workgroupBarrier();
      ${each(place)}
      ${each((c) => `let k${c} = ${loaded("keys", c)}; `)}
      ${each((c) => `let v${c} = ${loaded("values", c)}; `)}
      ${own ? `if (tile == chunk) { ${INPUTS_READY} }\n${own.queries}\n${own.loads}` : ""}
      ${each((c) => stageWgsl(`key${c}`, `unit${c}`, `k${c}`, row))}
      workgroupBarrier();
      ${own?.stage("key", row) ?? ""}
      let key_row = key * ${row.elements}u;
      let key_mask = key & ${row.mask}u;
      ${
    scoresWgsl(layout, headDim, (at) =>
      width === 4 ? `let k = ${element(at)};` : `let k = vec4f(${element(2 * at)}, ${element(2 * at + 1)});`)
  }`;
  const values = each((c) => stageWgsl(`key${c}`, `unit${c}`, `v${c}`, row));
  return { scores, values: own ? `${values}workgroupBarrier();\n${own.stage("value", row)}` : values };
}

/** WGSL of scores where a tile of keys does not fit: each lane reads all of its key. */
function directScoresWgsl(layout: DecodeLayout, headDim: number): { scores: string; values: string } {
  const { packedKeys, packedValues, width } = layout, units = headDim / (packedKeys ? 8 : 4);
  const packed = (at: number) =>
    (at & 1) === 0
      ? `let k = vec4f(unpack2x16float(pair${at >> 1}.x), unpack2x16float(pair${at >> 1}.y));`
      : `let k = vec4f(unpack2x16float(pair${at >> 1}.z), unpack2x16float(pair${at >> 1}.w));`;
  const scores = `
      let key_at = slot * ${units}u;
      if (split == 0u) { addresses[key] = slot * ${stagedRow(headDim, packedValues, width).units}u; }
      workgroupBarrier();
      ${packedKeys ? repeat(units, (c) => `let pair${c} = keys(key_at + ${c}u); `) : ""}
      ${scoresWgsl(layout, headDim, (at) => packedKeys ? packed(at) : `let k = keys(key_at + ${at}u);`)}`;
  return { scores, values: "" };
}

/** WGSL that turns scores into weights in workgroup memory, through the maxima of lines over the tile. */
function weightsWgsl(
  { linesPerSplit, splits, lanes, maxima }: DecodeLayout,
  exponent: number,
  caps: Caps,
  values: string,
): string {
  const each = (text: (i: number) => string) => repeat(linesPerSplit, text);
  const weightAt = (i: number) => `weights[((first_line + ${i}u) << 5u) + (key >> 2u)][key & 3u]`;
  const parts = caps.subgroups
    ? each((i) =>
      `{
        let greatest = subgroupMax(score${i});
        if (subgroupLane == 0u) { maxima[(first_line + ${i}u) * ${maxima}u + (subgroup & ${maxima - 1}u)] = greatest; }
      }
      `
    )
    : `
      ${each((i) => `${weightAt(i)} = score${i}; `)}
      workgroupBarrier();
      for (var i = lane; i < ${linesPerSplit * splits * maxima}u; i += ${lanes}u) {
        let greatest = max(weights[2u * i], weights[2u * i + 1u]);
        maxima[i] = max(max(greatest.x, greatest.y), max(greatest.z, greatest.w));
      }`;
  return `
      ${parts}
      workgroupBarrier();
      ${values}
      ${
    each((i) =>
      `{
        let greatest = greatest_of(first_line + ${i}u);
        let weight = exp2(min(score${i} - greatest, 0.0) * ${exponent});
        ${weightAt(i)} = select(0.0, weight, score${i} > ${LOWEST});
      }
      `
    )
  }`;
}

/** WGSL that adds the values of staged keys, eight at a time, to the lane's sums. */
function addValuesWgsl(layout: DecodeLayout, headDim: number): string {
  const { slots, width, packedValues, staged } = layout;
  const { elements, mask } = stagedRow(headDim, packedValues, width);
  const whole = staged === TILE, vector = `vec${width}f`;
  // Sums of one feature for several heads share what they read.
  const shared = layout.lanes % (headDim / width) === 0;
  const value = (s: number, u: number) => unstage(`first + ${u * elements}u + (at${s} ^ ${u & mask}u)`, layout);
  const take = (s: number, u: number) =>
    `{
            let p = ${u < 4 ? "low" : "high"}${s}.${"xyzw"[u & 3]};
            total${s} += p;
            sum${s} = fma(${vector}(p), ${shared ? "value" : value(s, u)}, sum${s});
          }
          `;
  const key = (u: number) =>
    `{
          ${shared ? `let value = ${value(0, u)};` : ""}
          ${repeat(slots, (s) => take(s, u))}
          }
          `;
  const slot = (s: number) => `
          let low${s} = weights[(line${s} << 5u) + (j >> 2u)];
          let high${s} = weights[(line${s} << 5u) + (j >> 2u) + 1u];
          let at${s} = feature${s} ^ (row_of_j & ${mask}u);`;
  return `for (var j = ${whole ? "0u" : "j0"}; j < ${whole ? "padded" : "end"}; j += 8u) {
          let row_of_j = ${whole ? "j" : "j - j0"};
          let first = row_of_j * ${elements}u;
          ${repeat(slots, slot)}
          ${repeat(8, key)}
        }`;
}

/** WGSL of the weighted values of a tile; values that do not fit workgroup memory come in several goes. */
function valuesWgsl(layout: DecodeLayout, headDim: number): string {
  const { slots, width, staged, lanes, packedValues } = layout, row = stagedRow(headDim, packedValues, width);
  const start = repeat(slots, (s) => `var total${s} = 0.0; var sum${s} = vec${width}f(); `);
  const padded = "let padded = (n + 7u) & ~7u;";
  if (staged === TILE) {
    return `
      workgroupBarrier();
      ${start}
      ${padded}
      ${addValuesWgsl(layout, headDim)}`;
  }
  return `
      ${start}
      ${padded}
      for (var j0 = 0u; j0 < padded; j0 += ${staged}u) {
        let end = min(padded, j0 + ${staged}u);
        for (var i = lane; i < ${staged * row.units}u; i += ${lanes}u) {
          let key = i / ${row.units}u;
          let unit = i % ${row.units}u;
          let value = values(addresses[j0 + key] + unit);
          ${stageWgsl("key", "unit", "value", row)}
        }
        workgroupBarrier();
        ${addValuesWgsl(layout, headDim)}
        workgroupBarrier();
      }`;
}

function declarationsWgsl(layout: DecodeLayout, headDim: number): string {
  const { linesPerSplit, splits, width, packedValues, staged, maxima } = layout, padded = linesPerSplit * splits;
  const { elements } = stagedRow(headDim, packedValues, width);
  const element = packedValues ? (width === 2 ? "u32" : "vec2u") : `vec${width}f`;
  return `
var<workgroup> queries: array<vec4f, ${padded * headDim / 4}>;
var<workgroup> weights: array<vec4f, ${padded * TILE / 4}>;
var<workgroup> staged: array<${element}, ${staged * elements}>;
var<workgroup> maxima: array<f32, ${padded * maxima}>;
var<workgroup> addresses: array<u32, ${TILE}>;
fn unpack_four(pair: vec2u) -> vec4f { return vec4f(unpack2x16float(pair.x), unpack2x16float(pair.y)); }
fn greatest_of(line: u32) -> f32 {
  var greatest = maxima[line * ${maxima}u];
  ${repeat(maxima - 1, (i) => `greatest = max(greatest, maxima[line * ${maxima}u + ${i + 1}u]); `)}
  return greatest;
}`;
}

/** What a kernel adds where each row is a sequence's only one and not in the pools yet: it comes from the product of q, k and v. */
export interface OwnToken {
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  readonly declarations: string;
  /** Puts the queries into workgroup memory, in the first tile. */
  readonly queries: string;
  /** Loads the own key and value, in the last tile. */
  readonly loads: string;
  /** Puts the own key or value in its place, in the last tile, and into the pool. Ends with a barrier. */
  stage(what: "key" | "value", row: StagedRow): string;
}

/** WGSL that declares what a workgroup computes: `sequence`, `seen`, `tiles`, and the block of the first tile's keys. */
function rowStart(call: KernelCall<DecodeAttentionParams>, own: OwnToken | undefined): string {
  const { rows, sequences, maxBlocks } = sizesOf(call), shift = Math.log2(call.params.blockSize);
  if (!own) return `${rowWgsl(dimWgsl(rows))}\n${seenWgsl(sequences)}`;
  return `${rowWgsl(dimWgsl(rows))}
  let own_slot = slot_mapping(row);
  var block = block_tables(row * ${maxBlocks}u + min(((chunk << 7u) + key) >> ${shift}u, ${maxBlocks - 1}u));
  ${ownRowWgsl}`;
}

/** WGSL of a lane's key in the pool: `n` keys of the tile are seen. */
function keySlot(call: KernelCall<DecodeAttentionParams>, own: OwnToken | undefined): string {
  const { kvHeads, maxBlocks } = sizesOf(call), { blockSize } = call.params, shift = Math.log2(blockSize);
  const slot = (block: string): string =>
    `let slot = ((${block} << ${shift}u) + (position & ${blockSize - 1}u)) * ${kvHeads}u + kv_head;`;
  if (!own) {
    return `let position = (tile << 7u) + min(key, n - 1u);
    let block = u32(max(block_tables(sequence * ${maxBlocks}u + (position >> ${shift}u)), 0));
    ${slot("block")}`;
  }
  const slots = call.inputs[1]!.shape[0] as number;
  return `let fresh = tile + 1u == tiles && own_slot >= 0 && own_slot < ${slots};
    let known = n - select(0u, 1u, fresh);
    let position = (tile << 7u) + key;
    if (tile != chunk) { block = block_tables(row * ${maxBlocks}u + min(position >> ${shift}u, ${maxBlocks - 1}u)); }
    ${slot("u32(max(block, 0))")}`;
}

/** The shader of a call's partial results on a device. */
export function partialsWgsl(call: KernelCall<DecodeAttentionParams>, caps: Caps, own?: OwnToken): KernelSource {
  const layout = decodeLayoutOf(call, caps);
  const { heads, kvHeads, headDim } = sizesOf(call), group = heads / kvHeads;
  const { lines, shares, sharesPerKvHead, lanes, splits, linesPerSplit, width, slots } = layout;
  const padded = linesPerSplit * splits, ofHead = headDim / width, tileCount = call.outputs[0]!.shape[1] as number;
  const stage = layout.staged === TILE ? stagedScoresWgsl(layout, headDim, own) : directScoresWgsl(layout, headDim);
  const slot = (s: number) =>
    `let place${s} = lane + ${s * lanes}u;
  let line${s} = min(place${s} / ${ofHead}u, ${lines - 1}u);
  let feature${s} = place${s} % ${ofHead}u;
  `;
  const store = (s: number) =>
    `if (place${s} < ${lines * ofHead}u && first_head + line${s} < head_end) {
        let head = (row * ${tileCount}u + tile) * ${heads}u + first_head + line${s};
        store_sums(head * ${ofHead}u + feature${s}, sum${s});
        if (feature${s} == 0u) { store_stats(head, vec2f(greatest_of(line${s}), total${s})); }
      }
      `;
  const queries = `for (var i = lane; i < ${padded * headDim / 4}u; i += ${lanes}u) {
    let at = i / ${padded}u;
    let head = min(first_head + i % ${padded}u, head_end - 1u);
    queries[i] = q((row * ${heads}u + head) * ${headDim / 4}u + at);
  }`;
  return {
    inputs: [
      ...own?.inputs ?? [{ name: "q", width: 4 }],
      layout.packedKeys ? { name: "keys", width: 4, raw: true } : { name: "keys", width: 4 },
      layout.packedValues ? { name: "values", width: 4, raw: true } : { name: "values", width: 4 },
      { name: "query_start" },
      { name: "context_lens" },
      { name: "block_tables" },
    ],
    outputs: [{ name: "sums", width }, { name: "stats", width: 2 }, ...own?.outputs ?? []],
    workgroupSize: [lanes, 1, 1],
    subgroups: caps.subgroups,
    declarations: declarationsWgsl(layout, headDim) + (own?.declarations ?? ""),
    main: `let chunk = workgroup.x / ${shares}u;
  let share = workgroup.x % ${shares}u;
  let stride = groups.x / ${shares}u;
  let key = lane & ${TILE - 1}u;
  let split = lane >> 7u;
  ${rowStart(call, own)}
  if (chunk >= tiles) { return; }
  let kv_head = share / ${sharesPerKvHead}u;
  let first_head = kv_head * ${group}u + (share % ${sharesPerKvHead}u) * ${lines}u;
  let head_end = (kv_head + 1u) * ${group}u;
  let first_line = split * ${linesPerSplit}u;
  ${own ? "" : queries}
  ${repeat(slots, slot)}
  for (var tile = chunk; tile < tiles; tile += stride) {
    let n = min(${TILE}u, seen - (tile << 7u));
    ${keySlot(call, own)}
    {
      ${stage.scores}
      ${weightsWgsl(layout, call.params.scale * Math.LOG2E, caps, stage.values)}
      ${valuesWgsl(layout, headDim)}
      ${repeat(slots, store)}
      workgroupBarrier();
    }
  }`,
  };
}
