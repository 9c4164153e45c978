/** Models against the logits and greedy continuations that transformers computes in float32: a folder each. */
import { openDevice } from "../../tensor/device.ts";
import { runCheckpoints } from "./checkpoint_case.ts";
import type { Report } from "./report.ts";

/** Runs every model. One whose type is not supported yet is skipped by that type. */
export async function run(folder: string, report: Report): Promise<void> {
  const device = await openDevice();
  try {
    await runCheckpoints(device, folder, report);
  } finally {
    device.close();
  }
}
