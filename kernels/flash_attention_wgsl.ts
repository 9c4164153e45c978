/**
 * The WGSL of flash attention by tiles: scores of a tile, its softmax, and weighted values. Names are those of
 * `flash_reference.ts`; `flash_attention.ts` says what a tile is.
 *
 * @module
 */
import { type Caps, dimWgsl, type KernelCall, type KernelSource, type Port } from "../tensor/kernel.ts";
import { attendedPorts, LOWEST, type PagedAttentionParams, sizesOf } from "./attention_layout.ts";
import { rowsWgsl } from "./attention_wgsl.ts";
import { joinText, storeText } from "./flash_finish_wgsl.ts";
import { type Flash, type FlashForm, flashOf, type FlashParams } from "./flash_form.ts";
import { blockFunctions } from "./quantise_wgsl.ts";
import { mergePartsWgsl, mostPartsOf, partsWgsl, singlePorts } from "./single_parts.ts";
import { indices, repeat } from "./unroll.ts";

/** A maximum over no key: above that of hidden keys, so that their weights are 0 all the same. */
const NOTHING = "-1e30";

/** Weights are smaller by this power of two: a tile's sum of values up to 8,192 stays below half precision's greatest number. */
const HEADROOM = "2.0";

/** A part of a context, where it is cut (`flash_parts.ts`). */
export interface FlashPart {
  /** WGSL of the part's first key, which is less than `key_end`. */
  readonly begin: string;
  /** Parts that take turns. */
  readonly most: number;
}

/** Workgroup memory, padded so that writes of neighbouring lanes meet different banks. */
export function declarations({ threadQueries, down, across, chunks, slices, keys, threads, narrow }: Flash): string {
  const query = narrow ? "vec4<f16>" : "vec4f";
  return `
struct Queries { own: array<array<${query}, ${down}>, ${threadQueries}>, padding: ${query} }
struct Keys { own: array<array<vec4<f16>, ${across}>, 4>, padding: vec4<f16> }
var<workgroup> query_tile: array<Queries, ${chunks}>;
var<workgroup> pool_tile: array<Keys, ${slices * chunks}>;
var<workgroup> addresses: array<u32, ${2 * slices * keys}>;
${slices > 1 ? `var<workgroup> exchange: array<vec4f, ${(slices - 1) * threads}>;` : ""}
`;
}

/** Statements that find where the keys of the tile at `key0` lie. */
function addressText({ keys, threads, sizes: { maxBlocks, kvHeads }, chunks }: Flash, blockSize: number): string {
  const shift = Math.log2(blockSize);
  const one = `let key = min(key0 + i, key_end - 1u);
      let block = u32(max(block_tables(sequence * ${maxBlocks}u + (key >> ${shift}u)), 0));
      addresses[buffer + i] = (((block << ${shift}u) + (key & ${
    blockSize - 1
  }u)) * ${kvHeads}u + kv_head) * ${chunks}u;`;
  return repeat(Math.ceil(keys / threads), (turn) => {
    const body = `let i = own + ${turn * threads}u; ${one}`;
    return (turn + 1) * threads > keys ? `if (own + ${turn * threads}u < ${keys}u) { ${body} }\n` : `{ ${body} }\n`;
  });
}

/** Statements that load the next tile's keys and values into registers, on their way while values are added up. */
function fetchText({ staged, threads, chunks }: Flash): string {
  return repeat(staged, (n) =>
    `{
      let i = own + ${n * threads}u;
      let address = addresses[buffer + i / ${chunks}u] + i % ${chunks}u;
      next_key_${n} = vec4<f16>(keys(address));
      next_value_${n} = vec4<f16>(values(address));
    }
    `);
}

/** Where a value's vector lies: values follow one another in the memory of the keys, once scores are computed. */
function putValueAt({ chunks, keys, across }: Flash): string {
  const at = `(key * ${chunks}u + chunk)`;
  return `pool_tile[slice * ${chunks}u + ${at} / ${keys}u].own[${at} % ${keys}u / ${across}u][${at} % ${across}u]`;
}

