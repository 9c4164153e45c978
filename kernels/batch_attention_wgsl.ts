/**
 * The WGSL of `batch_attention.ts`: one key head of one sequence in one workgroup.
 *
 * @module
 */
import { type Caps, dimWgsl, type KernelCall, type KernelSource, type Port } from "../tensor/kernel.ts";
import { LOWEST } from "./attention_layout.ts";
import { ownRowWgsl } from "./attention_merge_wgsl.ts";
import type { BatchAttentionParams } from "./batch_attention.ts";
import { blockFunctions, octet, quantiseOctet } from "./quantise_wgsl.ts";
import { turnWgsl } from "./rope_attention.ts";
import { rowWgsl } from "./row_grid.ts";
import { indices, repeat } from "./unroll.ts";

/** How a workgroup's work is laid out. */
export interface BatchAttentionForm {
  /** Invocations of a workgroup. */
  readonly lanes: number;
  /** Keys of a tile that an invocation scores. */
  readonly keysPerLane: number;
  /** Loads of 16 bytes of a key that are on their way together. Divides those of a head. */
  readonly unitsAhead: number;
  /** Values that are. Divides those of a tile that an invocation adds up. */
  readonly valuesAhead: number;
}

/** A form with what follows from it and the call. */
interface Batch extends BatchAttentionForm {
  readonly headDim: number;
  /** Query heads of the key head. */
  readonly lines: number;
  /** Keys of a tile. */
  readonly tile: number;
  /** Loads of 16 bytes, eight features, of a key or value: as many neighbouring lanes share a value. */
  readonly units: number;
  /** Invocations that take turns at the values of a tile. */
  readonly slices: number;
  readonly subgroups: number;
  /** Slices whose sums are left after those of a subgroup have met. */
  readonly leftSlices: number;
  /** Vectors of four weights of a key. */
  readonly quads: number;
  /** Vectors of workgroup memory that weights take, and later a head's sums of the slices that are left. */
  readonly weights: number;
}

function batchOf(form: BatchAttentionForm, headDim: number, lines: number, caps: Caps): Batch {
  const { lanes, keysPerLane } = form, units = headDim / 8, slices = lanes / units;
  const tile = lanes * keysPerLane,
    quads = Math.ceil(lines / 4),
    leftSlices = lanes / Math.max(units, caps.subgroupSize);
  return {
    ...form,
    headDim,
    lines,
    units,
    slices,
    tile,
    subgroups: lanes / caps.subgroupSize,
    leftSlices,
    quads,
    weights: Math.max(quads * tile, 2 * leftSlices * units),
  };
}

/** Bytes of workgroup memory. */
export function batchAttentionBytes(form: BatchAttentionForm, headDim: number, lines: number, caps: Caps): number {
  const { tile, weights, subgroups, units } = batchOf(form, headDim, lines, caps);
  return lines * headDim * 4 + weights * 16 + tile * 4 + lines * Math.ceil(subgroups / 4) * 16 + 2 * units * 16;
}

