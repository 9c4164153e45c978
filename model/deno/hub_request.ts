/**
 * Requests to the hub: which failures are worth another try and after how long, and what the others mean to a person.
 *
 * @module
 */
import type { HubEnvironment } from "./hub_cache.ts";

/** A download that failed for good. */
export class HubError extends Error {
  /**
   * Words a failure.
   *
   * @param status the server's answer, where there was one.
   */
  constructor(message: string, readonly status?: number, options?: ErrorOptions) {
    super(message, options);
    this.name = "HubError";
  }
}

/** A failure that may pass: a dropped connection, a busy server. */
export class TransientError extends Error {
  /**
   * Words a failure.
   *
   * @param retryAfterMs how long the server asks us to wait.
   */
  constructor(message: string, readonly retryAfterMs?: number, options?: ErrorOptions) {
    super(message, options);
    this.name = "TransientError";
  }
}

/** No connection came about: no such host, nobody listens there, or there is no network. */
export class UnreachableError extends TransientError {}

/** How often and how patiently failed requests are repeated. */
export interface RetryPolicy {
  /** Tries in a row without any progress before giving up. */
  readonly attempts: number;
  /** The wait after the first failure; it doubles with each further one. */
  readonly baseDelayMs: number;
  /** No wait is longer, whatever the server asks for. */
  readonly maxDelayMs: number;
  /** A connection that brings nothing for so long counts as dropped. */
  readonly stallMs: number;
}

/** Half a minute of tries in all. */
export const DEFAULT_RETRIES: RetryPolicy = { attempts: 6, baseDelayMs: 500, maxDelayMs: 60_000, stallMs: 60_000 };

/** Tries where no connection ever came about: patience is for a hub that is known to be there. */
const UNREACHED_ATTEMPTS = 2;

/** What every request of a download needs to know. */
export interface HubContext {
  readonly environment: HubEnvironment;
  /** The model, for messages: `org/name`. */
  readonly id: string;
  readonly revision: string;
  readonly retries: RetryPolicy;
  /** Whether the hub has answered before. */
  readonly reached?: boolean;
  readonly signal?: AbortSignal;
}

/**
 * Repeats `attempt` while it fails with a {@link TransientError}.
 *
 * @param progressed tells whether the last attempt got anywhere; then the count of failures starts anew.
 * @throws {HubError} with the last failure's message when the tries are used up.
 */
export async function withRetries<T>(
  context: HubContext,
  attempt: () => Promise<T>,
  progressed: () => boolean = () => false,
): Promise<T> {
  const { attempts, baseDelayMs, maxDelayMs } = context.retries;
  let reached = context.reached ?? false;
  for (let failures = 1;; failures++) {
    context.signal?.throwIfAborted();
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof TransientError)) throw error;
      if (progressed()) failures = 1;
      reached ||= !(error instanceof UnreachableError);
      if (failures >= (reached ? attempts : Math.min(attempts, UNREACHED_ATTEMPTS))) {
        const message = `${error.message} (tried ${failures} times)${reached ? "" : OFFLINE_REMEDY}`;
        throw new HubError(message, undefined, { cause: error });
      }
      // A little jitter, so that parallel files do not come back in step.
      const backOff = baseDelayMs * 2 ** (failures - 1) * (1 + Math.random() / 4);
      await wait(Math.min(error.retryAfterMs ?? backOff, maxDelayMs), context.signal);
    }
  }
}

const OFFLINE_REMEDY = ". HF_HUB_OFFLINE=1 uses what is in the cache";

