// What MODEL may be.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { catalogue, defaultModel, findEntry } from "../../src/store/catalogue.js";
import { parseModelName } from "../../src/store/names.js";

test("a catalogue name and its aliases mean the same model", () => {
  for (const name of ["smollm2", "SmolLM2", "smollm2:135m", "default"]) {
    expect(parseModelName(name)).toMatchObject({ kind: "catalogue", name: "smollm2" });
  }
  expect(findEntry(defaultModel)).toBeDefined();
});

test("no two catalogue entries share a name, and every file is pinned", () => {
  const names = catalogue.flatMap((entry) => [entry.name, ...entry.aliases]);
  expect(new Set(names).size).toBe(names.length);
  for (const file of catalogue.flatMap((entry) => entry.files)) {
    expect(file.sha256).toMatch(/^[0-9a-f]{64}$/);
    expect(file.sources.length).toBeGreaterThan(0);
  }
});

test("a path that exists is that path", () => {
  const folder = mkdtempSync(join(tmpdir(), "millrace-names-"));
  writeFileSync(join(folder, "tiny.gguf"), "");
  expect(parseModelName(join(folder, "tiny.gguf"))).toMatchObject({ kind: "path", label: "tiny" });
  expect(parseModelName(folder)).toMatchObject({ kind: "path", path: folder });
  rmSync(folder, { recursive: true });
});

test("hub names carry a repository, a revision and a file", () => {
  expect(parseModelName("hf:a/b")).toMatchObject({ hub: { repo: "a/b", revision: "main" } });
  expect(parseModelName("hf:a/b@v1.0/sub/x.gguf")).toMatchObject({
    hub: { repo: "a/b", revision: "v1.0", file: "sub/x.gguf" },
  });
});

test.each(["hf:", "hf:a", "hf:a/../b", "hf:a/b/../../c", "hf:a//b", "hf:/a/b"])("%s is refused", (name) => {
  expect(() => parseModelName(name)).toThrow(/is no model on the hub/);
});

test("what is nothing says what a model may be", () => {
  expect(() => parseModelName("no-such-model")).toThrow(
    /no model "no-such-model" in the catalogue.*smollm2.*hf:owner\/repo/,
  );
  expect(() => parseModelName("./no/such.gguf")).toThrow(/there is no file or folder .\/no\/such.gguf/);
  expect(() => parseModelName("")).toThrow(/catalogue/);
});
