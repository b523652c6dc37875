// Owns: speaking to a registry by the OCI distribution protocol, as Ollama's registry speaks it: manifests and blobs by
// name, tokens (401 → the realm's token → again), retries with growing pauses. A token goes to the registry's own host
// only; redirects to content servers get none.
import { setTimeout as sleep } from "node:timers/promises";
import { env } from "../base/env.js";
import { UserError } from "../base/errors.js";
import { within } from "./abort.js";
import { networkReason, retryAfterMs } from "./download.js";
import { manifestType, ociManifestType } from "./manifest.js";
import { defaultRegistry, isOnThisMachine, type PackageId } from "./names.js";
import { signedByOllamaKey } from "./ollama-key.js";

export interface RegistryOptions {
  /** Without TLS; a registry on this machine needs no permission for that. */
  readonly insecure?: boolean;
  readonly signal?: AbortSignal;
  readonly retries?: number;
  /** First pause before a retry; doubles each time. */
  readonly pauseMs?: number;
}

interface RequestOptions {
  readonly headers?: Record<string, string>;
  readonly body?: Uint8Array | string;
  readonly redirect?: "manual";
  /** A content server's address: it gets no token, whatever its host. */
  readonly foreign?: boolean;
}

const silenceMs = 30_000;
/** Until a chunk is through a slow line. */
const sendingMs = 600_000;

function addressOf(registry: string, insecure: boolean): string {
  const own = registry === defaultRegistry ? env("MILLRACE_REGISTRY") : undefined;
  if (own !== undefined) {
    const text = own.replace(/\/+$/, "");
    if (!/^https?:\/\/[^/]+$/.test(text)) {
      throw new UserError(`MILLRACE_REGISTRY is ${own}: it must be an address such as https://registry.example.org`);
    }
    return text;
  }
  return `${insecure || isOnThisMachine(registry) ? "http" : "https"}://${registry}`;
}

/** "host=user:password", several with commas between: each is given to its host alone. */
function credentialsFor(host: string): string | undefined {
  for (const one of (env("MILLRACE_REGISTRY_AUTH") ?? "").split(",")) {
    const at = one.indexOf("=");
    if (at > 0 && one.slice(0, at).trim() === host) return `Basic ${Buffer.from(one.slice(at + 1)).toString("base64")}`;
  }
  return undefined;
}

/** The parameters of WWW-Authenticate. */
function challengeOf(response: Response): { scheme: string; parameters: Record<string, string> } {
  const header = response.headers.get("www-authenticate") ?? "";
  const parameters: Record<string, string> = {};
  for (const [, name, value] of header.matchAll(/(\w+)="([^"]*)"/g)) parameters[name.toLowerCase()] = value;
  return { scheme: /^\w+/.exec(header)?.[0].toLowerCase() ?? "", parameters };
}

/** The registry's own words on what is wrong. */
async function wordsOf(response: Response): Promise<string> {
  const text = (await response.text().catch(() => "")).slice(0, 2000);
  try {
    const { errors } = JSON.parse(text) as { errors?: { message?: string; code?: string }[] };
    return (errors ?? []).map(({ message, code }) => message ?? code).join("; ");
  } catch {
    return "";
  }
}

export class Registry {
  readonly address: string;
  private authorization: string | undefined;
  private authorizing: Promise<boolean> | undefined;

  constructor(
    readonly id: PackageId,
    private readonly options: RegistryOptions = {},
  ) {
    this.address = addressOf(id.registry, options.insecure ?? false);
  }

  get repository(): string {
    return `${this.id.namespace}/${this.id.model}`;
  }

  url(path: string): string {
    return `${this.address}/v2/${this.repository}/${path}`;
  }

  /** For whoever downloads a blob by its own means. */
  get headers(): Readonly<Record<string, string>> {
    return this.authorization === undefined ? {} : { authorization: this.authorization };
  }

  /** What an answer that says no means for a person. */
  refusal(status: number, what: string, words = ""): UserError {
    const { host } = new URL(this.address);
    const said = words === "" ? "" : `: ${words}`;
    if (status === 401 || status === 403) {
      return new UserError(
        `${host} does not let you at ${what} (HTTP ${status}${said}): it is private, or does not exist. ` +
          `MILLRACE_REGISTRY_AUTH="${host}=user:password" gives it a name and a password.`,
        { status, code: "model_access_denied" },
      );
    }
    if (status === 404) {
      return new UserError(`${host} has no ${what} (HTTP 404${said}): check the name and the tag.`, {
        status,
        code: "model_not_found",
      });
    }
    if (status === 429) {
      return new UserError(`${host}: too many requests (HTTP 429${said}); wait a while and try again.`, {
        status,
        code: "rate_limited",
      });
    }
    return new UserError(`${host} answered with HTTP ${status} for ${what}${said}.`, {
      status: 502,
      code: "registry_failed",
    });
  }