function wait(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** A response whose body can be read, and the watch that ends it when nothing comes. */
export interface WatchedResponse extends Disposable {
  readonly response: Response;
  /** Tells the watch that something came. */
  alive(): void;
}

/**
 * One request, without repetition. Dispose of the result once its body is read or given up.
 *
 * @throws {TransientError} where another try may help, {@link HubError} where none will.
 */
export async function request(context: HubContext, url: string, init: RequestInit = {}): Promise<WatchedResponse> {
  const { environment, retries, signal } = context;
  const stalled = new AbortController();
  const stop = () => stalled.abort(new Error(`nothing came for ${retries.stallMs / 1000} s`));
  let timer = setTimeout(stop, retries.stallMs);
  const headers = new Headers(init.headers);
  headers.set("user-agent", "tinyllm");
  // fetch drops this header on a redirect to another origin: the token never reaches the storage behind the hub.
  if (environment.token) headers.set("authorization", `Bearer ${environment.token}`);
  const signals = signal ? [stalled.signal, signal] : [stalled.signal];
  try {
    const response = await fetch(url, { ...init, headers, signal: AbortSignal.any(signals) });
    if (!response.ok && !(init.redirect === "manual" && response.status < 400)) {
      await response.body?.cancel();
      throw statusError(context, url, response);
    }
    return {
      response,
      alive() {
        clearTimeout(timer);
        timer = setTimeout(stop, retries.stallMs);
      },
      [Symbol.dispose]() {
        clearTimeout(timer);
        stalled.abort();
      },
    };
  } catch (error) {
    clearTimeout(timer);
    throw asUnreached(context, url, error) ?? asTransient(context, url, error);
  }
}

/** What became of a request that made no connection; undefined for one that did. */
function asUnreached({ id }: HubContext, url: string, error: unknown): Error | undefined {
  if (!(error instanceof Error)) return undefined;
  const what = `Cannot download "${id}" from ${url}`;
  // The runtime tells a failed connection from a dropped one in the text of the cause alone.
  const connect = error.cause instanceof Error && error.cause.message.match(/client error \(Connect\): (.*)/s)?.[1];
  if (connect) return new UnreachableError(`${what}: ${connect}`, undefined, { cause: error });
  // Refused before anything was sent: a blocked port, no permission. Another try ends the same way.
  const refused = error instanceof Deno.errors.NotCapable ||
    /^(Fetch failed: Requests to port|Invalid URL|Url scheme)/.test(error.message);
  return refused ? new HubError(`${what}: ${error.message}${OFFLINE_REMEDY}`, undefined, { cause: error }) : undefined;
}

/** What a failed transfer comes to: aborts and verdicts stay as they are, all else is a dropped connection. */
export function asTransient(context: HubContext, url: string, error: unknown): unknown {
  if (context.signal?.aborted) return context.signal.reason;
  if (error instanceof HubError || error instanceof TransientError) return error;
  return new TransientError(`Cannot download ${url}: ${(error as Error).message}`, undefined, { cause: error });
}

function statusError(context: HubContext, url: string, response: Response): Error {
  const { id, revision, environment } = context;
  const { status } = response;
  const what = `Cannot download "${id}"`;
  if (status === 401 || status === 403) {
    const remedy = environment.token
      ? "the token in HF_TOKEN may not read it: accept its licence on its page, or check the token"
      : "it is gated, private, or does not exist: accept its licence on its page and set HF_TOKEN to your access token";
    return new HubError(`${what}: the hub answered ${status}; ${remedy}`, status);
  }
  if (status === 404) {
    const missing = response.headers.get("x-error-code") === "RevisionNotFound"
      ? `it has no revision "${revision}"`
      : `there is no such model, revision "${revision}" or file at ${url}`;
    return new HubError(`${what}: ${missing}`, status);
  }
  if (status === 429 || status === 408 || status >= 500) {
    return new TransientError(`${what}: the hub answered ${status} at ${url}`, retryAfter(response));
  }
  return new HubError(`${what}: the hub answered ${status} at ${url}`, status);
}

/** Retry-After in milliseconds: seconds, or a date. */
function retryAfter(response: Response): number | undefined {
  const value = response.headers.get("retry-after");
  if (value === null) return undefined;
  const milliseconds = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(milliseconds) ? undefined : Math.max(0, milliseconds);
}
