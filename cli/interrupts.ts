/**
 * Ctrl-C: once stops what is being done, twice ends the program.
 *
 * @module
 */
import type { Terminal } from "./terminal.ts";

/** Counts Ctrl-C and passes it on. */
export class Interrupts implements Disposable {
  readonly #listener: Disposable;
  readonly #leave: () => void;
  #controller: AbortController | undefined;
  #presses = 0;
  #leaving = false;

  /** Called at a first Ctrl-C while nothing is being done. */
  onIdle: (() => void) | undefined;

  /** @param leave ends the program. */
  constructor(terminal: Terminal, leave: () => void) {
    this.#leave = leave;
    this.#listener = terminal.onInterrupt(() => this.press());
  }

  /** Whether Ctrl-C has been pressed since the last {@link reset}. */
  get pressed(): boolean {
    return this.#presses > 0;
  }

  /** Whether the program is ending, because of a second one. */
  get leaving(): boolean {
    return this.#leaving;
  }

  /** A signal that the next Ctrl-C aborts. */
  begin(): AbortSignal {
    this.#controller = new AbortController();
    return this.#controller.signal;
  }

  /** What was begun has ended. */
  end(): void {
    this.#controller = undefined;
  }

  /** The user goes on: the next Ctrl-C is a first one again. */
  reset(): void {
    this.#presses = 0;
  }

  /** One Ctrl-C; a line editor calls it too, since raw terminals deliver a key in place of a signal. */
  press(): void {
    this.#presses++;
    if (this.#presses === 1 && this.#controller) return this.#controller.abort();
    if (this.#presses === 1 && this.onIdle) return this.onIdle();
    this.#leaving = true;
    this.#leave();
  }

  [Symbol.dispose](): void {
    this.#listener[Symbol.dispose]();
  }
}
