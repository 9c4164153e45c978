/** MLX's quantised arrays, and models that mlx-lm quantised, against a float64 evaluation of them. */
import { fileSource } from "../../model/deno/file_source.ts";
import { openDevice } from "../../tensor/device.ts";
import { runCheckpoints } from "./checkpoint_case.ts";
import { runArrays } from "./mlx_arrays.ts";
import type { Report } from "./report.ts";

/** Runs the arrays where there are any, then every model. */
export async function run(folder: string, report: Report): Promise<void> {
  if (await fileSource(folder).size("arrays.json") !== undefined) await runArrays(folder, report);
  const device = await openDevice();
  try {
    await runCheckpoints(device, folder, report);
  } finally {
    device.close();
  }
}
