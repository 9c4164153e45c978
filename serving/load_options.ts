/**
 * Options of loading, refused before anything is downloaded.
 *
 * @module
 */
import type { LoadOptions } from "./model.ts";

const PREFERENCES: readonly unknown[] = ["high-performance", "low-power", "fallback"];

/**
 * Refuses what cannot be meant; the context's length is checked once the model is known.
 *
 * @throws {Error} naming the option, its value and what would be right; the signal's reason if it is aborted already.
 */
export function checkLoadOptions(options: LoadOptions): void {
  if (typeof options !== "object" || options === null) {
    throw new TypeError(
      `Cannot load the model: options is ${Deno.inspect(options)}, give an object such as { precision: "exact" }`,
    );
  }
  const { precision = "exact", kvDtype = "f16", memoryLimit, device, signal } = options;
  signal?.throwIfAborted();
  if (precision !== "exact" && precision !== "fast") {
    throw new Error(`Cannot load the model: precision is "${precision}", give "exact" or "fast"`);
  }
  if (kvDtype !== "f16" && kvDtype !== "f32") {
    throw new Error(`Cannot load the model: kvDtype is "${kvDtype}", give "f16" or "f32"`);
  }
  if (memoryLimit !== undefined && !(memoryLimit > 0)) {
    throw new RangeError(`Cannot load the model: memoryLimit is ${memoryLimit}, give a number of bytes above 0`);
  }
  if (device !== undefined && !PREFERENCES.includes(device) && !isDevice(device)) {
    throw new TypeError(
      `Cannot load the model: device is ${
        Deno.inspect(device)
      }, give "high-performance", "low-power", "fallback" or a ` +
        "GPUDevice",
    );
  }
}

/** By what it can do, not by its class: a caller may wrap the device to watch it. */
function isDevice(value: unknown): boolean {
  return typeof (value as GPUDevice | null)?.createBuffer === "function";
}
