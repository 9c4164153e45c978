/**
 * The WGSL of `batch_attention.ts` and `mixed_attention.ts`: one key head of one sequence in one workgroup.
 *
 * Loops over a head's features and a tile's values stay loops: their bounds are no constants, lest a compiler unrolls them. Unrolled the
 * kernel is faster alone, but in a step it finds its instructions evicted from the processors' caches by the kernels between: a
 * step of 64 sequences takes 2.34 ms so and 2.53 ms unrolled, on an H100.
 *
 * @module
 */
import type { Caps, KernelSource } from "../tensor/kernel.ts";
import { attendedPorts, LOWEST } from "./attention_layout.ts";
import type { Batch } from "./batch_attention_form.ts";
import { blockFunctions, octet, quantiseOctet } from "./quantise_wgsl.ts";
import { indices, repeat } from "./unroll.ts";

/** What a kernel has of its own. */
export interface BatchText {
  /**
   * Declares `kv_head`, `row`, its `sequence`, and the end of the keys that are `seen`, the same for a workgroup; leaves where there is
   * no such row.
   */
  readonly row: string;
  /** The first of the keys that are seen. */
  readonly begin: string;
  /** Puts the key head's queries into `queries`: feature after feature, four in a vector, the heads of each side by side. */
  readonly queries: string;
  /** Whether `queries` also declares `fresh`, and where that holds the last key and value are `new_key` and `new_value`. */
  readonly ownToken: boolean;
  /** Factor on scores. */
  readonly scale: number;
  /** Whether results are stored in codes and scales. */
  readonly quantise: boolean;
  /** Takes the values in `queries` elsewhere, and leaves, where they are not the row's result. */
  readonly divert: string;
}

function declarations({ lines, headDim, weights, tile, subgroups, units }: Batch, ownToken: boolean): string {
  return `
var<workgroup> queries: array<vec4f, ${lines * headDim / 4}>;
var<workgroup> weights: array<vec4f, ${weights}>;
var<workgroup> addresses: array<u32, ${tile}>;
var<workgroup> across: array<vec4f, ${lines * Math.ceil(subgroups / 4)}>;
${ownToken ? `var<workgroup> new_key: array<vec4u, ${units}>; var<workgroup> new_value: array<vec4u, ${units}>;` : ""}
fn unpack_four(pair: vec2u) -> vec4f { return vec4f(unpack2x16float(pair.x), unpack2x16float(pair.y)); }
`;
}

/** WGSL that brings a value of each subgroup together: `name_0` and on become the whole workgroup's, by `join`. */
function overSubgroups(
  { lines, subgroups }: Batch,
  name: string,
  reduce: string,
  join: (a: string, b: string) => string,
): string {
  const vectors = Math.ceil(subgroups / 4);
  const part = (h: number, g: number): string => `across[${h * vectors + (g >> 2)}].${"xyzw"[g & 3]}`;
  return `${repeat(lines, (h) => `${name}_${h} = ${reduce}(${name}_${h});\n`)}
    if (subgroupLane == 0u) {
      ${repeat(lines, (h) => `across[${h * vectors}u + (subgroup >> 2u)][subgroup & 3u] = ${name}_${h};\n`)}
    }
    workgroupBarrier();
    ${repeat(lines, (h) => `${name}_${h} = ${indices(subgroups).map((g) => part(h, g)).reduce(join)};\n`)}`;
}

/** WGSL of where key `k` of a lane's lies in the tile from `first` on: the block's number is loaded by itself, ahead. */
function blockText({ lanes, keysPerLane, blockSize, maxBlocks }: Batch, first: string): string {
  return repeat(
    keysPerLane,
    (k) =>
      `block_${k} = block_tables(sequence * ${maxBlocks}u + min((${first} + lane + ${k * lanes}u) >> ${
        Math.log2(blockSize)
      }u, ${maxBlocks - 1}u));\n`,
  );
}

