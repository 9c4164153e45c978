/** The types of `@std/cli` that this project uses, stated by hand: the npm build has none. */

/** What `parseArgs` is told; see https://jsr.io/@std/cli/doc/~/ParseOptions. */
export interface ParseOptions<
  Booleans extends string = never,
  Strings extends string = never,
  Collected extends string = never,
> {
  /** Put what follows a bare `--` into `"--"`, not into `_`. */
  "--"?: boolean;
  /** Other names of a flag. */
  alias?: Readonly<Record<string, string | readonly string[]>>;
  /** Flags without a value. */
  boolean?: readonly Booleans[];
  /** Values of flags that were not given. */
  default?: Readonly<Record<string, unknown>>;
  /** Treat all after the first positional argument as positional. */
  stopEarly?: boolean;
  /** Flags whose value stays a string, `"_"` for the positional arguments. */
  string?: readonly Strings[];
  /** Flags that may be repeated. */
  collect?: readonly Collected[];
  /** Flags that `--no-…` turns off. */
  negatable?: readonly string[];
  /** Called for each flag not named above; `false` leaves it out. */
  unknown?: (argument: string, key?: string, value?: unknown) => unknown;
}

/** What `parseArgs` returns. */
export type Args<Booleans extends string, Strings extends string, Collected extends string> =
  & { [name: string]: unknown; _: "_" extends Strings ? string[] : (string | number)[] }
  & { "--"?: string[] }
  & { [name in Booleans]: boolean }
  & { [name in Exclude<Strings, Collected | "_">]?: string }
  & { [name in Extract<Strings, Collected>]: string[] };

export function parseArgs<
  const Booleans extends string = never,
  const Strings extends string = never,
  const Collected extends string = never,
>(
  args: readonly string[],
  options?: ParseOptions<Booleans, Strings, Collected>,
): Args<Booleans, Strings, Collected>;
