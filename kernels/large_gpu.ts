/**
 * What forms are chosen by where work is dealt to the processors of a large GPU.
 *
 * @module
 */

/** Processors of an H100: with fewer workgroups some have nothing to do. */
export const processors = 132;