/** WGSL that loads the first units of a lane's keys. */
function firstKeysText({ lanes, keysPerLane, unitsAhead, units, kvHeads, blockSize }: Batch, first: string): string {
  return repeat(
    keysPerLane,
    (k) =>
      `at_${k} = (((u32(max(block_${k}, 0)) << ${Math.log2(blockSize)}u) + ((${first} + lane + ${k * lanes}u) & ${
        blockSize - 1
      }u)) * ${kvHeads}u + kv_head) * ${units}u;\n` + keyLoads(k, "0u", unitsAhead),
  );
}

/** Loads units of key `k` from `unit` on. */
function keyLoads(k: number, unit: string, count: number): string {
  return indices(count).map((c) => `next_${k}_${c} = keys(at_${k} + ${unit} + ${c}u);`).join(" ") + "\n";
}

/** WGSL of the scores of a lane's keys, `score_<key>_<head>`: while some units are multiplied, the next are on their way. */
function scoresText(batch: Batch, ownToken: boolean): string {
  const { keysPerLane, lines, lanes, unitsAhead } = batch, keys = indices(keysPerLane), heads = indices(lines);
  const ahead = indices(unitsAhead);
  const dot = (k: number, h: number, at: string, q: string): string =>
    [..."xyzw"].map((d) => `score_${k}_${h} = fma(${at}_${k}.${d}, ${q}.${d}, score_${k}_${h});`).join(" ");
  const multiply = (c: number): string =>
    `{
        ${
      keys.map((k) => `let low_${k} = unpack_four(key_${k}_${c}.xy); let high_${k} = unpack_four(key_${k}_${c}.zw);`)
        .join("\n")
    }
        ${
      heads.map((h) =>
        `{ let q0 = queries[begin + ${2 * c * lines + h}u]; let q1 = queries[begin + ${(2 * c + 1) * lines + h}u];
        ${keys.map((k) => `${dot(k, h, "low", "q0")} ${dot(k, h, "high", "q1")}`).join("\n")} }`
      ).join("\n")
    }
      }
`;
  const own = (k: number): string =>
    `if (fresh && first + lane + ${k * lanes}u == seen - 1u) { ${
      ahead.map((c) => `key_${k}_${c} = new_key[unit + ${c}u];`).join(" ")
    } }\n`;
  const hidden = (k: number, h: number): string =>
    `score_${k}_${h} = select(${LOWEST}, score_${k}_${h}, first + lane + ${k * lanes}u < seen);`;
  return `${keys.map((k) => heads.map((h) => `var score_${k}_${h} = 0.0;`).join(" ")).join("\n")}
    for (var unit = 0u; unit < all_units; unit += ${unitsAhead}u) {
      ${keys.map((k) => ahead.map((c) => `var key_${k}_${c} = next_${k}_${c};`).join(" ")).join("\n")}
      if (unit + ${unitsAhead}u < all_units) {
        ${keys.map((k) => keyLoads(k, `unit + ${unitsAhead}u`, unitsAhead)).join("")}
      }
      ${ownToken ? keys.map(own).join("") : ""}
      let begin = unit * ${2 * lines}u;
      ${ahead.map(multiply).join("")}
    }
    ${keys.map((k) => heads.map((h) => hidden(k, h)).join(" ")).join("\n")}`;
}

/** WGSL that turns scores into weights in workgroup memory, and scales what was summed up before. */
function weightsText(batch: Batch, exponent: number): string {
  const { keysPerLane, lanes, lines, quads, tile } = batch, heads = indices(lines), keys = indices(keysPerLane);
  const weight = (k: number, h: number): string =>
    h < lines ? `exp2((score_${k}_${h} - greatest_${h}) * ${exponent})` : "0.0";
  const greatest = (h: number): string => keys.map((k) => `score_${k}_${h}`).reduce((a, b) => `max(${a}, ${b})`);
  return `
    ${heads.map((h) => `var most_${h} = ${greatest(h)};`).join(" ")}
    ${overSubgroups(batch, "most", "subgroupMax", (a, b) => `max(${a}, ${b})`)}
    ${
    heads.map((h) =>
      `{
      let next = max(greatest_${h}, most_${h});
      let before = exp2((greatest_${h} - next) * ${exponent});
      greatest_${h} = next; total_${h} *= before; low_sum_${h} *= before; high_sum_${h} *= before;
    }`
    ).join("\n")
  }
    ${
    keys.map((k) =>
      indices(quads).map((q) =>
        `{
      let four = vec4f(${indices(4).map((i) => weight(k, 4 * q + i)).join(", ")});
      weights[${q * tile + k * lanes}u + lane] = four;
      ${indices(4).filter((i) => 4 * q + i < lines).map((i) => `total_${4 * q + i} += four.${"xyzw"[i]};`).join(" ")}
    }`
      ).join("\n")
    ).join("\n")
  }
    workgroupBarrier();`;
}

