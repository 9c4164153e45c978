/** The online softmax against the definition: any tile size, grouping, mask; queries that see nothing. */
import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import {
  type AttentionOptions,
  attentionReference,
  flashAttentionReference,
  type ReferenceTensor,
} from "./flash_reference.ts";
import { seededRandom } from "./random.ts";

const random = seededRandom(11);

function normal(...shape: number[]): ReferenceTensor {
  return { data: Float64Array.from({ length: shape.reduce((a, b) => a * b, 1) }, random.normal), shape };
}

/** Hides about a third of the keys, and all of them from query 0. */
function hiding(...shape: number[]): ReferenceTensor {
  const { data } = normal(...shape);
  const keys = shape.at(-1)!;
  return { shape, data: Array.from(data, (x, at) => x < -0.4 || Math.floor(at / keys) === 0 ? -Infinity : x) };
}

function agree(q: ReferenceTensor, k: ReferenceTensor, v: ReferenceTensor, options: AttentionOptions): void {
  const plain = attentionReference(q, k, v, options);
  for (const tile of [1, 3, 32]) {
    const flash = flashAttentionReference(q, k, v, { ...options, tile });
    flash.forEach((value, i) => assertAlmostEquals(value, plain[i]!, 1e-12));
  }
}

Deno.test("flash attention is attention", () => {
  agree(normal(2, 4, 7, 8), normal(2, 4, 7, 8), normal(2, 4, 7, 8), {});
  agree(normal(2, 6, 5, 8), normal(2, 2, 9, 8), normal(2, 2, 9, 8), { causal: true });
  agree(normal(14, 3, 16), normal(2, 70, 16), normal(2, 70, 16), { causal: true, scale: 0.5 });
  agree(normal(2, 3, 4, 5, 8), normal(2, 3, 1, 5, 8), normal(2, 3, 1, 5, 8), { mask: hiding(5, 5), causal: true });
  agree(normal(2, 4, 3, 8), normal(2, 4, 6, 8), normal(2, 4, 6, 8), { mask: hiding(2, 1, 3, 6) });
});

Deno.test("attention gives zeros to a query that sees no key", () => {
  const q = normal(1, 3, 4), kv = normal(1, 2, 4);
  const out = attentionReference(q, kv, kv, { causal: true });
  assertEquals([...out.subarray(0, 4)], [0, 0, 0, 0]);
  assertEquals([...out.subarray(4, 8)], [...kv.data as Float64Array].slice(0, 4));
  agree(q, kv, kv, { causal: true });
});

Deno.test("attention refuses what does not fit, with the shapes", () => {
  const error = assertThrows(() => attentionReference(normal(3, 1, 4), normal(2, 1, 4), normal(2, 1, 4)), Error);
  assertEquals(error.message, "Cannot attend: q [3,1,4], k [2,1,4] and v [2,1,4] do not fit together");
  const mask = normal(2, 2);
  assertThrows(
    () => attentionReference(normal(1, 3, 4), normal(1, 3, 4), normal(1, 3, 4), { mask }),
    Error,
    "broadcast",
  );
});
