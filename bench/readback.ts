/**
 * Times reading one token id back, after a dispatch that writes it: what the host waits for beyond the GPU's work. Usage:
 * `deno run -A bench/readback.ts [--reads=200] [--out=FILE]`
 *
 * @module
 */
import { assign, buffer, compile, constant, type Device, input, map, openDevice } from "../tensor/mod.ts";
import { BenchArguments } from "./arguments.ts";
import { type Result, Results } from "./result.ts";
import { summarise, type Summary } from "./statistics.ts";
import { formatNumber as show } from "./table.ts";

/** What was measured. */
interface ReadbackResult extends Result {
  /** Milliseconds from the submission of the dispatch to the token on the host. */
  readonly withDispatch: Summary;
  /** Milliseconds of a read alone, while the device has nothing to do. */
  readonly alone: Summary;
  /** Whether reads are taken without awaiting. */
  readonly fast: boolean;
}

async function timeReads(device: Device, reads: number): Promise<Omit<ReadbackResult, keyof Result>> {
  const slot = device.storage("i32", [1], "a drawn token");
  using program = compile(
    device,
    () => assign(buffer(slot), map("add", input("token", "i32", [1]), constant(1, "i32"))),
  );
  const withDispatch: number[] = [], alone: number[] = [];
  for (let i = -reads >> 2; i < reads; i++) {
    const start = performance.now();
    program.run({ inputs: { token: [i] } });
    const [token] = await program.read(0), middle = performance.now();
    await program.read(0);
    const end = performance.now();
    if (token !== i + 1) throw new Error(`Read ${token}, not ${i + 1}`);
    if (i < 0) continue; // to warm up
    withDispatch.push(middle - start);
    alone.push(end - middle);
  }
  slot.release();
  return { withDispatch: summarise(withDispatch), alone: summarise(alone), fast: device.readback.fast === true };
}

if (import.meta.main) {
  const flags = new BenchArguments(Deno.args), reads = flags.number("reads", 200), out = flags.text("out");
  flags.check([]);
  const device = await openDevice();
  const results = new Results<ReadbackResult>("readback", device.info.description, Deno.args, out);
  const { withDispatch, alone } = results.add(await timeReads(device, reads));
  console.error(`a token read back: ${show(withDispatch.p50)} ms with its dispatch, ${show(alone.p50)} ms alone`);
  device.close();
}
