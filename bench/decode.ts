/**
 * Times decoding. Usage:
 * `deno task bench:decode [shape …] [--precision=exact] [--context=512] [--batch=1] [--steps=64] [--profile] [--out=FILE]`
 *
 * @module
 */
import { runStepBench } from "./step_report.ts";

if (import.meta.main) await runStepBench("decode", Deno.args, { tokens: 1, context: 512, steps: 64 });
