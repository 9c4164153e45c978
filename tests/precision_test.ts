/**
 * Fast precision against exact, on the story model: the same choices wherever exact is sure, and nearly the same
 * distributions. `deno task eval:precision` measures the same over long texts and real models.
 */
import { assert, assertEquals } from "@std/assert";
import { loadModel } from "../mod.ts";

const TEXT =
  "Once upon a time, there was a robot named Rex who lived in a big house. Rex was very afraid of the dark, so he";

/** ln of the softmax of a row. */
function logSoftmax(row: Float32Array): number[] {
  const greatest = Math.max(...row), sum = row.reduce((total, logit) => total + Math.exp(logit - greatest), 0);
  return Array.from(row, (logit) => logit - greatest - Math.log(sum));
}

Deno.test("fast precision stays close to exact", async () => {
  await using exact = await loadModel();
  await using fast = await loadModel(undefined, { precision: "fast" });
  const ids = exact.tokenizer!.encode(TEXT);
  const [a, b] = [await exact.logits(ids), await fast.logits(ids)], width = a.shape[1];
  let divergence = 0;
  for (let row = 0; row < ids.length; row++) {
    const p = logSoftmax(a.data.subarray(row * width, (row + 1) * width));
    const q = logSoftmax(b.data.subarray(row * width, (row + 1) * width));
    divergence += p.reduce((sum, value, i) => sum + Math.exp(value) * (value - q[i]!), 0);
    const [first, second] = p.toSorted((x, y) => y - x);
    if (first! - second! > 0.2) {
      assertEquals(q.indexOf(Math.max(...q)), p.indexOf(first!), `first choice at position ${row}`);
    }
  }
  // int8 activations per 32 were measured at 6.7e-4 on a real model; the bound is the one that fast precision has to keep.
  assert(divergence / ids.length < 2e-3, `mean KL ${divergence / ids.length}`);
});
