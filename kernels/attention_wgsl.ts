/**
 * The WGSL of paged attention, stage by stage: which rows, scores of a tile, their maxima, weights, weighted values,
 * and the store. Names are those of `flash_reference.ts` and of the formulas in `attention.ts`.
 *
 * @module
 */
import { maxOf } from "../tensor/dim.ts";
import { type Caps, dimWgsl, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import {
  type Layout,
  layoutOf,
  LOWEST,
  type PagedAttentionParams,
  type Sizes,
  sizesOf,
  TILE,
} from "./attention_layout.ts";
import { repeat } from "./unroll.ts";

/**
 * WGSL that finds the sequence and rows of the workgroup number `tile`: `sequence`, `first`, `count` rows, and how many keys the first of
 * them sees. Sequence b has tiles from floor(queryStart[b] / queries) + b on, which leaves room for all its rows and
 * can be searched without a table. Behind the last sequence come the rows that are padding: they see no key. `leave` is the
 * statement where there is no such tile.
 */
export function rowsWgsl(queries: number, { rows, sequences }: Sizes, tile: string, leave = "return"): string {
  const shift = Math.log2(queries);
  const tileOf = (b: string) =>
    queries === 1 ? `u32(query_start(${b}))` : `(u32(query_start(${b})) >> ${shift}u) + ${b}`;
  return `
  let tile = ${tile};
  let sequences = ${dimWgsl(sequences)};
  let rows = ${dimWgsl(rows)};
  var sequence = 0u;
  var beyond = sequences + 1u;
  while (beyond - sequence > 1u) {
    let middle = (sequence + beyond) >> 1u;
    if (${tileOf("middle")} <= tile) { sequence = middle; } else { beyond = middle; }
  }
  let start = u32(query_start(sequence));
  var end = rows;
  var context = 0;
  if (sequence < sequences) {
    end = u32(query_start(sequence + 1u));
    context = context_lens(sequence);
  }
  let first = start + (tile - (${tileOf("sequence")})) * ${queries}u;
  if (first >= end) { ${leave}; }
  let count = min(${queries}u, end - first);
  var seen = -${queries};
  if (sequence < sequences) { seen = context - i32(end - first) + 1; }
  let key_end = u32(max(seen + i32(count) - 1, 0));`;
}

/** WGSL of a score or weight: scores of four lines lie together, so that one load brings four. */
function scoreAt(line: number | string, key: string): string {
  if (typeof line === "string") return `scores[(${line} >> 2u) * ${TILE}u + ${key}][${line} & 3u]`;
  return `scores[${(line >> 2) * TILE}u + ${key}].${"xyzw"[line & 3]}`;
}

/** WGSL that sums q k for the lines of a step; where lanes can hand values on, each loads a chunk of q for all. */
function productsWgsl(from: number, to: number, { chunks, width, keysPerStep, shared }: Layout): string {
  const vector = width === 1 ? "f32" : `vec${width}f`;
  const each = (text: (line: number) => string) => repeat(to - from, (i) => text(from + i));
  const keys = (text: (key: number) => string) => repeat(keysPerStep, text);
  const unroll = shared > 0 ? shared : chunks % 4 === 0 ? 4 : chunks % 2 === 0 ? 2 : 1;
  const load = (line: number) => `let own${line} = q(q${line} + d + subgroupLane); `;
  const query = (line: number, u: number) =>
    shared > 0 ? `subgroupBroadcast(own${line}, ${u}u)` : `q(q${line} + d + ${u}u)`;
  const products = (line: number, u: number) =>
    `{
            let qd = ${query(line, u)};
            ${keys((key) => `s${line}_${key} = fma(qd, k${key}, s${line}_${key}); `)}
          }`;
  return `
      ${each((line) => keys((key) => `var s${line}_${key} = ${vector}(0.0); `))}
      for (var d = 0u; d < ${chunks}u; d += ${unroll}u) {
        ${shared > 0 ? each(load) : ""}
        ${
    repeat(unroll, (u) =>
      `{
          ${keys((key) => `let k${key} = keys(address${key} + d + ${u}u); `)}
          ${each((line) => products(line, u))}
        }
        `)
  }
      }`;
}

/** WGSL of a step of scores: `linesPerStep` lines against `keysPerStep` keys of a lane. */
function scoreStep(from: number, layout: Layout, heads: number): string {
  const { lines, chunks, width, headsPerPart, keysPerStep } = layout, to = Math.min(lines, from + layout.linesPerStep);
  const each = (text: (line: number) => string) => repeat(to - from, (i) => text(from + i));
  const queryOf = (line: number) => Math.floor(line / headsPerPart);
  const sum = (name: string) =>
    width === 4 ? `(${name}.x + ${name}.y) + (${name}.z + ${name}.w)` : width === 2 ? `${name}.x + ${name}.y` : name;
  const row = (line: number) =>
    `let q${line} = ((first + min(${queryOf(line)}u, count - 1u)) * ${heads}u + first_head + ${
      line % headsPerPart
    }u) * ${chunks}u;
      `;
  const score = (line: number, key: number) =>
    `let score${line}_${key} = select(${LOWEST}, ${sum(`s${line}_${key}`)}, i32(key${key}) < seen + ${
      queryOf(line)
    } && ${queryOf(line)}u < count);
      maximum${line} = max(maximum${line}, score${line}_${key});
      `;
  const four = (start: number, key: number) =>
    repeat(4, (i) => (start + i < to ? `score${start + i}_${key}` : LOWEST) + (i < 3 ? ", " : ""));
  const store = (start: number, key: number) =>
    `scores[${(start >> 2) * TILE}u + key${key} - t0] = vec4f(${four(start, key)});
      `;
  return `{
      ${each(row)}${productsWgsl(from, to, layout)}
      ${each((line) => repeat(keysPerStep, (key) => score(line, key)))}
      ${repeat(Math.ceil((to - from) / 4), (i) => repeat(keysPerStep, (key) => store(from + 4 * i, key)))}
    }
    `;
}

/**
 * WGSL of a tile's scores: a lane takes keys `lane`, `lane + lanes` and so on, and keeps each line's maximum over them.
 */
function scoresWgsl(layout: Layout, sizes: Sizes, blockSize: number): string {
  const { lines, lanes, keysPerStep, chunks, linesPerStep } = layout, shift = Math.log2(blockSize);
  const span = lanes * keysPerStep;
  const address = (key: number) => `
      let key${key} = t0 + step + ${key * lanes}u + lane;
      let clamped${key} = min(key${key}, key_end - 1u);
      let block${key} = u32(max(block_tables(sequence * ${sizes.maxBlocks}u + (clamped${key} >> ${shift}u)), 0));
      let address${key} = (((block${key} << ${shift}u) + (clamped${key} & ${
    blockSize - 1
  }u)) * ${sizes.kvHeads}u + kv_head) * ${chunks}u;
      addresses[key${key} - t0] = address${key};`;
  return `
    ${repeat(lines, (line) => `var maximum${line} = ${LOWEST}; `)}
    for (var step = 0u; step < ${TILE}u && t0 + step < key_end; step += ${span}u) {
      ${repeat(keysPerStep, address)}
      ${repeat(Math.ceil(lines / linesPerStep), (i) => scoreStep(i * linesPerStep, layout, sizes.heads))}
    }`;
}

/** WGSL that turns the lanes' maxima of each line into `tile_maximum[line]`. A maximum is exact in any order. */
function maximaWgsl({ lines, lanes }: Layout, caps: Caps): string {
  if (!caps.subgroups) {
    return `
    workgroupBarrier();
    for (var line = lane; line < ${lines}u; line += ${lanes}u) {
      var greatest = ${LOWEST};
      for (var j = 0u; j < n; j++) { greatest = max(greatest, ${scoreAt("line", "j")}); }
      tile_maximum[line] = greatest;
    }
    workgroupBarrier();`;
  }
  const subgroups = Math.max(1, lanes / caps.subgroupSize);
  return `
    ${
    repeat(lines, (line) =>
      `{
      let greatest = subgroupMax(maximum${line});
      if (subgroupLane == 0u) { subgroup_maximum[${line * subgroups}u + subgroup] = greatest; }
    }
    `)
  }
    workgroupBarrier();
    for (var line = lane; line < ${lines}u; line += ${lanes}u) {
      var greatest = subgroup_maximum[line * ${subgroups}u];
      ${repeat(subgroups - 1, (i) => `greatest = max(greatest, subgroup_maximum[line * ${subgroups}u + ${i + 1}u]);`)}
      tile_maximum[line] = greatest;
    }
    workgroupBarrier();`;
}

/** WGSL that turns scores into exp(score - maximum). Every lane takes the keys that it scored. */
function weightsWgsl({ lines, lanes }: Layout, exponent: number): string {
  const fours = Math.ceil(lines / 4);
  const greatest = (four: number) =>
    repeat(4, (i) => `tile_maximum[${Math.min(4 * four + i, lines - 1)}]${i < 3 ? ", " : ""}`);
  return `
    ${repeat(fours, (four) => `let greatest${four} = vec4f(${greatest(four)}); `)}
    for (var j = lane; j < padded; j += ${lanes}u) {
      ${
    repeat(fours, (four) =>
      `{
        let score = scores[${four * TILE}u + j];
        let weight = exp2(min(score - greatest${four}, vec4f(0.0)) * ${exponent});
        scores[${four * TILE}u + j] = select(vec4f(0.0), weight, score > vec4f(${LOWEST}));
      }
      `)
  }
    }`;
}

/** Each of a lane's sums: line `i` of its group, chunk `slot`. */
function eachSum({ linesPerLane, slots }: Layout, text: (i: number, slot: number) => string): string {
  return repeat(linesPerLane, (i) => repeat(slots, (slot) => text(i, slot)));
}

/** WGSL that adds a tile's values to the lane's sums and merges them into what came before. */
function valuesWgsl(layout: Layout, exponent: number): string {
  const { linesPerLane, slots, width, groups, shared } = layout, vector = width === 1 ? "f32" : `vec${width}f`;
  const each = (text: (i: number) => string) => repeat(linesPerLane, text);
  const fours = groups === 1 ? Math.ceil(linesPerLane / 4) : 0, step = shared > 0 ? shared : 4;
  const own = `let own_address = addresses[j + subgroupLane];
      ${repeat(fours, (four) => `let own${four} = scores[${four * TILE}u + j + subgroupLane]; `)}`;
  const weights = (u: number) =>
    repeat(fours, (four) => {
      return `let w${four} = ${
        shared > 0 ? `subgroupBroadcast(own${four}, ${u}u)` : `scores[${four * TILE}u + j + ${u}u]`
      }; `;
    });
  const weight = (i: number, u: number) => fours > 0 ? `w${i >> 2}.${"xyzw"[i & 3]}` : scoreAt(`line${i}`, `j + ${u}u`);
  const take = (i: number, u: number) =>
    `{
          let p = ${weight(i, u)};
          tile_sum${i} += p;
          ${repeat(slots, (slot) => `tile_value${i}_${slot} = fma(${vector}(p), v${slot}, tile_value${i}_${slot}); `)}
        }`;
  const key = (u: number) =>
    `{
        let address = ${shared > 0 ? `subgroupBroadcast(own_address, ${u}u)` : `addresses[j + ${u}u]`};
        ${repeat(slots, (slot) => `let v${slot} = values(address + chunk${slot}); `)}
        ${weights(u)}
        ${each((i) => take(i, u))}
      }
      `;
  const merge = (i: number) =>
    `{
      let tile_greatest = tile_maximum[line${i}];
      let next = max(greatest_so_far${i}, tile_greatest);
      let before = exp2((greatest_so_far${i} - next) * ${exponent});
      let now = exp2((tile_greatest - next) * ${exponent});
      greatest_so_far${i} = next;
      sum${i} = fma(sum${i}, before, tile_sum${i} * now);
      ${
      repeat(
        slots,
        (slot) => `value${i}_${slot} = fma(value${i}_${slot}, ${vector}(before), tile_value${i}_${slot} * now); `,
      )
    }
    }
    `;
  return `
    ${each((i) => `var tile_sum${i} = 0.0; `)}
    ${eachSum(layout, (i, slot) => `var tile_value${i}_${slot} = ${vector}(0.0); `)}
    for (var j = 0u; j < padded; j += ${step}u) {
      ${shared > 0 ? own : ""}
      ${repeat(step, key)}
    }
    ${each(merge)}`;
}

/** WGSL that divides by the sums and stores: rows that saw no key give zeros. */
function storeWgsl(layout: Layout, { heads }: Sizes): string {
  const { chunks, lines, groups, lanes, headsPerPart, linesPerLane, slots } = layout;
  const exact = groups * linesPerLane === lines, full = slots * lanes === chunks * groups;
  return eachSum(layout, (i, slot) => `
  {
    let query = line${i} / ${headsPerPart}u;
    if (${exact ? "" : `group * ${linesPerLane}u + ${i}u < ${lines}u && `}${
    full ? "" : `lane + ${slot * lanes}u < ${chunks * groups}u && `
  }query < count) {
      let head = first_head + line${i} - query * ${headsPerPart}u;
      let weight = select(0.0, 1.0 / max(sum${i}, 1e-37), sum${i} > 0.0);
      store_attended(((first + query) * ${heads}u + head) * ${chunks}u + chunk${slot}, value${i}_${slot} * weight);
    }
  }`);
}

/** The shader of a call on a device. */
export function attentionWgsl(call: KernelCall<PagedAttentionParams>, caps: Caps): KernelSource {
  const layout = layoutOf(call, caps), sizes = sizesOf(call), { blockSize, scale } = call.params;
  const { lines, lanes, width, chunks, groups, linesPerLane, slots, parts, headsPerPart } = layout;
  const exponent = scale * Math.LOG2E, vector = width === 1 ? "f32" : `vec${width}f`;
  const subgroups = caps.subgroups ? Math.max(1, lanes / caps.subgroupSize) : 0;
  const line = (i: number) =>
    groups === 1 ? `let line${i} = ${i}u; ` : `let line${i} = min(group * ${linesPerLane}u + ${i}u, ${lines - 1}u); `;
  const chunk = (slot: number) =>
    `let chunk${slot} = min(lane + ${slot * lanes}u${groups === 1 ? "" : ` - group * ${chunks}u`}, ${chunks - 1}u); `;
  const queryBytes = maxOf(sizes.rows) * sizes.heads * sizes.headDim * 4;
  const uniform = caps.cpu && width === 4 && call.inputs[0]!.dtype === "f32" && queryBytes <= caps.maxUniformBinding;
  return {
    inputs: [
      { name: "q", width, uniform },
      { name: "keys", width },
      { name: "values", width },
      { name: "query_start" },
      { name: "context_lens" },
      { name: "block_tables" },
    ],
    outputs: [{ name: "attended", width }],
    workgroupSize: [lanes, 1, 1],
    subgroups: caps.subgroups,
    declarations: `
var<workgroup> scores: array<vec4f, ${Math.ceil(lines / 4) * TILE}>;
var<workgroup> addresses: array<u32, ${TILE}>;
var<workgroup> tile_maximum: array<f32, ${lines}>;
${subgroups > 0 ? `var<workgroup> subgroup_maximum: array<f32, ${lines * subgroups}>;` : ""}`,
    main: `${rowsWgsl(layout.queries, sizes, "workgroup.z * groups.x + workgroup.x")}
  let kv_head = workgroup.y / ${parts}u;
  let first_head = workgroup.y * ${headsPerPart}u;
  let group = ${groups === 1 ? "0u" : `min(lane / ${chunks}u, ${groups - 1}u)`};
  ${repeat(linesPerLane, line)}
  ${repeat(slots, chunk)}
  ${repeat(linesPerLane, (i) => `var greatest_so_far${i} = ${LOWEST}; var sum${i} = 0.0; `)}
  ${eachSum(layout, (i, slot) => `var value${i}_${slot} = ${vector}(0.0); `)}
  for (var t0 = 0u; t0 < key_end; t0 += ${TILE}u) {
    let n = min(${TILE}u, key_end - t0);
    let padded = (n + 7u) & ~7u;
    ${scoresWgsl(layout, sizes, blockSize)}
    ${maximaWgsl(layout, caps)}
    ${weightsWgsl(layout, exponent)}
    workgroupBarrier();
    ${valuesWgsl(layout, exponent)}
    workgroupBarrier();
  }
  ${storeWgsl(layout, sizes)}`,
  };
}
