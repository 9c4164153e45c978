/**
 * What can happen to a device at any time: errors that callers tell apart by their class.
 *
 * @module
 */

/** Memory ran out: the limit would have been exceeded, or the driver refused. */
export class OutOfMemoryError extends Error {
  /** For telling errors apart across realms. */
  override name = "OutOfMemoryError";
}

/** The device is gone: driver reset, unplugged, destroyed. */
export class DeviceLostError extends Error {
  /** For telling errors apart across realms. */
  override name = "DeviceLostError";
}
