/** Recorded activations against the plain decoder, which can show its own. */
import { openCheckpoint } from "../../model/checkpoint.ts";
import { readConfig } from "../../model/config.ts";
import { plainLogits } from "../../model/plain_decoder.ts";
import type { Source } from "../../model/source.ts";
import type { Device } from "../../tensor/device.ts";
import { compile } from "../../tensor/program.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { Expected } from "./checkpoint_case.ts";
import { LOGIT_ERROR } from "./continuation.ts";
import { differValues, type RecordedTensor } from "./tensors.ts";

/** The first activation that differs, or undefined; undefined too where none is recorded. */
export async function differActivations(
  device: Device,
  source: Source,
  { activations, prompts }: Expected,
  recorded: ReadonlyMap<string, RecordedTensor>,
): Promise<string | undefined> {
  if (activations === undefined) return undefined;
  const ids = prompts[activations.prompt]!.ids, shown = new Map<string, Tensor>();
  const checkpoint = await openCheckpoint(source), config = await readConfig(source);
  await plainLogits(checkpoint, config, ids, (name, tensor) => shown.set(name, tensor));
  for (const name of activations.names) {
    if (!shown.has(name)) return `the plain decoder shows no activation "${name}"`;
  }
  using program = compile(device, () => activations.names.map((name) => shown.get(name)!.node));
  program.run();
  for (const [index, name] of activations.names.entries()) {
    const difference = differValues(await program.read(index), recorded.get(name)?.values ?? [], LOGIT_ERROR);
    if (difference !== undefined) return `activation ${name}: ${difference}`;
  }
  return undefined;
}