/** WGSL that loads a group of a lane's values: those of keys that the row does not see are of its last one, and weigh nothing. */
function valueLoads({ slices, valuesAhead }: Batch, group: string): string {
  return repeat(
    valuesAhead,
    (u) =>
      `next_j_${u} = min(slice + (${group} * ${valuesAhead}u + ${u}u) * ${slices}u, limit - 1u);
      next_value_${u} = values(addresses[next_j_${u}] + feature);
`,
  );
}

/** WGSL that adds up a tile's values: a lane takes eight features of every `slices`-th key. */
function valuesText(batch: Batch, ownToken: boolean): string {
  const { lines, quads, tile, slices, valuesAhead } = batch, heads = indices(lines), each = valuesAhead * slices;
  const take = (u: number): string =>
    `var value_${u} = next_value_${u};\n` +
    (ownToken ? `if (fresh && first + next_j_${u} == seen - 1u) { value_${u} = new_value[feature]; }\n` : "");
  const add = (u: number): string =>
    `{
        let low = unpack_four(value_${u}.xy);
        let high = unpack_four(value_${u}.zw);
        ${
      indices(quads).map((q) => `let weight_${q} = weights[${q * tile + u * slices}u + group * ${each}u + slice];`)
        .join(" ")
    }
        ${
      heads.map((h) => {
        const weight = `vec4f(weight_${h >> 2}.${"xyzw"[h & 3]})`;
        return `low_sum_${h} = fma(${weight}, low, low_sum_${h}); high_sum_${h} = fma(${weight}, high, high_sum_${h});`;
      }).join("\n")
    }
      }
`;
  return `for (var group = 0u; group < all_groups; group++) {
      ${repeat(valuesAhead, take)}
      if (group + 1u < all_groups) { ${valueLoads(batch, "(group + 1u)")} }
      if (group * ${each}u < limit) {
        ${repeat(valuesAhead, add)}
      }
    }`;
}

/** WGSL that adds the slices' sums up, into the memory of the queries: the attended values. */
function joinText(batch: Batch, caps: Caps): string {
  const { lines, units, lanes, leftSlices } = batch, heads = indices(lines);
  const perHead = leftSlices * units * 2, perRound = Math.min(lines, Math.floor(batch.weights / perHead));
  const distances: number[] = [];
  for (let distance = units; distance < caps.subgroupSize; distance *= 2) distances.push(distance);
  const meet = distances.map((distance) =>
    heads.flatMap((h) => [`low_sum_${h}`, `high_sum_${h}`])
      .map((name) => `${name} += subgroupShuffleXor(${name}, ${distance}u);`).join(" ")
  ).join("\n");
  const stays = caps.subgroupSize > units ? `(lane & ${caps.subgroupSize - 1}u) < ${units}u` : "true";
  const slot = `lane / ${Math.max(units, caps.subgroupSize)}u`;
  const rounds = indices(Math.ceil(lines / perRound)).map((round) => {
    const own = heads.slice(round * perRound, (round + 1) * perRound), vectors = own.length * units * 2;
    const put = own.map((h, i) => {
      const at = `weights[${i * perHead}u + (${slot}) * ${2 * units}u + 2u * feature`;
      return `${at}] = low_sum_${h}; ${at} + 1u] = high_sum_${h};`;
    });
    const terms = indices(leftSlices).map((s) => `weights[start + ${s * 2 * units}u]`).join(" + ");
    return `if (${stays}) { ${put.join("\n")} }
  workgroupBarrier();
  for (var i = lane; i < ${vectors}u; i += ${lanes}u) {
    let start = i / ${2 * units}u * ${perHead}u + i % ${2 * units}u;
    queries[${own[0]! * units * 2}u + i] = ${terms};
  }
  workgroupBarrier();`;
  });
  const inverse = heads.map((h) =>
    `let inverse_${h} = select(0.0, 1.0 / max(total_${h}, 1e-37), total_${h} > 0.0); ` +
    `low_sum_${h} *= inverse_${h}; high_sum_${h} *= inverse_${h};`
  );
  return `${overSubgroups(batch, "total", "subgroupAdd", (a, b) => `${a} + ${b}`)}
  ${inverse.join("\n")}
  ${meet}
  ${rounds.join("\n")}`;
}

