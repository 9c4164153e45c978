/**
 * Times prefill: prompts in chunks as the engine reads them unless told otherwise, and one chunk on its own.
 *
 * @module
 */
import { runBench } from "./arguments.ts";
import { runStepBench } from "./step_report.ts";

const USAGE = `deno task bench:prefill [shape …] [--precision=exact] [--tokens=512,4096] [--chunk=TOKENS] [--batch=1]
    [--steps=16] [--profile] [--out=FILE]`;

if (import.meta.main) {
  await runBench(USAGE, (args) =>
    runStepBench("prefill", args, (flags) => ({
      sizes: flags.numbers("tokens", [512]).map((tokens) => ({ tokens, context: tokens })),
      steps: flags.number("steps", 16),
      chunk: flags.number("chunk"),
    })));
}
