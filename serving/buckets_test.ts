/** The sizes that programs are captured for. */
import { assertEquals } from "@std/assert";
import { blockBuckets } from "./buckets.ts";

Deno.test("contexts have programs of their own where these have faster forms", () => {
  const of = (maxTokens: number, joined: boolean, cpu: boolean, positions: number): number[] =>
    blockBuckets({ maxTokens, joined, cpu }, positions / 16, 16).map((blocks) => blocks * 16);
  assertEquals(of(1, false, true, 32768), [32768]);
  assertEquals(of(1, false, false, 32768), [1024, 32768]);
  assertEquals(of(1, true, false, 32768), [1024, 10240, 32768]);
  assertEquals(of(8, true, false, 32768), [1024, 32768]);
  assertEquals(of(8, false, false, 32768), [32768]);
  assertEquals(of(1, true, false, 1024), [1024]);
  assertEquals(of(1, true, false, 4096), [1024, 4096]);
});
