/**
 * Fails where the package is larger than JSR takes, with a margin: the limit is 20 MB, and this one 19 MB.
 *
 * The files and sizes are those that `deno publish --dry-run` lists, so that its own rules of exclusion count.
 * @module
 */

const LIMIT_BYTES = 19e6;
const UNITS: Readonly<Record<string, number>> = { B: 1, KB: 1024, MB: 1024 ** 2, GB: 1024 ** 3 };

/** The bytes of all files in a listing of `deno publish --dry-run`: lines that end in a size, `mod.ts (1.2KB)`. */
export function listedBytes(listing: string): number {
  let bytes = 0;
  for (const [, amount, unit] of listing.matchAll(/^\s+file:\/\/\S+ \(([\d.]+)(B|KB|MB|GB)\)$/gm)) {
    bytes += Number(amount) * UNITS[unit!]!;
  }
  return bytes;
}

if (import.meta.main) {
  const { stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["publish", "--dry-run", "--allow-dirty", "--no-check"],
    env: { NO_COLOR: "1" },
    stdout: "null",
    stderr: "piped",
  }).output();
  const bytes = listedBytes(new TextDecoder().decode(stderr));
  const megabytes = (bytes / 1e6).toFixed(1);
  if (bytes === 0) {
    console.error("Cannot measure the package: `deno publish --dry-run` listed no file");
    Deno.exit(1);
  }
  if (bytes > LIMIT_BYTES) {
    console.error(`The package has ${megabytes} MB, more than ${LIMIT_BYTES / 1e6} MB: exclude files in deno.json`);
    Deno.exit(1);
  }
  console.error(`The package has ${megabytes} MB of ${LIMIT_BYTES / 1e6} MB`);
}
