/**
 * The WGSL of how flash attention by tiles ends: slices' results are added up, divided, and stored as floats, in 8-bit codes, or as a
 * part of a context.
 *
 * @module
 */
import type { Caps } from "../tensor/kernel.ts";
import type { Flash } from "./flash_form.ts";
import { quantiseOctet } from "./quantise_wgsl.ts";
import { indices, repeat } from "./unroll.ts";

/**
 * Adds the slices' results up in slice 0, in their order, each scaled to the greatest maximum, which becomes slice 0's own where
 * `maxima` are stored.
 */
export function joinText({ threadQueries, threads, ownChunks, slices }: Flash, maxima: boolean): string {
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
    ${all.map((s) => `factor${s}_${f} = exp2(factor${s}_${f} - greatest);`).join(" ")}${
      maxima ? indices(4).map((j) => ` m${4 * f + j} = greatest.${"xyzw"[j]};`).join("") : ""
    }
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

/** Adds up the sums of weights of the lanes that share a query. */
function sumsText({ threadQueries, across }: Flash): string {
  const steps = indices(Math.log2(across)).map((bit) => 2 ** bit);
  return repeat(threadQueries, (i) => steps.map((step) => `l${i} += subgroupShuffleXor(l${i}, ${step}u); `).join(""));
}

/** Divides by the sums and stores: queries that saw no key give zeros. */
export function storeText(flash: Flash, quantise: boolean, caps: Caps): string {
  const { threadQueries, down, ownChunks, across, slices, chunks, narrow, sizes: { heads } } = flash;
  const query = (i: number): string => `ty + ${i * down}u`;
  const place = (i: number, c: number): string => `query_tile[${c * across}u + tx].own[${i}][ty]`;
  const store = (i: number, c: number): string =>
    quantise
      ? `${place(i, c)} = ${narrow ? `vec4<f16>(acc${i}_${c} * weight)` : `acc${i}_${c} * weight`};`
      : `store_attended(((first + ${query(i)}) * ${heads}u + head) * ${chunks}u + tx + ${
        c * across
      }u, acc${i}_${c} * weight);`;
  const finish = repeat(threadQueries, (i) =>
    `if (${quantise ? "true" : `${query(i)} < count`}) {
      let weight = select(0.0, 1.0 / max(l${i}, 1e-37), l${i} > 0.0);
      ${repeat(ownChunks, (c) => store(i, c))}
    }
    `);
  return `${quantise ? "workgroupBarrier();" : ""}
  ${sumsText(flash)}
  ${slices > 1 ? `if (slice == 0u) { ${finish} }` : finish}
  ${quantise ? quantiseText(flash, caps) : ""}`;
}

/**
 * Stores part `part`, from key `begin` on, of as many as `most`: its values, greatest score and sum of weights, for queries that see
 * it.
 */
export function storePartText(flash: Flash, most: number): string {
  const { threadQueries, down, ownChunks, across, slices, chunks, sizes: { heads } } = flash;
  const finish = repeat(threadQueries, (i) =>
    `{
      let query = ty + ${i * down}u;
      if (query < count && i32(begin) < seen + i32(query)) {
        let to = ((first + query) * ${most}u + part) * ${heads}u + head;
        ${
      repeat(
        ownChunks,
        (c) => `store_flash_values(to * ${chunks}u + tx + ${c * across}u, acc${i}_${c} * (1.0 / l${i}));`,
      )
    }
        if (tx == 0u) { store_flash_sums(to, vec2f(m${i}, l${i})); }
      }
    }
    `);
  return `${sumsText(flash)}
  ${slices > 1 ? `if (slice == 0u) { ${finish} }` : finish}`;
}

/** Stores what lies in the place of the queries in 8-bit codes and scales: every invocation of the workgroup takes octets of features. */
function quantiseText({ queries, down, chunks, slices, threads, sizes: { heads } }: Flash, caps: Caps): string {
  const octets = chunks / 2, all = threads * slices;
  return `workgroupBarrier();
  let first_row = first; // quantising has a \`first\` of its own
  ${
    repeat(queries * octets / all, (n) =>
      `{
    let i = lane + ${n * all}u;
    let query = i / ${octets}u;
    let at = ((first_row + query) * ${heads}u + head) * ${octets}u + i % ${octets}u;
    let pair = 2u * (i % ${octets}u);
    let low = vec4f(query_tile[pair].own[query / ${down}u][query % ${down}u]);
    let high = vec4f(query_tile[pair + 1u].own[query / ${down}u][query % ${down}u]);
    ${quantiseOctet("at", "query < count", caps)}
  }
  `)
  }`;
}
