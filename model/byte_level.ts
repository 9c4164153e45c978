/**
 * The alphabet of byte-level BPE: every byte as one printable character, from GPT-2's `bytes_to_unicode` (Radford et
 * al. 2019). Printable Latin-1 stands for itself; the other 68 bytes follow from U+0100 on, in their order.
 *
 * @module
 */

/** The character of each byte. */
export const byteToCharacter: readonly string[] = makeAlphabet();

/** The byte of each character. */
export const characterToByte: ReadonlyMap<string, number> = new Map(byteToCharacter.map((c, byte) => [c, byte]));

function makeAlphabet(): string[] {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(printable ? byte : next++);
  });
}
