// OLLAMA_HOST, in the forms that Ollama takes.
import { expect, test } from "vitest";
import { parseAddress } from "../../src/cli/address.js";

test.each([
  ["0.0.0.0", "0.0.0.0", 11434],
  ["127.0.0.1:9000", "127.0.0.1", 9000],
  [":9000", "127.0.0.1", 9000],
  ["http://example.org", "example.org", 80],
  ["https://example.org/", "example.org", 443],
  ["http://example.org:1234", "example.org", 1234],
  ["[::1]:9000", "::1", 9000],
  ["[::1]", "::1", 11434],
])("%s is %s, port %i", (text, host, port) => expect(parseAddress(text)).toEqual({ host, port }));

test.each(["host:99999", "a:b:c", "[::1", "http://a/b"])("%j is refused", (text) => {
  expect(() => parseAddress(text)).toThrow(/is not an address/);
});
