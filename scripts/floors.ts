/**
 * The floors of the architecture: which file stands on which, and whether an import points down.
 *
 * Kept apart from the lint plugin so that the rule is a pure function of two paths.
 * @module
 */

/** The floors from the ground up: a file imports from its own floor or a lower one. */
export const floors: readonly (readonly string[])[] = [
  ["tensor/"],
  ["kernels/"],
  ["model/"],
  ["serving/"],
  ["agent/"],
  // deno.json has the version, which the command line prints.
  ["mod.ts", "cli.ts", "cli/", "deno.json"],
];

/** Stands beside the floors: may import anything, and no floor imports it. */
export const beside: readonly string[] = ["bench/", "tests/", "scripts/", "third_party/"];

/** Runs in a browser as it is, so `Deno` does not exist there. */
const portable: readonly string[] = ["tensor/", "kernels/", "model/"];

/** A file's floor: its index in {@linkcode floors}, `"beside"`, or `undefined` where it stands nowhere. */
export function floorOf(file: string): number | "beside" | undefined {
  const within = (place: string): boolean => place.endsWith("/") ? file.startsWith(place) : file === place;
  if (beside.some(within)) return "beside";
  const index = floors.findIndex((places) => places.some(within));
  return index < 0 ? undefined : index;
}

/** What is wrong with `importer` importing `imported` (paths from the repository's root), if anything. */
export function floorViolation(importer: string, imported: string): string | undefined {
  const from = floorOf(importer);
  const to = floorOf(imported);
  if (from === "beside") return undefined;
  for (const [file, floor] of [[importer, from], [imported, to]] as const) {
    if (floor === undefined) {
      return `${importer} imports ${imported}: ${file} is on no floor; name it in scripts/floors.ts`;
    }
  }
  if (to === "beside") return `${importer} imports ${imported}: nothing on a floor imports ${nameOf(imported)}`;
  if (to! > from!) return `${importer} imports ${imported}: imports point down, and ${nameOf(imported)} is above it`;
  return undefined;
}

/** Whether `file` must do without the `Deno` global. */
export function mustRunInBrowser(file: string): boolean {
  return portable.some((place) => file.startsWith(place)) && !file.startsWith("model/deno/") &&
    !/_(test|testing|bench)\.ts$/.test(file);
}

/** The file that `specifier` means in `importer`, from the repository's root; `undefined` for another package. */
export function resolveSpecifier(
  importer: string,
  specifier: string,
  exports: Readonly<Record<string, string>>,
  packageName: string,
): string | undefined {
  if (specifier === packageName || specifier.startsWith(`${packageName}/`)) {
    const entry = exports[`.${specifier.slice(packageName.length)}`];
    return entry?.replace(/^\.\//, "");
  }
  if (!/^\.{0,2}\//.test(specifier)) return undefined;
  return new URL(specifier, `file:///${importer}`).pathname.slice(1);
}

function nameOf(file: string): string {
  return file.includes("/") ? `${file.split("/")[0]}/` : file;
}
