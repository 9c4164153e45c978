/**
 * A plugin for `deno lint` that holds the architecture: imports point down, and what is to run in a browser leaves the
 * `Deno` global alone. In the linter, so that an editor underlines a violation as it is typed.
 * @module
 */
import configuration from "../deno.json" with { type: "json" };
import { floorViolation, mustRunInBrowser, resolveSpecifier } from "./floors.ts";

const root = decodeURIComponent(new URL("../", import.meta.url).pathname).replace(/^\/(?=[A-Za-z]:)/, "");

/** `file` from the repository's root, with forward slashes. */
function fromRoot(file: string): string {
  const path = file.replaceAll("\\", "/");
  return path.startsWith(root) ? path.slice(root.length) : path;
}

/** The text of a string literal, or of a template without holes. */
function literalText(node: Deno.lint.Expression | Deno.lint.Node | null | undefined): string | undefined {
  if (node?.type === "Literal" && typeof node.value === "string") return node.value;
  return undefined;
}

function floorsRule(context: Deno.lint.RuleContext): Deno.lint.LintVisitor {
  const importer = fromRoot(context.filename);
  const check = (node: Deno.lint.Node, source: Deno.lint.Node | null | undefined): void => {
    const specifier = literalText(source);
    if (specifier === undefined) return;
    const imported = resolveSpecifier(importer, specifier, configuration.exports, configuration.name);
    const message = imported === undefined ? undefined : floorViolation(importer, imported);
    if (message !== undefined) context.report({ node, message });
  };
  return {
    ImportDeclaration: (node) => check(node, node.source),
    ExportAllDeclaration: (node) => check(node, node.source),
    ExportNamedDeclaration: (node) => check(node, node.source),
    ImportExpression: (node) => check(node, node.source),
    // A Worker's file and an asset are named by `new URL("./x.ts", import.meta.url)`.
    NewExpression(node) {
      const isUrl = node.callee.type === "Identifier" && node.callee.name === "URL";
      if (
        isUrl && node.arguments[1]?.type === "MemberExpression" &&
        /\.[cm]?[jt]s$/.test(literalText(node.arguments[0]) ?? "")
      ) {
        check(node, node.arguments[0]);
      }
    },
  };
}

function portableRule(context: Deno.lint.RuleContext): Deno.lint.LintVisitor {
  const file = fromRoot(context.filename);
  if (!mustRunInBrowser(file)) return {};
  const report = (node: Deno.lint.Node): void => {
    const message =
      `${file} uses the Deno global, and is to run in a browser: take a Source, or move it to model/deno/`;
    context.report({ node, message });
  };
  return {
    Identifier(node) {
      if (node.name === "Deno" && !isName(node)) report(node);
    },
    // What `globalThis.Deno` holds as an identifier is the name of a property, and as a string no identifier at all.
    MemberExpression(node) {
      const { object, property } = node;
      if (object.type !== "Identifier" || object.name !== "globalThis") return;
      if ((property.type === "Identifier" ? property.name : literalText(property)) === "Deno") report(node);
    },
  };
}

/** Whether an identifier only names a property or an export, as in `runtime.Deno` and `{ Deno: 1 }`. */
function isName(node: Deno.lint.Identifier): boolean {
  const { parent } = node;
  if (parent.type === "MemberExpression") return !parent.computed && parent.property === node;
  if (parent.type === "Property") return !parent.computed && parent.key === node;
  return parent.type === "TSQualifiedName" && parent.right === node;
}

/** The plugin that `deno.json` names. */
const plugin: Deno.lint.Plugin = {
  name: "tinyllm",
  rules: {
    floors: { create: floorsRule },
    portable: { create: portableRule },
  },
};
export default plugin;
