/**
 * Times prefill of one prompt in one step. Usage:
 * `deno task bench:prefill [shape …] [--precision=exact] [--tokens=512] [--steps=16] [--profile]`
 *
 * @module
 */
import { runStepBench } from "./step_report.ts";

if (import.meta.main) await runStepBench(Deno.args, { tokens: 512, context: 512, steps: 16 });
