/**
 * Times decoding.
 *
 * @module
 */
import { runBench } from "./arguments.ts";
import { STEP_TOKENS } from "./step_engine.ts";
import { runStepBench } from "./step_report.ts";

const USAGE = `deno task bench:decode [shape …] [--precision=exact] [--context=512] [--batch=1] [--steps=64] [--profile]
    [--out=FILE]`;

if (import.meta.main) {
  await runBench(USAGE, (args) =>
    runStepBench("decode", args, (flags) => ({
      sizes: flags.numbers("context", [512]).map((context) => ({ tokens: 1, context })),
      steps: flags.number("steps", 64),
      chunk: STEP_TOKENS,
    })));
}
