// Owns: asking a running server: where it is (OLLAMA_HOST, else this machine's default port) and what its refusals mean.
import { env } from "../base/env.js";
import { UserError } from "../base/errors.js";
import { defaultAddress, parseAddress } from "./address.js";

export function serverUrl(): string {
  const text = env("OLLAMA_HOST");
  const { host, port } = text === undefined ? defaultAddress : parseAddress(text);
  const reachable = host === "0.0.0.0" || host === "::" ? "127.0.0.1" : host;
  const scheme = text?.startsWith("https://") ? "https" : "http";
  return `${scheme}://${reachable.includes(":") ? `[${reachable}]` : reachable}:${port}`;
}

/** Throws UserError where there is no server, or it says no. */
export async function askServer(path: string, body?: object): Promise<Response> {
  const url = serverUrl();
  const key = env("MILLRACE_API_KEY");
  const headers: Record<string, string> = key === undefined ? {} : { authorization: `Bearer ${key}` };
  let response: Response;
  try {
    const init = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    response = await fetch(url + path, { ...init, headers: { ...headers, "content-type": "application/json" } });
  } catch (error) {
    throw new UserError(
      `there is no server on ${url}: start one with millrace serve, or name another with OLLAMA_HOST=host:port`,
      { status: 502, code: "no_server", cause: error },
    );
  }
  if (response.ok) return response;
  const text = await response.text();
  let said = text;
  try {
    const { error } = JSON.parse(text) as { error?: string | { message?: string } };
    said = (typeof error === "string" ? error : error?.message) ?? text;
  } catch {
    // Not JSON: as it is.
  }
  throw new UserError(`${url}: ${said || `HTTP ${response.status}`}`, { status: response.status });
}