/** The same of value `four * 4 + u` and the invocation's vector `c`: rows hold four times `across` vectors. */
function valueAt({ chunks, ownChunks }: Flash, u: number, c: number): string {
  const at = u * ownChunks + c;
  return `pool_tile[slice * ${chunks}u + four * ${ownChunks}u + ${at >> 2}u].own[${at & 3}][tx]`;
}

/** Statements that put what was fetched into workgroup memory. */
function putText(flash: Flash, what: "key" | "value"): string {
  const { staged, threads, chunks } = flash;
  const place = what === "key" ? `pool_tile[slice * ${chunks}u + chunk].own[key & 3u][key >> 2u]` : putValueAt(flash);
  return repeat(staged, (n) =>
    `{
      let i = own + ${n * threads}u;
      let key = i / ${chunks}u;
      let chunk = i % ${chunks}u;
      ${place} = next_${what}_${n};
    }
    `);
}

/** Scores of an invocation's queries and four keys, to base 2; keys that a query does not see get the lowest. */
function scoresText({ threadQueries, chunks, keys, down, narrow }: Flash): string {
  const queries = indices(threadQueries), four = indices(4);
  const cells = (text: (i: number, j: number) => string) =>
    queries.map((i) => four.map((j) => text(i, j)).join(" ")).join("\n");
  const query = (text: string) => narrow ? `vec4f(${text})` : text;
  const body = (u: number) =>
    `{
        ${queries.map((i) => `let q${i} = ${query(`query_tile[chunk + ${u}u].own[${i}][ty]`)};`).join(" ")}
        ${
      four.map((j) =>
        `{
          let k = vec4f(pool_tile[slice * ${chunks}u + chunk + ${u}u].own[${j}][tx]);
          ${
          queries.map((i) =>
            `s${i}_${j} = fma(q${i}.x, k.x, fma(q${i}.y, k.y, fma(q${i}.z, k.z, fma(q${i}.w, k.w, s${i}_${j}))));`
          ).join(" ")
        }
        }`
      ).join("\n")
    }
      }
      `;
  return `
    ${cells((i, j) => `var s${i}_${j} = 0.0;`)}
    for (var chunk = 0u; chunk < ${chunks}u; chunk += 2u) {
      ${repeat(2, body)}
    }
    if (i32(key0 + ${keys}u) > seen) {
      ${
    cells((i, j) =>
      `s${i}_${j} = select(${LOWEST}, s${i}_${j}, i32(key0 + 4u * tx + ${j}u) < seen + i32(ty) + ${i * down});`
    )
  }
    }
`;
}

/**
 * The online softmax: maxima meet over the lanes of a query, sums stay in the lanes until the end. Weights are in half precision,
 * so they are taken against the tile's own maximum, and what the tile gives is scaled to that of all keys seen.
 */
function softmaxText({ threadQueries, across, ownChunks }: Flash): string {
  const steps = indices(Math.log2(across)).map((bit) => 2 ** bit);
  return repeat(threadQueries, (i) =>
    `var weights${i}: vec2u;
    var factor${i}: f32;
    {
      var greatest = max(max(s${i}_0, s${i}_1), max(s${i}_2, s${i}_3));
      ${steps.map((step) => `greatest = max(greatest, subgroupShuffleXor(greatest, ${step}u));`).join(" ")}
      let m = max(m${i}, greatest);
      let before = exp2(m${i} - m);
      factor${i} = exp2(greatest - m);
      m${i} = m;
      let p = exp2(vec4f(s${i}_0, s${i}_1, s${i}_2, s${i}_3) - (greatest + ${HEADROOM}));
      weights${i} = vec2u(pack2x16float(p.xy), pack2x16float(p.zw));
      l${i} = fma(l${i}, before, ((p.x + p.y) + (p.z + p.w)) * factor${i});
      ${repeat(ownChunks, (c) => `acc${i}_${c} *= before; `)}
    }
    `);
}

/**
 * Weighted values. Weights are in the lanes that scored their keys: shuffles bring them to the lanes of the features, two in a word.
 * A tile is summed in half precision, at twice the rate, and added to the sums in f32.
 */
