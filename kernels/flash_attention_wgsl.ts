/**
 * The WGSL of flash attention by tiles: scores of a tile, its softmax, weighted values, and the store. Names are those of
 * `flash_reference.ts`; `flash_attention.ts` says what a tile is.
 *
 * @module
 */
import type { KernelCall, KernelSource } from "../tensor/kernel.ts";
import { LOWEST, type PagedAttentionParams, type Sizes, sizesOf } from "./attention_layout.ts";
import { rowsWgsl } from "./attention_wgsl.ts";
import { indices, repeat } from "./unroll.ts";

/** A maximum over no key: above that of hidden keys, so that their weights are 0 all the same. */
const NOTHING = "-1e30";

/** How a workgroup's work is laid out. */
export interface FlashForm {
  /** Queries of a workgroup. */
  readonly queries: number;
  /** Queries of an invocation: a multiple of four. */
  readonly threadQueries: number;
  /** Invocations that share a query, neighbours in a subgroup: each scores four keys of a tile. */
  readonly across: number;
  /** Parts of a workgroup that take turns at the tiles. */
  readonly slices: number;
  /** Whether queries are kept in half precision, as keys are: where heads are wide, workgroup memory is short. */
  readonly narrow: boolean;
}

/** A form with what follows from it. */
interface Flash extends FlashForm {
  readonly sizes: Sizes;
  /** Vectors of four features of a head, and of an invocation. */
  readonly chunks: number;
  readonly ownChunks: number;
  /** Invocations along queries, and of a slice. */
  readonly down: number;
  readonly threads: number;
  /** Keys of a tile. */
  readonly keys: number;
  /** Vectors of each pool that an invocation stages. */
  readonly staged: number;
}

function flashOf(form: FlashForm, sizes: Sizes): Flash {
  const chunks = sizes.headDim / 4, down = form.queries / form.threadQueries, threads = down * form.across;
  const keys = 4 * form.across;
  return {
    ...form,
    sizes,
    chunks,
    ownChunks: chunks / form.across,
    down,
    threads,
    keys,
    staged: keys * chunks / threads,
  };
}

/** Bytes of workgroup memory. */
export function flashBytes(form: FlashForm, headDim: number): number {
  const { chunks, queries, slices, keys, threads } = flashOf(form, { headDim } as Sizes);
  const queryBytes = chunks * (queries + 1) * (form.narrow ? 8 : 16), tileBytes = 8 * chunks * (keys + 1) + 8 * keys;
  return queryBytes + slices * tileBytes + (slices - 1) * threads * 16;
}

