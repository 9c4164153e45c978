/**
 * The error of a request that is at fault itself.
 *
 * @module
 */

/**
 * A request that this model cannot answer, whatever else it does: an option out of its range, a prompt that is empty or too long.
 * Other requests are not concerned. All other errors of an answer say that the model itself failed.
 */
export class RequestError extends RangeError {
  /** For telling errors apart across realms. */
  override name = "RequestError";
}