function valuesText(flash: Flash): string {
  const { threadQueries, across, ownChunks } = flash, queries = indices(threadQueries), own = indices(ownChunks);
  const cells = (text: (i: number, c: number) => string): string =>
    queries.map((i) => own.map((c) => text(i, c)).join(" ")).join("\n");
  const one = (u: number, c: number): string =>
    `{
        let v = ${valueAt(flash, u, c)};
        ${queries.map((i) => `tile${i}_${c} = fma(v, vec4<f16>(w${i}.${"xyzw"[u]}), tile${i}_${c});`).join(" ")}
      }
      `;
  const weights = (i: number): string =>
    `let words${i} = subgroupShuffle(weights${i}, first_lane + four);
      let w${i} = vec4<f16>(vec4f(unpack2x16float(words${i}.x), unpack2x16float(words${i}.y)));`;
  return `${cells((i, c) => `var tile${i}_${c} = vec4<f16>();`)}
    for (var four = 0u; four < ${across}u; four++) {
      ${queries.map(weights).join(" ")}
      ${repeat(4, (u) => repeat(ownChunks, (c) => one(u, c)))}
    }
    ${cells((i, c) => `acc${i}_${c} = fma(vec4f(tile${i}_${c}), vec4f(factor${i}), acc${i}_${c});`)}
`;
}

/** Statements that put the queries into workgroup memory, scaled to base 2. */
function queriesText(flash: Flash, scale: number): string {
  const { queries, chunks, down, slices, threads, narrow, sizes: { heads } } = flash, all = threads * slices;
  const value = `q(((first + min(query, count - 1u)) * ${heads}u + head) * ${chunks}u + i % ${chunks}u) * ${
    scale * Math.LOG2E
  }`;
  return repeat(Math.ceil(queries * chunks / all), (n) => {
    const inside = (n + 1) * all > queries * chunks ? `if (lane + ${n * all}u < ${queries * chunks}u) ` : "";
    return `${inside}{
    let i = lane + ${n * all}u;
    let query = i / ${chunks}u;
    query_tile[i % ${chunks}u].own[query / ${down}u][query % ${down}u] = ${narrow ? `vec4<f16>(${value})` : value};
  }
  `;
  });
}

/** The loop over tiles. What a tile needs of memory is fetched a tile ahead, where it lies two. */
function tilesText(flash: Flash, blockSize: number, part?: FlashPart): string {
  const { keys, slices } = flash, turn = keys * slices, step = turn * (part?.most ?? 1), begin = part?.begin ?? "0u";
  return `if (key_end > ${begin}) {
    let key0 = ${part ? `${begin} + ` : ""}slice * ${keys}u;
    let buffer = slice * ${keys}u;
    ${addressText(flash, blockSize)}
    workgroupBarrier();
    ${fetchText(flash)}
  }
  var turn = 0u;
  for (var t0 = ${begin}; t0 < key_end; t0 += ${step}u) {
    ${putText(flash, "key")}
    turn ^= 1u;
    let buffer = (turn * ${slices}u + slice) * ${keys}u;
    {
      let key0 = t0 + ${step}u + slice * ${keys}u;
      ${addressText(flash, blockSize)}
    }
    workgroupBarrier();
    let key0 = t0 + slice * ${keys}u;
    ${scoresText(flash)}
    ${softmaxText(flash)}
    workgroupBarrier();
    ${putText(flash, "value")}
    workgroupBarrier();
    ${fetchText(flash)}
    ${valuesText(flash)}
    workgroupBarrier();
  }`;
}

/** What a workgroup does with a tile, of which the rows are known, or with a part of its context, but for storing what it has. */
export function tileText(flash: Flash, { blockSize, scale }: PagedAttentionParams, part?: FlashPart): string {
  const { threadQueries, ownChunks, staged } = flash;
  return `${queriesText(flash, scale)}
  ${repeat(threadQueries, (i) => `var m${i} = ${NOTHING}; var l${i} = 0.0; `)}
  ${repeat(threadQueries, (i) => repeat(ownChunks, (c) => `var acc${i}_${c} = vec4f(); `))}
  ${repeat(staged, (n) => `var next_key_${n}: vec4<f16>; var next_value_${n}: vec4<f16>; `)}
  ${tilesText(flash, blockSize, part)}
  ${joinText(flash, part !== undefined)}`;
}