/** Workgroup memory, padded so that writes of neighbouring lanes meet different banks. */
function declarations({ threadQueries, down, across, chunks, slices, keys, threads, narrow }: Flash): string {
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

/** Where vector `chunk` of value `key` lies: values follow one another in the memory of the keys, once scores are computed. */
function valueAt({ chunks, keys, across }: Flash, key: string, chunk: string): string {
  const at = `(${key} * ${chunks}u + ${chunk})`;
  return `pool_tile[slice * ${chunks}u + ${at} / ${keys}u].own[${at} % ${keys}u / ${across}u][${at} % ${across}u]`;
}

/** Statements that put what was fetched into workgroup memory. */
function putText(flash: Flash, what: "key" | "value"): string {
  const { staged, threads, chunks } = flash;
  const place = what === "key"
    ? `pool_tile[slice * ${chunks}u + chunk].own[key & 3u][key >> 2u]`
    : valueAt(flash, "key", "chunk");
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

/** The online softmax: maxima meet over the lanes of a query, sums stay in the lanes until the end. */
function softmaxText({ threadQueries, across, ownChunks }: Flash): string {
  const steps = indices(Math.log2(across)).map((bit) => 2 ** bit);
  return repeat(threadQueries, (i) =>
    `var p${i}: vec4f;
    {
      var greatest = max(max(s${i}_0, s${i}_1), max(s${i}_2, s${i}_3));
      ${steps.map((step) => `greatest = max(greatest, subgroupShuffleXor(greatest, ${step}u));`).join(" ")}
      let m = max(m${i}, greatest);
      let before = exp2(m${i} - m);
      m${i} = m;
      p${i} = exp2(vec4f(s${i}_0, s${i}_1, s${i}_2, s${i}_3) - m);
      l${i} = fma(l${i}, before, (p${i}.x + p${i}.y) + (p${i}.z + p${i}.w));
      ${repeat(ownChunks, (c) => `acc${i}_${c} *= before; `)}
    }
    `);
}

/** Weighted values. Weights are in the lanes that scored their keys: shuffles bring them to the lanes of the features. */
function valuesText(flash: Flash): string {
  const { threadQueries, across, ownChunks } = flash, queries = indices(threadQueries);
  const load = (u: number, c: number): string => valueAt(flash, `(four * 4u + ${u}u)`, `(${c * across}u + tx)`);
  const one = (u: number, c: number): string =>
    `{
        let v = vec4f(${load(u, c)});
        ${queries.map((i) => `acc${i}_${c} = fma(v, vec4f(w${i}.${"xyzw"[u]}), acc${i}_${c});`).join(" ")}
      }
      `;
  return `for (var four = 0u; four < ${across}u; four++) {
      ${queries.map((i) => `let w${i} = subgroupShuffle(p${i}, first_lane + four);`).join(" ")}
      ${repeat(4, (u) => repeat(ownChunks, (c) => one(u, c)))}
    }
`;
}

/** Adds the slices' results up in slice 0, in their order, each scaled to the greatest maximum. */
function joinText({ threadQueries, threads, ownChunks, slices }: Flash): string {
  if (slices === 1) return "";
  const all = indices(slices), others = all.slice(1), fours = indices(threadQueries / 4);
  const each = (text: (i: number, part: string, f: number) => string): string =>
    repeat(threadQueries, (i) => text(i, "xyzw"[i & 3]!, i >> 2));
  const four = (name: string, f: number): string => `vec4f(${indices(4).map((j) => `${name}${4 * f + j}`).join(", ")})`;
  const at = (s: string): string => `exchange[(${s} - 1u) * ${threads}u + own]`;
  const round = (value: string, take: (s: number) => string): string => `
  workgroupBarrier();
  if (slice > 0u) { ${at("slice")} = ${value}; }
  workgroupBarrier();
  if (slice == 0u) { ${others.map((s) => `{ let other = ${at(`${s}u`)}; ${take(s)} }`).join(" ")} }`;
  const factors = fours.map((f) =>
    `{
    let greatest = ${others.reduce((text, s) => `max(${text}, factor${s}_${f})`, `factor0_${f}`)};
    ${all.map((s) => `factor${s}_${f} = exp2(factor${s}_${f} - greatest);`).join(" ")}
  }`
  );
  return `
  ${fours.map((f) => all.map((s) => `var factor${s}_${f} = ${four("m", f)};`).join(" ")).join(" ")}
  ${fours.map((f) => round(four("m", f), (s) => `factor${s}_${f} = other;`)).join("")}
  if (slice == 0u) { ${factors.join(" ")}
    ${
    each((i, x, f) => `l${i} *= factor0_${f}.${x}; ${repeat(ownChunks, (c) => `acc${i}_${c} *= factor0_${f}.${x}; `)}`)
  }
  }
  ${
    fours.map((f) =>
      round(
        four("l", f),
        (s) =>
          indices(4).map((j) => {
            const sum = `l${4 * f + j}`, x = "xyzw"[j];
            return `${sum} = fma(other.${x}, factor${s}_${f}.${x}, ${sum});`;
          }).join(" "),
      )
    ).join("")
  }
  ${
    each((i, x, f) =>
      repeat(ownChunks, (c) =>
        round(`acc${i}_${c}`, (s) => `acc${i}_${c} = fma(other, vec4f(factor${s}_${f}.${x}), acc${i}_${c});`))
    )
  }`;
}

/** Divides by the sums and stores: queries that saw no key give zeros. */
function storeText({ threadQueries, down, ownChunks, chunks, across, slices, sizes: { heads } }: Flash): string {
  const steps = indices(Math.log2(across)).map((bit) => 2 ** bit);
  const total = repeat(
    threadQueries,
    (i) => steps.map((step) => `l${i} += subgroupShuffleXor(l${i}, ${step}u); `).join(""),
  );
  const stores = repeat(threadQueries, (i) => `
    if (ty + ${i * down}u < count) {
      let weight = select(0.0, 1.0 / max(l${i}, 1e-37), l${i} > 0.0);
      let at = ((first + ty + ${i * down}u) * ${heads}u + head) * ${chunks}u + tx;
      ${repeat(ownChunks, (c) => `store_attended(at + ${c * across}u, acc${i}_${c} * weight); `)}
    }`);
  return `${total}\n${slices > 1 ? `if (slice == 0u) {${stores}\n}` : stores}`;
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
function tilesText(flash: Flash, blockSize: number): string {
  const { keys, slices } = flash;
  return `if (key_end > 0u) {
    let key0 = slice * ${keys}u;
    let buffer = slice * ${keys}u;
    ${addressText(flash, blockSize)}
    workgroupBarrier();
    ${fetchText(flash)}
  }
  var turn = 0u;
  for (var t0 = 0u; t0 < key_end; t0 += ${keys * slices}u) {
    ${putText(flash, "key")}
    turn ^= 1u;
    let buffer = (turn * ${slices}u + slice) * ${keys}u;
    {
      let key0 = t0 + ${keys * slices}u + slice * ${keys}u;
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

/** The shader of a call in this form. */
export function flashWgsl(call: KernelCall<PagedAttentionParams>, form: FlashForm): KernelSource {
  const sizes = sizesOf(call), { blockSize, scale } = call.params, flash = flashOf(form, sizes);
  const { threads, across, queries, threadQueries, slices, staged, ownChunks } = flash;
  // The last queries see the most keys: they come first, so that no long tile is left alone at the end.
  const tile = "groups.y * groups.z - 1u - workgroup.z * groups.y - workgroup.y";
  return {
    inputs: [
      { name: "q", width: 4 },
      { name: "keys", width: 4 },
      { name: "values", width: 4 },
      { name: "query_start" },
      { name: "context_lens" },
      { name: "block_tables" },
    ],
    outputs: [{ name: "attended", width: 4 }],
    workgroupSize: [threads * slices, 1, 1],
    subgroups: true,
    declarations: declarations(flash),
    main: `${rowsWgsl(queries, sizes, tile)}
  let head = workgroup.x;
  let kv_head = head / ${sizes.heads / sizes.kvHeads}u;
  let slice = lane / ${threads}u;
  let own = lane - slice * ${threads}u;
  let tx = own & ${across - 1}u;
  let ty = own / ${across}u;
  let first_lane = subgroupLane - tx;
  ${queriesText(flash, scale)}
  ${repeat(threadQueries, (i) => `var m${i} = ${NOTHING}; var l${i} = 0.0; `)}
  ${repeat(threadQueries, (i) => repeat(ownChunks, (c) => `var acc${i}_${c} = vec4f(); `))}
  ${repeat(staged, (n) => `var next_key_${n}: vec4<f16>; var next_value_${n}: vec4<f16>; `)}
  ${tilesText(flash, blockSize)}
  ${joinText(flash)}
  ${storeText(flash)}`,
  };
}