/** WGSL that stores the finished values of the key head's query heads. */
function storeText({ heads, lines, headDim, lanes }: Batch, quantise: boolean, caps: Caps): string {
  const vectors = lines * headDim / 4, octets = lines * headDim / octet, first = `kv_head * ${lines}u`;
  if (quantise) {
    const turn = (from: number): string =>
      `{
    let own = lane + ${from}u;
    let at = min(own, ${octets - 1}u);
    let low = queries[2u * at];
    let high = queries[2u * at + 1u];
    ${quantiseOctet(`(row * ${heads}u + ${first}) * ${headDim / octet}u + own`, `own < ${octets}u`, caps)}
  }`;
    return indices(Math.ceil(octets / lanes)).map((i) => turn(i * lanes)).join("\n");
  }
  return `for (var i = lane; i < ${vectors}u; i += ${lanes}u) {
    store_attended((row * ${heads}u + ${first}) * ${headDim / 4}u + i, queries[i]);
  }`;
}

/** The shader, but for its inputs and what else it writes. */
export function batchWgsl(
  batch: Batch,
  { row, begin, queries, ownToken, scale, quantise, divert }: BatchText,
  caps: Caps,
): Omit<KernelSource, "inputs"> & { readonly declarations: string } {
  const { keysPerLane, unitsAhead, valuesAhead, lanes, tile, units, slices } = batch;
  const bound = (count: number): string => `min(groups.x * ${count}u, ${count}u)`;
  return {
    outputs: attendedPorts(quantise),
    workgroupSize: [lanes, 1, 1],
    subgroups: true,
    declarations: declarations(batch, ownToken) + (quantise ? blockFunctions(lanes, caps) : ""),
    main: `${row}
  let feature = lane % ${units}u;
  let slice = lane / ${units}u;
  ${repeat(keysPerLane, (k) => `var block_${k}: i32; var at_${k}: u32;\n`)}
  ${repeat(keysPerLane, (k) => indices(unitsAhead).map((c) => `var next_${k}_${c}: vec4u;`).join(" "))}
  ${repeat(valuesAhead, (u) => `var next_j_${u}: u32; var next_value_${u}: vec4u;\n`)}
  let all_units = ${bound(units)};
  let all_groups = ${bound(tile / slices / valuesAhead)};
  ${blockText(batch, begin)}
  ${firstKeysText(batch, begin)}
  ${queries}
  workgroupBarrier();
  ${
      repeat(batch.lines, (h) =>
        `var greatest_${h} = ${LOWEST}; var total_${h} = 0.0; var low_sum_${h} = vec4f(); var high_sum_${h} = vec4f();\n`)
    }
  for (var first = ${begin}; first < seen; first += ${tile}u) {
    let limit = min(seen - first, ${tile}u);
    ${repeat(keysPerLane, (k) => `addresses[lane + ${k * lanes}u] = at_${k};\n`)}
    workgroupBarrier();
    ${valueLoads(batch, "0u")}
    let more = first + ${tile}u < seen;
    if (more) { ${blockText(batch, `first + ${tile}u`)} }
    ${scoresText(batch, ownToken)}
    if (more) { ${firstKeysText(batch, `first + ${tile}u`)} }
    ${weightsText(batch, scale * Math.LOG2E)}
    ${valuesText(batch, ownToken)}
    workgroupBarrier();
  }
  ${joinText(batch, caps)}
  ${divert}
  ${storeText(batch, quantise, caps)}`,
  };
}
