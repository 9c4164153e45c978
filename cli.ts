/**
 * TinyLLM's command line: `deno run -A cli.ts --help`.
 *
 * Everything happens in `cli/run.ts`, a function of arguments and a terminal; this file gives it the process's own.
 *
 * @module
 */
import type { Library } from "./cli/library.ts";
import { runCli } from "./cli/run.ts";
import { denoTerminal } from "./cli/terminal.ts";

/** The libraries that GPU drivers load complain on standard error where this is unset, once for each backend. */
function quietDrivers(): void {
  const name = "XDG_RUNTIME_DIR";
  if (Deno.build.os !== "linux" || Deno.permissions.querySync({ name: "env", variable: name }).state !== "granted") {
    return;
  }
  if (!Deno.env.has(name)) Deno.env.set(name, "/tmp");
}

if (import.meta.main) {
  quietDrivers();
  const code = await runCli(Deno.args, denoTerminal(), {
    library: (): Promise<Library> => import("./mod.ts"),
    gpu: () => navigator.gpu,
  });
  Deno.exit(code);
}
