/**
 * The programs of a runner's steps: each is compiled when it is first needed, and kept. Where memory is short they make room for one
 * another, and are compiled again when they are needed.
 *
 * @module
 */
import { Arenas } from "../tensor/arenas.ts";
import type { Device } from "../tensor/device.ts";
import { OutOfMemoryError } from "../tensor/device_errors.ts";
import type { Node } from "../tensor/node.ts";
import { compile, type Program } from "../tensor/program.ts";
import type { BatchBuilder } from "./batch.ts";
import type { ScheduledStep } from "./scheduled_step.ts";

/** A program and the arrays that its steps are made in. */
export interface Captured {
  readonly program: Program;
  readonly builder: BatchBuilder;
  /** Whether its dispatches may be joined. */
  readonly short: boolean;
  /** Steps that it has run. */
  steps: number;
}

/** What is captured. */
export interface Capture extends Pick<Captured, "builder" | "short"> {
  /** What the program computes. */
  readonly trace: () => Node[];
  /** Bytes of its results that are read at once. */
  readonly readBytes: number;
}

/** Programs by their labels. */
export class CapturedPrograms {
  readonly #device: Device;
  readonly #captured = new Map<string, Captured>();
  /** What programs have of a step is gone when another one runs: by then it has been read. */
  readonly #arenas: Arenas;
  /** The programs of steps that were encoded and not read yet. */
  readonly #unread = new Map<ScheduledStep, Captured>();

  /** None yet. */
  constructor(device: Device) {
    this.#device = device;
    this.#arenas = new Arenas(device, "steps");
  }

  /** Each program with its label. */
  [Symbol.iterator](): Iterator<[label: string, captured: Captured]> {
    return this.#captured.entries();
  }

  /**
   * The program of that label, which `capture` describes if it is not there. Others may be freed for it.
   *
   * @throws {OutOfMemoryError} if memory does not suffice for it beside those of steps under way.
   */
  get(label: string, capture: () => Capture): Captured {
    let captured = this.#captured.get(label);
    if (!captured) {
      const { trace, readBytes, builder, short } = capture();
      const options = { label, join: short, arenas: this.#arenas };
      const program = this.#makeRoom(() => compile(this.#device, trace, options), readBytes);
      captured = { program, builder, short, steps: 0 };
      this.#captured.set(label, captured);
    }
    return captured;
  }

  /** Keeps a step's program until it has been read. */
  hold(step: ScheduledStep, captured: Captured): void {
    this.#unread.set(step, captured);
  }

  /** A step has been read. */
  letGo(step: ScheduledStep): void {
    this.#unread.delete(step);
  }

  /** Nobody reads any step any more. */
  letGoOfAll(): void {
    this.#unread.clear();
  }

  /** Frees all of them. */
  dispose(): void {
    this.#captured.forEach(({ program }) => program.dispose());
    this.#captured.clear();
    this.#arenas.release();
  }

  /**
   * Makes a program; where memory does not suffice for it and for reading so many bytes of it, once more without those that no step under
   * way needs.
   */
  #makeRoom(compileProgram: () => Program, readBytes: number): Program {
    const { readback } = this.#device;
    const make = (): Program => {
      const program = compileProgram();
      try {
        this.#device.checkRoom(readback.growth(readBytes), "reading back");
      } catch (cause) {
        program.dispose();
        throw cause;
      }
      return program;
    };
    try {
      return make();
    } catch (cause) {
      if (!(cause instanceof OutOfMemoryError) || !this.#forgetIdle()) throw cause;
      return make();
    }
  }

  /** Frees the programs that no step under way needs, and what they shared where there is no other. Returns whether there were any. */
  #forgetIdle(): boolean {
    const needed = new Set(this.#unread.values()), idle = [...this.#captured].filter(([, each]) => !needed.has(each));
    for (const [label, { program }] of idle) {
      program.dispose();
      this.#captured.delete(label);
    }
    if (this.#captured.size === 0) this.#arenas.release();
    return idle.length > 0;
  }
}
