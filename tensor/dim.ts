/**
 * Sizes. A dimension is a number, or a symbol with an upper bound whose value is given at each run, so that a program is
 * captured once and replayed while a sequence grows. A symbol may only lead a shape: strides then stay constants, and
 * every buffer's greatest size is known when memory is planned.
 *
 * @module
 */

/** A size known only when the program runs: at least 0, at most `max`. Two symbols of one name are the same. */
export class Sym {
  /**
   * Makes a symbol.
   *
   * @param name The key under which a run gives the value. @param max The greatest value allowed.
   */
  constructor(readonly name: string, readonly max: number) {
    if (!/^[a-z][a-zA-Z0-9]*$/.test(name)) {
      throw new Error(`Cannot make a symbol named "${name}": use letters and digits`);
    }
    if (!Number.isInteger(max) || max < 1) {
      throw new Error(`Cannot make symbol "${name}": bound ${max} is not positive`);
    }
  }

  /** `tokens<=512`: how shapes print. */
  toString(): string {
    return `${this.name}<=${this.max}`;
  }
}

/** One size of a shape. */
export type Dim = number | Sym;

/** Sizes, outermost first. Only the first may be a symbol. */
export type Shape = readonly Dim[];

/** Values of symbols by name, as a run gives them. */
export type Sizes = Readonly<Record<string, number>>;

/** The greatest value a size can take. */
export function maxOf(dim: Dim): number {
  return typeof dim === "number" ? dim : dim.max;
}

/** Whether two sizes are the same number or the same symbol. */
export function sameDim(a: Dim, b: Dim): boolean {
  return typeof a === "number" || typeof b === "number" ? a === b : a.name === b.name && a.max === b.max;
}

/** Whether two shapes are equal, symbols included. */
export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, axis) => sameDim(dim, b[axis]!));
}

/** The value of a size in a run. Throws where the run leaves the symbol out or exceeds its bound. */
export function resolveDim(dim: Dim, sizes: Sizes): number {
  if (typeof dim === "number") return dim;
  const value = sizes[dim.name];
  if (value === undefined) throw new Error(`Cannot run: no value for size "${dim.name}"`);
  if (!Number.isInteger(value) || value < 0 || value > dim.max) {
    throw new Error(`Cannot run: size "${dim.name}" is ${value}, outside 0 to ${dim.max}`);
  }
  return value;
}

/** Number of elements, symbols at their bound unless `sizes` gives values. */
export function elementCount(shape: Shape, sizes?: Sizes): number {
  return shape.reduce<number>((count, dim) => count * (sizes ? resolveDim(dim, sizes) : maxOf(dim)), 1);
}

/** `[tokens<=512, 64]`. */
export function formatShape(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}

/** Refuses sizes that are no whole numbers, and symbols anywhere but in front. */
export function checkShape(shape: Shape, what: string): void {
  shape.forEach((dim, axis) => {
    if (typeof dim !== "number") {
      if (axis > 0) {
        throw new Error(`Cannot ${what}: symbol "${dim.name}" of ${formatShape(shape)} is not the leading size`);
      }
    } else if (!Number.isInteger(dim) || dim < 0) {
      throw new Error(`Cannot ${what}: ${formatShape(shape)} has size ${dim}, sizes are whole numbers from 0`);
    }
  });
}
