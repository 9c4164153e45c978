/**
 * Devices for tests: one of its own for each test, and the same one taken for another.
 *
 * @module
 */
import { Device, type DeviceOptions, openDevice } from "./device.ts";
import type { Caps } from "./kernel.ts";

/** Declares a test that gets a device, closed when it ends. */
export type DeviceTest = (
  name: string,
  fn: (device: Device) => Promise<void> | void,
  options?: DeviceOptions,
) => void;

/** Makes what declares the tests of a file; `what` goes before each name. A device has waits that outlast a test, for its loss among others. */
export function deviceTests(what: string): DeviceTest {
  return (name, fn, options = {}) =>
    Deno.test({
      name: `${what}: ${name}`,
      sanitizeResources: false,
      sanitizeOps: false,
      async fn() {
        const device = await openDevice(options);
        try {
          await fn(device);
        } finally {
          device.close();
        }
      },
    });
}

/** The same device with other capabilities: generated code and kernels take the forms that they have there. */
export function withCaps({ gpu, info, caps, memoryLimit }: Device, change: Partial<Caps>): Device {
  return new Device(gpu, info, { ...caps, ...change }, memoryLimit, true);
}

/** The same device taken for a GPU: with those forms and sizes, which run on any device. 64-bit integers are used on CPUs alone. */
export function asGpu(device: Device, change: Partial<Caps> = {}): Device {
  return withCaps(device, { cpu: false, int64: false, ...change });
}
