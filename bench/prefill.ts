/**
 * Times prefill: prompts in chunks as the engine reads them unless told otherwise, and one chunk on its own.
 *
 * @module
 */
import { runBench } from "./arguments.ts";
import { runStepBench } from "./step_report.ts";

const USAGE = `deno task bench:prefill [shape …] [--precision=exact] [--tokens=512,4096] [--chunk=TOKENS] [--steps=16]
    [--profile] [--out=FILE]`;

if (import.meta.main) {
  await runBench(USAGE, (args) => runStepBench("prefill", args, { tokens: 512, context: 0, steps: 16 }));
}
