/**
 * Holds the GPU against the interpreter on random graphs. 500 of a fixed seed; with TINYLLM_LONG=1, 20,000 of a fresh one; of
 * TINYLLM_TEST_SEED where that is set. Ten graphs share a program, which saves submissions and read-backs and mixes their memory plans.
 */
import fc from "fast-check";
import { type Device, openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";
import { formatGraph } from "../tensor/format.ts";
import { compile } from "../tensor/program.ts";
import { buildGraph, type RandomGraph, type Recipe, recipes, runsOf } from "./random_graph.ts";

const BATCH = 10;
const LONG = Deno.env.get("TINYLLM_LONG") === "1";
const GRAPHS = Number(Deno.env.get("TINYLLM_GRAPHS") ?? (LONG ? 20_000 : 500));

/** How long a failing graph is made smaller before it is printed. */
const SHRINKING_MILLISECONDS = 20_000;

/** Runs graphs as one program, and says where a result is farther from the interpreter's than it may be. */
async function findDifference(device: Device, graphs: readonly RandomGraph[]): Promise<string | undefined> {
  const runs = graphs.map(runsOf);
  const roots = graphs.flatMap((graph) => graph.roots);
  using program = compile(device, () => roots);
  for (const number of [0, 1]) {
    const bindings = runs.map((run) => run[number]!.bindings);
    const inputs = Object.assign({}, ...bindings.map((binding) => binding.inputs));
    const sizes = Object.assign({}, ...bindings.map((binding) => binding.sizes));
    program.run({ inputs, sizes });
    let output = 0;
    for (const [i, graph] of graphs.entries()) {
      for (const [at, root] of graph.roots.entries()) {
        const got = await program.read(output++, sizes);
        const { values, error } = runs[i]![number]!.results[at]!;
        const wrong = values.findIndex((value, k) =>
          !(error[k] === Infinity || Math.abs(got[k]! - value) <= error[k]!)
        );
        if (wrong < 0 && got.length === values.length) continue;
        return `run ${number}, output ${at}, element ${wrong}: ${got[wrong]} on the GPU, ${values[wrong]} ± ${
          error[wrong]
        } ` +
          `in the interpreter, of\n${formatGraph(root)}`;
      }
    }
  }
  return undefined;
}

/** Devices that generate different code. The second has the paths of a discrete GPU, which run on any device. */
const VARIANTS: readonly (() => Promise<Device>)[] = [
  openDevice,
  async () => asGpu(await openDevice()),
  () => openDevice({ disable: ["f16", "subgroups"] }),
];

class Checker {
  #device: Device | undefined;

  constructor(readonly open: () => Promise<Device>) {}

  async difference(list: readonly Recipe[]): Promise<string | undefined> {
    this.#device ??= await this.open();
    // A graph of nothing but inputs computes nothing.
    const graphs = list.map((recipe, i) => buildGraph(recipe, `g${i}`)).filter((graph) => graph.roots.length > 0);
    if (graphs.length === 0) return undefined;
    try {
      const difference = await findDifference(this.#device, graphs);
      // A shader that does not compile is reported a turn later.
      await new Promise((resolve) => setTimeout(resolve, 1));
      this.#device.check();
      graphs.forEach((graph) => graph.state.forEach((_, storage) => storage.release()));
      return difference;
    } catch (cause) {
      this.close();
      return `${(cause as Error).message}\n${formatGraph(...graphs.flatMap((graph) => graph.roots))}`;
    }
  }

  close(): void {
    this.#device?.close();
    this.#device = undefined;
  }
}

/** The recipe of a seed: each graph has its own, so that one number repeats it. */
function draw(seed: number): Recipe {
  const nothing = fc.asyncProperty<[Recipe]>(recipes, async () => {});
  return fc.sample(nothing, { numRuns: 1, seed })[0]![0];
}

/** Shrinks the recipe of a seed and throws what the smallest one that still fails says. */
async function reportSmallest(checker: Checker, seed: number, first: string): Promise<never> {
  const end = performance.now() + SHRINKING_MILLISECONDS;
  const property = fc.asyncProperty(recipes, async (recipe) => {
    if (performance.now() > end) return;
    const difference = await checker.difference([recipe]);
    if (difference !== undefined) throw new Error(difference);
  });
  await fc.assert(property, { seed, path: "0", numRuns: 1 });
  throw new Error(`The graph of seed ${seed} failed once, and was right when it ran again: ${first}`);
}

Deno.test(`${GRAPHS} random graphs give on the GPU what the interpreter gives`, async () => {
  const seed = Number(Deno.env.get("TINYLLM_TEST_SEED") ?? (LONG ? Date.now() & 0x7fffffff : 20_240_601));
  const checkers = VARIANTS.map((open) => new Checker(open));
  try {
    for (let start = 0; start < GRAPHS; start += BATCH) {
      const checker = checkers[start / BATCH % checkers.length]!;
      const seeds = Array.from({ length: Math.min(BATCH, GRAPHS - start) }, (_, i) => seed + start + i);
      const batch = seeds.map(draw);
      const together = await checker.difference(batch);
      if (together === undefined) continue;
      for (const [i, recipe] of batch.entries()) {
        const alone = await checker.difference([recipe]);
        if (alone !== undefined) await reportSmallest(checker, seeds[i]!, alone);
      }
      throw new Error(
        `Graphs from ${start} of seed ${seed} are right one by one and wrong in one program: ${together}`,
      );
    }
  } finally {
    checkers.forEach((checker) => checker.close());
  }
});
