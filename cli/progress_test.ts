import { assertEquals } from "@std/assert";
import { progressText } from "./progress.ts";
import { formatBinaryBytes, formatBytes, formatMillions, wrap } from "./style.ts";

Deno.test("progress: files that come at once are one bar, cut to the width", () => {
  const files = [
    { phase: "download" as const, file: "a", received: 5e6, total: 5e6, bytesPerSecond: 9e9, etaSeconds: 0 },
    { phase: "download" as const, file: "b", received: 0, total: 15e6, bytesPerSecond: 2e6, etaSeconds: 75 },
  ];
  const bar = "██████".padEnd(24);
  assertEquals(progressText(files, 100), `Downloading ${bar}  25%  5.00 MB of 20.0 MB  2.00 MB/s  1:15 left`);
  assertEquals(progressText(files, 50), `Downloading ${bar}  25%`);
  assertEquals(
    progressText([{ phase: "load", received: 3e6, total: 4e6 }], 80),
    `Loading ${"█".repeat(18).padEnd(24)}  75%  3.00 MB of 4.00 MB`,
  );
  assertEquals(
    progressText([{ phase: "compile", received: 15, total: 60 }], 80),
    `Compiling ${"██████".padEnd(24)}  25%  15 of 60 programs`,
  );
});

Deno.test("style: sizes, counts and lines", () => {
  assertEquals([0, 999, 15_100_000, 999_960_000].map(formatBytes), ["0 bytes", "999 bytes", "15.1 MB", "1.00 GB"]);
  assertEquals([32768, 134217728, 2147483647].map(formatBinaryBytes), ["32 KiB", "128 MiB", "2.00 GiB"]);
  assertEquals([12, 26_750_000].map(formatMillions), ["12", "26.8 million"]);
  assertEquals(wrap("one two three", 7), ["one two", "three"]);
});
