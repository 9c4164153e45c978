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

/** What went wrong with a request, as an error of its own: the same where it is one already. */
export function asRequestError(cause: unknown): RequestError {
  if (cause instanceof RequestError) return cause;
  return new RequestError(cause instanceof Error ? cause.message : String(cause), { cause });
}
