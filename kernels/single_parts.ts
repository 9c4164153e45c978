/**
 * Long contexts of single queries, in parts: a workgroup would take as long for one context of 8k as for sixteen of 512, and all
 * others would wait for it. The parts of a context are attended to side by side (`mixed_attention.ts`) and merged by a dispatch
 * that follows (`flash_attention.ts` or `flash_merge.ts`). With a value v, a greatest score m and a sum of weights l of each part,
 *
 *     attended = sum l[i] exp(m[i] - m) v[i] / sum l[i] exp(m[i] - m),   m the greatest of all
 *
 * How many there are depends on the row's own context, so that its result does not depend on its batch.
 *
 * @module
 */
import { maxOf } from "../tensor/dim.ts";
import type { Caps, Port, TensorType } from "../tensor/kernel.ts";
import type { PagedAttentionParams, Sizes } from "./attention_layout.ts";
import { attendedPorts, LOWEST } from "./attention_layout.ts";
import { octet, quantiseOctet } from "./quantise_wgsl.ts";
import { repeat } from "./unroll.ts";

/** Keys of a context that one workgroup takes. */
const partKeys = 1024;

/** Workgroups of a dispatch that cost little where nearly all leave at once. */
const idleWorkgroups = 1024;

/** Most parts of a context in programs of these sizes: 1 where none is long, or sequences are so many that they fill a device. */
export function mostPartsOf({ sequences, kvHeads, maxBlocks }: Sizes, blockSize: number): number {
  const longest = Math.ceil(maxBlocks * blockSize / partKeys);
  return Math.max(1, Math.min(8, longest, Math.floor(idleWorkgroups / (kvHeads * maxOf(sequences)))));
}

/** Values of parts, and their greatest scores and sums of weights; none where contexts have one part. */
export function partTypes(sizes: Sizes, blockSize: number): TensorType[] {
  const most = mostPartsOf(sizes, blockSize), { sequences, heads, headDim } = sizes;
  if (most === 1) return [];
  return [
    { dtype: "f32", shape: [sequences, most * heads, headDim] },
    { dtype: "f32", shape: [sequences, most * heads, 2] },
  ];
}

/** Ports of {@linkcode partTypes}. */
export function partPorts(most: number): Port[] {
  return most === 1 ? [] : [{ name: "part_values", width: 4 }, { name: "part_sums", width: 2 }];
}

/** Ports of what attention of single queries gives, results and parts, where they are inputs. */
export function singlePorts(quantise: boolean, most: number): Port[] {
  return [...attendedPorts(quantise).map((port) => ({ ...port, name: `single_${port.name}` })), ...partPorts(most)];
}

/** WGSL of how many parts a context of `keys` has. */
export function partsWgsl(keys: string, most: number): string {
  return `clamp((${keys} + ${partKeys - 1}u) / ${partKeys}u, 1u, ${most}u)`;
}

/** WGSL that declares the `part` of a workgroup, and the keys of `all` in it, from `begin` to before `seen`. */
export function partRangeWgsl(all: string, most: number, tile: number, kvHeads: number): string {
  return `let part = workgroup.x / ${kvHeads}u;
  let parts = ${partsWgsl(all, most)};
  if (part >= parts) { return; }
  let part_length = ((${all} + ${tile - 1}u) / ${tile}u + parts - 1u) / parts * ${tile}u;
  let begin = part * part_length;
  let seen = min(${all}, begin + part_length);`;
}

/** Where the parts of a head lie, and how they are merged. */
export interface MergedParts {
  /** Names of the inputs that hold values and sums. */
  readonly values: string;
  readonly sums: string;
  /** WGSL of the head's place in the first part; in the others it follows at steps of `heads`. */
  readonly first: string;
  readonly heads: number;
  /** Octets of a head, and WGSL of the one that is merged. */
  readonly octets: number;
  readonly octet: string;
  /** Factor on scores that makes them powers of 2. */
  readonly exponent: number;
  /** Most parts, where the loop over them is written out, so that all are read at once. */
  readonly written?: number;
}

/** WGSL that merges `parts` parts, at least one, into an octet of features: vec4f `low` and `high`, zeros before. */
export function mergedPartsWgsl(merged: MergedParts): string {
  const { values, sums, first, heads, octets, octet, exponent, written } = merged;
  const each = (text: (weight: (own: string) => string) => string): string =>
    written === undefined
      ? `for (var part = 0u; part < parts; part++) { ${text((own) => own)} }`
      : repeat(written, (i) =>
        `{ let part = min(${i}u, parts - 1u); ${
          text((own) => `select(0.0, ${own}, ${i}u < parts)`)
        } }
      `);
  return `let own_part = ${first};
      var most = ${LOWEST};
      ${each(() => `most = max(most, ${sums}(own_part + part * ${heads}u).x);`)}
      var weights = 0.0;
      ${
    each((weight) =>
      `let at = own_part + part * ${heads}u;
        let own = ${sums}(at);
        let weight = ${weight(`own.y * exp2((own.x - most) * ${exponent})`)};
        let octet = (at * ${octets}u + ${octet}) * 2u;
        weights += weight;
        low = fma(vec4f(weight), ${values}(octet), low);
        high = fma(vec4f(weight), ${values}(octet + 1u), high);`
    )
  }
      low *= 1.0 / weights;
      high *= 1.0 / weights;`;
}

/**
 * WGSL that merges the parts of row `start` of `sequence`, if its `context` has more than one, for the workgroup's `head`; in uniform
 * control flow.
 */
export function mergePartsWgsl(
  sizes: Sizes,
  { blockSize, scale }: PagedAttentionParams,
  quantise: boolean,
  caps: Caps,
): string {
  const { heads, headDim } = sizes, most = mostPartsOf(sizes, blockSize), octets = headDim / octet;
  const store = quantise
    ? quantiseOctet(`(start * ${heads}u + head) * ${octets}u + lane`, `lane < ${octets}u`, caps)
    : `if (lane < ${octets}u) {
        let to = ((start * ${heads}u + head) * ${octets}u + lane) * 2u;
        store_attended(to, low);
        store_attended(to + 1u, high);
      }`;
  const merged = mergedPartsWgsl({
    ...{ values: "part_values", sums: "part_sums", first: `sequence * ${most * heads}u + head`, heads },
    ...{ octets, octet: `min(lane, ${octets - 1}u)`, exponent: scale * Math.LOG2E },
  });
  return `let parts = ${partsWgsl("u32(max(context, 0))", most)};
    if (parts > 1u) {
      var low = vec4f();
      var high = vec4f();
      ${merged}
      { ${store} }
    }`;
}
