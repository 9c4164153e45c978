/**
 * Times prefill: prompts in chunks of at most 512 tokens as the engine reads them, and one chunk on its own. Usage:
 *
 *     deno task bench:prefill [shape …] [--precision=exact] [--tokens=512,4096] [--chunk=512] [--steps=16] [--profile]
 *         [--out=FILE]
 *
 * @module
 */
import { runStepBench } from "./step_report.ts";

if (import.meta.main) await runStepBench("prefill", Deno.args, { tokens: 512, context: 0, steps: 16 });