/** WGSL of an invocation's place: the query head of the workgroup, its slice, and its queries and keys there. */
export function placeText({ sizes: { heads, kvHeads }, threads, across }: Flash): string {
  return `let head = workgroup.x;
  let kv_head = head / ${heads / kvHeads}u;
  let slice = lane / ${threads}u;
  let own = lane - slice * ${threads}u;
  let tx = own & ${across - 1}u;
  let ty = own / ${across}u;
  let first_lane = subgroupLane - tx;`;
}

/** Inputs of attention. */
export const attentionPorts: readonly Port[] = [
  { name: "q", width: 4 },
  { name: "keys", width: 4 },
  { name: "values", width: 4 },
  { name: "query_start" },
  { name: "context_lens" },
  { name: "block_tables" },
];

/**
 * WGSL that takes the tiles of sequences with more than one query, in turns. Passing over the others has to cost little: a
 * workgroup for each would be 20 us for 200 sequences of 14 heads, since starting one zeroes its memory. Sequences of
 * one query mostly come first: then sequence b's tile is floor(b / queries) + b, which two loads confirm, and nothing is searched.
 */
function othersText({ queries, sizes }: Flash, text: string, params: FlashParams, caps: Caps): string {
  const { blockSize, quantise = false } = params, shift = Math.log2(queries), most = mostPartsOf(sizes, blockSize);
  const whole = most > 1 ? `&& ${partsWgsl("u32(max(context_lens(likely), 0))", most)} == 1u` : "";
  return `let all_tiles = (${dimWgsl(sizes.rows)} >> ${shift}u) + ${dimWgsl(sizes.sequences)} + 1u;
  for (var place = workgroup.z * groups.y + workgroup.y; place < all_tiles; place += groups.y * groups.z) {
    let own_tile = all_tiles - 1u - place;
    let likely = min(own_tile - own_tile / ${queries + 1}u, max(${dimWgsl(sizes.sequences)}, 1u) - 1u);
    let likely_row = u32(query_start(likely));
    if (u32(query_start(likely + 1u)) == likely_row + 1u && (likely_row >> ${shift}u) + likely == own_tile ${whole}) {
      continue;
    }
    ${rowsWgsl(queries, sizes, "own_tile", "continue")}
    if (sequence < sequences && end - start == 1u) {
      ${most > 1 ? mergePartsWgsl(sizes, params, quantise, caps) : ""}
      continue;
    }
    ${text}
    workgroupBarrier(); // before the next tile takes the memory
  }`;
}

/** The shader of a call in this form. */
export function flashWgsl(call: KernelCall<FlashParams>, form: FlashForm, caps: Caps): KernelSource {
  const sizes = sizesOf(call), { quantise = false, singlesGiven = false } = call.params, flash = flashOf(form, sizes);
  const { threads, queries, slices } = flash;
  const text = `${tileText(flash, call.params)}
  ${storeText(flash, quantise, caps)}`;
  // The last queries see the most keys: they come first, so that no long tile is left alone at the end.
  const tile = "groups.y * groups.z - 1u - workgroup.z * groups.y - workgroup.y";
  const singles = singlesGiven ? singlePorts(quantise, mostPartsOf(sizes, call.params.blockSize)) : [];
  return {
    inputs: [...attentionPorts, ...singles],
    outputs: attendedPorts(quantise),
    workgroupSize: [threads * slices, 1, 1],
    subgroups: true,
    declarations: declarations(flash) + (quantise ? blockFunctions(threads * slices, caps) : ""),
    main: `${placeText(flash)}
  ${singlesGiven ? othersText(flash, text, call.params, caps) : `${rowsWgsl(queries, sizes, tile)} ${text}`}`,
  };
}
