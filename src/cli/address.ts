// Owns: OLLAMA_HOST: the address that a server listens on and that its clients ask, in the forms that Ollama takes:
// "host", "host:port", ":port", "http://host:port", "[::1]:port".
import { UsageError } from "./failure.js";

export interface Address {
  readonly host: string;
  readonly port: number;
}

export const defaultAddress: Address = { host: "127.0.0.1", port: 11434 };

export function parseAddress(text: string): Address {
  const parts = /^(https?:\/\/)?(\[[0-9a-f:.]+\]|[^:/[\]]*)(?::(\d{1,5}))?\/?$/i.exec(text.trim());
  const port = parts?.[3] === undefined ? schemePort(parts?.[1]) : Number(parts[3]);
  if (parts === null || port > 65535) {
    throw new UsageError(`${JSON.stringify(text)} is not an address: give host, host:port or http://host:port`);
  }
  return { host: parts[2].replace(/^\[|\]$/g, "") || defaultAddress.host, port };
}

function schemePort(scheme: string | undefined): number {
  if (scheme === undefined) return defaultAddress.port;
  return scheme.toLowerCase() === "https://" ? 443 : 80;
}