  async manifest(): Promise<string> {
    const { tag } = this.id;
    const response = await this.request("GET", this.url(`manifests/${tag}`), {
      headers: { accept: `${manifestType}, ${ociManifestType}` },
    });
    if (!response.ok) throw this.refusal(response.status, `${this.repository}:${tag}`, await wordsOf(response));
    return response.text();
  }

  async putManifest(text: string, type: string): Promise<void> {
    const response = await this.request("PUT", this.url(`manifests/${this.id.tag}`), {
      headers: { "content-type": type },
      body: text,
    });
    await this.expect(response, `${this.repository}:${this.id.tag}`);
  }

  /** Throws for an answer that says no; the answer's body is read. */
  async expect(response: Response, what: string): Promise<Response> {
    if (!response.ok) throw this.refusal(response.status, what, await wordsOf(response));
    await response.body?.cancel();
    return response;
  }

  /** One request, with a token where one is asked for, and again where the network or the server fails. */
  async request(method: string, url: string, init: RequestOptions = {}): Promise<Response> {
    const { retries = 5, pauseMs = 500, signal } = this.options;
    for (let failures = 0; ; ) {
      let pause = pauseMs * 2 ** failures;
      try {
        const response = await this.attempt(method, url, init);
        const mayRetry = response.status === 429 || response.status >= 500;
        if (!mayRetry || failures >= retries) return response;
        pause = retryAfterMs(response) ?? pause;
        await response.body?.cancel();
      } catch (error) {
        signal?.throwIfAborted();
        if (error instanceof UserError) throw error;
        if (failures >= retries) {
          throw new UserError(`${new URL(url).host} cannot be reached: ${networkReason(error)}.`, {
            status: 502,
            code: "download_failed",
            cause: error,
          });
        }
      }
      failures++;
      await sleep(Math.min(pause, 30_000), undefined, { signal });
    }
  }

  private async attempt(method: string, url: string, { foreign = false, ...init }: RequestOptions): Promise<Response> {
    const own = !foreign && new URL(url).host === new URL(this.address).host;
    const send = () =>
      fetch(url, {
        method,
        ...init,
        headers: { ...init.headers, ...(own ? this.headers : {}) },
        signal: this.within(init.body === undefined ? silenceMs : sendingMs),
      });
    const response = await send();
    if (response.status !== 401 || !own) return response;
    await response.body?.cancel();
    // An old token may have run out; what a fresh one does not open stays shut.
    return (await this.authorize(response)) ? send() : response;
  }

  private within(limitMs: number): AbortSignal {
    return within(limitMs, this.options.signal);
  }

  /** Takes what the answer's challenge asks for; of requests at once, one asks. false: there is nothing to give. */
  private authorize(response: Response): Promise<boolean> {
    this.authorizing ??= this.takeToken(response).finally(() => {
      this.authorizing = undefined;
    });
    return this.authorizing;
  }

  private async takeToken(response: Response): Promise<boolean> {
    const { scheme, parameters } = challengeOf(response);
    const { host } = new URL(this.address);
    const basic = credentialsFor(host);
    if (scheme === "basic") {
      const known = basic !== undefined && this.authorization !== basic;
      if (known) this.authorization = basic;
      return known;
    }
    if (scheme !== "bearer" || parameters.realm === undefined) return false;
    const token = await this.token(parameters, basic);
    if (token === undefined) return false;
    this.authorization = `Bearer ${token}`;
    return true;
  }

  private async token(parameters: Record<string, string>, basic: string | undefined): Promise<string | undefined> {
    const realm = new URL(parameters.realm, this.address);
    for (const name of ["service"]) if (parameters[name] !== undefined) realm.searchParams.set(name, parameters[name]);
    for (const scope of (parameters.scope ?? "").split(" ").filter(Boolean)) realm.searchParams.append("scope", scope);
    const sameHost = realm.host === new URL(this.address).host;
    // A user's password goes to the registry's own host, or to one that it names with TLS.
    const mayKnow = sameHost || realm.protocol === "https:";
    const signature = sameHost && basic === undefined ? signedByOllamaKey(realm) : undefined;
    const authorization = mayKnow ? (basic ?? signature) : undefined;
    const response = await fetch(realm, {
      headers: authorization === undefined ? {} : { authorization },
      signal: this.within(silenceMs),
    });
    if (!response.ok) {
      await response.body?.cancel();
      return undefined;
    }
    const { token, access_token } = (await response.json()) as { token?: string; access_token?: string };
    return token ?? access_token;
  }
}
