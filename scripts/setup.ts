/**
 * `deno task setup`: makes sure that WebGPU has an adapter here, and installs a driver where it may.
 *
 * Standard output belongs to the task that depends on this one: everything here goes to standard error.
 * @module
 */

const PACKAGES = ["libvulkan1", "mesa-vulkan-drivers"];

const ADVICE = "No WebGPU adapter answers here. Install a Vulkan driver: on Debian and Ubuntu " +
  "`sudo apt-get install libvulkan1 mesa-vulkan-drivers` (a GPU's own driver is faster, and Mesa's runs on any CPU), on " +
  "Fedora `sudo dnf install vulkan-loader mesa-vulkan-drivers`. macOS brings Metal and Windows brings Direct3D 12: there, " +
  "update the system and its graphics driver. Then run the command again.";

/** Whether WebGPU finds an adapter in this process. */
async function adapterAnswers(): Promise<boolean> {
  // Without it the Wayland library that some drivers load complains on standard error, once for each backend.
  if (!Deno.env.has("XDG_RUNTIME_DIR") && Deno.build.os === "linux") Deno.env.set("XDG_RUNTIME_DIR", "/tmp");
  return (await navigator.gpu?.requestAdapter()) != null;
}

/** Whether one finds it in a new process: a loader that was looked for in vain is not looked for again. */
async function adapterAnswersAfresh(): Promise<boolean> {
  return await succeeds([Deno.execPath(), "run", "-A", "--no-config", import.meta.filename!, "--probe"]);
}

/** Runs a command with its output on standard error; whether it ended with 0. */
async function succeeds([program, ...args]: string[], env: Record<string, string> = {}): Promise<boolean> {
  try {
    const child = new Deno.Command(program!, { args, env, stdin: "null", stdout: "piped", stderr: "inherit" }).spawn();
    await child.stdout.pipeTo(Deno.stderr.writable, { preventClose: true });
    return (await child.status).success;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** What to put before `apt-get`: nothing for root, `sudo` where it asks for no password, `undefined` for neither. */
async function privilege(): Promise<string[] | undefined> {
  if (Deno.build.os !== "linux") return undefined;
  if (Deno.uid() === 0) return [];
  return await succeeds(["sh", "-c", "sudo -n true 2>/dev/null"]) ? ["sudo", "-n"] : undefined;
}

/** Installs Mesa's Vulkan driver with apt; whether that worked. */
async function installDriver(): Promise<boolean> {
  const prefix = await privilege();
  if (prefix === undefined || !await succeeds(["sh", "-c", "command -v apt-get >/dev/null"])) return false;
  console.error(`No WebGPU adapter answers here: installing ${PACKAGES.join(" and ")} with apt-get`);
  // `env` carries the variable through sudo. A stale list of another repository need not stop the installation.
  const aptGet = [...prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"];
  await succeeds([...aptGet, "update"]);
  return await succeeds([...aptGet, "install", "--no-install-recommends", ...PACKAGES]);
}

/** The whole of `setup`: whether an adapter answers in the end. */
async function setup(): Promise<boolean> {
  return await adapterAnswers() || await installDriver() && await adapterAnswersAfresh();
}

if (import.meta.main) {
  const probing = Deno.args.includes("--probe");
  const ready = probing ? await adapterAnswers() : await setup();
  if (!ready && !probing) console.error(ADVICE);
  Deno.exit(ready ? 0 : 1);
}
