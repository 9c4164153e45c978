/**
 * Times decoding.
 *
 * @module
 */
import { runBench } from "./arguments.ts";
import { runStepBench } from "./step_report.ts";

const USAGE = `deno task bench:decode [shape …] [--precision=exact] [--context=512] [--batch=1] [--steps=64] [--profile]
    [--out=FILE]`;

if (import.meta.main) {
  await runBench(USAGE, (args) => runStepBench("decode", args, { tokens: 1, context: 512, steps: 64 }));
}
