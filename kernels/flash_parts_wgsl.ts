/**
 * The WGSL of flash attention by parts of tiles: how workgroups find the parts that are theirs. What they do with one is
 * `flash_attention_wgsl.ts`.
 *
 * @module
 */
import { type Caps, dimWgsl, type KernelCall, type KernelSource } from "../tensor/kernel.ts";
import { sizesOf } from "./attention_layout.ts";
import { attentionPorts, declarations, placeText, tileText } from "./flash_attention_wgsl.ts";
import { storePartText } from "./flash_finish_wgsl.ts";
import { type Flash, type FlashForm, flashOf } from "./flash_form.ts";
import type { FlashParts, FlashPartsParams } from "./flash_parts.ts";

/** WGSL of how many parts a row, or a tile, has that sees so many `keys`: an expression of u32. */
export function rowPartsWgsl(seen: string, { most, keys }: FlashParts): string {
  return `min((${seen} + ${keys - 1}u) / ${keys}u, ${most}u)`;
}

/**
 * WGSL that finds the part of a tile number `item`: `sequence`, `first`, `count` rows, how many keys the first of them has `seen`, the
 * `part` and where its keys `begin`. Sequences' tiles have parts as many as their whole context has. A subgroup counts those of as
 * many sequences as it has lanes at a time; as all do, one writes what it found where control flow is known to be uniform.
 */
function findText(
  { queries, sizes: { sequences } }: Flash,
  { parts, othersOnly }: FlashPartsParams,
  lanes: number,
): string {
  return `var found = vec2u();
    var before = 0u;
    for (var first_b = 0u; first_b < ${dimWgsl(sequences)}; first_b += ${lanes}u) {
      let b = first_b + subgroupLane;
      let inside = b < ${dimWgsl(sequences)};
      let own_b = min(b, ${dimWgsl(sequences)} - 1u);
      let own_rows = u32(max(query_start(own_b + 1u) - query_start(own_b), 0));
      let own_parts = ${rowPartsWgsl("u32(max(context_lens(own_b), 0))", parts)};
      let items = select(0u, (own_rows + ${queries - 1}u) / ${queries}u * own_parts, inside${
    othersOnly ? " && own_rows != 1u" : ""
  });
      let end = before + subgroupInclusiveAdd(items);
      if (item < end && item + items >= end) { found = vec2u(b + 1u, item + items - end); }
      before = subgroupMax(end);
    }
    let together = vec2u(subgroupMax(found.x), subgroupMax(found.y));
    if (lane == 0u) { found_item = together; }
    let own_item = workgroupUniformLoad(&found_item);
    if (own_item.x == 0u) { break; }
    let sequence = own_item.x - 1u;
    let end = u32(query_start(sequence + 1u));
    let context = context_lens(sequence);
    let parts = ${rowPartsWgsl("u32(max(context, 0))", parts)};
    let part = own_item.y % parts;
    let begin = part * ${parts.keys}u;
    let first = u32(query_start(sequence)) + own_item.y / parts * ${queries}u;
    let count = min(${queries}u, end - first);
    let seen = context - i32(end - first) + 1;
    let key_end = u32(max(seen + i32(count) - 1, 0));
    if (begin >= key_end) { continue; }`;
}

/** The shader of a call in this form. */
export function flashPartsWgsl(call: KernelCall<FlashPartsParams>, form: FlashForm, caps: Caps): KernelSource {
  const { params } = call, flash = flashOf(form, sizesOf(call)), { most } = params.parts;
  return {
    inputs: attentionPorts,
    outputs: [{ name: "flash_values", width: 4 }, { name: "flash_sums", width: 2 }],
    workgroupSize: [flash.threads * flash.slices, 1, 1],
    subgroups: true,
    declarations: `${declarations(flash)}
var<workgroup> found_item: vec2u;`,
    main: `${placeText(flash)}
  for (var item = workgroup.y;; item += groups.y) {
    ${findText(flash, params, Math.min(caps.subgroupSize, flash.threads * flash.slices))}
    ${tileText(flash, params, { begin: "begin", most })}
    ${storePartText(flash, most)}
    workgroupBarrier(); // before the next part takes the memory
  }`,
  };
}
