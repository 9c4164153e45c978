/**
 * A turn of the event loop: what lets timers, signals and other requests through between two steps. A message to oneself
 * takes microseconds, where a timer takes a millisecond at least.
 *
 * @module
 */

/** Waits for turns of the event loop. Keeps the process alive until it is closed. */
export class Turns {
  readonly #channel = new MessageChannel();
  #resolve: () => void = () => {};

  /** Opens the channel. */
  constructor() {
    this.#channel.port1.onmessage = (): void => this.#resolve();
  }

  /** Resolves in the next turn. One caller at a time. */
  next(): Promise<void> {
    return new Promise((resolve) => {
      this.#resolve = resolve;
      this.#channel.port2.postMessage(null);
    });
  }

  /** Lets go of the event loop. */
  close(): void {
    this.#channel.port1.close();
    this.#channel.port2.close();
  }
}
