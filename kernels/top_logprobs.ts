/**
 * The likeliest tokens of each row and their log-probabilities: what an API reports as alternatives. Twenty of a vocabulary are
 * few, so the row is read once for each: every pass finds the best of those that come behind the one before, by logit and then
 * by id. Order and sums do not depend on the batch.
 *
 *     id_0 = argmax x,  id_i = argmax over {t : (x_t, -t) < (x_id_{i-1}, -id_{i-1})},  logprob_i = x_id_i - log Σ exp x
 *
 * @module
 */
import { dimWgsl, type Kernel } from "../tensor/kernel.ts";
import { kernelNode, type Node, output } from "../tensor/node.ts";
import { bestAndSumWgsl, bestWgsl, logitLanes, logitSizes, logitWidth, sumWgsl } from "./argmax.ts";
import { logitPassCost } from "./penalties.ts";
import { rowGrid, rowWgsl } from "./row_grid.ts";
import { logSumExpReference } from "./sampling_reference.ts";

/** Parameters of the search. */
export interface TopLogprobsParams {
  /** How many tokens: at most the vocabulary's. */
  readonly count: number;
}

/** The least f32: a logit this low is masked. */
const LEAST = -3.4028234e38;

const behindWgsl = (lanes: number, groups: number): string => `
// The best of the tokens behind \`last\`: of a lower logit, or of the same and a higher id.
fn best_behind(lane: u32, row: u32, last: Best) -> Best {
  var mine = Best(-3.4028234e38, 0xffffffffu);
  for (var group = lane; group < ${groups}u; group += ${lanes}u) {
    let x = row4(row, group);
    let ids = vec4u(group * 4u) + vec4u(0u, 1u, 2u, 3u);
    let behind = (x < vec4f(last.value)) | ((x == vec4f(last.value)) & (ids > vec4u(last.id)));
    mine = best_of_four(select(vec4f(-3.4028234e38), x, behind), group * 4u, mine);
  }
  return best_over_lanes(lane, mine);
}`;

/** logits [R, V], floats, to ids [R, count] i32 and their log-probabilities [R, count] f32, a workgroup a row. */
export const topLogprobsKernel: Kernel<TopLogprobsParams> = {
  name: "top_logprobs",
  infer([logits], { count }) {
    const { rows, vocabulary } = logitSizes(logits, "find the likeliest tokens");
    if (!(Number.isInteger(count) && count >= 1 && count <= vocabulary)) {
      throw new Error(`Cannot find the ${count} likeliest tokens of ${vocabulary}: give a whole number from 1`);
    }
    return [{ dtype: "i32", shape: [rows, count] }, { dtype: "f32", shape: [rows, count] }];
  },
  wgsl(call, caps) {
    const { rows, vocabulary } = logitSizes(call.inputs[0], "find the likeliest tokens");
    const lanes = logitLanes(vocabulary, caps), groups = Math.ceil(vocabulary / 4), { count } = call.params;
    return {
      inputs: [{ name: "logits", width: logitWidth(vocabulary) }],
      outputs: [{ name: "ids" }, { name: "logprobs" }],
      workgroupSize: [lanes, 1, 1],
      declarations: bestWgsl("logits", vocabulary, lanes) + sumWgsl(lanes) + behindWgsl(lanes, groups),
      main: `
  ${rowWgsl(dimWgsl(rows))}
  ${bestAndSumWgsl("0u", `${groups}u`, lanes, true)}
  let log_sum_exp = log_sum_exp_of(best.value, sum); // as in sampling.ts: a drawn token's figure is the same in both
  var next = best;
  for (var i = 0u; i < ${count}u; i++) {
    if (lane == 0u) {
      store_ids(row * ${count}u + i, i32(next.id));
      store_logprobs(row * ${count}u + i, next.value - log_sum_exp);
    }
    next = best_behind(lane, row, next);
  }`,
    };
  },
  grid: (call, _caps, resolve) => rowGrid(1, resolve(call.outputs[0]!.shape[0]!)),
  reference(call, [logits]) {
    const { vocabulary } = logitSizes(call.inputs[0], "find the likeliest tokens"), { count } = call.params;
    const ids: number[] = [], logprobs: number[] = [];
    for (let start = 0; start < logits!.length; start += vocabulary) {
      const row = Array.prototype.slice.call(logits, start, start + vocabulary) as number[];
      const order = row.map((_, id) => id).sort((a, b) => row[b]! - row[a]! || a - b).slice(0, count);
      const logSumExp = logSumExpReference(row);
      ids.push(...order.map((id) => row[id]! > LEAST ? id : -1));
      logprobs.push(...order.map((id) => row[id]! - logSumExp));
    }
    return [Float64Array.from(ids), Float64Array.from(logprobs)];
  },
  cost: (call, _caps, resolve) => logitPassCost(call, resolve, call.params.count, 1),
};

/**
 * The likeliest tokens of each row, likeliest first, the lowest id among equals.
 *
 * @param logits [R, V], floats. @param count How many.
 * @returns `ids` [R, count] i32 (-1 where only masked tokens are left) and `logprobs` [R, count] f32, natural logarithms.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { topLogprobs } from "@tinyllm/tinyllm/kernels";
 * import { Tensor, tensor } from "@tinyllm/tinyllm/tensor";
 *
 * const { ids, logprobs } = topLogprobs(tensor([[0, 1, 1, -1e9]]).node, 2);
 * assertEquals([...await new Tensor(ids).data()], [1, 2]);
 * assertEquals((await new Tensor(logprobs).data())[0]!.toFixed(3), "-0.862"); // 1 - ln(1 + 2 e)
 * ```
 */
export function topLogprobs(logits: Node, count: number): { ids: Node; logprobs: Node } {
  const ids = kernelNode(topLogprobsKernel, [logits], { count });
  return { ids, logprobs: output(ids, 1) };
}
