// Completion scripts, in the shells that are here: commands at first, then packages where a command takes them.
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { mainPath, millrace } from "../support/millrace.js";
import { writeTinyLlamaGguf } from "../support/tiny-llama.js";

const has = (shell: string) => spawnSync(shell, ["-c", "true"]).status === 0;
const home = mkdtempSync(join(tmpdir(), "millrace-completion-"));
const env = { ...process.env, MILLRACE_HOME: home, PATH: `${join(home, "bin")}:${process.env.PATH}` };
afterAll(() => rmSync(home, { recursive: true }));

beforeAll(async () => {
  mkdirSync(join(home, "bin"));
  writeFileSync(join(home, "bin", "millrace"), `#!/bin/sh\nexec "${process.execPath}" "${mainPath}" "$@"\n`, {
    mode: 0o755,
  });
  writeTinyLlamaGguf(join(home, "tiny.gguf"));
  writeFileSync(join(home, "Modelfile"), `FROM ${join(home, "tiny.gguf")}\n`);
  const made = await millrace(["create", "parrot", "-f", join(home, "Modelfile")], { env: { MILLRACE_HOME: home } });
  expect(made.code, made.stderr).toBe(0);
});

const script = (shell: string) => execFileSync("millrace", ["completion", shell], { env, encoding: "utf8" });

describe.skipIf(!has("bash"))("bash", () => {
  const complete = (...words: string[]) => {
    const quoted = words.map((word) => `'${word}'`).join(" ");
    const ask = `${script("bash")}\nCOMP_WORDS=(${quoted})\nCOMP_CWORD=${words.length - 1}\n_millrace\nprintf '%s\\n' "\${COMPREPLY[@]}"`;
    return execFileSync("bash", ["-c", ask], { env, cwd: join(home, "bin"), encoding: "utf8" })
      .trim()
      .split("\n");
  };
  test("completes commands", () => {
    expect(complete("millrace", "p")).toEqual(["pull", "plan", "push", "ps"]);
  });
  test("completes packages where a command takes one", () => {
    for (const command of ["run", "show", "plan", "rm"])
      expect(complete("millrace", command, "par")).toEqual(["parrot:latest"]);
    expect(complete("millrace", "key", "par")).toEqual([""]);
  });
});

describe.skipIf(!has("fish"))("fish", () => {
  test("completes commands and packages", () => {
    const ask = (line: string) =>
      execFileSync("fish", ["-c", `${script("fish")}\ncomplete -C '${line}'`], { env, encoding: "utf8" });
    expect(ask("millrace pu")).toMatch(/^pull$/m);
    expect(ask("millrace run par")).toMatch(/^parrot:latest$/m);
  });
});

test.skipIf(!has("zsh"))("zsh reads the script", () => {
  const check = `autoload -U compinit && compinit -u -d ${join(home, "zcompdump")}\n${script("zsh")}\nprint $_comps[millrace]`;
  expect(execFileSync("zsh", ["-fc", check], { env, encoding: "utf8" }).trim()).toBe("_millrace");
});

test("another shell is a wrong command line", async () => {
  expect((await millrace(["completion", "tcsh"])).code).toBe(2);
});
