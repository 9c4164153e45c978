/**
 * The grid of kernels that give each row of a batch workgroups of its own. A dispatch takes at most 65,535 workgroups a
 * dimension, so rows run over y and then over z.
 *
 * @module
 */

const GREATEST = 65535;

/** Workgroups for `rows` rows of `perRow` workgroups each: the latter along x. */
export function rowGrid(perRow: number, rows: number): readonly [number, number, number] {
  const y = Math.min(rows, GREATEST);
  return [perRow, y, y === 0 ? 0 : Math.ceil(rows / y)];
}

/** WGSL that declares `row` and leaves where there is none: the same decision for a whole workgroup. */
export function rowWgsl(rows: string): string {
  return `let row = workgroup.z * groups.y + workgroup.y;
  if (row >= ${rows}) { return; }`;
}