function declarations({ lines, headDim, weights, tile, subgroups, units }: Batch): string {
  return `
var<workgroup> queries: array<vec4f, ${lines * headDim / 4}>;
var<workgroup> weights: array<vec4f, ${weights}>;
var<workgroup> addresses: array<u32, ${tile}>;
var<workgroup> across: array<vec4f, ${lines * Math.ceil(subgroups / 4)}>;
var<workgroup> new_key: array<vec4u, ${units}>;
var<workgroup> new_value: array<vec4u, ${units}>;
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

/** WGSL that turns the queries, and makes the sequence's new key and value, which the pools get as well. */
function ownTokenText(call: KernelCall<BatchAttentionParams>, batch: Batch): string {
  const { heads, kvHeads, headDim } = call.params.rope, { units, lines, lanes } = batch;
  const slots = call.inputs[4]!.shape[0] as number, vectors = headDim / 4, all = heads + 2 * kvHeads;
  const at = (head: string): string => `(row * ${all}u + ${head}) * ${vectors}u`;
  return `
  let own_slot = slot_mapping(row);
  let fresh = seen > 0u && own_slot >= 0 && own_slot < ${slots};
  for (var i = lane; i < ${lines * vectors / 2}u; i += ${lanes}u) {
    let low = i / ${lines}u;
    let line = i % ${lines}u;
    let both = turned(row, ${at(`kv_head * ${lines}u + line`)}, low);
    queries[low * ${lines}u + line] = both.first;
    queries[(low + ${vectors / 2}u) * ${lines}u + line] = both.second;
  }
  if (fresh && lane < ${units}u) {
    let key = own_key(row, ${at(`${heads}u + kv_head`)}, lane);
    let value = own_value(row, ${at(`${heads + kvHeads}u + kv_head`)}, lane);
    new_key[lane] = key;
    new_value[lane] = value;
    let to = (u32(own_slot) * ${kvHeads}u + kv_head) * ${units}u + lane;
    store_next_keys(to, key);
    store_next_values(to, value);
  }
  workgroupBarrier();`;
}

/** WGSL of where key `k` of a lane's lies in the tile from `first` on: the block's number is loaded by itself, ahead. */
function blockText(call: KernelCall<BatchAttentionParams>, { lanes, keysPerLane }: Batch, first: string): string {
  const { blockSize } = call.params.attention, maxBlocks = call.inputs[8]!.shape[1] as number;
  return repeat(
    keysPerLane,
    (k) =>
      `block_${k} = block_tables(row * ${maxBlocks}u + min((${first} + lane + ${k * lanes}u) >> ${
        Math.log2(blockSize)
      }u, ${maxBlocks - 1}u));\n`,
  );
}

/** WGSL that loads the first units of a lane's keys. */
function firstKeysText(call: KernelCall<BatchAttentionParams>, batch: Batch, first: string): string {
  const { lanes, keysPerLane, unitsAhead, units } = batch, { kvHeads } = call.params.rope;
  const { blockSize } = call.params.attention, shift = Math.log2(blockSize);
  return repeat(
    keysPerLane,
    (k) =>
      `at_${k} = (((u32(max(block_${k}, 0)) << ${shift}u) + ((${first} + lane + ${k * lanes}u) & ${
        blockSize - 1
      }u)) * ${kvHeads}u + kv_head) * ${units}u;\n` + keyLoads(k, 0, unitsAhead),
  );
}

/** Loads units of key `k` from `unit` on. */
function keyLoads(k: number, unit: number, count: number): string {
  return indices(count).map((c) => `next_${k}_${c} = keys(at_${k} + ${unit + c}u);`).join(" ") + "\n";
}

/** WGSL of the scores of a lane's keys, `score_<key>_<head>`: while some units are multiplied, the next are on their way. */
function scoresText(batch: Batch): string {
  const { keysPerLane, lines, units, unitsAhead } = batch, keys = indices(keysPerLane), heads = indices(lines);
  const dot = (k: number, h: number, at: string, q: string): string =>
    [..."xyzw"].map((d) => `score_${k}_${h} = fma(${at}_${k}.${d}, ${q}.${d}, score_${k}_${h});`).join(" ");
  const unit = (at: number, c: number): string =>
    `{
        ${
      keys.map((k) => `let low_${k} = unpack_four(key_${k}_${c}.xy); let high_${k} = unpack_four(key_${k}_${c}.zw);`)
        .join("\n")
    }
        ${
      heads.map((h) =>
        `{ let q0 = queries[${2 * at * lines + h}]; let q1 = queries[${(2 * at + 1) * lines + h}];
        ${keys.map((k) => `${dot(k, h, "low", "q0")} ${dot(k, h, "high", "q1")}`).join("\n")} }`
      ).join("\n")
    }
      }
`;
  const phases = indices(units / unitsAhead).map((phase) => {
    const first = phase * unitsAhead, more = first + unitsAhead < units;
    const take = keys.map((k) => indices(unitsAhead).map((c) => `var key_${k}_${c} = next_${k}_${c};`).join(" ")).join(
      "\n",
    );
    const own = keys.map((k) =>
      `if (fresh && first + lane + ${k * batch.lanes}u == seen - 1u) { ${
        indices(unitsAhead).map((c) => `key_${k}_${c} = new_key[${first + c}];`).join(" ")
      } }`
    ).join("\n");
    return `{
      ${take}
      ${more ? keys.map((k) => keyLoads(k, first + unitsAhead, unitsAhead)).join("") : ""}
      ${own}
      ${indices(unitsAhead).map((c) => unit(first + c, c)).join("")}
    }
`;
  });
  return `${keys.map((k) => heads.map((h) => `var score_${k}_${h} = 0.0;`).join(" ")).join("\n")}
    ${phases.join("")}
    ${
    keys.map((k) =>
      heads.map((h) =>
        `score_${k}_${h} = select(${LOWEST}, score_${k}_${h}, first + lane + ${k * batch.lanes}u < seen);`
      ).join(" ")
    ).join("\n")
  }`;
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
function valueLoads({ slices, valuesAhead }: Batch, group: number): string {
  return repeat(
    valuesAhead,
    (u) =>
      `let j_${group}_${u} = min(slice + ${(group * valuesAhead + u) * slices}u, limit - 1u);
      var value_${group}_${u} = values(addresses[j_${group}_${u}] + feature);
`,
  );
}

/** WGSL that adds up a tile's values: a lane takes eight features of every `slices`-th key. */
function valuesText(batch: Batch): string {
  const { lines, quads, tile, slices, valuesAhead } = batch,
    heads = indices(lines),
    groups = tile / slices / valuesAhead;
  const add = (group: number): string =>
    repeat(valuesAhead, (u) =>
      `{
        if (fresh && first + j_${group}_${u} == seen - 1u) { value_${group}_${u} = new_value[feature]; }
        let low = unpack_four(value_${group}_${u}.xy);
        let high = unpack_four(value_${group}_${u}.zw);
        ${
        indices(quads).map((q) =>
          `let weight_${q} = weights[${q * tile + (group * valuesAhead + u) * slices}u + slice];`
        ).join(" ")
      }
        ${
        heads.map((h) => {
          const weight = `vec4f(weight_${h >> 2}.${"xyzw"[h & 3]})`;
          return `low_sum_${h} = fma(${weight}, low, low_sum_${h}); high_sum_${h} = fma(${weight}, high, high_sum_${h});`;
        }).join("\n")
      }
      }
`);
  return indices(groups).map((group) => `
    ${group + 1 < groups ? valueLoads(batch, group + 1) : ""}
    if (${group * valuesAhead * slices}u < limit) {
      ${add(group)}
    }`).join("\n");
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
function storeText(call: KernelCall<BatchAttentionParams>, batch: Batch, caps: Caps): string {
  const { heads } = call.params.rope, { lines, headDim, lanes } = batch;
  const vectors = lines * headDim / 4, octets = lines * headDim / octet, first = `kv_head * ${lines}u`;
  if (call.params.quantise) {
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

/** The shader of a call. */
export function batchAttentionWgsl(
  call: KernelCall<BatchAttentionParams>,
  form: BatchAttentionForm,
  caps: Caps,
): KernelSource {
  const { params: { rope, quantise, attention }, inputs } = call, { heads, kvHeads, headDim } = rope;
  const batch = batchOf(form, headDim, heads / kvHeads, caps), lines = indices(batch.lines);
  const { keysPerLane, unitsAhead } = batch;
  const results: Port[] = quantise
    ? [{ name: "codes", width: 2 }, { name: "scales", width: 2 }]
    : [{ name: "attended", width: 4 }];
  return {
    inputs: [
      ...[{ name: "qkv", width: 4 }, { name: "positions" }, { name: "slot_mapping" }, {
        name: "table",
        width: 4,
      }] as const,
      ...[{ name: "keys", width: 4, raw: true }, { name: "values", width: 4, raw: true }] as const,
      ...[{ name: "query_start" }, { name: "context_lens" }, { name: "block_tables" }],
    ],
    outputs: [...results, { name: "next_keys", width: 4, raw: true }, { name: "next_values", width: 4, raw: true }],
    workgroupSize: [batch.lanes, 1, 1],
    subgroups: true,
    declarations: declarations(batch) + turnWgsl(headDim, inputs[3]!) +
      (quantise ? blockFunctions(batch.lanes, caps) : ""),
    main: `let kv_head = workgroup.x;
  ${rowWgsl(dimWgsl(inputs[0]!.shape[0]!))}
  ${ownRowWgsl}
  let feature = lane % ${batch.units}u;
  let slice = lane / ${batch.units}u;
  ${repeat(keysPerLane, (k) => `var block_${k}: i32; var at_${k}: u32;\n`)}
  ${repeat(keysPerLane, (k) => indices(unitsAhead).map((c) => `var next_${k}_${c}: vec4u;`).join(" "))}
  ${blockText(call, batch, "0u")}
  ${firstKeysText(call, batch, "0u")}
  ${ownTokenText(call, batch)}
  ${
      lines.map((h) =>
        `var greatest_${h} = ${LOWEST}; var total_${h} = 0.0; var low_sum_${h} = vec4f(); var high_sum_${h} = vec4f();`
      ).join("\n")
    }
  for (var first = 0u; first < seen; first += ${batch.tile}u) {
    let limit = min(seen - first, ${batch.tile}u);
    ${repeat(keysPerLane, (k) => `addresses[lane + ${k * batch.lanes}u] = at_${k};\n`)}
    workgroupBarrier();
    ${valueLoads(batch, 0)}
    let more = first + ${batch.tile}u < seen;
    if (more) { ${blockText(call, batch, `first + ${batch.tile}u`)} }
    ${scoresText(batch)}
    if (more) { ${firstKeysText(call, batch, `first + ${batch.tile}u`)} }
    ${weightsText(batch, attention.scale * Math.LOG2E)}
    ${valuesText(batch)}
    workgroupBarrier();
  }
  ${joinText(batch, caps)}
  ${storeText(call, batch, caps)}`,
  };
}
