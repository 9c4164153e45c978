/**
 * Deno's `@std/cli` from npm, so that the command line runs where JSR cannot be reached. A workspace member takes
 * precedence over the registry; the published package imports the real one.
 */
// @ts-types="./mod.d.ts"
export * from "npm:deno-std@1.4.0/cli/parse_args.js";
