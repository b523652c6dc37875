// What MODEL may be.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { catalogue, defaultModel, findEntry } from "../../src/store/catalogue.js";
import { parseModelName, parsePackageName } from "../../src/store/names.js";

test("a catalogue name and its aliases mean the same model", () => {
  for (const name of ["smollm2", "SmolLM2", "smollm2:135m", "default"]) {
    expect(parseModelName(name)).toMatchObject({ kind: "catalogue", name: "smollm2:latest" });
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

test.each([
  ["llama3.2", "llama3.2:latest", "registry.ollama.ai/library/llama3.2/latest"],
  ["llama3.2:1b", "llama3.2:1b", "registry.ollama.ai/library/llama3.2/1b"],
  ["me/my-model", "me/my-model:latest", "registry.ollama.ai/me/my-model/latest"],
  ["localhost:5000/me/x:v1", "localhost:5000/me/x:v1", "localhost:5000/me/x/v1"],
  ["http://localhost:5000/me/x", "localhost:5000/me/x:latest", "localhost:5000/me/x/latest"],
  ["registry.ollama.ai/library/a", "a:latest", "registry.ollama.ai/library/a/latest"],
])("%s is the package %s", (text, name, place) => {
  const parsed = parsePackageName(text)!;
  expect(parsed).toMatchObject({ kind: "registry", name });
  const { registry, namespace, model, tag } = parsed.id;
  expect([registry, namespace, model, tag].join("/")).toBe(place);
  expect(parsePackageName(name)?.id).toEqual(parsed.id);
});

test("hf.co names a quantisation by its tag, and is the same package as hf:", () => {
  expect(parsePackageName("hf.co/a/b:Q4_K_M")).toMatchObject({ kind: "hub", hub: { repo: "a/b", quant: "Q4_K_M" } });
  expect(parsePackageName("hf.co/a/b")?.id).toEqual(parsePackageName("hf:a/b")?.id);
  const file = parsePackageName("hf:a/b/sub/x.gguf")!;
  expect(file.name).toBe("hf:a/b/sub/x.gguf");
  expect(file.id).not.toEqual(parsePackageName("hf:a/b/other/x.gguf")!.id);
});

test("the address of a GGUF is a package of its own", () => {
  expect(parsePackageName("https://example.org/models/tiny-q4.gguf?x=1")).toMatchObject({
    kind: "url",
    id: { registry: "example.org", namespace: "url", model: "tiny-q4" },
  });
});

test.each(["a/b/c/d", "../x", "a/../b", "a b", "x:y:z", ".hidden", ""])("%j is no package's name", (text) => {
  expect(parsePackageName(text)).toBeNull();
});

test("what is nothing says what a model may be", () => {
  expect(() => parseModelName("no such model")).toThrow(/"no such model" is no model's name.*smollm2.*hf:owner\/repo/);
  expect(() => parseModelName("./no/such.gguf")).toThrow(/there is no file or folder .\/no\/such.gguf/);
  expect(() => parseModelName("")).toThrow(/catalogue/);
});
