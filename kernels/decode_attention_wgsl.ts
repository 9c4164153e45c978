/**
 * The WGSL of split attention: partial results of tiles, and their merge. The stages are those of `attention_wgsl.ts`.
 *
 * A tile's work is laid out for latency: a lane owns one key, loads all of it and a share of its value at once, and puts the
 * value into workgroup memory as stored, so that a tile waits for the pools once. Then a lane owns some features of a
 * head and adds key after key.
 *
 * @module
 */
import { type Dim, maxOf } from "../tensor/dim.ts";
import { type Caps, dimWgsl, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { LOWEST, sizesOf, TILE } from "./attention_layout.ts";
import { rowWgsl } from "./row_grid.ts";

/** Parameters of split attention. The optional ones are chosen by device and batch, and change speed, never results. */
export interface DecodeAttentionParams {
  /** Tokens of a block: a power of two. */
  readonly blockSize: number;
  /** Factor on scores, above 0: 1 / sqrt(headDim) nearly everywhere. */
  readonly scale: number;
  /** Most query heads of a workgroup. */
  readonly headsPerShare?: number;
  /** Invocations of a workgroup: a multiple of 128. */
  readonly lanes?: number;
  /** Features that a lane sums up. */
  readonly width?: 2 | 4;
}

/** Parameters of the merge. */
export interface MergeParams {
  /** Factor on scores. */
  readonly scale: number;
}

/** How a workgroup's work is laid out. */
export interface DecodeLayout {
  /** Query heads of a workgroup, and workgroups that a row's tile takes in all. */
  readonly lines: number;
  readonly shares: number;
  readonly sharesPerKvHead: number;
  readonly lanes: number;
  /** Lanes of one key, each with some of the lines. */
  readonly splits: number;
  readonly linesPerSplit: number;
  /** Features that a lane sums up, and how many such sums it has. */
  readonly width: 2 | 4;
  readonly slots: number;
  /** Whether the pools are read as words of two halves, eight features a load rather than four. */
  readonly packedKeys: boolean;
  readonly packedValues: boolean;
  /** Keys whose values are in workgroup memory at a time; all of a tile are loaded along with the keys. */
  readonly staged: number;
  /** Maxima of a line over parts of a tile. */
  readonly maxima: number;
}

const repeat = (count: number, text: (i: number) => string): string =>
  Array.from({ length: count }, (_, i) => text(i)).join("");

const sequence = (count: number): number[] => Array.from({ length: count }, (_, i) => i);

/** Chooses the layout of a call on a device. */
export function decodeLayoutOf(call: KernelCall<DecodeAttentionParams>, caps: Caps): DecodeLayout {
  const { rows, heads, kvHeads, headDim } = sizesOf(call), group = heads / kvHeads, { params } = call;
  // Few rows leave processors without work: smaller shares then, though each reads the keys of its own.
  const few = maxOf(rows) <= 8;
  const most = params.headsPerShare ?? (few ? 4 : 8);
  const sharesPerKvHead = Math.ceil(group / most), lines = Math.ceil(group / sharesPerKvHead);
  const width = params.width ?? (few ? 2 : 4);
  const wanted = params.lanes ?? Math.min(few ? 512 : 256, TILE * Math.ceil(lines * headDim / width / TILE));
  const lanes = Math.max(TILE, Math.min(wanted, caps.maxInvocations - caps.maxInvocations % TILE));
  const splits = lanes / TILE;
  const packed = (input: number): boolean => call.inputs[input]!.dtype === "f16" && caps.f16 && headDim % 8 === 0;
  const packedValues = packed(2), linesPerSplit = Math.ceil(lines / splits);
  const valueBytes = headDim * (packedValues ? 2 : 4);
  const room = caps.workgroupMemory - 4 * linesPerSplit * splits * (headDim + TILE + 16) - 1024;
  let staged = TILE;
  while (staged > 8 && staged * valueBytes > room) staged /= 2;
  return {
    lines,
    shares: sharesPerKvHead * kvHeads,
    sharesPerKvHead,
    lanes,
    splits,
    linesPerSplit,
    width,
    slots: Math.ceil(lines * headDim / width / lanes),
    packedKeys: packed(1),
    packedValues,
    staged,
    maxima: caps.subgroups ? Math.max(1, TILE / caps.subgroupSize) : 16,
  };
}

/** WGSL that finds the sequence of `row` and how many keys it sees; in a batch of single queries that is one look. */
function seenWgsl(sequences: Dim): string {
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

/** WGSL of eight or four features as they are stored, and of four of them as f32. */
const four = (packed: boolean, unit: string, half: number): string =>
  packed ? `vec4f(unpack2x16float(${unit}.${"xz"[half]}), unpack2x16float(${unit}.${"yw"[half]}))` : unit;

/** Where lies value unit `unit` of key `key`: rotated within a row, so that lanes of neighbouring keys use all banks. */
function stagedRow(headDim: number, { packedValues, width }: DecodeLayout): {
  units: number;
  mask: number;
  parts: number;
} {
  const units = headDim / (packedValues ? 8 : 4);
  return { units, mask: Math.min(8, units & -units) - 1, parts: (packedValues ? 8 : 4) / width };
}

/** WGSL that puts a unit of values into workgroup memory, `width` features an element. */
function stageWgsl(key: string, unit: string, value: string, headDim: number, layout: DecodeLayout): string {
  const { units, mask, parts } = stagedRow(headDim, layout);
  const piece = (i: number) =>
    parts === 1 ? value : `${value}.${(parts === 2 ? ["xy", "zw"] : ["x", "y", "z", "w"])[i]}`;
  return `{
        let at = (${key} * ${units}u + (${unit} ^ (${key} & ${mask}u))) * ${parts}u;
        ${repeat(parts, (i) => `staged[at + ${i}u] = ${piece(i)}; `)}
      }
      `;
}

/** Units of keys that a lane holds at a time. */
const heldUnits = 16;

/** WGSL of a lane's scores: its key against the lines of its split; values are loaded along with it. */
function scoresWgsl(layout: DecodeLayout, headDim: number): string {
  const { packedKeys, linesPerSplit, splits, staged } = layout;
  const units = headDim / (packedKeys ? 8 : 4), padded = linesPerSplit * splits;
  const valueUnits = stagedRow(headDim, layout).units, own = Math.ceil(valueUnits / splits);
  const line = (i: number, at: number, k: string) =>
    `s${i} = fma(queries[${at * padded + i}u + first_line], ${k}, s${i}); `;
  const batch = (from: number) => {
    const count = Math.min(heldUnits, units - from);
    return `
      ${from > 0 ? loads(from, count) : ""}
      ${
      repeat(count, (c) =>
        repeat(packedKeys ? 2 : 1, (half) =>
          `{
        let k = ${four(packedKeys, `k${from + c}`, half)};
        ${repeat(linesPerSplit, (i) => line(i, (from + c) * (packedKeys ? 2 : 1) + half, "k"))}
      }
      `))
    }`;
  };
  const loads = (from: number, count: number) =>
    repeat(count, (c) => `let k${from + c} = keys(key_at + ${from + c}u); `);
  // One value unit after another of the lanes that share a key.
  const unit = (c: number) => splits === 1 ? `${c}u` : `min(${c * splits}u + split, ${valueUnits - 1}u)`;
  const values = staged < TILE ? "" : sequence(Math.ceil(own / heldUnits)).map((b) => {
    const some = sequence(Math.min(heldUnits, own - b * heldUnits)).map((c) => b * heldUnits + c);
    return some.map((c) => `let v${c} = values(value_at + ${unit(c)}); `).join("") + "\n      " +
      some.map((c) => stageWgsl("key", unit(c), `v${c}`, headDim, layout)).join("");
  }).join("");
  return `
      let key_at = slot * ${units}u;
      let value_at = slot * ${valueUnits}u;
      ${loads(0, Math.min(heldUnits, units))}
      ${values}
      ${staged < TILE ? "if (split == 0u) { value_addresses[key] = value_at; }" : ""}
      workgroupBarrier();
      ${repeat(linesPerSplit, (i) => `var s${i} = vec4f(); `)}
      ${sequence(Math.ceil(units / heldUnits)).map((b) => batch(b * heldUnits)).join("")}
      ${
    repeat(linesPerSplit, (i) =>
      `let score${i} = select(${LOWEST}, (s${i}.x + s${i}.y) + (s${i}.z + s${i}.w), key < n);
      `)
  }`;
}

/** WGSL that turns scores into weights in workgroup memory, through the maxima of lines over the tile. */
function weightsWgsl({ linesPerSplit, splits, lanes, maxima }: DecodeLayout, exponent: number, caps: Caps): string {
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
  const { slots, width, packedValues, staged } = layout, { units, mask, parts } = stagedRow(headDim, layout);
  const vector = `vec${width}f`, row = units * parts;
  const value = (at: string) =>
    !packedValues ? `staged[${at}]` : width === 2 ? `unpack2x16float(staged[${at}])` : `unpack_four(staged[${at}])`;
  const slot = (s: number) => `
          let low${s} = weights[(line${s} << 5u) + (j >> 2u)];
          let high${s} = weights[(line${s} << 5u) + (j >> 2u) + 1u];
          ${
    repeat(8, (u) =>
      `{
            let p = ${u < 4 ? "low" : "high"}${s}.${"xyzw"[u & 3]};
            total${s} += p;
            sum${s} = fma(${vector}(p), ${value(`first + ${u * row}u + (at${s} ^ ${(u & mask) * parts}u)`)}, sum${s});
          }
          `)
  }`;
  return `for (var j = ${staged < TILE ? "j0" : "0u"}; j < ${staged < TILE ? "end" : "padded"}; j += 8u) {
          let first = ${staged < TILE ? "(j - j0)" : "j"} * ${row}u;
          ${repeat(slots, slot)}
        }`;
}

/** WGSL of the weighted values of a tile; values that do not fit workgroup memory come in several goes. */
function valuesWgsl(layout: DecodeLayout, headDim: number): string {
  const { slots, width, staged, lanes } = layout, { units } = stagedRow(headDim, layout);
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
        for (var i = lane; i < ${staged * units}u; i += ${lanes}u) {
          let key = i / ${units}u;
          let unit = i - key * ${units}u;
          let value = values(value_addresses[j0 + key] + unit);
          ${stageWgsl("key", "unit", "value", headDim, layout)}
        }
        workgroupBarrier();
        ${addValuesWgsl(layout, headDim)}
        workgroupBarrier();
      }`;
}

function declarationsWgsl(layout: DecodeLayout, headDim: number): string {
  const { linesPerSplit, splits, width, packedValues, staged, maxima } = layout, padded = linesPerSplit * splits;
  const { units, parts } = stagedRow(headDim, layout);
  const element = packedValues ? (width === 2 ? "u32" : "vec2u") : `vec${width}f`;
  return `
var<workgroup> queries: array<vec4f, ${padded * headDim / 4}>;
var<workgroup> weights: array<vec4f, ${padded * TILE / 4}>;
var<workgroup> staged: array<${element}, ${staged * units * parts}>;
var<workgroup> maxima: array<f32, ${padded * maxima}>;
${staged < TILE ? `var<workgroup> value_addresses: array<u32, ${TILE}>;` : ""}
fn unpack_four(pair: vec2u) -> vec4f { return vec4f(unpack2x16float(pair.x), unpack2x16float(pair.y)); }
fn greatest_of(line: u32) -> f32 {
  var greatest = maxima[line * ${maxima}u];
  ${repeat(maxima - 1, (i) => `greatest = max(greatest, maxima[line * ${maxima}u + ${i + 1}u]); `)}
  return greatest;
}`;
}

/** The shader of a call's partial results on a device. */
export function partialsWgsl(call: KernelCall<DecodeAttentionParams>, caps: Caps): KernelSource {
  const layout = decodeLayoutOf(call, caps), { blockSize, scale } = call.params;
  const { rows, sequences, heads, kvHeads, headDim, maxBlocks } = sizesOf(call), group = heads / kvHeads;
  const { lines, shares, sharesPerKvHead, lanes, splits, linesPerSplit, width, slots } = layout;
  const padded = linesPerSplit * splits, ofHead = headDim / width, tileCount = call.outputs[0]!.shape[1] as number;
  const shift = Math.log2(blockSize);
  const slot = (s: number) =>
    `let place${s} = lane + ${s * lanes}u;
  let line${s} = min(place${s} / ${ofHead}u, ${lines - 1}u);
  let feature${s} = place${s} % ${ofHead}u;
  let at${s} = feature${s};
  `;
  const store = (s: number) =>
    `if (place${s} < ${lines * ofHead}u && first_head + line${s} < head_end) {
        let head = (row * ${tileCount}u + tile) * ${heads}u + first_head + line${s};
        store_sums(head * ${ofHead}u + feature${s}, sum${s});
        if (feature${s} == 0u) { store_stats(head, vec2f(greatest_of(line${s}), total${s})); }
      }
      `;
  return {
    inputs: [
      { name: "q", width: 4 },
      layout.packedKeys ? { name: "keys", width: 4, raw: true } : { name: "keys", width: 4 },
      layout.packedValues ? { name: "values", width: 4, raw: true } : { name: "values", width: 4 },
      { name: "query_start" },
      { name: "context_lens" },
      { name: "block_tables" },
    ],
    outputs: [{ name: "sums", width }, { name: "stats", width: 2 }],
    workgroupSize: [lanes, 1, 1],
    subgroups: caps.subgroups,
    declarations: declarationsWgsl(layout, headDim),
    main: `${rowWgsl(dimWgsl(rows))}
  let chunk = workgroup.x / ${shares}u;
  let share = workgroup.x % ${shares}u;
  let stride = groups.x / ${shares}u;
  ${seenWgsl(sequences)}
  if (chunk >= tiles) { return; }
  let kv_head = share / ${sharesPerKvHead}u;
  let first_head = kv_head * ${group}u + (share % ${sharesPerKvHead}u) * ${lines}u;
  let head_end = (kv_head + 1u) * ${group}u;
  let key = lane & ${TILE - 1}u;
  let split = lane >> 7u;
  let first_line = split * ${linesPerSplit}u;
  for (var i = lane; i < ${padded * headDim / 4}u; i += ${lanes}u) {
    let at = i / ${padded}u;
    let head = min(first_head + i % ${padded}u, head_end - 1u);
    queries[i] = q((row * ${heads}u + head) * ${headDim / 4}u + at);
  }
  ${repeat(slots, slot)}
  for (var tile = chunk; tile < tiles; tile += stride) {
    let n = min(${TILE}u, seen - (tile << 7u));
    let position = (tile << 7u) + min(key, n - 1u);
    let block = u32(max(block_tables(sequence * ${maxBlocks}u + (position >> ${shift}u)), 0));
    let slot = ((block << ${shift}u) + (position & ${blockSize - 1}u)) * ${kvHeads}u + kv_head;
    {
      ${scoresWgsl(layout, headDim)}
      ${weightsWgsl(layout, scale * Math.LOG2E, caps)}
      ${valuesWgsl(layout, headDim)}
      ${repeat(slots, store)}
      workgroupBarrier();
    }
  }`,
  };
}

/** Sizes of a merge. */
export function mergeSizesOf(
  { inputs }: KernelCall<MergeParams>,
): { rows: Dim; sequences: Dim; tiles: number; heads: number; headDim: number } {
  const [rows, tiles, heads, headDim] = inputs[0]!.shape as [Dim, number, number, number];
  return { rows, tiles, heads, headDim, sequences: inputs[3]!.shape[0]! };
}

/** Tiles whose sums a lane holds at a time. */
const heldTiles = 8;

/**
 * The shader of a merge: one workgroup a row and head, one lane a feature. The lanes first find the factors of as many
 * tiles as there are lanes, by a scan of the maxima; then each adds tile after tile.
 */
export function mergeWgsl(call: KernelCall<MergeParams>, _caps: Caps): KernelSource {
  const { rows, sequences, tiles: tileCount, heads, headDim } = mergeSizesOf(call);
  const lanes = Math.max(64, 32 * Math.ceil(headDim / 32)), exponent = call.params.scale * Math.LOG2E;
  const load = (u: number, tile: string) =>
    `held${u} = sums(((row * ${tileCount}u + min(${tile}, tiles - 1u)) * ${heads}u + head) * ${headDim}u + feature); `;
  return {
    inputs: [{ name: "sums" }, { name: "stats", width: 2 }, { name: "query_start" }, { name: "context_lens" }],
    outputs: [{ name: "attended" }],
    workgroupSize: [lanes, 1, 1],
    declarations: `
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
  if (lane < ${headDim}u) { store_attended((row * ${heads}u + head) * ${headDim}u + lane, value * weight); }`,
  };
}
