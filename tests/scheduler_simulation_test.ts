/**
 * The scheduler and the block manager under random traffic, without a GPU: 1,000,000 steps of fixed seeds; with TINYLLM_LONG=1,
 * 5,000,000 of fresh ones; from TINYLLM_TEST_SEED on where that is set.
 */
import { assert } from "@std/assert";
import { seededRandom } from "../kernels/random.ts";
import { noTraffic, SimulatedTraffic } from "./simulated_traffic.ts";

const LONG = Deno.env.get("TINYLLM_LONG") === "1";
const STEPS = LONG ? 5_000_000 : 1_000_000;

Deno.test(`${STEPS} steps of random traffic keep the books, leak nothing, and answer as if alone`, () => {
  const counts = noTraffic();
  let seed = Number(Deno.env.get("TINYLLM_TEST_SEED") ?? (LONG ? Date.now() % 1e9 : 1));
  for (; counts.steps < STEPS; seed++) {
    try {
      new SimulatedTraffic(seededRandom(seed), counts).run(400);
    } catch (cause) {
      throw new Error(`Traffic of TINYLLM_TEST_SEED=${seed} failed: ${(cause as Error).message}`, { cause });
    }
  }
  const { aborted, ...rest } = counts;
  for (const [what, count] of Object.entries({ ...rest, waiting: aborted.waiting, running: aborted.running })) {
    assert(count > 0, `the traffic has had no ${what}`);
  }
  assert(counts.mostInFlight >= 8, `at most ${counts.mostInFlight} steps were in flight`);
});
