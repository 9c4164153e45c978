/**
 * Times prefill: prompts in chunks as the engine reads them unless told otherwise, and one chunk on its own. Usage:
 *
 *     deno task bench:prefill [shape …] [--precision=exact] [--tokens=512,4096] [--chunk=TOKENS] [--steps=16] [--profile]
 *         [--out=FILE]
 *
 * @module
 */
import { runBench } from "./arguments.ts";
import { runStepBench } from "./step_report.ts";

if (import.meta.main) await runBench((args) => runStepBench("prefill", args, { tokens: 512, context: 0, steps: 16 }));
