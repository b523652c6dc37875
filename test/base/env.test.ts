// The environment table.
import { readFileSync } from "node:fs";
import { afterEach, expect, test, vi } from "vitest";
import { aliases, debugLevel, env, isOn, variables } from "../../src/base/env.js";
import { dataFolder } from "../../src/store/folder.js";

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

test.each([
  ["", false],
  ["0", false],
  ["false", false],
  ["1", true],
  ["true", true],
])("OLLAMA_NOHISTORY=%s is %s", (text, on) => {
  vi.stubEnv("OLLAMA_NOHISTORY", text);
  expect(isOn("OLLAMA_NOHISTORY")).toBe(on);
});

test("the store lies below OLLAMA_MODELS where MILLRACE_HOME does not say, and shares no folder with Ollama's", () => {
  vi.stubEnv("OLLAMA_MODELS", "/big/models");
  vi.stubEnv("MILLRACE_HOME", "");
  expect(dataFolder()).toBe("/big/models/millrace");
  vi.stubEnv("MILLRACE_HOME", "/home/store");
  expect(dataFolder()).toBe("/home/store");
});

test("there are at most 20 variables beside Ollama's, and the guide names each", () => {
  const guide = readFileSync(new URL("../../docs/USAGE.md", import.meta.url), "utf8");
  expect(Object.keys(variables).length).toBeLessThanOrEqual(20);
  for (const name of Object.keys({ ...variables, ...aliases }))
    expect(guide).toMatch(new RegExp(`^\\| \`${name}\` +\\|`, "m"));
});
