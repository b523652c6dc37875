// The environment table.
import { readFileSync } from "node:fs";
import { afterEach, expect, test, vi } from "vitest";
import { debugLevel, env, variables } from "../../src/base/env.js";

afterEach(() => vi.unstubAllEnvs());

test("an unset or empty variable has its default", () => {
  vi.stubEnv("HF_ENDPOINT", "");
  expect(env("HF_ENDPOINT")).toBe("https://huggingface.co");
  vi.stubEnv("HF_ENDPOINT", "https://mirror.example");
  expect(env("HF_ENDPOINT")).toBe("https://mirror.example");
  vi.stubEnv("HF_TOKEN", "");
  expect(env("HF_TOKEN")).toBeUndefined();
});

test.each([
  ["", 0],
  ["1", 1],
  ["5", 5],
  ["9", 5],
  ["express:*", 0],
  ["-1", 0],
])("DEBUG=%s is level %i", (text, level) => {
  vi.stubEnv("DEBUG", text);
  expect(debugLevel()).toBe(level);
});

test("there are at most 20 variables, and the guide names each", () => {
  const guide = readFileSync(new URL("../../docs/USAGE.md", import.meta.url), "utf8");
  expect(Object.keys(variables).length).toBeLessThanOrEqual(20);
  for (const name of Object.keys(variables)) expect(guide).toMatch(new RegExp(`^\\| \`${name}\` +\\|`, "m"));
});
