/**
 * Holds every kernel against its reference on random shapes, on a device with all features and on devices with one
 * switched off. Seeds are fixed; with TINYLLM_LONG=1 they are fresh, and shapes ten times as many.
 */
import { assertEquals } from "@std/assert";
import { seededRandom } from "../kernels/random.ts";
import type { CaseCall, KernelCase } from "../kernels/spec.ts";
import { type Device, type Feature, openDevice } from "../tensor/device.ts";
import { asGpu } from "../tensor/device_testing.ts";
import { formatShape } from "../tensor/dim.ts";
import type { HostArray } from "../tensor/dtype.ts";
import { runKernel } from "../tensor/run_kernel.ts";
import { KERNEL_CASES } from "./kernel_table.ts";

const LONG = Deno.env.get("TINYLLM_LONG") === "1";
const FIRST_SEED = LONG ? crypto.getRandomValues(new Uint32Array(1))[0]! : 1;

/** Shapes of each case by the features that the device lacks, and whether kernels take it for a CPU's. */
const DEVICES: readonly { readonly disable: readonly Feature[]; readonly shapes: number; readonly cpu?: false }[] = [
  { disable: [], shapes: 2 },
  { disable: [], shapes: 1, cpu: false },
  { disable: ["subgroups"], shapes: 1 },
  { disable: ["f16"], shapes: 1 },
  { disable: ["timestamps"], shapes: 1 },
  { disable: ["packedDot"], shapes: 1 },
];

/** Says which element is farther from the reference than the case allows. */
function findDifference(
  call: CaseCall<unknown>,
  { kernel, tolerance }: KernelCase<unknown>,
  got: readonly HostArray[],
): string | undefined {
  const outputs = kernel.infer(call.inputs, call.params);
  const reference = kernel.reference({ ...call, outputs }, call.inputs.map((input) => input.data));
  const allowed = tolerance(call, reference);
  assertEquals([got.length, allowed.length], [reference.length, reference.length], "outputs and their tolerances");
  for (const [index, values] of reference.entries()) {
    assertEquals(got[index]!.length, values.length, `elements of output ${index}`);
    for (const [i, value] of values.entries()) {
      const limit = allowed[index]!, most = typeof limit === "number" ? limit : limit[i]!;
      // Whatever is no number fails: every comparison with it is false.
      if (Math.abs(got[index]![i]! - value) <= most) continue;
      return `output ${index}, element ${i} is ${got[index]![i]}, not ${value} ± ${most}`;
    }
  }
  return undefined;
}

async function checkCase(device: Device, kernelCase: KernelCase<unknown>, seed: number): Promise<void> {
  const call = kernelCase.random(seededRandom(seed));
  const got = await runKernel(device, kernelCase.kernel, call);
  const difference = findDifference(call, kernelCase, got);
  if (difference === undefined) return;
  const shapes = call.inputs.map(({ dtype, shape }) => `${dtype} ${formatShape(shape)}`).join(", ");
  throw new Error(`Seed ${seed}: ${difference}; inputs ${shapes}, params ${JSON.stringify(call.params)}`);
}

Deno.test("names in the table of kernels are unique", () => {
  const names = KERNEL_CASES.map((kernelCase) => kernelCase.name);
  assertEquals(names.length, new Set(names).size);
});

/** Opens a device; one that is no CPU's has the paths of a discrete GPU, which run on any device. */
async function open(disable: readonly Feature[], cpu: false | undefined): Promise<Device> {
  const device = await openDevice({ disable });
  return cpu === undefined ? device : asGpu(device);
}

for (const { disable, shapes, cpu } of DEVICES) {
  const label = disable.length > 0 ? `no ${disable.join(", ")}` : cpu === false ? "paths of a GPU" : "all features";
  Deno.test({
    name: `kernels agree with their references: ${label}`,
    sanitizeResources: false,
    async fn(test) {
      const device = await open(disable, cpu);
      const count = LONG ? shapes * 10 : shapes;
      for (const [row, kernelCase] of KERNEL_CASES.entries()) {
        await test.step(kernelCase.name, async () => {
          for (let shape = 0; shape < count; shape++) {
            await checkCase(device, kernelCase, FIRST_SEED + 1000 * row + shape);
          }
        });
      }
      assertEquals(device.allocated, device.readback.bytes);
      device.close();
    },
  });
}
