import { assertAlmostEquals, assertEquals } from "@std/assert";
import { listedBytes } from "./package_size.ts";

Deno.test("package size: the sizes of the listed files add up", () => {
  const listing = "Simulating publish of x with files:\n   file:///a/mod.ts (52B)\n   file:///a/b.ts (3.5KB)\n" +
    "   file:///a/model.safetensors (14.39MB)\nSuccess Dry run complete\n";
  assertAlmostEquals(listedBytes(listing), 52 + 3.5 * 1024 + 14.39 * 1024 ** 2, 1e-6);
  assertEquals(listedBytes("error: nothing\n"), 0);
});
